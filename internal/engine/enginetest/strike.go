package enginetest

import (
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// Strike is a moment of a rotation at which a test comes between lessor and its store, or its target: once.
type Strike struct {
	Commit     int    // which of the commits, from 1; 0: none
	Call       string // or what the target is asked for, "set", "login", …
	Nth        int    // the how manieth time, from 1
	Done, Told bool   // it is done; lessor hears that it is
	Dies       bool   // lessor dies before it can record what came of it
}

// strikes are those at so many commits and so many touches of each kind: done or not, told or not of what changes something, where lessor lives on or dies.
func strikes(commits, sets, logins int, looks ...string) (all []Strike) {
	for n := 1; n <= commits; n++ {
		all = append(all, Strike{Commit: n}, Strike{Commit: n, Done: true})
	}
	for _, dies := range []bool{false, true} {
		for n := 1; n <= sets; n++ {
			for _, done := range []bool{false, true} {
				all = append(all, Strike{Call: "set", Nth: n, Done: done, Dies: dies}, Strike{Call: "set", Nth: n, Done: done, Told: true, Dies: dies})
			}
		}
		for n := 1; n <= logins; n++ {
			all = append(all, Strike{Call: "login", Nth: n, Dies: dies})
		}
		for _, look := range looks {
			all = append(all, Strike{Call: look, Nth: 1, Dies: dies})
		}
	}
	return all
}

// SingleStrikes are all of a rotation of one account: it is begun, and confirmed.
func SingleStrikes() []Strike { return strikes(2, 1, 1) }

// PairStrikes are all of a rotation of two that take turns: begun, promoted, the wait is over, retiring, retired, proven. looks are what the target is asked
// for besides.
func PairStrikes(looks ...string) []Strike { return strikes(6, 2, 4, looks...) }

// Rotated is an account whose password is changed, or two that take turns, in a lessor that a test strikes. Each func may fail while lessor is dead.
type Rotated struct {
	First     string // the password that it has before
	Rotate    func() error
	Retire    func() error // ends a wait
	State     func() (*rotation.Account, error)
	Passwords func() (*rotation.Passwords, error)                                      // none, if it never was rotated
	Shown     func() (username, password string, err error)                            // to those who read it, or log in by it; none, if it never was rotated
	Begun     func() int                                                               // how often it is on record that the target is about to be touched
	LogsIn    func(username, password string) bool                                     // past lessor
	Watch     func(f func(call string, password lessor.Secret, do func() error) error) // has f come between lessor and the target; nil: nobody
	Advance   func(d time.Duration)                                                    // lets time pass
	Fail      func(f storetest.Faults)                                                 // has the store fail
	Dead      func() bool                                                              // the store has failed
	Revive    func()                                                                   // starts another lessor, on what was durable
	Broken    error                                                                    // how the target's connections break off
}

// strike has k come between lessor and its target, or its store. each sees each touch before.
func (r *Rotated) strike(k Strike, each func(call string, password lessor.Secret, struck bool)) {
	var mu sync.Mutex
	calls, struck := 0, false
	r.Watch(func(call string, password lessor.Secret, do func() error) error {
		mu.Lock()
		defer mu.Unlock()
		each(call, password, struck)
		if call != k.Call || struck {
			return do()
		}
		if calls++; calls < k.Nth {
			return do()
		}
		struck = true
		var err error
		if k.Done {
			err = do()
		}
		if k.Dies {
			r.Fail(storetest.Faults{At: 1})
		}
		if !k.Told {
			err = r.Broken
		}
		return err
	})
	if k.Commit > 0 {
		r.Fail(storetest.Faults{At: k.Commit, Done: k.Done})
	}
}

// until waits for the background; time passes meanwhile, by steps of d.
func (r *Rotated) until(t *testing.T, what string, d time.Duration, f func() bool) {
	t.Helper()
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if r.Advance(d); f() {
			return
		}
		if time.Since(start) > time.Minute {
			t.Fatalf("never: %s", what)
		}
	}
}

// alive does something that needs a lessor that lives, again if it dies over it.
func (r *Rotated) alive(t *testing.T, f func() error) {
	t.Helper()
	r.until(t, "lessor lives", 0, func() bool {
		err := f()
		if r.Dead() {
			r.Revive()
			return false
		}
		return err == nil
	})
}

func (r *Rotated) state(t *testing.T) (a *rotation.Account) {
	t.Helper()
	r.alive(t, func() (err error) { a, err = r.State(); return err })
	return a
}

func (r *Rotated) passwords(t *testing.T) (p *rotation.Passwords) {
	t.Helper()
	r.alive(t, func() (err error) { p, err = r.Passwords(); return err })
	return p
}

func (r *Rotated) shown(t *testing.T) (username, password string) {
	t.Helper()
	r.alive(t, func() (err error) { username, password, err = r.Shown(); return err })
	return username, password
}

