package database_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/store"
)

// static makes a static role, rotated hourly, over a connection.
func (w *world) static(role, connection, username string) {
	w.Helper()
	w.do(lessor.Update, "db/static-roles/"+role, fmt.Sprintf(`{"db_name":%q,"username":%q,"rotation_period":"1h"}`, connection, username))
}

// A database is down for hours, then hangs, and comes back. Readers have the password that works all the while, and a warning; another
// database's accounts are rotated as ever; nobody gives up, and nobody storms.
func TestTargetIsDownForHours(t *testing.T) {
	far := pgtest.Own(t)
	w := newWorld(t, pgtest.Start(t))
	w.connect("far", far, pgtest.Superuser, far.Password())
	near, away := w.account(""), &world{T: t, pg: far}
	user := away.account("")
	w.static("far0", "far", away.account(""))
	w.static("far", "far", user)
	w.static("near", "pg", near)
	before, version := w.password("far"), w.state("static/far").Version
	if !away.logsIn(user, before) {
		t.Fatal("the password that is shown is not in force")
	}

	w.must(far.Kill())
	w.refused(api.Upstream, lessor.Update, "db/rotate-role/far", "", "unable to finish rotating credentials")
	for range 3 {
		rotated, tried := w.state("static/near").Version, w.state("static/far").Attempts
		w.clock.advance(time.Hour)
		w.until("the other database's account is rotated", func() bool { return w.state("static/near").Version > rotated })
		w.until("this one's is tried", func() bool { w.clock.advance(10 * time.Second); return w.state("static/far").Attempts > tried })
	}
	a := w.do(lessor.Read, "db/static-creds/far", "")
	if got := a.Data["password"].(lessor.Secret).Reveal(); got != before {
		t.Error("readers are shown a password that the database does not know")
	}
	if len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "the last rotation failed and is tried again: the database cannot be reached") {
		t.Errorf("warnings %q", a.Warnings)
	}
	if s := w.state("static/far"); s.Retry.Sub(w.db.Now()) > 10*time.Minute {
		t.Errorf("tried again in %s after %d failures", s.Retry.Sub(w.db.Now()), s.Attempts)
	}

	w.must(far.Up())
	w.must(far.Pause())
	w.until("it is tried while it hangs", func() bool {
		w.clock.advance(time.Minute)
		return strings.Contains(w.state("static/far").LastError, "did not answer in time")
	})
	rotated := w.state("static/near").Version
	w.clock.advance(time.Hour)
	w.until("the other is rotated", func() bool { return w.state("static/near").Version > rotated })
	w.must(far.Resume())
	w.until("it is rotated when it is back", func() bool {
		w.clock.advance(time.Minute)
		return w.state("static/far").Version > version && w.state("static/far0").Version > 1
	})
	if now := w.password("far"); now == before || !away.logsIn(user, now) || away.logsIn(user, before) {
		t.Error("after the outage: the password that is shown is not the only one in force")
	}
	if a := w.do(lessor.Read, "db/static-creds/far", ""); len(a.Warnings) > 0 {
		t.Errorf("warnings after it: %q", a.Warnings)
	}
}

