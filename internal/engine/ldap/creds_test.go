package ldap_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/engine/ldap"
	"github.com/lessor-dev/lessor/internal/engine/ldap/directory"
	"github.com/lessor-dev/lessor/internal/ldaptest"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/password"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/storetest"

	"crypto/rand"
)

func TestConformance(t *testing.T) {
	enginetest.Conform(t, ldap.New(directory.Open), nil)
}

// passwords is the part of engine.System that the engine uses.
type passwords struct{ engine.System }

func (passwords) Password(string) (lessor.Secret, error) {
	return password.Default.Generate(rand.Reader)
}

// bench is an engine over a branch of a real directory, its methods called as the core does.
type bench struct {
	*enginetest.Bench
	*ldap.Engine
	*ldaptest.Branch
	t *testing.T
	n atomic.Int64
}

// person is LDIF that makes a person below the branch, with a password, and puts it into a group.
func person(branch string) string {
	return fmt.Sprintf(`# who
dn: cn={{.Username}},%[1]s
changetype: add
objectClass: inetOrgPerson
cn: {{.Username}}
sn: {{.DisplayName}} for
  {{.RoleName}}
userPassword: {{.Password}}

dn: cn=readers,%[1]s
changetype: modify
add: member
member: cn={{.Username}},%[1]s
-
`, branch)
}

func newBench(t *testing.T) *bench {
	e := ldap.New(directory.Open)
	b := &bench{Bench: enginetest.New(t, e, nil), Engine: e, Branch: ldaptest.Start(t).Branch(t), t: t}
	b.System = passwords{}
	b.Principal.DisplayName = "approle-billing"
	t.Cleanup(func() { e.Close(b.Mount.UUID) })
	b.Branch.Add("cn=readers,"+b.DN, "objectClass", "groupOfNames", "cn", "readers", "member", b.Manager)
	b.Do(lessor.Update, "config", fmt.Sprintf(`{"url":%q,"binddn":%q,"bindpass":%q,"userdn":%q}`, b.URL(), b.Manager, ldaptest.ManagerPassword, b.DN))
	b.role("")
	return b
}

// role writes the role "app", with more members.
func (b *bench) role(more string) {
	b.t.Helper()
	b.Do(lessor.Update, "role/app", fmt.Sprintf(`{"creation_ldif":%q,"default_ttl":3600,"max_ttl":7200%s}`, person(b.DN), more))
}

// access is what the core gives an Issuer.
func (b *bench) access() engine.Access {
	b.t.Helper()
	v, err := b.DB.View()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(v.Close)
	op := &lessor.Op{Verb: lessor.Delete, Namespace: lessor.RootNamespace, Path: b.Mount.Path}
	d := policy.Decide(nil, &lessor.Principal{System: "reaper"}, op, policy.Facts{Mount: b.Mount.UUID})
	if d.Denied != nil {
		b.t.Fatal(d.Denied)
	}
	return engine.Access{Mount: b.Mount, View: v, Grant: d.Grant, Opener: b.Keys, Now: b.Clock.Now()}
}

// plan asks for a credential, as the core does, up to the pending lease.
func (b *bench) plan() (l *lease.Lease, answer map[string]any, pw lessor.Secret) {
	b.t.Helper()
	r := b.Do(lessor.Read, "creds/app", "")
	if r.Issue == nil || r.Data != nil || len(r.Txn.Checks) != 2 {
		b.t.Fatalf("got %+v", r)
	}
	l = &lease.Lease{
		ID: fmt.Sprintf("%s%s/%d", b.Mount.Path, r.Issue.Path, b.n.Add(1)), Mount: b.Mount.UUID, Namespace: lessor.RootNamespace,
		Kind: lease.Dynamic, Issued: b.Clock.Now(), Expires: b.Clock.Now().Add(r.Issue.TTL), TTL: r.Issue.TTL, Target: r.Issue.Target,
	}
	var err error
	if l.Intent, answer, pw, err = r.Issue.Plan(l); err != nil {
		b.t.Fatal(err)
	}
	return l, answer, pw
}

func (b *bench) apply(l *lease.Lease, pw lessor.Secret) error {
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	defer cancel()
	return b.Apply(ctx, b.access(), l, pw)
}

func (b *bench) revert(l *lease.Lease) error {
	return b.Revert(b.t.Context(), b.access(), []*lease.Lease{l})[0]
}

