package lease

import (
	"strings"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// sweep is how far the reaper is with the first tombstone. It is not kept: after a restart the sweep begins anew, and what it
// ended before is not there any more.
type sweep struct {
	id    string
	table store.Table // leases first, then the pointers that outlived theirs, then tokens; 0: not begun
	from  string      // name of the next row to look at
}

// examined bounds the rows that one chunk looks at, hit or not.
const examined = 4096

// sweepTombs ends what the first tombstone hits, one chunk of it. With the last, the tombstone goes.
func (r *Reaper) sweepTombs(j *job) (time.Duration, error) {
	tombs, err := LoadTombs(j.view)
	if err != nil || len(tombs) == 0 {
		return r.Poll, err
	}
	t := &tombs[0]
	if r.sweep.id != t.ID {
		from, _ := t.leases()
		r.sweep = sweep{id: t.ID, table: store.Leases, from: from}
	}
	next := r.sweep
	switch next.table {
	case store.Leases:
		next, err = r.sweepLeases(j, t, next)
	case store.LeaseIdx:
		next, err = r.sweepLapsed(j, t, next)
	case store.Tokens:
		next, err = r.sweepTokens(j, t, next)
	}
	if err != nil {
		return 0, err
	}
	switch {
	case next.table == 0: // done: a tombstone never changes, so that deleting it needs no condition
		j.txn.Delete(store.Tombs, tombRows+t.ID)
		j.txn.Audit = append(j.txn.Audit, audit.Record{
			Time: j.now, Operation: "revoke", Phase: audit.Outcome, System: "reaper", Cause: t.Cause, Granted: true, Rule: "system:reaper",
			Note: "all ended", Tombstone: t.ID,
		})
	case len(j.txn.Puts)+len(j.txn.Deletes) == 0: // nothing to commit: on with it
		r.sweep = next
		return 0, nil
	}
	j.after(func() { r.sweep = next })
	return 0, nil
}

// leases is the range of names that the tombstone can hit.
func (t *Tomb) leases() (from, to string) {
	switch s := t.Selector; s.Kind {
	case ByPrefix:
		from = tombMount(s.Mount) + s.Value
	case ByMount:
		from = tombMount(s.Value)
	default:
		from = tombMount("")[:4] // the namespace
	}
	return from, store.PrefixEnd(from)
}

func tombMount(mount string) string {
	return store.MountKey(namespaceOf(tombRows), mount)
}

// sweepLeases ends the leases that the tombstone hits, and returns where to go on.
func (r *Reaper) sweepLeases(j *job, t *Tomb, s sweep) (sweep, error) {
	_, to := t.leases()
	looked := 0
	for row, err := range j.view.Scan(store.Leases, s.from, to) {
		if err != nil {
			return s, err
		}
		if j.left <= 0 || looked == examined {
			s.from = row.Name
			return s, nil
		}
		looked++
		l, err := Decode(row)
		if err != nil {
			return s, err
		}
		if !t.hits(l) {
			continue
		}
		if err := r.bury(j, row, l, t); err != nil {
			return s, err
		}
	}
	if t.Selector.Kind == ByHeir { // neither who lapsed, nor tokens
		return sweep{id: t.ID}, nil
	}
	from, _ := t.pointers()
	return sweep{id: t.ID, table: store.LeaseIdx, from: from}, nil
}

// pointers is the range of names of the pointers that the tombstone can hit, among others.
func (t *Tomb) pointers() (from, to string) {
	switch s := t.Selector; s.Kind {
	case ByPrefix:
		from = pointerRows(namespaceOf(tombRows), s.Mount)
	case ByMount:
		from = pointerRows(namespaceOf(tombRows), s.Value)
	default:
		return t.leases()
	}
	return from, store.PrefixEnd(from)
}

// sweepLapsed has the tombstone hit those who may still use a secret though their lease has ended, and returns where to go on.
func (r *Reaper) sweepLapsed(j *job, t *Tomb, s sweep) (sweep, error) {
	_, to := t.pointers()
	looked := 0
	for row, err := range j.view.Scan(store.LeaseIdx, s.from, to) {
		if err != nil {
			return s, err
		}
		namespace, mount, rest := store.SplitMountKey(row.Name)
		pointers := pointerRows(namespace, mount)
		switch {
		case row.Name < pointers:
			s.from = pointers
			return s, nil
		case row.Name >= store.PrefixEnd(pointers):
			s.from = store.PrefixEnd(store.MountKey(namespace, mount))
			return s, nil
		case j.left <= 0 || looked == examined:
			s.from = row.Name
			return s, nil
		}
		looked++
		p, err := decodePointer(row)
		if err != nil {
			return s, err
		}
		l := p.lease(namespace, mount, rest)
		among := p.Many > 0 && t.Selector.Kind == ByHolder && t.Selector.Instance != ""
		if among { // who is thrown out may be one of them: what they know is exposed, but the others are waited for
			l.Holder.Instance = t.Selector.Instance
		}
		if p.Lapsed.IsZero() || p.Revoked || t.Selector.Moved || !t.hits(l) {
			continue
		}
		j.left--
		p.Revoked, l.Tomb = !among, t.ID
		j.txn.Require(row)
		j.txn.Put(row.Table, row.Name, p.encode())
		j.expose(l, "revoke", t.Cause)
	}
	if t.Selector.Kind == ByPrefix && !strings.HasPrefix(t.Selector.Value, "auth/") {
		return sweep{id: t.ID}, nil
	}
	return sweep{id: t.ID, table: store.Tokens, from: tokenRows}, nil
}

// expose puts the finding that a version is known to somebody whose lease on it has ended before, with the audit record.
func (j *job) expose(l *Lease, operation, cause string) {
	expose(&j.txn, l, cause, j.now)
	rec := record(l, operation, audit.Done, cause, j.now)
	rec.Secrets = exposed(l)
	j.txn.Audit = append(j.txn.Audit, rec)
}

// bury ends a lease that the tombstone hits. One that is being reverted already is only made to go as the tombstone says.
func (r *Reaper) bury(j *job, row store.Row, l *Lease, t *Tomb) error {
	if l.Kind == Static && t.Selector.Moved {
		return r.release(j, row, l, t)
	}
	if l.State != Revoking {
		l.Tomb, l.Forced = t.ID, t.Forced
		j.after(func() { r.counts.revoked.Add(1) })
		return j.end(row, l, "revoke", t.Cause)
	}
	if l.Tomb != "" && (l.Forced || !t.Forced) {
		return nil
	}
	j.left--
	if l.Tomb == "" {
		l.Tomb = t.ID
		j.txn.Put(store.LeaseIdx, tombPrefix(t.ID)+row.Name, nil)
	}
	l.Forced = l.Forced || t.Forced
	j.txn.Require(row)
	requeue(&j.txn, l, j.now)
	return nil
}

// release ends a static lease that the tombstone hits, whose holder may go on using what it has read.
func (r *Reaper) release(j *job, row store.Row, l *Lease, t *Tomb) error {
	j.left--
	l.Tomb = t.ID
	j.txn.Require(row)
	j.txn.Delete(store.Due, l.dueName())
	j.txn.Delete(store.Holds, row.Name)
	j.txn.Audit = append(j.txn.Audit, record(l, "revoke", audit.Done, t.Cause, j.now))
	j.after(func() { r.counts.revoked.Add(1) })
	if err := checkIn(j.view, &j.txn, l, t.Cause); err != nil {
		return err
	}
	return dropStatic(j.view, &j.txn, row, l, j.now, lapsed)
}

// sweepTokens ends the tokens that the tombstone hits, and returns where to go on. What they leave gets tombstones of their own.
func (r *Reaper) sweepTokens(j *job, t *Tomb, s sweep) (sweep, error) {
	looked := 0
	for row, err := range j.view.Scan(store.Tokens, s.from, store.PrefixEnd(tokenRows)) {
		if err != nil {
			return s, err
		}
		if j.left <= 0 || looked == examined {
			s.from = row.Name
			return s, nil
		}
		looked++
		k, err := token.Decode(row.Name[len(tokenRows):], row.Value)
		if err != nil {
			return s, err
		}
		if !t.hitsToken(k) {
			continue
		}
		if err := r.retire(j, row, k, "revoke", t); err != nil {
			return s, err
		}
	}
	return sweep{id: t.ID}, nil
}

// sweepTrees ends what dead tokens left, as much as fits in a chunk. With a token's row gone nothing is added below it, so
// that each tree only shrinks, from its leaves.
func (r *Reaper) sweepTrees(j *job) (time.Duration, error) {
	for row, err := range j.view.Scan(store.LeaseIdx, treeRows, store.PrefixEnd(treeRows)) {
		if err != nil {
			return 0, err
		}
		t, err := decodeTomb(row)
		if err != nil {
			return 0, err
		}
		gone, err := r.fell(j, t.Selector.Value, &t)
		if err != nil || !gone {
			return 0, err
		}
		j.txn.Delete(row.Table, row.Name)
		j.left--
	}
	return r.Poll, nil
}

// fell ends all that a token leaves, children first, and the token's row if it is still there. It reports false when the
// chunk is full before that.
func (r *Reaper) fell(j *job, hash string, t *Tomb) (bool, error) {
	prefix := tokenPrefix(hash)
	for idx, err := range j.view.Scan(store.LeaseIdx, prefix, store.PrefixEnd(prefix)) {
		if err != nil || j.left <= 0 {
			return false, err
		}
		l, row, err := load(j.view, idx.Name[len(prefix):])
		if err != nil {
			return false, err
		}
		if l == nil || l.State == Revoking {
			j.txn.Delete(idx.Table, idx.Name)
			j.left--
			continue
		}
		if err := r.bury(j, row, l, t); err != nil {
			return false, err
		}
	}
	full := false
	var failure error
	err := token.Children(j.view, hash, func(child string) bool {
		gone, err := r.fell(j, child, t)
		failure, full = err, !gone
		return err == nil && gone
	})
	if err != nil || failure != nil || full || j.left <= 0 {
		return false, first(err, failure)
	}
	if err := j.clear(r.Belongings(hash)); err != nil {
		return false, err
	}
	k, row, err := token.Lookup(j.view, hash)
	if err != nil || k == nil {
		return err == nil, err
	}
	j.left--
	j.txn.Require(row)
	k.Drop(&j.txn)
	j.tokenEnded(r, k, "revoke", t)
	return true, nil
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// clear deletes the ranges that are not empty.
func (j *job) clear(ranges []store.Range) error {
	for _, rg := range ranges {
		for _, err := range j.view.Scan(rg.Table, rg.From, rg.To) {
			if err != nil {
				return err
			}
			j.txn.Ranges = append(j.txn.Ranges, rg)
			break
		}
	}
	return nil
}
