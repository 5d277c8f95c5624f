package core_test

import (
	"crypto/rand"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/core"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/lockout"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
)

// people mounts userpass with the user ann, whose password is "right", and gives the mount's accessor.
func (g *gate) people(names ...string) string {
	g.Helper()
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass"}`)
	hash, err := bcrypt.GenerateFromPassword([]byte("right"), bcrypt.MinCost)
	if err != nil {
		g.Fatal(err)
	}
	for _, name := range append(names, "ann") {
		g.do(g.root, lessor.Update, "auth/userpass/users/"+name, `{"password_hash":"`+string(hash)+`"}`)
	}
	return g.do(g.root, lessor.Read, "sys/auth/userpass", "").Data["accessor"].(string)
}

// answer is what a login is answered: "" or the error.
func (g *gate) answer(c *core.Core, path, data string) string {
	_, err := c.Handle(g.Context(), g.op(lessor.Secret{}, lessor.Update, path, data))
	if err == nil {
		return ""
	}
	return fmt.Sprintf("%d %v", api.KindOf(err).Status(), err)
}

const (
	wrongPassword = "400 invalid username or password"
	lockedOut     = "403 permission denied"
)

func (g *gate) guess(c *core.Core, name string, n int) (answers []string) {
	for range n {
		answers = append(answers, g.answer(c, "auth/userpass/login/"+name, `{"password":"wrong"}`))
	}
	return answers
}

func (g *gate) lockedUsers() string {
	g.Helper()
	return string(lessor.AppendJSON(nil, g.do(g.root, lessor.Read, "sys/locked-users", "").Data))
}

func TestLockout(t *testing.T) {
	g := start(t)
	accessor := g.people("bob")
	seq := g.db.Head().Seq
	for i, got := range g.guess(g.core, "ann", 7) {
		if want := map[bool]string{true: wrongPassword, false: lockedOut}[i < 5]; got != want {
			t.Errorf("failure %d: %q, want %q", i+1, got, want)
		}
	}
	right := func(c *core.Core, name string) string {
		return g.answer(c, "auth/userpass/login/"+name, `{"password":"right"}`)
	}
	if got := right(g.core, "Ann"); got != lockedOut {
		t.Errorf("locked out, with the right password: %q", got)
	}
	if got := right(g.core, "bob"); got != "" {
		t.Errorf("somebody else: %q", got)
	}
	notes := map[string]uint64{}
	for _, r := range g.since(seq) {
		notes[r.Note] += max(r.Count, 1)
	}
	if notes["locked out after too many failures"] != 1 || notes["locked out"] != 3 {
		t.Errorf("on record: %v", notes)
	}
	want := `{"by_namespace":[{"counts":1,"mount_accessors":[{"alias_identifiers":["ann"],"counts":1,"mount_accessor":"` + accessor +
		`"}],"namespace_id":"root","namespace_path":""}],"total":1}`
	if got := g.lockedUsers(); got != want {
		t.Errorf("locked users:\n got %s\nwant %s", got, want)
	}

	// Another node, or a restart, knows the lock; who is unlocked there is unlocked here.
	other, err := core.New(core.Options{Store: g.db, Keys: g.core.Keys, Random: rand.Reader, Backends: g.backends})
	if err != nil {
		t.Fatal(err)
	}
	if got := right(other, "ann"); got != lockedOut {
		t.Errorf("on another node: %q", got)
	}
	g.do(g.root, lessor.Update, "sys/locked-users/"+accessor+"/unlock/ann", "")
	if got := right(g.core, "ann"); got != "" {
		t.Errorf("unlocked: %q", got)
	}
	if got := g.lockedUsers(); got != `{"by_namespace":[],"total":0}` {
		t.Errorf("locked users: %s", got)
	}

	// It ends by itself, and leaves no row once she has logged in.
	g.guess(g.core, "ann", 5)
	g.clock.Advance(15 * time.Minute)
	for _, c := range []*core.Core{other, g.core} {
		if got := right(c, "ann"); got != "" {
			t.Errorf("when it is over: %q", got)
		}
	}
	k := lockout.Name{Mount: g.mountAt("auth/userpass/"), Alias: "ann"}.Key()
	v, err := g.db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if row, err := v.Get(k); err != nil || row.Exists() {
		t.Errorf("the row of a lock that is over: %v %v", row, err)
	}

	// A login in between begins the count anew, and so does time.
	for _, pause := range []func(){
		func() { right(g.core, "ann") },
		func() { g.clock.Advance(16 * time.Minute) },
	} {
		g.guess(g.core, "ann", 4)
		pause()
		for i, got := range g.guess(g.core, "ann", 4) {
			if got != wrongPassword {
				t.Errorf("failure %d after a pause: %q", i, got)
			}
		}
		right(g.core, "ann")
	}
}

