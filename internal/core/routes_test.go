package core_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

var update = flag.Bool("update", false, "write testdata anew")

// The roles of the matrix, from the least to the most.
var roles = []struct{ name, policy string }{
	{"none", ""},
	{"default", "default"},
	{"reader", `path "*" { capabilities = ["read", "list"] }`},
	{"writer", `path "*" { capabilities = ["create", "read", "update", "patch", "delete", "list"] }`},
	{"sudo", `path "*" { capabilities = ["create", "read", "update", "patch", "delete", "list", "sudo"] }`},
	{"root", "root"},
}

// TestRoutesByRole asks for every route of lessor's own mounts as each of the roles. testdata/routes says who may: a route
// that it does not name, or that somebody else may ask for now, fails. The roles of lists are nobody's business but the
// table's: read it when it changes.
func TestRoutesByRole(t *testing.T) {
	g := start(t)
	for _, r := range roles {
		if strings.HasPrefix(r.policy, "path") {
			g.policy(r.name, r.policy)
		}
	}
	var table strings.Builder
	for _, m := range []struct{ mount, backend string }{{"sys/", "system"}, {"auth/token/", "token"}, {"identity/", "identity"}, {"cubbyhole/", "cubbyhole"}} {
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
				for _, role := range roles {
					if g.may(role.name, verb, m.mount+path) {
						fmt.Fprintf(&table, " %s", role.name)
					}
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

// may reports whether a role is let through to the route, whatever the route then makes of an empty request.
func (g *gate) may(role string, verb lessor.Verb, path string) bool {
	g.Helper()
	var token lessor.Secret
	if role != "none" {
		token = g.token(`{"policies":["` + role + `"],"no_default_policy":true}`)
	}
	op := g.op(token, verb, path, "")
	_, err := g.core.Handle(g.Context(), op)
	kind := api.KindOf(err)
	if err != nil && kind == api.Internal {
		g.Errorf("%s %s as %s: %v", verb, path, role, err)
	}
	records, _, err := g.db.Records(store.Query{Newest: true})
	if err != nil {
		g.Fatal(err)
	}
	for _, rec := range records {
		if rec.Request == op.ID {
			return rec.Granted
		}
	}
	g.Errorf("%s %s as %s left no audit record", verb, path, role)
	return false
}
