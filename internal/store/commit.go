package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
)

// Commit makes t durable, all or nothing, with its audit records. It returns once the commit that carries t is on stable storage
// and Views show it.
//
// Errors: *Conflict (a check failed; nothing was written), ErrUncertain (the flush failed after it had begun), ErrFull, ErrUnreachable,
// ErrClosed, ErrSealed, and ctx's error if ctx ended while t was still queued (nothing was written). Any other error
// means that nothing was written. Once the committer has taken t, ctx counts no more. The caller must not change what t
// refers to until Commit returns.
func (db *DB) Commit(ctx context.Context, t Txn) (Receipt, error) {
	return db.commit(ctx, &pending{txn: t})
}

func (db *DB) commit(ctx context.Context, p *pending) (Receipt, error) {
	s := db.published.Load()
	switch {
	case s == nil:
		return Receipt{}, ErrClosed
	case s.cipher == nil:
		return Receipt{}, ErrSealed
	case !p.txn.Urgent && db.full():
		return Receipt{}, ErrFull
	}
	if err := p.txn.validate(); err != nil {
		return Receipt{}, err
	}
	db.prepare(p, s.cipher)
	if !db.queue.add(p) {
		return Receipt{}, db.stopped()
	}
	select {
	case a := <-p.answer:
		return a.Receipt, a.err
	case <-ctx.Done():
		if p.state.CompareAndSwap(queued, gone) {
			return Receipt{}, ctx.Err()
		}
		a := <-p.answer
		return a.Receipt, a.err
	}
}

// stopped is the error of what comes too late.
func (db *DB) stopped() error {
	if f := db.Fault(); f != nil {
		return fmt.Errorf("%w: %w", ErrClosed, f)
	}
	return ErrClosed
}

// prepare does what needs no place in the chain: encoding and hashing the records.
func (db *DB) prepare(p *pending, c Cipher) {
	p.answer = make(chan answer, 1)
	p.records = make([]entry, len(p.txn.Audit))
	for i := range p.txn.Audit {
		r := p.txn.Audit[i]
		r.Node = db.o.Node
		if r.Time.IsZero() {
			r.Time = db.Now()
		}
		p.records[i] = newEntry(c, &r)
		p.size += len(p.records[i].encoded) + 200
	}
	for i := range p.txn.Puts {
		p.size += len(p.txn.Puts[i].Name)*2 + len(p.txn.Puts[i].Value) + 60
	}
	for i := range p.txn.Deletes {
		p.size += len(p.txn.Deletes[i].Name)*2 + 20
	}
}

// validate finds what no transaction may ask for, whatever the state.
func (t *Txn) validate() error {
	for i := range t.Puts {
		if err := t.Puts[i].validate(); err != nil {
			return err
		}
	}
	for _, k := range t.Deletes {
		if err := k.validate(); err != nil {
			return err
		}
	}
	for i := range t.Checks {
		if c := &t.Checks[i]; c.Table == 0 || c.Table >= tables {
			return fmt.Errorf("store: a check names %s", c.Key)
		}
	}
	for _, u := range t.Unchanged {
		if u.Table == 0 || u.Table >= tables {
			return fmt.Errorf("store: a condition names %s", u.Table)
		}
	}
	for _, r := range t.Ranges {
		if err := (Key{r.Table, "x"}).validate(); err != nil {
			return err
		}
		if r.Table.Power() != 0 {
			return fmt.Errorf("store: a range of %s cannot be deleted, its rows are under an authenticated sum", r.Table)
		}
		if r.To != "" && r.To <= r.From {
			return fmt.Errorf("store: empty range of %s", r.Table)
		}
	}
	return t.distinct()
}

func (k Key) validate() error {
	if k.Table == 0 || k.Table >= tables || classes[k.Table].own || k.Name == "" {
		return fmt.Errorf("store: a transaction cannot write %s", k)
	}
	if len(k.Name) > MaxName {
		return fmt.Errorf("store: a name in %s is %d bytes long; %d is the most", k.Table, len(k.Name), MaxName)
	}
	return nil
}

