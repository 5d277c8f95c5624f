package system

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/owner"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// ownRoutes are what lessor adds to Vault's protocol.
func (b *Backend) ownRoutes() []engine.Route {
	query := []engine.Field{
		{Name: "path", Type: engine.String, Help: "records about exactly this path"},
		{Name: "identity", Type: engine.String, Help: "records of this entity id, accessor or display name"},
		{Name: "from", Type: engine.String, Help: "not before this time, RFC 3339"},
		{Name: "to", Type: engine.String, Help: "before this time, RFC 3339"},
		{Name: "limit", Type: engine.Int, Help: "records at most; default 100"},
		{Name: "after", Type: engine.String, Help: "cursor of the page before"},
		{Name: "newest", Type: engine.Bool, Help: "newest first"},
	}
	sync := engine.Field{Name: "sync", Type: engine.Bool, Help: "wait until all is cleaned up; the default"}
	return []engine.Route{
		{Pattern: "lessor/info", Help: "which lessor this is", Ops: read(b.info)},
		{Pattern: "lessor/audit/records", Help: "audit records by time, path and identity", Fields: query, Sudo: true, Ops: read(b.records)},
		{Pattern: "lessor/audit/timeline", Help: "what happened to one path, oldest first", Fields: query, Sudo: true, Ops: read(b.timeline)},
		{Pattern: "lessor/audit/tail", Help: "audit records from a commit on; waits for more", Sudo: true, Ops: read(b.tail), Fields: []engine.Field{
			{Name: "from", Type: engine.Int, Help: "sequence of the first commit; 0: the next one"},
			{Name: "wait", Type: engine.Duration, Help: "how long to wait if there is nothing yet; at most 60 s"},
			{Name: "limit", Type: engine.Int, Help: "records at most; default 1000"},
		}},
		{Pattern: "lessor/audit/verify", Help: "verify the whole store: chain, records, rows", Sudo: true, Ops: read(b.verify)},
		{Pattern: "lessor/audit/export", Help: "commits with their headers and audit records, a line of JSON each, to be verified elsewhere", Sudo: true,
			Ops: read(b.export), Fields: []engine.Field{
				{Name: "from", Type: engine.Int, Help: "sequence of the first commit; 0: by since"},
				{Name: "since", Type: engine.String, Help: "commits not before this time, RFC 3339; none: from the first"},
				{Name: "before", Type: engine.String, Help: "commits before this time, RFC 3339; none: up to the last there is"},
				{Name: "limit", Type: engine.Int, Help: "commits at most; 0: all"},
			}},
		{Pattern: "lessor/backup", Help: "a consistent copy of the store, sealed as it is", Sudo: true, Ops: read(b.backup)},
		{Pattern: "lessor/backups", Help: "how the backups fare that the server makes by itself; makes one now (PUT)", Sudo: true,
			Ops: ops{lessor.Read: b.readBackups, lessor.Update: b.backUp}},
		{Pattern: "lessor/owners", Help: "list owners that were set", Ops: ops{lessor.List: b.listOwners, lessor.Read: b.listOwners}},
		{Pattern: "lessor/owners/{path...}", Help: "who answers for a path and all below it", Fields: []engine.Field{{Name: "owner", Type: engine.String, Help: "name of the owner"}},
			Ops: ops{lessor.Read: b.readOwner, lessor.Update: b.writeOwner, lessor.Delete: b.deleteOwner}},
		{Pattern: "lessor/holders/{path...}", Help: "who holds which version of a static secret", Ops: read(b.holders)},
		{Pattern: "lessor/leases/acknowledge", Help: "say that the version which a lease of one's own is on is used, and nothing older", Fields: []engine.Field{
			{Name: "lease_id", Type: engine.String, Help: "id of the lease"},
		}, Ops: update(b.acknowledge)},
		{Pattern: "lessor/leases/release", Help: "end a lease of one's own: what it is on is not used any more", Fields: []engine.Field{
			{Name: "lease_id", Type: engine.String, Help: "id of the lease"},
		}, Ops: update(b.release)},
		{Pattern: "lessor/leases/supersede", Help: "end the credentials that this instance of the caller got before, but for some", Fields: []engine.Field{
			{Name: "keep", Type: engine.Strings, Help: "ids of the leases that it goes on with"},
			sync,
		}, Ops: update(b.supersede)},
		{Pattern: "lessor/exposures/{path...}", Help: "versions that somebody may know who should not any more", Ops: read(b.exposures)},
		{Pattern: "lessor/revoke", Help: "revoke widely: by prefix, token, mount, holder, owner or lease", Sudo: true, Ops: update(b.revokeBy), Fields: []engine.Field{
			{Name: "by", Type: engine.String, Help: "prefix, token (its accessor), mount (its path), holder (entity id or name), owner, lease"},
			{Name: "value", Type: engine.String, Help: "which"},
			{Name: "alias", Type: engine.String, Help: "holder: only what came through this alias"},
			{Name: "instance", Type: engine.String, Help: "holder: only what this instance holds"},
			{Name: "force", Type: engine.Bool, Help: "remove leases even if their targets fail"},
			{Name: "sync", Type: engine.Bool, Help: "wait until all is cleaned up; the default"},
		}},
		{Pattern: "lessor/outlived", Help: "credentials that outlived their lease", Ops: read(b.outlived)},
		{Pattern: "lessor/fence", Help: "a restored copy touches no target until it is resumed (DELETE)", Sudo: true,
			Ops: ops{lessor.Read: b.readFence, lessor.Delete: b.resume}},
		{Pattern: "metrics", Help: "metrics, as JSON or in Prometheus's format", Ops: read(b.metrics), Fields: []engine.Field{
			{Name: "format", Type: engine.String, Help: "prometheus; without it, what the client accepts tells"},
		}},
	}
}

