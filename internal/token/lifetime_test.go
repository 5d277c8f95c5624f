package token

import (
	"strings"
	"testing"
	"time"
)

func TestLifetimes(t *testing.T) {
	const h = time.Hour
	for _, c := range []struct {
		name      string
		l         Lifetime
		increment time.Duration
		age       time.Duration
		want      time.Duration // 0: its time is over
		warns     string
	}{
		{"default", Lifetime{}, 0, 0, 10 * h, ""},
		{"ttl", Lifetime{TTL: h}, 0, 0, h, ""},
		{"increment over ttl", Lifetime{TTL: h}, 3 * h, 0, 3 * h, ""},
		{"mount's maximum", Lifetime{}, 300 * h, 0, 100 * h, `TTL of "300h" exceeded the effective max_ttl of "100h"`},
		{"role's maximum", Lifetime{MaxTTL: 5 * h}, 0, 0, 5 * h, `TTL of "10h" exceeded the effective max_ttl of "5h"`},
		{"role's maximum beyond the mount's", Lifetime{MaxTTL: 500 * h}, 300 * h, 0, 100 * h, `"100h"`},
		{"explicit", Lifetime{Explicit: 2 * h, MaxTTL: 5 * h}, 0, h, h, `max_ttl of "1h"`},
		{"over", Lifetime{MaxTTL: 5 * h}, 0, 5 * h, 0, ""},
		{"periodic", Lifetime{Period: 2 * h, MaxTTL: 5 * h, TTL: h}, 50 * h, 1000 * h, 2 * h, ""},
		{"period beyond the maximum", Lifetime{Period: 200 * h}, 0, 1000 * h, 100 * h, `period of "200h" exceeded the effective max_ttl of "100h"`},
		{"periodic with an end", Lifetime{Period: 2 * h, Explicit: 5 * h}, 0, 4 * h, h, `TTL of "2h" exceeded`},
		{"periodic, over", Lifetime{Period: 2 * h, Explicit: 5 * h}, 0, 6 * h, 0, ""},
	} {
		issued := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		c.l.Default, c.l.Max, c.l.Issued = 10*h, 100*h, issued
		ttl, warnings, err := c.l.Grant(c.increment, issued.Add(c.age))
		if ttl != c.want || (err != nil) != (c.want == 0) {
			t.Errorf("%s: %v, %v; want %v", c.name, ttl, err, c.want)
		}
		if got := strings.Join(warnings, "; "); (got == "") != (c.warns == "") || !strings.Contains(got, c.warns) {
			t.Errorf("%s: warns %q, want %q", c.name, got, c.warns)
		}
	}
}

func TestBrief(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", time.Second: "1s", time.Minute: "1m", time.Hour: "1h", 90 * time.Minute: "1h30m", time.Hour + time.Second: "1h1s", 10 * time.Minute: "10m",
		100*time.Hour + 10*time.Second: "100h10s", 20*time.Hour + 30*time.Minute: "20h30m", 1400 * time.Millisecond: "1s",
	} {
		if got := brief(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}
