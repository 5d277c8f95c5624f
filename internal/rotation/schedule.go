package rotation

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// Schedule says when an account is rotated by itself. The zero Schedule says never.
type Schedule struct {
	Period time.Duration // after each rotation
	Cron   string        // or at these times, in UTC: minute, hour, day of month, month, day of week
	Window time.Duration // with Cron: a rotation that did not begin within this is left to the next time; 0: at any time
	Jitter time.Duration // up to so much later than that, so that not all are rotated at once

	later time.Duration // how much of Jitter
}

// Drawn is the schedule whose next rotation is later by a part of Jitter: chance, in [0, 1).
func (s Schedule) Drawn(chance float64) Schedule {
	s.later = time.Duration(float64(s.Jitter) * chance)
	return s
}

// Shortest are the smallest values that make sense, which are also Vault's.
const (
	ShortestPeriod = 5 * time.Second
	ShortestWindow = time.Hour
)

const longestCron = 256

var parser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)

// Check says what is wrong with the schedule, at now.
func (s Schedule) Check(now time.Time) error {
	switch {
	case s.Period != 0 && s.Period < ShortestPeriod:
		return fmt.Errorf("rotation_period must be %d seconds or more", ShortestPeriod/time.Second)
	case s.Cron == "" && s.Window != 0:
		return errors.New("rotation_window is invalid with use of rotation_period")
	case s.Window != 0 && s.Window < ShortestWindow:
		return fmt.Errorf("rotation_window must be %d seconds or more", ShortestWindow/time.Second)
	}
	if s.Cron != "" {
		times, err := s.times()
		if err != nil {
			return fmt.Errorf("could not parse rotation_schedule: %w", err)
		}
		if times.Next(now).IsZero() {
			return errors.New("could not parse rotation_schedule: that time never comes")
		}
	}
	switch next := s.Next(now); {
	case s.Jitter < 0 || s.Jitter > 0 && s.Jitter >= s.Next(next).Sub(next):
		return errors.New("rotation_jitter must be shorter than the time from one rotation to the next")
	case s.Window != 0 && s.Jitter >= s.Window:
		return errors.New("rotation_jitter must be shorter than rotation_window")
	}
	return nil
}

func (s Schedule) times() (cron.Schedule, error) {
	if len(s.Cron) > longestCron || strings.Contains(s.Cron, "TZ=") {
		return nil, errors.New("it must be the five fields of cron, without a time zone: times are UTC")
	}
	parsed, err := parser.Parse(s.Cron)
	if err != nil {
		return nil, err
	}
	if spec, ok := parsed.(*cron.SpecSchedule); ok {
		spec.Location = time.UTC
	}
	return parsed, nil
}

// Next is when the rotation after one at the given time is due; zero: never.
func (s Schedule) Next(after time.Time) time.Time {
	switch {
	case s.Cron != "":
		times, err := s.times()
		if err != nil {
			return time.Time{}
		}
		next := times.Next(after.UTC())
		if !next.IsZero() {
			next = next.Add(s.later)
		}
		return next
	case s.Period > 0:
		return after.Add(s.Period + s.later)
	}
	return time.Time{}
}

// Missed reports whether at now the window of the rotation that was due is over.
func (s Schedule) Missed(due, now time.Time) bool {
	return s.Cron != "" && s.Window > 0 && !now.Before(due.Add(s.Window))
}
