// Package node drives lessor with node-vault, unmodified: uses.test.js holds the uses, this file starts what they talk to.
package node

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/test/clients/server"
)

func TestUses(t *testing.T) {
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			if testing.Short() && os.Getenv("CI") != "true" {
				t.Skipf("%s is not installed", program)
			}
			t.Fatalf("%s is not installed: run scripts/servers tests", program)
		}
	}
	if _, err := os.Stat("node_modules/node-vault"); err != nil {
		install := exec.Command("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
		if out, err := install.CombinedOutput(); err != nil {
			t.Fatalf("installing node-vault: %v\n%s", err, out)
		}
	}
	uses := exec.Command("node", "--test", "uses.test.js")
	uses.Env = []string{
		"PATH=" + os.Getenv("PATH"), "LESSOR_TEST_ADDR=" + server.Start(t), "LESSOR_TEST_TOKEN=" + server.Root,
		"LESSOR_TEST_POSTGRES=" + server.Postgres(t), fmt.Sprintf("LESSOR_TEST_LOOPS=%f", server.Lasting(t).Seconds()),
	}
	out, err := uses.CombinedOutput()
	if err != nil {
		t.Fatalf("node-vault: %v\n%s", err, out)
	}
	if !strings.Contains(string(out), "# fail 0") || strings.Contains(string(out), "# pass 0") {
		t.Fatalf("node-vault ran no test, or one failed:\n%s", out)
	}
}
