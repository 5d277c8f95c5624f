package database

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// Rotation of what is at a database: the accounts of static roles, "static/NAME", and those that lessor itself logs in with, "root/NAME".
// The rows of both are package rotation's. rotateRole and rotateRoot begin one for a request, Plan when it is due; Turn touches the database.

// turn is an account with all that its rotation needs, as of one View.
type turn struct {
	*rotation.Account
	passwords  *rotation.Passwords
	access     engine.Access
	row, held  store.Row   // of Account and passwords
	role       *StaticRole // nil: the connection's own account
	roleRow    store.Row   // of role, or of connection
	connection *Connection
	over       store.Row // of connection
	secrets    Secrets
	driver     Driver
	usernames  accounts // of role, or of connection
}

var _ engine.Explainer = (*Engine)(nil)

// turn reads an account. nil: it does not exist any more.
func (e *Engine) turn(a engine.Access, account string) (*turn, error) {
	t := &turn{access: a}
	var err error
	if name, ok := strings.CutPrefix(account, staticPrefix); ok {
		t.role = &StaticRole{}
		if t.roleRow, err = load(a.View, a.Mount, staticPrefix, name, t.role); err != nil || !t.roleRow.Exists() {
			return nil, err
		}
	}
	return t, e.complete(t, account)
}

// forRequest is turn for a request, whose role may differ from the stored one.
func (e *Engine) forRequest(r *engine.Request, account string, role *StaticRole) (*turn, error) {
	t := &turn{access: engine.Access{Mount: r.Mount, View: r.View, Grant: r.Grant, Opener: r.Opener, Now: r.Now}, role: role}
	if err := e.complete(t, account); err != nil {
		return nil, err
	}
	if name := strings.TrimPrefix(account, staticPrefix); !t.connection.allows(name) {
		return nil, api.Errorf(api.Invalid, "%q is not an allowed role: add it to allowed_roles of connection %q", name, role.Connection)
	}
	for _, username := range role.Usernames {
		if err := t.driver.CheckRotation(username, role.Rotation); err != nil {
			return nil, api.Errorf(api.Invalid, "%v", err)
		}
	}
	return t, nil
}

// complete reads the rows of a turn whose role is known.
func (e *Engine) complete(t *turn, account string) (err error) {
	a := t.access
	connection := strings.TrimPrefix(account, rootPrefix)
	if t.role != nil {
		connection = t.role.Connection
	}
	t.connection = &Connection{}
	row, err := load(a.View, a.Mount, connectionPrefix, connection, t.connection)
	if err != nil {
		return err
	}
	if !row.Exists() {
		return api.Errorf(api.Invalid, "there is no connection %q: configure it", connection)
	}
	if t.over = row; t.role == nil {
		t.roleRow = row
	}
	if t.driver, err = e.driver(t.connection.Plugin); err != nil {
		return err
	}
	sealed, err := a.View.Get(store.Key{Table: store.Secrets, Name: row.Name})
	if err != nil {
		return err
	}
	if t.secrets, err = open(a.Opener.Open, a.Grant, sealed); err != nil {
		return err
	}
	if t.Account, t.row, err = rotation.Load(a.View, a.Mount.Namespace, a.Mount.UUID, account); err != nil {
		return err
	}
	if t.passwords, t.held, err = passwords(a, account); err != nil {
		return err
	}
	t.Target = connection
	if t.role != nil {
		t.usernames = t.role.Usernames
		t.Pair, t.Grace, t.QuietFor = t.usernames.pair(), t.role.Grace, t.role.quiet()
		return nil
	}
	if t.Version == 0 && !t.secrets.Password.Empty() { // never rotated: what was configured is in force
		t.Import(t.passwords, t.secrets.Password, a.Now)
	}
	username, err := t.driver.Account(t.connection)
	t.usernames = accounts{username}
	return err
}

// account is the name of one of the accounts at the database.
func (t *turn) account(slot uint8) string { return t.usernames[slot] }

