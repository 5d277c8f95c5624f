package store

import (
	"context"
	"errors"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
)

// Expired is the day before which records are older than Options.Retention; the zero time if records are kept for ever.
func (db *DB) Expired() time.Time {
	if db.o.Retention <= 0 {
		return time.Time{}
	}
	return db.Now().Add(-db.o.Retention).Truncate(24 * time.Hour)
}

// Prune drops the audit records, and their index entries, of all days (UTC) before the day of before. Headers stay: the chain
// remains whole, and its new header is the checkpoint that says from where on records must be there. The act's own record is by. Where
// there is nothing to drop, nothing is committed and the Receipt is zero.
func (db *DB) Prune(ctx context.Context, before time.Time, by audit.Record) (Receipt, error) {
	cut := day(before)
	seq, err := db.firstOf(cut)
	if err != nil || seq == 0 {
		return Receipt{}, err
	}
	p := &pending{pruned: seq, txn: Txn{Audit: []audit.Record{by}, Urgent: true}} // it makes room
	for _, t := range [...]Table{Records, ByPath, ByWho} {
		p.drops = append(p.drops, Range{Table: t, To: dayKey(cut)})
	}
	return db.commit(ctx, p)
}

// firstOf is the first commit on or after a day, which may be still to come, if records of days before it are there; else 0.
func (db *DB) firstOf(cut uint32) (uint64, error) {
	s, err := db.latest()
	if err != nil {
		return 0, err
	}
	defer s.release()
	if cut > day(db.Now()) {
		return 0, errors.New("store: records of today and later cannot be pruned")
	}
	if old, err := Last(s.snap, Range{Table: Records, To: dayKey(cut)}); err != nil || old.Bytes == nil {
		return 0, err
	}
	return s.first(func(h *audit.Header) bool { return day(h.Time) >= cut })
}
