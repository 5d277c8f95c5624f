package ldap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/turn"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// A library lends accounts that exist, each to one borrower at a time. What is lent is a lease: it begins with a password of its own, and ends with
// one that nobody knows. So an account is there for the next one exactly when its last lease is gone, which is when the directory has
// confirmed that the borrower's password is dead: there is no other record of it than the lease.

// Set is a library. CBOR keys are on disk: never renumber, only append.
type Set struct {
	Accounts []string      `cbor:"1,keyasint"` // names, by userattr
	TTL      time.Duration `cbor:"2,keyasint,omitempty"`
	MaxTTL   time.Duration `cbor:"3,keyasint,omitempty"`
	Anybody  bool          `cbor:"4,keyasint,omitempty"` // may give an account back, not only who borrowed it
}

const mostAccounts = 1000

var setFields = []engine.Field{
	{Name: "service_account_names", Type: engine.Strings, Help: "Names of the accounts. They exist already; their passwords are changed when they are put into the set."},
	{Name: "ttl", Type: engine.Duration, Help: "Length of the leases. Default 24 hours; 0 for the mount's default."},
	{Name: "max_ttl", Type: engine.Duration, Help: "Length that renewals cannot exceed. Default 24 hours; 0 for the mount's maximum."},
	{Name: "disable_check_in_enforcement", Type: engine.Bool, Help: "Let anybody who may use check-in give an account back, not only who borrowed it."},
}

func (e *Engine) readSet(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	var set Set
	row, err := load(r.View, r.Mount, setPrefix, nameOf(r), &set)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, &api.Error{Kind: api.NotFound}
	}
	return &engine.Reply{Data: map[string]any{
		"service_account_names": set.Accounts, "ttl": turn.Seconds(set.TTL), "max_ttl": turn.Seconds(set.MaxTTL), "disable_check_in_enforcement": set.Anybody,
	}}, nil
}

// writeSet makes or changes a set; what is not sent stays as it was. New accounts get passwords that nobody knows first, which shows that lessor can
// lend them.
func (e *Engine) writeSet(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := named(r)
	if err != nil {
		return nil, err
	}
	if last := name[strings.LastIndexByte(name, '/')+1:]; slices.Contains([]string{"check-out", "check-in", "status"}, last) || name == "manage" || strings.HasPrefix(name, "manage/") {
		return nil, api.Errorf(api.Invalid, "%q cannot be the name of a set: the path stands for something else", name)
	}
	set := Set{TTL: 24 * time.Hour, MaxTTL: 24 * time.Hour}
	row, err := load(r.View, r.Mount, setPrefix, name, &set)
	if err != nil {
		return nil, err
	}
	before := set.Accounts
	if err := set.amend(r); err != nil {
		return nil, err
	}
	_, over, err := configured(r)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	reply.Txn.Require(over)
	use(&reply.Txn, r.Mount)
	var added []string
	for _, account := range set.Accounts {
		if slices.Contains(before, account) {
			continue
		}
		if err := manage(r, &reply.Txn, account, setPrefix+name); err != nil {
			return nil, err
		}
		added = append(added, account)
	}
	for _, account := range before {
		if !slices.Contains(set.Accounts, account) {
			if err := release(r, &reply.Txn, account); err != nil {
				return nil, err
			}
		}
	}
	if len(added) > 0 {
		access := turn.AccessOf(r)
		reply.First = func(ctx context.Context) ([]string, error) { return nil, e.enlist(ctx, access, added) }
	}
	return reply, save(&reply.Txn, row, &set)
}

