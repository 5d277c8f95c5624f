// Package claim decides which of several equal nodes does which background work.
//
// Work has a name: "expiry", "upkeep", what is to be done at one target. Names fall into Shards by their hash, and each shard is
// held by one node: a row of store.Claims says by which. The rows change only when a shard changes hands, so that an idle
// cluster commits nothing; whether a holder lives is told by its signs of life (store.Peer), which are no commits.
//
// Who should have which shard is a pure function (share) of the nodes that take part and live. All nodes work it out from
// the same rows, and act on it by one rule each:
//
//	a shard that nobody who lives holds      is taken by the node that should have it
//	a shard that the wrong node holds        is handed over by that node, once it has finished what it does there
//
// So a node that leaves in order passes its work on in one commit, as soon as it knows that it will (Retire), and takes part no more unless it is
// the only one that lives; that of one that died is taken over once it is unseen for store.PeerTerm, and looked at a second later at most.
//
// A holder that was paused, or cut off, does not know that it lost its claim. What it then commits is refused: work
// done under a claim commits on condition that the claim's row is the one under which the work began (Fence). What it
// does at a target before it commits is beyond any fence: that is why values are recorded before they are applied.
package claim

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/internal/store"
)

// Shards is how many parts all background work is divided into. It is on disk, by the names of the rows.
const Shards = 64

// Options of Claims. Store is needed.
type Options struct {
	Store *store.DB
	Log   *slog.Logger  // nil: none
	Look  time.Duration // how often it looks who lives. 0: 1 s
}

// Claims are one node's part in the background work. Methods are safe for concurrent use. A nil *Claims is that of a node which
// has the store to itself: it holds everything, always and at no cost.
type Claims struct {
	o        Options
	nudge    chan struct{} // somebody released what is wanted elsewhere
	retiring atomic.Bool

	mu      sync.Mutex
	held    [Shards]*grip
	changed chan struct{} // closed when what is held changes
	heard   time.Time     // when the store last told who lives
}

// grip is a shard that this node holds.
type grip struct {
	row    store.Row // the claim's: what commits require
	ctx    context.Context
	lose   context.CancelFunc
	wanted chan struct{} // closed when another node should have it
	users  int
}

// New makes Claims. Before Run, nothing is held.
func New(o Options) *Claims {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Look == 0 {
		o.Look = time.Second
	}
	return &Claims{o: o, nudge: make(chan struct{}, 1), changed: make(chan struct{})}
}

func newGrip(row store.Row) *grip {
	g := &grip{row: row, wanted: make(chan struct{})}
	g.ctx, g.lose = context.WithCancel(context.Background())
	return g
}

// Hold is some work that this node does, until Release.
type Hold struct {
	claims *Claims
	grip   *grip // nil: nobody else could
	once   sync.Once
}

