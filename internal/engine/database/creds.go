package database

import (
	"context"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// intent is what a lease keeps to make, renew and remove its account. It holds the statements as they were when the account
// was planned, since a role may change; it refers to its connection, since that one's own password may. CBOR keys are on
// disk: never renumber, only append.
type intent struct {
	Connection string     `cbor:"1,keyasint"`
	Username   string     `cbor:"2,keyasint"`
	Role       string     `cbor:"3,keyasint"`
	End        int64      `cbor:"4,keyasint"`           // of the lease as planned, Unix seconds, rounded up
	Statements Statements `cbor:"5,keyasint"`           // without those of creation: they are needed once only, right after the plan
	Mark       string     `cbor:"6,keyasint,omitempty"` // of an account that was found: that of the lease that nobody knows
}

// creds plans an account of a role.
func (e *Engine) creds(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := r.Param("name")
	var role Role
	roleRow, err := load(r.View, r.Mount, rolePrefix, name, &role)
	if err != nil {
		return nil, err
	}
	if !roleRow.Exists() {
		return nil, api.Errorf(api.Invalid, "unknown role: %s", name)
	}
	var c Connection
	connectionRow, err := load(r.View, r.Mount, connectionPrefix, role.Connection, &c)
	if err != nil {
		return nil, err
	}
	if !connectionRow.Exists() {
		return nil, api.Errorf(api.Invalid, "there is no connection %q, which role %q uses: configure it", role.Connection, name)
	}
	if !c.allows(name) {
		return nil, api.Errorf(api.Invalid, "%q is not an allowed role: add it to allowed_roles of connection %q", name, role.Connection)
	}
	d, err := e.driver(c.Plugin)
	if err != nil {
		return nil, err
	}
	template, err := e.template(d, c.UsernameTemplate)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "username_template: %v", err)
	}
	policy := role.PasswordPolicy
	if policy == "" {
		policy = c.PasswordPolicy
	}
	password, err := r.System.Password(policy)
	if err != nil {
		return nil, err
	}

	reply := &engine.Reply{}
	reply.Txn.Require(roleRow)
	reply.Txn.Require(connectionRow)
	use(&reply.Txn, r.Mount, role.Connection)
	who := r.Principal.DisplayName
	reply.Issue = &engine.Issue{
		Path: "creds/" + name, Target: role.Connection, TTL: role.TTL, MaxTTL: role.MaxTTL, Renewable: true,
		Plan: func(l *lease.Lease) ([]byte, map[string]any, lessor.Secret, error) {
			username, err := template.Name(l.ID, l.Issued, who, name)
			if err != nil {
				return nil, nil, lessor.Secret{}, api.Errorf(api.Invalid, "username_template: %v", err)
			}
			later := role.Statements
			later.Creation = nil
			in, err := cbor.Marshal(intent{
				Connection: role.Connection, Username: username, Role: name,
				End: l.Expires.Add(time.Second - time.Nanosecond).Unix(), Statements: later,
			})
			return in, map[string]any{"username": username, "password": password}, password, err
		},
	}
	return reply, nil
}

// Apply makes the account of a pending lease.
func (e *Engine) Apply(ctx context.Context, a engine.Access, l *lease.Lease, password lessor.Secret) error {
	in, err := intentOf(l)
	if err != nil {
		return err
	}
	var role Role
	row, err := load(a.View, a.Mount, rolePrefix, in.Role, &role)
	if err != nil {
		return err
	}
	if !row.Exists() {
		return api.Errorf(api.Invalid, "unknown role: %s", in.Role)
	}
	db, err := e.database(a, in.Connection)
	if err != nil {
		return err
	}
	account := in.account(l)
	account.Password, account.Creation = password, role.Statements.Creation
	return db.Create(ctx, account)
}

// Renew moves the account's end at the database to until.
func (e *Engine) Renew(ctx context.Context, a engine.Access, l *lease.Lease, until time.Time) error {
	in, err := intentOf(l)
	if err != nil {
		return err
	}
	db, err := e.database(a, in.Connection)
	if err != nil {
		return err
	}
	account := in.account(l)
	account.Until = until
	return db.Renew(ctx, account)
}

// Revert removes the accounts of the leases.
func (e *Engine) Revert(ctx context.Context, a engine.Access, ls []*lease.Lease) []error {
	errs := make([]error, len(ls))
	type batch struct {
		accounts []Account
		at       []int
	}
	batches := map[string]*batch{}
	for i, l := range ls {
		in, err := intentOf(l)
		if err != nil {
			errs[i] = err
			continue
		}
		b := batches[in.Connection]
		if b == nil {
			b = &batch{}
			batches[in.Connection] = b
		}
		b.accounts, b.at = append(b.accounts, in.account(l)), append(b.at, i)
	}
	for connection, b := range batches {
		db, err := e.database(a, connection)
		if err != nil {
			for _, i := range b.at {
				errs[i] = err
			}
			continue
		}
		for n, err := range db.Remove(ctx, b.accounts) {
			errs[b.at[n]] = err
		}
	}
	return errs
}

