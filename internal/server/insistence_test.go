package server

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// A renewal that is refused again and again is answered late, and only that.
func TestInsistence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p insistence
		refused := api.Errorf(api.Invalid, "lease not found")
		took := func(client, path, lease string, err error) time.Duration {
			start := time.Now()
			p.hold(t.Context(), &lessor.Op{Verb: lessor.Update, Path: path, Client: netip.MustParseAddr(client), Data: map[string]any{"lease_id": lease}}, err, start)
			return time.Since(start)
		}
		for i := range 6 {
			want := time.Duration(0)
			if i >= refusalsFree {
				want = refusalDelay
			}
			if d := took("192.0.2.1", "sys/leases/renew", "a", refused); d != want {
				t.Errorf("refusal %d took %v, want %v", i+1, d, want)
			}
		}
		for _, c := range []struct {
			what, client, path, lease string
			err                       error
		}{
			{"another lease", "192.0.2.1", "sys/leases/renew", "b", refused},
			{"another address", "192.0.2.2", "sys/leases/renew", "a", refused},
			{"a fault of the server", "192.0.2.1", "sys/leases/renew", "a", api.Errorf(api.Unavailable, "sealed")},
		} {
			if d := took(c.client, c.path, c.lease, c.err); d != 0 {
				t.Errorf("%s waited %v", c.what, d)
			}
		}
		for range 10 {
			if d := took("192.0.2.1", "secret/data/a", "a", refused); d != 0 {
				t.Errorf("a refusal of something else waited %v", d)
			}
		}
		time.Sleep(refusalsWindow + 1)
		if d := took("192.0.2.1", "sys/leases/renew", "a", refused); d != 0 {
			t.Errorf("after a while, a refusal waited %v", d)
		}
	})
}

// What is remembered and held is bounded, and a client that goes away is not waited for.
func TestInsistenceIsBounded(t *testing.T) {
	var p insistence
	now := time.Now()
	for i := range refusalsKnown + 100 {
		p.late(refusal{asked: [32]byte{byte(i), byte(i >> 8), byte(i >> 16)}}, now)
	}
	if len(p.seen) > refusalsKnown {
		t.Errorf("%d refusals are remembered", len(p.seen))
	}
	if p.late(refusal{asked: [32]byte{31: 1}}, now.Add(2*refusalsWindow)); len(p.seen) != 1 {
		t.Errorf("%d old refusals are remembered", len(p.seen)-1)
	}
	again := refusal{asked: [32]byte{31: 2}}
	held := 0
	for range refusalsHeld + refusalsFree + 10 {
		if p.late(again, now) {
			held++
		}
	}
	if held != refusalsHeld {
		t.Errorf("%d answers wait, want %d", held, refusalsHeld)
	}
	for range held {
		p.release()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	op := &lessor.Op{Verb: lessor.Update, Path: "auth/token/renew-self"}
	start := time.Now()
	for range 10 {
		p.hold(ctx, op, api.Errorf(api.Denied, "no"), start)
	}
	if d := time.Since(start); d > refusalDelay || p.held != 0 {
		t.Errorf("an abandoned request was held for %v; %d still are", d, p.held)
	}
}
