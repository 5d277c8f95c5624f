package database_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// reads has an instance read a static role's password, and returns its lease. One that renews is shown it.
func (w *world) reads(instance, role string) string {
	w.Helper()
	op := w.op(lessor.Read, "db/static-creds/"+role, "")
	op.Instance, op.Renewable = instance, true
	a, err := w.core.Handle(context.Background(), op)
	w.must(err)
	return a.Lease.ID
}

// demands are the audit records of rotations of a role that were demanded.
func (w *world) demands(role string) (all []audit.At) {
	w.Helper()
	for _, r := range w.records("db/static-creds/" + role) {
		if r.Operation == "demand" {
			all = append(all, r)
		}
	}
	return all
}

func (w *world) managed(name, period string) string {
	w.Helper()
	username := w.account("")
	w.do(lessor.Update, "db/static-roles/"+name, fmt.Sprintf(`{"db_name":"pg","username":%q,"rotation_period":%q}`, username, period))
	return username
}

// Whoever should not know the password any more has it rotated: once, however many they are, with the reason on record.
func TestRevocationDemandsRotation(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	username := w.managed("app", "1000h")
	first := w.password("app")
	one := w.reads("pod-0", "app")
	revoke := w.op(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, one))
	_, err := w.core.Handle(context.Background(), revoke)
	w.must(err)
	w.until("the exposed password is rotated", func() bool { return w.state("static/app").Version == 2 })
	if second := w.password("app"); second == first || w.logsIn(username, first) || !w.logsIn(username, second) {
		t.Error("the password that was exposed is in force")
	}
	if found := w.demands("app"); len(found) != 1 || found[0].Lease != one || found[0].System != "rotation" || !strings.Contains(found[0].Cause, revoke.ID) {
		t.Errorf("on record: %+v", found)
	}
	// Of many that are thrown out at once, and of one that was moved on, it is one rotation.
	for i := range 20 {
		w.reads(fmt.Sprint("pod-", i), "app")
	}
	w.do(lessor.Update, "sys/leases/revoke-prefix/db/static-creds/app", "")
	w.until("the exposed password is rotated", func() bool { return w.state("static/app").Version == 3 })
	w.until("all demands are met", func() bool { return w.unmet() == 0 })
	if s := w.state("static/app"); s.Version != 3 || s.Pending != 0 || len(w.demands("app")) != 2 {
		t.Errorf("%d demands, and %+v", len(w.demands("app")), s)
	}
	// A version that is not in force any more is nobody's worry.
	old := w.reads("pod-1", "app")
	w.do(lessor.Update, "db/rotate-role/app", "")
	w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, old))
	w.until("all demands are met", func() bool { return w.unmet() == 0 })
	if s := w.state("static/app"); s.Version != 4 || len(w.demands("app")) != 2 {
		t.Errorf("%d demands, and %+v", len(w.demands("app")), s)
	}
}

// Whoever moves a mount throws nobody out: nothing is exposed, nothing is rotated, and those who use a password are still known.
func TestMoveExposesNothing(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	w.managed("app", "1000h")
	w.reads("pod-0", "app")
	w.do(lessor.Update, "sys/remount", `{"from":"db","to":"moved"}`)
	var all []any
	w.until("its leases are gone", func() bool {
		all = w.do(lessor.Read, "sys/lessor/holders/moved/static-creds/app", "").Data["holders"].([]any)
		return all[0].(map[string]any)["lapsed"] != nil
	})
	if h := all[0].(map[string]any); len(all) != 1 || h["revoked"] != false || h["instance"] != "pod-0" {
		t.Errorf("holders: %v", all)
	}
	found := w.do(lessor.Read, "sys/lessor/exposures/moved/static-creds/app", "").Data["exposures"].([]any)
	if s := w.state("static/app"); len(found) != 0 || w.unmet() != 0 || s.Version != 1 || s.Pending != 0 {
		t.Errorf("exposures %v, %d demands, and %+v", found, w.unmet(), s)
	}
}