func (b *Backend) info(context.Context, *engine.Request) (*engine.Reply, error) {
	return &engine.Reply{Data: b.Info()}, nil
}

// metrics tells Prometheus, by the parameter that Vault's users put into its configuration or by what it accepts, in its own format, everybody
// else in Vault's JSON.
func (b *Backend) metrics(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	switch format := r.Str("format"); {
	case format == "prometheus", format == "" && scrapes(r.Op.Accept):
		return &engine.Reply{Raw: &engine.Raw{Type: "text/plain; version=0.0.4; charset=utf-8", Write: b.Metrics.Text}}, nil
	case format == "":
		return &engine.Reply{Raw: &engine.Raw{Type: "application/json", Write: b.Metrics.JSON}}, nil
	default:
		return nil, api.Errorf(api.Invalid, "metric response format %q unknown", format)
	}
}

// scrapes reports whether who accepts such media types is Prometheus, or its like.
func scrapes(accept string) bool {
	return strings.Contains(accept, "application/openmetrics-text") || strings.HasPrefix(accept, "text/plain")
}

func moment(r *engine.Request, name string) (time.Time, error) {
	s := r.Str(name)
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return t, api.Errorf(api.Invalid, "%s is no time of the form 2006-01-02T15:04:05Z", name)
	}
	return t, nil
}

func (b *Backend) query(r *engine.Request) (q store.Query, err error) {
	if q.From, err = moment(r, "from"); err != nil {
		return q, err
	}
	if q.To, err = moment(r, "to"); err != nil {
		return q, err
	}
	q.Path, q.Who, q.Limit, q.Cursor, q.Newest = strings.Trim(r.Str("path"), "/"), r.Str("identity"), int(r.Int("limit")), r.Str("after"), r.Bool("newest")
	return q, nil
}

func (b *Backend) records(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	q, err := b.query(r)
	if err != nil {
		return nil, err
	}
	return b.page(q)
}

// timeline is what happened to one path. Of more than fit, the newest are told, oldest first.
func (b *Backend) timeline(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	q, err := b.query(r)
	if err != nil {
		return nil, err
	}
	if q.Path == "" {
		return nil, api.Errorf(api.Invalid, "missing path: whose timeline?")
	}
	q.Newest = true
	records, next, err := b.Store.Records(q)
	if err != nil {
		return nil, badCursor(err)
	}
	slices.Reverse(records)
	return recordsReply(records, next), nil
}

func (b *Backend) page(q store.Query) (*engine.Reply, error) {
	records, next, err := b.Store.Records(q)
	if err != nil {
		return nil, badCursor(err)
	}
	return recordsReply(records, next), nil
}

