// Package pebble keeps a store in a folder of its own, with the Pebble storage engine inside this process: one writer, one
// fsync for each commit, snapshots that cost nothing.
//
// A disk that fails or is full ends the process, with exit code ExitDisk and one line in the log that says so: nothing that
// was acknowledged is lost, nothing is half-written, and the next start finds the last durable commit.
package pebble

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/lessor-dev/lessor/internal/store"
)

// ExitDisk is the exit code of a process whose disk failed it (EX_IOERR of sysexits.h).
const ExitDisk = 74

// Options of a Backend. The zero value of each is usable.
type Options struct {
	FS      vfs.FS               // nil: the operating system's
	Log     *slog.Logger         // nil: discarded
	Cache   int64                // bytes of blocks kept in memory; 0: 64 MiB
	Ballast int64                // bytes of the file that keeps room for revocations; 0: 64 MiB, negative: none
	Fatal   func(message string) // called when the disk failed; must not return. nil: logs and exits with ExitDisk
	Damaged func(message string) // called when a file turns out to be damaged; if it returns, what met the damage is an error. nil: Fatal
}

// Backend is a store.Backend in one folder.
type Backend struct {
	db      *pebble.DB
	fs      vfs.FS
	dir     string
	writing sync.Mutex // held while a Write is open
	ballast ballast
	lock    *pebble.Lock
	found   *found
}

var _ store.Backend = (*Backend)(nil)

