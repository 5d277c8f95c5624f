package database_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/database/postgres"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// eye is PostgreSQL's driver under the eyes of a test, which may come between lessor and the database whenever an account's password is touched.
type eye struct {
	postgres.Driver
	enginetest.Eye
}

func (e *eye) Open(c *database.Connection, s database.Secrets) (database.Database, error) {
	db, err := e.Driver.Open(c, s)
	return &watched{db, e}, err
}

type watched struct {
	database.Database
	*eye
}

func (d *watched) Login(ctx context.Context, username string, password lessor.Secret) (v database.Verdict, err error) {
	err = d.Call("login", password, func() (err error) { v, err = d.Database.Login(ctx, username, password); return err })
	return v, err
}

func (d *watched) SetPassword(ctx context.Context, c database.Change) error {
	return d.Call("set", c.Password, func() error { return d.Database.SetPassword(ctx, c) })
}

func (d *watched) Sessions(ctx context.Context, usernames []string) (all []database.Session, err error) {
	err = d.Call("sessions", lessor.Secret{}, func() (err error) { all, err = d.Database.Sessions(ctx, usernames); return err })
	return all, err
}

func (d *watched) End(ctx context.Context, username string) error {
	return d.Call("end", lessor.Secret{}, func() error { return d.Database.End(ctx, username) })
}

// errBroken is a session that broke off: whether something was done nobody knows.
var errBroken = &api.Error{Kind: api.Upstream, Text: "the session broke off", Cause: database.ErrUnreachable}

// rotated is an account whose password a test has rotated: a static role's, or lessor's own.
type rotated struct {
	name, username, first string
	rotate, config        string // paths
}

