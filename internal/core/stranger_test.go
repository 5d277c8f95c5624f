package core_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// since are the records of commits after seq, the counts of the seconds that are over among them.
func (g *gate) since(seq uint64) []audit.At {
	g.Helper()
	g.clock.Advance(2 * time.Second)
	if err := g.core.FlushStrangers(g.Context(), g.db.Now()); err != nil {
		g.Fatal(err)
	}
	var out []audit.At
	records, _, err := g.db.Records(store.Query{Newest: true, Limit: 1000})
	if err != nil {
		g.Fatal(err)
	}
	for _, r := range records {
		if r.Seq > seq && r.System == "" {
			out = append(out, r)
		}
	}
	return out
}

// A flood of what strangers are refused is a handful of records, and every refusal is in one of them.
func TestFloodIsCounted(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass"}`)
	g.do(g.root, lessor.Update, "sys/auth/approle", `{"type":"approle"}`)
	expired := g.token(`{"policies":["default"],"ttl":"1m"}`)
	g.clock.Advance(2 * time.Minute)
	g.eventually("the token is gone", func() bool { return strings.Contains(g.everything(), "token expired") }) // until then, whose it was is told
	const n = 500
	for name, ask := range map[string]func(i int) *lessor.Op{
		"no token": func(i int) *lessor.Op {
			return g.op(lessor.Secret{}, lessor.Read, fmt.Sprintf("secret/data/%d", i), "")
		},
		"guessed tokens": func(i int) *lessor.Op {
			return g.op(lessor.NewSecret(fmt.Sprintf("hvs.guess%d", i)), lessor.Read, "sys/mounts", "")
		},
		"an expired token": func(int) *lessor.Op { return g.op(expired, lessor.Read, "sys/mounts", "") },
		"approle logins": func(i int) *lessor.Op {
			return g.op(lessor.Secret{}, lessor.Update, "auth/approle/login", fmt.Sprintf(`{"role_id":"%d","secret_id":"x"}`, i))
		},
		"token lookups by strangers": func(i int) *lessor.Op {
			return g.op(lessor.Secret{}, lessor.Update, "auth/token/lookup", `{"token":"hvs.x"}`)
		},
	} {
		g.clock.Advance(time.Minute)
		seq := g.db.Head().Seq
		for i := range n {
			op := ask(i)
			if _, err := g.core.Handle(g.Context(), op); err == nil {
				t.Fatalf("%s: not refused", name)
			}
		}
		records := g.since(seq)
		var sum uint64
		for _, r := range records {
			sum += max(r.Count, 1)
			if r.Granted && r.ErrorKind == "" || r.Client != "127.0.0.1" {
				t.Errorf("%s: %+v", name, r.Record)
			}
		}
		if len(records) != 2 || sum != n {
			t.Errorf("%s: %d records of %d refusals, want 2 of %d", name, len(records), sum, n)
		}
	}
}

// Who tries wrapping tokens is told of one by one, so that whoever was robbed finds out, up to a bound.
func TestProbesOfWrappingTokens(t *testing.T) {
	g := start(t)
	seq := g.db.Head().Seq
	for i := range 100 {
		op := g.op(lessor.NewSecret(fmt.Sprintf("hvs.wrapping%d", i)), lessor.Update, "sys/wrapping/unwrap", "")
		if _, err := g.core.Handle(g.Context(), op); api.KindOf(err) != api.Invalid {
			t.Fatal(err)
		}
	}
	var sum uint64
	records := g.since(seq)
	for _, r := range records {
		sum += max(r.Count, 1)
		if r.Note == "" {
			t.Errorf("record without a note: %+v", r.Record)
		}
	}
	if len(records) != 17 || sum != 100 {
		t.Errorf("%d records of %d probes", len(records), sum)
	}
}

