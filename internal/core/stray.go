package core

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/claim"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/store"
)

const (
	strayEvery   = 2 * time.Second // how often it is looked whether a search is asked for
	strayPause   = time.Minute     // at most, before targets that could not be searched are tried again
	strayTimeout = time.Minute     // for one target
	strayBatch   = 200             // strays that one commit takes in
	strayCause   = "unknown to the state that the store was put back to"
)

// searching is what one goroutine keeps between two rounds of the search.
type searching struct {
	pause time.Duration // before the next try: longer each time that a target fails
	until time.Time     // it is over
}

// failing tells it whether a target could not be searched.
func (s *searching) failing(yes bool, now time.Time) {
	if !yes {
		*s = searching{}
		return
	}
	s.pause = min(max(2*s.pause, strayEvery), strayPause)
	s.until = now.Add(s.pause)
}

// seekStrays searches the targets for credentials that no lease knows, if somebody resumed a store that was put back to an earlier
// state. It goes on until every target was searched; one that cannot be is named by sys/lessor/fence, and holds up no other.
//
// One node searches, under its claim. One that lost it finds what it commits refused.
func (c *Core) seekStrays(ctx context.Context) error {
	if c.Fenced() || c.Store.Now().Before(c.strays.until) {
		return nil
	}
	places, search, err := c.unsearched()
	if err != nil || search == nil {
		return err
	}
	failed := map[string]lease.Failure{}
	for _, p := range places {
		n, err := c.searchTarget(ctx, p)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			f := lease.Failure{Mount: p.mount.Path, Target: p.target, Why: err.Error(), Advice: p.finder.Advice(p.mount, p.target)}
			failed[p.name()] = f
			if search.Failed[p.name()] != f {
				c.Log.Error("a target cannot be searched for credentials that the store does not know; it is tried again",
					"mount", f.Mount, "target", f.Target, "error", f.Why, "advice", f.Advice)
			}
			continue
		}
		if err := c.searched(ctx, p, n); err != nil {
			return err
		}
	}
	c.strays.failing(len(failed) > 0, c.Store.Now())
	return c.concludeSearch(ctx, failed)
}

// searchPlace is a target to search.
type searchPlace struct {
	mount  *mount.Entry
	finder engine.Finder
	target string
}

func (p *searchPlace) name() string { return lease.Place(p.mount.UUID, p.target) }

// unsearched are the targets that are to be searched yet; the search is nil if there is none.
func (c *Core) unsearched() ([]searchPlace, *lease.Search, error) {
	v, err := c.Store.View()
	if err != nil {
		return nil, nil, err
	}
	defer v.Close()
	search, _, err := lease.Searching(v)
	if err != nil || search == nil {
		return nil, nil, err
	}
	places, err := c.places(v)
	if err != nil {
		return nil, nil, err
	}
	var left []searchPlace
	for _, p := range places {
		if _, done := search.Done[p.name()]; !done {
			left = append(left, p)
		}
	}
	return left, search, nil
}

// places are all targets that can be searched.
func (c *Core) places(v store.View) (all []searchPlace, err error) {
	table, err := c.table(v)
	if err != nil {
		return nil, err
	}
	for _, m := range table.All() {
		finder, ok := c.Backends[m.Backend()].(engine.Finder)
		if !ok {
			continue
		}
		a, err := c.searchAccess(v, m)
		if err != nil {
			return nil, err
		}
		targets, err := finder.Targets(a)
		if err != nil {
			return nil, err
		}
		for _, t := range targets {
			all = append(all, searchPlace{m, finder, t})
		}
	}
	return all, nil
}

// searchAccess is what the search may: as narrow as a request's grant, for this mount and no other.
func (c *Core) searchAccess(v store.View, m *mount.Entry) (engine.Access, error) {
	op := &lessor.Op{Verb: lessor.Delete, Namespace: m.Namespace, Path: m.Path}
	d := policy.Decide(nil, &lessor.Principal{System: "reaper"}, op, policy.Facts{Mount: m.UUID})
	if d.Denied != nil {
		return engine.Access{}, d.Denied
	}
	return engine.Access{Mount: m, View: v, Grant: d.Grant, Opener: c.Keys, Now: c.Store.Now()}, nil
}

// searchTarget searches one target, and takes in what it finds: n strays.
//
// A credential is made after its lease is durable, so one that was seen has its lease in any later state, unless it is a stray. What
// other nodes committed before is in the state after a commit of our own: the record of what was seen.
func (c *Core) searchTarget(ctx context.Context, p searchPlace) (n uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, strayTimeout)
	defer cancel()
	found, err := c.find(ctx, p)
	if err != nil {
		return 0, err
	}
	if found, err = c.unknown(p, found); err != nil || len(found) == 0 {
		return 0, err
	}
	seen := c.upkeep("search", p.mount.Path, strayCause)
	seen.Note, seen.Count = "credentials at "+p.target, uint64(len(found))
	if err := c.commit(ctx, &store.Txn{Audit: []audit.Record{seen}}); err != nil {
		return 0, err
	}
	if found, err = c.unknown(p, found); err != nil {
		return 0, err
	}
	for len(found) > 0 {
		some := found[:min(strayBatch, len(found))]
		if err := c.adopt(ctx, p, some); err != nil {
			return n, err
		}
		found, n = found[len(some):], n+uint64(len(some))
	}
	return n, nil
}

