package system

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

func (b *Backend) leaseRoutes() []engine.Route {
	id := []engine.Field{
		{Name: "lease_id", Type: engine.String, Help: "id of the lease"},
		{Name: "url_lease_id", Type: engine.String, Help: "the same as lease_id"},
	}
	sync := engine.Field{Name: "sync", Type: engine.Bool, Help: "wait until the target has confirmed; the default"}
	increment := engine.Field{Name: "increment", Type: engine.Duration, Help: "time from now that is asked for"}
	with := func(more ...engine.Field) []engine.Field { return append(slices.Clone(id), more...) }
	kept := []engine.Field{
		{Name: "type", Type: engine.String, Help: "irrevocable"}, {Name: "include_child_namespaces", Type: engine.Bool, Help: "accepted: there are none"},
		{Name: "limit", Type: engine.String, Help: "leases at most; none: all"},
	}
	// Older clients know the same by shorter paths.
	older := []engine.Route{
		{Pattern: "renew", Help: "the same as leases/renew", Fields: with(increment), Ops: update(b.renewLease)},
		{Pattern: "renew/{lease...}", Help: "the same as leases/renew", Fields: with(increment), Ops: update(b.renewLease)},
		{Pattern: "revoke", Help: "the same as leases/revoke", Fields: with(sync), Ops: update(b.revokeLease)},
		{Pattern: "revoke/{lease...}", Help: "the same as leases/revoke", Fields: with(sync), Ops: update(b.revokeLease)},
		{Pattern: "revoke-prefix/{prefix...}", Help: "the same as leases/revoke-prefix", Fields: []engine.Field{sync}, Sudo: true, Ops: update(b.revokePrefix)},
		{Pattern: "revoke-force/{prefix...}", Help: "the same as leases/revoke-force", Sudo: true, Ops: update(b.revokeForce)},
	}
	return append(older, []engine.Route{
		{Pattern: "leases", Help: "credentials that their targets refuse to revoke", Sudo: true, Fields: kept, Ops: read(b.irrevocable)},
		{Pattern: "leases/count", Help: "how many credentials targets refuse to revoke", Fields: kept, Ops: read(b.countIrrevocable)},
		{Pattern: "leases/lookup", Help: "look a lease up", Fields: id, Ops: update(b.lookupLease)},
		{Pattern: "leases/lookup/{prefix...}", Help: "list leases under a prefix", Sudo: true, Ops: ops{lessor.List: b.listLeases}},
		{Pattern: "leases/renew", Help: "renew a lease", Fields: with(increment), Ops: update(b.renewLease)},
		{Pattern: "leases/renew/{lease...}", Help: "renew a lease", Fields: with(increment), Ops: update(b.renewLease)},
		{Pattern: "leases/revoke", Help: "revoke a lease", Fields: with(sync), Ops: update(b.revokeLease)},
		{Pattern: "leases/revoke/{lease...}", Help: "revoke a lease", Fields: with(sync), Ops: update(b.revokeLease)},
		{Pattern: "leases/revoke-prefix/{prefix...}", Help: "revoke all leases under a prefix", Fields: []engine.Field{sync}, Sudo: true, Ops: update(b.revokePrefix)},
		{Pattern: "leases/revoke-force/{prefix...}", Help: "revoke all leases under a prefix, whatever their targets say", Sudo: true, Ops: update(b.revokeForce)},
		{Pattern: "leases/tidy", Help: "clean up; lessor does so by itself", Ops: update(b.tidyLeases)},
	}...)
}

// leaseID is the lease that a request names, in its path or body: in its path, if it is there, since that is what policy was
// asked about.
func leaseID(r *engine.Request) (string, error) {
	for _, id := range []string{r.Param("lease"), r.Str("lease_id"), r.Str("url_lease_id")} {
		if id != "" {
			return id, nil
		}
	}
	return "", api.Errorf(api.Invalid, "lease_id must be specified")
}

func findLease(r *engine.Request, id string) (*lease.Lease, store.Row, *mount.Entry, error) {
	var candidates []*mount.Entry
	if m, _ := mountOf(r, id); m != nil {
		candidates = append(candidates, m)
	}
	for _, m := range r.System.Mounts() {
		if m.Removing || len(m.Moves) > 0 { // its leases may have ids under a path that is another mount's by now
			candidates = append(candidates, m)
		}
	}
	for _, m := range candidates {
		if l, row, err := lease.Find(r.View, m.Namespace, m.UUID, id); err != nil || l != nil {
			return l, row, m, err
		}
	}
	return nil, store.Row{}, nil, nil
}