// distinct checks that no key is changed twice.
func (t *Txn) distinct() error {
	n := len(t.Puts) + len(t.Deletes)
	at := func(i int) Key {
		if i < len(t.Puts) {
			return t.Puts[i].Key
		}
		return t.Deletes[i-len(t.Puts)]
	}
	twice := func(k Key) error { return fmt.Errorf("store: a transaction changes %s twice", k) }
	if n <= 12 {
		for i := range n {
			for j := range i {
				if at(i) == at(j) {
					return twice(at(i))
				}
			}
		}
		return nil
	}
	seen := make(map[Key]struct{}, n)
	for i := range n {
		seen[at(i)] = struct{}{}
		if len(seen) <= i {
			return twice(at(i))
		}
	}
	return nil
}

// committer turns what queues into commits, one after the other.
func (db *DB) committer() {
	for {
		db.queue.gather()
		clear(db.batch)
		if db.batch = db.queue.take(db.batch[:0], db.o.BatchCount, db.o.BatchBytes); db.batch == nil {
			return
		}
		if db.Fault() != nil {
			refuse(db.batch, db.stopped())
			continue
		}
		db.flush()
	}
}

func refuse(batch []*pending, err error) {
	for _, p := range batch {
		p.answer <- answer{err: err}
	}
}

// ground is what a commit builds upon: a published state, which is the backend's latest or is guessed to be, and a Write at it.
type ground struct {
	*state
	w     Write
	guess bool
}

// errUnwritten is the error of a flush of which it is certain that nothing was written.
var errUnwritten = errors.New("store: nothing was written")

// flush makes one commit of those in the batch whose checks hold, and answers all. On a shared backend it guesses that no other
// node came between, as long as none does. What a guess cost its flush, or a connection that broke, is tried once more, under the lock.
func (db *DB) flush() {
	var err error
	tried := false
	if db.shared != nil && db.quiet >= calm && time.Since(db.flushed) < brisk {
		err = db.try(db.guess)
		tried = errors.Is(err, errUnwritten)
	} else {
		err = db.try(db.enter)
		tried = true
	}
	again := db.shared != nil && tried && errors.Is(err, errUnwritten)
	if again {
		db.rows.dropAll(db.Head().Seq) // should it be what is thought to be known that fails, then it is asked for
	}
	if again || errors.Is(err, ErrMoved) {
		err = db.try(db.enter)
	}
	if err != nil {
		refuse(db.batch, err)
	}
}

// calm is after how many flushes that met no other node's commit a node guesses that the next will meet none; brisk, how recent the last
// must be. Where nothing hurries, it is better to find out first whether the backend is there at all.
const (
	calm  = 4
	brisk = 20 * time.Millisecond
)

// try makes the commit upon the ground that find finds, and answers all in the batch; or it fails and answers nobody.
func (db *DB) try(find func() (ground, error)) error {
	g, err := find()
	if err != nil {
		return err
	}
	defer g.release()
	defer g.w.Abort()
	db.plan.build(g.state)
	db.admit(db.batch)
	if len(db.admitted) == 0 {
		if g.guess {
			return ErrMoved // what the checks expect differs, so the guess is not worth trying
		}
		db.reject()
		return nil
	}
	h, err := db.header(g.state, db.admitted)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnwritten, err)
	}
	next := db.newState(nil, h, audit.Hash{}, g.cipher)
	next.inherit(g.state)
	next.hash = db.write(g.w, g.cipher, &next.head, db.admitted)
	next.note(&next.head)
	next.remember(next.head, next.hash)

	began := time.Now()
	if err = g.w.Commit(); err != nil && !errors.Is(err, ErrMoved) {
		err = db.settle(&next.head, err)
	}
	if err == nil {
		db.stats.flushed(len(db.admitted), int(h.Count), time.Since(began))
		if err = db.reach(next, g.w); err != nil {
			err = db.uncertain(&next.head, err)
		}
	}
	if err != nil {
		db.states.Done()
		if g.guess {
			db.quiet = 0
		}
		return err
	}
	db.arrival, db.flushed = settled, time.Now()
	db.clock.follow(next.head.Time)
	if err := db.own(next, h.Seq); err != nil {
		return db.uncertain(&h, err)
	}
	for _, p := range db.admitted {
		p.answer <- answer{Receipt: Receipt{h.Seq, h.Time}}
	}
	db.reject()
	return nil
}