// What many accounts at a database that is down cost the store is bounded by time, not by how many they are, nor by what becomes due elsewhere.
func TestDeadDatabaseIsSeldomTried(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	w.static("near", "pg", w.account(""))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	w.must(l.Close())
	w.do(lessor.Update, "db/config/dead", fmt.Sprintf(`{"plugin_name":"postgresql-database-plugin","connection_url":"postgresql://{{username}}:{{password}}@%s/postgres?sslmode=disable","username":"lessor","password":"whatever","allowed_roles":"*","verify_connection":false}`, l.Addr()))
	const accounts = 40
	for i := range accounts {
		w.do(lessor.Update, fmt.Sprint("db/static-roles/dead", i), fmt.Sprintf(`{"db_name":"dead","username":"gone%d","rotation_period":"5s","skip_import_rotation":true,"password":"whatever"}`, i))
	}
	failed := func() (tries, records int) {
		for i := range accounts {
			tries += int(w.state(fmt.Sprint("static/dead", i)).Attempts)
			records += len(w.records(fmt.Sprint("db/static-roles/dead", i)))
		}
		return tries, records
	}
	w.clock.advance(10 * time.Second)
	w.until("the dead database is given a rest", func() bool { tries, _ := failed(); return tries >= 3 })

	began := w.db.Now()
	triesBefore, recordsBefore := failed()
	for range 50 {
		version := w.state("static/near").Version
		w.do(lessor.Update, "db/rotate-role/near", "")
		if got := w.state("static/near").Version; got <= version {
			t.Fatalf("it was not rotated: version %d", got)
		}
		w.clock.advance(2 * time.Second)
	}
	w.until("the dead database is tried again", func() bool { tries, _ := failed(); return tries > triesBefore })
	tries, records := failed()
	tries, records = tries-triesBefore, records-recordsBefore
	// Rests double from 2 s or more, to 30 s or more; a try is on record when it begins and when it has failed.
	if most := 5 + int(w.db.Now().Sub(began)/(30*time.Second)); tries > most || records > 2*(tries+1) {
		t.Errorf("in %s the dead database was tried %d times, %d at most, with %d records", w.db.Now().Sub(began), tries, most, records)
	}
}

// Accounts that are gone at a database are tried again for ever, later each time, and keep no other of the same database waiting for long.
func TestAccountIsDropped(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	var gone []string
	for i := range 4 {
		gone = append(gone, w.account(""))
		w.static(fmt.Sprint("gone", i), "pg", gone[i])
		w.sql(`DROP ROLE "` + gone[i] + `"`)
	}
	user := w.account("")
	w.static("app", "pg", user)
	w.clock.advance(time.Hour)
	w.until("the one that is there is rotated", func() bool { w.clock.advance(time.Second); return w.state("static/app").Version == 2 })
	w.until("the others fail", func() bool { w.clock.advance(time.Second); return w.state("static/gone3").Attempts > 1 })
	if s := w.state("static/gone0"); s.Version != 1 || !strings.Contains(s.LastError, "does not exist") {
		t.Errorf("%+v", s)
	}
	w.sql(`CREATE ROLE "` + gone[0] + `" LOGIN PASSWORD 'another'`)
	w.until("an account that is back has its password again", func() bool { w.clock.advance(time.Minute); return w.state("static/gone0").Version == 2 })
	if !w.logsIn(gone[0], w.password("gone0")) {
		t.Error("the password that is shown is not in force")
	}
}

// While the clock is not to be trusted nothing rotates by itself.
func TestNothingRotatesByAWrongClock(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	w.static("app", "pg", w.account(""))
	w.clock.jump.Store(int64(2 * time.Hour))
	w.until("the clock is not trusted", func() bool { return w.db.ClockAlarm() != nil })
	w.clock.advance(2 * time.Hour) // due by any clock
	time.Sleep(200 * time.Millisecond)
	if v := w.state("static/app").Version; v != 1 {
		t.Errorf("rotated to version %d by a clock that is not trusted", v)
	}
	w.clock.jump.Store(0)
	w.until("the clock is trusted again", func() bool { return w.db.ClockAlarm() == nil })
	w.until("it is rotated", func() bool { return w.state("static/app").Version == 2 })
}