// accounts makes one of each kind.
func (w *world) accounts() []rotated {
	w.Helper()
	own, app := w.account("SUPERUSER"), w.account("")
	w.connect("own", w.pg, own, "first")
	w.do(lessor.Update, "db/roles/dyn", `{"db_name":"own","creation_statements":"`+creation+`"}`)
	w.do(lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"db_name":"pg","username":%q,"rotation_period":"1h","password":"first","skip_import_rotation":true}`, app))
	return []rotated{
		{"static/app", app, "first", "db/rotate-role/app", "db/static-roles/app"},
		{"root/own", own, "first", "db/rotate-root/own", "db/config/own"},
	}
}

// shown is what whoever uses the account has of it now: readers a password, lessor's own a session.
func (w *world) shown(a rotated) string {
	w.Helper()
	if a.name == "static/app" {
		return w.password("app")
	}
	w.do(lessor.Update, "db/reset/own", "") // new sessions, which need the password
	w.do(lessor.Read, "db/creds/dyn", "")
	return w.passwords(a.name).Current.Reveal()
}

// settle lets time pass until a rotation that was begun is done.
func (w *world) settle(a rotated) {
	w.Helper()
	w.until(a.name+" has no password on its way", func() bool {
		w.clock.advance(time.Second)
		s := w.state(a.name)
		return s == nil || s.Pending == 0 && s.Attempts == 0
	})
}

// struck is an account in a lessor that is struck.
func (w *world) struck(e *eye, a rotated) *enginetest.Rotated {
	return &enginetest.Rotated{
		First:     a.first,
		Rotate:    func() error { _, err := w.try(lessor.Update, a.rotate, ""); return err },
		State:     func() (*rotation.Account, error) { return w.tryState(a.name) },
		Passwords: func() (*rotation.Passwords, error) { return w.tryPasswords(a.name) },
		Shown:     func() (string, string, error) { return a.username, w.shown(a), nil },
		Begun: func() (n int) {
			recs := slices.Concat(w.records(a.rotate), w.records(a.config))
			for i := range recs {
				if recs[i].Phase == audit.Begun {
					n++
				}
			}
			return n
		},
		LogsIn: w.logsIn, Watch: e.Watch, Advance: w.clock.advance, Broken: errBroken,
		Fail: func(f storetest.Faults) { w.faulty.Set(f) }, Dead: func() bool { return w.db.Fault() != nil }, Revive: w.crash,
	}
}

// A rotation is struck at each moment at which it can be: at each of its commits, done or not, and at each touch of the database, {done?} × {told?},
// where lessor lives on or dies.
func TestRotationIsStruck(t *testing.T) {
	s := pgtest.Start(t)
	for _, k := range enginetest.SingleStrikes() {
		t.Run(fmt.Sprintf("%+v", k), func(t *testing.T) {
			t.Parallel()
			e := &eye{}
			w := newWorldOf(t, s, e)
			for _, a := range w.accounts() {
				w.struck(e, a).StrikeSingle(t, k)
			}
		})
	}
}

// An attempt lands long after lessor gave it up: while its password is on its way still, and after the next rotation.
func TestAttemptLandsLate(t *testing.T) {
	e := &eye{}
	w := newWorldOf(t, pgtest.Start(t), e)
	for _, a := range w.accounts() {
		given := false
		e.Watch(func(call string, _ lessor.Secret, do func() error) error {
			if call == "set" && !given {
				given = true
				return errBroken
			}
			return do()
		})
		land := func(password string) { w.sql(`ALTER ROLE "` + a.username + `" PASSWORD '` + password + `'`) }
		w.refused(api.Upstream, lessor.Update, a.rotate, "", "unable to finish rotating credentials; retries will continue in the background but it is also safe to retry manually")
		onItsWay := w.passwords(a.name).Pending.Reveal()
		land(onItsWay)
		w.do(lessor.Update, a.rotate, "") // by hand, before the background does
		second := w.shown(a)
		if second != onItsWay {
			t.Errorf("%s: a password on its way was replaced by another", a.name)
		}
		if land(second); !w.logsIn(a.username, second) {
			t.Errorf("%s: what landed late did harm", a.name)
		}
		w.do(lessor.Update, a.rotate, "")
		third := w.shown(a)
		if land(second); w.logsIn(a.username, third) {
			t.Fatal("nothing landed: this shows nothing")
		}
		if a.name == "root/own" {
			w.shown(a) // sessions are opened with what logs in
		}
		w.clock.advance(rotation.Watch + time.Second)
		w.until("the password is in force again", func() bool { return w.logsIn(a.username, third) })
		w.until("that is on record", func() bool {
			return slices.ContainsFunc(w.records(a.config), func(r audit.At) bool { return strings.Contains(r.Note, "changed by somebody else") })
		})
		e.Watch(nil)
	}
}

// What the database refused for sure can never land, and gives way to another: a policy that the database does not like can be mended.
func TestRefusedPasswordGivesWay(t *testing.T) {
	e := &eye{}
	w := newWorldOf(t, pgtest.Start(t), e)
	refusal := api.Errorf(api.Upstream, "the database refused: password is too easy")
	for _, a := range w.accounts() {
		var tried []string
		answers := []error{refusal, errBroken, refusal}
		e.Watch(func(call string, password lessor.Secret, do func() error) error {
			if call == "set" {
				tried = append(tried, password.Reveal())
				if len(answers) > 0 {
					err := answers[0]
					answers = answers[1:]
					return err
				}
			}
			return do()
		})
		w.refused(api.Upstream, lessor.Update, a.rotate, "", "too easy")
		if p := w.passwords(a.name); !p.Pending.Empty() || len(p.Former) > 0 {
			t.Errorf("%s: what was refused is still kept", a.name)
		}
		if got := w.shown(a); got != a.first {
			t.Errorf("%s: shown %q", a.name, got)
		}
		w.settle(a)
		if len(tried) != 4 || tried[1] == tried[0] {
			t.Errorf("%s: tried %q", a.name, tried)
		} else if tried[2] != tried[1] || tried[3] != tried[1] {
			t.Errorf("%s: a password that may have landed was replaced: %q", a.name, tried)
		}
		e.Watch(nil)
	}
}

// An attempt that never came to the database, since another one was at it for too long, does not keep a refused password on its way.
func TestAttemptThatNeverWas(t *testing.T) {
	e := &eye{}
	w := newWorldOf(t, pgtest.Start(t), e)
	a := w.accounts()[0]
	reached, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var mu sync.Mutex
	tried := map[string]bool{}
	e.Watch(func(call string, password lessor.Secret, do func() error) error {
		if call != "set" {
			return do()
		}
		once.Do(func() { close(reached); <-goOn })
		mu.Lock()
		defer mu.Unlock()
		tried[password.Reveal()] = true
		return api.Errorf(api.Upstream, "the database refused: password is too easy")
	})
	first := make(chan error)
	go func() { _, err := w.try(lessor.Update, a.rotate, ""); first <- err }()
	<-reached
	w.refused(api.Unavailable, lessor.Update, a.rotate, "", "is being rotated by somebody else")
	if r := w.records(a.rotate)[0]; r.Phase != audit.Outcome || r.ErrorKind != "unavailable" {
		t.Errorf("on record is %+v", r)
	}
	close(goOn)
	if err := <-first; err == nil {
		t.Error("a password that was refused was taken")
	}
	w.until("what was refused gives way to another", func() bool {
		w.clock.advance(time.Second)
		mu.Lock()
		defer mu.Unlock()
		return len(tried) > 1
	})
}

// Nor does one of whose account something cannot be read; that it failed is on record even if that cannot be, either.
func TestAttemptThatCannotBegin(t *testing.T) {
	e := &eye{}
	w := newWorldOf(t, pgtest.Start(t), e)
	a := w.accounts()[0]
	reached, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	e.Watch(func(call string, _ lessor.Secret, do func() error) error {
		if call == "set" {
			once.Do(func() { close(reached); <-goOn })
		}
		return do()
	})
	answers := make(chan error)
	rotate := func() { _, err := w.try(lessor.Update, a.rotate, ""); answers <- err }
	go rotate()
	<-reached
	go rotate()
	w.until("the second is on record", func() bool { return w.state(a.name).Loose == 2 })
	v, err := w.db.View()
	w.must(err)
	defer v.Close()
	var txn store.Txn
	for row, err := range v.Scan(store.Engine, "", "") {
		w.must(err)
		if _, _, name := store.SplitMountKey(row.Name); name == "config/pg" {
			txn.Put(row.Table, row.Name, []byte("damaged"))
		}
	}
	_, err = w.db.Commit(t.Context(), txn)
	w.must(err)
	close(goOn)
	for range 2 {
		if err := <-answers; err == nil {
			t.Error("a rotation of which nothing could be recorded succeeded")
		}
	}
	if r := w.records(a.rotate)[0]; r.Phase != audit.Outcome || r.ErrorKind == "" {
		t.Errorf("on record is %+v", r)
	}
}

// A database that says that it refused a password, and has it in force, does not lock lessor out.
func TestRefusedPasswordIsInForce(t *testing.T) {
	e := &eye{}
	w := newWorldOf(t, pgtest.Start(t), e)
	for _, a := range w.accounts() {
		lies := 1
		e.Watch(func(call string, _ lessor.Secret, do func() error) error {
			err := do()
			if call == "set" && lies > 0 {
				lies--
				return api.Errorf(api.Upstream, "the database refused: so it says")
			}
			return err
		})
		w.refused(api.Upstream, lessor.Update, a.rotate, "", "so it says")
		if !slices.ContainsFunc(w.passwords(a.name).Candidates(), func(s lessor.Secret) bool { return w.logsIn(a.username, s.Reveal()) }) {
			t.Errorf("%s: what is in force is forgotten", a.name)
		}
		w.shown(a) // lessor gets in
		w.settle(a)
		if !w.logsIn(a.username, w.shown(a)) {
			t.Errorf("%s: the password that is shown is not in force", a.name)
		}
		e.Watch(nil)
	}
}

// Statements of somebody's own are not run again, after a death, if they have done their work.
func TestRotationStatementsRunOnce(t *testing.T) {
	e := &eye{}
	w := newWorldOf(t, pgtest.Start(t), e)
	user := w.account("")
	log := strings.Replace(user, "static", "log", 1)
	w.sql(`CREATE TABLE "` + log + `" (n int)`)
	w.do(lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"db_name":"pg","username":%q,"rotation_period":"1h","rotation_statements":[%q,%q]}`,
		user, `ALTER ROLE "{{name}}" PASSWORD '{{password}}'`, `INSERT INTO "`+log+`" VALUES (1)`))
	e.Watch(func(call string, _ lessor.Secret, do func() error) error {
		err := do()
		if call == "set" {
			w.faulty.Set(storetest.Faults{At: 1})
		}
		return err
	})
	_, err := w.try(lessor.Update, "db/rotate-role/app", "")
	if err == nil {
		t.Fatal("it did not die")
	}
	e.Watch(nil)
	w.crash()
	w.settle(rotated{name: "static/app"})
	if !w.logsIn(user, w.password("app")) {
		t.Error("the password that is shown is not in force")
	}
	c := w.pg.Connect(t, "")
	var n int
	w.must(c.QueryRow(t.Context(), `SELECT count(*) FROM "`+log+`"`).Scan(&n))
	if n != 2 {
		t.Errorf("the statements ran %d times for two rotations", n)
	}
	w.sql(`DROP TABLE "` + log + `"`)
}