// own publishes the state that this node's commit seq made, and knows it to be confirmed. Of two histories the published one may be the lost one: then that is a
// Fault, and the commit stands. An error means that it is the commit.
func (db *DB) own(next *state, seq uint64) error {
	next.acquire()
	defer next.release()
	err := db.replace(next)
	if err != nil && !errors.Is(err, ErrClosed) {
		if err := db.missing(next); err != nil {
			return err
		}
	}
	db.confirm(next)
	if err == nil {
		for _, row := range db.kept {
			db.rows.put(row, seq)
		}
	}
	return nil
}

// reach gives next, which w made, its snapshot. Where other nodes may have written since, and w cannot tell, next becomes the
// state after theirs.
func (db *DB) reach(next *state, w Write) error {
	if exact, ok := w.(Exact); ok {
		next.snap = exact.State()
		return nil
	}
	recent, hashes := next.recent, next.hashes
	return db.insist(func() error {
		snap, err := db.b.Snapshot()
		if err != nil {
			return err
		}
		next.recent, next.hashes = slices.Clone(recent), slices.Clone(hashes)
		if err := next.follow(News{State: snap, More: true}, nil); err != nil {
			snap.Close()
			return err
		}
		next.snap = snap
		return nil
	})
}

// guess supposes that nobody wrote since the published state, and that the batch's checks hold.
func (db *DB) guess() (ground, error) {
	s, err := db.latest()
	if err != nil {
		return ground{}, err
	}
	db.plan.reset()
	db.plan.gather(&s.head, db.rows, db.batch)
	if !db.plan.guess() {
		s.release()
		return ground{}, ErrMoved
	}
	return ground{s, db.shared.Guess(s.snap, db.plan.keys, db.plan.versions), true}, nil
}

// enter begins a Write and reads what the batch depends on. What others committed meanwhile is published first. What queued while it
// waited for them joins the batch.
func (db *DB) enter() (g ground, err error) {
	if g.state, err = db.latest(); err != nil {
		return g, err
	}
	p := &db.plan
	p.reset()
	p.gather(&g.head, db.rows, db.batch)
	if db.shared == nil {
		g.w, err = db.b.Begin()
		if err != nil {
			g.release()
			return g, fmt.Errorf("%w: nothing was written: %w", ErrUnreachable, err)
		}
		err = db.found(&g)
	} else {
		var news News
		g.w, news, err = db.shared.Enter(db.entering, g.snap, g.head.Seq, p.keys, p.versions)
		if err != nil {
			g.release()
			return g, fmt.Errorf("%w: nothing was written: %w", ErrUnreachable, err)
		}
		if db.quiet++; len(news.Headers) > 0 {
			db.quiet = 0
		}
		if err = db.catchUp(&g.state, news, p.follow); err == nil {
			p.learn()
			err = db.join(&g)
		}
	}
	if err != nil {
		g.w.Abort()
		g.release()
		return g, fmt.Errorf("%w: %w", errUnwritten, err)
	}
	return g, nil
}