// A restored copy touches nothing until it is resumed. Then each account is tried: what was changed since the backup is set again.
func TestRestoredCopy(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	all := w.accounts()
	app, own := all[0], all[1]
	w.connect("spare", w.pg, pgtest.Superuser, w.pg.Password())
	w.do(lessor.Update, app.rotate, "")
	w.do(lessor.Update, own.rotate, "")
	w.until("nothing is left to be proven", func() bool {
		w.clock.advance(10 * time.Second)
		return w.state(app.name).Check.IsZero() && w.state(own.name).Check.IsZero()
	})
	kept, lent := w.password("app"), w.passwords(own.name).Current.Reveal()
	_, err := w.db.Commit(t.Context(), store.Txn{Puts: []store.Put{{Key: store.Fenced, Value: []byte("now")}}})
	w.must(err)
	w.crash()
	w.sql(`ALTER ROLE "` + app.username + `" PASSWORD 'since'`) // by the original that lives on

	w.clock.advance(3 * time.Hour)
	time.Sleep(200 * time.Millisecond)
	if v := w.state(app.name).Version; v != 2 || !w.logsIn(app.username, "since") {
		t.Errorf("a restored copy rotated, to version %d", v)
	}
	for _, path := range []string{app.rotate, own.rotate} {
		w.refused(api.Unavailable, lessor.Update, path, "", "restored copy")
	}
	a := w.do(lessor.Update, "db/config/own", `{"allowed_roles":"*"}`)
	if len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "restored copy") {
		t.Errorf("a connection of a restored copy is written with %q", a.Warnings)
	}
	w.refused(api.Unavailable, lessor.Read, "db/creds/dyn", "", "restored copy")
	for path, verb := range map[string]lessor.Verb{"db/reset/pg": lessor.Update, "db/reload/postgresql-database-plugin": lessor.Update, "db/config/spare": lessor.Delete} {
		if a := w.do(verb, path, ""); len(a.Warnings) > 0 {
			t.Errorf("%s of a restored copy, which touches no database, warns %q", path, a.Warnings)
		}
	}

	w.do(lessor.Update, "db/static-roles/app", `{"rotation_period":"10h"}`) // not due: it is tried for its own sake
	w.do(lessor.Delete, "sys/lessor/fence", "")
	w.until("the account has the password that the copy knows", func() bool { return w.logsIn(app.username, kept) })
	w.until("lessor's own is tried", func() bool {
		recs := w.records("db/config/own")
		return recs[0].System == "rotation" && recs[0].Note == "password proven" && w.logsIn(own.username, lent)
	})
	if got := w.password("app"); got != kept {
		t.Error("readers are shown another")
	}
}

// Many rotate one role at once, and many read: each rotation is answered when it is in force, readers see passwords that were,
// and in the end one is.
func TestRotateRoleAtOnce(t *testing.T) {
	e := &eye{}
	w := newWorldOf(t, pgtest.Start(t), e)
	user := w.account("")
	w.static("app", "pg", user)
	var mu sync.Mutex
	was := map[string]bool{w.password("app"): true}
	e.Watch(func(call string, password lessor.Secret, do func() error) error {
		err := do()
		mu.Lock()
		defer mu.Unlock()
		if err == nil && call == "login" {
			was[password.Reveal()] = true
		}
		return err
	})
	var all sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				a, err := w.try(lessor.Read, "db/static-creds/app", "")
				if err != nil {
					t.Errorf("a reader: %v", err)
					return
				}
				mu.Lock()
				if !was[a.Data["password"].(lessor.Secret).Reveal()] {
					t.Error("a reader is shown a password that never was in force")
				}
				mu.Unlock()
			}
		})
	}
	before := w.state("static/app").Version
	var rotating sync.WaitGroup
	for range 8 {
		rotating.Go(func() {
			from := w.state("static/app").Version
			if _, err := w.try(lessor.Update, "db/rotate-role/app", ""); err != nil {
				t.Errorf("rotate-role: %v", err)
			} else if w.state("static/app").Version == from {
				t.Error("answered before it was in force")
			}
		})
	}
	rotating.Wait()
	close(stop)
	all.Wait()
	if v := w.state("static/app").Version; v == before || v > before+8 {
		t.Errorf("version %d after 8 rotations from %d", v, before)
	}
	if !w.logsIn(user, w.password("app")) {
		t.Error("the password that is shown is not in force")
	}
	for password := range was {
		if password != w.password("app") && w.logsIn(user, password) {
			t.Error("a former password is in force")
		}
	}
}

