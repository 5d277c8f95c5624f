package store

import (
	"context"
	"fmt"
	"hash/maphash"
	"iter"
	"slices"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
)

// Report is what a verification found whole.
type Report struct {
	Head        uint64    // sequence of the last commit
	Incarnation uint64    // of the last commit
	Time        time.Time // of the last commit
	Records     uint64    // audit records
	Pruned      uint64    // records of commits before this sequence were dropped by policy; 0: none
	Rows        uint64    // rows of state
}

// Verify checks the whole store, as of one View, and returns the first thing that is broken as an error that names it. It checks that
// headers are dense, chained and authentic; that the audit records are exactly those that the headers bind, and the audit indexes
// exactly those of the records; that each row opens under its place and is of the version that the last commit to touch it
// wrote, and that no row is missing; and both authenticated sums. It works on a store with a Fault, too. progress (may be nil) is told
// how many commits have been gone through, of how many.
//
// It reads everything once (twice the headers), and takes memory of some 100 MB at most.
func (db *DB) Verify(ctx context.Context, progress func(done, total uint64)) (Report, error) {
	for {
		s := db.published.Load()
		switch {
		case s == nil:
			return Report{}, ErrClosed
		case s.cipher == nil:
			return Report{}, ErrSealed
		case !s.acquire():
			continue
		}
		defer s.release()
		return verify(ctx, s.snap, s.cipher, progress)
	}
}

// Inspect is Verify for a store that does not let itself be unsealed.
func Inspect(ctx context.Context, b Backend, c Cipher, progress func(done, total uint64)) (Report, error) {
	snap, err := b.Snapshot()
	if err != nil {
		return Report{}, err
	}
	defer snap.Close()
	return verify(ctx, snap, c, progress)
}

func verify(ctx context.Context, snap Snapshot, c Cipher, progress func(done, total uint64)) (Report, error) {
	if progress == nil {
		progress = func(uint64, uint64) {}
	}
	v := &verification{ctx: ctx, snap: snap, cipher: c, seed: maphash.MakeSeed(), chain: audit.Chain{Authority: c}}
	for _, step := range [...]func() error{
		func() error { return v.commits(progress) }, v.batches, v.indexes, v.rows,
		func() error { return verifySum(ctx, snap, &v.chain.Last, c, 0) },
		func() error { return verifySum(ctx, snap, &v.chain.Last, c, 1) },
	} {
		if err := step(); err != nil {
			return Report{}, err
		}
	}
	h := &v.chain.Last
	return Report{Head: h.Seq, Incarnation: h.Incarnation, Time: h.Time, Records: v.records, Pruned: v.pruned, Rows: v.found}, nil
}

type verification struct {
	ctx    context.Context
	snap   Snapshot
	cipher Cipher
	seed   maphash.Seed // drawn anew, so that nobody can prepare collisions
	chain  audit.Chain

	records uint64
	pruned  uint64
	touches uint64           // changes that all headers together tell of
	ranges  [tables][]erased // ranges that were deleted, in order of commits
	entries tally            // of the index entries that the records ask for
	found   uint64           // rows of state
}

type erased struct {
	Range
	seq uint64
}

// tally is the sum of the hashes of a set of keys: two sets with the same tally are the same.
type tally struct{ count, low, high uint64 }

func (t *tally) add(seed maphash.Seed, k Key) {
	var h maphash.Hash
	h.SetSeed(seed)
	h.WriteByte(byte(k.Table))
	h.WriteString(k.Name)
	t.count++
	t.low += h.Sum64()
	h.WriteByte(1)
	t.high += h.Sum64()
}