// Whether somebody exists does not show from when the lockout bites, and who does not exist leaves no row.
func TestLockoutDoesNotTellWhoExists(t *testing.T) {
	g := start(t)
	g.people()
	g.do(g.root, lessor.Update, "sys/auth/approle", `{"type":"approle"}`)
	g.do(g.root, lessor.Update, "auth/approle/role/app", `{"role_id":"app"}`)
	ann, nobody := g.guess(g.core, "ann", 8), g.guess(g.core, "nobody", 8)
	if fmt.Sprint(ann) != fmt.Sprint(nobody) {
		t.Errorf("a user:   %v\nnobody: %v", ann, nobody)
	}
	for _, data := range []string{`{"role_id":%q,"secret_id":"x"}`, `{"role_id":%q}`} {
		var app, none []string
		for range 8 {
			app = append(app, g.answer(g.core, "auth/approle/login", fmt.Sprintf(data, "app")))
			none = append(none, g.answer(g.core, "auth/approle/login", fmt.Sprintf(data, "none")))
		}
		if fmt.Sprint(app) != fmt.Sprint(none) {
			t.Errorf("a role: %v\nnone:   %v", app, none)
		}
	}
	v, err := g.db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	locked := 0
	for _, path := range []string{"auth/userpass/", "auth/approle/"} {
		e := g.mountAt(path)
		prefix := lockout.Name{Mount: e}.Key()
		for row, err := range v.Scan(store.Config, prefix.Name, store.PrefixEnd(prefix.Name)) {
			if err != nil {
				t.Fatal(err)
			}
			locked++
			_ = row
		}
	}
	if locked != 2 {
		t.Errorf("%d locks are kept, want ann's and the role's", locked)
	}
}

// Guesses that are under way when the lock falls tell nothing: no more are answered than the threshold says.
func TestLockoutOfGuessesAtOnce(t *testing.T) {
	g := start(t)
	g.people()
	var all sync.WaitGroup
	var mu sync.Mutex
	answers := map[string]int{}
	for range 40 {
		all.Go(func() {
			got := g.answer(g.core, "auth/userpass/login/ann", `{"password":"wrong"}`)
			mu.Lock()
			defer mu.Unlock()
			answers[got]++
		})
	}
	all.Wait()
	if answers[wrongPassword] != 5 || answers[lockedOut] != 35 {
		t.Errorf("answers: %v", answers)
	}
}

func TestLockoutIsTuned(t *testing.T) {
	yes, no := true, false
	server := map[string]lockout.Terms{"userpass": {Threshold: 3, Duration: time.Minute, CounterReset: time.Minute}}
	for name, c := range map[string]struct {
		settings lockout.Settings
		tune     string
		allowed  int // failures that are told, of eight
	}{
		"default":             {lockout.Settings{}, "", 5},
		"server":              {lockout.Settings{ByType: server}, "", 3},
		"all":                 {lockout.Settings{ByType: map[string]lockout.Terms{"all": server["userpass"]}}, "", 3},
		"mount":               {lockout.Settings{ByType: server}, `{"lockout_threshold":"2"}`, 2},
		"mount without":       {lockout.Settings{}, `{"lockout_disable":true}`, 8},
		"server without":      {lockout.Settings{ByType: map[string]lockout.Terms{"userpass": {Disabled: true}}}, "", 8},
		"environment without": {lockout.Settings{Disabled: &yes}, `{"lockout_threshold":"2"}`, 8},
		"environment with":    {lockout.Settings{Disabled: &no}, `{"lockout_disable":true}`, 5},
	} {
		t.Run(name, func(t *testing.T) {
			g := start(t, func(o *core.Options) { o.Lockout = c.settings })
			g.people()
			if c.tune != "" {
				g.do(g.root, lessor.Update, "sys/auth/userpass/tune", `{"user_lockout_config":`+c.tune+`}`)
			}
			told := 0
			for _, got := range g.guess(g.core, "ann", 8) {
				if got == wrongPassword {
					told++
				}
			}
			if told != c.allowed {
				t.Errorf("%d failures were told, want %d", told, c.allowed)
			}
		})
	}
}

// small is a backend on a disk that may be full.
type small struct {
	store.Backend
	free atomic.Int64
}

func (s *small) Usage() (used, free int64) { return 0, s.free.Load() }

// On a full disk nobody logs in, but names are locked all the same, and no answer tells a right password from a wrong one.
func TestLockoutOnAFullDisk(t *testing.T) {
	disk := &small{Backend: mem.New()}
	disk.free.Store(1000)
	g := startOn(t, disk, store.Options{Reserve: 100})
	g.people()
	disk.free.Store(10)
	const full = "503 the disk is almost full: only revocations are accepted until an operator makes room"
	g.eventually("the disk is full", func() bool { return g.answer(g.core, "auth/userpass/login/ann", `{"password":"right"}`) == full })
	g.guess(g.core, "ann", 4)
	g.answer(g.core, "auth/userpass/login/ann", `{"password":"right"}`) // not let in, so that it counts for nothing
	g.guess(g.core, "ann", 1)
	for range 3 {
		for _, password := range []string{"wrong", "right"} {
			if got := g.answer(g.core, "auth/userpass/login/ann", `{"password":"`+password+`"}`); got != lockedOut && got != full {
				t.Errorf("answer to the %s password: %s", password, got)
			}
		}
	}
	disk.free.Store(1000)
	g.eventually("there is room", func() bool { return g.answer(g.core, "auth/userpass/login/nobody", `{"password":"x"}`) != full })
	if got := g.answer(g.core, "auth/userpass/login/ann", `{"password":"right"}`); got != lockedOut {
		t.Errorf("answer when there is room: %s", got)
	}
}
