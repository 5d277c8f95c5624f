package core_test

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/core"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// admit asks the rate limits as the server does.
func (g *gate) admit(token lessor.Secret, path, data string, from string) (header [][2]string, err error) {
	g.Helper()
	op := g.op(token, lessor.Update, path, data)
	op.Client = netip.MustParseAddr(from)
	header, again, err := g.core.Admit(op, false)
	if err == nil && again {
		header, _, err = g.core.Admit(op, true)
	}
	return header, err
}

func (g *gate) data(path string) string {
	g.Helper()
	return string(lessor.AppendJSON(nil, g.do(g.root, lessor.Read, path, "").Data))
}

func TestQuotaShapes(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.do(g.root, lessor.Update, "sys/auth/approle", `{"type":"approle"}`)
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass"}`)
	const exempt = `"rate_limit_exempt_paths":["sys/generate-recovery-token/attempt","sys/generate-recovery-token/update","sys/generate-root/attempt","sys/generate-root/update","sys/health","sys/seal-status","sys/unseal"]`
	if got, want := g.data("sys/quotas/config"), `{"absolute_rate_limit_exempt_paths":[],"enable_rate_limit_audit_logging":false,"enable_rate_limit_response_headers":false,`+exempt+`}`; got != want {
		t.Errorf("config before anybody wrote one:\n got %s\nwant %s", got, want)
	}
	g.do(g.root, lessor.Update, "sys/quotas/config", `{"enable_rate_limit_response_headers":true,"rate_limit_exempt_paths":"a,b"}`)
	if got, want := g.data("sys/quotas/config"), `{"absolute_rate_limit_exempt_paths":[],"enable_rate_limit_audit_logging":false,"enable_rate_limit_response_headers":true,"rate_limit_exempt_paths":["a","b"]}`; got != want {
		t.Errorf("config:\n got %s\nwant %s", got, want)
	}
	g.refused(api.NotFound, g.root, lessor.List, "sys/quotas/rate-limit/", "")
	for _, c := range []struct{ name, data, want string }{
		{"rate-limit/global", `{"rate":1000}`, `{"block_interval":0,"group_by":"ip","inheritable":true,"interval":1,"name":"global","path":"","rate":1000,"role":"","secondary_rate":0,"type":"rate-limit"}`},
		{"rate-limit/kv", `{"rate":"0.5","path":"secret","interval":"2m","block_interval":60,"group_by":"none"}`,
			`{"block_interval":60,"group_by":"none","inheritable":false,"interval":120,"name":"kv","path":"secret/","rate":0.5,"role":"","secondary_rate":0,"type":"rate-limit"}`},
		{"rate-limit/kv-app", `{"rate":5,"path":"secret/data/app*","group_by":"entity_then_ip","secondary_rate":2}`,
			`{"block_interval":0,"group_by":"entity_then_ip","inheritable":false,"interval":1,"name":"kv-app","path":"secret/data/app*","rate":5,"role":"","secondary_rate":2,"type":"rate-limit"}`},
		{"rate-limit/app", `{"rate":5,"path":"auth/approle","role":"app"}`,
			`{"block_interval":0,"group_by":"ip","inheritable":false,"interval":1,"name":"app","path":"auth/approle/","rate":5,"role":"app","secondary_rate":0,"type":"rate-limit"}`},
		{"lease-count/all", `{"max_leases":1000}`, `{"counter":0,"inheritable":true,"max_leases":1000,"name":"all","path":"","role":"","type":"lease-count"}`},
	} {
		if a := g.do(g.root, lessor.Update, "sys/quotas/"+c.name, c.data); !a.Empty() {
			t.Errorf("%s: answer %+v", c.name, a)
		}
		if got := g.data("sys/quotas/" + c.name); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
	for _, c := range []struct{ name, data, want string }{
		{"rate-limit/x", `{}`, "'rate' is invalid"}, {"rate-limit/x", `{"rate":-1}`, "'rate' is invalid"}, {"rate-limit/x", `{"rate":"many"}`, "'rate' is invalid"},
		{"rate-limit/x", `{"rate":1e400}`, "'rate' is invalid"}, {"rate-limit/x", `{"rate":"NaN"}`, "'rate' is invalid"},
		{"rate-limit/x", `{"rate":1,"path":"nowhere"}`, `invalid mount path "nowhere/"`},
		{"rate-limit/x", `{"rate":1,"group_by":"color"}`, `invalid grouping mode "color"`},
		{"rate-limit/x", `{"rate":1,"secondary_rate":1}`, "secondary rate is only valid when using entity-based grouping"},
		{"rate-limit/x", `{"rate":1,"inheritable":false}`, "all global quotas must be inheritable"},
		{"rate-limit/x", `{"rate":1,"inheritable":true,"path":"secret"}`, "only namespace quotas can be configured as inheritable"},
		{"rate-limit/x", `{"rate":1}`, `quota rule with similar properties exists under the name "global"`},
		{"rate-limit/x", `{"rate":1,"path":"secret","role":"r"}`, `Mount path "secret/" is not a valid auth method and therefore unsuitable for use with role-based quotas`},
		{"rate-limit/x", `{"rate":1,"path":"auth/userpass","role":"r"}`, `Mount path "auth/userpass/" does not support use with role-based quotas`},
		{"rate-limit/x", `{"rate":1,"path":"auth/approle/login","role":"r"}`, "Quotas cannot contain both a path suffix and a role. If a role is provided, path must be a valid auth mount with a concept of roles"},
		{"rate-limit/x", `{"rate":1,"interval":"-1s"}`, `field "interval" is not a duration`},
		{"rate-limit/-x", `{"rate":1,"path":"secret/y"}`, "names of quotas have up to 256 letters, digits, and within them points, hyphens and underscores"},
		{"lease-count/x", `{"path":"secret"}`, "'max_leases' is invalid"}, {"lease-count/x", `{"path":"secret","max_leases":-3}`, "'max_leases' is invalid"},
	} {
		if got := g.refused(api.Invalid, g.root, lessor.Update, "sys/quotas/"+c.name, c.data); got != c.want {
			t.Errorf("%s %s:\n got %s\nwant %s", c.name, c.data, got, c.want)
		}
	}
	if got := g.do(g.root, lessor.List, "sys/quotas/rate-limit/", "").Data["keys"]; fmt.Sprint(got) != "[app global kv kv-app]" {
		t.Errorf("list: %v", got)
	}
	g.do(g.root, lessor.Delete, "sys/quotas/rate-limit/kv", "")
	g.refused(api.NotFound, g.root, lessor.Read, "sys/quotas/rate-limit/kv", "")

	// A rule goes with its mount.
	g.do(g.root, lessor.Delete, "sys/mounts/secret", "")
	g.refused(api.NotFound, g.root, lessor.Read, "sys/quotas/rate-limit/kv-app", "")
}

func TestRateLimit(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	if header, err := g.admit(lessor.Secret{}, "secret/data/x", "", "192.0.2.1"); header != nil || err != nil {
		t.Fatal("without any limit:", header, err)
	}
	g.do(g.root, lessor.Update, "sys/quotas/config", `{"enable_rate_limit_response_headers":true,"rate_limit_exempt_paths":"sys/health"}`)
	g.do(g.root, lessor.Update, "sys/quotas/rate-limit/kv", `{"rate":2,"path":"secret","interval":10}`)
	seq := g.db.Head().Seq
	for i, want := range []string{
		"[[X-Ratelimit-Limit 2] [X-Ratelimit-Remaining 1] [X-Ratelimit-Reset 10]] <nil>",
		"[[X-Ratelimit-Limit 2] [X-Ratelimit-Remaining 0] [X-Ratelimit-Reset 10]] <nil>",
		`[[X-Ratelimit-Limit 2] [X-Ratelimit-Remaining 0] [X-Ratelimit-Reset 10] [Retry-After 10]] request path "secret/data/x": rate limit quota exceeded`,
		`[[X-Ratelimit-Limit 2] [X-Ratelimit-Remaining 0] [X-Ratelimit-Reset 10] [Retry-After 10]] request path "secret/data/x": rate limit quota exceeded`,
	} {
		header, err := g.admit(lessor.Secret{}, "secret/data/x", "", "192.0.2.1")
		if got := fmt.Sprint(header, " ", err); strings.ReplaceAll(got, "]]  ", "]] ") != want || err != nil && api.KindOf(err) != api.Limited {
			t.Errorf("request %d:\n got %s\nwant %s", i+1, got, want)
		}
	}
	for _, other := range [][2]string{{"secret/data/x", "192.0.2.2"}, {"sys/mounts", "192.0.2.1"}} {
		if _, err := g.admit(lessor.Secret{}, other[0], "", other[1]); err != nil {
			t.Errorf("%v: %v", other, err)
		}
	}
	if n := g.db.Head().Seq; n != seq {
		t.Errorf("%d commits before the second was over", n-seq)
	}
	records := g.since(seq)
	if len(records) != 1 || records[0].Count != 2 || records[0].Rule != "quota:kv" || records[0].ErrorKind != "limited" || records[0].Path != "secret/data/x" || records[0].Client != "192.0.2.1" {
		t.Errorf("refusals on record: %+v", records)
	}
	g.clock.Advance(10 * time.Second)
	if _, err := g.admit(lessor.Secret{}, "secret/data/x", "", "192.0.2.1"); err != nil {
		t.Errorf("in the next interval: %v", err)
	}

	// A token in the path is not on record.
	g.do(g.root, lessor.Update, "sys/quotas/rate-limit/tokens", `{"rate":1,"path":"auth/token/lookup*"}`)
	seq = g.db.Head().Seq
	for range 2 {
		_, _ = g.admit(lessor.Secret{}, "auth/token/lookup/hvs.secret-of-somebody", "", "192.0.2.1")
	}
	for _, r := range g.since(seq) {
		if strings.Contains(r.Path, "hvs.") {
			t.Errorf("on record: %s", r.Path)
		}
	}
	g.do(g.root, lessor.Delete, "sys/quotas/rate-limit/kv", "")
	for range 5 {
		if _, err := g.admit(lessor.Secret{}, "secret/data/x", "", "192.0.2.1"); err != nil {
			t.Errorf("without the rule: %v", err)
		}
	}
}

func TestRateLimitOfRolesAndEntities(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/auth/approle", `{"type":"approle"}`)
	g.do(g.root, lessor.Update, "auth/approle/role/app", `{"role_id":"app-id"}`)
	g.do(g.root, lessor.Update, "auth/approle/role/free", `{"role_id":"free-id","bind_secret_id":false,"token_bound_cidrs":"127.0.0.0/8","secret_id_bound_cidrs":"127.0.0.0/8"}`)
	g.do(g.root, lessor.Update, "sys/quotas/rate-limit/app", `{"rate":1,"path":"auth/approle","role":"app","interval":60}`)
	login := func(role string) error {
		_, err := g.admit(lessor.Secret{}, "auth/approle/login", `{"role_id":"`+role+`"}`, "127.0.0.1")
		return err
	}
	for i := range 3 {
		if err := login("app-id"); (err == nil) != (i == 0) {
			t.Errorf("login %d: %v", i, err)
		}
		if err := login("free-id"); err != nil {
			t.Error(err)
		}
	}
	token := g.do(lessor.Secret{}, lessor.Update, "auth/approle/login", `{"role_id":"free-id"}`).Auth.Token
	g.do(g.root, lessor.Update, "sys/quotas/rate-limit/all", `{"rate":3,"group_by":"entity_then_none","secondary_rate":1,"interval":60}`)
	allowed := map[string]int{}
	for i := range 6 {
		from := fmt.Sprintf("127.0.0.%d", i+1)
		if _, err := g.admit(token, "secret/x", "", from); err == nil {
			allowed["entity"]++
		}
		if _, err := g.admit(g.root, "secret/x", "", from); err == nil {
			allowed["none"]++
		}
	}
	if allowed["entity"] != 3 || allowed["none"] != 1 {
		t.Errorf("allowed: %v", allowed)
	}
}

func TestLeaseCount(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"target"}`)
	g.kv2("secret")
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"v"}}`)
	issue := func() (string, error) {
		a, err := g.try(g.root, lessor.Read, "target/creds/app", "")
		if err != nil {
			return "", err
		}
		return a.Lease.ID, nil
	}
	before, err := issue()
	if err != nil {
		t.Fatal(err)
	}
	g.do(g.root, lessor.Update, "sys/quotas/lease-count/target", `{"path":"target","max_leases":10}`)
	counter := func() string {
		return fmt.Sprint(g.do(g.root, lessor.Read, "sys/quotas/lease-count/target", "").Data["counter"])
	}
	if got := counter(); got != "1" {
		t.Errorf("counted at the start: %s", got)
	}

	// Requests at once do not overshoot, and none is refused while there is room.
	var all sync.WaitGroup
	var mu sync.Mutex
	var ids []string
	for range 40 {
		all.Go(func() {
			id, err := issue()
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				ids = append(ids, id)
			} else if want := `request path "target/creds/app": lease count quota exceeded`; err.Error() != want || api.KindOf(err) != api.Limited {
				t.Errorf("refused with %v", err)
			}
		})
	}
	all.Wait()
	if len(ids) != 9 || counter() != "10" {
		t.Fatalf("%d leases were given, %s are counted", len(ids), counter())
	}
	for range 3 {
		g.do(g.root, lessor.Read, "secret/data/app", "") // static leases do not count
	}

	// What ends makes room, exactly as much.
	g.do(g.root, lessor.Update, "sys/leases/revoke", `{"lease_id":"`+before+`","sync":true}`)
	if _, err := issue(); err != nil {
		t.Error(err)
	}
	if _, err := issue(); api.KindOf(err) != api.Limited {
		t.Errorf("beyond the limit: %v", err)
	}

	// A failure at the target leaves nothing counted.
	g.do(g.root, lessor.Update, "sys/leases/revoke", `{"lease_id":"`+ids[0]+`","sync":true}`)
	for range 3 {
		g.target.set(true, false)
		if _, err := issue(); api.KindOf(err) != api.Upstream {
			t.Errorf("with a target that fails: %v", err)
		}
		g.target.set(false, false)
		g.eventually("the lease is gone", func() bool { g.clock.Advance(time.Second); return counter() == "9" })
	}

	// Another node, or a restart, counts the same.
	other, err := core.New(core.Options{Store: g.db, Keys: g.core.Keys, Random: g.core.Random, Backends: g.backends})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	go other.Quotas().Run(ctx)
	for i := range 2 {
		_, err := other.Handle(ctx, g.op(g.root, lessor.Read, "target/creds/app", ""))
		if (err == nil) != (i == 0) {
			t.Errorf("lease %d on another node: %v", i+1, err)
		}
	}
	if err := other.Quotas().Sync(ctx); err != nil || other.Quotas().Count("target") != 10 {
		t.Errorf("another node counts %d: %v", other.Quotas().Count("target"), err)
	}
}