// passwords opens the passwords of an account.
func passwords(a engine.Access, account string) (*rotation.Passwords, store.Row, error) {
	row, err := a.View.Get(rotation.SecretKey(a.Mount.Namespace, a.Mount.UUID, account))
	if err != nil {
		return nil, row, err
	}
	var value lessor.Secret
	if row.Exists() {
		if value, err = a.Opener.Open(a.Grant, row); err != nil {
			return nil, row, err
		}
	}
	p, err := rotation.Open(value)
	return p, row, err
}

// save records how the account stands now.
func (t *turn) save(txn *store.Txn) error {
	if err := rotation.Save(txn, t.row, t.Account); err != nil {
		return err
	}
	return rotation.Keep(txn, t.held, t.passwords)
}

func (t *turn) schedule() rotation.Schedule {
	if t.role != nil {
		return t.role.schedule()
	}
	return t.connection.schedule()
}

// fresh is a new password that the database can take.
func (t *turn) fresh(generate func(policy string) (lessor.Secret, error)) (lessor.Secret, error) {
	from := t.connection.PasswordPolicy
	if t.role != nil && t.role.PasswordPolicy != "" {
		from = t.role.PasswordPolicy
	}
	var err error
	for range 8 {
		var password lessor.Secret
		if password, err = generate(from); err != nil {
			return password, err
		}
		if err = t.driver.CheckPassword(t.connection, password); err == nil {
			return password, nil
		}
	}
	return lessor.Secret{}, api.Errorf(api.Invalid, "%v", err)
}

func (t *turn) shown(path, how string) audit.Shown {
	return audit.Shown{
		Path: path, Version: t.Version, How: how,
		Fingerprint: t.access.Opener.Fingerprint(t.access.Mount.UUID, path, []byte(t.passwords.Current.Reveal())),
	}
}

// path is what the account is called to people.
func (t *turn) path() string {
	if t.role != nil {
		return "static-roles/" + strings.TrimPrefix(t.Name, staticPrefix)
	}
	return connectionPrefix + t.Target
}

// AccountOf is the account that a path is about.
func (e *Engine) AccountOf(path string) (string, bool) {
	for prefix, rows := range map[string]string{
		staticCreds: staticPrefix, "static-roles/": staticPrefix, "rotate-role/": staticPrefix, connectionPrefix: rootPrefix, "rotate-root/": rootPrefix,
	} {
		if name, ok := strings.CutPrefix(path, prefix); ok && name != "" && !strings.Contains(name, "/") {
			return rows + name, true
		}
	}
	return "", false
}

// Terms are those on which an account is rotated.
func (e *Engine) Terms(v store.View, m *mount.Entry, account string) (*engine.Terms, error) {
	if name, ok := strings.CutPrefix(account, staticPrefix); ok {
		var role StaticRole
		row, err := load(v, m, staticPrefix, name, &role)
		if err != nil || !row.Exists() {
			return nil, err
		}
		return &engine.Terms{Path: "static-roles/" + name, Reads: staticCreds + name, Accounts: role.Usernames, Schedule: role.schedule()}, nil
	}
	var c Connection
	name := strings.TrimPrefix(account, rootPrefix)
	row, err := load(v, m, connectionPrefix, name, &c)
	if err != nil || !row.Exists() {
		return nil, err
	}
	d, err := e.driver(c.Plugin)
	if err != nil {
		return nil, err
	}
	username, err := d.Account(&c)
	return &engine.Terms{Path: connectionPrefix + name, Accounts: []string{username}, Schedule: c.schedule()}, err
}