// StrikeSingle strikes a rotation of one account. Afterwards, by itself, one password is in force, the one that was on its way if any was, and it is the one
// that is shown; all others are dead, and forgotten.
func (r *Rotated) StrikeSingle(t *testing.T, k Strike) {
	t.Helper()
	var mu sync.Mutex
	tried, before := []string{r.First}, r.Begun()
	each := func(call string, password lessor.Secret, struck bool) {
		if call != "set" {
			return
		}
		mu.Lock()
		tried = append(tried, password.Reveal())
		mu.Unlock()
		if p, err := r.Passwords(); !struck && (err != nil || !p.Pending.Equal(password)) {
			t.Error("a password is set that is not on record")
		}
		if r.Begun() == before {
			t.Error("the target is touched, and no record says so")
		}
	}
	var err error
	for tries := 1; ; tries++ {
		r.strike(k, each)
		err = r.Rotate()
		if dead := r.Dead(); dead != (k.Dies || k.Commit > 0) {
			t.Fatalf("%v; the store has failed: %v", err, dead)
		}
		if r.Dead() {
			r.Revive()
		}
		if k.Commit == 0 || k.Commit == 1 && !k.Done || r.Begun() > before {
			break
		}
		if tries == 10 { // once in a while it is a commit of the background that is struck, and the rotation has not begun
			t.Fatalf("the rotation never began: %v", err)
		}
	}
	onItsWay := r.passwords(t).Pending
	confirmed := err == nil || k.Commit == 2 && k.Done
	if begun := k.Commit != 1 || k.Done; begun && !confirmed && onItsWay.Empty() && r.state(t).Version == 1 {
		t.Errorf("nothing is on its way after %v", err)
	}
	if _, got := r.shown(t); !confirmed && got != "" && got != r.First && got != onItsWay.Reveal() {
		t.Errorf("shown %q before anything was confirmed", got)
	}
	r.until(t, "no password is on its way", time.Second, func() bool {
		s := r.state(t)
		return s == nil || s.Pending == 0 && s.Attempts == 0
	})
	if !onItsWay.Empty() && !r.passwords(t).Current.Equal(onItsWay) {
		t.Error("a password on its way was replaced by another")
	}
	if err == nil && r.state(t).Version < 2 {
		t.Error("answered, and not rotated")
	}
	username, now := r.shown(t)
	if now == "" {
		now = r.First // lessor's own, never touched
	}
	r.Watch(nil)
	mu.Lock()
	defer mu.Unlock()
	for _, password := range tried {
		if password != now && r.LogsIn(username, password) {
			t.Error("two passwords are in force, or none that is shown")
		}
	}
	if !r.LogsIn(username, now) {
		t.Error("the password that is shown is not in force")
	}
	r.until(t, "what was before is forgotten", 10*time.Second, func() bool {
		s := r.state(t)
		return s == nil || s.Check.IsZero() && len(r.passwords(t).Former) == 0
	})
}

// StrikePair strikes a rotation of two accounts that take turns. Whatever happened: what readers are shown is let in at each moment, and so is what one holds who
// has not moved, until he is waited for no longer; in the end each old password is refused.
func (r *Rotated) StrikePair(t *testing.T, k Strike) {
	t.Helper()
	user, old := r.shown(t)
	r.strike(k, func(string, lessor.Secret, bool) {})
	err := r.Rotate()
	if a := r.state(t); err == nil && a.Version == 1 {
		t.Error("answered, and not rotated")
	} else if k.Commit > 0 && a.Version == 1 && a.Pending == 0 { // its first commit was struck, or one of the background's before it
		r.alive(t, r.Rotate)
	}
	r.until(t, "it waits", time.Second, func() bool {
		a := r.state(t)
		if a.Version == 1 && !r.LogsIn(user, old) {
			t.Fatal("what readers are shown is locked out")
		}
		return a.Phase() >= rotation.Waiting
	})
	other, next := r.shown(t)
	if phase := r.state(t).Phase(); !r.LogsIn(other, next) || phase == rotation.Waiting && !r.LogsIn(user, old) {
		t.Fatalf("in phase %s who moved is let in: %v, who did not: %v", phase, r.LogsIn(other, next), r.LogsIn(user, old))
	}
	r.alive(t, func() error {
		err := r.Retire()
		if api.KindOf(err) == api.Invalid { // it was done, and nobody was told
			return nil
		}
		return err
	})
	r.until(t, "the rotation is done", time.Second, func() bool {
		if !r.LogsIn(other, next) {
			t.Fatal("who moved is locked out")
		}
		return r.state(t).Phase() == rotation.Idle
	})
	if _, now := r.shown(t); r.LogsIn(user, old) || now != next {
		t.Error("the old password is not dead, or another one is shown")
	}
	r.until(t, "what was before is forgotten", 10*time.Second, func() bool {
		a := r.state(t)
		return a.Check.IsZero() && a.Settled == a.Dead && len(r.passwords(t).Former) == 0
	})
	if !r.LogsIn(user, r.passwords(t).Other.Reveal()) {
		t.Error("the password of the retired account is not on record")
	}
}

// State is how the rotation of an account stands, whatever mount it is of. nil: none is on record.
func State(db *store.DB, account string) (*rotation.Account, error) {
	v, err := db.View()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	for row, err := range v.Scan(store.Engine, "", "") {
		if err != nil {
			return nil, err
		}
		if namespace, mount, name := store.SplitMountKey(row.Name); name == "turn/"+account {
			a, _, err := rotation.Load(v, namespace, mount, account)
			return a, err
		}
	}
	return nil, nil
}

// Passwords are those of an account, whatever mount it is of, as they are kept; none if none are on record.
func Passwords(db *store.DB, keys *seal.Keyring, account string) (*rotation.Passwords, error) {
	v, err := db.View()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	for row, err := range v.Scan(store.Secrets, "", "") {
		if err != nil {
			return nil, err
		}
		_, mount, name := store.SplitMountKey(row.Name)
		if name != "turn/"+account {
			continue
		}
		op := &lessor.Op{Verb: lessor.Read, Namespace: lessor.RootNamespace, Path: "rotated"}
		d := policy.Decide(nil, &lessor.Principal{System: "rotation"}, op, policy.Facts{Mount: mount})
		value, err := keys.Open(d.Grant, row)
		if err != nil {
			return nil, err
		}
		return rotation.Open(value)
	}
	return &rotation.Passwords{}, nil
}