// unmet counts the demands that nobody has seen to.
func (w *world) unmet() (n int) {
	w.Helper()
	v, err := w.db.View()
	w.must(err)
	defer v.Close()
	for row, err := range v.Scan(store.LeaseIdx, "", "") {
		w.must(err)
		if _, _, rest := store.SplitMountKey(row.Name); strings.HasPrefix(rest, "d/") {
			n++
		}
	}
	return n
}

// What was exposed of one secret whose row is damaged keeps no other from being rotated, and stays demanded until it is mended.
func TestDemandOnDamagedAccount(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	var found store.Row
	for _, role := range []string{"a", "b"} {
		w.managed(role, "1000h")
		w.reads("pod-0", role)
	}
	v, err := w.db.View()
	w.must(err)
	for row, err := range v.Scan(store.Engine, "", "") {
		w.must(err)
		if _, _, name := store.SplitMountKey(row.Name); name == "turn/static/a" {
			found = row
		}
	}
	v.Close()
	namespace, mount, _ := store.SplitMountKey(found.Name)
	row := store.Put{Key: store.Key{Table: store.LeaseIdx, Name: store.MountKey(namespace, mount, "d/a")}} // which is no demand
	_, err = w.db.Commit(t.Context(), store.Txn{Puts: []store.Put{{Key: found.Key, Value: []byte("damaged")}, row}})
	w.must(err)
	w.do(lessor.Update, "sys/leases/revoke-prefix/db/static-creds", "")
	w.until("the other is rotated", func() bool { return w.state("static/b").Version == 2 })
	w.until("its demand is met", func() bool { return w.unmet() == 2 })
	if a := w.do(lessor.Read, "sys/lessor/rotation/status", ""); len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], `"static/a" at "db/"`) {
		t.Errorf("whoever looks how rotations stand is told %q", a.Warnings)
	}
	_, err = w.db.Commit(t.Context(), store.Txn{Puts: []store.Put{{Key: found.Key, Value: found.Value}}, Deletes: []store.Key{row.Key}})
	w.must(err)
	w.until("once it is mended it is rotated", func() bool { return w.state("static/a").Version == 2 && w.unmet() == 0 })
}

