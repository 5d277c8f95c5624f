package core

import (
	"context"
	"errors"
	"slices"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lockout"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// errLocked is the answer to everybody under a name that is locked out, with the right password or a wrong one.
var errLocked = api.Errorf(api.Unauthenticated, "permission denied")

// suspected is the name that a login is under, while it can be locked out.
type suspected struct {
	lockout.Name
	terms lockout.Terms
	row   store.Row // of the lock, if there is or was one
	locks bool      // this failure locks it
}

// barred refuses a login under a name that is locked out, before anything of it is looked at.
func (w *walk) barred() error {
	w.suspected = nil
	if w.route.Subject == nil || w.mount.Class != mount.Auth || !slices.Contains(lockout.Types, w.mount.Type) {
		return nil
	}
	terms := w.Lockout.For(w.mount)
	if terms.Disabled {
		return nil
	}
	subject, err := w.route.Subject(w.request)
	if err != nil || subject.Alias == "" {
		return err
	}
	s := &suspected{Name: lockout.Name{Mount: w.mount, Alias: subject.Alias, Known: subject.Known}, terms: terms}
	locked, row, err := w.guard.Check(w.view, s.Name, terms, w.op.Time)
	if err != nil {
		return err
	}
	if locked {
		return errLocked
	}
	s.row, w.suspected = row, s
	return nil
}

// failed takes notice of the refusal of a login.
func (w *walk) failed(cause error) error {
	s := w.suspected
	if s == nil || !errors.Is(cause, engine.ErrCredentials) {
		return cause
	}
	switch w.guard.Fail(s.Name, s.terms, w.op.Time) {
	case lockout.Already:
		return errLocked
	case lockout.Locks:
		s.locks = true
	}
	return cause
}

// lock commits a refusal that locks its name.
func (w *walk) lock(ctx context.Context, txn *store.Txn) error {
	s := w.suspected
	lockout.Put(txn, s.Name, w.op.Time)
	txn.Audit[0].Note = "locked out after too many failures"
	txn.Urgent = true // a full disk gives nobody more guesses
	receipt, err := w.Store.Commit(ctx, *txn)
	w.guard.Committed(s.Name, receipt.Seq)
	return err
}

// trusted adds to a login's commit what it rests on: it succeeds only while nobody locks its name.
func (w *walk) trusted(txn *store.Txn) {
	s := w.suspected
	if s == nil {
		return
	}
	txn.Require(s.row)
	if s.row.Exists() {
		txn.Delete(s.row.Table, s.row.Name) // it is over
	}
}

// welcomed forgets the failures under the name of a login that is on record.
func (w *walk) welcomed() {
	if w.reply.Login != nil && w.suspected != nil {
		w.guard.Forget(w.suspected.Name)
	}
}

// expireLocks drops the rows of locks that are over.
func (c *Core) expireLocks(ctx context.Context) error {
	v, err := c.Store.View()
	if err != nil {
		return err
	}
	defer v.Close()
	table, err := c.table(v)
	if err != nil {
		return err
	}
	txn := store.Txn{}
	for _, e := range table.All() {
		if e.Class != mount.Auth {
			continue
		}
		if err := lockout.Expire(v, &txn, e, c.Lockout.For(e), c.Store.Now()); err != nil {
			return err
		}
	}
	if len(txn.Deletes) == 0 {
		return nil
	}
	txn.Audit = []audit.Record{c.upkeep("unlock", "sys/locked-users", "the time of the locks is over")}
	if err = c.commit(ctx, &txn); errors.As(err, new(*store.Conflict)) {
		return nil // somebody logged in or was locked out meanwhile; the next time finds the rest
	}
	return err
}