// join takes into the batch what queued meanwhile.
func (db *DB) join(g *ground) error {
	p, n := &db.plan, len(db.batch)
	db.batch = db.queue.more(db.batch, db.o.BatchCount, db.o.BatchBytes)
	if len(db.batch) == n {
		return nil
	}
	p.gather(&g.head, db.rows, db.batch[n:])
	if len(p.keys) > 0 {
		if err := g.w.Versions(p.keys, p.versions); err != nil {
			return err
		}
	}
	p.learn()
	return nil
}

// found asks a backend that is ours alone for the versions sought, and whether its head is the published one. If not, what was
// acknowledged is gone (a disk that lied): a Fault.
func (db *DB) found(g *ground) error {
	p := &db.plan
	keys := append(p.keys, headKey(g.head.Seq+1), Key{Batches, g.head.Batch})
	versions := append(p.versions, 0, 0)
	if err := g.w.Versions(keys, versions); err != nil {
		return err
	}
	n := len(p.keys)
	p.keys, p.versions = keys[:n], versions[:n]
	p.learn()
	if versions[n] == 0 && versions[n+1] == g.head.Seq { // both 0 in an empty store
		return nil
	}
	err := fmt.Errorf("%w: commit %d was acknowledged, and the backend does not end with it", ErrBehind, g.head.Seq)
	db.fail(err)
	return err
}

// admit sorts the batch into the transactions whose checks hold, given those before, and the others.
func (db *DB) admit(batch []*pending) {
	clear(db.admitted)
	clear(db.rejected)
	db.admitted, db.rejected = db.admitted[:0], db.rejected[:0]
	for _, p := range batch {
		if c := db.plan.admit(p); c != nil {
			db.rejected = append(db.rejected, rejected{p, c})
			continue
		}
		db.admitted = append(db.admitted, p)
	}
}

type rejected struct {
	*pending
	conflict *Conflict
}

// reject answers those who were not admitted.
func (db *DB) reject() {
	for _, r := range db.rejected {
		db.stats.conflicts.Add(1)
		r.answer <- answer{err: r.conflict}
	}
}

// header makes the header of the planned commit, but for its MAC.
func (db *DB) header(s *state, admitted []*pending) (audit.Header, error) {
	now := db.Now()
	batch, err := db.batchID(now)
	if err != nil {
		return audit.Header{}, err
	}
	h := audit.Header{
		Seq:         db.plan.seq,
		Incarnation: max(s.head.Incarnation, 1),
		Writer:      db.o.Node,
		Time:        now, // Now is never before the last header
		Prev:        s.hash,
		Touched:     db.plan.touched(),
		Batch:       batch,
	}
	if db.arrival == reborn {
		h.Incarnation = s.head.Incarnation + 1
	}
	leaves := db.leaves[:0]
	for _, p := range admitted {
		for i := range p.records {
			leaves = append(leaves, p.records[i].leaf)
		}
		if p.pruned != 0 {
			h.Checkpoint, h.Pruned = true, p.pruned
		}
	}
	db.leaves = leaves
	h.Root, h.Count = audit.Root(leaves), uint32(len(leaves))
	h.SetSums(s.cipher, db.plan.sums(s.cipher, s.head.Sums(s.cipher)))
	return h, nil
}

