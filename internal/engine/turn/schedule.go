package turn

import (
	"encoding/json"
	"fmt"
	"math"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/rotation"
)

// Reschedule takes over what a client sent of when a static role is rotated: by one of the two ways. What is not sent stays as it was.
func Reschedule(s rotation.Schedule, r *engine.Request) (rotation.Schedule, error) {
	period, cron := r.Has("rotation_period"), r.Str("rotation_schedule") != ""
	switch {
	case period && cron:
		return s, errBothWays
	case period:
		s = rotation.Schedule{Period: r.Dur("rotation_period"), Window: r.Dur("rotation_window"), Jitter: s.Jitter}
		if s.Period < rotation.ShortestPeriod {
			return s, api.Errorf(api.Invalid, "rotation_period must be %d seconds or more", rotation.ShortestPeriod/time.Second)
		}
	case cron:
		s.Period, s.Cron = 0, r.Str("rotation_schedule")
	}
	if r.Has("rotation_window") {
		s.Window = r.Dur("rotation_window")
	}
	if r.Has("rotation_jitter") {
		s.Jitter = r.Dur("rotation_jitter")
	}
	if err := s.Check(r.Now); err != nil {
		return s, api.Errorf(api.Invalid, "%v", err)
	}
	return s, nil
}

// Scheduled reports whether a client sent when a static role is rotated.
func Scheduled(r *engine.Request) bool {
	return r.Has("rotation_period") || r.Str("rotation_schedule") != ""
}

var errBothWays = api.Errorf(api.Invalid, "mutually exclusive fields rotation_period and rotation_schedule were both specified; only one of them can be provided")

// RescheduleOwn is Reschedule for lessor's own account, of which 0 and "" say that it is not rotated by itself. Whoever calls checks the schedule.
func RescheduleOwn(s rotation.Schedule, r *engine.Request) (rotation.Schedule, error) {
	period, cron, window := r.Dur("rotation_period"), r.Str("rotation_schedule"), r.Dur("rotation_window")
	switch {
	case period != 0 && cron != "":
		return s, errBothWays
	case period != 0 && window != 0:
		return s, api.Errorf(api.Invalid, "rotation_window does not apply to period")
	case window != 0 && cron == "":
		return s, api.Errorf(api.Invalid, "cannot use rotation_window without rotation_schedule")
	}
	if r.Has("rotation_schedule") {
		if s.Cron, s.Window = cron, window; cron != "" {
			s.Period = 0
		}
	}
	if r.Has("rotation_period") {
		if s.Period = period; period != 0 {
			s.Cron, s.Window = "", 0
		}
	}
	return s, nil
}

// Tell adds to an answer when a static role's account was rotated and will be.
func Tell(data map[string]any, s rotation.Schedule, a *rotation.Account) {
	if !a.Rotated.IsZero() {
		data["last_vault_rotation"] = a.Rotated
	}
	if s.Jitter > 0 {
		data["rotation_jitter"] = Seconds(s.Jitter)
	}
	if s.Cron == "" {
		data["rotation_period"] = Seconds(s.Period)
		return
	}
	data["rotation_schedule"] = s.Cron
	if s.Window > 0 {
		data["rotation_window"] = Seconds(s.Window)
	}
}

// Seconds is a duration as answers have it: seconds, rounded.
func Seconds(d time.Duration) json.Number {
	return json.Number(fmt.Sprint(int64(math.Round(d.Seconds()))))
}

// late is how long after it was due a rotation is worth a warning.
const late = time.Minute

// Warnings are of an account whose rotation fails or is late.
func Warnings(a *rotation.Account, now time.Time) []string {
	switch {
	case a.Attempts > 0:
		return []string{"the last rotation failed and is tried again: " + a.LastError}
	case a.Overdue(now, late) && a.Phase() == rotation.Waiting:
		return []string{"a rotation has been waiting since " + a.Since.Format(time.RFC3339) + " for those who use the old password: see lessor rotation status"}
	case a.Overdue(now, late) && a.Phase() != rotation.Idle:
		return []string{"a rotation that began at " + a.Since.Format(time.RFC3339) + " is not done yet"}
	case a.Overdue(now, late):
		return []string{"the rotation that was due at " + a.Due.Format(time.RFC3339) + " has not happened yet"}
	}
	return nil
}