func badCursor(err error) error {
	if strings.Contains(err.Error(), "cursor") {
		return api.Errorf(api.Invalid, "%v", err)
	}
	return err
}

func recordsReply(records []audit.At, next string) *engine.Reply {
	out := make([]any, len(records))
	for i := range records {
		out[i] = recordData(&records[i])
	}
	return &engine.Reply{Data: map[string]any{"records": out, "next": next}}
}

// recordData is an audit record as it is told.
func recordData(a *audit.At) map[string]any {
	outcome := "granted"
	switch {
	case !a.Granted:
		outcome = "denied"
	case a.ErrorKind != "":
		outcome = "failed"
	}
	d := map[string]any{
		"time": a.Time.UTC().Format(time.RFC3339Nano), "commit_time": a.Commit.UTC().Format(time.RFC3339Nano), "seq": a.Seq, "index": int(a.Index),
		"operation": a.Operation, "path": a.Path, "phase": string(a.Phase), "outcome": outcome,
	}
	for name, v := range map[string]string{
		"node": a.Node, "request_id": a.Request, "entity_id": a.Entity, "display_name": a.Name, "alias": a.Alias, "accessor": a.Accessor, "role": a.Role,
		"system": a.System, "cause": a.Cause, "client_address": a.Client, "rule": a.Rule, "policy": a.Policy, "lease_id": a.Lease, "error": a.ErrorKind,
		"owner": a.Owner, "instance": a.Instance, "note": a.Note, "tombstone": a.Tombstone,
	} {
		if v != "" {
			d[name] = v
		}
	}
	if a.PolicyVersion != 0 {
		d["policy_version"] = a.PolicyVersion
	}
	if len(a.Groups) > 0 {
		d["groups"] = a.Groups
	}
	if a.Count > 1 {
		d["count"] = a.Count
	}
	if len(a.Headers) > 0 {
		headers := map[string]any{}
		for _, h := range a.Headers {
			headers[h.Name] = h.Value
			if h.Digest != nil {
				headers[h.Name] = "digest:" + hex.EncodeToString(h.Digest)
			}
		}
		d["headers"] = headers
	}
	if len(a.Secrets) > 0 {
		var shown []any
		for _, s := range a.Secrets {
			shown = append(shown, map[string]any{"path": s.Path, "version": s.Version, "fingerprint": hex.EncodeToString(s.Fingerprint), "how": s.How})
		}
		d["secrets"] = shown
	}
	return d
}

// longestWait bounds a long poll.
const longestWait = 60 * time.Second

// tail tells what was committed from a sequence on. It waits for more only until wait has passed; the reading itself is on
// record before it begins.
func (b *Backend) tail(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	from, limit := uint64(max(0, r.Int("from"))), int(r.Int("limit"))
	if from == 0 {
		from = r.View.Position() + 1
	}
	if limit <= 0 || limit > 10_000 {
		limit = 1000
	}
	wait := min(r.Dur("wait"), longestWait)
	return &engine.Reply{Later: func(ctx context.Context) (map[string]any, error) {
		waiting, cancel := context.WithTimeout(ctx, max(wait, 10*time.Millisecond))
		defer cancel()
		records, next, found := []any{}, from, false
		for at, err := range b.Store.Tail(waiting, from) {
			if err != nil {
				if waiting.Err() != nil && ctx.Err() == nil {
					break // nothing came
				}
				return nil, err
			}
			if len(records) >= limit && at.Seq >= next {
				break // all of a commit's records are told together, so that next can be the commit after
			}
			records, next = append(records, recordData(&at)), at.Seq+1
			if !found && !strings.HasSuffix(at.Path, "lessor/audit/tail") { // a tail that waits for news is none itself, or it would never wait
				found = true // do not wait for more than what is there already
				cancelSoon := time.AfterFunc(20*time.Millisecond, cancel)
				defer cancelSoon.Stop()
			}
		}
		return map[string]any{"records": records, "next": strconv.FormatUint(next, 10)}, nil
	}}, nil
}