// Whoever asks for one rotation after the other is asked to wait before more is kept and tried than is good, and may go on once what was before is proven dead. What is
// demanded meanwhile is not kept waiting.
func TestRotateRoleInALoop(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	username := w.managed("app", "1000h")
	first := w.password("app")
	var err error
	n := 0
	for ; n < 200 && err == nil; n++ {
		_, err = w.try(lessor.Update, "db/rotate-role/app", "")
	}
	kept := len(w.passwords("static/app").Former)
	if api.KindOf(err) != api.Limited || !strings.Contains(err.Error(), "ask again after") || n < 50 || kept > 70 {
		t.Fatalf("after %d rotations %d passwords are kept, and the answer is %v", n, kept, err)
	}
	version := w.state("static/app").Version
	one := w.reads("pod-0", "app")
	w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, one))
	w.until("what is exposed is rotated all the same", func() bool { return w.state("static/app").Version == version+1 })
	w.until("what was before is proven dead", func() bool {
		w.clock.advance(time.Second)
		return len(w.passwords("static/app").Former) == 0
	})
	w.do(lessor.Update, "db/rotate-role/app", "")
	if second := w.password("app"); !w.logsIn(username, second) || w.logsIn(username, first) {
		t.Error("the password that is shown is not in force, or the first one is")
	}
}

