package ldap_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/ldaptest"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// set makes a set "ops" of n accounts.
func (w *world) set(n int, more string) (names, dns []string) {
	w.Helper()
	list := ""
	for range n {
		name, dn := w.person("first")
		names, dns, list = append(names, name), append(dns, dn), list+","+name
	}
	w.do(lessor.Update, "ldap/library/ops", fmt.Sprintf(`{"service_account_names":%q%s}`, list[1:], more))
	return names, dns
}

// out is what a check-out gives.
func (w *world) out(token lessor.Secret) (id, account, password string) {
	w.Helper()
	a, err := w.core.Handle(context.Background(), w.op(token, lessor.Update, "ldap/library/ops/check-out", ""))
	w.must(err)
	return a.Lease.ID, a.Data["service_account_name"].(string), a.Data["password"].(lessor.Secret).Reveal()
}

func (w *world) available(account string) bool {
	w.Helper()
	return w.do(lessor.Read, "ldap/library/ops/status", "").Data[account].(map[string]any)["available"].(bool)
}

// An account is lent to one at a time, under a password of its own, which is dead when it is given back, whichever way that happens.
func TestLibrary(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	names, dns := w.set(1, `,"ttl":"1h","max_ttl":"2h"`)
	if w.LogsIn(dns[0], "first") {
		t.Error("the password that the account had is still in force")
	}
	back := map[string]func(id string){
		"checked in": func(string) {
			if a := w.do(lessor.Update, "ldap/library/ops/check-in", ""); fmt.Sprint(a.Data["check_ins"]) != fmt.Sprint(names) {
				t.Errorf("checked in %v", a.Data)
			}
		},
		"checked in by name": func(string) {
			w.do(lessor.Update, "ldap/library/ops/check-in", fmt.Sprintf(`{"service_account_names":[%q]}`, names[0]))
		},
		"revoked":  func(id string) { w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, id)) },
		"by force": func(string) { w.do(lessor.Update, "ldap/library/manage/ops/check-in", "") },
		"expired":  func(string) { w.clock.advance(time.Hour) },
	}
	seen := map[string]bool{}
	for how, give := range back {
		id, account, password := w.out(w.root)
		if account != names[0] || !w.LogsIn(dns[0], password) || seen[password] {
			t.Fatalf("%s: the password is not in force, or was before", how)
		}
		seen[password] = true
		if w.available(account) {
			t.Errorf("%s: it is said to be there", how)
		}
		w.refused(api.Invalid, lessor.Update, "ldap/library/ops/check-out", "", "No service accounts available for check-out.")
		w.refused(api.Invalid, lessor.Delete, "ldap/library/ops", "", "can't be deleted because it is currently checked out")
		give(id)
		w.until("it is back", func() bool { return w.available(account) })
		if w.LogsIn(dns[0], password) {
			t.Errorf("%s: the borrower's password is still in force", how)
		}
	}
	if a := w.do(lessor.Update, "ldap/library/ops/check-in", ""); fmt.Sprint(a.Data["check_ins"]) != "[]" {
		t.Errorf("nothing is lent, and checked in is %v", a.Data)
	}
	a := w.do(lessor.Update, "ldap/library/ops/check-out", `{"ttl":"10m"}`)
	if a.Lease.Duration != 10*time.Minute || !a.Lease.Renewable {
		t.Errorf("lease %+v", a.Lease)
	}
	w.do(lessor.Update, "ldap/library/ops/check-in", "")
	w.do(lessor.Delete, "ldap/library/ops", "")
	w.refused(api.NotFound, lessor.Read, "ldap/library/ops", "", "")
	w.do(lessor.Delete, "ldap/config", "")
}

// Who borrowed an account gives it back, and nobody else, unless the set says otherwise.
func TestOnlyTheBorrowerGivesBack(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	names, _ := w.set(2, "")
	w.do(lessor.Update, "sys/policies/acl/ops", `{"policy":"path \"ldap/library/ops/*\" { capabilities = [\"update\"] }"}`)
	token := func() lessor.Secret {
		return w.do(lessor.Update, "auth/token/create", `{"policies":["ops"],"no_parent":true}`).Auth.Token
	}
	ann, bob := token(), token()
	in := func(who lessor.Secret, body string) (string, error) {
		a, err := w.core.Handle(context.Background(), w.op(who, lessor.Update, "ldap/library/ops/check-in", body))
		if err != nil {
			return "", err
		}
		return fmt.Sprint(a.Data["check_ins"]), nil
	}
	_, hers, _ := w.out(ann)
	_, his, _ := w.out(bob)
	if hers == his {
		t.Fatal("one account is lent twice")
	}
	if _, err := in(bob, fmt.Sprintf(`{"service_account_names":%q}`, hers)); api.KindOf(err) != api.Invalid {
		t.Errorf("bob gives back what ann has: %v", err)
	}
	if got, err := in(bob, ""); err != nil || got != fmt.Sprint([]string{his}) {
		t.Errorf("bob gives back %s, %v", got, err)
	}
	if _, err := in(bob, `{"service_account_names":"stranger"}`); api.KindOf(err) != api.Invalid {
		t.Errorf("what is not in the set is checked in: %v", err)
	}
	w.do(lessor.Update, "ldap/library/ops", `{"disable_check_in_enforcement":true}`)
	if got, err := in(bob, ""); err != nil || got != fmt.Sprint([]string{hers}) {
		t.Errorf("bob gives back %s, %v", got, err)
	}
	w.out(ann)
	w.out(bob)
	if _, err := in(ann, ""); api.KindOf(err) != api.Invalid {
		t.Errorf("of two it is not said which: %v", err)
	}
	if _, err := w.core.Handle(context.Background(), w.op(ann, lessor.Update, "ldap/library/manage/ops/check-in", "")); api.KindOf(err) != api.Denied {
		t.Errorf("who may not manage does: %v", err)
	}
	w.do(lessor.Update, "ldap/library/manage/ops/check-in", fmt.Sprintf(`{"service_account_names":%q}`, names[0]+","+names[1]))
}

