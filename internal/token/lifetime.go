package token

import (
	"fmt"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
)

// Lifetime are the terms on which a token lives. Zero durations say nothing, but for Default and Max, which are in force at
// its mount.
type Lifetime struct {
	Default, Max time.Duration
	TTL          time.Duration // instead of Default
	MaxTTL       time.Duration // of the role: the lesser of it and Max counts
	Period       time.Duration // periodic: each renewal gives this long, whatever is asked for, and there is no end but Explicit
	Explicit     time.Duration // explicit_max_ttl
	Issued       time.Time
}

// most is the longest that a token may live from its issue on.
func (l Lifetime) most() time.Duration {
	most := l.Max
	for _, d := range []time.Duration{l.MaxTTL, l.Explicit} {
		if d > 0 && d < most {
			most = d
		}
	}
	return most
}

// Grant is how long the token lives from now on, if increment is asked for (0: its ttl). Warnings tell what was cut. A token whose
// time is over for good is an error of kind Invalid.
func (l Lifetime) Grant(increment time.Duration, now time.Time) (ttl time.Duration, warnings []string, err error) {
	most := l.most()
	var end time.Time
	switch {
	case l.Period > 0:
		if ttl = l.Period; ttl > most {
			warnings = append(warnings, fmt.Sprintf("period of %q exceeded the effective max_ttl of %q; period value is capped accordingly", brief(ttl), brief(most)))
			ttl = most
		}
		if l.Explicit > 0 {
			end = l.Issued.Add(l.Explicit)
		}
	default:
		switch {
		case increment > 0:
			ttl = increment
		case l.TTL > 0:
			ttl = l.TTL
		default:
			ttl = l.Default
		}
		end = l.Issued.Add(most)
	}
	if end.IsZero() {
		return ttl, warnings, nil
	}
	left := end.Sub(now)
	if left <= 0 {
		return 0, nil, api.Errorf(api.Invalid, "past the max TTL, cannot renew")
	}
	if ttl > left {
		warnings = append(warnings, CapWarning(ttl, left))
		ttl = left
	}
	return ttl, warnings, nil
}

// CapWarning is what a client reads whose ttl was more than the maximum.
func CapWarning(ttl, most time.Duration) string {
	return fmt.Sprintf("TTL of %q exceeded the effective max_ttl of %q; TTL value is capped accordingly", brief(ttl), brief(most))
}

// brief is a duration to the second, without elements that are zero: "1h", "1h5s".
func brief(d time.Duration) string {
	s := d.Round(time.Second).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	return strings.Replace(s, "h0m", "h", 1)
}