// amend takes over what the client sent.
func (set *Set) amend(r *engine.Request) error {
	if r.Has("service_account_names") {
		set.Accounts = r.List("service_account_names")
	}
	if r.Has("ttl") {
		set.TTL = r.Dur("ttl")
	}
	if r.Has("max_ttl") {
		set.MaxTTL = r.Dur("max_ttl")
	}
	if r.Has("disable_check_in_enforcement") {
		set.Anybody = r.Bool("disable_check_in_enforcement")
	}
	switch {
	case len(set.Accounts) == 0:
		return api.Errorf(api.Invalid, `"service_account_names" must be provided`)
	case len(set.Accounts) > mostAccounts:
		return api.Errorf(api.Invalid, "a set has %d accounts at most", mostAccounts)
	case set.MaxTTL > 0 && set.MaxTTL < set.TTL:
		return api.Errorf(api.Invalid, "max_ttl (%d seconds) may not be less than ttl (%d seconds)", set.MaxTTL/time.Second, set.TTL/time.Second)
	}
	seen := map[string]bool{}
	for _, a := range set.Accounts {
		folded := strings.ToLower(a)
		if a == "" || len(a) > 255 || strings.ContainsFunc(a, func(c rune) bool { return c < ' ' }) || seen[folded] {
			return api.Errorf(api.Invalid, "service_account_names: %q is empty, too long, not printable, or there twice", a)
		}
		seen[folded] = true
	}
	return nil
}

// enlist gives new accounts of a set passwords that nobody knows.
func (e *Engine) enlist(ctx context.Context, a engine.Access, accounts []string) error {
	d, err := e.directory(a)
	if err != nil {
		return err
	}
	var c Config
	if _, err := load(a.View, a.Mount, configRow, "", &c); err != nil {
		return err
	}
	dns := make([]string, len(accounts))
	for i, account := range accounts { // all must be there before one is touched
		if dns[i], err = d.Locate(ctx, account); err != nil {
			return err
		}
		if same(dns[i], c.BindDN) {
			return errOwn(account)
		}
	}
	for i, dn := range dns {
		if _, _, err := turn.Bring(ctx, entry{d, dn}, nobodys()); err != nil {
			return &api.Error{Kind: api.KindOf(err), Text: fmt.Sprintf("%s: %v", accounts[i], err), Cause: err}
		}
	}
	return nil
}

// unlent adds to txn that an account belongs to a library, which keeps the configuration, and that nobody has borrowed it meanwhile.
func unlent(v store.View, m *mount.Entry, account string, txn *store.Txn) error {
	managed, err := v.Get(accountKey(m, account))
	if err != nil {
		return err
	}
	l, lent, err := lentUnder(v, m, account)
	switch {
	case err != nil:
		return err
	case !managed.Exists() || l != nil:
		return api.Errorf(api.Upstream, "%q was checked out meanwhile, or is in no library any more", account)
	}
	txn.Require(managed)
	txn.Require(lent)
	return nil
}

// release lets go of an account that is not lent.
func release(r *engine.Request, txn *store.Txn, account string) error {
	l, lent, err := lentUnder(r.View, r.Mount, account)
	if err != nil {
		return err
	}
	if l != nil {
		return api.Errorf(api.Invalid, "%q can't be deleted because it is currently checked out", account)
	}
	txn.Require(lent)
	for _, id := range lendings(r.Mount, account, lent) {
		txn.Absent(store.Leases, key(r.Mount, id))
	}
	txn.Delete(lent.Table, lent.Name)
	txn.Delete(store.Engine, accountKey(r.Mount, account).Name)
	return nil
}

func (e *Engine) deleteSet(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	var set Set
	row, err := load(r.View, r.Mount, setPrefix, nameOf(r), &set)
	if err != nil || !row.Exists() {
		return nil, err
	}
	reply := &engine.Reply{Warnings: []string{"the accounts stay at the directory, with passwords that nobody knows"}}
	for _, account := range set.Accounts {
		if err := release(r, &reply.Txn, account); err != nil {
			return nil, err
		}
	}
	reply.Txn.Require(row)
	reply.Txn.Delete(row.Table, row.Name)
	return reply, nil
}