// commits goes through headers and records side by side: both are in the order of the chain.
func (v *verification) commits(progress func(done, total uint64)) error {
	last, err := Last(v.snap, Range{Table: Head})
	if err != nil {
		return err
	}
	var total uint64
	if last.Bytes != nil {
		total = storedVersion(last.Bytes)
	}
	next, stop := iter.Pull2(v.snap.Scan(Range{Table: Records}, false))
	defer stop()
	records := recordReader{next: next}
	if err := records.step(); err != nil {
		return err
	}
	firstRecord := records.seq // 0: there is none
	var unbound uint64         // the last commit whose records are gone
	for e, err := range v.snap.Scan(Range{Table: Head}, false) {
		if err == nil {
			err = v.ctx.Err()
		}
		if err != nil {
			return err
		}
		h, err := v.header(e)
		if err != nil {
			return err
		}
		if h.Checkpoint {
			if h.Pruned > h.Seq || h.Pruned < v.pruned {
				return &Damage{e.Key, fmt.Sprintf("its checkpoint %d cannot be", h.Pruned)}
			}
			v.pruned = h.Pruned
		}
		if h.Count > 0 && (firstRecord == 0 || h.Seq < firstRecord) {
			unbound = h.Seq
		} else if err := v.recordsOf(h, &records); err != nil {
			return err
		}
		v.note(h)
		if h.Seq%1024 == 0 {
			progress(h.Seq, total)
		}
	}
	switch {
	case records.seq != 0:
		return &Damage{records.at.Key, "no commit has such a record"}
	case unbound >= max(v.pruned, 1):
		return fmt.Errorf("store: damaged: the records of commit %d are missing", unbound)
	case firstRecord != 0 && firstRecord < v.pruned:
		return fmt.Errorf("store: damaged: records of commit %d are there, which was pruned up to commit %d", firstRecord, v.pruned)
	}
	progress(total, total)
	return nil
}

// header verifies the next header.
func (v *verification) header(e Stored) (*audit.Header, error) {
	if len(e.Bytes) < versionLen {
		return nil, &Damage{e.Key, "it is cut short"}
	}
	h, err := v.chain.Next(e.Bytes[versionLen:])
	if err != nil {
		return nil, &Damage{e.Key, err.Error()}
	}
	if e.Key != headKey(h.Seq) || storedVersion(e.Bytes) != h.Seq {
		return nil, &Damage{e.Key, fmt.Sprintf("it holds header %d", h.Seq)}
	}
	return h, nil
}

func (v *verification) note(h *audit.Header) {
	v.touches += uint64(len(h.Touched))
	for _, t := range h.Touched {
		if t.Range && t.Table < uint8(tables) {
			v.ranges[t.Table] = append(v.ranges[t.Table], erased{Range{Table(t.Table), t.Name, t.To}, h.Seq})
		}
	}
}

// recordReader goes through the records.
type recordReader struct {
	next func() (Stored, error, bool)
	at   Stored
	seq  uint64 // of the record at hand; 0 after the last
}

func (r *recordReader) step() error {
	e, err, ok := r.next()
	if err != nil {
		return err
	}
	r.at, r.seq = e, 0
	if ok {
		_, r.seq, _, err = place(e.Key.Name)
		if err == nil && r.seq == 0 {
			err = &Damage{e.Key, "no commit has such a record"}
		}
	}
	return err
}

// recordsOf verifies the records of one commit.
func (v *verification) recordsOf(h *audit.Header, r *recordReader) error {
	if r.seq != 0 && r.seq < h.Seq {
		return &Damage{r.at.Key, "no commit has such a record"}
	}
	var leaves []audit.Hash
	for ; r.seq == h.Seq; v.records++ {
		k := recordKey(dayKey(day(h.Time)), h.Seq, uint32(len(leaves)))
		if r.at.Key != k {
			return &Damage{k, "it is missing"}
		}
		encoded, err := v.record(h, r.at)
		if err != nil {
			return err
		}
		leaves = append(leaves, audit.Leaf(encoded))
		record, err := audit.DecodeRecord(encoded)
		if err != nil {
			return &Damage{k, err.Error()}
		}
		for _, e := range indexEntries(v.cipher, k.Name, &record) {
			v.entries.add(v.seed, e)
		}
		if err := r.step(); err != nil {
			return err
		}
	}
	if err := h.VerifyRecords(leaves); err != nil {
		return fmt.Errorf("store: damaged: %w", err)
	}
	return nil
}

// record opens one record and returns its encoding.
func (v *verification) record(h *audit.Header, e Stored) ([]byte, error) {
	row, err := openStored(v.cipher, e.Key, e.Bytes)
	if err != nil {
		return nil, err
	}
	commit, encoded, err := splitRecord(e.Key, row.Value)
	if err == nil && (row.Version != h.Seq || !commit.Equal(h.Time)) {
		err = &Damage{e.Key, "it is not of its commit"}
	}
	return encoded, err
}

