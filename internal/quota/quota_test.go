package quota

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

var ip = netip.MustParseAddr("192.0.2.1")

func TestTheMostSpecificRuleDecides(t *testing.T) {
	db, err := store.Open(mem.New(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Unseal(storetest.NewCipher("quota")); err != nil {
		t.Fatal(err)
	}
	secret := &mount.Entry{UUID: "mount-of-secrets", Namespace: 1, Path: "secret/", Class: mount.Secret, Type: "kv"}
	approle := &mount.Entry{UUID: "mount-of-approle", Namespace: 1, Path: "auth/approle/", Class: mount.Auth, Type: "approle"}
	txn := &store.Txn{}
	mount.Add(txn, secret)
	mount.Add(txn, approle)
	for _, r := range []*Rule{
		{Name: "global"},
		{Name: "mount", Mount: secret.UUID},
		{Name: "path", Mount: secret.UUID, Suffix: "data/app"},
		{Name: "glob", Mount: secret.UUID, Suffix: "data/*"},
		{Name: "longer glob", Mount: secret.UUID, Suffix: "data/team*"},
		{Name: "approle", Mount: approle.UUID},
		{Name: "role", Mount: approle.UUID, Role: "app"},
		{Name: "of a mount that is gone", Mount: "no such mount   "},
		{Name: "leases", Kind: LeaseCount},
	} {
		if r.Kind == "" {
			r.Kind = RateLimit
		}
		txn.Put(store.Config, key(r.Kind, r.Name).Name, encode(r))
	}
	if _, err := db.Commit(t.Context(), *txn); err != nil {
		t.Fatal(err)
	}
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	mounts, err := mount.Load(v)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := Load(v, mounts)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, role, want string }{
		{"sys/mounts", "", "global"}, {"nowhere/at/all", "", "global"},
		{"secret/config", "", "mount"}, {"secret/", "", "mount"}, {"secret", "", "mount"},
		{"secret/data/app", "", "path"}, {"secret/data/app/", "", "path"}, {"secret/data/apple", "", "glob"},
		{"secret/data/team/x", "", "longer glob"}, {"secret/data/team", "", "longer glob"}, {"secret/database", "", "mount"},
		{"auth/approle/login", "app", "role"}, {"auth/approle/login", "other", "approle"}, {"auth/approle/login", "", "approle"},
	} {
		if r := rules.For(RateLimit, c.path, c.role); r == nil || r.Name != c.want {
			t.Errorf("%s as %q: %+v, want %s", c.path, c.role, r, c.want)
		}
	}
	if r := rules.For(LeaseCount, "secret/data/app", ""); r == nil || r.Name != "leases" {
		t.Errorf("leases: %+v", r)
	}
	if names := fmt.Sprint(rules.Names(RateLimit)); names != "[approle glob global longer glob mount path role]" {
		t.Errorf("names: %s", names)
	}
	if !rules.Roles(RateLimit, "auth/approle/login") || rules.Roles(RateLimit, "secret/x") || rules.Roles(LeaseCount, "auth/approle/login") {
		t.Error("where roles matter")
	}
}

func TestExempt(t *testing.T) {
	for _, c := range []struct {
		paths []string
		path  string
		want  bool
	}{
		{Unconfigured.Exempt, "sys/health", true}, {Unconfigured.Exempt, "sys/mounts", false}, {nil, "sys/health", false},
		{[]string{"secret/"}, "secret/data/x", true}, {[]string{"secret/*"}, "secret/data/x", true}, {[]string{"secret/"}, "secret", false},
		{[]string{"secret/", "!secret/data"}, "secret/data/x", false}, {[]string{"secret/", "!secret/data"}, "secret/metadata/x", true},
	} {
		rs := &Rules{Config: Config{Exempt: c.paths}}
		if got := rs.Exempts(c.path); got != c.want {
			t.Errorf("%v: %s: %t", c.paths, c.path, got)
		}
	}
}

func TestWindows(t *testing.T) {
	now := time.Unix(1e9, 0)
	r := &Rule{Rate: 3, Interval: time.Minute}
	ws := &windows{}
	take := func(r *Rule, at time.Duration, from netip.Addr) taken {
		group, rate := r.group(from, "")
		return ws.take(r, rate, group, from, now.Add(at))
	}
	for i := range 5 {
		got := take(r, time.Duration(i)*time.Second, ip)
		if got.allowed != (i < 3) || got.limit != 3 || got.remaining != uint64(max(0, 2-i)) || got.wait != time.Minute-time.Duration(i)*time.Second {
			t.Errorf("request %d: %+v", i, got)
		}
	}
	if !take(r, 5*time.Second, netip.MustParseAddr("192.0.2.2")).allowed {
		t.Error("another address is refused")
	}
	if !take(r, time.Minute, ip).allowed {
		t.Error("refused in the next interval")
	}
	ws, r = &windows{}, &Rule{Rate: 1, Interval: time.Second, Block: time.Minute}
	for _, c := range []struct {
		at      time.Duration
		allowed bool
		wait    time.Duration
	}{{0, true, time.Second}, {0, false, time.Minute}, {30 * time.Second, false, 30 * time.Second}, {time.Minute, true, time.Second}} {
		if got := take(r, c.at, ip); got.allowed != c.allowed || got.wait != c.wait {
			t.Errorf("with a block, at %s: %+v", c.at, got)
		}
	}
}

func TestGroups(t *testing.T) {
	for _, c := range []struct {
		by, entity string
		name       string
		rate       float64
	}{
		{"", "", "192.0.2.1", 10}, {ByIP, "e", "192.0.2.1", 10}, {ByNone, "e", "", 10},
		{ByEntityThenIP, "e", "entity e", 10}, {ByEntityThenIP, "", "192.0.2.1", 2}, {ByEntityThenNone, "e", "entity e", 10}, {ByEntityThenNone, "", "", 2},
	} {
		r := &Rule{GroupBy: c.by, Rate: 10, SecondaryRate: 2}
		if name, rate := r.group(ip, c.entity); name != c.name || rate != c.rate {
			t.Errorf("%q with entity %q: %q at %v", c.by, c.entity, name, rate)
		}
	}
	one, _ := (&Rule{}).group(netip.MustParseAddr("2001:db8::1"), "")
	two, _ := (&Rule{}).group(netip.MustParseAddr("2001:db8::2"), "")
	if one != two {
		t.Errorf("a /64 is %q and %q", one, two)
	}
}

// A flood of addresses fills no memory and does not get past the limit.
func TestWindowsAreBounded(t *testing.T) {
	now := time.Unix(1e9, 0)
	r := &Rule{Rate: 1, Interval: time.Hour}
	ws := &windows{}
	allowed := 0
	for i := range 3 * groups {
		from := netip.AddrFrom4([4]byte{byte(i >> 16), byte(i >> 8), byte(i), 1})
		group, rate := r.group(from, "")
		if ws.take(r, rate, group, from, now).allowed {
			allowed++
		}
	}
	if len(ws.of) > 2*groups+1 || allowed > 2*groups+1 {
		t.Errorf("%d groups, %d requests allowed", len(ws.of), allowed)
	}
	if got := ws.take(r, 1, "new", ip, now.Add(2*time.Hour)); !got.allowed || len(ws.of) > 2 {
		t.Errorf("when all is over: %+v, %d groups", got, len(ws.of))
	}
}