// lentUnder is the lease that an account is lent under; nil: it is there. row says under which it was last.
func lentUnder(v store.View, m *mount.Entry, account string) (l *lease.Lease, row store.Row, err error) {
	row, err = v.Get(rowKey(m, lentPrefix, strings.ToLower(account)))
	if err != nil {
		return nil, row, err
	}
	for _, id := range lendings(m, account, row) {
		if l, _, err := lease.Find(v, m.Namespace, m.UUID, id); err != nil || l != nil {
			return l, row, err
		}
	}
	return nil, row, nil
}

// lendings are the ids of the leases under which an account may be lent: its last one, and the one by which it is taken back from whom the store does
// not know.
func lendings(m *mount.Entry, account string, lent store.Row) []string {
	ids := []string{m.Path + "strays/" + lentMark(m, account)}
	if lent.Exists() {
		ids = append(ids, string(lent.Value))
	}
	return ids
}

// lentMark stands for the unknown borrower of an account.
func lentMark(m *mount.Entry, account string) string {
	return digest("lent", m.UUID+"\x00"+strings.ToLower(account))
}

// lentTarget begins the names of targets that stand for one account of a library.
const lentTarget = Target + "/"

// idle are the accounts of libraries that nobody has, as far as the store knows. Who may have one all the same, since the store was put back to an earlier
// state, loses it: each is taken back.
func (e *Engine) idle(a engine.Access) (all []engine.Found, err error) {
	from := key(a.Mount, setPrefix)
	for row, err := range a.View.Scan(store.Engine, from, store.PrefixEnd(from)) {
		if err != nil {
			return nil, err
		}
		var set Set
		if err := decode(row, &set); err != nil {
			return nil, err
		}
		for _, account := range set.Accounts {
			l, _, err := lentUnder(a.View, a.Mount, account)
			if err != nil {
				return nil, err
			}
			if l != nil {
				continue
			}
			in, err := cbor.Marshal(&intent{Username: account, Set: row.Name[len(from):]})
			if err != nil {
				return nil, err
			}
			all = append(all, engine.Found{Mark: lentMark(a.Mount, account), Target: lentTarget + strings.ToLower(account), Intent: in})
		}
	}
	return all, nil
}

// setOf is the set that a request names.
func setOf(r *engine.Request) (Set, store.Row, error) {
	var set Set
	row, err := load(r.View, r.Mount, setPrefix, nameOf(r), &set)
	if err == nil && !row.Exists() {
		err = api.Errorf(api.Invalid, "%q doesn't exist", nameOf(r))
	}
	return set, row, err
}

// checkOut lends the first account that is there.
func (e *Engine) checkOut(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	set, row, err := setOf(r)
	if err != nil {
		return nil, err
	}
	c, over, err := configured(r)
	if err != nil {
		return nil, err
	}
	ttl := set.TTL
	if asked := r.Dur("ttl"); asked > 0 && (ttl <= 0 || asked < ttl) {
		ttl = asked
	}
	for _, account := range set.Accounts {
		l, lent, err := lentUnder(r.View, r.Mount, account)
		if err != nil {
			return nil, err
		}
		if l != nil {
			continue
		}
		password, err := fresh(r.System.Password, c)
		if err != nil {
			return nil, err
		}
		reply := &engine.Reply{}
		reply.Txn.Require(row)
		reply.Txn.Require(over)
		reply.Txn.Require(lent)
		for _, id := range lendings(r.Mount, account, lent) {
			reply.Txn.Absent(store.Leases, key(r.Mount, id))
		}
		use(&reply.Txn, r.Mount)
		name := nameOf(r)
		reply.Issue = &engine.Issue{
			Path: setPrefix + name + "/check-out", Target: Target, TTL: ttl, MaxTTL: set.MaxTTL, Renewable: true,
			Plan: func(l *lease.Lease) ([]byte, map[string]any, lessor.Secret, error) {
				reply.Txn.Put(lent.Table, lent.Name, []byte(l.ID))
				in, err := cbor.Marshal(&intent{Username: account, Set: name})
				return in, map[string]any{"service_account_name": account, "password": password}, password, err
			},
		}
		return reply, nil
	}
	return nil, api.Errorf(api.Invalid, "No service accounts available for check-out.")
}

