package database

import (
	"context"
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/turn"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// Rotation of what is at a database: the accounts of static roles, "static/NAME", and those that lessor itself logs in with, "root/NAME".
// rotateRole and rotateRoot begin one for a request, Plan when it is due; how it goes on package turn says.

var _ engine.Explainer = (*Engine)(nil)

// keeper is what the engine has on record of an account, as of one View.
type keeper struct {
	engine     *Engine
	mount      *mount.Entry
	view       store.View
	role       *StaticRole // nil: the connection's own account
	name       string      // of role
	row        store.Row   // of role, or of connection
	at         string      // name of connection
	connection *Connection
	over       store.Row // of connection
	secrets    Secrets
	driver     Driver
	usernames  turn.Names // of role, or of connection
}

// turn reads an account. nil: it does not exist any more.
func (e *Engine) turn(a engine.Access, account string) (*turn.Turn, error) {
	k := &keeper{engine: e}
	if name, ok := strings.CutPrefix(account, staticPrefix); ok {
		k.role, k.name = &StaticRole{}, name
		var err error
		if k.row, err = load(a.View, a.Mount, staticPrefix, name, k.role); err != nil || !k.row.Exists() {
			return nil, err
		}
	}
	return k.complete(a, account)
}

// forRequest is turn for a request about a role, which may differ from the stored one.
func (e *Engine) forRequest(r *engine.Request, name string, role *StaticRole, row store.Row) (*keeper, *turn.Turn, error) {
	k := &keeper{engine: e, role: role, name: name, row: row}
	t, err := k.complete(turn.AccessOf(r), staticPrefix+name)
	if err != nil {
		return nil, nil, err
	}
	if !k.connection.allows(name) {
		return nil, nil, api.Errorf(api.Invalid, "%q is not an allowed role: add it to allowed_roles of connection %q", name, role.Connection)
	}
	for _, username := range role.Usernames {
		if err := k.driver.CheckRotation(username, role.Rotation); err != nil {
			return nil, nil, api.Errorf(api.Invalid, "%v", err)
		}
	}
	return k, t, nil
}

// complete reads the rest of a keeper whose role is known, and the account's rotation.
func (k *keeper) complete(a engine.Access, account string) (*turn.Turn, error) {
	k.mount, k.view = a.Mount, a.View
	k.at = strings.TrimPrefix(account, rootPrefix)
	if k.role != nil {
		k.at = k.role.Connection
	}
	k.connection = &Connection{}
	var err error
	if k.over, err = load(a.View, a.Mount, connectionPrefix, k.at, k.connection); err != nil {
		return nil, err
	}
	if !k.over.Exists() {
		return nil, api.Errorf(api.Invalid, "there is no connection %q: configure it", k.at)
	}
	if k.driver, err = k.engine.driver(k.connection.Plugin); err != nil {
		return nil, err
	}
	if k.role != nil {
		k.usernames = k.role.Usernames
		return turn.Of(a, account, k)
	}
	k.row = k.over
	username, err := k.driver.Account(k.connection)
	if err != nil {
		return nil, err
	}
	k.usernames = turn.Names{username}
	sealed, err := a.View.Get(store.Key{Table: store.Secrets, Name: k.over.Name})
	if err != nil {
		return nil, err
	}
	if k.secrets, err = open(a.Opener.Open, a.Grant, sealed); err != nil {
		return nil, err
	}
	return turn.Of(a, account, k)
}

// Terms are those on which the account is rotated.
func (k *keeper) Terms() turn.Terms {
	t := turn.Terms{Row: k.row, Queue: k.at}
	if k.role == nil {
		t.Terms = k.connection.terms(k.at, k.usernames[0])
		t.Configured = k.secrets.Password
		return t
	}
	t.Terms, t.Grace, t.Quiet = k.role.terms(k.name), k.role.Grace, k.role.quiet()
	return t
}

// Fresh makes a password that the database can take.
func (k *keeper) Fresh(generate func(policy string) (lessor.Secret, error)) (lessor.Secret, error) {
	from := k.connection.PasswordPolicy
	if k.role != nil && k.role.PasswordPolicy != "" {
		from = k.role.PasswordPolicy
	}
	var err error
	for range 8 {
		var password lessor.Secret
		if password, err = generate(from); err != nil {
			return password, err
		}
		if err = k.driver.CheckPassword(k.connection, password); err == nil {
			return password, nil
		}
	}
	return lessor.Secret{}, api.Errorf(api.Invalid, "%v", err)
}

// Reach is the way to one of the accounts.
func (k *keeper) Reach(_ context.Context, t *turn.Turn, slot uint8) (turn.Target, error) {
	db, err := k.engine.database(t.Access, k.at)
	if err != nil {
		return nil, err
	}
	c := Change{Name: k.mount.UUID + t.Name, Username: k.usernames[slot], Statements: k.connection.RootRotation}
	if k.role != nil {
		if c.Statements = k.role.Rotation; k.role.SelfManaged {
			c.Self = t.Passwords.Candidates()
		}
	}
	return &account{db: db, change: c, again: t.Loose > 1}, nil
}

// Forget deletes the static role.
func (k *keeper) Forget(txn *store.Txn) { forget(txn, k.mount, k.row, k.role) }

// account is one at a database, whose password is changed as its role or connection says.
type account struct {
	db     Database
	change Change // but for the password
	again  bool   // it may have been changed to that one already
}

var _ turn.Witness = (*account)(nil)

// Set changes the password. Statements of somebody's own may not bear to be run twice.
func (a *account) Set(ctx context.Context, password lessor.Secret) error {
	if a.again && len(a.change.Statements) > 0 {
		if verdict, err := a.Login(ctx, password); err == nil && verdict.Right() {
			return nil
		}
	}
	c := a.change
	c.Password = password
	return a.db.SetPassword(ctx, c)
}

// Changeable is what would keep Set from changing the password.
func (a *account) Changeable(ctx context.Context) error { return a.db.Changeable(ctx, a.change) }

// Login tries a password.
func (a *account) Login(ctx context.Context, password lessor.Secret) (Verdict, error) {
	return a.db.Login(ctx, a.change.Username, password)
}

// End ends the account's sessions.
func (a *account) End(ctx context.Context) error { return a.db.End(ctx, a.change.Username) }

// Sessions are those of the account by where they come from and what they call themselves, as many as are kept.
func (a *account) Sessions(ctx context.Context) (all []rotation.Seen, err error) {
	sessions, err := a.db.Sessions(ctx, []string{a.change.Username})
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
	return all, err
}

// Plan decides what comes next with an account by itself.
func (e *Engine) Plan(a engine.Access, account string, txn *store.Txn) (*engine.Rotate, error) {
	return turn.Accounts(e.turn).Plan(a, account, txn)
}

// Turn touches the database.
func (e *Engine) Turn(ctx context.Context, a engine.Access, account string) engine.Turned {
	return turn.Accounts(e.turn).Turn(ctx, a, account)
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
		terms := role.terms(name)
		return &terms, nil
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
	terms := c.terms(name, username)
	return &terms, err
}

func (role *StaticRole) terms(name string) engine.Terms {
	return engine.Terms{Path: "static-roles/" + name, Reads: staticCreds + name, Accounts: role.Usernames, Schedule: role.schedule(), CheckOut: role.CheckOut}
}

func (c *Connection) terms(name, username string) engine.Terms {
	return engine.Terms{Path: connectionPrefix + name, Accounts: []string{username}, Schedule: c.schedule()}
}

// rotateRole changes the password of a static role now.
func (e *Engine) rotateRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	role, t, err := e.named(r, r.Param("name"))
	if err != nil {
		return nil, err
	}
	if role == nil {
		return nil, api.Errorf(api.Invalid, "no static role found for role name")
	}
	return turn.Accounts(e.turn).Now(t, r)
}

// rotateRoot changes the password of lessor's own account now. Nobody is told the new one.
func (e *Engine) rotateRoot(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	k := &keeper{engine: e}
	t, err := k.complete(turn.AccessOf(r), rootPrefix+r.Param("name"))
	if err != nil {
		return nil, err
	}
	if err := k.ownable(t); err != nil {
		return nil, err
	}
	return turn.Accounts(e.turn).Now(t, r)
}

// ownable refuses to rotate lessor's own account where somebody else depends on its password.
func (k *keeper) ownable(t *turn.Turn) error {
	if t.Passwords.Current.Empty() {
		return api.Errorf(api.Invalid, "unable to rotate root credentials: the connection has no password")
	}
	username := k.usernames[0]
	there, err := k.engine.users(k.view, k.mount, k.driver, k.connection, k.at, username)
	if err != nil {
		return err
	}
	for _, u := range there {
		switch {
		case u.managed.Exists():
			return api.Errorf(api.Invalid, "unable to rotate root credentials: the account %q is also that of the static role %q; give the connection an account of its own", username, u.managed.Value)
		case u.own && u.connection != k.at:
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
