package lockout

import (
	"fmt"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/mount"
)

// A flood of invented names pushes out invented names only, and memory is bounded.
func TestMemoryIsBounded(t *testing.T) {
	var g Guard
	e := &mount.Entry{UUID: "mount"}
	now := time.Unix(1e9, 0)
	ann := Name{Mount: e, Alias: "ann", Known: true}
	for range 4 {
		if got := g.Fail(ann, Default, now); got != Counted {
			t.Fatal(got)
		}
	}
	for i := range 2 * remembered {
		g.Fail(Name{Mount: e, Alias: fmt.Sprint(i)}, Default, now)
	}
	if n := len(g.unknown.byID); n != remembered || g.unknown.order.Len() != n {
		t.Errorf("%d names are remembered, %d in order", n, g.unknown.order.Len())
	}
	if got := g.Fail(ann, Default, now); got != Locks {
		t.Errorf("the fifth failure of a user, after a flood: %d", got)
	}
}

func TestFailures(t *testing.T) {
	e := &mount.Entry{UUID: "mount"}
	now := time.Unix(1e9, 0)
	n := Name{Mount: e, Alias: "ann", Known: true}
	for name, c := range map[string]struct {
		terms Terms
		pause time.Duration
		want  []Outcome
	}{
		"threshold":         {Terms{3, time.Minute, time.Hour, false}, time.Second, []Outcome{Counted, Counted, Locks, Already, Already}},
		"one":               {Terms{1, time.Minute, time.Hour, false}, time.Second, []Outcome{Locks, Already}},
		"none":              {Terms{0, time.Minute, time.Hour, false}, time.Second, []Outcome{Locks, Already}},
		"lock over":         {Terms{2, time.Minute, time.Hour, false}, time.Minute, []Outcome{Counted, Locks, Locks}},
		"count begins anew": {Terms{2, time.Minute, time.Minute, false}, 2 * time.Minute, []Outcome{Counted, Counted, Counted}},
	} {
		var g Guard
		for i, want := range c.want {
			if got := g.Fail(n, c.terms, now.Add(time.Duration(i)*c.pause)); got != want {
				t.Errorf("%s: failure %d: %d, want %d", name, i+1, got, want)
			}
		}
	}
	// A lock that could not be written is tried again.
	var g Guard
	g.Fail(n, Terms{2, time.Minute, time.Hour, false}, now)
	for range 3 {
		if got := g.Fail(n, Terms{2, time.Minute, time.Hour, false}, now); got != Locks {
			t.Errorf("after a lock that could not be written: %d", got)
		}
		g.Committed(n, 0)
	}
}