// rotateRole changes the password of a static role now.
func (e *Engine) rotateRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := r.Param("name")
	var role StaticRole
	row, err := load(r.View, r.Mount, staticPrefix, name, &role)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, api.Errorf(api.Invalid, "no static role found for role name")
	}
	t, err := e.forRequest(r, staticPrefix+name, &role)
	if err != nil {
		return nil, err
	}
	t.roleRow = row
	if t.Outgoing == 0 {
		return e.begin(r, t)
	}
	// Two rotations of a pair never overlap: this one waits for its turn.
	t.Demand("asked for", r.Now)
	reply := &engine.Reply{Warnings: []string{fmt.Sprintf("a rotation is under way (%s since %s), and readers are shown its password already: this one begins when it is done. Who is waited for is shown by lessor rotation status %s%s; lessor rotation retire ends the wait",
		t.Phase(), t.Since.Format(time.RFC3339), r.Mount.Path, staticCreds+name)}}
	reply.Txn.Require(row)
	return reply, t.save(&reply.Txn)
}

// rotateRoot changes the password of lessor's own account now. Nobody is told the new one.
func (e *Engine) rotateRoot(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := r.Param("name")
	t := &turn{access: engine.Access{Mount: r.Mount, View: r.View, Grant: r.Grant, Opener: r.Opener, Now: r.Now}}
	if err := e.complete(t, rootPrefix+name); err != nil {
		return nil, err
	}
	if err := t.ownable(e); err != nil {
		return nil, err
	}
	return e.begin(r, t)
}

// ownable refuses to rotate lessor's own account where somebody else depends on its password.
func (t *turn) ownable(e *Engine) error {
	v, m := t.access.View, t.access.Mount
	if t.passwords.Current.Empty() {
		return api.Errorf(api.Invalid, "unable to rotate root credentials: the connection has no password")
	}
	there, err := e.users(v, m, t.driver, t.connection, t.Target, t.account(0))
	if err != nil {
		return err
	}
	for _, u := range there {
		switch {
		case u.managed.Exists():
			return api.Errorf(api.Invalid, "unable to rotate root credentials: the account %q is also that of the static role %q; give the connection an account of its own", t.account(0), u.managed.Value)
		case u.own && u.connection != t.Target:
			return api.Errorf(api.Invalid, "unable to rotate root credentials: connection %q logs in to the same database with the same account, and would be locked out; delete one of the two", u.connection)
		}
	}
	return nil
}

// user is a connection that leads to an account, and who changes its password there.
type user struct {
	connection string
	own        bool      // lessor logs in with it
	managed    store.Row // its value is the static role's name; may not exist
}

// users are the connections of a mount that lead to an account of a connection's server: accounts are the server's, whichever of its databases a
// connection names. The first is the connection itself.
func (e *Engine) users(v store.View, m *mount.Entry, d Driver, c *Connection, connection, username string) ([]user, error) {
	managed, err := v.Get(accountKey(m, connection, username))
	if err != nil {
		return nil, err
	}
	account, err := d.Account(c)
	all := []user{{connection, err == nil && account == username, managed}}
	from := key(m, connectionPrefix)
	for row, err := range v.Scan(store.Engine, from, store.PrefixEnd(from)) {
		if err != nil {
			return nil, err
		}
		var other Connection
		name := strings.TrimPrefix(row.Name, from)
		if err := decode(row, &other); err != nil {
			return nil, err
		}
		if name == connection || other.Plugin != c.Plugin || !d.SameServer(c, &other) {
			continue
		}
		if managed, err = v.Get(accountKey(m, name, username)); err != nil {
			return nil, err
		}
		account, err := d.Account(&other)
		all = append(all, user{name, err == nil && account == username, managed})
	}
	return all, nil
}

// begin records a password as pending, and asks for it to be brought into force.
func (e *Engine) begin(r *engine.Request, t *turn) (*engine.Reply, error) {
	fresh, err := t.fresh(r.System.Password)
	if err != nil {
		return nil, err
	}
	t.Begin(t.passwords, fresh, r.Now)
	reply := &engine.Reply{Rotate: &engine.Rotate{Account: t.Name, Path: t.path(), Untouched: e.untouched(t)}}
	reply.Txn.Require(t.roleRow)
	return reply, t.save(&reply.Txn)
}

