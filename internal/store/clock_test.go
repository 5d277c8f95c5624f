package store

import (
	"testing"
	"time"
)

// halting is a clock that stands for hours between two readings: the machine is suspended there, both go on as if nothing had been.
type halting struct {
	passed time.Duration
	after  string // which reading it is; "": none
}

func (h *halting) read(which string) time.Duration {
	d := h.passed
	if h.after == which {
		h.passed, h.after = d+3*driftTerm, ""
	}
	return d
}

func (h *halting) Now() time.Time         { return time.Unix(1e9, 0).Add(h.read("wall")) }
func (h *halting) Elapsed() time.Duration { return h.read("monotonic") }

// A machine that is suspended between the readings of its two clocks has lost no trust a moment later.
func TestSuspendedBetweenTwoReadings(t *testing.T) {
	for _, after := range []string{"wall", "monotonic"} {
		h := &halting{}
		l := newLeaseClock(h)
		h.after = after
		l.now()
		for range 2 {
			if err := l.alarm(); err != nil {
				t.Errorf("after the %s clock was read: %v", after, err)
			}
		}
		if h.after, h.passed = "", h.passed+driftTerm; !l.now().Equal(h.Now()) {
			t.Errorf("after the %s clock was read: it is %v, not %v", after, l.now(), h.Now())
		}
	}
}