// Targets are the mount's connections.
func (e *Engine) Targets(a engine.Access) (all []string, err error) {
	from := key(a.Mount, connectionPrefix)
	for row, err := range a.View.Scan(store.Engine, from, store.PrefixEnd(from)) {
		if err != nil {
			return nil, err
		}
		all = append(all, row.Name[len(from):])
	}
	return all, nil
}

// Find lists the accounts at a connection's server that the mount made, also over other connections to it: those may never be able to look
// themselves. An account goes as its role says now, over the connection that the role uses. Where the role is no more, or may not use that
// connection, or that one leads elsewhere, it goes by the driver's own means, over the connection that found it.
func (e *Engine) Find(ctx context.Context, a engine.Access, connection string) ([]engine.Found, error) {
	db, err := e.database(a, connection)
	if err != nil {
		return nil, err
	}
	marked, err := db.Marked(ctx)
	if err != nil {
		return nil, err
	}
	makers, err := e.makers(a, connection)
	if err != nil {
		return nil, err
	}
	var all []engine.Found
	for _, m := range marked {
		if m.Mount != mountMark(a.Mount.UUID) {
			continue
		}
		maker, known := makers[m.Role]
		if !known {
			maker.connection = connection
		}
		in, err := cbor.Marshal(intent{Connection: maker.connection, Username: m.Username, Role: maker.role, Statements: maker.statements, Mark: m.Mark})
		if err != nil {
			return nil, err
		}
		all = append(all, engine.Found{Mark: m.Mark, Target: maker.connection, Intent: in})
	}
	return all, nil
}

// maker is a role that made accounts at some server.
type maker struct {
	role       string
	connection string     // that it uses
	statements Statements // but those of creation
}

// makers are the mount's roles by their marks, as far as they may make accounts at the server of a connection. Who may write a role has its
// statements run only where the role is allowed to.
func (e *Engine) makers(a engine.Access, connection string) (map[string]maker, error) {
	var here Connection
	if _, err := load(a.View, a.Mount, connectionPrefix, connection, &here); err != nil {
		return nil, err
	}
	d, err := e.driver(here.Plugin)
	if err != nil {
		return nil, err
	}
	all := make(map[string]maker)
	from := key(a.Mount, rolePrefix)
	for row, err := range a.View.Scan(store.Engine, from, store.PrefixEnd(from)) {
		if err != nil {
			return nil, err
		}
		var role Role
		if err := decode(row, &role); err != nil {
			return nil, err
		}
		used := here
		if role.Connection != connection {
			used = Connection{} // allows nothing, if it is not there
			if _, err := load(a.View, a.Mount, connectionPrefix, role.Connection, &used); err != nil {
				return nil, err
			}
		}
		name := row.Name[len(from):]
		if !used.allows(name) || used.Plugin != here.Plugin || !d.SameServer(&here, &used) {
			continue
		}
		m := maker{role: name, connection: role.Connection, statements: role.Statements}
		m.statements.Creation = nil
		all[roleMark(a.Mount.UUID, name)] = m
	}
	return all, nil
}

// Keep has a connection stay until the leases are gone that txn makes over it.
func (e *Engine) Keep(v store.View, m *mount.Entry, connection string, txn *store.Txn) error {
	var c Connection
	row, err := load(v, m, connectionPrefix, connection, &c)
	if err != nil {
		return err
	}
	if !row.Exists() {
		return api.Errorf(api.Upstream, "there is no connection %q any more: configure it again", connection)
	}
	txn.Require(row)
	use(txn, m, connection)
	return nil
}

// Mark is what the account of a lease bears.
func (e *Engine) Mark(lease string) string { return Mark(lease) }

// Advice is about the one thing that only a person can mend: a password of lessor's own account that the store never knew.
func (e *Engine) Advice(m *mount.Entry, connection string) string {
	return fmt.Sprintf("if lessor's own password there was changed after the state that the store was put back to, nobody here knows it: set one at the "+
		"database, and tell it (lessor write %sconfig/%s username=… password=…)", m.Path, connection)
}

func intentOf(l *lease.Lease) (*intent, error) {
	var in intent
	if err := cbor.Unmarshal(l.Intent, &in); err != nil || in.Username == "" {
		return nil, &api.Error{Kind: api.Internal, Text: "the lease's notes are damaged", Cause: err}
	}
	return &in, nil
}

// account is the lease's account, as far as the intent knows it.
func (in *intent) account(l *lease.Lease) Account {
	return Account{
		Lease: l.ID, Mount: mountMark(l.Mount), Role: roleMark(l.Mount, in.Role), Found: in.Mark, Username: in.Username,
		Until: time.Unix(in.End, 0).UTC(), Statements: in.Statements,
	}
}
