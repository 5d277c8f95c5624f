// Package mem keeps a store's bytes in memory: for tests and for lessor's development mode. What is "durable" survives the
// Backend but not the process.
//
// State is a persistent treap: a write copies the path it changes, a snapshot is a root.
package mem

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/internal/store"
)

// Disk is what survives a Backend. Several Backends may be open on it, as nodes of a cluster have one database.
type Disk struct {
	writing sync.Mutex // held while a Write is open

	mu    sync.Mutex
	state snapshot
	nodes map[*Backend]struct{}
}

// New returns an empty store on a Disk of its own.
func New() *Backend { return new(Disk).Open() }

// Open returns a Backend on what d holds.
func (d *Disk) Open() *Backend {
	b := &Backend{disk: d, moved: make(chan struct{}, 1), id: newID(), started: time.Now().UTC()}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.nodes == nil {
		d.nodes = make(map[*Backend]struct{})
	}
	d.nodes[b] = struct{}{}
	return b
}

// Save returns what puts the Disk back to its present state, as a failover to a replica that is behind does.
func (d *Disk) Save() (restore func()) {
	s := d.load()
	return func() {
		d.writing.Lock()
		defer d.writing.Unlock()
		d.mu.Lock()
		defer d.mu.Unlock()
		d.state = s
	}
}

func (d *Disk) load() snapshot {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state
}

// Backend is a store.Backend.
type Backend struct {
	disk    *Disk
	moved   chan struct{}
	id      string
	started time.Time
	about   []byte // under disk.mu
}

var (
	_ store.Shared = (*Backend)(nil)
	_ store.Exact  = (*write)(nil)
	_ store.Adder  = (*write)(nil)
)

var errClosed = errors.New("mem: closed")

func (b *Backend) closed() bool {
	_, open := b.disk.nodes[b]
	return !open
}

// Begin waits for the Write that is open.
func (b *Backend) Begin() (store.Write, error) {
	w, err := b.begin()
	if err != nil {
		return nil, err
	}
	return w, nil
}

func (b *Backend) begin() (*write, error) {
	b.disk.writing.Lock()
	b.disk.mu.Lock()
	defer b.disk.mu.Unlock()
	if b.closed() {
		b.disk.writing.Unlock()
		return nil, errClosed
	}
	return &write{b: b, base: b.disk.state, root: b.disk.state.root, locked: true}, nil
}

// Snapshot is the state as of the last Commit.
func (b *Backend) Snapshot() (store.Snapshot, error) {
	b.disk.mu.Lock()
	defer b.disk.mu.Unlock()
	if b.closed() {
		return nil, errClosed
	}
	return b.disk.state, nil
}

// Usage is unbounded.
func (b *Backend) Usage() (used, free int64) { return int64(b.disk.load().root.bytes()), -1 }

// Moved receives a hint after other Backends' Commits.
func (b *Backend) Moved() <-chan struct{} { return b.moved }

// Self implements store.Shared.
func (b *Backend) Self() string { return b.id }

// Announce implements store.Shared. Others see it at once.
func (b *Backend) Announce(about []byte) {
	b.disk.mu.Lock()
	defer b.disk.mu.Unlock()
	b.about = about
}

// Peers are the Backends that are open on the Disk, all alive.
func (b *Backend) Peers(context.Context) ([]store.Peer, error) {
	b.disk.mu.Lock()
	defer b.disk.mu.Unlock()
	if b.closed() {
		return nil, errClosed
	}
	now := time.Now().UTC()
	var peers []store.Peer
	for n := range b.disk.nodes {
		peers = append(peers, store.Peer{ID: n.id, About: n.about, Started: n.started, Seen: now, Alive: true})
	}
	slices.SortFunc(peers, func(p, q store.Peer) int {
		return cmp.Or(p.Started.Compare(q.Started), cmp.Compare(p.ID, q.ID))
	})
	return peers, nil
}

// newID cannot fail: crypto/rand's Reader does not.
func newID() string {
	id, _ := store.NewPeerID(rand.Reader)
	return id
}

// Look implements store.Shared.
func (b *Backend) Look(_ context.Context, at store.Snapshot, after uint64) (store.News, error) {
	s, err := b.Snapshot()
	if err != nil {
		return store.News{}, err
	}
	return s.(snapshot).news(at, after), nil
}

// Enter implements store.Shared. It waits for the Write that is open, however long.
func (b *Backend) Enter(_ context.Context, at store.Snapshot, after uint64, keys []store.Key, versions []uint64) (store.Write, store.News, error) {
	w, err := b.begin()
	if err != nil {
		return nil, store.News{}, err
	}
	return w, w.base.news(at, after), w.Versions(keys, versions)
}