func TestLeaseCountOfTokens(t *testing.T) {
	g := start(t)
	g.people()
	g.do(g.root, lessor.Update, "sys/quotas/lease-count/logins", `{"path":"auth/userpass","max_leases":2}`)
	g.do(g.root, lessor.Update, "sys/quotas/lease-count/all", `{"max_leases":3}`)
	login := func() (lessor.Secret, error) {
		a, err := g.try(lessor.Secret{}, lessor.Update, "auth/userpass/login/ann", `{"password":"right"}`)
		if err != nil {
			return lessor.Secret{}, err
		}
		return a.Auth.Token, nil
	}
	first, err := login()
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // a renewal is no new token
		g.do(first, lessor.Update, "auth/token/renew-self", "")
	}
	if _, err := login(); err != nil {
		t.Error(err)
	}
	if _, err := login(); api.KindOf(err) != api.Limited || err.Error() != `request path "auth/userpass/login/ann": lease count quota exceeded` {
		t.Errorf("the third login: %v", err)
	}
	for range 3 {
		g.token(`{"policies":["default"]}`)
	}
	g.refused(api.Limited, g.root, lessor.Update, "auth/token/create", `{"policies":["default"]}`)
	g.do(g.root, lessor.Update, "auth/token/create", `{"type":"batch","policies":["default"]}`) // has no lease
	g.do(first, lessor.Update, "auth/token/revoke-self", "")
	g.eventually("the token is gone", func() bool { _, err := login(); return err == nil })
	if _, err := login(); api.KindOf(err) != api.Limited {
		t.Errorf("one ended, two came: %v", err)
	}
	g.clock.Advance(1000 * time.Hour)
	g.eventually("all tokens expired", func() bool {
		return fmt.Sprint(g.do(g.root, lessor.Read, "sys/quotas/lease-count/logins", "").Data["counter"]) == "0"
	})
}
