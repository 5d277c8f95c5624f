package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// run runs a command to its end, and returns what it wrote.
func (h *house) run(input string, args ...string) (out string, ok bool) {
	h.Helper()
	cmd := h.command(args...)
	cmd.Env = append(cmd.Env, "LESSOR_TOKEN="+h.token)
	cmd.Stdin = strings.NewReader(input)
	text, err := cmd.CombinedOutput()
	return string(text), err == nil
}

// A machine joins by two commands, and serves.
func TestJoin(t *testing.T) {
	h := newHouse(t)
	h.serve("postgresql", func(one *tenant) {
		at := "-address=" + one.address
		secret, machine := filepath.Join(h.dir, "two.secret"), filepath.Join(h.dir, "two")
		if out, ok := h.run("", "operator", "join-secret", at, "-node=two", "-ttl=5m", "-out="+secret); !ok || strings.Contains(out, "hvs.") {
			t.Fatal(out)
		}
		if info, err := os.Stat(secret); err != nil || info.Mode().Perm() != 0o600 {
			t.Fatal(info, err)
		}
		join := func(more ...string) (string, bool) {
			return h.run("", append([]string{"operator", "join", "-secret-file=" + secret, "-node-name=two", "-listen=127.0.0.1:0", "-config=" + machine + "/lessor.hcl"}, more...)...)
		}
		for _, more := range [][]string{{"-address=http://192.0.2.1:8200"}, {"-address=https://192.0.2.1:8200", "-tls-skip-verify"}} {
			if out, ok := join(more...); ok || !strings.Contains(out, "may be anybody") {
				t.Errorf("%v: %s", more, out)
			}
		}
		if out, ok := join(at, "-listen=0.0.0.0:8200"); ok || !strings.Contains(out, "plain HTTP off loopback") {
			t.Errorf("a listener that may not be: %s", out)
		}
		if out, ok := join(at); !ok || !strings.Contains(out, "two is a node of the cluster") {
			t.Fatal(out)
		}
		b, err := os.ReadFile(secret)
		if err != nil {
			t.Fatal(err)
		}
		out, ok := h.run(string(b), "operator", "join", at, "-secret-file=-", "-node-name=three", "-config="+h.dir+"/three/lessor.hcl")
		if ok || !strings.Contains(out, "make another with lessor operator join-secret") || bytes.Contains([]byte(out), bytes.TrimSpace(b)) {
			t.Errorf("with the same secret: %s", out)
		}
		h.serve("two/lessor", func(two *tenant) {
			if name := two.must(200, "GET", "sys/config/state/sanitized", "")["data"].(map[string]any)["node_name"]; name != "two" {
				t.Errorf("it is called %v", name)
			}
			one.must(204, "POST", "sys/policies/acl/shared", `{"policy":"path \"a\" { capabilities = [\"read\"] }"}`)
			two.must(200, "GET", "sys/policies/acl/shared", "")
		})
	})
}
