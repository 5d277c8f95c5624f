package kv_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/engine/kv"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/rotator"
	"github.com/lessor-dev/lessor/internal/store"
)

// folder is a rotator whose target takes each value that is the name of a file in a folder. Its one option: whether the target knows one at a time.
const folder = `#!/bin/sh
in=$(cat)
get() { printf %s "$in" | sed -n 's/.*"'$1'":{"v":"\([^"]*\)"}.*/\1/p'; }
cd DIR
case $in in
'{"step":"create"'*'"stuck":"yes"'*) echo '{"pending":{"v":"ever the same"}}' ;;
'{"step":"create"'*) printf '{"pending":{"v":"%s"}}' "$(printf %s "$in" | sed 's/.*"token":"\([^"]*\)".*/\1/')" ;;
'{"step":"set"'*) case $in in *'"single":"yes"'*) rm -f ./*;; esac; : >"$(get pending)"; echo '{}' ;;
'{"step":"finish"'*) rm -f "$(get previous)"; echo '{}' ;;
*) case $in in *'"expect":"refused"'*) v=$(get previous) ;; *) v=$(get pending) ;; esac
	if [ -e "$v" ]; then echo '{"verdict":"accepted"}'; else echo '{"verdict":"refused"}'; fi ;;
esac
`

// turner is a bench with such a target, on which rotations are done as the core does them.
type turner struct {
	*enginetest.Bench
	engine kv.V2
	target string // folder
}