// write hands the commit to the backend, and returns the hash of its header, which it seals.
func (db *DB) write(w Write, c Cipher, h *audit.Header, admitted []*pending) audit.Hash {
	clear(db.kept)
	db.kept = db.kept[:0]
	for _, r := range db.plan.ranges {
		w.DeleteRange(r)
	}
	db.dropBatches(w, h.Time)
	buf := db.buf
	put := func(to func(Key, []byte), k Key, value []byte) (stored []byte) {
		buf = appendStored(buf[:0], c, k, h.Seq, value)
		to(k, buf)
		return buf
	}
	set := func(k Key, value []byte) { put(w.Set, k, value) }
	add := w.Set
	if a, ok := w.(Adder); ok {
		add = a.Add
	}
	for i := range db.plan.cells {
		switch cell := &db.plan.cells[i]; {
		case !cell.touched:
		case cell.now == 0:
			w.Delete(cell.Key)
		default:
			to := w.Set
			if cell.known && cell.base == 0 {
				to = add
			}
			if stored := put(to, cell.Key, cell.value); cell.Table != Meta && db.rows.demanded(cell.Key) {
				db.keep(cell, stored)
			}
		}
	}
	day, index := dayKey(day(h.Time)), uint32(0)
	for _, p := range admitted {
		for i := range p.records {
			e := &p.records[i]
			at := placeKey(h.Seq, index)
			db.value = recordValue(db.value[:0], h.Time, e.encoded)
			set(Key{Records, day + at}, db.value)
			for _, path := range e.paths {
				set(Key{ByPath, day + path + at}, nil)
			}
			for _, who := range e.who {
				set(Key{ByWho, day + who + at}, nil)
			}
			index++
		}
	}
	for _, mark := range db.arrival.marks() {
		w.Delete(mark)
	}
	set(Key{Batches, h.Batch}, nil)
	encoded := h.Seal(c)
	set(headKey(h.Seq), encoded)
	db.buf = buf
	return sha256.Sum256(encoded)
}

// keep remembers a row as it was just stored, as a View will read it.
func (db *DB) keep(c *cell, stored []byte) {
	row := Row{Key: c.Key, Version: storedVersion(stored)}
	class := &classes[c.Table]
	if !class.secret {
		row.Value = bytes.Clone(c.value)
	}
	if !class.clear && !class.index {
		row.sealed = bytes.Clone(stored[versionLen:])
	}
	db.kept = append(db.kept, row)
}

// batchIDs are kept for batchTerm, and dropped every batchEvery.
const (
	batchTerm  = time.Hour
	batchEvery = time.Minute
)

// dropBatches drops old ids of batches.
func (db *DB) dropBatches(w Write, now time.Time) {
	if now.Sub(db.dropped) < batchEvery {
		return
	}
	db.dropped = now
	w.DeleteRange(Range{Table: Batches, To: batchTime(now.Add(-batchTerm))})
}

// settle finds out what became of a flush that failed: nil means that it was done. On a shared backend the id of the batch tells, once the
// backend lets us write again; elsewhere only reopening does. An empty commit then makes the answer definitive: what failed may still be on its way
// and must find another state than it builds upon; and if it was done, its wait for standbys may have been cut short, so the commit after it waits for both.
func (db *DB) settle(h *audit.Header, cause error) error {
	if db.shared == nil {
		return db.uncertain(h, cause)
	}
	var version [1]uint64
	err := db.insist(func() error {
		w, err := db.b.Begin()
		if err != nil {
			return err
		}
		defer w.Abort()
		if err := w.Versions([]Key{{Batches, h.Batch}}, version[:]); err != nil {
			return err
		}
		return w.Commit()
	})
	switch {
	case err != nil:
		return db.uncertain(h, errors.Join(cause, err))
	case version[0] != h.Seq:
		return fmt.Errorf("%w: %w: %w", errUnwritten, ErrUnreachable, cause)
	}
	return nil
}

// patience is how long the committer insists.
const patience = 10 * time.Second

// insist tries until it succeeds or patience ends, for a shared backend may be away for a while; of another it asks once.
func (db *DB) insist(try func() error) error {
	err := try()
	if db.shared == nil {
		return err
	}
	deadline := time.Now().Add(patience)
	for pause := 10 * time.Millisecond; err != nil && time.Now().Before(deadline); pause = min(2*pause, time.Second) {
		select {
		case <-time.After(pause):
			err = try()
		case <-db.ctx.Done():
			return err
		}
	}
	return err
}

// uncertain stops the store after a flush of unknown outcome: a sequence is never used twice.
func (db *DB) uncertain(h *audit.Header, cause error) error {
	err := &Uncertain{Batch: h.Batch, Cause: cause}
	db.fail(err)
	return err
}