// Of many who come at once each gets an account of his own, or none.
func TestManyBorrowers(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	names, dns := w.set(3, "")
	var mu sync.Mutex
	var all sync.WaitGroup
	got := map[string]string{}
	for range 8 {
		all.Go(func() {
			a, err := w.try(lessor.Update, "ldap/library/ops/check-out", "")
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			account := a.Data["service_account_name"].(string)
			if got[account] != "" {
				t.Errorf("%s is lent twice", account)
			}
			got[account] = a.Data["password"].(lessor.Secret).Reveal()
		})
	}
	all.Wait()
	if len(got) != 3 {
		t.Errorf("%d of 3 accounts were lent", len(got))
	}
	for account, password := range got {
		if !w.LogsIn(dns[slices.Index(names, account)], password) {
			t.Errorf("%s: the password is not in force", account)
		}
	}
}

// A set takes only accounts that are there, that nobody else manages, and that are not lessor's own; what it cannot take leaves all as it was.
func TestSets(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	names, dns := w.set(2, "")
	_, free := w.person("first")
	static, _ := w.person("first")
	w.do(lessor.Update, "ldap/static-role/app", fmt.Sprintf(`{"username":%q,"rotation_period":"1h"}`, static))
	for body, text := range map[string]string{
		`{}`: `"service_account_names" must be provided`,
		fmt.Sprintf(`{"service_account_names":%q}`, names[0]): "is already managed by the secrets engine: by library/ops",
		fmt.Sprintf(`{"service_account_names":%q}`, static):   "is already managed by the secrets engine: by static/app",
		`{"service_account_names":"lessor"}`:                  "is the account that lessor itself logs in with",
		`{"service_account_names":"x,X"}`:                     "there twice",
		`{"service_account_names":"x","ttl":"48h"}`:           "max_ttl (86400 seconds) may not be less than ttl (172800 seconds)",
	} {
		w.refused(api.Invalid, lessor.Update, "ldap/library/other", body, text)
	}
	w.refused(api.Upstream, lessor.Update, "ldap/library/other", `{"service_account_names":"nobody"}`, "the directory shows no account whose cn is nobody")
	w.refused(api.Invalid, lessor.Update, "ldap/library/ops/status", `{}`, "")
	w.refused(api.Invalid, lessor.Update, "ldap/library/manage/x", `{"service_account_names":"x"}`, "cannot be the name of a set")
	w.refused(api.Invalid, lessor.Update, "ldap/static-role/other", fmt.Sprintf(`{"username":%q,"rotation_period":"1h"}`, names[0]), "is already managed by the secrets engine: by library/ops")
	w.refused(api.NotFound, lessor.Read, "ldap/library/other", "", "")
	if !w.LogsIn(free, "first") {
		t.Error("an account of no set was touched")
	}
	_, lent, password := w.out(w.root)
	rest := names[1-slices.Index(names, lent)]
	w.refused(api.Invalid, lessor.Update, "ldap/library/ops", fmt.Sprintf(`{"service_account_names":%q}`, rest), "can't be deleted because it is currently checked out")
	if !w.LogsIn(dns[slices.Index(names, lent)], password) {
		t.Error("the borrower's password is not in force any more")
	}
	w.do(lessor.Update, "ldap/library/ops", fmt.Sprintf(`{"service_account_names":%q}`, lent))
	if a := w.do(lessor.Read, "ldap/library/ops", ""); fmt.Sprint(a.Data["service_account_names"]) != fmt.Sprint([]string{lent}) {
		t.Errorf("read %v", a.Data)
	}
	if a := w.do(lessor.List, "ldap/library", ""); fmt.Sprint(a.Data["keys"]) != "[ops]" {
		t.Errorf("listed %v", a.Data)
	}
}