// members are those of the group.
func (b *bench) members() []string {
	b.t.Helper()
	return b.Entry("cn=readers," + b.DN).GetAttributeValues("member")
}

func (b *bench) gone(dn, what string) {
	b.t.Helper()
	if b.Entry(dn) != nil {
		b.t.Errorf("%s: the entry is there", what)
	}
	if slices.Contains(b.members(), dn) {
		b.t.Errorf("%s: the account is still in the group", what)
	}
}

// An account is made once, however often it is asked for, and goes once; its password is nowhere in clear.
func TestLife(t *testing.T) {
	b := newBench(t)
	l, answer, pw := b.plan()
	username := answer["username"].(string)
	dn := "cn=" + username + "," + b.DN
	if answer["password"] != pw || !strings.HasPrefix(username, "v_approle_app_") || fmt.Sprint(answer["distinguished_names"]) != fmt.Sprint([]string{dn, "cn=readers," + b.DN}) {
		t.Errorf("answer %v", answer)
	}
	if strings.Contains(string(l.Intent), pw.Reveal()) {
		t.Error("the intent says too much")
	}
	for range 2 {
		if err := b.apply(l, pw); err != nil {
			t.Fatal(err)
		}
	}
	if !b.LogsIn(dn, pw.Reveal()) {
		t.Fatal("the account does not log in")
	}
	e := b.Entry(dn)
	if stored := e.GetAttributeValue("userPassword"); !strings.HasPrefix(stored, "{SSHA}") {
		t.Error("the directory keeps the password in clear")
	}
	if sn, mark := e.GetAttributeValue("sn"), e.GetAttributeValue("description"); sn != "approle-billing for app" && sn != "approle-billing for  app" || !strings.HasPrefix(mark, "lessor lease="+b.Mark(l.ID)) {
		t.Errorf("sn %q, description %q", sn, mark)
	}
	if n := len(b.members()); n != 2 {
		t.Errorf("the group has %d members", n)
	}
	if err := b.Renew(t.Context(), b.access(), l, b.Clock.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
	// The role may go; a lease takes what undoes it with it.
	b.Do(lessor.Delete, "role/app", "")
	damaged := &lease.Lease{ID: "x", Intent: []byte("nonsense")}
	for range 2 {
		errs := b.Revert(t.Context(), b.access(), []*lease.Lease{l, damaged})
		if errs[0] != nil || errs[1] == nil || api.KindOf(errs[1]) != api.Internal {
			t.Fatalf("got %v", errs)
		}
		b.gone(dn, "reverted")
	}
	if err := b.apply(l, pw); api.KindOf(err) != api.Invalid {
		t.Errorf("applied without its role: %v", err)
	}
	b.NoTrace(pw.Reveal(), ldaptest.ManagerPassword)
}

// landing lets each step of making an account land when it likes.
type landing struct {
	ldap.Directory
	steps func(ldap.Entries) []ldap.Entries
}

func (d *landing) Make(ctx context.Context, e ldap.Entries) error {
	for _, part := range d.steps(e) {
		if err := d.Directory.Make(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

// An account is reverted before, amid and after it is made, and any of its steps lands later than that, as a paused process or a network would have
// it. Nobody can ever log in as it afterwards, with a password that was given out; another revert leaves nothing.
func TestLateLanding(t *testing.T) {
	var late []ldap.Entries
	cut := 0
	e := ldap.New(func(c *ldap.Config, s ldap.Secrets) (ldap.Directory, error) {
		d, err := directory.Open(c, s)
		return &landing{d, func(e ldap.Entries) []ldap.Entries {
			late = nil
			for _, s := range e.Steps[cut:] {
				late = append(late, ldap.Entries{Mark: e.Mark, Steps: []ldap.Step{s}})
			}
			return []ldap.Entries{{Mark: e.Mark, Steps: e.Steps[:cut]}}
		}}, err
	})
	b := newBench(t)
	b.Engine = e
	t.Cleanup(func() { e.Close(b.Mount.UUID) })
	d, err := directory.Open(&ldap.Config{URL: b.URL(), Schema: ldap.OpenLDAP, BindDN: b.Manager, UserDN: b.DN, UserAttr: "cn"},
		ldap.Secrets{Password: lessor.NewSecret(ldaptest.ManagerPassword)})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for cut = range 4 {
		l, answer, pw := b.plan()
		dn := "cn=" + answer["username"].(string) + "," + b.DN
		if err := b.apply(l, pw); err != nil {
			t.Fatalf("%d steps: %v", cut, err)
		}
		if err := b.revert(l); err != nil {
			t.Fatalf("%d steps: %v", cut, err)
		}
		b.gone(dn, fmt.Sprint("reverted after ", cut, " steps"))
		// Each step that was held back lands by itself, the others never.
		for _, step := range late {
			err := d.Make(t.Context(), step)
			if b.Entry(dn) != nil && b.LogsIn(dn, pw.Reveal()) {
				t.Errorf("after %d steps, %v landed late, and the account logs in (%v)", cut, step.Steps[0].Verb, err)
			}
			if err := b.revert(l); err != nil {
				t.Fatal(err)
			}
			b.gone(dn, "reverted again")
		}
	}
	// A process that was paused between adding an entry and giving it its password does not go on.
	l, answer, pw := b.plan()
	dn := "cn=" + answer["username"].(string) + "," + b.DN
	cut = 0
	if err := b.apply(l, pw); err != nil {
		t.Fatal(err)
	}
	over, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	for _, step := range late {
		if err := d.Make(over, step); !errors.Is(err, ldap.ErrUnreachable) {
			t.Errorf("%v was done after its time: %v", step.Steps[0].Verb, err)
		}
	}
	b.gone(dn, "after its time")
}

// What bears no mark, or another's, is left alone.
func TestOthersEntries(t *testing.T) {
	b := newBench(t)
	l, answer, pw := b.plan()
	username := answer["username"].(string)
	dn := b.Person(username, "somebody's")
	if err := b.apply(l, pw); err == nil || !strings.Contains(err.Error(), "which is not lessor's") {
		t.Errorf("made over somebody's entry: %v", err)
	}
	if err := b.revert(l); err == nil || !strings.Contains(err.Error(), "does not bear lessor's mark any more") {
		t.Errorf("removed somebody's entry: %v", err)
	}
	b.Modify(dn, "description", "lessor lease=another mount=x role=y name=z")
	if err := b.revert(l); err != nil {
		t.Errorf("another lease's entry: %v", err)
	}
	if !b.LogsIn(dn, "somebody's") {
		t.Error("somebody's entry was touched")
	}
}

// Accounts whose leases nobody knows are found by their marks, those of other mounts left out, and go as their role says now, or without it.
func TestStrays(t *testing.T) {
	b := newBench(t)
	for _, forgotten := range []bool{false, true} {
		l, answer, pw := b.plan()
		dn := "cn=" + answer["username"].(string) + "," + b.DN
		if err := b.apply(l, pw); err != nil {
			t.Fatal(err)
		}
		others := b.Person("others", "x")
		b.Modify(others, "description", "lessor lease=another mount=x role=y name=z")
		if forgotten {
			b.Do(lessor.Delete, "role/app", "")
			b.Modify("cn=readers,"+b.DN, "member", b.Manager)
		} else {
			b.role(fmt.Sprintf(`,"deletion_ldif":%q`, "dn: cn=readers,"+b.DN+"\nchangetype: modify\ndelete: member\nmember: cn={{.Username}},"+b.DN))
		}
		found, err := b.Find(t.Context(), b.access(), ldap.Target)
		if err != nil || len(found) != 1 || found[0].Mark != b.Mark(l.ID) || found[0].Target != ldap.Target {
			t.Fatalf("found %+v, %v", found, err)
		}
		stray := &lease.Lease{ID: b.Mount.Path + "strays/1", Mount: b.Mount.UUID, Namespace: lessor.RootNamespace, Intent: found[0].Intent}
		for range 2 {
			if err := b.revert(stray); err != nil {
				t.Fatal(err)
			}
		}
		b.gone(dn, "a stray")
		if b.Entry(others) == nil {
			t.Error("another mount's entry is gone")
		}
		b.Delete(others)
	}
	if all, err := b.Targets(b.access()); err != nil || len(all) != 1 {
		t.Errorf("targets %v, %v", all, err)
	}
}

// Creation that fails midway is undone, by rollback_ldif besides if there is one; a wrong deletion_ldif is noticed.
func TestFailedCreation(t *testing.T) {
	b := newBench(t)
	broken := strings.Replace(person(b.DN), "cn=readers", "cn=nobody", 1)
	b.role(fmt.Sprintf(`,"creation_ldif":%q,"rollback_ldif":%q`, broken, "dn: cn={{.Username}},"+b.DN+"\nchangetype: delete"))
	l, answer, pw := b.plan()
	dn := "cn=" + answer["username"].(string) + "," + b.DN
	if err := b.apply(l, pw); err == nil || !strings.Contains(err.Error(), "the directory has no entry cn=nobody,"+b.DN+" to modify") {
		t.Errorf("got %v", err)
	}
	b.gone(dn, "rolled back")
	if err := b.revert(l); err != nil {
		t.Error(err)
	}
	b.role(fmt.Sprintf(`,"creation_ldif":%q,"rollback_ldif":""`, broken))
	l, answer, pw = b.plan()
	dn = "cn=" + answer["username"].(string) + "," + b.DN
	if err := b.apply(l, pw); err == nil {
		t.Error("it did not fail")
	}
	if err := b.revert(l); err != nil {
		t.Error(err)
	}
	b.gone(dn, "reverted")
	b.role(fmt.Sprintf(`,"creation_ldif":%q,"deletion_ldif":%q`, person(b.DN), "dn: cn=other-{{.Username}},"+b.DN+"\nchangetype: delete"))
	l, answer, pw = b.plan()
	dn = "cn=" + answer["username"].(string) + "," + b.DN
	if err := b.apply(l, pw); err != nil {
		t.Fatal(err)
	}
	if err := b.revert(l); err == nil || !strings.Contains(err.Error(), "is still there: deletion_ldif must delete it") {
		t.Errorf("got %v", err)
	}
	if b.Entry(dn) == nil {
		t.Error("this shows nothing")
	}
}

// Whatever somebody is called, it stays within its value.
func TestHostileNames(t *testing.T) {
	b := newBench(t)
	b.role(fmt.Sprintf(`,"creation_ldif":%q`, strings.Replace(person(b.DN), "sn: {{.DisplayName}}", "title: {{.DisplayName}}\nsn: x", 1)))
	for _, name := range []string{"x\nuserPassword: mine", "x,ou=other", "\n\ndn: cn=lessor," + b.DN + "\nchangetype: delete\n", "#", " x ", "ü\x00", "{{.Password}}", `\,+"<>;=`} {
		b.Principal.DisplayName = name
		l, answer, pw := b.plan()
		dn := "cn=" + answer["username"].(string) + "," + b.DN
		if err := b.apply(l, pw); err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if !b.LogsIn(dn, pw.Reveal()) || b.Entry(b.Manager) == nil {
			t.Errorf("%q broke out", name)
		}
		if len(b.Below()) != 2 {
			t.Errorf("%q: entries %v", name, b.Below())
		}
		if err := b.revert(l); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestRoles(t *testing.T) {
	b := newBench(t)
	type step = enginetest.Step
	ldif := "dn: cn={{.Username}},ou=x\nobjectClass: person\nuserPassword: {{.Password}}"
	write := func(creation, more string) string { return fmt.Sprintf(`{"creation_ldif":%q%s}`, creation, more) }
	refused := func(name, body, text string) step {
		return step{Name: name, Verb: lessor.Update, Path: "role/r", Body: body, Kind: api.Invalid, Err: text}
	}
	outside := "creation_ldif adds entries that are not below userdn: after a restore from a backup, lessor does not find those there that it forgot"
	b.Run(
		refused("nothing", `{}`, "missing creation_ldif"),
		refused("no entry", write("  \n# nothing\n", ""), "invalid creation_ldif: must specify at least one LDIF entry"),
		refused("no password", write("dn: cn={{.Username}}\ncn: x", ""), "invalid creation_ldif: it gives {{.Password}} to nobody"),
		refused("modifies only", write("dn: cn={{.Username}}\nchangetype: modify\nreplace: userPassword\nuserPassword: {{.Password}}", ""), "invalid creation_ldif: it adds no entry"),
		refused("a password in a DN", write("dn: cn={{.Password}}\ncn: x", ""), "invalid creation_ldif: dn: there is no .Password; only .Username, .DisplayName, .RoleName, .IssueTime, .IssueTimeSeconds, .ExpirationTime, .ExpirationTimeSeconds (each line of LDIF is a template by itself)"),
		refused("no dn", write("cn: x", ""), `invalid creation_ldif: a record begins with "cn", not with its dn`),
		refused("no attributes", write("dn: cn=x", ""), `invalid creation_ldif: a record that adds an entry has no attributes`),
		refused("a URL", write("dn: cn=x\njpegPhoto:< file:///etc/passwd", ""), `invalid creation_ldif: jpegPhoto:< is not supported: nothing is read from URLs`),
		refused("another change", write("dn: cn=x\nchangetype: modrdn\nnewrdn: cn=y", ""), `invalid creation_ldif: changetype "modrdn" is not supported: add, modify or delete`),
		refused("deletion with a password", write(ldif, `,"deletion_ldif":"dn: cn=x\nchangetype: modify\nadd: sn\nsn: {{.Password}}"`), "invalid deletion_ldif: the value of sn: there is no .Password; only .Username, .DisplayName, .RoleName, .IssueTime, .IssueTimeSeconds, .ExpirationTime, .ExpirationTimeSeconds (each line of LDIF is a template by itself)"),
		refused("irreversible", write(ldif+"\n\ndn: cn=y\nchangetype: modify\nreplace: sn\nsn: z", ""), "deletion_ldif is needed: creation_ldif changes an entry in a way that lessor cannot undo by itself"),
		refused("names that are the same", write(ldif, `,"username_template":"x"`), "username_template: it makes the same name for different leases: add {{random 20}} or {{uuid}}, and see that nothing truncates it"),
		refused("ttl", write(ldif, `,"default_ttl":"2h","max_ttl":"1h"`), "default_ttl must not exceed max_ttl"),
		step{Name: "write", Verb: lessor.Update, Path: "role/Team/R", Body: write(ldif, `,"default_ttl":"1h"`), Warn: outside},
		step{Name: "read", Verb: lessor.Read, Path: "role/team/r", Want: fmt.Sprintf(`{"creation_ldif":%q,"deletion_ldif":"","rollback_ldif":"","username_template":"","default_ttl":3600,"max_ttl":0}`, ldif)},
		step{Name: "base64", Verb: lessor.Update, Path: "role/r2", Body: `{"creation_ldif":"ZG46IGNuPXt7LlVzZXJuYW1lfX0Kb2JqZWN0Q2xhc3M6IHBlcnNvbgp1c2VyUGFzc3dvcmQ6IHt7LlBhc3N3b3JkfX0="}`, Warn: outside},
		step{Name: "Active Directory's", Verb: lessor.Update, Path: "role/r3", Warn: outside,
			Body: write("dn: CN={{.Username}},OU=x\nchangetype: add\nobjectClass: user\n\ndn: CN={{.Username}},OU=x\nchangetype: modify\nreplace: unicodePwd\nunicodePwd::{{ printf \"%q\" .Password | utf16le | base64 }}\n-\nreplace: userAccountControl\nuserAccountControl: 66048\n-\n", "")},
		step{Name: "list", Verb: lessor.List, Path: "role/", Want: `{"keys":["app","r2","r3","team/"]}`},
		step{Name: "a bad name", Verb: lessor.Update, Path: "role/a b", Body: write(ldif, ""), Kind: api.Invalid, Err: `"a b" is no name: letters, digits and _, with ., - and / in between, 255 at most`},
		step{Name: "delete", Verb: lessor.Delete, Path: "role/r2"},
		step{Name: "deleted", Verb: lessor.Read, Path: "role/r2", Kind: api.NotFound, Fails: true},
		step{Name: "unknown", Verb: lessor.Read, Path: "creds/r2", Kind: api.Invalid, Err: "unknown role: r2"},
	)
}

// Through the gate: what is leased logs in until its lease ends, whichever way it does; the configuration stays as long as it is needed.
func TestCredentialsThroughTheGate(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	w.do(lessor.Update, "ldap/role/app", fmt.Sprintf(`{"creation_ldif":%q,"default_ttl":"1h","max_ttl":"24h"}`,
		"dn: uid={{.Username}},"+w.Branch.DN+"\nobjectClass: account\nobjectClass: simpleSecurityObject\nuid: {{.Username}}\nuserPassword: {{.Password}}"))
	get := func() (id, dn, pw string) {
		a := w.do(lessor.Read, "ldap/creds/app", "")
		dn = a.Data["distinguished_names"].([]string)[0]
		return a.Lease.ID, dn, a.Data["password"].(lessor.Secret).Reveal()
	}
	id, dn, pw := get()
	if !w.LogsIn(dn, pw) {
		t.Fatal("it does not log in")
	}
	w.refused(api.Invalid, lessor.Delete, "ldap/config", "", "the configuration is still needed to revert leases")
	w.do(lessor.Update, "sys/leases/renew", fmt.Sprintf(`{"lease_id":%q}`, id))
	w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, id))
	if w.Entry(dn) != nil {
		t.Error("it outlived its revocation")
	}
	_, dn, _ = get()
	w.clock.advance(time.Hour)
	w.until("it ends with its lease", func() bool { return w.Entry(dn) == nil && w.leases() == 0 })
	w.do(lessor.Delete, "ldap/config", "")
}

// Many leases that end at once are all gone, of accounts that are in one group.
func TestManyEndAtOnce(t *testing.T) {
	b := newBench(t)
	var ls []*lease.Lease
	for range 40 {
		l, _, pw := b.plan()
		if err := b.apply(l, pw); err != nil {
			t.Fatal(err)
		}
		ls = append(ls, l)
	}
	if n := len(b.members()); n != 41 {
		t.Fatalf("%d members", n)
	}
	for _, err := range b.Revert(t.Context(), b.access(), ls) {
		if err != nil {
			t.Error(err)
		}
	}
	if n := len(b.members()); n != 1 || len(b.Below()) != 1 {
		t.Errorf("%d members are left, and %v", n, b.Below())
	}
}

// A lessor that dies at any moment of making an account leaves none that nobody knows.
func TestCreationIsStruck(t *testing.T) {
	s := ldaptest.Start(t)
	for _, done := range []bool{false, true} {
		for _, at := range []string{"first commit", "make", "second commit"} {
			t.Run(fmt.Sprint(at, " done ", done), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, s)
				w.do(lessor.Update, "ldap/role/app", fmt.Sprintf(`{"creation_ldif":%q}`,
					"dn: uid={{.Username}},"+w.Branch.DN+"\nobjectClass: account\nobjectClass: simpleSecurityObject\nuid: {{.Username}}\nuserPassword: {{.Password}}"))
				w.eye.Watch(func(call string, _ lessor.Secret, do func() error) error {
					if call == "make" {
						if !slices.ContainsFunc(w.records("ldap/creds/app"), func(r audit.At) bool { return r.Phase == audit.Begun }) || w.leases() != 1 {
							t.Error("the directory is touched without record or lease")
						}
						if at == "make" {
							var err error
							if done {
								err = do()
							}
							w.faulty.Set(storetest.Faults{At: 1})
							return err
						}
					}
					return do()
				})
				switch at {
				case "first commit":
					w.faulty.Set(storetest.Faults{At: 1, Done: done})
				case "second commit":
					w.faulty.Set(storetest.Faults{At: 2, Done: done})
				}
				_, _ = w.try(lessor.Read, "ldap/creds/app", "")
				w.eye.Watch(nil)
				if w.db.Fault() == nil {
					t.Fatal("nothing was struck")
				}
				w.crash()
				if at == "second commit" && done {
					if len(w.Below()) != 1 || w.leases() != 1 {
						t.Errorf("a credential that was confirmed is gone: %v", w.Below())
					}
					return
				}
				w.until("nothing is left", func() bool {
					w.clock.advance(10 * time.Second)
					return len(w.Below()) == 0 && w.leases() == 0
				})
			})
		}
	}
}

// A directory that is down when leases end gets what is due once it is back.
func TestRevocationWaitsForTheDirectory(t *testing.T) {
	s := ldaptest.Own(t)
	w := newWorld(t, s)
	w.do(lessor.Update, "ldap/role/app", fmt.Sprintf(`{"creation_ldif":%q}`,
		"dn: uid={{.Username}},"+w.Branch.DN+"\nobjectClass: account\nobjectClass: simpleSecurityObject\nuid: {{.Username}}\nuserPassword: {{.Password}}"))
	id := w.do(lessor.Read, "ldap/creds/app", "").Lease.ID
	w.must(s.Kill())
	w.refused(api.Upstream, lessor.Read, "ldap/creds/app", "", "the directory cannot be reached")
	w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q,"sync":false}`, id))
	w.clock.advance(time.Minute)
	w.crash()
	w.must(s.Up())
	if len(w.Below()) != 1 {
		t.Fatal("the crash lost the account: this shows nothing")
	}
	w.until("nothing is left", func() bool {
		w.clock.advance(10 * time.Second)
		return len(w.Below()) == 0 && w.leases() == 0
	})
}

// What is decided on ground that moved meanwhile is not committed: a credential, an account that is lent, a configuration that is deleted.
func TestStalePlans(t *testing.T) {
	b := newBench(t)
	set := `{"service_account_names":"somebody"}`
	b.Do(lessor.Update, "library/ops", set)
	stale := func(verb lessor.Verb, path, body string, meanwhile func()) {
		t.Helper()
		act, err := b.Begin(verb, path, body)
		if err != nil {
			t.Fatal(err)
		}
		meanwhile()
		enginetest.Unwritten(t, act)
	}
	update := func(f func(store.View, *store.Txn) error) {
		t.Helper()
		if _, err := b.DB.Update(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	drop := func(l *lease.Lease) {
		update(func(v store.View, txn *store.Txn) error {
			l, row, err := lease.Get(v, l)
			if err == nil {
				lease.Drop(txn, row, l)
			}
			return err
		})
	}
	stray := &lease.Lease{Mount: b.Mount.UUID, Namespace: lessor.RootNamespace}
	adopt := func() {
		found, err := b.Find(t.Context(), b.access(), ldap.Target)
		if err != nil || len(found) != 1 {
			t.Fatalf("found %v, %v", found, err)
		}
		stray.ID, stray.Target, stray.Intent = b.Mount.Path+"strays/"+found[0].Mark, found[0].Target, found[0].Intent
		update(func(v store.View, txn *store.Txn) error {
			lease.Adopt(txn, stray, "unknown", b.Clock.Now())
			return b.Keep(v, b.Mount, found[0].Target, txn)
		})
	}
	stale(lessor.Update, "library/ops/check-out", "", adopt)
	if _, err := b.Try(lessor.Update, "library/ops/check-out", ""); api.KindOf(err) != api.Invalid {
		t.Errorf("what is being taken back is lent: %v", err)
	}
	drop(stray)
	stale(lessor.Delete, "library/ops", "", adopt)
	drop(stray)

	r := b.Do(lessor.Update, "library/ops/check-out", "")
	l := &lease.Lease{ID: b.Mount.Path + r.Issue.Path + "/1", Mount: b.Mount.UUID, Namespace: lessor.RootNamespace, Kind: lease.Dynamic, Target: ldap.Target, Expires: b.Clock.Now()}
	var err error
	if l.Intent, _, _, err = r.Issue.Plan(l); err != nil {
		t.Fatal(err)
	}
	lent := r.Txn.Puts[len(r.Txn.Puts)-1] // by Plan, with the lease, as the core commits it
	update(func(_ store.View, txn *store.Txn) error {
		txn.Put(lent.Table, lent.Name, lent.Value)
		lease.Add(txn, l)
		return nil
	})
	if found, err := b.Find(t.Context(), b.access(), ldap.Target); err != nil || len(found) != 0 {
		t.Errorf("what is lent is found: %v, %v", found, err)
	}
	if err := b.Keep(b.access().View, b.Mount, stray.Target, new(store.Txn)); api.KindOf(err) != api.Upstream {
		t.Errorf("what is lent is taken back: %v", err)
	}

	b = newBench(t)
	stale(lessor.Read, "creds/app", "", func() { b.role(`,"default_ttl":60`) })
	stale(lessor.Read, "creds/app", "", func() { b.Do(lessor.Update, "config", `{"userattr":"uid","verify_connection":false}`) })
	role := `{"username":"somebody","rotation_period":60,"skip_import_rotation":true}`
	stale(lessor.Delete, "config", "", func() { b.Do(lessor.Update, "static-role/s", role) })
	b.Do(lessor.Delete, "static-role/s", "")
	stale(lessor.Delete, "config", "", func() { b.Do(lessor.Update, "library/ops", set) })
	b.Do(lessor.Delete, "library/ops", "")
	stale(lessor.Delete, "config", "", func() { b.Do(lessor.Update, "rotate-root", "") })
	stale(lessor.Update, "static-role/s", role, func() { b.Do(lessor.Delete, "config", "") })
	if err := b.Keep(b.access().View, b.Mount, ldap.Target, new(store.Txn)); api.KindOf(err) != api.Upstream {
		t.Errorf("kept a configuration that is deleted: %v", err)
	}
}