// indexEntries are the names in the audit indexes that belong to the record at a place.
func indexEntries(a audit.Authority, at string, r *audit.Record) []Key {
	e := newEntry(a, r)
	var keys []Key
	for _, path := range e.paths {
		keys = append(keys, Key{ByPath, at[:dayLen] + path + at[dayLen:]})
	}
	for _, who := range e.who {
		keys = append(keys, Key{ByWho, at[:dayLen] + who + at[dayLen:]})
	}
	slices.SortFunc(keys, compareKeys)
	return slices.Compact(keys)
}

func compareKeys(a, b Key) int {
	if a.Table != b.Table {
		return int(a.Table) - int(b.Table)
	}
	switch {
	case a.Name < b.Name:
		return -1
	case a.Name > b.Name:
		return 1
	}
	return 0
}

// batches verifies the ids of recent batches.
func (v *verification) batches() error {
	head := &v.chain.Last
	s := state{snap: v.snap, head: *head}
	for e, err := range v.snap.Scan(Range{Table: Batches}, false) {
		if err != nil {
			return err
		}
		h, err := s.header(storedVersion(e.Bytes))
		if err != nil || h.Batch != e.Key.Name || len(e.Bytes) != versionLen {
			return &Damage{e.Key, "no commit was of this batch"}
		}
	}
	for seq := head.Seq; seq > 0; seq-- {
		h, err := s.header(seq)
		if err != nil {
			return err
		}
		if h.Time.Before(head.Time.Add(-batchTerm)) {
			break
		}
		k := Key{Batches, h.Batch}
		if stored, err := v.snap.Get(k); err != nil {
			return err
		} else if stored == nil {
			return &Damage{k, fmt.Sprintf("it is missing: commit %d was of this batch", seq)}
		}
	}
	return nil
}

// indexes verifies that the audit indexes are those of the records.
func (v *verification) indexes() error {
	var have tally
	for _, t := range [...]Table{ByPath, ByWho} {
		for e, err := range v.snap.Scan(Range{Table: t}, false) {
			if err != nil {
				return err
			}
			if len(e.Key.Name) != dayLen+hashLen+placeLen || len(e.Bytes) != versionLen ||
				Uint64Key(storedVersion(e.Bytes)) != e.Key.Name[dayLen+hashLen:][:8] {
				return &Damage{e.Key, "it is no entry of an audit index"}
			}
			have.add(v.seed, e.Key)
		}
	}
	if have == v.entries {
		return nil
	}
	return v.brokenIndex()
}

// brokenIndex finds what indexes found to be there.
func (v *verification) brokenIndex() error {
	s := state{snap: v.snap, head: v.chain.Last, cipher: v.cipher}
	for _, t := range [...]Table{ByPath, ByWho} {
		for e, err := range v.snap.Scan(Range{Table: t}, false) {
			if err != nil {
				return err
			}
			at, err := s.record(e.Key.Name[:dayLen] + e.Key.Name[dayLen+hashLen:])
			if err != nil || !slices.Contains(indexEntries(v.cipher, e.Key.Name[:dayLen]+e.Key.Name[dayLen+hashLen:], &at.Record), e.Key) {
				return &Damage{e.Key, "there is no such record"}
			}
		}
	}
	for e, err := range v.snap.Scan(Range{Table: Records}, false) {
		if err != nil {
			return err
		}
		at, err := s.record(e.Key.Name)
		if err != nil {
			return err
		}
		for _, k := range indexEntries(v.cipher, e.Key.Name, &at.Record) {
			if stored, err := v.snap.Get(k); err != nil {
				return err
			} else if stored == nil {
				return &Damage{k, "it is missing from the audit index"}
			}
		}
	}
	return fmt.Errorf("store: damaged: the audit indexes are not those of the records")
}

// rowsAtOnce bounds the keys that one pass over the rows keeps in memory.
const rowsAtOnce = 1 << 21

// rows verifies the rows of state against what the headers say that commits wrote, in as many passes as memory asks for.
func (v *verification) rows() error {
	passes := v.touches/rowsAtOnce + 1
	for pass := range passes {
		p := rowPass{verification: v, pass: pass, passes: passes, last: make(map[uint64]uint64)}
		if err := p.run(); err != nil {
			return err
		}
	}
	return nil
}