// Guess implements store.Shared.
func (b *Backend) Guess(at store.Snapshot, keys []store.Key, versions []uint64) store.Write {
	base := at.(snapshot)
	w := &write{b: b, base: base, root: base.root}
	for i, k := range keys {
		is := base.version(k)
		w.wrong = w.wrong || is != versions[i] && (versions[i] != store.Any || is == 0)
	}
	return w
}

// Confirm has nothing to do.
func (b *Backend) Confirm(context.Context) error { return nil }

// Close closes this Backend only.
func (b *Backend) Close() error {
	b.disk.mu.Lock()
	defer b.disk.mu.Unlock()
	if b.closed() {
		return errClosed
	}
	delete(b.disk.nodes, b)
	return nil
}

type write struct {
	b      *Backend
	base   snapshot
	root   *node
	locked bool // writing is held; a guess takes it in Commit
	wrong  bool // a guess is not as the base is
	twice  bool // something was added that is there
	done   bool
}

func (w *write) Versions(keys []store.Key, versions []uint64) error {
	for i, k := range keys {
		versions[i] = w.base.version(k)
	}
	return nil
}

func (w *write) Set(k store.Key, stored []byte) {
	w.root = w.root.set(name(k), append(make([]byte, 0, len(stored)), stored...))
}

// Add implements store.Adder.
func (w *write) Add(k store.Key, stored []byte) {
	w.twice = w.twice || w.root.get(name(k)) != nil
	w.Set(k, stored)
}

func (w *write) Delete(k store.Key) { w.root = w.root.delete(name(k)) }

func (w *write) DeleteRange(r store.Range) {
	from, to := bounds(r)
	left, rest := w.root.split(from)
	_, right := rest.split(to)
	w.root = join(left, right)
}

func (w *write) Commit() error {
	if w.done {
		return errClosed
	}
	defer w.Abort()
	d := w.b.disk
	if !w.locked {
		d.writing.Lock()
		w.locked = true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if w.wrong || d.state != w.base {
		return store.ErrMoved
	}
	if w.twice {
		return errors.New("mem: what was added is there")
	}
	d.state = w.made()
	for b := range d.nodes {
		if b != w.b {
			select {
			case b.moved <- struct{}{}:
			default:
			}
		}
	}
	return nil
}

func (w *write) made() snapshot { return snapshot{w.root, w.base.epoch + 1} }

// State implements store.Exact.
func (w *write) State() store.Snapshot { return w.made() }

func (w *write) Abort() {
	if !w.done {
		w.done = true
		if w.locked {
			w.b.disk.writing.Unlock()
		}
	}
}

type snapshot struct {
	root  *node
	epoch uint64 // counts commits
}

func (s snapshot) Close() {}

// news is what s has and at has not.
func (s snapshot) news(at store.Snapshot, after uint64) (n store.News) {
	if s == at {
		return n
	}
	n.State = s
	for e := range s.Scan(store.Range{Table: store.Head, From: store.Uint64Key(after + 1)}, false) {
		n.Headers = append(n.Headers, e)
	}
	return n
}

func (s snapshot) version(k store.Key) uint64 {
	if v := s.root.get(name(k)); len(v) >= 8 {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func (s snapshot) Get(k store.Key) ([]byte, error) {
	if v := s.root.get(name(k)); v != nil {
		return append(make([]byte, 0, len(v)), v...), nil
	}
	return nil, nil
}

func (s snapshot) Scan(r store.Range, reverse bool) iter.Seq2[store.Stored, error] {
	from, to := bounds(r)
	return func(yield func(store.Stored, error) bool) {
		step := func(n *node) bool { return yield(store.Stored{Key: key(n.name), Bytes: n.value}, nil) }
		if reverse {
			s.root.descend(from, to, step)
		} else {
			s.root.ascend(from, to, step)
		}
	}
}

// name is the key as the treap has it; tables follow each other.
func name(k store.Key) string { return string([]byte{byte(k.Table)}) + k.Name }

func key(name string) store.Key { return store.Key{Table: store.Table(name[0]), Name: name[1:]} }

func bounds(r store.Range) (from, to string) {
	from = name(store.Key{Table: r.Table, Name: r.From})
	if r.To == "" {
		return from, name(store.Key{Table: r.Table + 1})
	}
	return from, name(store.Key{Table: r.Table, Name: r.To})
}
