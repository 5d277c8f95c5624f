package rotation

import (
	"testing"
	"time"
)

// FuzzSchedule: a schedule that is accepted comes due, later than now, and again after that.
func FuzzSchedule(f *testing.F) {
	for _, s := range []string{"0 4 * * *", "*/15 * * * 1-5", "0 0 30 2 *", "TZ=UTC 0 0 * * *", "@daily", "", "0 0 29 2 *", "99 * * * *", "*/0 * * * *", "0-0/1 * * * *"} {
		f.Add(s, int64(1_700_000_000))
	}
	f.Fuzz(func(t *testing.T, cron string, at int64) {
		now := time.Unix(at%4e9, 0).UTC()
		s := Schedule{Cron: cron}
		if cron == "" || s.Check(now) != nil {
			return
		}
		next := s.Next(now)
		if !next.After(now) {
			t.Fatalf("%q after %s is due at %s", cron, now, next)
		}
		if second := s.Next(next); !second.IsZero() && !second.After(next) {
			t.Fatalf("%q after %s is due at %s", cron, next, second)
		}
	})
}
