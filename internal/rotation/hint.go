package rotation

import (
	"context"
	"errors"
	"time"

	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// What a holder says while it is waited for is a commit of its own, which does not touch the account's row: of ten thousand that acknowledge at once none
// waits for another. So whoever follows the commits notes which secret each was about, and has its account looked at before its time if not as many hold the
// outgoing password as at the last look. That is a hint: one that is lost costs time, until the next look, and nothing else.

// mostHints are the secrets that are noted at a time. A hint about one more is lost.
const mostHints = 4096

// breath is between one time that hints are followed and the next: meanwhile they gather.
const breath = 100 * time.Millisecond

// note takes notice that a row of store.LeaseIdx was touched: somebody may have moved.
func (w *Worker) note(row string) {
	if secret, ok := lease.Used(row); ok && w.Secret != nil {
		w.keep(secret)
	}
}

// keep notes a secret.
func (w *Worker) keep(secret string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.hints) < mostHints {
		w.hints[secret] = struct{}{}
		signal(w.hinted)
	}
}

// heed follows hints until ctx ends.
func (w *Worker) heed(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.hinted:
		}
		wait, err := w.follow(ctx)
		if err != nil && ctx.Err() == nil {
			w.Log.Warn("whoever has moved just now is seen at the next look only", "error", err)
		}
		t := time.NewTimer(min(max(wait, breath), firstLook)) // what is kept for later has signalled again
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// follow has looked at now what hints are about, but for what was a moment ago: wait is until then; 0: there is none.
func (w *Worker) follow(ctx context.Context) (wait time.Duration, err error) {
	w.mu.Lock()
	hints := w.hints
	w.hints = map[string]struct{}{}
	w.mu.Unlock()
	if w.barred() {
		return 0, nil
	}
	found, wait, err := w.moved(hints)
	if len(found) == 0 {
		return wait, err
	}
	_, failed := w.Store.Update(ctx, func(v store.View, txn *store.Txn) error {
		for _, f := range found {
			a, row, err := Load(v, f.Namespace, f.UUID, f.account)
			if err != nil {
				return err
			}
			if a.Stir(w.Store.Now()) {
				if err := Save(txn, row, a); err != nil {
					return err
				}
			}
		}
		return nil
	})
	w.Nudge()
	return wait, errors.Join(err, failed)
}

// stirred is an account that is to be looked at.
type stirred struct {
	Mount
	account string
}

// moved are the accounts that hints are about, of which not as many hold the outgoing password as at the last look; some at most. Those of others, and those
// that were looked at a moment ago, stay noted.
func (w *Worker) moved(hints map[string]struct{}) (found []stirred, wait time.Duration, err error) {
	view, err := w.Store.View()
	if err != nil {
		return nil, 0, err
	}
	defer view.Close()
	all, err := w.Mounts(view)
	if err != nil {
		return nil, 0, err
	}
	mounts := map[string]Mount{}
	for _, m := range all {
		mounts[store.MountKey(m.Namespace, m.UUID)] = m
	}
	now := w.Store.Now()
	for secret := range hints {
		namespace, uuid, _ := store.SplitMountKey(secret)
		m, ok := mounts[store.MountKey(namespace, uuid)]
		if !ok {
			continue
		}
		account, later, failed := w.weigh(view, m, lease.SecretOf(secret), now)
		err = errors.Join(err, failed)
		switch {
		case later > 0 || account != "" && len(found) == some:
			wait = max(wait, later, breath)
			w.keep(secret)
		case account != "":
			found = append(found, stirred{m, account})
		}
	}
	return found, wait, err
}

// weigh says which account is to be looked at since somebody moved from its outgoing password; "": none. later: look again then. An engine that panics costs
// this hint, and no other.
func (w *Worker) weigh(v store.View, m Mount, path string, now time.Time) (account string, later time.Duration, err error) {
	defer w.caught("a hint", path, &err)
	name, err := w.Secret(v, m, path)
	if err != nil || name == "" {
		return "", 0, err
	}
	a, row, err := Load(v, m.Namespace, m.UUID, name)
	if err != nil || !row.Exists() || !w.ours(target{m, a.Target}) {
		return "", 0, err
	}
	at := a.Stirrable()
	if at.IsZero() {
		return "", 0, nil
	}
	if later := at.Sub(now); later > 0 {
		return "", later, nil
	}
	users, err := lease.Users(v, &mount.Entry{Namespace: m.Namespace, UUID: m.UUID}, path)
	if err != nil || uint32(len(a.Holding(users))) == a.Behind {
		return "", 0, err
	}
	return name, 0, nil
}