// stopped is a driver of a database that is told to change a password and to show who uses an account, and to log in, only after lessor is being stopped.
type stopped struct {
	postgres.Driver
	call    *atomic.Pointer[string] // that hangs; nil: none does
	reached chan struct{}
}

func (d stopped) Open(c *database.Connection, s database.Secrets) (database.Database, error) {
	db, err := d.Driver.Open(c, s)
	return &stopping{db, d}, err
}

type stopping struct {
	database.Database
	stopped
}

func (d *stopping) hang(ctx context.Context, call string) {
	if at := d.call.Load(); at != nil && *at == call {
		close(d.reached)
		<-ctx.Done()
	}
}

func (d *stopping) Login(ctx context.Context, username string, password lessor.Secret) (database.Verdict, error) {
	d.hang(ctx, "login")
	return d.Database.Login(ctx, username, password)
}

func (d *stopping) SetPassword(ctx context.Context, c database.Change) error {
	d.hang(ctx, "set")
	return d.Database.SetPassword(ctx, c)
}

func (d *stopping) Sessions(ctx context.Context, usernames []string) ([]database.Session, error) {
	d.hang(ctx, "look")
	return d.Database.Sessions(ctx, usernames)
}

// An attempt that is cut short since lessor is being stopped is no failure: the next start takes it up at once, and nobody is warned.
func TestAttemptIsCutShort(t *testing.T) {
	s := pgtest.Start(t)
	for _, call := range []string{"set", "login", "look"} {
		d := stopped{call: &atomic.Pointer[string]{}, reached: make(chan struct{})}
		w := newWorldOf(t, s, d)
		one, other := w.account(""), w.account("")
		w.do(lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"db_name":"pg","usernames":[%q,%q],"rotation_period":"1h"}`, one, other))
		w.until("it is made", func() bool { return w.state("static/app").Phase() == rotation.Idle })
		d.call.Store(&call)
		w.clock.advance(time.Hour)
		select {
		case <-d.reached:
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: it is not rotated", call)
		}
		w.end()
		d.call.Store(nil)

		db, err := store.Open(w.disk.Open(), store.Options{Clock: w.clock})
		w.must(err)
		w.must(db.Unseal(w.keys.Cipher()))
		a, err := enginetest.State(db, "static/app")
		w.must(err)
		if a.Phase() == rotation.Idle || a.Attempts != 0 || a.LastError != "" || a.Next.After(db.Now()) {
			t.Errorf("%s: after it was stopped it stands at %+v", call, a)
		}
		w.must(db.Close())

		w.boot()
		w.until("it goes on", func() bool { a := w.state("static/app"); return a.Phase() == rotation.Idle && a.Version == 2 })
		if !slices.ContainsFunc([]string{one, other}, func(username string) bool { return w.logsIn(username, w.password("app")) }) {
			t.Errorf("%s: the password that is shown is not in force", call)
		}
	}
}

// mute is a driver of a database that lets accounts in from elsewhere only, and says of a password that it has taken that it refused it.
type mute struct{ postgres.Driver }

func (d mute) Open(c *database.Connection, s database.Secrets) (database.Database, error) {
	db, err := d.Driver.Open(c, s)
	return &muted{db}, err
}

type muted struct{ database.Database }

func (*muted) Login(context.Context, string, lessor.Secret) (database.Verdict, error) {
	return database.Unknown, nil
}

func (d *muted) SetPassword(ctx context.Context, c database.Change) error {
	return errors.Join(d.Database.SetPassword(ctx, c), api.Errorf(api.Upstream, "the second of two statements was refused"))
}

// What a database refuses is kept where no login can show that it is not in force.
func TestRefusedPasswordThatCannotBeTried(t *testing.T) {
	w := newWorldOf(t, pgtest.Start(t), mute{})
	user := w.account("")
	a := w.do(lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"db_name":"pg","username":%q,"rotation_period":"1000h","password":"first","skip_import_rotation":true}`, user))
	if len(a.Warnings) != 2 || !strings.Contains(a.Warnings[0], "could not be tried") {
		t.Errorf("warnings %q", a.Warnings)
	}
	w.refused(api.Upstream, lessor.Update, "db/rotate-role/app", "", "was refused")
	if w.logsIn(user, "first") {
		t.Fatal("the database has not taken it")
	}
	if !slices.ContainsFunc(w.passwords("static/app").Candidates(), func(s lessor.Secret) bool { return w.logsIn(user, s.Reveal()) }) {
		t.Error("the password in force is not on record")
	}
}