// A crash between a revocation and what it demands loses nothing.
func TestDemandOutlivesCrash(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	w.managed("app", "1000h")
	id := w.reads("pod-0", "app")
	_, err := w.db.Commit(context.Background(), store.Txn{Puts: []store.Put{{Key: store.Fenced, Value: []byte("x")}}})
	w.must(err)
	w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q,"sync":false}`, id))
	w.crash()
	if n, s := w.unmet(), w.state("static/app"); n != 1 || s.Version != 1 || s.Pending != 0 {
		t.Fatalf("%d demands, and %+v, of a copy that touches nothing", n, s)
	}
	w.do(lessor.Delete, "sys/lessor/fence", "")
	w.until("the exposed password is rotated", func() bool { return w.state("static/app").Version == 2 })
	w.until("the demand is met", func() bool { return w.unmet() == 0 })
}

// A program that reads once, at boot, is known for as long as it may run.
func TestBootReaderIsNotForgotten(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	w.managed("app", "10000h")
	w.reads("boot", "app")
	w.clock.advance(30 * 24 * time.Hour)
	holders := func() []any {
		return w.do(lessor.Read, "sys/lessor/holders/db/static-creds/app", "").Data["holders"].([]any)
	}
	w.until("its hold has lapsed", func() bool {
		all := holders()
		return len(all) == 1 && all[0].(map[string]any)["lapsed"] != nil
	})
	w.reads("boot", "app")
	if h := holders()[0].(map[string]any); h["lapsed"] != nil || h["instance"] != "boot" || h["oldest"] != uint64(1) {
		t.Errorf("after it was started anew: %v", h)
	}
	// Of a role that is gone nothing will ever be proven dead.
	w.clock.advance(200 * 24 * time.Hour)
	w.until("its hold has lapsed", func() bool { return holders()[0].(map[string]any)["lapsed"] != nil })
	w.crash()
	w.do(lessor.Read, "db/static-roles/app", "")
	if len(holders()) != 1 {
		t.Error("forgotten while the role is there")
	}
	w.do(lessor.Delete, "db/static-roles/app", "")
	w.crash()
	w.until("it is forgotten", func() bool { return len(holders()) == 0 })
}

// What was checked out does not work any more once it is given back, or its lease is over: of one account as soon as nobody has it any more, of two at once, when who has
// it still moves.
func TestCheckedOut(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	username := w.account("")
	w.do(lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"db_name":"pg","username":%q,"rotation_period":"10000h","rotation_on_lease_end":true}`, username))
	if on := w.do(lessor.Read, "db/static-roles/app", "").Data["rotation_on_lease_end"]; on != true {
		t.Errorf("the role says %v", on)
	}
	if on := w.do(lessor.Read, "sys/lessor/rotation/plan/db/static-creds/app", "").Data["rotation_on_lease_end"]; on != true {
		t.Errorf("the plan says %v", on)
	}
	for option, want := range map[string]int{"off": 1, "quiet": 0} { // where there are no leases none ends
		w.do(lessor.Update, "sys/mounts/db/tune", `{"options":{"lease":"`+option+`"}}`)
		for _, verb := range []lessor.Verb{lessor.Update, lessor.Read} {
			if got := strings.Count(strings.Join(w.do(verb, "db/static-roles/app", "").Warnings, "\n"), "rotation_on_lease_end does nothing"); got != want {
				t.Errorf("with lease=%s, %d warnings of %v", option, got, verb)
			}
		}
	}
	w.do(lessor.Update, "sys/mounts/db/tune", `{"options":{"lease":"shown"}}`)
	release := func(instance, id string) {
		t.Helper()
		op := w.op(lessor.Update, "sys/lessor/leases/release", fmt.Sprintf(`{"lease_id":%q}`, id))
		op.Instance = instance
		_, err := w.core.Handle(context.Background(), op)
		w.must(err)
	}
	rotated := func(version uint64) {
		t.Helper()
		w.clock.advance(rotation.ShortestPeriod)
		w.until("it is rotated", func() bool { return w.state("static/app").Version == version && w.unmet() == 0 })
	}
	one, two := w.reads("one", "app"), w.reads("two", "app")
	first := w.passwords("static/app").Current.Reveal()
	release("one", one)
	w.until("that is seen to", func() bool { return w.unmet() == 0 })
	if s := w.state("static/app"); s.Version != 1 || s.Pending != 0 || !s.Due.After(w.clock.Now()) {
		t.Fatalf("rotated under who has it still: %+v", s)
	}
	release("two", two)
	rotated(2)
	if w.logsIn(username, first) {
		t.Error("what was given back works still")
	}
	if found := w.demands("app"); len(found) != 1 || found[0].Lease != two || found[0].Cause != "released" {
		t.Errorf("on record: %+v", found)
	}
	if r := w.records("db/static-roles/app"); len(r) == 0 || r[0].Cause != "a lease on it ended" {
		t.Errorf("on record: %+v", r)
	}
	w.reads("three", "app")
	w.clock.advance(30 * time.Hour)
	rotated(3)
	if found := w.demands("app"); len(found) != 2 || found[0].Cause != "expired" {
		t.Errorf("on record: %+v", found)
	}
	// Who takes it and gives it back in a loop has it rotated no oftener than a schedule may.
	for range 20 {
		release("loop", w.reads("loop", "app"))
		w.until("that is seen to", func() bool { return w.unmet() == 0 })
	}
	if s := w.state("static/app"); s.Version != 3 || !s.Due.Equal(s.Rotated.Add(rotation.ShortestPeriod)) {
		t.Errorf("after twenty times in a row: %+v", s)
	}
	rotated(4)
	// Not any more for whoever reads after it was switched off.
	w.do(lessor.Update, "db/static-roles/app", `{"rotation_on_lease_end":false}`)
	release("four", w.reads("four", "app"))
	w.until("that is seen to", func() bool { return w.unmet() == 0 })
	if s := w.state("static/app"); s.Version != 4 {
		t.Errorf("rotated by nobody's wish: %+v", s)
	}
	// Who has read it before it was switched on again keeps what others give back in force, and is locked out by nobody; with its end the password goes.
	boot := w.reads("boot", "app")
	w.do(lessor.Update, "db/static-roles/app", `{"rotation_on_lease_end":true}`)
	for range 3 {
		release("five", w.reads("five", "app"))
	}
	w.until("one demand is left", func() bool { return w.unmet() == 1 })
	release("boot", boot)
	rotated(5)
	// And one who has not, but reads again, demands it by its own end.
	w.do(lessor.Update, "db/static-roles/app", `{"rotation_on_lease_end":false}`)
	w.reads("boot", "app")
	w.do(lessor.Update, "db/static-roles/app", `{"rotation_on_lease_end":true}`)
	again := w.reads("boot", "app")
	release("five", w.reads("five", "app"))
	w.until("that is seen to", func() bool { return w.unmet() == 0 })
	release("boot", again)
	rotated(6)
	// What lies in a wrapping that nobody opens is nobody's, and keeps what was given back in force no longer than the wrapping lasts.
	op := w.op(lessor.Read, "db/static-creds/app", "")
	op.WrapTTL = time.Minute
	_, err := w.core.Handle(context.Background(), op)
	w.must(err)
	release("six", w.reads("six", "app"))
	w.managed("other", "10000h")
	w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, w.reads("six", "other")))
	w.until("demands were looked at", func() bool { return w.state("static/other").Version == 2 })
	if s := w.state("static/app"); s.Version != 6 || s.Cause != "" {
		t.Errorf("rotated under who may open it: %+v", s)
	}
	w.clock.advance(30 * time.Hour)
	rotated(7)
	w.do(lessor.Delete, "db/static-roles/app", "")

	p := w.pair(`,"rotation_on_lease_end":true,"rotation_quiet":"100h"`)
	a, b := p.read("one"), p.read("two")
	p.acknowledge("two", b)
	release("one", a.lease)
	w.clock.advance(rotation.ShortestPeriod)
	p.until("it is rotated", func() bool { return p.state("static/app").Version == 2 })
	if !p.lets(b) || p.phase() != rotation.Waiting {
		t.Fatal("who has it still is locked out")
	}
	for range 20 {
		release("loop", p.read("loop").lease)
	}
	p.until("of what may be in force again one demand is left, and one of what is", func() bool { return p.unmet() == 2 })
	p.acknowledge("two", p.read("two"))
	p.until("what others gave back meanwhile is succeeded, too", func() bool { p.clock.advance(time.Second); return p.state("static/app").Version == 3 })
	p.acknowledge("two", p.read("two"))
	p.until("the rotation is done", func() bool { p.clock.advance(time.Second); return p.phase() == rotation.Idle && p.unmet() == 0 })
	if p.lets(a) {
		t.Error("what was given back works still")
	}
}