// A role is deleted, and another of its name made, while its password is being changed.
func TestStaticRoleIsDeletedMeanwhile(t *testing.T) {
	e := &eye{}
	w := newWorldOf(t, pgtest.Start(t), e)
	user := w.account("")
	w.static("app", "pg", user)
	reached, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	e.Watch(func(call string, _ lessor.Secret, do func() error) error {
		if call == "set" {
			first := false
			once.Do(func() { first = true; close(reached); <-goOn })
			if s := w.state("static/app"); !first && s.Version != 0 {
				t.Error("the new role's password is confirmed before it is set")
			}
		}
		return do()
	})
	answered := make(chan error)
	go func() { _, err := w.try(lessor.Update, "db/rotate-role/app", ""); answered <- err }()
	<-reached
	w.do(lessor.Delete, "db/static-roles/app", "")
	made := make(chan error)
	go func() {
		_, err := w.try(lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"db_name":"pg","username":%q,"rotation_period":"2h"}`, user))
		made <- err
	}()
	w.until("the new role is on record", func() bool { return w.state("static/app") != nil })
	close(goOn)
	if err := <-answered; err != nil {
		t.Errorf("the rotation: %v", err)
	}
	w.must(<-made)
	if s := w.state("static/app"); s.Version != 1 || s.Pending != 0 {
		t.Errorf("the new role stands as %+v", s)
	}
	if !w.logsIn(user, w.password("app")) {
		t.Error("the password that is shown is not in force")
	}
	w.do(lessor.Delete, "db/static-roles/app", "")
	if w.state("static/app") != nil || !w.passwords("static/app").Current.Empty() {
		t.Error("a deleted role left something")
	}
}

// Lessor's own account: sessions that are open stay, nobody is told the password, and what others depend on is not rotated.
func TestRotateRoot(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	own := w.accounts()[1]
	lease := w.do(lessor.Read, "db/creds/dyn", "").Lease.ID
	w.do(lessor.Update, own.rotate, "")
	password := w.passwords(own.name).Current.Reveal()
	if w.logsIn(own.username, "first") || !w.logsIn(own.username, password) {
		t.Error("after rotate-root")
	}
	config := string(lessor.AppendJSON(nil, w.do(lessor.Read, "db/config/own", "").Data))
	if strings.Contains(config, password) || strings.Contains(config, "first") {
		t.Error("the connection shows its password")
	}
	w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, lease))
	w.do(lessor.Update, "db/reset/own", "")
	w.do(lessor.Read, "db/creds/dyn", "")
	w.crash()
	w.do(lessor.Read, "db/creds/dyn", "")

	// An administrator's tool that keeps sending what was configured changes nothing.
	w.do(lessor.Update, "db/config/own", `{"password":"first"}`)
	w.do(lessor.Read, "db/creds/dyn", "")
	// Unless somebody has set it again, at the database, which is how lessor gets in again.
	w.sql(`ALTER ROLE "` + own.username + `" PASSWORD 'first'`)
	w.do(lessor.Update, "db/config/own", `{"password":"first"}`)
	w.do(lessor.Read, "db/creds/dyn", "")
	w.until("it has its own password again", func() bool { return w.logsIn(own.username, password) })
	// An administrator who sets another password at the database says so.
	w.sql(`ALTER ROLE "` + own.username + `" PASSWORD 'second'`)
	w.do(lessor.Update, "db/config/own", `{"password":"second"}`)
	w.do(lessor.Update, "db/reset/own", "")
	w.do(lessor.Read, "db/creds/dyn", "")
	w.do(lessor.Update, own.rotate, "")
	if w.logsIn(own.username, "second") {
		t.Error("after the second rotate-root")
	}

	// Accounts are the server's, whichever of its databases a connection names.
	other := w.pg.Database(t)
	body := func(username, password string) string {
		return fmt.Sprintf(`{"plugin_name":"postgresql-database-plugin","connection_url":%q,"username":%q,"password":%q,"allowed_roles":"*"}`,
			w.pg.URL("{{username}}", "{{password}}", other), username, password)
	}
	w.do(lessor.Update, "db/config/other", body(own.username, w.passwords(own.name).Current.Reveal()))
	w.refused(api.Invalid, lessor.Update, own.rotate, "", `unable to rotate root credentials: connection "other" logs in to the same database with the same account, and would be locked out`)
	w.refused(api.Invalid, lessor.Update, "db/static-roles/mine", fmt.Sprintf(`{"db_name":"pg","username":%q,"rotation_period":60}`, own.username), `is the account that lessor itself uses at connection`)
	user := w.account("")
	w.static("there", "other", user)
	w.refused(api.Invalid, lessor.Update, "db/static-roles/here", fmt.Sprintf(`{"db_name":"pg","username":%q,"rotation_period":60}`, user), `at connection "other" is managed by the static role "there" already`)
	w.refused(api.Invalid, lessor.Update, "db/config/third", body(user, "x"), `is that of the static role "there"`)
	w.do(lessor.Delete, "db/config/third", "")
	w.refused(api.Invalid, lessor.Update, "db/rotate-root/none", "", `there is no connection "none"`)
}

// An account's password at another database is another: it is tried there, and set.
func TestMoves(t *testing.T) {
	far := pgtest.Start(t, pgtest.TLS())
	w := newWorld(t, pgtest.Start(t))
	w.connect("far", far, pgtest.Superuser, far.Password())
	user, there := w.account(""), &world{T: t, pg: far}
	there.sql(`CREATE ROLE "` + user + `" LOGIN PASSWORD 'there'`)
	w.static("app", "pg", user)
	w.do(lessor.Update, "db/static-roles/app", `{"db_name":"far"}`)
	w.until("the password that is shown is in force there", func() bool { return there.logsIn(user, w.password("app")) })
	w.do(lessor.Delete, "db/config/pg", "")

	// So does a connection, with all of its accounts.
	near := w.account("")
	w.connect("pg", w.pg, pgtest.Superuser, w.pg.Password())
	w.static("near", "pg", near)
	there.sql(`CREATE ROLE "` + near + `" LOGIN PASSWORD 'there'`)
	w.do(lessor.Update, "db/roles/dyn", `{"db_name":"pg","creation_statements":"`+creation+`"}`)
	lease := w.do(lessor.Read, "db/creds/dyn", "").Lease.ID
	body := fmt.Sprintf(`{"connection_url":%q,"password":%q}`, far.URL("{{username}}", "{{password}}", "template1"), far.Password())
	if a := w.do(lessor.Update, "db/config/pg", body); len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "where this connection led before") {
		t.Errorf("a connection was moved away from its leases with %q", a.Warnings)
	}
	w.until("the password that is shown is in force there", func() bool { return there.logsIn(near, w.password("near")) })
	w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, lease))
	if a := w.do(lessor.Update, "db/config/pg", `{"max_open_connections":3}`); len(a.Warnings) > 0 {
		t.Errorf("a connection that stays where it is warns %q", a.Warnings)
	}
}

// A database dies while a credential is made and a password changed, stays away for hours while leases end and are revoked, and comes back:
// what was revoked is in force at once, no account is left, and the password that is shown is in force.
func TestDatabaseDiesAtWork(t *testing.T) {
	far := pgtest.Own(t)
	w := newWorld(t, pgtest.Start(t))
	w.connect("far", far, pgtest.Superuser, far.Password())
	w.do(lessor.Update, "db/roles/dyn", `{"db_name":"far","default_ttl":"1h","max_ttl":"2h","creation_statements":["`+creation+`","SELECT 1"]}`)
	w.do(lessor.Update, "db/roles/slow", `{"db_name":"far","default_ttl":"1h","creation_statements":["`+creation+`","SELECT pg_sleep(60)"]}`)
	var ids []string
	for range 3 {
		ids = append(ids, w.do(lessor.Read, "db/creds/dyn", "").Lease.ID)
	}

	there := &world{T: t, pg: far}
	user := there.account("")
	w.do(lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"db_name":"far","username":%q,"rotation_period":"24h","rotation_statements":[%q,%q]}`, user,
		`ALTER ROLE "{{name}}" PASSWORD '{{password}}'`, `SELECT pg_sleep(CASE WHEN EXISTS (SELECT FROM pg_tables WHERE tablename = 'slow') THEN 60 ELSE 0 END)`))
	shown := w.password("app")
	there.sql("CREATE TABLE slow ()")

	making, rotating := make(chan error), make(chan error)
	go func() { _, err := w.try(lessor.Read, "db/creds/slow", ""); making <- err }()
	go func() { _, err := w.try(lessor.Update, "db/rotate-role/app", ""); rotating <- err }()
	conn := far.Connect(t, "")
	w.until("both are under way", func() bool {
		var n int
		w.must(conn.QueryRow(context.Background(), "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()").Scan(&n))
		return n == 2
	})
	w.must(far.Kill())
	if err := <-making; api.KindOf(err) != api.Upstream {
		t.Errorf("a credential whose database died: %v", err)
	}
	if err := <-rotating; api.KindOf(err) != api.Upstream {
		t.Errorf("a rotation whose database died: %v", err)
	}
	if w.password("app") != shown {
		t.Error("readers are shown a password that was never confirmed")
	}
	w.refused(api.Upstream, lessor.Read, "db/creds/dyn", "", "the database cannot be reached")
	w.refused(api.Upstream, lessor.Update, "sys/leases/renew", fmt.Sprintf(`{"lease_id":%q}`, ids[0]), "the database cannot be reached")
	w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q,"sync":false}`, ids[1]))
	w.refused(api.Invalid, lessor.Update, "sys/leases/renew", fmt.Sprintf(`{"lease_id":%q}`, ids[1]), "lease")
	w.crash()
	for range 6 { // the rest ends meanwhile
		w.clock.advance(time.Hour)
		time.Sleep(50 * time.Millisecond)
	}
	w.must(far.Up())
	there.sql("DROP TABLE slow")
	conn = far.Connect(t, "")
	w.until("the password is changed", func() bool { w.clock.advance(time.Minute); return w.state("static/app").Version > 1 })
	if now := w.password("app"); now == shown || !there.logsIn(user, now) || there.logsIn(user, shown) {
		t.Error("the password that is shown is not the only one in force")
	}
	w.until("no account is left", func() bool {
		w.clock.advance(time.Minute)
		var n int
		w.must(conn.QueryRow(context.Background(), "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'v-%'").Scan(&n))
		return n == 0
	})
	w.until("no lease is left", func() bool {
		w.clock.advance(time.Minute)
		_, err := w.try(lessor.List, "sys/leases/lookup/db/creds/", "")
		return api.KindOf(err) == api.NotFound
	})
	w.do(lessor.Read, "db/creds/dyn", "")
}
