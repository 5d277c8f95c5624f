package core

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/claim"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/exporter"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/quota"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/system"
)

const (
	removalEvery   = 2 * time.Second
	retentionEvery = time.Hour
	removalChunk   = 1000 // rows of a disabled mount that one commit deletes
)

// every calls f now and then until ctx ends, and when this node comes to do other work than before: under the claim of what it does, if it is
// this node's. What fails is logged and tried again.
func (c *Core) every(ctx context.Context, d time.Duration, what string, f func(context.Context) error) {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		changed := c.Claims.Changed()
		c.claimed(ctx, what, f)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-changed:
		}
	}
}

// claimed calls f under the claim of what it does, unless another node does that.
func (c *Core) claimed(ctx context.Context, what string, f func(context.Context) error) {
	hold, ok := c.Claims.Take(what)
	if !ok {
		return
	}
	defer hold.Release()
	ctx, cancel := hold.Context(ctx)
	defer cancel()
	if err := f(ctx); err != nil && ctx.Err() == nil {
		c.Log.Error(what+" failed; it is tried again", "error", err)
	}
}

// commit commits an act of the background, on condition that it is still this node's.
func (c *Core) commit(ctx context.Context, txn *store.Txn) error {
	claim.Fence(ctx, txn)
	_, err := c.Store.Commit(ctx, *txn)
	return err
}

// linger is how long follow waits for more when it has told of everything: where much is committed, it tells of many commits at once.
const linger = 5 * time.Millisecond