// Who gives up a rotation that somebody only asked for does not give up what was demanded while its password was on its way.
func TestDemandOutlivesWhatWasAskedFor(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	w.managed("app", "1000h")
	w.managed("other", "1000h")
	change := func(f func(a *rotation.Account)) {
		t.Helper()
		_, err := w.db.Update(context.Background(), func(v store.View, txn *store.Txn) error {
			for row, err := range v.Scan(store.Engine, "", "") {
				w.must(err)
				if namespace, mount, name := store.SplitMountKey(row.Name); name == "turn/static/app" {
					a, row, err := rotation.Load(v, namespace, mount, "static/app")
					w.must(err)
					f(a)
					return rotation.Save(txn, row, a)
				}
			}
			return nil
		})
		w.must(err)
	}
	revoke := func(id string) { w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, id)) }
	id := w.reads("pod-0", "app")
	change(func(a *rotation.Account) { // it was asked for, and its target cannot be reached
		a.Demand(rotation.Asked, w.clock.Now())
		a.Pending, a.Retry = 2, w.clock.Now().Add(time.Hour)
	})
	revoke(id)
	revoke(w.reads("pod-0", "other"))
	w.until("the demand on the other is met", func() bool { return w.state("static/other").Version == 2 })
	if n := w.unmet(); n != 1 {
		t.Fatalf("%d demands while it is not certain that the password comes into force", n)
	}
	change(func(a *rotation.Account) { a.Pending, a.Cause, a.Retry = 0, "", time.Time{} }) // as it is given up
	w.until("the exposed password is rotated", func() bool { return w.state("static/app").Version == 2 })
	w.until("the demand is met", func() bool { return w.unmet() == 0 })
}