// lend gives an account its borrower's password.
func lend(ctx context.Context, d Directory, account string, password lessor.Secret) error {
	dn, err := d.Locate(ctx, account)
	if err == nil {
		_, _, err = turn.Bring(ctx, entry{d, dn}, password)
	}
	return err
}

// takeBack gives an account a password that nobody knows, and sees that it is in force: then the borrower's is dead. An account that the directory does
// not show is not back: it may be there, out of lessor's sight.
func takeBack(ctx context.Context, d Directory, account string) error {
	dn, err := d.Locate(ctx, account)
	if errors.Is(err, ErrNoAccount) {
		return &api.Error{Kind: api.Upstream, Cause: err, Text: err.Error() + "; if it was deleted, revoke its lease by force"}
	}
	if err == nil {
		_, _, err = turn.Bring(ctx, entry{d, dn}, nobodys())
	}
	return err
}

// checkIn ends the leases of accounts: of the caller's, or of anybody's.
func (e *Engine) checkIn(anybodys bool) engine.Handler {
	return func(_ context.Context, r *engine.Request) (*engine.Reply, error) {
		set, _, err := setOf(r)
		if err != nil {
			return nil, err
		}
		asked := r.List("service_account_names")
		open := anybodys || set.Anybody
		var leases []*lease.Lease
		back := []string{}
		for _, account := range set.Accounts {
			if len(asked) > 0 && !slices.Contains(asked, account) {
				continue
			}
			l, _, err := lentUnder(r.View, r.Mount, account)
			switch {
			case err != nil:
				return nil, err
			case l == nil || l.State == lease.Revoking:
			case !open && !borrowed(r, l):
				if len(asked) > 0 {
					return nil, api.Errorf(api.Invalid, "%q can't be checked in because it wasn't checked out by the caller", account)
				}
			default:
				leases, back = append(leases, l), append(back, account)
			}
		}
		for _, account := range asked {
			if !slices.Contains(set.Accounts, account) {
				return nil, api.Errorf(api.Invalid, "%q is not in the set %q", account, nameOf(r))
			}
		}
		if len(asked) == 0 && len(leases) > 1 {
			return nil, api.Errorf(api.Invalid, `when multiple service accounts are checked out, the "service_account_names" to check in must be provided`)
		}
		reply := &engine.Reply{Data: map[string]any{"check_ins": back}}
		for _, l := range leases {
			_, row, err := lease.Find(r.View, l.Namespace, l.Mount, l.ID)
			if err != nil {
				return nil, err
			}
			if err := lease.End(r.View, &reply.Txn, row, l, "checked in by request "+r.Op.ID, r.Now); err != nil {
				return nil, err
			}
			reply.Lease = l.ID
		}
		reply.Do = func(ctx context.Context) error {
			for _, l := range leases {
				if err := e.Settle(ctx, l); err != nil {
					return err
				}
			}
			return nil
		}
		return reply, nil
	}
}

// borrowed reports whether the caller is who a lease was given to: the same entity, or the same token.
func borrowed(r *engine.Request, l *lease.Lease) bool {
	if l.Holder.Entity != "" && l.Holder.Entity == r.Principal.Entity {
		return true
	}
	t := r.System.Caller()
	return t != nil && t.Hash != "" && t.Hash == l.Token
}

// setStatus tells which accounts of a set are lent, and to whom.
func (e *Engine) setStatus(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	set, _, err := setOf(r)
	if err != nil {
		return nil, err
	}
	data := map[string]any{}
	for _, account := range set.Accounts {
		l, _, err := lentUnder(r.View, r.Mount, account)
		if err != nil {
			return nil, err
		}
		status := map[string]any{"available": l == nil}
		if l != nil && l.Holder.Entity != "" {
			status["borrower_entity_id"] = l.Holder.Entity
		}
		data[account] = status
	}
	return &engine.Reply{Data: data}, nil
}
