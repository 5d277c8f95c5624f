package ldap

import (
	"context"
	"errors"
	"slices"
	"strings"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/turn"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// Rotation of what is at a directory: the accounts of static roles, "static/NAME", and that which lessor itself logs in with, "root".
// rotateRole and rotateRoot begin one for a request, Plan when it is due; how it goes on package turn says.

// keeper is what the engine has on record of an account, as of one View.
type keeper struct {
	engine  *Engine
	mount   *mount.Entry
	role    *StaticRole // nil: lessor's own account
	name    string      // of role
	row     store.Row   // of role, or of the configuration
	config  *Config
	over    store.Row // of config
	secrets Secrets   // of config, for lessor's own account
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
	return k, t, err
}

// complete reads the rest of a keeper whose role is known, and the account's rotation.
func (k *keeper) complete(a engine.Access, account string) (*turn.Turn, error) {
	k.mount, k.config = a.Mount, &Config{}
	var err error
	if k.over, err = load(a.View, a.Mount, configRow, "", k.config); err != nil {
		return nil, err
	}
	if !k.over.Exists() {
		return nil, errUnconfigured
	}
	if k.role != nil {
		return turn.Of(a, account, k)
	}
	k.row = k.over
	sealed, err := a.View.Get(store.Key{Table: store.Secrets, Name: k.over.Name})
	if err != nil {
		return nil, err
	}
	if k.secrets, err = open(a.Opener, a.Grant, sealed); err != nil {
		return nil, err
	}
	return turn.Of(a, account, k)
}

var errUnconfigured = api.Errorf(api.Invalid, "missing LDAP configuration: write it to config")

// Terms are those on which the account is rotated.
func (k *keeper) Terms() turn.Terms {
	if k.role == nil {
		return turn.Terms{Terms: k.config.terms(), Row: k.row, Queue: Target, Configured: k.secrets.Password}
	}
	return turn.Terms{Terms: k.role.terms(k.name), Row: k.row, Queue: Target, Grace: k.role.Grace, Quiet: rotation.DefaultQuiet, Blind: k.role.Usernames.Pair()}
}

// Fresh makes a password that a directory can take.
func (k *keeper) Fresh(generate func(policy string) (lessor.Secret, error)) (lessor.Secret, error) {
	return fresh(generate, k.config)
}

// Reach is the way to one of the accounts.
func (k *keeper) Reach(ctx context.Context, t *turn.Turn, slot uint8) (turn.Target, error) {
	d, err := k.engine.directory(t.Access)
	if err != nil {
		return nil, err
	}
	if k.role == nil {
		return entry{d, k.config.BindDN}, k.unshared(ctx, d, t.Access.View)
	}
	dns, err := k.locate(ctx, d)
	if err != nil {
		return nil, err
	}
	return entry{d, dns[slot]}, nil
}

// locate finds the accounts by their names where the role knows no DNs. None of them is lessor's own, and of two none is the other: its password is not the one
// that may be changed.
func (k *keeper) locate(ctx context.Context, d Directory) (dns []string, err error) {
	own := k.config.BindDN
	if _, err := goldap.ParseDN(own); err != nil && slices.ContainsFunc(k.role.dns(), func(dn string) bool { return dn != "" }) {
		if own, _, err = d.Self(ctx); err != nil {
			return nil, err
		}
	}
	for i, dn := range k.role.dns() {
		if dn == "" {
			if dn, err = d.Locate(ctx, k.role.Usernames[i]); err != nil {
				return nil, err
			}
		}
		switch {
		case same(dn, k.config.BindDN), same(dn, own):
			return nil, errOwn(k.role.Usernames[i])
		case i > 0 && same(dn, dns[0]):
			return nil, api.Errorf(api.Invalid, "%q and %q are one account at the directory: %s", k.role.Usernames[0], k.role.Usernames[1], dn)
		}
		dns = append(dns, dn)
	}
	return dns, nil
}

// unshared refuses to touch lessor's own account where a static role or a library manages it by one of its names: each would change the password under the other.
func (k *keeper) unshared(ctx context.Context, d Directory, v store.View) error {
	own, names, err := d.Self(ctx)
	if err != nil {
		return err
	}
	if dn, err := goldap.ParseDN(own); err == nil {
		by, err := v.Get(accountKey(k.mount, dn.String()))
		if err != nil {
			return err
		}
		if by.Exists() {
			return k.shared(by)
		}
	}
	for _, name := range names {
		by, err := v.Get(accountKey(k.mount, name))
		if err != nil {
			return err
		}
		elsewhere := !by.Exists()
		if role, ok := strings.CutPrefix(string(by.Value), staticPrefix); ok {
			var r StaticRole
			if _, err := load(v, k.mount, staticPrefix, role, &r); err != nil {
				return err
			}
			elsewhere = !r.searches(name)
		}
		if elsewhere {
			continue
		}
		switch dn, err := d.Locate(ctx, name); {
		case errors.Is(err, ErrUnreachable):
			return err
		case err == nil && (same(dn, own) || same(dn, k.config.BindDN)):
			return k.shared(by)
		}
	}
	return nil
}

func (k *keeper) shared(by store.Row) error {
	return api.Errorf(api.Invalid, "the account %q is managed by %s: give lessor an account of its own, or delete that", k.config.BindDN, by.Value)
}

// searches reports whether the role finds the account of a name by searching for it.
func (role *StaticRole) searches(name string) bool {
	for i, dn := range role.dns() {
		if dn == "" && strings.EqualFold(role.Usernames[i], name) {
			return true
		}
	}
	return false
}

// Forget deletes the static role.
func (k *keeper) Forget(txn *store.Txn) { forget(txn, k.mount, k.row, k.role) }

// entry is an account at a directory. Who uses it no directory shows.
type entry struct {
	Directory
	dn string
}

// Set changes the password.
func (e entry) Set(ctx context.Context, password lessor.Secret) error {
	return e.SetPassword(ctx, e.dn, password)
}

// Changeable is the error that the directory does not show the account.
func (e entry) Changeable(ctx context.Context) error {
	there, err := e.Shows(ctx, e.dn)
	if err == nil && !there {
		err = &api.Error{Kind: api.Upstream, Cause: ErrNoAccount, Text: "the directory shows no entry " + e.dn + ": see whether that is its DN, and what lessor's account may read"}
	}
	return err
}

// Login tries a password.
func (e entry) Login(ctx context.Context, password lessor.Secret) (Verdict, error) {
	return e.Directory.Login(ctx, e.dn, password)
}

// Plan decides what comes next with an account by itself.
func (e *Engine) Plan(a engine.Access, account string, txn *store.Txn) (*engine.Rotate, error) {
	return turn.Accounts(e.turn).Plan(a, account, txn)
}

// Turn touches the directory.
func (e *Engine) Turn(ctx context.Context, a engine.Access, account string) engine.Turned {
	return turn.Accounts(e.turn).Turn(ctx, a, account)
}

// fresh generates a password by the configuration's policy. Directories take bytes that begin with a scheme in braces for a hash.
func fresh(generate func(policy string) (lessor.Secret, error), c *Config) (lessor.Secret, error) {
	for range 8 {
		p, err := generate(c.PasswordPolicy)
		if err != nil || !p.Empty() && !strings.HasPrefix(p.Reveal(), "{") && !strings.ContainsAny(p.Reveal(), "\x00\"") {
			return p, err
		}
	}
	return lessor.Secret{}, api.Errorf(api.Invalid, `the password policy makes passwords that directories take for something else: they must not be empty, begin with "{", or hold quotes`)
}

// rotateRole changes the password of a static role now.
func (e *Engine) rotateRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := nameOf(r)
	role, t, err := e.named(r, name)
	if err != nil {
		return nil, err
	}
	if role == nil {
		return nil, api.Errorf(api.Invalid, "role doesn't exist: %s", name)
	}
	return turn.Accounts(e.turn).Now(t, r)
}

// rotateRoot changes the password of lessor's own account now. Nobody is told the new one.
func (e *Engine) rotateRoot(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t, err := e.turn(turn.AccessOf(r), rootAccount)
	if err != nil {
		return nil, err
	}
	return turn.Accounts(e.turn).Now(t, r)
}