func (b *Backend) verify(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	return &engine.Reply{Later: func(ctx context.Context) (map[string]any, error) {
		began := time.Now()
		report, err := b.Store.Verify(ctx, nil)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			broken := map[string]any{"reason": err.Error()}
			if d, ok := errors.AsType[*store.Damage](err); ok {
				broken["row"] = d.Key.String()
				if seq, index, ok := d.Commit(); ok {
					broken["seq"], broken["index"] = seq, int(index)
				}
			}
			return map[string]any{"ok": false, "broken": broken}, nil
		}
		head := b.Store.Head()
		hash := head.Hash()
		return map[string]any{
			"ok": true, "first_seq": max(1, report.Pruned), "last_seq": report.Head, "incarnation": report.Incarnation, "records": report.Records,
			"rows": report.Rows, "head_time": report.Time, "head_hash": hex.EncodeToString(hash[:]), "took_ms": time.Since(began).Milliseconds(),
		}, nil
	}}, nil
}

// exportChunk is how many records an export reads at once, or a few more.
const exportChunk = 1000

// export writes a range of the trail. What is said of the answer is said before its first byte; a damaged record breaks it off.
func (b *Backend) export(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	since, err := moment(r, "since")
	if err != nil {
		return nil, err
	}
	before, err := moment(r, "before")
	if err != nil {
		return nil, err
	}
	if r.Int("from") < 0 || r.Int("limit") < 0 {
		return nil, api.Errorf(api.Invalid, "from and limit cannot be negative")
	}
	first, end := uint64(r.Int("from")), r.View.Position()+1
	if first == 0 {
		if first, err = b.Store.Since(since); err != nil {
			return nil, err
		}
	}
	if !before.IsZero() {
		till, err := b.Store.Since(before)
		if err != nil {
			return nil, err
		}
		end = min(end, till)
	}
	if n := uint64(r.Int("limit")); n > 0 {
		end = min(end, first+n)
	}
	return &engine.Reply{Note: "export", Raw: &engine.Raw{
		Type:  "application/x-ndjson",
		Write: func(ctx context.Context, w io.Writer) error { return b.exportTo(ctx, w, first, end) },
	}}, nil
}

// exportTo writes the commits of first <= sequence < end.
func (b *Backend) exportTo(ctx context.Context, w io.Writer, first, end uint64) error {
	for first < end {
		commits, err := b.Store.Commits(first, int(min(end-first, exportChunk)))
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || len(commits) == 0 {
			return err
		}
		for i := range commits {
			c := &commits[i]
			records := make([]audit.Record, len(c.Records))
			for n := range c.Records {
				records[n] = c.Records[n].Record
			}
			if err := audit.Export(w, &c.Header, records); err != nil {
				return err
			}
		}
		first = commits[len(commits)-1].Seq + 1
	}
	return nil
}

func (b *Backend) backup(context.Context, *engine.Request) (*engine.Reply, error) {
	return &engine.Reply{Note: "backup", Raw: &engine.Raw{
		Type:  "application/octet-stream",
		Write: func(ctx context.Context, w io.Writer) error { _, err := b.Store.Backup(ctx, w); return err },
	}}, nil
}

var errNoBackups = api.Errorf(api.Invalid, "the server makes no backups by itself: its configuration has no backup stanza")

func (b *Backend) readBackups(context.Context, *engine.Request) (*engine.Reply, error) {
	if b.Backups == nil {
		return nil, errNoBackups
	}
	return &engine.Reply{Data: b.backups()}, nil
}

// backUp has the next increment made at once, once that is on record.
func (b *Backend) backUp(context.Context, *engine.Request) (*engine.Reply, error) {
	if b.Backups == nil {
		return nil, errNoBackups
	}
	return &engine.Reply{Later: func(ctx context.Context) (map[string]any, error) {
		if err := b.Backups.Backup(ctx); err != nil {
			return nil, api.Errorf(api.Unavailable, "backing up failed: %v", err)
		}
		return b.backups(), nil
	}}, nil
}

func (b *Backend) backups() map[string]any {
	s := b.Backups.Status()
	return map[string]any{
		"destination": b.Backups.Destination(), "state": s.State, "covered": stamp(s.Covered), "point": s.Point, "sequence": s.Seq, "last_success": stamp(s.Success),
		"failures": s.Failures, "segments_written": s.Segments, "bytes_written": s.Bytes, "last_error": s.Error,
	}
}

