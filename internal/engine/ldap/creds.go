package ldap

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// intent is what a lease keeps to undo what it made: its entries, and the steps that remove them, as they were when it was planned, since a role may
// change; or the account that it lent. CBOR keys are on disk: never renumber, only append.
type intent struct {
	Username string   `cbor:"1,keyasint"`
	Role     string   `cbor:"2,keyasint,omitempty"`
	Display  string   `cbor:"3,keyasint,omitempty"`
	DNs      []string `cbor:"4,keyasint,omitempty"` // of the entries that are added
	Removal  []Step   `cbor:"5,keyasint,omitempty"`
	End      int64    `cbor:"6,keyasint,omitempty"` // of the lease as planned, Unix seconds
	Mark     string   `cbor:"7,keyasint,omitempty"` // of entries that were found: that of the lease that nobody knows
	Set      string   `cbor:"8,keyasint,omitempty"` // library that the account belongs to; empty: it was made
}

// notes reads rows of intents, in which values may be any bytes.
var notes = func() cbor.DecMode {
	d, err := cbor.DecOptions{UTF8: cbor.UTF8DecodeInvalid}.DecMode()
	if err != nil {
		panic(err)
	}
	return d
}()

func intentOf(l *lease.Lease) (*intent, error) {
	var in intent
	if err := notes.Unmarshal(l.Intent, &in); err != nil || in.Username == "" {
		return nil, &api.Error{Kind: api.Internal, Text: "the lease's notes are damaged", Cause: err}
	}
	return &in, nil
}

// nobodys is a password that nobody knows, of kinds of characters that policies ask for.
func nobodys() lessor.Secret { return lessor.NewSecret("Aa1-" + rand.Text()) }

// creds plans an account of a role.
func (e *Engine) creds(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := nameOf(r)
	var role Role
	roleRow, err := load(r.View, r.Mount, rolePrefix, name, &role)
	if err != nil {
		return nil, err
	}
	if !roleRow.Exists() {
		return nil, api.Errorf(api.Invalid, "unknown role: %s", name)
	}
	c, over, err := configured(r)
	if err != nil {
		return nil, err
	}
	names, err := e.usernames(&role)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "username_template: %v", err)
	}
	creation, err := parseLDIF(role.Creation, &secret)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "invalid creation_ldif: %v", err)
	}
	password, err := fresh(r.System.Password, c)
	if err != nil {
		return nil, err
	}

	reply := &engine.Reply{}
	reply.Txn.Require(roleRow)
	reply.Txn.Require(over)
	use(&reply.Txn, r.Mount)
	who := r.Principal.DisplayName
	reply.Issue = &engine.Issue{
		Path: "creds/" + name, Target: Target, TTL: role.TTL, MaxTTL: role.MaxTTL, Renewable: true,
		Plan: func(l *lease.Lease) ([]byte, map[string]any, lessor.Secret, error) {
			refuse := func(err error) ([]byte, map[string]any, lessor.Secret, error) {
				return nil, nil, lessor.Secret{}, api.Errorf(api.Invalid, "%v", err)
			}
			username, err := names.Name(l.ID, l.Issued, who, name)
			if err != nil {
				return refuse(fmt.Errorf("username_template: %w", err))
			}
			in := intent{Username: username, Role: name, Display: who, End: l.Expires.Unix()}
			steps, err := creation.making(l.ID, l.Issued, in.about(l), password, nobodys())
			if err != nil {
				return refuse(fmt.Errorf("creation_ldif: %w", err))
			}
			in.DNs = added(steps)
			if in.Removal, err = role.removal(l.ID, l.Issued, in.about(l), steps); err != nil {
				return refuse(err)
			}
			var dns []string // as Vault tells them: one for each record
			for _, s := range steps[:len(creation.records)] {
				dns = append(dns, s.DN)
			}
			b, err := cbor.Marshal(&in)
			return b, map[string]any{"username": username, "password": password, "distinguished_names": dns}, password, err
		},
	}
	return reply, nil
}

// configured is the mount's configuration, for a request that needs one.
func configured(r *engine.Request) (*Config, store.Row, error) {
	var c Config
	row, err := load(r.View, r.Mount, configRow, "", &c)
	if err == nil && !row.Exists() {
		err = errUnconfigured
	}
	return &c, row, err
}

// about is what the templates of the lease are about.
func (in *intent) about(l *lease.Lease) subject {
	return about(in.Username, in.Display, in.Role, l.Issued, time.Unix(in.End, 0))
}

// entries are the lease's, with the steps that are to be done.
func (in *intent) entries(l *lease.Lease, steps []Step) Entries {
	m := Mark{Lease: markOf(l.ID), Mount: mountMark(l.Mount), Role: roleMark(l.Mount, in.Role), Name: in.Username}
	if in.Mark != "" {
		m.Lease = in.Mark
	}
	return Entries{Mark: m, DNs: in.DNs, Steps: steps}
}