// follow tells those who work in the background what is committed, by other nodes and by this one, until ctx ends.
func (c *Core) follow(ctx context.Context) {
	for ctx.Err() == nil {
		for h, err := range c.Store.Watch(ctx, c.Store.Head().Seq+1) {
			if err != nil {
				break
			}
			c.reaper.Heard(&h)
			c.rotator.Heard(&h)
			if lease.Demanding(&h) {
				c.demandsSoon()
			}
			for _, b := range c.Backends {
				if f, ok := b.(engine.Follower); ok {
					f.Heard(&h)
				}
			}
			if h.Seq == c.Store.Head().Seq {
				time.Sleep(linger)
			}
		}
		c.reaper.Nudge()
		c.rotator.Nudge()
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// upkeep is the audit record of an act of upkeep.
func (c *Core) upkeep(operation, path, cause string) audit.Record {
	return audit.Record{
		Time: c.Store.Now(), Operation: operation, Path: path, Phase: audit.Done, System: "upkeep", Granted: true,
		Rule: "system:upkeep", Policy: "system", Cause: cause,
	}
}

// removeMounts removes what disabled mounts kept, once every credential that they made is confirmed gone.
func (c *Core) removeMounts(ctx context.Context) error {
	v, err := c.Store.View()
	if err != nil {
		return err
	}
	defer v.Close()
	table, err := c.table(v)
	if err != nil {
		return err
	}
	for _, e := range table.All() {
		if !e.Removing {
			continue
		}
		if waiting, err := leased(v, e); err != nil {
			return err
		} else if waiting {
			continue // its target may be away for long: the others do not wait for it
		}
		if err := c.removeMount(ctx, v, table, e); err != nil {
			return err
		}
	}
	return nil
}

// leased reports whether a mount has leases left, static ones too: what ends one of them leaves rows with its mount.
func leased(v store.View, e *mount.Entry) (bool, error) {
	prefix := store.MountKey(e.Namespace, e.UUID)
	for _, err := range v.Scan(store.Leases, prefix, store.PrefixEnd(prefix)) {
		return true, err
	}
	return false, nil
}

// forget drops wide revocations that no batch token can be older than: neither one by what was given so far, whatever became of the mount
// that gave it, nor one by the limits in force.
func (c *Core) forget(ctx context.Context) error {
	v, err := c.Store.View()
	if err != nil {
		return err
	}
	defer v.Close()
	table, err := c.table(v)
	if err != nil {
		return err
	}
	longest, err := lease.Longest(v)
	if err != nil {
		return err
	}
	longest = max(longest, c.MaxTTL)
	for _, e := range table.All() {
		longest = max(longest, c.limits(e).MaxTTL)
	}
	txn := store.Txn{}
	if err := lease.Forget(v, &txn, c.Store.Now().Add(-longest-24*time.Hour)); err != nil || len(txn.Deletes) == 0 {
		return err
	}
	txn.Audit = []audit.Record{c.upkeep("prune", "sys/lessor/revoke", "no token is older than these revocations")}
	return c.commit(ctx, &txn)
}

// forgetUsers drops those who may still use secrets that lessor rotated and that are gone: nothing will ever be proven dead of them. Of those of other secrets
// it merges who is too many instances of one holder.
func (c *Core) forgetUsers(ctx context.Context) error {
	v, err := c.Store.View()
	if err != nil {
		return err
	}
	mounts, err := c.rotated(v)
	v.Close()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		walk := &lease.Tidying{}
		for more := true; more; {
			if more, err = c.forgetSome(ctx, m.UUID, walk); err != nil && !errors.As(err, new(*store.Conflict)) { // else somebody reads again: the next round does it
				return err
			}
		}
	}
	return nil
}

// forgetSome is one commit of it, and reports whether there is more.
func (c *Core) forgetSome(ctx context.Context, uuid string, walk *lease.Tidying) (more bool, err error) {
	v, err := c.Store.View()
	if err != nil {
		return false, err
	}
	defer v.Close()
	m, rotator, err := c.rotatorOf(v, uuid)
	if err != nil {
		return false, err
	}
	versions, ok := rotator.(engine.Versioner)
	if !ok {
		return false, nil
	}
	txn := &store.Txn{}
	more, err = walk.Users(v, txn, m, func(path string) (bool, error) {
		current, born, err := versions.Current(v, m, path)
		return current == 0 && born == 0, err
	})
	if err != nil || len(txn.Deletes) == 0 {
		return more, err
	}
	rec := c.upkeep("tidy", m.Path, "holders of secrets that are gone")
	if len(txn.Puts) > 0 {
		rec.Note = "holders that were very many instances are on record together"
	}
	rec.Namespace = m.Namespace
	txn.Audit = []audit.Record{rec}
	return more, c.commit(ctx, txn)
}

func (c *Core) removeMount(ctx context.Context, v store.View, table *mount.Table, e *mount.Entry) error {
	prefix := store.MountKey(e.Namespace, e.UUID)
	end := store.PrefixEnd(prefix)
	txn := &store.Txn{}
	for row, err := range v.Scan(store.Config, prefix, end) {
		if err != nil {
			return err
		}
		txn.Delete(row.Table, row.Name)
		if len(txn.Deletes) == removalChunk {
			break
		}
	}
	rec := c.upkeep("remove", e.Path, "mount disabled")
	rec.Namespace = e.Namespace
	if len(txn.Deletes) < removalChunk { // the last of it
		if err := quota.Forget(v, txn, e.UUID); err != nil {
			return err
		}
		for _, t := range []store.Table{store.Engine, store.Secrets, store.LeaseIdx, store.Holds} {
			txn.Ranges = append(txn.Ranges, store.Range{Table: t, From: prefix, To: end})
		}
		table.Remove(txn, e)
		if i, ok := c.Backends[e.Backend()].(engine.Issuer); ok {
			defer i.Close(e.UUID)
		}
	}
	txn.Audit = []audit.Record{rec}
	return c.commit(ctx, txn)
}

// Upgrade finishes the upgrades of mounts that are under way. It is called again for what a crash cut short.
func (c *Core) Upgrade(ctx context.Context) error {
	c.upgrading.Lock()
	defer c.upgrading.Unlock()
	v, err := c.Store.View()
	if err != nil {
		return err
	}
	defer v.Close()
	table, err := c.table(v)
	if err != nil {
		return err
	}
	var failed []error
	for _, e := range table.All() {
		if e.Upgrading && !e.Removing {
			failed = append(failed, c.upgradeAll(ctx, e.UUID))
		}
	}
	return errors.Join(failed...)
}

// upgradeAll finishes the upgrade of one mount.
func (c *Core) upgradeAll(ctx context.Context, uuid string) error {
	tries := 0
	for from := ""; ; {
		next, err := c.upgrade(ctx, uuid, from)
		if tries++; errors.As(err, new(*store.Conflict)) && tries < attempts {
			continue // mounts changed, or another node upgrades it, too
		}
		if err != nil || next == "" {
			return err
		}
		from, tries = next, 0
	}
}

// upgrade commits one chunk, and with the last one the mount's return to service. The decision is the system's own, for this mount only.
func (c *Core) upgrade(ctx context.Context, uuid, from string) (next string, err error) {
	v, err := c.Store.View()
	if err != nil {
		return "", err
	}
	defer v.Close()
	table, err := c.table(v)
	if err != nil {
		return "", err
	}
	e := table.ByUUID(uuid)
	if e == nil || !e.Upgrading {
		return "", nil
	}
	to, ok := c.Backends[e.Backend()].(engine.Upgrader)
	if !ok {
		return "", fmt.Errorf("core: nothing is upgraded to engine type %q", e.Backend())
	}
	op := &lessor.Op{Verb: lessor.Update, Namespace: e.Namespace, Path: e.Path}
	d := policy.Decide(nil, &lessor.Principal{System: "upkeep"}, op, policy.Facts{Mount: uuid})
	if d.Denied != nil {
		return "", d.Denied
	}
	// Two that upgrade the same mount, and one that is through, must not undo what was written since.
	txn := store.Txn{Unchanged: []store.Since{{Table: store.Mounts, Position: v.Position()}}}
	access := engine.Access{Mount: e, View: v, Grant: d.Grant, Opener: c.Keys, Now: c.Store.Now()}
	if next, err = to.Upgrade(access, &txn, from); err != nil {
		return "", err
	}
	if next == "" {
		after := *e
		after.Upgrading = false
		table.Save(&txn, &after, e.Path)
	}
	rec := c.upkeep("upgrade", e.Path, "version 2 was asked for")
	rec.Namespace = e.Namespace
	txn.Audit = []audit.Record{rec}
	return next, c.commit(ctx, &txn)
}

// Installed puts on record that a version of lessor runs on the store from now on, if it has not before.
func (c *Core) Installed(ctx context.Context, version string) error {
	v, err := c.Store.View()
	if err != nil {
		return err
	}
	defer v.Close()
	txn := store.Txn{Audit: []audit.Record{c.upkeep("start", "sys/version-history", "the first start of a version")}}
	if news, err := system.Installed(v, &txn, version, c.Store.Now()); err != nil || !news {
		return err
	}
	_, err = c.Store.Commit(ctx, txn)
	if errors.As(err, new(*store.Conflict)) || errors.Is(err, store.ErrFull) {
		return nil // another node was faster; or a start when there is room will do it
	}
	return err
}

// prune drops audit records that are older than the configuration keeps them, and that every audit device was told. A device that
// lags is waited for, but not for ever: ExportWait bounds how much longer records are kept for its sake.
func (c *Core) prune(ctx context.Context) error {
	before := c.Store.Expired()
	if before.IsZero() {
		return nil
	}
	cut, slow, err := c.untold(before)
	if err != nil {
		return err
	}
	by := c.upkeep("prune", "sys/lessor/audit", "retention")
	if latest := before.Add(-c.ExportWait).Truncate(24 * time.Hour); slow != "" && cut.Before(latest) {
		cut, by.Note = latest, "an audit device was not told all of it"
		done, err := c.Store.Prune(ctx, cut, by)
		if done.Seq != 0 {
			c.Log.Error("audit records were pruned that an audit device was not told: it lags longer than exporter_patience allows", "device", slow, "before", cut)
		}
		return err
	} else if slow != "" {
		c.Log.Warn("audit records are kept longer than retention says: an audit device lags", "device", slow, "kept_from", cut, "until", latest)
	}
	_, err = c.Store.Prune(ctx, cut, by)
	return err
}

// untold is the day up to which every audit device was told everything, before at the latest, and the device that lags if that is
// earlier.
func (c *Core) untold(before time.Time) (time.Time, string, error) {
	v, err := c.Store.View()
	if err != nil {
		return before, "", err
	}
	defer v.Close()
	seq, device, err := exporter.Untold(v)
	if err != nil || device == nil || seq > v.Position() {
		return before, "", err
	}
	h, _, err := c.Store.Header(seq)
	if err != nil {
		return before, "", err
	}
	if day := h.Time.Truncate(24 * time.Hour); day.Before(before) {
		return day, device.Name(), nil
	}
	return before, "", nil
}