// newTurner makes one that keeps no leases: holders are not known, and waited for until a deadline.
func newTurner(t *testing.T) *turner {
	t.Helper()
	if testing.Short() {
		t.Skip("runs programs")
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil { // as the server does at its start
		t.Fatal(err)
	}
	dir := t.TempDir()
	target, err := os.MkdirTemp("", "target") // below folders that the rotator's user may enter
	if err == nil {
		err = os.Chmod(target, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(target) })
	program := []byte(strings.ReplaceAll(folder, "DIR", target))
	if err := os.WriteFile(filepath.Join(dir, "folder"), program, 0o600); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(program)
	r := &rotator.Rotator{Type: rotator.Exec, Path: filepath.Join(dir, "folder"), Sum: sum[:], Paths: []string{"bench/*"}}
	if os.Geteuid() == 0 {
		r.User = "nobody"
	}
	e := kv.V2{Rotators: &rotator.Caller{Directory: dir, SameUser: true}}
	w := &turner{Bench: enginetest.New(t, e, map[string]string{"version": "2", "lease": "off"}), engine: e, target: target}
	w.commit(func(v store.View, txn *store.Txn) error {
		_, row, err := rotator.Load(v, "folder")
		if err != nil {
			return err
		}
		return r.Save(txn, row)
	})
	return w
}

func (w *turner) commit(do func(v store.View, txn *store.Txn) error) {
	w.T.Helper()
	v, err := w.DB.View()
	if err != nil {
		w.T.Fatal(err)
	}
	defer v.Close()
	txn := store.Txn{Audit: []audit.Record{{Time: w.Clock.Now(), Operation: "rotate", Phase: audit.Done}}}
	if err := do(v, &txn); err != nil {
		w.T.Fatal(err)
	}
	if _, err := w.DB.Commit(context.Background(), txn); err != nil {
		w.T.Fatal(err)
	}
}

// access is what the core gives to an engine for a background act.
func (w *turner) access(v store.View) engine.Access {
	op := &lessor.Op{Verb: lessor.Update, Namespace: w.Mount.Namespace, Path: w.Mount.Path}
	d := policy.Decide(nil, &lessor.Principal{System: "rotation"}, op, policy.Facts{Mount: w.Mount.UUID})
	return engine.Access{Mount: w.Mount, View: v, Grant: d.Grant, Opener: w.Keys, Now: w.Clock.Now(), Chance: 0.5}
}

// account is how the rotation of "app" stands.
func (w *turner) account() *rotation.Account {
	w.T.Helper()
	v, err := w.DB.View()
	if err != nil {
		w.T.Fatal(err)
	}
	defer v.Close()
	a, _, err := rotation.Load(v, w.Mount.Namespace, w.Mount.UUID, "app")
	if err != nil {
		w.T.Fatal(err)
	}
	return a
}

// turn does all that is due with "app" by now: a rotation that never comes to rest is an error.
func (w *turner) turn() {
	w.T.Helper()
	for range 30 {
		if !w.step(context.Background()) {
			return
		}
	}
	w.T.Fatalf("the rotation never comes to rest: %+v", w.account())
}

// step does what is due next with "app", if something is.
func (w *turner) step(ctx context.Context) bool {
	w.T.Helper()
	if when := w.account().When(); when.IsZero() || when.After(w.Clock.Now()) {
		return false
	}
	var r *engine.Rotate
	w.commit(func(v store.View, txn *store.Txn) (err error) {
		r, err = w.engine.Plan(w.access(v), "app", txn)
		return err
	})
	if r == nil || r.Done {
		return true
	}
	v, err := w.DB.View()
	if err != nil {
		w.T.Fatal(err)
	}
	a := w.access(v)
	a.Look = r.Look
	turned := w.engine.Turn(ctx, a, "app")
	v.Close()
	if turned.Err != nil {
		w.T.Logf("a step failed: %v", turned.Err)
	}
	if turned.Then != nil {
		w.commit(func(v store.View, txn *store.Txn) error {
			return turned.Then(w.access(v), txn, func() float64 { return 0.5 })
		})
	}
	return true
}

// taken are the values that the target takes.
func (w *turner) taken() (all []string) {
	w.T.Helper()
	entries, err := os.ReadDir(w.target)
	if err != nil {
		w.T.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// read is what readers are shown.
func (w *turner) read() (string, int) {
	w.T.Helper()
	data := w.Do(get, "data/app", "").Data
	var shown struct{ V string }
	if err := json.Unmarshal([]byte(data["data"].(lessor.SecretJSON).Reveal()), &shown); err != nil {
		w.T.Fatal(err)
	}
	return shown.V, int(data["metadata"].(map[string]any)["version"].(uint64))
}

// Where a target takes one value at a time, the one before is dead with the next, is tried until nothing of long ago can land any more, and then nothing is left of it.
func TestSingle(t *testing.T) {
	w := newTurner(t)
	w.Do(put, "rotation/app", `{"rotator":"folder","rotation_period":"24h","strategy":"single","options":{"single":"yes"}}`)
	w.turn()
	first, version := w.read()
	if got := w.taken(); version != 1 || len(got) != 1 || got[0] != first {
		t.Fatalf("version %d, %v", version, got)
	}
	w.Do(put, "rotate/app", "")
	w.turn()
	second, version := w.read()
	if got := w.taken(); version != 2 || len(got) != 1 || got[0] != second || second == first {
		t.Fatalf("version %d, %v", version, got)
	}
	if a := w.account(); a.Phase() != rotation.Idle || a.Dead != 0 {
		t.Errorf("what may land still is called dead: %+v", a)
	}
	// A step of long ago lands.
	if err := os.WriteFile(filepath.Join(w.target, first), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	w.Clock.Advance(rotation.Watch + time.Second)
	w.turn()
	if got := w.taken(); len(got) != 1 || got[0] != second {
		t.Errorf("in the end %v are taken", got)
	}
	if a := w.account(); a.Dead != 1 || !a.Check.IsZero() {
		t.Errorf("the value before is not proven dead: %+v", a)
	}
}

// A step in which lessor is stopped is no failure, and is taken again at once.
func TestStepIsCutShort(t *testing.T) {
	w := newTurner(t)
	w.Do(put, "rotation/app", `{"rotator":"folder","rotation_period":"24h","strategy":"single","options":{"single":"yes"}}`)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if w.step(ctx); w.account().Pending == 0 {
		t.Fatal("no step was begun")
	}
	if a := w.account(); a.Attempts != 0 || a.LastError != "" || a.When().After(w.Clock.Now()) {
		t.Errorf("after it was stopped it stands at %+v", a)
	}
	w.turn()
	if value, version := w.read(); version != 1 || len(w.taken()) != 1 || w.taken()[0] != value {
		t.Errorf("version %d, %q of %v", version, value, w.taken())
	}
}

// A rotator that makes the same value again has made none: what may be known to others would be called dead, and be in force.
func TestNotFresh(t *testing.T) {
	w := newTurner(t)
	w.Do(put, "rotation/app", `{"rotator":"folder","rotation_period":"24h","options":{"stuck":"yes"},"rotation_grace":"1s"}`)
	w.turn()
	w.Do(put, "rotate/app", "")
	w.turn()
	if _, version := w.read(); version != 1 || !strings.Contains(w.account().LastError, "another one for each token") {
		t.Errorf("version %d: %+v", version, w.account())
	}
	w.Do(put, "rotation/app", `{"options":{}}`)
	w.turn()
	w.Clock.Advance(rotation.Watch + time.Second)
	w.turn()
	if value, version := w.read(); version != 2 || value == "ever the same" || len(w.taken()) != 1 {
		t.Errorf("version %d, %q of %v", version, value, w.taken())
	}
}

// The strategy is not changed in the midst of a rotation. Afterwards it may be, and what the other one left is proven dead all the same.
func TestStrategyChanged(t *testing.T) {
	w := newTurner(t)
	w.Do(put, "rotation/app", `{"rotator":"folder","rotation_period":"24h","rotation_grace":"60s"}`)
	w.turn()
	w.Do(put, "rotate/app", "")
	w.turn()
	if a := w.account(); a.Phase() != rotation.Waiting || len(w.taken()) != 2 {
		t.Fatalf("%s, %v", a.Phase(), w.taken())
	}
	if _, err := w.Try(put, "rotation/app", `{"strategy":"single","rotation_grace":0}`); api.KindOf(err) != api.Invalid || !strings.Contains(err.Error(), "under way") {
		t.Errorf("the strategy was changed in the midst: %v", err)
	}
	w.Clock.Advance(61 * time.Second)
	w.turn()
	second, version := w.read()
	if got := w.taken(); w.account().Phase() != rotation.Idle || version != 2 || len(got) != 1 || got[0] != second {
		t.Fatalf("%s, version %d, %v", w.account().Phase(), version, got)
	}
	w.Do(put, "rotation/app", `{"strategy":"single","rotation_grace":0}`)
	w.Clock.Advance(rotation.Watch + time.Second)
	w.turn()
	if a := w.account(); !a.Check.IsZero() || a.Dead != 1 {
		t.Errorf("what came before is tried for ever: %+v", a)
	}
	w.Do(put, "rotate/app", "")
	w.turn()
	w.Do(put, "rotation/app", `{"strategy":"overlap"}`)
	w.Do(put, "rotate/app", "")
	w.turn()
	if _, version := w.read(); version != 4 || w.account().Phase() != rotation.Waiting {
		t.Errorf("version %d, %s", version, w.account().Phase())
	}
	w.Do(put, "rotation/app", `{"rotation_grace":"1s"}`)
	w.Clock.Advance(rotation.Watch + time.Second)
	w.turn()
	w.Clock.Advance(rotation.Watch + time.Second)
	w.turn()
	fourth, _ := w.read()
	if got := w.taken(); len(got) != 1 || got[0] != fourth || w.account().Phase() != rotation.Idle {
		t.Errorf("in the end %v are taken, at %s", got, w.account().Phase())
	}
}

// A server of a version that knows no rotations, beside this one, writes the secret. The next rotation begins from that; one that is under way stops, and ends
// nothing that somebody may use.
func TestAstray(t *testing.T) {
	w := newTurner(t)
	past := func(body string) {
		t.Helper()
		w.commit(func(v store.View, txn *store.Txn) error { return kv.Forget(v, txn, w.Mount, "app") })
		w.Do(put, "data/app", body)
	}
	w.Do(put, "rotation/app", `{"rotator":"folder","rotation_period":"24h","rotation_grace":"60s"}`)
	w.turn()
	first, _ := w.read()
	if err := os.WriteFile(filepath.Join(w.target, "byhand"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	past(`{"data":{"v":"byhand"}}`)
	w.Do(put, "rotate/app", "")
	w.turn()
	if a := w.account(); a.Version != 3 || a.Outgoing != 2 || a.Phase() != rotation.Waiting {
		t.Fatalf("the rotation did not begin from what was written: %+v", a)
	}
	third, _ := w.read()
	past(`{"data":{"v":"again"}}`)
	w.Clock.Advance(61 * time.Second)
	for range 3 {
		w.Clock.Advance(time.Minute)
		w.turn()
	}
	a := w.account()
	if !strings.Contains(a.LastError, "written past the rotation") || a.Phase() != rotation.Waiting {
		t.Errorf("%q at %s", a.LastError, a.Phase())
	}
	if got := fmt.Sprint(w.taken()); !strings.Contains(got, first) || !strings.Contains(got, third) || !strings.Contains(got, "byhand") {
		t.Errorf("only %s are taken", got)
	}
	if value, version := w.read(); value != "again" || version != 4 {
		t.Errorf("readers are shown version %d, %q", version, value)
	}
	// From here on this server knows again that the secret is rotated.
	if _, err := w.Try(put, "data/app", `{"data":{"v":"more"}}`); err == nil || !strings.Contains(err.Error(), "under way") {
		t.Errorf("it is written by hand in the midst: %v", err)
	}
	w.Do(del, "rotation/app", "")
	w.Do(put, "rotation/app", `{"rotator":"folder","rotation_period":"24h","rotation_grace":"60s"}`)
	w.Do(put, "rotate/app", "")
	w.turn()
	if _, version := w.read(); version != 5 {
		t.Errorf("after the rotation was written again readers are shown version %d: %+v", version, w.account())
	}
}

// A look that comes late, when somebody else has ended the wait, or wants the rotation to be given up, calls no rotator, of which nothing would be on record, and
// changes nothing.
func TestLateLook(t *testing.T) {
	for name, change := range map[string]func(a *rotation.Account, now time.Time){
		"the wait is over":     func(a *rotation.Account, now time.Time) { a.Close(rotation.Told, nil, now) },
		"it is to be given up": func(a *rotation.Account, _ time.Time) { a.Abort = true },
	} {
		t.Run(name, func(t *testing.T) {
			w := newTurner(t)
			w.Do(put, "rotation/app", `{"rotator":"folder","rotation_period":"24h","rotation_grace":"60s"}`)
			w.turn()
			w.Do(put, "rotate/app", "")
			w.turn()
			w.Clock.Advance(61 * time.Second)
			early := w.look()
			w.commit(func(v store.View, txn *store.Txn) error {
				a, row, err := rotation.Load(v, w.Mount.Namespace, w.Mount.UUID, "app")
				if err != nil {
					return err
				}
				change(a, w.Clock.Now())
				return rotation.Save(txn, row, a)
			})
			before := w.account()
			w.engine.Rotators = nil // to call one is an error
			for _, turned := range []engine.Turned{early, w.look()} {
				if turned.Err != nil {
					t.Errorf("more than a look: %v", turned.Err)
				}
				w.commit(func(v store.View, txn *store.Txn) error {
					records := txn.Audit
					defer func() { txn.Audit = records }()
					return turned.Then(w.access(v), txn, func() float64 { return 0.5 })
				})
			}
			if after := w.account(); after.Phase() != before.Phase() || after.Abort != before.Abort || after.Attempts > 0 {
				t.Errorf("%s became %s; %+v", before.Phase(), after.Phase(), after)
			}
		})
	}
}

// look is what comes of a look at who holds the outgoing value, which is not recorded yet.
func (w *turner) look() engine.Turned {
	w.T.Helper()
	v, err := w.DB.View()
	if err != nil {
		w.T.Fatal(err)
	}
	defer v.Close()
	a := w.access(v)
	a.Look = true
	return w.engine.Turn(context.Background(), a, "app")
}