// Take holds on to some work, so that it is handed over to no other node until Release. It returns false if another
// node does that work, should have it, or nobody does for a moment.
func (c *Claims) Take(work string) (*Hold, bool) {
	if c == nil {
		return &Hold{}, true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.held[shard(work)]
	if g == nil || g.over() {
		return nil, false
	}
	g.users++
	return &Hold{claims: c, grip: g}, true
}

// over reports whether another node should have it.
func (g *grip) over() bool {
	select {
	case <-g.wanted:
		return true
	case <-g.ctx.Done():
		return true
	default:
		return false
	}
}

// Release gives the work back. Calls after the first do nothing.
func (h *Hold) Release() {
	if h.grip == nil {
		return
	}
	h.once.Do(func() {
		h.claims.mu.Lock()
		defer h.claims.mu.Unlock()
		if h.grip.users--; h.grip.users == 0 && h.grip.over() {
			h.claims.wake()
		}
	})
}

// Wanted is closed once another node should do the work: whoever holds it finishes what is under way, and releases it.
// nil, for ever open, where there is no other.
func (h *Hold) Wanted() <-chan struct{} {
	if h.grip == nil {
		return nil
	}
	return h.grip.wanted
}

// Over reports whether Wanted is closed, or the claim lost.
func (h *Hold) Over() bool { return h.grip != nil && h.grip.over() }

// Context is the context of work under the claim: it ends with ctx, and when the claim turns out to be lost; and it is what Fence
// knows the claim by. cancel must be called when the work is over.
func (h *Hold) Context(ctx context.Context) (_ context.Context, cancel context.CancelFunc) {
	if h.grip == nil {
		return ctx, func() {}
	}
	ctx, end := context.WithCancel(context.WithValue(ctx, fence{}, h.grip))
	stop := context.AfterFunc(h.grip.ctx, end)
	return ctx, func() { stop(); end() }
}

// fence is the key of a context's claim.
type fence struct{}

// Fence makes the claim under whose Context work is done a condition of a transaction: it commits only while the claim is
// still held, else it is a *store.Conflict. For any other context it does nothing.
func Fence(ctx context.Context, txn *store.Txn) {
	if g, ok := ctx.Value(fence{}).(*grip); ok {
		txn.Require(g.row)
	}
}

// Holds reports whether some work is this node's: it may have to wait until another one has finished, or be about to hand it over, but no other node does it.
func (c *Claims) Holds(work string) bool {
	if c == nil {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.held[shard(work)] != nil
}

// Changed is closed when this node next comes to hold work that it did not, or ceases to.
func (c *Claims) Changed() <-chan struct{} {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// Held is how many of the Shards this node holds.
func (c *Claims) Held() int {
	if c == nil {
		return Shards
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, g := range c.held {
		if g != nil {
			n++
		}
	}
	return n
}

// wake has Run look at once. It never blocks.
func (c *Claims) wake() {
	select {
	case c.nudge <- struct{}{}:
	default:
	}
}

// Target names what is to be done at one target of a mount: reverting and rotating are one node's work, so that they do not meet there.
func Target(mount, target string) string { return "target/" + mount + target }

// shard is the part of all work that some falls into.
func shard(work string) int {
	h := sha256.Sum256([]byte(work))
	return int(binary.BigEndian.Uint64(h[:]) % Shards)
}

// share says which of the nodes should hold each shard: none more than its part, rounded up; and, as far as that allows, each shard
// stays where it is when another node comes or goes. Without nodes, nobody should.
func share(nodes []string) (by [Shards]string) {
	if len(nodes) == 0 {
		return by
	}
	most := (Shards + len(nodes) - 1) / len(nodes)
	load := make(map[string]int, len(nodes))
	for i := range by {
		var best uint64
		for _, n := range nodes {
			if load[n] == most {
				continue
			}
			h := sha256.Sum256(fmt.Appendf(nil, "%02d %s", i, n))
			if weight := binary.BigEndian.Uint64(h[:]); by[i] == "" || weight > best {
				by[i], best = n, weight
			}
		}
		load[by[i]]++
	}
	return by
}

// Rows: "node/" + id for each node that takes part, without a value; "shard/" + two digits, a claim.
const (
	nodeRows  = "node/"
	shardRows = "shard/"
)

// claim is the value of a shard's row. CBOR keys are on disk: never renumber, only append.
type claim struct {
	Holder string `cbor:"1,keyasint"` // a store.Peer's ID
	Term   uint64 `cbor:"2,keyasint"` // how often it changed hands
}

func nodeKey(id string) store.Key { return store.Key{Table: store.Claims, Name: nodeRows + id} }

func shardKey(i int) store.Key {
	return store.Key{Table: store.Claims, Name: fmt.Sprintf("%s%02d", shardRows, i)}
}

// table is what the rows say.
type table struct {
	at     uint64      // the View's position
	nodes  []store.Row // sorted by id
	shards [Shards]store.Row
	claims [Shards]claim
}

func load(v store.View) (*table, error) {
	t := &table{at: v.Position()}
	for row, err := range v.Scan(store.Claims, nodeRows, store.PrefixEnd(nodeRows)) {
		if err != nil {
			return nil, err
		}
		t.nodes = append(t.nodes, row)
	}
	for i := range t.shards {
		row, err := v.Get(shardKey(i))
		if err != nil {
			return nil, err
		}
		if t.shards[i] = row; !row.Exists() {
			continue
		}
		if err := cbor.Unmarshal(row.Value, &t.claims[i]); err != nil {
			return nil, fmt.Errorf("claim: damaged row %s: %w", row.Key, err)
		}
	}
	return t, nil
}

// Holders says how many of the Shards each node holds, by its store.Peer's ID, dead nodes that nobody has succeeded yet included.
func Holders(v store.View) (map[string]int, error) {
	t, err := load(v)
	if err != nil {
		return nil, err
	}
	held := map[string]int{}
	for _, c := range t.claims {
		if c.Holder != "" {
			held[c.Holder]++
		}
	}
	return held, nil
}

// living are the ids of the nodes that take part and live; dead are the rows of those that do not live any more.
func (t *table) living(alive map[string]bool) (ids []string, dead []store.Row) {
	for _, row := range t.nodes {
		if id := strings.TrimPrefix(row.Name, nodeRows); alive[id] {
			ids = append(ids, id)
		} else {
			dead = append(dead, row)
		}
	}
	return ids, dead
}

// lists reports whether a node takes part.
func (t *table) lists(id string) bool {
	return slices.ContainsFunc(t.nodes, func(row store.Row) bool { return row.Name == nodeKey(id).Name })
}

// others are the ids of the nodes that take part and live, without one.
func (t *table) others(id string, alive map[string]bool) []string {
	ids, _ := t.living(alive)
	return slices.DeleteFunc(ids, func(other string) bool { return other == id })
}

// pass adds to txn that shard i is now to's.
func (t *table) pass(txn *store.Txn, i int, to string) error {
	value, err := cbor.Marshal(claim{Holder: to, Term: t.claims[i].Term + 1})
	if err != nil {
		return err
	}
	txn.Require(t.shards[i])
	txn.Put(store.Claims, shardKey(i).Name, value)
	return nil
}

// step is what self does about the claims next: what it commits, and which of its shards others should have. One that is busy is not
// handed over yet. One that retires takes part only if nobody else does.
func (t *table) step(self string, alive map[string]bool, retiring bool, busy func(shard int) bool) (txn store.Txn, surplus []int, err error) {
	txn.Urgent = true // revocations depend on it
	ids, dead := t.living(alive)
	if !slices.Contains(ids, self) {
		if !alive[self] || retiring && len(ids) > 0 {
			return txn, nil, nil
		}
		txn.Absent(store.Claims, nodeKey(self).Name) // it is new; or who counted it dead took its row away; or its successors are gone
		txn.Put(store.Claims, nodeKey(self).Name, nil)
		if retiring { // of several such, one
			txn.Unchanged = append(txn.Unchanged, store.Since{Table: store.Claims, Position: t.at})
		}
		return txn, nil, nil
	}
	if self == ids[0] { // one of them clears away
		for _, row := range dead {
			txn.Require(row)
			txn.Delete(row.Table, row.Name)
		}
	}
	given := map[string]bool{}
	for i, should := range share(ids) {
		switch holder := t.claims[i].Holder; {
		case should == self && !slices.Contains(ids, holder):
			err = errors.Join(err, t.pass(&txn, i, self))
		case holder == self && should != self:
			if surplus = append(surplus, i); !busy(i) {
				given[should], err = true, errors.Join(err, t.pass(&txn, i, should))
			}
		}
	}
	for _, row := range t.nodes {
		if given[strings.TrimPrefix(row.Name, nodeRows)] {
			txn.Require(row) // who left meanwhile is given nothing
		}
	}
	return txn, surplus, err
}

// part is what self commits when it leaves: all that it held goes to those who stay.
func (t *table) part(self string, alive map[string]bool) (txn store.Txn, err error) {
	txn.Urgent = true
	ids := t.others(self, alive)
	for i, should := range share(ids) {
		if t.claims[i].Holder == self {
			err = errors.Join(err, t.pass(&txn, i, should))
		}
	}
	for _, row := range t.nodes {
		switch id := strings.TrimPrefix(row.Name, nodeRows); {
		case id == self:
			txn.Require(row)
			txn.Delete(row.Table, row.Name)
		case slices.Contains(ids, id):
			txn.Require(row) // of two that leave at once, neither gives its work to the other one
		}
	}
	return txn, err
}