func (b *Backend) listOwners(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	keys, info := []string{}, map[string]any{}
	err := owner.All(r.View, func(path, name string) bool {
		keys = append(keys, path)
		info[path] = map[string]any{"owner": name}
		return len(keys) < mostLeases
	})
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, empty()
	}
	return &engine.Reply{Data: map[string]any{"keys": keys, "key_info": info}}, nil
}

func (b *Backend) readOwner(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name, from := r.System.OwnerOf(r.Param("path"))
	if name == "" {
		return nil, notFound("nobody owns %q", r.Param("path"))
	}
	return &engine.Reply{Data: map[string]any{"owner": name, "from": from}}, nil
}

// ownerRow is that of the owner of exactly the path that a request names; a secret has one, however its path is spelled.
func ownerRow(r *engine.Request) (store.Row, error) {
	table, err := mount.Load(r.View)
	if err != nil {
		return store.Row{}, err
	}
	return owner.Row(r.View, table.Logical(r.Param("path")))
}

func (b *Backend) writeOwner(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := strings.TrimSpace(r.Str("owner"))
	if name == "" || len(name) > owner.Longest {
		return nil, api.Errorf(api.Invalid, "an owner's name has 1 to %d bytes", owner.Longest)
	}
	row, err := ownerRow(r)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	owner.Set(&reply.Txn, row, name)
	return reply, nil
}

func (b *Backend) deleteOwner(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	row, err := ownerRow(r)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	if row.Exists() {
		owner.Unset(&reply.Txn, row)
	}
	return reply, nil
}

func (b *Backend) holders(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	m, rest := mountOf(r, r.Param("path"))
	if m == nil {
		return nil, notFound("no mount serves %q", r.Param("path"))
	}
	users, err := lease.Users(r.View, m, secretPath(m, rest))
	if err != nil {
		return nil, err
	}
	out := []any{}
	for _, u := range users {
		if !u.Kept && !r.Now.Before(u.Expires) { // it lapses in a moment
			continue
		}
		if survivor, err := r.System.EntityID(u.Entity); err == nil {
			u.Entity = survivor // the entity that read it may have been merged since
		}
		out = append(out, map[string]any{
			"entity_id": u.Entity, "display_name": u.Name, "alias": u.Alias, "instance": u.Instance, "version": u.Version,
			"pinned": u.Pinned, "first_read": stamp(u.Since), "last_read": stamp(u.Last), "lease_id": u.Lease, "expires": stamp(u.Expires),
			"owner": u.Owner, "oldest": u.Oldest, "newest": u.Newest, "acknowledged": u.Acked, "lapsed": stamp(u.Lapsed), "revoked": u.Revoked && !u.Released, "released": u.Released,
		})
	}
	return &engine.Reply{Data: map[string]any{"holders": out}}, nil
}

// acknowledge has the holder of a lease on a static secret say that it uses that version, and nothing older.
func (b *Backend) acknowledge(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	l, row, err := ownLease(r)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{Lease: l.ID, Note: "acknowledged", Shown: []audit.Shown{{Path: l.Path(), Version: l.Version, How: "acknowledged"}}}
	return reply, lease.Acknowledge(r.View, &reply.Txn, row, l, r.Now)
}

// release has the holder of a lease say that it does not use what the lease is on any more. A dynamic credential is taken back.
func (b *Backend) release(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	l, row, err := ownLease(r)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{Lease: l.ID, Note: "released"}
	if l.Kind == lease.Dynamic {
		return reply, lease.End(r.View, &reply.Txn, row, l, "released by its holder, request "+r.Op.ID, r.Now)
	}
	return reply, lease.Release(r.View, &reply.Txn, row, l, r.Now)
}

// mostKept bounds what one who takes over goes on with.
const mostKept = 1000

