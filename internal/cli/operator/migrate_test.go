package operator

import (
	"slices"
	"testing"
	"time"
)

func TestPassage(t *testing.T) {
	now := time.Unix(0, 0)
	var said string
	var lines []string
	p := &passage{say: func(s string) { said = s }, line: func(s string) { lines = append(lines, s) }, lines: true, now: func() time.Time { return now }}
	step := func(after time.Duration, at Passing, want string) {
		t.Helper()
		now = now.Add(after)
		if p.tell(at); said != want {
			t.Errorf("%q; want %q", said, want)
		}
	}
	step(0, Passing{Doing: "counting", Done: 7}, "counting: 7 rows")
	copying := Passing{Doing: "copying", Done: 250, Total: 1000, Bytes: 1 << 20, BytesInTotal: 4 << 20} // an earlier try did a quarter
	step(0, copying, "copying [#####...............] 25 %, 250 of 1000 rows, 1.0 MiB of 4.0 MiB")
	copying.Done, copying.Bytes = 500, 2<<20
	step(5*time.Second, copying, "copying [##########..........] 50 %, 500 of 1000 rows, 2.0 MiB of 4.0 MiB, 10s left")
	copying.Done, copying.Bytes = 1000, 4<<20
	step(6*time.Second, copying, "copying [####################] 100 %, 1000 of 1000 rows, 4.0 MiB of 4.0 MiB")
	step(0, Passing{Doing: "verifying", Done: 3, Total: 3}, "verifying [####################] 100 %, 3 of 3 commits")
	want := []string{
		"counting: 7 rows",
		"copying [#####...............] 25 %, 250 of 1000 rows, 1.0 MiB of 4.0 MiB",
		"copying [####################] 100 %, 1000 of 1000 rows, 4.0 MiB of 4.0 MiB",
		"verifying [####################] 100 %, 3 of 3 commits",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("lines: %q", lines)
	}
}