func (c *Core) find(ctx context.Context, p searchPlace) ([]engine.Found, error) {
	v, err := c.Store.View()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	a, err := c.searchAccess(v, p.mount)
	if err != nil {
		return nil, err
	}
	return p.finder.Find(ctx, a, p.target)
}

// unknown are those of found that no lease of the mount knows. It goes through the mount's leases.
func (c *Core) unknown(p searchPlace, found []engine.Found) ([]engine.Found, error) {
	v, err := c.Store.View()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	left := make(map[string]engine.Found, len(found))
	for _, f := range found {
		left[f.Mark] = f
	}
	prefix := store.MountKey(p.mount.Namespace, p.mount.UUID)
	for row, err := range v.Scan(store.Leases, prefix, store.PrefixEnd(prefix)) {
		if err != nil {
			return nil, err
		}
		id := row.Name[len(prefix):]
		delete(left, p.finder.Mark(id))
		if mark, adopted := strings.CutPrefix(id, strayID(p.mount, engine.Found{})); adopted {
			delete(left, mark)
		}
	}
	return slices.Collect(maps.Values(left)), nil
}

// strayID is the id of a stray's lease.
func strayID(m *mount.Entry, f engine.Found) string { return m.Path + "strays/" + f.Mark }

// adopt gives strays their leases. Those that another node gave theirs are left out.
func (c *Core) adopt(ctx context.Context, p searchPlace, strays []engine.Found) error {
	_, err := c.Store.Update(ctx, func(v store.View, txn *store.Txn) error {
		claim.Fence(ctx, txn)
		now := c.Store.Now()
		kept := map[string]bool{}
		for _, f := range strays {
			id := strayID(p.mount, f)
			if l, _, err := lease.Find(v, p.mount.Namespace, p.mount.UUID, id); err != nil || l != nil {
				if err != nil {
					return err
				}
				continue
			}
			if !kept[f.Target] {
				kept[f.Target] = true
				if err := p.finder.Keep(v, p.mount, f.Target, txn); err != nil {
					return err
				}
			}
			l := &lease.Lease{
				ID: id, Namespace: p.mount.Namespace, Mount: p.mount.UUID, Target: f.Target, Intent: f.Intent, Position: v.Position(),
			}
			lease.Adopt(txn, l, strayCause, now)
			r := c.upkeep("revoke", l.Path(), strayCause)
			r.Phase, r.Lease = audit.Begun, l.ID
			txn.Audit = append(txn.Audit, r)
		}
		return nil
	})
	return err
}

// searched takes down that a target was searched.
func (c *Core) searched(ctx context.Context, p searchPlace, n uint64) error {
	return c.updateSearch(ctx, func(s *lease.Search, row store.Row, txn *store.Txn, _ store.View) error {
		if s.Done == nil {
			s.Done = map[string]uint64{}
		}
		s.Done[p.name()] = n
		delete(s.Failed, p.name())
		s.Save(txn, row)
		return nil
	})
}

// concludeSearch takes down which targets could not be searched, or ends the search if all were.
func (c *Core) concludeSearch(ctx context.Context, failed map[string]lease.Failure) error {
	return c.updateSearch(ctx, func(s *lease.Search, row store.Row, txn *store.Txn, v store.View) error {
		places, err := c.places(v)
		if err != nil {
			return err
		}
		left := false
		for _, p := range places {
			_, done := s.Done[p.name()]
			left = left || !done
		}
		if !left {
			var strays uint64
			for _, n := range s.Done {
				strays += n
			}
			r := c.upkeep("search", "sys/lessor/fence", strayCause)
			r.Note = fmt.Sprintf("%d targets searched, %d credentials found that no lease knew", len(s.Done), strays)
			txn.Audit = append(txn.Audit, r)
			s.End(txn, row)
			return nil
		}
		if !maps.Equal(s.Failed, failed) {
			s.Failed = failed
			s.Save(txn, row)
		}
		return nil
	})
}

// failing counts the targets that could not be searched yet.
func (c *Core) failing() float64 {
	v, err := c.Store.View()
	if err != nil {
		return 0
	}
	defer v.Close()
	search, _, err := lease.Searching(v)
	if err != nil || search == nil {
		return 0
	}
	return float64(len(search.Failed))
}

// updateSearch changes the search, if it is still under way.
func (c *Core) updateSearch(ctx context.Context, change func(*lease.Search, store.Row, *store.Txn, store.View) error) error {
	_, err := c.Store.Update(ctx, func(v store.View, txn *store.Txn) error {
		s, row, err := lease.Searching(v)
		if err != nil || s == nil {
			return err
		}
		claim.Fence(ctx, txn)
		return change(s, row, txn, v)
	})
	if errors.As(err, new(*store.Conflict)) {
		return nil // another node went on with it; the next round looks again
	}
	return err
}
