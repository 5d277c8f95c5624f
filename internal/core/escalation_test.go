package core_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/core"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/server"
)

// wired is the core as a server sees it.
type wired struct{ *core.Core }

func (wired) Status() server.Status { return server.Status{Initialized: true} }
func (wired) Headers() []string     { return nil }
func (wired) CORS() server.CORS     { return server.CORS{} }

var thorough = flag.Bool("thorough", false, "try every trick and every absurd value at every route; takes minutes")

// some are every twelfth of all, from n on, so that all are tried somewhere; with -thorough they are all.
func some[T any](all []T, n int) (out []T) {
	for i := range all {
		if *thorough || (i+n)%12 == 0 {
			out = append(out, all[i])
		}
	}
	return out
}

var methods = map[lessor.Verb]string{
	lessor.Read: "GET", lessor.List: "LIST", lessor.Update: "PUT", lessor.Create: "POST", lessor.Patch: "PATCH", lessor.Delete: "DELETE",
}

// over sends a request through the whole server, in process, and returns the status.
func over(h *server.Handler, token lessor.Secret, verb lessor.Verb, target string) (status int, body string) {
	r := httptest.NewRequest(methods[verb], "/", nil)
	if verb == lessor.Patch {
		r.Header.Set("Content-Type", "application/merge-patch+json")
	}
	var err error
	if r.URL, err = url.Parse("http://lessor.test/v1/" + target); err != nil {
		return 400, err.Error() // as the server does before anybody sees it
	}
	if !token.Empty() {
		r.Header.Set("X-Vault-Token", token.Reveal())
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// tricks are spellings that somebody who may not go to path might try: those that mean the same, and those that look alike.
func tricks(path string) []string {
	mount, rest, _ := strings.Cut(path, "/")
	first := fmt.Sprintf("%%%02x", path[0]) + path[1:]
	return []string{
		path, path + "/", "/" + path, "//" + path, mount + "//" + rest, "./" + path, mount + "/./" + rest, "x/../" + path, mount + "/x/../" + rest,
		mount + "/%2e%2e/" + path, mount + "%2f" + rest, first, strings.ToUpper(path), strings.ToUpper(mount) + "/" + rest, path + "%00", path + "%20", path + "%0a",
		path + ".", path + ";x", path + "%2f", path + "?x=1", path + "%3fx", path + "%23", path + "*", "+/" + rest, mount + "/+", path + "%e2%80%8b",
		strings.Replace(path, "s", "%ef%bd%93", 1), "v1/" + path, "auth/" + path, "sys/" + path,
	}
}

// neighbours is a policy that grants everything, sudo too, all around a path, but not there.
func neighbours(path string, verb lessor.Verb) string {
	parent := path[:strings.LastIndexByte(path, '/')]
	var b strings.Builder
	beneath := path + "/+"
	if verb == lessor.List {
		beneath = path + "/+/x" // "+" is also the empty segment at the end of a list's path
	}
	for _, p := range []string{
		beneath, path + "x", path + "x*", path + "x/*", "x" + path, strings.ToUpper(path), parent, "nothing/" + path, path + "//x", path + "/../x", "./" + path,
		"+", strings.Replace(path, "/", "//", 1),
	} {
		fmt.Fprintf(&b, "path %q { capabilities = [\"create\", \"read\", \"update\", \"patch\", \"delete\", \"list\", \"sudo\"] }\n", p)
	}
	return b.String()
}

// TestEscalation tries every administrative route as everybody who may not: with tokens of the default policy, of all
// powers but sudo where sudo is asked for, and of all powers everywhere around; straight and by tricks. Nobody gets
// further than a refusal, and nothing changes.
func TestEscalation(t *testing.T) {
	g := start(t)
	g.matrix()
	h := server.New(server.Options{Gate: wired{g.core}, Clock: g.db})
	writer := g.token(`{"policies":["writer"],"no_default_policy":true,"period":"8000h"}`)
	tenant := g.token(`{"policies":["tenant"],"no_default_policy":true,"period":"8000h"}`)
	ordinary := g.token(`{"policies":["default"],"period":"8000h"}`)
	around := g.token(`{"policies":["around"],"no_default_policy":true,"period":"8000h"}`)
	tried, n := 0, 0
	for _, m := range own {
		if m.mount == "cubbyhole/" {
			continue // everybody has his own
		}
		for _, r := range g.backends[m.backend].Routes() {
			for verb := range r.Ops {
				path := strings.TrimSuffix(m.mount+sample(r.Pattern, verb), "/")
				if r.Open || g.allowed(ordinary, verb, path) {
					continue
				}
				g.policy("around", neighbours(path, verb))
				who := map[string]lessor.Secret{"default": ordinary, "tenant": tenant, "around": around}
				if r.Sudo {
					who["writer without sudo"] = writer
				}
				for name, token := range who {
					before := g.ground()
					n++
					for _, target := range append(some(tricks(path), n), path) {
						tried++
						status, body := over(h, token, verb, target)
						switch status {
						case 400, 403, 404, 405:
						default:
							t.Errorf("%s %s as %s: %d %.200s", verb, target, name, status, body)
						}
					}
					if g.ground() == before {
						continue
					}
					for _, target := range append(some(tricks(path), n), path) { // which of them? Or was it the background?
						for again := 0; ; again++ {
							before := g.ground()
							over(h, token, verb, target)
							if g.ground() == before {
								break
							}
							if again == 5 {
								t.Errorf("%s %s as %s changes something", verb, target, name)
								break
							}
							time.Sleep(time.Millisecond)
						}
					}
				}
			}
		}
	}
	if tried < 2000 {
		t.Errorf("only %d tries", tried)
	}
}

// allowed reports whether the policies let a token through to a path.
func (g *gate) allowed(token lessor.Secret, verb lessor.Verb, path string) bool {
	g.Helper()
	caps := g.do(g.root, lessor.Update, "sys/capabilities", `{"token":"`+token.Reveal()+`","path":"`+path+`"}`).Data["capabilities"]
	return fmt.Sprint(caps) != "[deny]"
}

// absurd are values that no client means.
var absurd = []any{
	"", " ", "\x00", "-1", "-1s", "0", "1e309", "99999999999999999999", "9999999999999h", "1ns", "NaN", "../..", "//", strings.Repeat("a", 5000), "\u202e", "*", "+",
	"{{identity.entity.id}}", "'; DROP TABLE x; --", "root", true, []any{}, []any{nil}, []any{"a", []any{"b"}}, map[string]any{}, map[string]any{"": nil}, nil,
	json.Number("-1"), json.Number("0"), json.Number("1e400"), json.Number("1.5"), json.Number("9223372036854775808"), json.Number("-9223372036854775809"),
}

// TestAbsurdValues gives every field of every route values that nobody means, as somebody who may do everything: each is refused
// as the client's mistake, or taken; none is a fault of lessor's own.
func TestAbsurdValues(t *testing.T) {
	g := start(t)
	g.matrix()
	g.do(g.root, lessor.Update, "auth/userpass/users/nothing", `{"password_hash":"$2a$04$EehSWu4FjISZEmYA7dY4tOL1KJR6FQccjvCLN9SqVLHUn541q8EbG"}`)
	g.do(g.root, lessor.Update, "auth/approle/role/nothing", `{}`)
	n := 0
	skip := map[string]bool{"sys/lessor/audit/tail": true, "sys/lessor/backup": true, "sys/lessor/audit/verify": true, "sys/lessor/audit/export": true, "sys/lessor/revoke": true}
	for _, m := range own {
		for _, r := range g.backends[m.backend].Routes() {
			for verb := range r.Ops {
				path := m.mount + sample(r.Pattern, verb)
				if skip[m.mount+r.Pattern] || verb == lessor.Delete || strings.Contains(path, "revoke") {
					continue
				}
				for _, f := range r.Fields {
					n++
					for _, v := range some(absurd, n) {
						op := g.op(g.root, verb, path, "")
						op.Data = map[string]any{f.Name: v}
						for _, other := range r.Fields { // so that more than the first check is passed
							if other.Name != f.Name && other.Type == engine.String && other.Name == "type" {
								op.Data["type"] = "kv"
							}
						}
						if _, err := g.core.Handle(g.Context(), op); err != nil {
							if kind := api.KindOf(err); kind == api.Internal || kind == api.Uncertain {
								t.Errorf("%s %s with %s = %.60q: %v", verb, path, f.Name, fmt.Sprint(v), err)
							}
						}
					}
				}
			}
		}
	}
}