// A lessor that dies at any moment of lending leaves an account that nobody can use, and that is there again by itself.
func TestLendingIsStruck(t *testing.T) {
	s := ldaptest.Start(t)
	for _, done := range []bool{false, true} {
		for _, at := range []string{"first commit", "set", "second commit"} {
			t.Run(fmt.Sprint(at, " done ", done), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, s)
				names, dns := w.set(1, "")
				var given string
				w.eye.Watch(func(call string, password lessor.Secret, do func() error) error {
					if call != "set" || given != "" {
						return do()
					}
					given = password.Reveal()
					if w.leases() != 1 {
						t.Error("the directory is touched without a lease")
					}
					if at != "set" {
						return do()
					}
					var err error
					if done {
						err = do()
					}
					w.faulty.Set(storetest.Faults{At: 1})
					return err
				})
				switch at {
				case "first commit":
					w.faulty.Set(storetest.Faults{At: 1, Done: done})
				case "second commit":
					w.faulty.Set(storetest.Faults{At: 2, Done: done})
				}
				_, _ = w.try(lessor.Update, "ldap/library/ops/check-out", "")
				w.eye.Watch(nil)
				if w.db.Fault() == nil {
					t.Fatal("nothing was struck")
				}
				w.crash()
				if at == "second commit" && done {
					w.do(lessor.Update, "ldap/library/manage/ops/check-in", "")
				}
				w.until("it is there again", func() bool { w.clock.advance(10 * time.Second); return w.available(names[0]) })
				if given != "" && w.LogsIn(dns[0], given) {
					t.Error("a password of an ended lease is in force")
				}
				if _, _, password := w.out(w.root); !w.LogsIn(dns[0], password) {
					t.Error("it cannot be lent any more")
				}
			})
		}
	}
}

// While the directory is down an account stays lent, and its borrower's password ends once it is back.
func TestGivingBackWaitsForTheDirectory(t *testing.T) {
	s := ldaptest.Own(t)
	w := newWorld(t, s)
	names, dns := w.set(1, "")
	id, _, password := w.out(w.root)
	w.must(s.Kill())
	w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q,"sync":false}`, id))
	if w.available(names[0]) {
		t.Error("it is said to be there")
	}
	w.crash()
	w.must(s.Up())
	if !w.LogsIn(dns[0], password) {
		t.Fatal("the password is not in force: this shows nothing")
	}
	w.until("it is back", func() bool { w.clock.advance(10 * time.Second); return w.available(names[0]) })
	if w.LogsIn(dns[0], password) {
		t.Error("the borrower's password is still in force")
	}
	// One that the directory does not show is not back: it may be there.
	_, _, password = w.out(w.root)
	w.do(lessor.Update, "ldap/config", fmt.Sprintf(`{"userdn":%q}`, "ou=elsewhere,"+ldaptest.Suffix))
	if _, err := w.try(lessor.Update, "ldap/library/ops/check-in", ""); err == nil {
		t.Error("checked in out of sight")
	}
	if w.available(names[0]) || !w.LogsIn(dns[0], password) {
		t.Error("what lessor cannot see counts as back")
	}
	w.do(lessor.Update, "ldap/config", fmt.Sprintf(`{"userdn":%q}`, w.Branch.DN))
	w.until("it is back", func() bool { w.clock.advance(10 * time.Second); return w.available(names[0]) })
}

// What a store that was put back to an earlier state does not know is taken back: accounts that it made, and those that it lent; nobody who borrows one
// meanwhile loses it.
func TestForgottenIsTakenBack(t *testing.T) {
	s := ldaptest.Own(t)
	w := newWorld(t, s)
	known, knownDN := w.set(1, "")
	_, _, kept := w.out(w.root)
	other, dn := w.person("first")
	w.do(lessor.Update, "ldap/library/other", fmt.Sprintf(`{"service_account_names":%q}`, other))
	w.do(lessor.Update, "ldap/role/app", fmt.Sprintf(`{"creation_ldif":%q}`,
		"dn: uid={{.Username}},"+w.Branch.DN+"\nobjectClass: account\nobjectClass: simpleSecurityObject\nuid: {{.Username}}\nuserPassword: {{.Password}}"))
	made := w.do(lessor.Read, "ldap/creds/app", "").Data["distinguished_names"].([]string)[0]
	password := w.do(lessor.Update, "ldap/library/other/check-out", "").Data["password"].(lessor.Secret).Reveal()
	w.must(s.Kill())
	for _, prefix := range []string{"creds", "library/other"} { // the store forgets them, and nothing else happens
		w.do(lessor.Update, "sys/leases/revoke-force/ldap/"+prefix, "")
	}
	w.until("they are forgotten", func() bool { return w.leases() == 1 })
	w.must(s.Up())
	if w.Entry(made) == nil || !w.LogsIn(dn, password) {
		t.Fatal("they are gone already: this shows nothing")
	}
	_, err := w.db.Update(t.Context(), func(_ store.View, txn *store.Txn) error { lease.SeekStrays(txn, w.db.Now()); return nil })
	w.must(err)
	w.until("nobody has what nobody knows of", func() bool {
		w.clock.advance(time.Second)
		return w.Entry(made) == nil && !w.LogsIn(dn, password) && w.leases() == 1
	})
	if _, err := w.try(lessor.Update, "ldap/library/other/check-out", ""); err != nil {
		t.Errorf("what was taken back cannot be lent: %v", err)
	}
	if !w.LogsIn(knownDN[0], kept) || w.available(known[0]) {
		t.Error("a borrower who is known lost his account")
	}
}