// rowPass verifies the rows whose key's hash belongs to the pass.
type rowPass struct {
	*verification
	pass, passes uint64
	last         map[uint64]uint64 // hash of key → 2 × sequence of the last commit that touched it, plus 1 if it deleted it
}

func (p *rowPass) hash(k Key) (h uint64, mine bool) {
	var m maphash.Hash
	m.SetSeed(p.seed)
	m.WriteByte(byte(k.Table))
	m.WriteString(k.Name)
	h = m.Sum64()
	return h, h%p.passes == p.pass
}

func (p *rowPass) run() error {
	if err := p.replay(); err != nil {
		return err
	}
	for t := Table(1); t < tables; t++ {
		if classes[t].own {
			continue
		}
		for e, err := range p.snap.Scan(Range{Table: t}, false) {
			if err == nil {
				err = p.ctx.Err()
			}
			if err == nil {
				err = p.row(e)
			}
			if err != nil {
				return err
			}
		}
	}
	return p.missing()
}

// replay takes down which commit touched each key last.
func (p *rowPass) replay() error {
	return p.eachTouch(func(seq uint64, k Key, deleted bool) error {
		h, mine := p.hash(k)
		if mine {
			p.last[h] = seq << 1
			if deleted {
				p.last[h]++
			}
		}
		return nil
	})
}

func (p *rowPass) eachTouch(f func(seq uint64, k Key, deleted bool) error) error {
	for e, err := range p.snap.Scan(Range{Table: Head}, false) {
		if err == nil {
			err = p.ctx.Err()
		}
		if err != nil {
			return err
		}
		h, _, err := decodeHead(e)
		if err != nil {
			return err
		}
		for _, t := range h.Touched {
			if t.Range {
				continue
			}
			if err := f(h.Seq, Key{Table(t.Table), t.Name}, t.Deleted); err != nil {
				return err
			}
		}
	}
	return nil
}

// row verifies one row, and takes its key off the list.
func (p *rowPass) row(e Stored) error {
	h, mine := p.hash(e.Key)
	if !mine {
		return nil
	}
	last, known := p.last[h]
	delete(p.last, h)
	version, wrote := storedVersion(e.Bytes), last>>1
	switch {
	case !known:
		return &Damage{e.Key, "no commit wrote it"}
	case last&1 == 1:
		return &Damage{e.Key, fmt.Sprintf("commit %d deleted it, but it is there", wrote)}
	case version != wrote:
		return &Damage{e.Key, fmt.Sprintf("commit %d wrote it, but what is there is of commit %d", wrote, version)}
	}
	if by := p.erasedAfter(e.Key, wrote); by != 0 {
		return &Damage{e.Key, fmt.Sprintf("commit %d deleted it, but it is there", by)}
	}
	row, err := openStored(p.cipher, e.Key, e.Bytes)
	if err != nil {
		return err
	}
	if e.Key.Table.Secret() {
		if err := checkSecret(p.cipher, row); err != nil {
			return &Damage{e.Key, errNotOpened.Error()}
		}
	}
	p.found++
	return nil
}

// checkSecret sees whether a row of a secret table would open.
func checkSecret(c Cipher, row Row) error {
	if c, ok := c.(Checker); ok {
		return c.Check(row)
	}
	_, err := c.Open(nil, row.Key, row.Version, row.sealed)
	return err
}

// erasedAfter is the commit after seq that deleted a range with k in it; 0: none. In one commit ranges go first.
func (p *rowPass) erasedAfter(k Key, seq uint64) uint64 {
	ranges := p.ranges[k.Table]
	for i := len(ranges) - 1; i >= 0 && ranges[i].seq > seq; i-- {
		if ranges[i].Contains(k) {
			return ranges[i].seq
		}
	}
	return 0
}

// missing looks for keys that commits wrote and nobody deleted, among those that no row took off the list.
func (p *rowPass) missing() error {
	for h, last := range p.last {
		if last&1 == 1 {
			delete(p.last, h)
		}
	}
	if len(p.last) == 0 {
		return nil
	}
	return p.eachTouch(func(seq uint64, k Key, deleted bool) error {
		h, mine := p.hash(k)
		if last, listed := p.last[h]; !mine || !listed || last>>1 != seq || p.erasedAfter(k, seq) != 0 {
			return nil
		}
		return &Damage{k, fmt.Sprintf("commit %d wrote it, but it is gone", seq)}
	})
}