// What anybody may ask is not refused, but it must not fill the disk either: it is counted, as it shows nothing that is kept from
// anybody; and nobody without a token leaves anything behind.
func TestWhatAnybodyMayAskIsCounted(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass"}`)
	g.login("userpass", "ann")
	const n = 100
	for _, path := range []string{"sys/internal/ui/mounts", "sys/internal/specs/openapi", "sys/internal/ui/feature-flags", "sys/replication/status"} {
		g.clock.Advance(time.Minute)
		seq := g.db.Head().Seq
		for range n {
			g.do(lessor.Secret{}, lessor.Read, path, "")
		}
		records := g.since(seq)
		var sum uint64
		for _, r := range records {
			sum += max(r.Count, 1)
			if !r.Granted || r.ErrorKind != "" || r.Path != path {
				t.Errorf("%s: %+v", path, r.Record)
			}
		}
		if len(records) != 2 || sum != n {
			t.Errorf("%s: %d records of %d requests, want 2 of %d", path, len(records), sum, n)
		}
		op := g.op(lessor.Secret{}, lessor.Read, path, "")
		op.WrapTTL = time.Hour
		if a, err := g.core.Handle(t.Context(), op); api.KindOf(err) != api.Invalid {
			t.Errorf("%s was wrapped for a stranger: %+v", path, a)
		}
		token := g.token(`{"policies":["default"]}`)
		seq = g.db.Head().Seq
		for range 5 {
			g.do(token, lessor.Read, path, "")
		}
		if n := len(g.since(seq)); n != 5 {
			t.Errorf("%s: %d records of 5 requests of somebody who has a token", path, n)
		}
	}
	op := g.op(lessor.Secret{}, lessor.Update, "auth/userpass/login/ann", `{"password":"a long password"}`)
	op.WrapTTL = time.Hour
	if a, err := g.core.Handle(t.Context(), op); err != nil || a.Wrap == nil {
		t.Errorf("a login is not wrapped: %v", err)
	}
}

// What gives something is never only counted: batch tokens are no rows, and yet each login that gives one is on record before it leaves.
func TestLoginsAreRecordsOfTheirOwn(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/auth/up", `{"type":"userpass","config":{"token_type":"batch"}}`)
	g.login("up", "ann")
	seq := g.db.Head().Seq
	const n = 10
	for range n {
		if a := g.do(lessor.Secret{}, lessor.Update, "auth/up/login/ann", `{"password":"a long password"}`); a.Auth == nil || a.Auth.Kind != lessor.Batch {
			t.Fatalf("%+v", a.Auth)
		}
	}
	records := g.since(seq)
	for _, r := range records {
		if !r.Granted || r.Count > 1 || r.Name == "" {
			t.Errorf("%+v", r.Record)
		}
	}
	if len(records) != n {
		t.Errorf("%d records of %d logins", len(records), n)
	}
}

// However many addresses a flood comes from, what it writes is bounded.
func TestFloodFromEverywhere(t *testing.T) {
	g := start(t)
	seq := g.db.Head().Seq
	for i := range 3000 {
		op := g.op(lessor.Secret{}, lessor.Read, "sys/mounts", "")
		op.Client = netip.AddrFrom4([4]byte{byte(i), byte(i >> 8), 1, 1})
		if _, err := g.core.Handle(g.Context(), op); api.KindOf(err) != api.Unauthenticated {
			t.Fatal(err)
		}
	}
	var sum uint64
	records := g.since(seq)
	for _, r := range records {
		sum += max(r.Count, 1)
	}
	if len(records) > 200 || sum != 3000 {
		t.Errorf("%d records of %d refusals", len(records), sum)
	}
}

// Whoever holds a token is recorded each time.
func TestDenialsOfHoldersAreRecordsOfTheirOwn(t *testing.T) {
	g := start(t)
	token := g.token(`{"policies":["default"]}`)
	seq := g.db.Head().Seq
	for range 5 {
		g.refused(api.Denied, token, lessor.Read, "sys/mounts", "")
	}
	if n := len(g.since(seq)); n != 5 {
		t.Errorf("%d records of 5 denials", n)
	}
}

// mountAt is the mount at a path.
func (g *gate) mountAt(path string) *mount.Entry {
	g.Helper()
	v, err := g.db.View()
	if err != nil {
		g.Fatal(err)
	}
	defer v.Close()
	table, err := mount.Load(v)
	if err != nil {
		g.Fatal(err)
	}
	return table.ByPath(path)
}
