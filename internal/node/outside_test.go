package node

import (
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/server"
)

var update = flag.Bool("update", false, "write testdata anew")

// roles makes a token for each of the roles of the matrix.
func (r *running) roles() map[string]string {
	r.Helper()
	const most, all = `["create","read","update","patch","delete","list"]`, `["create","read","update","patch","delete","list","sudo"]`
	for name, rule := range map[string]string{
		"reader": `path "*" { capabilities = ["read","list"] }`, "writer": `path "*" { capabilities = ` + most + ` }`,
		"administrator": `path "*" { capabilities = ` + all + ` }`, "tenant": `path "tenant/*" { capabilities = ` + all + ` }`,
	} {
		r.must(204, "PUT", "sys/policies/acl/"+name, fmt.Sprintf(`{"policy":%q}`, rule))
	}
	token := func(body string) string {
		return r.must(200, "POST", "auth/token/create", body)["auth"].(map[string]any)["client_token"].(string)
	}
	of := map[string]string{"none": "", "foreign": "hvs.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "root": r.token, "expired": token(`{"ttl":"1s"}`), "revoked": token(`{"ttl":"1h"}`)}
	for _, name := range []string{"default", "reader", "writer", "administrator", "tenant"} {
		of[name] = token(fmt.Sprintf(`{"policies":[%q]}`, name))
	}
	r.must(204, "POST", "auth/token/revoke", `{"token":"`+of["revoked"]+`"}`)
	for r.as(of["expired"], "GET", "auth/token/lookup-self") != http.StatusForbidden {
		time.Sleep(50 * time.Millisecond)
	}
	return of
}

// as asks with a token and returns the status.
func (r *running) as(token, method, path string) int {
	r.Helper()
	who := *r
	who.token = token
	status, _ := who.ask(method, path, "")
	return status
}

// TestOutsideByRole asks as each of the roles for every path that is answered before the gate: none of them asks for a token, so none
// tells who has one. testdata/outside has them all, with the status that everybody gets for an empty request.
func TestOutsideByRole(t *testing.T) {
	r := newPlace(t).start()
	roles := r.roles()
	methods := map[lessor.Verb]string{lessor.Read: "GET", lessor.Update: "PUT", lessor.Delete: "DELETE"}
	var table strings.Builder
	told := map[string]bool{}
	for _, route := range r.outside() {
		path := "sys/" + route.Pattern
		told[path] = true
		if route.Help == "" || !route.Open {
			t.Errorf("%s has no help, or is told to take a token", path)
		}
		if status, help := r.ask("GET", path+"?help=1", ""); status != 200 || !strings.Contains(fmt.Sprint(help["help"]), route.Help) {
			t.Errorf("help of %s: %d %v", path, status, help)
		}
		for _, verb := range slices.Sorted(maps.Keys(route.Ops)) {
			statuses := map[int][]string{}
			for name, token := range roles {
				r.must(204, "DELETE", "sys/generate-root/attempt", "")
				r.must(204, "DELETE", "sys/rekey/init", "")
				status := r.as(token, methods[verb], path)
				statuses[status] = append(statuses[status], name)
			}
			if len(statuses) != 1 {
				t.Errorf("%s %s tells who asks: %v", verb, path, statuses)
			}
			for status := range statuses {
				fmt.Fprintf(&table, "%s %s: %d for everybody | %s\n", path, verb, status, route.Help)
			}
		}
	}
	for _, path := range append(server.Public(), slices.Collect(maps.Keys(r.rites))...) {
		if !told[path] {
			t.Errorf("%s is answered, but not described", path)
		}
	}
	if *update {
		if err := os.WriteFile("testdata/outside", []byte(table.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/outside")
	if err != nil {
		t.Fatal(err)
	}
	if table.String() != string(want) {
		t.Errorf("not as testdata/outside has it:\n%s", &table)
	}
}

// TestMatrixKnowsEveryEngine: the matrix of routes and roles, which the tests of the core keep, has every route that a server has.
func TestMatrixKnowsEveryEngine(t *testing.T) {
	matrix, err := os.ReadFile("../core/testdata/routes")
	if err != nil {
		t.Fatal(err)
	}
	for kind, backend := range (&life{n: &Node{}}).mountable().all {
		for _, route := range backend.Routes() {
			for verb := range route.Ops {
				if verb == lessor.Create && route.Ops[lessor.Update] != nil {
					continue // one HTTP method for both
				}
				if !strings.Contains(string(matrix), "/"+route.Pattern+" "+verb.String()+":") {
					t.Errorf("%s of %s, an engine of type %s, is not in the matrix", verb, route.Pattern, kind)
				}
			}
		}
	}
}
