package lease

import (
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// Expiry. store.Due names leases and tokens in order of time, each at or before its end. The reaper seeks its start: what
// is due is over, or was renewed meanwhile and goes back to where it belongs now.

// expireDynamic takes what leaves a credential at a target.
func (r *Reaper) expireDynamic(j *job) (time.Duration, error) {
	return r.dynamic.due(j, dueDynamic, func(rest string, row store.Row) error { return r.dueLease(j, rest, row) })
}

// expireRest takes the rest: static leases and tokens.
func (r *Reaper) expireRest(j *job) (time.Duration, error) {
	j.left = morsel
	return r.rest.due(j, "", func(rest string, row store.Row) error {
		switch kind, name := rest[:1], rest[1:]; kind {
		case dueLease:
			return r.dueLease(j, name, row)
		case token.DueToken:
			return r.dueToken(j, name, row)
		}
		return &store.Damage{Key: row.Key, Why: "it is neither a lease's nor a token's"}
	})
}

// cursor is where one section of store.Due goes on. Seeking its start each time would be right, too, but step over all that was
// deleted there a moment ago. What becomes due behind a cursor is found when the section is next through, or after a second.
type cursor struct {
	from  string
	until time.Time
}

// due calls f for what is due in one section of store.Due, as much as fits, and tells when the next is.
func (c *cursor) due(j *job, section string, f func(rest string, row store.Row) error) (time.Duration, error) {
	if j.alarm {
		return j.poll, nil
	}
	j.undo = func() { c.from = "" }
	if c.from == "" || !j.now.Before(c.until) {
		*c = cursor{from: section, until: j.now.Add(time.Second)}
	}
	to := store.PrefixEnd(section)
	if section == "" {
		to = dueDynamic
	}
	for row, err := range j.view.Scan(store.Due, c.from, to) {
		if err != nil {
			return 0, err
		}
		at, rest, ok := store.ParseTimeKey(row.Name[len(section):])
		if !ok || rest == "" {
			return 0, &store.Damage{Key: row.Key, Why: "it has no time"}
		}
		switch {
		case j.left <= 0:
			c.from = row.Name
			return 0, nil
		case at.After(j.now) && c.from != section:
			c.from = "" // through: look whether anything is behind
			return 0, nil
		case at.After(j.now):
			c.from = ""
			return at.Sub(j.now), nil
		}
		if err := f(rest, row); err != nil {
			return 0, err
		}
	}
	through := c.from == section
	c.from = ""
	if !through {
		return 0, nil
	}
	return j.poll, nil
}

// dueLease ends a lease if it is over.
func (r *Reaper) dueLease(j *job, name string, due store.Row) error {
	l, row, held, err := loadHeld(j.view, name)
	if err != nil {
		return err
	}
	switch {
	case l == nil || l.State == Revoking || l.dueName() != due.Name:
		j.txn.Delete(due.Table, due.Name)
		j.left--
	case j.now.Before(l.Expires):
		j.left--
		j.txn.Require(row)
		l.moveDue(&j.txn, l.Expires)
		j.txn.Put(row.Table, row.Name, l.Encode())
	case l.State == Pending:
		j.after(func() { r.counts.unconfirmed.Add(1) })
		return j.end(row, l, "revoke", "never confirmed")
	case l.Kind == Dynamic:
		j.after(func() { r.counts.expired.Add(1) })
		return j.end(row, l, "expire", "expired")
	default:
		return r.lapse(j, row, held, l)
	}
	return nil
}

// lapse drops a static lease whose hold is over, on condition that nobody extends it meanwhile.
func (r *Reaper) lapse(j *job, row, held store.Row, l *Lease) error {
	j.left--
	j.txn.Require(row)
	j.txn.Require(held)
	if held.Exists() {
		j.txn.Delete(held.Table, held.Name)
	}
	j.txn.Delete(store.Due, l.dueName())
	j.txn.Audit = append(j.txn.Audit, record(l, "expire", audit.Done, "expired", j.now))
	j.after(func() { r.counts.expired.Add(1) })
	if err := checkIn(j.view, &j.txn, l, "expired"); err != nil {
		return err
	}
	return dropStatic(j.view, &j.txn, row, l, j.now, lapsed)
}

// dueToken ends a token if it is over.
func (r *Reaper) dueToken(j *job, hash string, due store.Row) error {
	t, row, err := token.Lookup(j.view, hash)
	if err != nil {
		return err
	}
	j.txn.Delete(due.Table, due.Name)
	if t != nil && t.Expired(j.now) {
		return r.retire(j, row, t, "expire", &Tomb{Cause: "token expired", Time: j.now})
	}
	j.left--
	if t == nil || t.Expires.IsZero() {
		return nil
	}
	later := store.TimeKey(t.Expires) + token.DueToken + hash
	if later == due.Name {
		return &store.Damage{Key: due.Key, Why: "it is due before it expires"}
	}
	j.txn.Require(row)
	j.txn.Put(store.Due, later, nil)
	return nil
}

// retire ends a token: its own rows at once, what it leaves by a tombstone, which is like given but for what it selects. An empty id is filled in.
func (r *Reaper) retire(j *job, row store.Row, t *token.Token, operation string, like *Tomb) error {
	tomb, err := NewTomb(Selector{Kind: ByToken, Value: t.Hash}, like.Cause, j.now, r.Random)
	if err != nil {
		return err
	}
	if like.ID != "" {
		tomb.ID = like.ID // who waits for the one waits for the other
	}
	tomb.Forced = like.Forced
	j.left--
	j.txn.Require(row)
	t.Drop(&j.txn)
	Bury(&j.txn, tomb)
	j.tokenEnded(r, t, operation, tomb)
	return nil
}

// tokenEnded adds the audit record of a token's end.
func (j *job) tokenEnded(r *Reaper, t *token.Token, operation string, tomb *Tomb) {
	j.txn.Audit = append(j.txn.Audit, audit.Record{
		Time: j.now, Operation: operation, Namespace: namespaceOf(token.Key(t.Hash).Name), Path: t.Path, Phase: audit.Done, Entity: t.Entity,
		Name: t.Name, Accessor: t.Accessor, Role: t.Role, System: "reaper", Cause: tomb.Cause, Granted: true, Rule: "system:reaper",
		Owner: t.Owner, Note: "token", Tombstone: tomb.ID,
	})
	j.after(func() { r.counts.tokens.Add(1) })
}

func namespaceOf(name string) uint32 {
	n, _, _ := store.SplitMountKey(name)
	return n
}
