package quota

import (
	"context"
	"crypto/sha256"
	"strings"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// leases counts what rules limit: dynamic credentials, from the commit that puts their pending lease to the one that has it confirmed
// gone, and service tokens that end. Leases on static secrets do not count: there is one for each reader, and no limit
// of Vault's means them.
//
// Each is known by a hash of its row's name, so that what is told twice counts once: memory is some forty bytes for
// each lease under a rule, and nothing without rules. A lease that is about to be committed is reserved; the feed makes it
// counted. So requests at once do not overshoot. On several nodes they may, by what the others commit in the
// moment that the feed takes.
type leases struct {
	rules    *Rules
	of       map[id]*Rule // counted
	reserved map[id]*Rule
	n        map[string]uint64 // by name of the rule; reservations included
}

type id [16]byte

func identify(row string) id {
	sum := sha256.Sum256([]byte(row))
	return id(sum[:16])
}

func newLeases(rules *Rules) *leases {
	return &leases{rules: rules, of: map[id]*Rule{}, reserved: map[id]*Rule{}, n: map[string]uint64{}}
}

// count counts all there is.
func (ls *leases) count(v store.View) error {
	err := lease.Credentials(v, func(row string) { ls.add(identify(row), ls.ofLease(row)) })
	if err != nil {
		return err
	}
	for row, err := range v.Scan(store.Tokens, "", "") {
		if err != nil {
			return err
		}
		if r, err := ls.ofToken(row); err != nil {
			return err
		} else if r != nil {
			ls.add(identify(row.Name), r)
		}
	}
	return nil
}

// settle puts reservations that outlive a recount in their place.
func (ls *leases) settle() {
	for i, r := range ls.reserved {
		now := ls.rules.Named(LeaseCount, r.Name)
		if ls.of[i] != nil || now == nil {
			delete(ls.reserved, i)
			continue
		}
		ls.reserved[i] = now
		ls.n[now.Name]++
	}
}

func (ls *leases) add(i id, r *Rule) {
	if r == nil || ls.of[i] != nil {
		return
	}
	ls.of[i] = r
	if ls.reserved[i] != nil {
		ls.n[ls.reserved[i].Name]--
		delete(ls.reserved, i)
	}
	ls.n[r.Name]++
}

func (ls *leases) drop(i id) {
	if r := ls.of[i]; r != nil {
		delete(ls.of, i)
		ls.n[r.Name]--
	}
}

// ofLease is the rule that a dynamic lease counts under, by its row's name.
func (ls *leases) ofLease(row string) *Rule {
	_, mount, path := store.SplitMountKey(row)
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		path = path[:i]
	}
	return ls.rules.given(mount, path, "")
}

// ofToken is the rule that a token counts under. Root tokens that never end, wrapping tokens and join secrets count under none.
func (ls *leases) ofToken(row store.Row) (*Rule, error) {
	t, err := token.Decode("", row.Value)
	if err != nil || t.Wrapping || t.Join || t.Expires.IsZero() {
		return nil, err
	}
	return ls.rules.given(t.Mount, t.Path, t.Role), nil
}

// given is the rule for what was given at path by a mount, which may have another path today.
func (rs *Rules) given(mount, path, role string) *Rule {
	e := rs.mounts.ByUUID(mount)
	if e == nil {
		return rs.For(LeaseCount, path, role)
	}
	return rs.within(LeaseCount, mount, strings.TrimPrefix(path, e.Path), role)
}

// made are the rules of those tokens among rows that are new here and count.
func (ls *leases) made(v store.View, rows []string) (map[id]*Rule, error) {
	var out map[id]*Rule
	for _, name := range rows {
		i := identify(name)
		if ls.of[i] != nil {
			continue
		}
		row, err := v.Get(store.Key{Table: store.Tokens, Name: name})
		if err != nil || !row.Exists() {
			if err != nil {
				return nil, err
			}
			continue
		}
		r, err := ls.ofToken(row)
		if err != nil {
			return nil, err
		}
		if r != nil {
			if out == nil {
				out = map[id]*Rule{}
			}
			out[i] = r
		}
	}
	return out, nil
}

// take takes one commit: what it put, then what it deleted.
func (ls *leases) take(h *audit.Header, tokens map[id]*Rule) {
	for i, r := range tokens {
		ls.add(i, r)
	}
	for k := range h.Touched {
		if t := &h.Touched[k]; store.Table(t.Table) == store.Due && !t.Deleted {
			if row, ok := lease.CredentialDue(t.Name); ok {
				ls.add(identify(row), ls.ofLease(row))
			}
		}
	}
	for k := range h.Touched {
		if t := &h.Touched[k]; t.Deleted && !t.Range && (store.Table(t.Table) == store.Leases || store.Table(t.Table) == store.Tokens) {
			ls.drop(identify(t.Name))
		}
	}
}

// Reserve makes room for a lease, or token, of the row's name that a commit is about to put; false: a quota refuses. What is
// not committed after all is the caller's to Release.
func (g *Guard) Reserve(ctx context.Context, mount, path, role, row string) (bool, error) {
	if g == nil || !g.Rules().kinds[LeaseCount] {
		return true, nil
	}
	for late := false; ; late = true {
		room, ready := g.reserve(mount, path, role, identify(row))
		if room || ready && late {
			return room, nil
		}
		if err := g.Sync(ctx); err != nil { // what ended a moment ago makes room
			return false, err
		}
	}
}

func (g *Guard) reserve(mount, path, role string, i id) (room, ready bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.counted || g.leases == nil {
		return g.counted, g.counted
	}
	r := g.leases.rules.given(mount, path, role)
	if r == nil || g.leases.of[i] != nil {
		return true, true
	}
	if g.leases.n[r.Name] >= r.Max {
		return false, true
	}
	g.leases.reserved[i] = r
	g.leases.n[r.Name]++
	return true, true
}

// Release gives a reservation back; after the commit it does nothing.
func (g *Guard) Release(row string) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.leases == nil {
		return
	}
	i := identify(row)
	if r := g.leases.reserved[i]; r != nil {
		delete(g.leases.reserved, i)
		g.leases.n[r.Name]--
	}
}

// Count is how many leases a lease count quota counts now.
func (g *Guard) Count(name string) uint64 {
	if g == nil {
		return 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.leases == nil {
		return 0
	}
	return g.leases.n[name]
}
