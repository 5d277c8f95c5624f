package lease

import (
	"crypto/sha256"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/store"
)

// mostInherited is how many leases one commit ends in favour of an heir.
const mostInherited = 256

// heirPrefix begins the index of the Dynamic leases that one holder has; empty: who takes over from whom cannot be said of it.
func heirPrefix(alias, instance string) string {
	if alias == "" || instance == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(alias + "\x00" + instance))
	return store.MountKey(0, "", "i/", string(sum[:16]))
}

// heirName is the lease's row of that index; empty: it has none.
func (l *Lease) heirName() string {
	prefix := heirPrefix(l.Holder.Alias, l.Holder.Instance)
	if l.Kind != Dynamic || prefix == "" {
		return ""
	}
	return prefix + l.name()
}

// index puts the row by which an heir finds the lease, which is encoded afterwards.
func (l *Lease) index(txn *store.Txn) {
	if name := l.heirName(); name != "" {
		txn.Put(store.LeaseIdx, name, nil)
		l.Indexed = true
	}
}

// Inherit ends, at now, the dynamic leases of exactly one holder but for those with an id in kept, which is sorted: he has taken over from who held them. It looks at that holder's
// only; each has an audit record of its own. all is false if there are more than fit into one commit: then nothing is in txn, and a tombstone ByHeir does it. Leases that a lessor without
// the index made are found once they were renewed.
func Inherit(v store.View, txn *store.Txn, h Holder, kept []string, cause string, now time.Time) (ended []*Lease, all bool, err error) {
	prefix := heirPrefix(h.Alias, h.Instance)
	s := Selector{Kind: ByHeir, Alias: h.Alias, Instance: h.Instance, Kept: kept}
	if err := s.validate(); err != nil {
		return nil, false, err
	}
	part := &store.Txn{}
	looked := 0
	for idx, err := range v.Scan(store.LeaseIdx, prefix, store.PrefixEnd(prefix)) {
		if err != nil {
			return nil, false, err
		}
		l, row, err := load(v, idx.Name[len(prefix):])
		if err != nil {
			return nil, false, err
		}
		switch {
		case l == nil || l.State == Revoking: // ended by a lessor without the index
			part.Delete(idx.Table, idx.Name)
		case s.lease(l):
			if err := End(v, part, row, l, cause, now); err != nil {
				return nil, false, err
			}
			part.Audit = append(part.Audit, record(l, "revoke", audit.Begun, cause, now))
			ended = append(ended, l)
		default:
			continue
		}
		if looked++; looked > mostInherited {
			return nil, false, nil
		}
	}
	txn.Join(part)
	return ended, true, nil
}