// supersede ends the dynamic credentials that the caller's instance has, but for those which it names: it was started anew, say, and who was before it left
// them. Other instances keep theirs, and so does whoever has no instance. What is on static secrets goes on: reading takes it up.
func (b *Backend) supersede(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	me, keep := r.System.Holder(), r.List("keep")
	if r.Op.Instance == "" { // what stands for a missing one, an address say, may be shared
		return nil, api.Errorf(api.Invalid, "whose place is taken? Name the instance in the header X-Lessor-Instance")
	}
	if len(keep) > mostKept {
		return nil, api.Errorf(api.Invalid, "at most %d leases can be kept", mostKept)
	}
	keep = slices.Compact(slices.Sorted(slices.Values(keep)))
	reply := &engine.Reply{Note: "by heir"}
	ended, all, err := lease.Inherit(r.View, &reply.Txn, me, keep, "revoked by request "+r.Op.ID, r.Now)
	switch {
	case err != nil:
		return nil, err
	case !all:
		return b.wide(r, lease.Selector{Kind: lease.ByHeir, Value: me.Entity, Alias: me.Alias, Instance: me.Instance, Kept: keep}, false, asked(r))
	case !asked(r):
		reply.Status = 202
	case len(ended) > 0:
		reply.Do = func(ctx context.Context) error {
			for _, l := range ended {
				if err := b.Reaper.SettleLease(ctx, l); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return reply, nil
}

// ownLease is the lease that a request names, if it is in force, and the caller's own. The error does not tell whether it is somebody else's.
func ownLease(r *engine.Request) (*lease.Lease, store.Row, error) {
	missing := api.Errorf(api.Invalid, "lease not found")
	id, err := leaseID(r)
	if err != nil {
		return nil, store.Row{}, err
	}
	l, row, _, err := findLease(r, id)
	if err != nil {
		return nil, row, err
	}
	if l == nil || !own(r, l.Holder) {
		return nil, row, missing
	}
	if live, err := r.System.Alive(l); err != nil {
		return nil, row, err
	} else if !live {
		return nil, row, missing
	}
	return l, row, nil
}

// own reports whether the caller is the holder h, or the one that it was merged into.
func own(r *engine.Request, h lease.Holder) bool {
	if survivor, err := r.System.EntityID(h.Entity); h.Entity != "" && err == nil {
		h.Entity = survivor
	}
	me := r.System.Holder()
	return h.Entity == me.Entity && h.Alias == me.Alias && h.Instance == me.Instance
}

func (b *Backend) exposures(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	m, rest := mountOf(r, r.Param("path"))
	if m == nil {
		return nil, notFound("no mount serves %q", r.Param("path"))
	}
	found, err := lease.Exposures(r.View, m, secretPath(m, rest))
	if err != nil {
		return nil, err
	}
	out := []any{}
	for _, x := range found {
		out = append(out, map[string]any{
			"path": m.Path + x.Secret, "version": x.Version, "time": stamp(x.Time), "cause": x.Cause, "lease_id": x.Lease, "owner": x.Owner,
			"entity_id": x.Holder.Entity, "display_name": x.Holder.Name, "instance": x.Holder.Instance,
		})
	}
	return &engine.Reply{Data: map[string]any{"exposures": out}}, nil
}

func (b *Backend) revokeBy(ctx context.Context, r *engine.Request) (*engine.Reply, error) {
	value := r.Str("value")
	if value == "" && r.Str("alias") == "" && r.Str("instance") == "" {
		return nil, api.Errorf(api.Invalid, "missing value: which %s?", r.Str("by"))
	}
	forced, wait := r.Bool("force"), asked(r)
	switch r.Str("by") {
	case "prefix":
		reply, err := b.prefix(r, value, forced, wait)
		if err == nil && len(value) <= engine.LongestPath { // the path of a mount begins it: it is no secret
			reply.Note = "by prefix " + value
		}
		return reply, err
	case "mount":
		for _, m := range r.System.Mounts() {
			if m.Path == strings.Trim(value, "/")+"/" {
				reply, err := b.wide(r, lease.Selector{Kind: lease.ByMount, Value: m.UUID}, forced, wait)
				if err == nil {
					reply.Note = "by mount " + m.Path
				}
				return reply, err
			}
		}
		return nil, api.Errorf(api.Invalid, "there is no mount at %q", value)
	case "holder":
		s := lease.Selector{Kind: lease.ByHolder, Value: value, Alias: r.Str("alias"), Instance: r.Str("instance")}
		if value != "" {
			id, err := r.System.EntityID(value)
			if err != nil {
				return nil, err
			}
			s.Value = id
		}
		reply, err := b.wide(r, s, forced, wait)
		if err == nil {
			reply.Note = strings.TrimSpace("by holder " + s.Value)
		}
		return reply, err
	case "owner":
		reply, err := b.wide(r, lease.Selector{Kind: lease.ByOwner, Value: value}, forced, wait)
		if err == nil && len(value) <= owner.Longest {
			reply.Note = "by owner " + value
		}
		return reply, err
	case "token":
		t, row, err := token.ByAccessor(r.View, value)
		if err != nil {
			return nil, err
		}
		if t == nil {
			return nil, api.Errorf(api.Invalid, "invalid accessor: tokens are named by their accessor here")
		}
		reply, err := b.wide(r, lease.Selector{Kind: lease.ByToken, Value: t.Hash}, forced, wait)
		if err != nil {
			return nil, err
		}
		reply.Note = "token " + t.Accessor
		reply.Txn.Require(row)
		t.Drop(&reply.Txn)
		return reply, nil
	case "lease":
		l, row, _, err := findLease(r, value)
		if err != nil {
			return nil, err
		}
		reply := &engine.Reply{}
		if l != nil {
			reply.Lease = value
		}
		if l == nil {
			return reply, nil
		}
		reply.Shown = exposed(l)
		l.Forced = l.Forced || forced
		if err := lease.End(r.View, &reply.Txn, row, l, "revoked by request "+r.Op.ID, r.Now); err != nil {
			return nil, err
		}
		if wait {
			reply.Do = func(ctx context.Context) error { return b.Reaper.SettleLease(ctx, l) }
		}
		return reply, nil
	}
	return nil, api.Errorf(api.Invalid, "by is prefix, token, mount, holder, owner or lease")
}

func (b *Backend) outlived(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	found, err := lease.Outlived(r.View, r.Now, lease.OutlivedGrace, mostLeases)
	if err != nil {
		return nil, err
	}
	paths := map[string]string{}
	for _, m := range r.System.Mounts() {
		paths[m.UUID] = m.Path
	}
	out := []any{}
	for _, l := range found {
		out = append(out, map[string]any{
			"lease_id": l.ID, "mount": paths[l.Mount], "path": l.Path(), "target": l.Target, "owner": l.Owner, "holder": l.Holder.Name,
			"expired_at": stamp(l.Ended), "overdue_seconds": whole(r.Now.Sub(l.Ended)), "attempts": int(l.Attempts), "last_error": l.LastError,
			"next_attempt": stamp(l.Next), "cause": l.Cause,
		})
	}
	return &engine.Reply{Data: map[string]any{"credentials": out}}, nil
}

func (b *Backend) readFence(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	row, err := r.View.Get(store.Fenced)
	if err != nil {
		return nil, err
	}
	data := map[string]any{"fenced": row.Exists(), "since": nil, "reason": ""}
	if row.Exists() {
		data["reason"] = "put back to an earlier state: no target is touched until an operator resumes it"
		data["since"] = string(row.Value)
	}
	search, _, err := lease.Searching(r.View)
	if err != nil {
		return nil, err
	}
	data["searching"], data["unsearched"] = search != nil, []any{}
	if search != nil {
		data["unsearched"] = unsearched(search)
	}
	return &engine.Reply{Data: data}, nil
}

// unsearched tells of the targets that could not be searched for credentials that no lease knows, in the order of their names.
func unsearched(s *lease.Search) []any {
	out := []any{}
	for _, place := range slices.Sorted(maps.Keys(s.Failed)) {
		f := s.Failed[place]
		out = append(out, map[string]any{"mount": f.Mount, "target": f.Target, "error": f.Why, "advice": f.Advice})
	}
	return out
}

func (b *Backend) resume(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	reply := &engine.Reply{Note: "fence resumed"}
	reply.Txn.Delete(store.Fenced.Table, store.Fenced.Name)
	rotation.ProveAll(&reply.Txn, r.Now) // passwords may have changed since the copy was made
	lease.SeekStrays(&reply.Txn, r.Now)  // and credentials may have been made
	return reply, nil
}