// untouched records that the attempt which t began never was made.
func (e *Engine) untouched(t *turn) func(engine.Access, *store.Txn) error {
	account, pending := t.Name, t.passwords.Pending
	return func(a engine.Access, txn *store.Txn) error {
		t, err := e.turn(a, account)
		if err != nil || t == nil || t.Pending == 0 || !t.passwords.Pending.Equal(pending) {
			return err // somebody else was faster
		}
		t.Untouched()
		return t.save(txn)
	}
}

// Plan decides what comes next with an account by itself.
func (e *Engine) Plan(a engine.Access, account string, txn *store.Txn) (*engine.Rotate, error) {
	t, err := e.turn(a, account)
	if err != nil {
		return nil, err
	}
	if t == nil {
		known, row, err := rotation.Load(a.View, a.Mount.Namespace, a.Mount.UUID, account)
		if err == nil {
			rotation.Drop(txn, row, known)
		}
		return nil, err
	}
	r := &engine.Rotate{Account: account, Path: t.path()}
	if t.Outgoing == 0 { // else it is that of the next rotation
		r.Cause = t.Cause
	}
	schedule := t.schedule().Drawn(a.Chance)
	switch step := t.Step(schedule, a.Now); step {
	case rotation.Rotate, rotation.Retire:
		fresh, err := t.fresh(a.Password)
		if err != nil {
			t.Failed(err, a.Now, a.Chance)
			return nil, t.save(txn)
		}
		if r.Note = "rotation"; step == rotation.Retire {
			r.Note, r.Also = "the outgoing account is retired: "+t.Over.String(), t.named()
		}
		t.Begin(t.passwords, fresh, a.Now)
		r.Untouched = e.untouched(t)
	case rotation.Resume:
		t.Begin(t.passwords, lessor.Secret{}, a.Now)
		r.Note, r.Untouched = "rotation resumed", e.untouched(t)
	case rotation.Prove:
		if r.Note = "password proven"; t.Phase() == rotation.Proving {
			r.Note = "the passwords of the outgoing account are proven dead"
		}
		t.Retry = a.Now.Add(rotation.Head)
	case rotation.Watching:
		r.Note, r.Look = "nobody is waited for any more", true
		return r, nil
	case rotation.Settle:
		more, err := lease.Settle(a.View, txn, a.Mount, credsPath(t), t.Dead, t.Born)
		if err != nil {
			return nil, err
		}
		if !more {
			t.Settled = t.Dead
		}
		r.Note, r.Done = "older versions are proven dead", true
	case rotation.Yield:
		if !t.GiveUp(t.passwords, schedule, a.Now) {
			return nil, t.save(txn) // it came too late
		}
		if r.Note, r.Done = "the rotation is given up", true; t.Back { // readers are shown another password again
			r.Shown = []audit.Shown{t.shown(credsPath(t), "written")}
		}
	case rotation.Miss:
		t.Skip(schedule, a.Now)
		return nil, t.save(txn)
	default:
		return nil, nil
	}
	txn.Require(t.roleRow)
	return r, t.save(txn)
}

// Turn touches the database.
func (e *Engine) Turn(ctx context.Context, a engine.Access, account string) engine.Turned {
	t, err := e.turn(a, account)
	if err != nil || t == nil {
		return engine.Turned{Err: err}
	}
	db, err := e.database(a, t.Target)
	if err != nil {
		return e.failed(t, false, true, err)
	}
	switch {
	case a.Look:
		return e.look(ctx, t, db)
	case t.Pending != 0:
		return e.set(ctx, t, db)
	}
	return e.prove(ctx, t, db)
}