func (b *Backend) lookupLease(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	id, err := leaseID(r)
	if err != nil {
		return nil, err
	}
	l, _, _, err := findLease(r, id)
	if err != nil {
		return nil, err
	}
	if l == nil || l.State == lease.Pending {
		return nil, api.Errorf(api.Invalid, "invalid lease")
	}
	state := l.State
	if live, err := r.System.Alive(l); err != nil {
		return nil, err
	} else if !live && state == lease.Live {
		state = lease.Revoking // by a wide revocation that has not come to it, or by its end
	}
	data := map[string]any{
		"id": l.ID, "issue_time": stamp(l.Issued), "expire_time": stamp(l.Expires), "last_renewal": stamp(l.Renewed),
		"renewable": l.Renewable && state == lease.Live, "ttl": max(0, whole(l.Expires.Sub(r.Now))), "state": state.String(), "kind": l.Kind.String(),
		"holder": map[string]any{"entity_id": l.Holder.Entity, "alias": l.Holder.Alias, "instance": l.Holder.Instance, "display_name": l.Holder.Name},
	}
	if l.Owner != "" {
		data["owner"] = l.Owner
	}
	if l.Kind == lease.Static {
		data["version"] = l.Version
	}
	return &engine.Reply{Data: data, Lease: l.ID}, nil
}

// mostLeases bounds one list of leases.
const mostLeases = 100_000

func (b *Backend) listLeases(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	prefix := r.Param("prefix")
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	found := map[string]bool{}
	for _, m := range r.System.Mounts() {
		switch {
		case !strings.HasPrefix(prefix, m.Path) && strings.HasPrefix(m.Path, prefix):
			var some bool
			if err := lease.List(r.View, m.Namespace, m.UUID, m.Path, func(string) bool { some = true; return false }); err != nil {
				return nil, err
			}
			if some {
				head, _, _ := strings.Cut(strings.TrimPrefix(m.Path, prefix), "/")
				found[head+"/"] = true
			}
		case strings.HasPrefix(prefix, m.Path):
			if err := lease.List(r.View, m.Namespace, m.UUID, prefix, func(name string) bool { found[name] = true; return len(found) < mostLeases }); err != nil {
				return nil, err
			}
		}
	}
	if len(found) == 0 {
		return nil, empty()
	}
	keys := make([]string, 0, len(found))
	for k := range found {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return &engine.Reply{Data: map[string]any{"keys": keys}}, nil
}

func (b *Backend) renewLease(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	id, err := leaseID(r)
	if err != nil {
		return nil, err
	}
	return &engine.Reply{Extend: &engine.Extend{Lease: id, Increment: r.Dur("increment")}}, nil
}

// asked reports whether the answer is to wait for the target; it is unless the client says otherwise.
func asked(r *engine.Request) bool { return !r.Has("sync") || r.Bool("sync") }

func (b *Backend) revokeLease(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	id, err := leaseID(r)
	if err != nil {
		return nil, err
	}
	l, row, _, err := findLease(r, id)
	if err != nil {
		return nil, err
	}
	if l == nil { // revoked already
		reply := &engine.Reply{}
		if !asked(r) {
			reply.Status = 202
		}
		return reply, nil
	}
	reply := &engine.Reply{Lease: id, Shown: exposed(l)}
	if err := lease.End(r.View, &reply.Txn, row, l, "revoked by request "+r.Op.ID, r.Now); err != nil {
		return nil, err
	}
	if asked(r) {
		reply.Do = func(ctx context.Context) error { return b.Reaper.SettleLease(ctx, l) }
	} else {
		reply.Status = 202
	}
	return reply, nil
}

// exposed is what the record of an end says of a static lease: somebody may know that version for as long as it is not rotated.
func exposed(l *lease.Lease) []audit.Shown {
	if l.Kind != lease.Static {
		return nil
	}
	return []audit.Shown{{Path: l.Path(), Version: l.Version, How: "exposed"}}
}

func (b *Backend) revokePrefix(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	return b.anyPrefix(r, false, asked(r))
}

func (b *Backend) revokeForce(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	return b.anyPrefix(r, true, true)
}

// anyPrefix is prefix, but for what no mount serves there is nothing to revoke.
func (b *Backend) anyPrefix(r *engine.Request, forced, wait bool) (*engine.Reply, error) {
	if m, _ := mountOf(r, r.Param("prefix")+"/"); m == nil {
		reply := &engine.Reply{}
		if !wait {
			reply.Status = 202
		}
		return reply, nil
	}
	return b.prefix(r, r.Param("prefix"), forced, wait)
}

// mostIrrevocable is how many are told if nothing else is asked for.
const mostIrrevocable = 10_000

// refusedBy yields the leases whose revocation their target refused at least once, with their mounts.
func refusedBy(r *engine.Request, yield func(l *lease.Lease, m *mount.Entry)) error {
	found, err := lease.Outlived(r.View, r.Now, lease.OutlivedGrace, mostLeases)
	if err != nil {
		return err
	}
	mounts := map[string]*mount.Entry{}
	for _, m := range r.System.Mounts() {
		mounts[m.UUID] = m
	}
	for _, l := range found {
		if m := mounts[l.Mount]; m != nil && l.LastError != "" {
			yield(l, m)
		}
	}
	return nil
}

func (b *Backend) irrevocable(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	if !strings.EqualFold(r.Str("type"), "irrevocable") {
		return nil, empty()
	}
	limit := mostIrrevocable
	switch text := r.Str("limit"); {
	case text == "":
	case strings.EqualFold(text, "none"):
		limit = mostLeases
	default:
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return nil, api.Errorf(api.Invalid, "limit must be 'none' or a positive integer")
		}
		limit = min(n, mostLeases)
	}
	leases, count := []any{}, 0
	err := refusedBy(r, func(l *lease.Lease, m *mount.Entry) {
		if count++; count <= limit {
			leases = append(leases, map[string]any{"lease_id": l.ID, "mount_id": m.Accessor, "error": l.LastError})
		}
	})
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{Data: map[string]any{"lease_count": count, "leases": leases}}
	if count > limit {
		reply.Warnings = []string{"Command halted because many irrevocable leases were found. To emit the entire list, re-run the command with force set true."}
	}
	return reply, nil
}