// Apply makes the account of a pending lease, or gives the one that it lends its password.
func (e *Engine) Apply(ctx context.Context, a engine.Access, l *lease.Lease, password lessor.Secret) error {
	in, err := intentOf(l)
	if err != nil {
		return err
	}
	d, err := e.directory(a)
	if err != nil {
		return err
	}
	if in.Set != "" {
		return lend(ctx, d, in.Username, password)
	}
	var role Role
	row, err := load(a.View, a.Mount, rolePrefix, in.Role, &role)
	if err != nil {
		return err
	}
	if !row.Exists() {
		return api.Errorf(api.Invalid, "unknown role: %s", in.Role)
	}
	creation, err := parseLDIF(role.Creation, &secret)
	if err != nil {
		return api.Errorf(api.Invalid, "invalid creation_ldif: %v", err)
	}
	steps, err := creation.making(l.ID, l.Issued, in.about(l), password, nobodys())
	if err != nil {
		return api.Errorf(api.Invalid, "creation_ldif: %v", err)
	}
	err = d.Make(ctx, in.entries(l, steps))
	if err == nil || role.Rollback == "" || errors.Is(err, ErrUnreachable) {
		return err
	}
	rollback, failure := filled(role.Rollback, l.ID, l.Issued, in.about(l))
	if failure == nil {
		failure = d.Remove(ctx, Entries{Mark: in.entries(l, nil).Mark, Steps: rollback})
	}
	if failure != nil {
		return &api.Error{Kind: api.Upstream, Text: err.Error() + "; and rollback_ldif failed: " + failure.Error(), Cause: err}
	}
	return err
}

// Renew has nothing to do: an account has no end of its own at a directory.
func (e *Engine) Renew(context.Context, engine.Access, *lease.Lease, time.Time) error { return nil }

// Revert removes the accounts of the leases, or takes those back that they lent: as many at a time as the Directory has connections.
func (e *Engine) Revert(ctx context.Context, a engine.Access, ls []*lease.Lease) []error {
	errs := make([]error, len(ls))
	d, err := e.directory(a)
	var all sync.WaitGroup
	for i, l := range ls {
		if errs[i] = err; err == nil {
			all.Go(func() { errs[i] = revert(ctx, d, l) })
		}
	}
	all.Wait()
	return errs
}

func revert(ctx context.Context, d Directory, l *lease.Lease) error {
	in, err := intentOf(l)
	switch {
	case err != nil:
		return err
	case in.Set != "":
		return takeBack(ctx, d, in.Username)
	}
	return d.Remove(ctx, in.entries(l, in.Removal))
}

// Targets is the mount's directory, if it is configured.
func (e *Engine) Targets(a engine.Access) ([]string, error) {
	row, err := a.View.Get(rowKey(a.Mount, configRow))
	if err != nil || !row.Exists() {
		return nil, err
	}
	return []string{Target}, nil
}

// Find lists what the mount made: the entries of one lease together. They go as their role says now, and are deleted one by one besides. What it
// lent bears no mark: see idle.
func (e *Engine) Find(ctx context.Context, a engine.Access, target string) ([]engine.Found, error) {
	d, err := e.directory(a)
	if err != nil {
		return nil, err
	}
	marked, err := d.Marked(ctx)
	if err != nil {
		return nil, err
	}
	roles, err := e.roles(a)
	if err != nil {
		return nil, err
	}
	leases := map[string]*intent{}
	var order []string
	for _, m := range marked {
		if m.Mount != mountMark(a.Mount.UUID) {
			continue
		}
		in := leases[m.Lease]
		if in == nil {
			in = &intent{Username: m.Name, Mark: m.Lease}
			if role, ok := roles[m.Role]; ok && m.Name != "" {
				in.Role = role.name
				in.Removal, _ = role.removal("", time.Time{}, about(m.Name, "", role.name, time.Time{}, time.Time{}), nil)
			}
			if in.Username == "" {
				in.Username = m.DN
			}
			leases[m.Lease], order = in, append(order, m.Lease)
		}
		in.DNs = append(in.DNs, m.DN)
	}
	var all []engine.Found
	for _, mark := range order {
		in := leases[mark]
		slices.SortFunc(in.DNs, func(a, b string) int { return len(b) - len(a) }) // what lies below others goes before them
		for _, dn := range in.DNs {
			in.Removal = append(in.Removal, Step{Verb: Delete, DN: dn})
		}
		b, err := cbor.Marshal(in)
		if err != nil {
			return nil, err
		}
		all = append(all, engine.Found{Mark: mark, Target: target, Intent: b})
	}
	idle, err := e.idle(a)
	return append(all, idle...), err
}

// marker is a role by whose mark entries are known.
type marker struct {
	Role
	name string
}

// roles are the mount's, by their marks.
func (e *Engine) roles(a engine.Access) (map[string]marker, error) {
	all := map[string]marker{}
	from := key(a.Mount, rolePrefix)
	for row, err := range a.View.Scan(store.Engine, from, store.PrefixEnd(from)) {
		if err != nil {
			return nil, err
		}
		m := marker{name: row.Name[len(from):]}
		if err := decode(row, &m.Role); err != nil {
			return nil, err
		}
		all[roleMark(a.Mount.UUID, m.name)] = m
	}
	return all, nil
}

// Keep has the configuration stay until the leases are gone that txn makes.
func (e *Engine) Keep(v store.View, m *mount.Entry, target string, txn *store.Txn) error {
	if account, ok := strings.CutPrefix(target, lentTarget); ok {
		return unlent(v, m, account, txn)
	}
	row, err := v.Get(rowKey(m, configRow))
	if err != nil {
		return err
	}
	if !row.Exists() {
		return api.Errorf(api.Upstream, "there is no configuration any more: write it to config")
	}
	txn.Require(row)
	use(txn, m)
	return nil
}

// Advice is about the one thing that only a person can mend: a password of lessor's own account that the store never knew.
func (e *Engine) Advice(m *mount.Entry, _ string) string {
	return fmt.Sprintf("if lessor's own password there was changed after the state that the store was put back to, nobody here knows it: set one at the "+
		"directory, and tell it (lessor write %sconfig binddn=… bindpass=…)", m.Path)
}
