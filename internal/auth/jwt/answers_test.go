package jwt

import (
	"context"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
)

// What a provider told of somebody is kept for a moment only.
func TestAnswersAreForgotten(t *testing.T) {
	var a answers
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 100 {
		r := &engine.Request{Mount: &mount.Entry{UUID: "m"}, Now: now, Op: &lessor.Op{Client: netip.MustParseAddr("192.0.2.1")}}
		key := strconv.Itoa(i)
		_, err := a.of(r, key, func(context.Context) (any, error) { return i, nil })
		unknown, ok := err.(*engine.Unknown)
		if !ok {
			t.Fatal(err)
		}
		unknown.Learn(t.Context())
		if got, err := a.of(r, key, nil); err != nil || got != i {
			t.Fatal(got, err)
		}
		now = now.Add(time.Minute)
	}
	if n := len(a.known); n > 3 {
		t.Errorf("%d answers are kept", n)
	}
}