// set brings the pending password into force.
func (e *Engine) set(ctx context.Context, t *turn, db Database) engine.Turned {
	account, pending := t.Name, t.passwords.Pending
	note, touched, err := t.bring(ctx, db, t.Turn(), pending)
	if err == nil && t.Over.Forced() { // whoever uses it still is sent away, now that he cannot come back
		touched, err = true, db.End(ctx, t.account(t.Turn()))
	}
	if err != nil {
		dead := !touched && !errors.Is(err, ErrUnreachable) && t.dead(ctx, db, pending)
		return e.failed(t, touched, dead, err)
	}
	turned := engine.Turned{
		Note: note,
		Then: func(a engine.Access, txn *store.Txn, jitter func() float64) error {
			t, err := e.turn(a, account)
			if err != nil || t == nil || t.Pending == 0 || !t.passwords.Pending.Equal(pending) {
				return err // somebody else was faster
			}
			t.Confirm(t.passwords, t.schedule().Drawn(jitter()), a.Now)
			return t.save(txn)
		},
	}
	if t.Outgoing == 0 { // else nobody is told
		done := *t
		after := *t.Account
		done.Account = &after
		done.Version, done.passwords = t.Pending, &rotation.Passwords{Current: pending}
		turned.Shown = []audit.Shown{done.shown(credsPath(t), "written")}
	}
	return turned
}

// look asks the database who uses the outgoing account, and decides whether they are waited for any longer. Only that is on record.
func (e *Engine) look(ctx context.Context, t *turn, db Database) engine.Turned {
	account, outgoing, asked := t.Name, t.Outgoing, t.access.Now
	sessions, failure := db.Sessions(ctx, []string{t.account(1 - t.Slot)})
	turned := engine.Turned{Then: func(a engine.Access, txn *store.Txn, jitter func() float64) error {
		t, err := e.turn(a, account)
		if err != nil || t == nil || t.Phase() != rotation.Waiting || t.Outgoing != outgoing || t.Abort {
			txn.Audit = nil
			return err // somebody else was faster, or wants it to be given up
		}
		users, err := lease.Users(a.View, a.Mount, credsPath(t))
		if err != nil {
			return err
		}
		holding, told := t.Holding(users), failure != nil && t.Attempts == 0
		if failure == nil {
			t.Sighted(grouped(sessions), asked, a.Now)
		} else {
			t.Failed(failure, a.Now, jitter())
		}
		if why := t.Weigh(len(holding), a.Mount.Options["lease"] != "off", a.Now); why != 0 {
			t.Close(why, holding, a.Now)
			txn.Audit[0].Note, txn.Audit[0].ErrorKind = "nobody is waited for any more: "+why.String(), ""
		} else if !told {
			txn.Audit = nil
		} else {
			txn.Audit[0].Note, txn.Audit[0].ErrorKind = "who uses the outgoing account cannot be seen", api.KindOf(failure).String()
		}
		return t.save(txn)
	}}
	if errors.Is(failure, ErrUnreachable) { // else it is this account's trouble, and keeps no other waiting
		turned.Err = &api.Error{Kind: api.KindOf(failure), Cause: failure, Text: "whether the outgoing account is in use cannot be seen: " + failure.Error()}
	}
	return turned
}

// grouped are sessions by where they come from and what they call themselves, as many as are kept.
func grouped(sessions []Session) (all []rotation.Seen) {
	for _, s := range sessions {
		i := slices.IndexFunc(all, func(g rotation.Seen) bool { return g.Client == s.Client && g.Application == s.Application })
		if i < 0 {
			if len(all) == rotation.MostSeen {
				all[len(all)-1].Count++
				continue
			}
			i = len(all)
			all = append(all, rotation.Seen{Client: s.Client, Application: s.Application, Since: s.Since})
		}
		if all[i].Count++; !s.Since.IsZero() && s.Since.Before(all[i].Since) {
			all[i].Since = s.Since
		}
	}
	return all
}