// Open opens the store in dir, which it creates if need be, for its owner only. One process at a time can have it open.
func Open(dir string, o Options) (*Backend, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Cache == 0 {
		o.Cache = 64 << 20
	}
	if o.Ballast == 0 {
		o.Ballast = 64 << 20
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if err := makeFolder(o.FS, dir); err != nil {
		return nil, err
	}
	if o.Fatal == nil {
		o.Fatal = func(message string) {
			o.Log.Error("the disk of the store failed; the process ends", "error", message, "exit_code", ExitDisk)
			os.Exit(ExitDisk)
		}
	}
	if o.Damaged == nil {
		o.Damaged = o.Fatal
	}
	b := &Backend{fs: o.FS, dir: dir}
	b.ballast = ballast{fs: o.FS, path: o.FS.PathJoin(dir, "ballast"), size: o.Ballast, log: o.Log}
	o.FS = vfs.OnDiskFull(o.FS, b.ballast.drop)
	var err error
	if b.lock, err = pebble.LockDirectory(dir, o.FS); err != nil {
		return nil, fmt.Errorf("pebble: opening %s: %w", dir, err)
	}
	if err := b.open(&o); err != nil {
		return nil, fmt.Errorf("pebble: opening %s: %w", dir, errors.Join(err, b.lock.Close()))
	}
	b.tend()
	return b, nil
}

// makeFolder makes the folder, durably, unless it is there.
func makeFolder(fs vfs.FS, dir string) error {
	if _, err := fs.Stat(dir); err == nil {
		return nil
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	parent, err := fs.OpenDir(fs.PathDir(dir))
	if err != nil {
		return err
	}
	return errors.Join(parent.Sync(), parent.Close())
}

// open opens what is in the folder, which is locked.
func (b *Backend) open(o *Options) (err error) {
	if b.found, err = look(b.fs, b.dir); err != nil {
		return err
	}
	if err := b.found.keep(); err != nil {
		return err
	}
	p := tuning(o)
	p.Lock = b.lock
	if b.db, err = pebble.Open(b.dir, p); err != nil && b.found.manifest != "" {
		err = fmt.Errorf("%w (the folder's manifest is %s)", err, b.found.manifest)
	}
	return err
}

// Found says where the data was at the start, for an error that tells that it is not whole.
func (b *Backend) Found() string { return b.found.String() }

func tuning(o *Options) *pebble.Options {
	p := &pebble.Options{
		FS:                          o.FS,
		CacheSize:                   o.Cache,
		MemTableSize:                16 << 20,
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       64, // what a commit waits for is the fsync, not a compaction
		LBaseMaxBytes:               64 << 20,
		MaxOpenFiles:                1000,
		FormatMajorVersion:          pebble.FormatNewest,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
		Logger:                      logger{o.Log, o.Fatal},
		EventListener:               listener(o),
	}
	for i := range p.Levels {
		p.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		p.Levels[i].FilterType = pebble.TableFilter
		p.Levels[i].Compression = func() *sstable.CompressionProfile { return sstable.NoCompression } // values are sealed, names end in hashes
	}
	return p
}

// Begin waits for the Write that is open.
func (b *Backend) Begin() (store.Write, error) {
	b.writing.Lock()
	b.found.drop()
	b.tend()
	return &write{b: b, batch: b.db.NewBatch()}, nil
}

// Snapshot is the state as of the last Commit, once that has returned.
func (b *Backend) Snapshot() (store.Snapshot, error) { return snapshot{b.db.NewSnapshot()}, nil }

// Usage is the size of the folder's tables and logs, and what is free on its disk.
func (b *Backend) Usage() (used, free int64) {
	free = -1
	if u, err := b.fs.GetDiskUsage(b.dir); err == nil {
		free = int64(u.AvailBytes)
	}
	return int64(b.db.Metrics().DiskSpaceUsage()), free
}

// Close flushes nothing: what was committed is in the log.
func (b *Backend) Close() error { return errors.Join(b.db.Close(), b.lock.Close()) }

// tendEvery is how often the ballast is looked after.
const tendEvery = 200 * time.Millisecond

// tend lets go of the ballast when the disk is nearly full, and takes it on again when there is room.
func (b *Backend) tend() {
	now := time.Now()
	if b.ballast.size <= 0 || now.Sub(b.ballast.looked) < tendEvery {
		return
	}
	b.ballast.looked = now
	if u, err := b.fs.GetDiskUsage(b.dir); err == nil {
		b.ballast.tend(int64(u.AvailBytes))
	}
}

// Flush writes what is in memory to tables. Nothing depends on it; the log has everything.
func (b *Backend) Flush() error { return b.db.Flush() }

// Metrics are the engine's own.
func (b *Backend) Metrics() *pebble.Metrics { return b.db.Metrics() }

type write struct {
	b     *Backend
	batch *pebble.Batch
	key   []byte
	end   []byte
	done  bool
}

func (w *write) Versions(keys []store.Key, versions []uint64) error {
	for i, k := range keys {
		versions[i] = 0
		w.key = appendKey(w.key[:0], k)
		stored, closer, err := w.b.db.Get(w.key)
		if errors.Is(err, pebble.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if len(stored) >= 8 {
			versions[i] = binary.BigEndian.Uint64(stored)
		}
		if err := closer.Close(); err != nil {
			return err
		}
	}
	return nil
}

func (w *write) Set(k store.Key, stored []byte) {
	op := w.batch.SetDeferred(1+len(k.Name), len(stored))
	op.Key[0] = byte(k.Table)
	copy(op.Key[1:], k.Name)
	copy(op.Value, stored)
	_ = op.Finish() // fails for indexed batches only
}

func (w *write) Delete(k store.Key) {
	w.key = appendKey(w.key[:0], k)
	_ = w.batch.Delete(w.key, nil) // fails for indexed batches only
}

func (w *write) DeleteRange(r store.Range) {
	w.key, w.end = appendBounds(w.key[:0], w.end[:0], r)
	_ = w.batch.DeleteRange(w.key, w.end, nil) // fails for indexed batches only
}

func (w *write) Commit() error {
	if w.done {
		return errors.New("pebble: the write is over")
	}
	defer w.Abort()
	return w.batch.Commit(pebble.Sync)
}

func (w *write) Abort() {
	if !w.done {
		w.done = true
		_ = w.batch.Close() // never fails
		w.b.writing.Unlock()
	}
}

type snapshot struct{ s *pebble.Snapshot }

func (s snapshot) Close() { _ = s.s.Close() } // never fails

func (s snapshot) Get(k store.Key) ([]byte, error) {
	var space [128]byte
	stored, closer, err := s.s.Get(appendKey(space[:0], k))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b := append(make([]byte, 0, len(stored)), stored...)
	return b, closer.Close()
}

func (s snapshot) Scan(r store.Range, reverse bool) iter.Seq2[store.Stored, error] {
	return func(yield func(store.Stored, error) bool) {
		if err := s.scan(r, reverse, yield); err != nil {
			yield(store.Stored{}, err)
		}
	}
}

// scan returns an error only if yield may still be called.
func (s snapshot) scan(r store.Range, reverse bool, yield func(store.Stored, error) bool) error {
	from, to := appendBounds(nil, nil, r)
	it, err := s.s.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return err
	}
	defer it.Close()
	first, next := it.First, it.Next
	if reverse {
		first, next = it.Last, it.Prev
	}
	for ok := first(); ok; ok = next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		k := it.Key()
		if !yield(store.Stored{Key: store.Key{Table: store.Table(k[0]), Name: string(k[1:])}, Bytes: value}, nil) {
			return nil
		}
	}
	return it.Error()
}

// appendKey appends the key as Pebble has it: the table's number, then the name.
func appendKey(b []byte, k store.Key) []byte { return append(append(b, byte(k.Table)), k.Name...) }

func appendBounds(from, to []byte, r store.Range) ([]byte, []byte) {
	from = appendKey(from, store.Key{Table: r.Table, Name: r.From})
	if r.To == "" {
		return from, append(to, byte(r.Table)+1)
	}
	return from, appendKey(to, store.Key{Table: r.Table, Name: r.To})
}
