package core_test

import (
	"crypto/rand"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

var update = flag.Bool("update", false, "write testdata anew")

// The roles of the matrix: strangers, who may nowhere but where anybody may, then the living from the least to the most.
var roles = []struct {
	name, policy string
	stranger     bool
}{
	{"none", "", true},
	{"expired", "root", true},
	{"revoked", "root", true},
	{"foreign", "root", true}, // of another server
	{"tenant", `path "tenant/*" { capabilities = ["create", "read", "update", "patch", "delete", "list", "sudo"] }`, false},
	{"default", "default", false},
	{"reader", `path "*" { capabilities = ["read", "list"] }`, false},
	{"writer", `path "*" { capabilities = ["create", "read", "update", "patch", "delete", "list"] }`, false},
	{"sudo", `path "*" { capabilities = ["create", "read", "update", "patch", "delete", "list", "sudo"] }`, false},
	{"root", "root", false},
}

// own are the mounts of the matrix, by the backend that serves them.
var own = []struct{ mount, backend string }{
	{"sys/", "system"}, {"auth/token/", "token"}, {"identity/", "identity"}, {"cubbyhole/", "cubbyhole"},
	{"secret/", "kv-v2"}, {"plain/", "kv"}, {"auth/userpass/", "userpass"}, {"auth/approle/", "approle"}, {"auth/jwt/", "jwt"}, {"auth/cert/", "cert"},
	{"database/", "database"}, {"ldap/", "ldap"}, {"rabbitmq/", "rabbitmq"},
}

// TestRoutesByRole asks for every route of lessor's own mounts as each of the roles. testdata/routes says who may: a route
// that it does not name, or that somebody else may ask for now, fails. The roles of lists are nobody's business but the
// table's: read it when it changes. Who may not changes nothing, and a stranger learns nothing from how he is refused.
func TestRoutesByRole(t *testing.T) {
	g := start(t)
	tokens := g.matrix()
	var table strings.Builder
	for _, m := range own {
		routes := g.backends[m.backend].Routes()
		router := engine.NewRouter(routes)
		routes = slices.Clone(routes)
		slices.SortFunc(routes, func(a, b engine.Route) int { return strings.Compare(a.Pattern, b.Pattern) })
		for i := range routes {
			r := &routes[i]
			described(t, m.mount, r)
			verbs := slices.Sorted(maps.Keys(r.Ops))
			for _, verb := range verbs {
				if verb == lessor.Create && r.Ops[lessor.Update] != nil {
					continue // one HTTP method for both
				}
				path := sample(r.Pattern, verb)
				if got, _ := router.Match(verb, path); got == nil || got.Pattern != r.Pattern {
					t.Errorf("%s %s%s is served by another route: %+v", verb, m.mount, r.Pattern, got)
				}
				fmt.Fprintf(&table, "%s%s %s:", m.mount, r.Pattern, verb)
				strangers := 0
				for _, role := range roles {
					token, fixed := tokens[role.name]
					if !fixed {
						token = g.token(fmt.Sprintf(`{"policies":[%q],"no_default_policy":%t}`, role.name, role.name != "default"))
					}
					may := g.may(role.name, token, verb, m.mount+path)
					switch {
					case role.stranger && may:
						strangers++
					case may:
						fmt.Fprintf(&table, " %s", role.name)
					}
				}
				switch strangers {
				case 0:
				case 4:
					table.WriteString(" and anybody")
				default:
					t.Errorf("%s %s%s tells strangers from strangers", verb, m.mount, r.Pattern)
				}
				if strangers > 0 != r.Open {
					t.Errorf("%s %s%s: open is %t, yet %d strangers may", verb, m.mount, r.Pattern, r.Open, strangers)
				}
				fmt.Fprintf(&table, " | %s\n", r.Help)
			}
		}
	}
	if *update {
		if err := os.WriteFile("testdata/routes", []byte(table.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/routes")
	if err != nil {
		t.Fatal(err)
	}
	got, expected := strings.Split(table.String(), "\n"), strings.Split(string(want), "\n")
	for _, line := range got {
		if !slices.Contains(expected, line) {
			t.Errorf("not as testdata/routes has it: %s", line)
		}
	}
	for _, line := range expected {
		if !slices.Contains(got, line) {
			t.Errorf("testdata/routes has, but the server has not: %s", line)
		}
	}
}

// sample is a path that the pattern matches.
func sample(pattern string, verb lessor.Verb) string {
	segments := strings.Split(pattern, "/")
	for i, s := range segments {
		if strings.HasPrefix(s, "{") {
			segments[i] = "nothing"
		}
	}
	path := strings.Join(segments, "/")
	if verb == lessor.List {
		path += "/"
	}
	return path
}

// described reports routes and fields without help.
func described(t *testing.T, mount string, r *engine.Route) {
	if r.Help == "" {
		t.Errorf("%s%s has no help", mount, r.Pattern)
	}
	for _, f := range r.Fields {
		if f.Help == "" || f.Type == 0 {
			t.Errorf("%s%s: field %s has no help or type", mount, r.Pattern, f.Name)
		}
	}
}

// matrix makes the roles' policies and mounts, and the tokens that do not have to be made anew for each question.
func (g *gate) matrix() map[string]lessor.Secret {
	g.Helper()
	for _, r := range roles {
		if strings.HasPrefix(r.policy, "path") {
			g.policy(r.name, r.policy)
		}
	}
	for _, m := range own[4:] {
		path, class := m.mount, "sys/mounts/"
		if auth, ok := strings.CutPrefix(m.mount, "auth/"); ok {
			path, class = auth, "sys/auth/"
		}
		kind, version, _ := strings.Cut(m.backend, "-v")
		g.do(g.root, lessor.Update, class+strings.TrimSuffix(path, "/"), `{"type":"`+kind+`","options":{"version":"`+version+`"}}`)
	}
	g.kv2("tenant")
	expired := g.token(`{"policies":["root"],"ttl":"1m"}`)
	g.clock.Advance(2 * time.Minute)
	revoked := g.token(`{"policies":["root"]}`)
	g.do(g.root, lessor.Update, "auth/token/revoke", `{"token":"`+revoked.Reveal()+`"}`)
	other, err := token.NewID(rand.Reader)
	if err != nil {
		g.Fatal(err)
	}
	return map[string]lessor.Secret{"none": {}, "expired": expired, "revoked": revoked, "foreign": other}
}

// may reports whether a role is let through to the route, whatever the route then makes of an empty request. Who is not leaves
// nothing but an audit record.
func (g *gate) may(role string, token lessor.Secret, verb lessor.Verb, path string) bool {
	g.Helper()
	g.clock.Advance(time.Second) // more than one refusal of a stranger in a second would be counted, not recorded
	before := g.ground()
	op := g.op(token, verb, path, "")
	_, err := g.core.Handle(g.Context(), op)
	kind := api.KindOf(err)
	if err != nil && kind == api.Internal {
		g.Errorf("%s %s as %s: %v", verb, path, role, err)
	}
	records, _, rerr := g.db.Records(store.Query{Newest: true, Limit: 20})
	if rerr != nil {
		g.Fatal(rerr)
	}
	for _, rec := range records {
		if rec.Request != op.ID {
			continue
		}
		if rec.Granted {
			return true
		}
		if kind != api.Unauthenticated && kind != api.Denied && path != "sys/wrapping/unwrap" || rec.ErrorKind != kind.String() {
			g.Errorf("%s %s as %s is refused with %v, on record as %s", verb, path, role, err, rec.ErrorKind)
		}
		if changed := g.ground(); changed != before && !g.idle(op) {
			g.Errorf("%s %s as %s was refused and changed tables: %v, before %v", verb, path, role, changed, before)
		}
		return false
	}
	g.Errorf("%s %s as %s left no audit record", verb, path, role)
	return false
}

// idle reports whether op, asked again, changes nothing: the background does, now and then.
func (g *gate) idle(op *lessor.Op) bool {
	for range 20 {
		before := g.ground()
		_, _ = g.core.Handle(g.Context(), op)
		if g.ground() == before {
			return true
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

// ground is when each table was changed last, but for those that every commit changes.
func (g *gate) ground() (changed [store.Batches]uint64) {
	g.Helper()
	v, err := g.db.View()
	if err != nil {
		g.Fatal(err)
	}
	defer v.Close()
	for t := store.Mounts; t < store.Batches; t++ {
		changed[t] = v.Changed(t)
	}
	return changed
}