// named are the audit records of those who had not moved when they were waited for no longer.
func (t *turn) named() (all []audit.Record) {
	for _, s := range t.Stragglers {
		rec := audit.Record{
			Note: "has not moved from the outgoing password", Lease: s.Lease, Owner: s.Owner, Entity: s.Holder.Entity, Name: s.Holder.Name, Instance: s.Holder.Instance,
		}
		if s.Lease == "" {
			rec.Note, rec.Client = "sessions that use the outgoing password", s.Client
		}
		all = append(all, rec)
	}
	return all
}

// credsPath is the path whose readers are shown the password; for lessor's own account nobody is.
func credsPath(t *turn) string {
	if t.role != nil {
		return staticCreds + strings.TrimPrefix(t.Name, staticPrefix)
	}
	return t.path()
}

// bring brings a password into force, and sees that it is. touched: if it failed, it may be in force all the same.
func (t *turn) bring(ctx context.Context, db Database, slot uint8, password lessor.Secret) (note string, touched bool, err error) {
	username := t.account(slot)
	c := Change{Name: t.access.Mount.UUID + t.Name, Username: username, Password: password}
	if t.role != nil {
		c.Statements = t.role.Rotation
		if t.role.SelfManaged {
			c.Self = t.passwords.Candidates()
		}
	} else {
		c.Statements = t.connection.RootRotation
	}
	if t.Loose > 1 && len(c.Statements) > 0 { // statements of somebody's own may not bear to be run twice
		if verdict, err := db.Login(ctx, username, password); err == nil && verdict == Accepted {
			return "", true, nil
		}
	}
	if err := db.SetPassword(ctx, c); err != nil {
		return "", errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrUntouched), err
	}
	switch verdict, err := db.Login(ctx, username, password); {
	case err != nil:
		return "", true, err
	case verdict == Refused:
		return "", true, api.Errorf(api.Upstream, "the database has taken the new password, but refuses a login with it: see whether the account's VALID UNTIL is over, and what rotation statements do")
	case verdict == Unknown:
		return unverified, true, nil
	}
	return "", true, nil
}

// unverified is noted where the database's word is taken.
const unverified = "not verified: the database does not let the account log in from here"

// dead reports whether a password that the database refused is certainly not in force: the account has the one that it had, since it has one; or
// has neither.
func (t *turn) dead(ctx context.Context, db Database, refused lessor.Secret) bool {
	if t.New || t.Loose > 1 {
		return false // it is not made, or somebody else tries it, too
	}
	username := t.account(t.Turn())
	for _, password := range []lessor.Secret{t.passwords.Of(t.Account, t.Turn()), refused} {
		if password.Empty() {
			continue
		}
		verdict, err := db.Login(ctx, username, password)
		if err != nil {
			return false
		}
		if verdict != Refused {
			return verdict == Accepted && !password.Equal(refused)
		}
	}
	return true
}

// prove tries the password in force. One that is refused is brought into force again: somebody else changed it, or an attempt of long ago landed. Of
// a pair's other account each password that it had before must be refused.
func (e *Engine) prove(ctx context.Context, t *turn, db Database) engine.Turned {
	note := ""
	if current := t.passwords.Current; !current.Empty() {
		verdict, err := db.Login(ctx, t.account(t.Slot), current)
		if err == nil && verdict == Refused {
			note = "the password had been changed by somebody else, and was set again"
			_, _, err = t.bring(ctx, db, t.Slot, current)
		}
		if err != nil {
			return e.failed(t, true, false, err)
		}
	}
	found := lessor.Secret{}
	if t.Pair {
		var told string
		var err error
		if found, told, err = t.buried(ctx, db); err != nil {
			return e.failed(t, true, false, err)
		}
		note = cmp.Or(note, told)
	}
	return e.proven(t, found, note)
}

