package lease

import (
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/token"
)

// Extended is the end of a dynamic lease that is renewed at now: increment from now (0: its ttl), but not beyond its
// maximum, which makes a warning. It does not tell whether the lease is Live: that depends on tombstones and tokens.
func (l *Lease) Extended(increment time.Duration, now time.Time) (until time.Time, warning string, err error) {
	switch {
	case l.State != Live || !now.Before(l.Expires):
		return time.Time{}, "", api.Errorf(api.Invalid, "lease expired")
	case !l.Renewable:
		return time.Time{}, "", api.Errorf(api.Invalid, "lease is not renewable")
	case increment < 0:
		return time.Time{}, "", api.Errorf(api.Invalid, "increment must not be negative")
	}
	ttl := increment
	if ttl == 0 {
		ttl = l.TTL
	}
	if l.Max.IsZero() {
		return now.Add(ttl), "", nil
	}
	left := l.Max.Sub(now)
	if left <= 0 {
		return time.Time{}, "", api.Errorf(api.Invalid, "past the max TTL, cannot renew")
	}
	if ttl > left {
		return l.Max, token.CapWarning(ttl, left), nil
	}
	return now.Add(ttl), "", nil
}