func (b *Backend) countIrrevocable(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	if !strings.EqualFold(r.Str("type"), "irrevocable") {
		return nil, empty()
	}
	counts, count := map[string]int{}, 0
	err := refusedBy(r, func(_ *lease.Lease, m *mount.Entry) {
		counts[m.Accessor]++
		count++
	})
	if err != nil {
		return nil, err
	}
	return &engine.Reply{Data: map[string]any{"lease_count": count, "counts": counts}}, nil
}

// prefix revokes all leases and tokens under a prefix: in force with the commit, cleaned up in the background.
func (b *Backend) prefix(r *engine.Request, prefix string, forced, wait bool) (*engine.Reply, error) {
	prefix = strings.TrimSuffix(prefix, "/") + "/" // database/creds/app is not database/creds/app2
	m, _ := mountOf(r, prefix)
	if m == nil {
		return nil, api.Errorf(api.Invalid, "no mount serves the prefix %q", prefix)
	}
	return b.wide(r, lease.Selector{Kind: lease.ByPrefix, Value: prefix, Mount: m.UUID}, forced, wait)
}

// wide puts a tombstone and, if that is asked for, waits until it has done its work.
func (b *Backend) wide(r *engine.Request, s lease.Selector, forced, wait bool) (*engine.Reply, error) {
	cause := "revoked"
	bury := r.System.Bury
	if forced {
		bury = r.System.BuryForced
	}
	reply := &engine.Reply{Note: "by " + s.Kind.String()}
	tomb, err := bury(&reply.Txn, s, cause)
	if err != nil {
		return nil, err
	}
	if wait {
		reply.Do = b.settle(tomb)
	} else {
		reply.Status = 202
	}
	return reply, nil
}

func (b *Backend) tidyLeases(context.Context, *engine.Request) (*engine.Reply, error) {
	return &engine.Reply{Status: 202, Warnings: []string{"Nothing to do: lessor removes what has expired by itself."}}, nil
}
