package sim

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// TestSimulation runs worlds under faults. LESSOR_SIM_SEED replays one; LESSOR_SIM_LONG runs for half an hour.
func TestSimulation(t *testing.T) {
	first, worlds, end := uint64(time.Now().UnixNano()), 4, time.Now().Add(time.Hour)
	if s := os.Getenv("LESSOR_SIM_SEED"); s != "" && s != "0" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, worlds = n, 1
	} else if os.Getenv("LESSOR_SIM_LONG") != "" {
		worlds, end = 1<<30, time.Now().Add(30*time.Minute)
	}
	for i := 0; i < worlds && time.Now().Before(end); i++ {
		seed := first + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { simulate(t, seed) })
	}
}

func simulate(t *testing.T, seed uint64) {
	w, err := New(seed, t.TempDir())
	if w != nil && len(w.Broken()) > 0 {
		t.Fatal(w.Broken()[0])
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("replay with LESSOR_SIM_SEED=%d", seed)
	for life := range 6 {
		f := storetest.Faults{Refused: 0.01, Lost: 0.002, Hidden: 0.002}
		if life%3 == 0 {
			f = storetest.Faults{}
		}
		if err := w.Life(8, 40, f); err != nil {
			t.Fatal(err)
		}
		if b := w.Broken(); len(b) > 0 {
			t.Fatalf("%d things that must hold did not:\n%s", len(b), strings.Join(b, "\n"))
		}
	}
	if err := w.Settle(); err != nil {
		t.Fatal(err)
	}
	for _, b := range w.Broken() {
		t.Error(b)
	}
	if len(w.acked) == 0 || w.target.made.Load() == 0 || w.stay.changed() < 10 {
		t.Error("nothing was done: this simulation could not have failed")
	}
	t.Logf("%d of 6 nodes died of a fault of the disk; %d secrets, %d passwords", w.faults.Load(), len(w.acked), w.stay.changed())
}

// mutations are mistakes that this system exists to rule out, made in the source and built with -overlay.
var mutations = []struct {
	name, file, from, to, caught string
}{
	{
		name: "the lease is written after the engine call",
		file: "../core/issue.go",
		from: `	if err := w.commit(ctx, txn, rec); err != nil {
		return nil, err
	}

	access :=`,
		to:     `	access :=`,
		caught: "before the lease was durable",
	},
	{
		name:   "the audit record is written after the answer",
		file:   "../core/gate.go",
		from:   "	_, err := w.Store.Commit(ctx, *txn)\n	return err\n}\n\n// refuse",
		to:     "	go func() { late, _ := context.WithTimeout(context.WithoutCancel(ctx), 5e6); <-late.Done(); _, _ = w.Store.Commit(context.WithoutCancel(ctx), *txn) }()\n	return nil\n}\n\n// refuse",
		caught: "before its audit record was durable",
	},
	{
		name:   "a password on its way is replaced by another",
		file:   "../rotation/rotation.go",
		from:   "	if a.Pending == 0 {\n		a.Pending, p.Pending, a.Loose",
		to:     "	if a.Pending == 0 || !fresh.Empty() {\n		a.Pending, p.Pending, a.Loose",
		caught: "that is in force is not on record",
	},
}

// TestMutationsAreCaught shows that the simulation fails at once when lessor is built wrong.
func TestMutationsAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds lessor anew for each")
	}
	for _, m := range mutations {
		t.Run(m.name, func(t *testing.T) {
			path, err := filepath.Abs(m.file)
			if err != nil {
				t.Fatal(err)
			}
			source, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			mutated := strings.Replace(string(source), m.from, m.to, 1)
			if mutated == string(source) {
				t.Fatalf("%s does not have the lines that this mutation changes", m.file)
			}
			if strings.Contains(m.file, "issue.go") {
				mutated = strings.Replace(mutated, "	cancel()\n\n	l.Expires = end", "	cancel()\n	if err := w.commit(ctx, txn, rec); err != nil {\n		return nil, err\n	}\n\n	l.Expires = end", 1)
			}
			dir := t.TempDir()
			file := filepath.Join(dir, "mutated.go")
			if err := os.WriteFile(file, []byte(mutated), 0o600); err != nil {
				t.Fatal(err)
			}
			overlay, err := json.Marshal(map[string]map[string]string{"Replace": {path: file}})
			if err != nil {
				t.Fatal(err)
			}
			list := filepath.Join(dir, "overlay.json")
			if err := os.WriteFile(list, overlay, 0o600); err != nil {
				t.Fatal(err)
			}
			run := exec.Command("go", "test", "-overlay", list, "-run", "^TestSimulation$", "-count=1", "-timeout=120s", ".")
			run.Env = append(os.Environ(), "LESSOR_SIM_SEED=1")
			out, err := run.CombinedOutput()
			if err == nil {
				t.Fatalf("the simulation passed although %s", m.name)
			}
			if !strings.Contains(string(out), m.caught) {
				t.Fatalf("the simulation failed, but not for %q:\n%s", m.caught, out)
			}
		})
	}
}
