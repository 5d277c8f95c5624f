package internal_test

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/lessor-dev/lessor/"

// allowed are the arrows: which of lessor's packages a package may import besides those that the rule for all names. A package
// without an entry may import anything below internal/ but adapters and what stands above it.
var pure = map[string][]string{
	"api":                {},
	"client":             {"api"},
	"client/lessorsql":   {"client"},
	"client/lessorpgx":   {"client"},
	"client/lessorredis": {"client"},
	"internal/lessor":    {"api"},
	"internal/audit":     {},
	"internal/store":     {"internal/audit", "internal/lessor"},
	"internal/archive":   {"internal/audit", "internal/lessor", "internal/store"},
	"internal/policy":    {"api", "internal/lessor"},
	"internal/seal":      {"api", "internal/lessor", "internal/policy", "internal/store", "internal/audit"},
	"internal/cli": {
		"client", "api", "internal/version", "internal/cli/session", "internal/cli/secret", "internal/cli/access", "internal/cli/account", "internal/cli/operator",
	},
	"internal/cli/session":    {"client", "api"},
	"internal/cli/secret":     {"client", "api", "internal/cli/session", "internal/run", "internal/agent", "internal/instance"},
	"internal/cli/access":     {"client", "api", "internal/cli/session"},
	"internal/cli/account":    {"client", "api", "internal/cli/session", "internal/audit"},
	"internal/cli/operator":   {"client", "api", "internal/cli/session"},
	"internal/run":            {"client"},
	"internal/agent":          {"client", "internal/agent/language", "internal/instance"},
	"internal/agent/language": {},
	"internal/instance":       {},
	"internal/version":        {},
	"internal/servertest":     {},
}

// adapters are what only the wiring may import.
var adapters = []string{
	"internal/store/pebble", "internal/store/mem", "internal/store/postgres", "internal/engine/kv", "internal/engine/database",
	"internal/engine/cubbyhole", "internal/engine/ldap", "internal/auth/userpass", "internal/auth/approle", "internal/auth/cert", "internal/auth/jwt",
	"internal/server", "internal/node", "internal/cli",
}

// wiring puts everything together.
var wiring = []string{"cmd/", "internal/node", "internal/sim", "internal/engine/enginetest", "lessortest", "test/"}

func TestImportsFollowTheArrows(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		pkg := strings.TrimPrefix(f[0], module)
		seen[pkg] = true
		for _, imp := range f[1:] {
			imp, own := strings.CutPrefix(imp, module)
			if !own {
				continue
			}
			if only, ok := pure[pkg]; ok && !contains(only, imp) {
				t.Errorf("%s imports %s; it may import %v only", pkg, imp, only)
			}
			if contains(adapters, imp) && !within(wiring, pkg) && !strings.HasPrefix(pkg, imp) {
				t.Errorf("%s imports the adapter %s; only %v may", pkg, imp, wiring)
			}
			if imp == "internal/core" && !within(wiring, pkg) && pkg != "internal/server" {
				t.Errorf("%s imports internal/core, which stands above it", pkg)
			}
		}
	}
	for pkg := range pure {
		if !seen[pkg] {
			t.Errorf("the rule for %s is about no package", pkg)
		}
	}
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

func within(list []string, pkg string) bool {
	for _, l := range list {
		if pkg == strings.TrimSuffix(l, "/") || strings.HasPrefix(pkg, strings.TrimSuffix(l, "/")+"/") {
			return true
		}
	}
	return false
}