// buried tries that each password which the account that is not in force had before is refused. One that is not has landed since, and is replaced by the
// one that it should have; if it never had one that it should have, it is found.
func (t *turn) buried(ctx context.Context, db Database) (found lessor.Secret, note string, err error) {
	slot := 1 - t.Slot
	other, tried := t.passwords.Other, false
	for _, f := range t.passwords.Formers(slot) {
		if f.Password.Equal(other) {
			continue
		}
		verdict, err := db.Login(ctx, t.account(slot), f.Password)
		switch {
		case err != nil:
		case verdict == Unknown:
			note = unverified
		case verdict == Accepted && other.Empty():
			found = f.Password
		case verdict == Accepted:
			note = "an old password had been in force again, and was replaced"
			if _, _, err = t.bring(ctx, db, slot, other); err == nil {
				verdict, err = db.Login(ctx, t.account(slot), f.Password)
			}
			if err == nil && verdict == Accepted {
				err = api.Errorf(api.Upstream, "the database takes an old password of the account %q still, besides the one that it was given", t.account(slot))
			}
		}
		if err != nil {
			return found, note, err
		}
		tried = true
	}
	if tried && !other.Empty() { // a database that counts failed logins begins anew
		_, err = db.Login(ctx, t.account(slot), other)
	}
	return found, note, err
}

func (e *Engine) proven(t *turn, found lessor.Secret, note string) engine.Turned {
	account, current, other := t.Name, t.passwords.Current, t.passwords.Other
	return engine.Turned{Note: note, Then: func(a engine.Access, txn *store.Txn, _ func() float64) error {
		t, err := e.turn(a, account)
		if err != nil || t == nil || t.Pending != 0 || !t.passwords.Current.Equal(current) || !t.passwords.Other.Equal(other) {
			return err
		}
		if !found.Empty() {
			t.passwords.Other = found
		}
		t.Proven(t.passwords, a.Now)
		if t.role != nil {
			t.Buried(t.passwords, a.Now)
		}
		return t.save(txn)
	}}
}

// failed records an attempt that failed. touched: what was to come into force may be, by all that the database said; dead: it is not, as is proven.
// If it is not, a static role that is being made is not made, and a password that the database refused gives way to another.
func (e *Engine) failed(t *turn, touched, dead bool, failure error) engine.Turned {
	account, pending := t.Name, t.passwords.Pending
	withdraw := t.New && t.Attempts == 0 && !touched && t.role != nil
	refused := !touched && !errors.Is(failure, ErrUnreachable)
	told := "unable to finish rotating credentials; retries will continue in the background but it is also safe to retry manually: "
	if withdraw {
		told = "the static role was not made, since the password of its account could not be changed: "
	}
	return engine.Turned{
		Err: &api.Error{Kind: api.KindOf(failure), Cause: failure, Text: told + failure.Error()},
		Then: func(a engine.Access, txn *store.Txn, jitter func() float64) error {
			t, err := e.turn(a, account)
			switch {
			case err != nil || t == nil || !t.passwords.Pending.Equal(pending):
				return err
			case withdraw && t.New && t.Attempts == 0:
				forget(txn, a.Mount, t.roleRow, t.role)
				rotation.Drop(txn, t.row, t.Account)
				return nil
			}
			t.New = false
			if !touched {
				t.Untouched()
			}
			if refused {
				t.Withdraw(t.passwords, dead, a.Now)
			}
			t.Failed(failure, a.Now, jitter())
			return t.save(txn)
		},
	}
}

// schedule is when lessor's own account is rotated.
func (c *Connection) schedule() rotation.Schedule {
	if c.RotationOff {
		return rotation.Schedule{}
	}
	return rotation.Schedule{Period: c.RotationPeriod, Cron: c.RotationCron, Window: c.RotationWindow}
}

// candidates are the passwords that may log lessor in, and the version of the row that says so.
func candidates(a engine.Access, connection string, s Secrets) ([]lessor.Secret, uint64, error) {
	p, row, err := passwords(a, rootPrefix+connection)
	if err != nil || !row.Exists() {
		return []lessor.Secret{s.Password}, 0, err
	}
	return p.Candidates(), row.Version, nil
}
