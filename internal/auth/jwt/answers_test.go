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

// A few networks that have very much asked leave room for another, and take it from themselves.
func TestAnswersAreShared(t *testing.T) {
	var a answers
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	ask := func(from netip.Addr, key string) error {
		r := &engine.Request{Mount: &mount.Entry{UUID: "m"}, Now: now, Op: &lessor.Op{Client: from}}
		_, err := a.of(r, key, func(context.Context) (any, error) { return key, nil })
		if unknown, ok := err.(*engine.Unknown); ok {
			unknown.Learn(t.Context())
			_, err = a.of(r, key, nil)
		}
		return err
	}
	quiet := netip.MustParseAddr("192.0.2.1")
	if err := ask(quiet, "first"); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for i := range 110 { // seconds
		for n := range 20 {
			from := netip.AddrFrom4([4]byte{198, 51, 100, byte(n)})
			for _, again := range []string{"a", "b"} {
				if ask(from, from.String()+" "+strconv.Itoa(i)+again) != nil {
					refused++
				}
			}
		}
		now = now.Add(time.Second)
	}
	if len(a.known) != mostAnswers || refused == 0 {
		t.Fatalf("%d answers are kept, %d refused: the test does not fill the room", len(a.known), refused)
	}
	for i := range 10 {
		if err := ask(quiet, strconv.Itoa(i)); err != nil {
			t.Fatalf("a network that had asked once is refused: %v", err)
		}
	}
	if got, err := a.of(&engine.Request{Mount: &mount.Entry{UUID: "m"}, Now: now, Op: &lessor.Op{Client: quiet}}, "first", nil); err != nil || got != "first" {
		t.Errorf("%v %v", got, err)
	}
	if len(a.known) > mostAnswers {
		t.Errorf("%d answers are kept", len(a.known))
	}
}