// What is demanded while a rotation is under way comes when that is done, though the role has another schedule by then.
func TestDemandOutlivesItsSchedule(t *testing.T) {
	p := newWorld(t, pgtest.Start(t)).pair(`,"rotation_quiet":"100h"`)
	p.read("one")
	p.do(lessor.Update, "db/rotate-role/app", "")
	p.until("who has the old one is waited for", func() bool { return p.phase() == rotation.Waiting })
	two := p.read("two")
	p.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, two.lease))
	p.until("it is demanded", func() bool { return p.state("static/app").Cause != "" })
	p.do(lessor.Update, "db/static-roles/app", `{"rotation_period":"20000h"}`)
	one := p.read("one")
	p.acknowledge("one", one)
	p.until("the exposed password is not shown any more", func() bool { return p.state("static/app").Version == 3 })
}

// Who gives up the rotation that a demand brought about, once its password is in force, has the exposed one in force again: it is succeeded all the same.
func TestDemandOutlivesItsRotation(t *testing.T) {
	p := newWorld(t, pgtest.Start(t)).pair(`,"rotation_quiet":"100h"`)
	one := p.read("one")
	leaver := p.read("leaver")
	p.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, leaver.lease))
	p.until("who has it still is waited for", func() bool { return p.phase() == rotation.Waiting })
	p.do(lessor.Update, "sys/lessor/rotation/abort/db/static-creds/app", "")
	p.until("it is given up", func() bool { return p.state("static/app").Version == 3 })
	p.until("what is exposed is succeeded", func() bool { p.clock.advance(time.Second); return p.state("static/app").Version == 4 })
	p.acknowledge("one", p.read("one"))
	p.until("it is dead", func() bool { p.clock.advance(time.Second); return p.phase() == rotation.Idle && !p.lets(one) })
	p.until("the demand is met", func() bool { return p.unmet() == 0 })
}

// Whoever leaves for good (the entity is deleted, an operator says so) does not know the password in force for long, though no lease of his was named.
func TestHolderLeaves(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	username := w.managed("app", "10000h")
	entity := w.do(lessor.Update, "identity/entity", `{"name":"leaver"}`).Data["id"].(string)
	w.do(lessor.Update, "identity/entity-alias", fmt.Sprintf(`{"name":"leaver","canonical_id":%q,"mount_accessor":"auth_token_builtin"}`, entity))
	w.do(lessor.Update, "sys/policies/acl/reader", `{"policy":"path \"db/*\" { capabilities = [\"read\"] }"}`)
	w.do(lessor.Update, "auth/token/roles/r", `{"allowed_entity_aliases":["leaver"],"allowed_policies":["reader"],"orphan":true}`)
	leaver := func() lessor.Secret {
		t.Helper()
		return w.do(lessor.Update, "auth/token/create/r", `{"entity_alias":"leaver"}`).Auth.Token
	}
	leaves := func(version uint64, leave func()) {
		t.Helper()
		before := w.passwords("static/app").Current.Reveal()
		op := w.op(lessor.Read, "db/static-creds/app", "")
		op.Token, op.Instance, op.Renewable = leaver(), "laptop", true
		_, err := w.core.Handle(context.Background(), op)
		w.must(err)
		leave()
		w.until("the password is rotated", func() bool { return w.state("static/app").Version == version && w.unmet() == 0 })
		if w.logsIn(username, before) {
			t.Error("who has left knows the password in force")
		}
		if r := w.records("db/static-roles/app"); len(r) == 0 || r[0].Cause != "a holder's lease was revoked" {
			t.Errorf("on record: %+v", r)
		}
	}
	leaves(2, func() { w.do(lessor.Update, "sys/lessor/revoke", fmt.Sprintf(`{"by":"holder","value":%q}`, entity)) })
	leaves(3, func() { w.do(lessor.Delete, "identity/entity/id/"+entity, "") })
}
