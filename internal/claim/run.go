package claim

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/lessor-dev/lessor/internal/store"
)

// parting is how long a node that leaves waits for those who still hold on to work, and tries to hand it over.
const parting = 5 * time.Second

// Run takes part in the work until ctx ends, and then hands over what this node holds; no one should hold on to it any more. A node that was told
// to Retire hands over before, and takes part again only while nobody else who lives does.
func (c *Claims) Run(ctx context.Context) {
	if c == nil {
		<-ctx.Done()
		return
	}
	following, stop := context.WithCancel(ctx)
	defer stop()
	go c.follow(following)
	go c.doubt(following)
	tick := time.NewTicker(c.o.Look)
	defer tick.Stop()
	left := false
	for ctx.Err() == nil {
		var err error
		if left, err = c.look(ctx); err != nil && ctx.Err() == nil {
			c.o.Log.Warn("which background work is this node's could not be settled; it is tried again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-c.nudge:
		}
	}
	if left {
		return
	}
	if err := c.leave(ctx); err != nil {
		c.o.Log.Warn("background work was not handed over: other nodes take it once they miss this one", "error", err)
	}
}

// Retire has Run hand over this node's work to those who stay. What is under way has some seconds to finish, see Hold.Wanted; nothing
// new is taken. A node that is alone goes on until somebody comes, and one whose successors are gone takes their work back, until Run's
// context ends. Retire does not wait for that.
func (c *Claims) Retire() {
	if c == nil {
		return
	}
	c.retiring.Store(true)
	c.wake()
}

// linger is how long follow waits for more: where much is committed, it looks at many commits at once.
const linger = 5 * time.Millisecond

// follow has Run look at once when claims change.
func (c *Claims) follow(ctx context.Context) {
	var seen uint64
	for {
		v, err := c.o.Store.View()
		if err != nil {
			return
		}
		at, changed := v.Position(), v.Changed(store.Claims)
		v.Close()
		if changed > seen {
			seen = changed
			c.wake()
		}
		if c.o.Store.Await(ctx, at+1) != nil {
			return
		}
		time.Sleep(linger)
	}
}

// look brings this node's claims up to the rows, and the rows up to what they should be. It reports whether this node has left: it retires, and others
// have its work.
func (c *Claims) look(ctx context.Context) (left bool, err error) {
	alive, err := c.alive(ctx)
	if err != nil {
		return false, err
	}
	t, err := c.read()
	if err != nil {
		return false, err
	}
	self, retiring := c.o.Store.Self(), c.retiring.Load()
	if retiring && len(t.others(self, alive)) > 0 {
		if !t.lists(self) {
			return true, nil
		}
		err := c.leave(ctx)
		if errors.Is(err, errAlone) { // they went meanwhile: what was to be theirs is taken up again at once
			c.wake()
			return false, nil
		}
		return err == nil, err
	}
	txn, surplus, err := t.step(self, alive, retiring, c.busy())
	if err != nil {
		return false, err
	}
	if c.want(surplus) {
		c.wake() // what nobody used may go at once
	}
	if len(txn.Puts)+len(txn.Deletes) == 0 {
		return false, nil
	}
	if _, err = c.o.Store.Commit(ctx, txn); errors.As(err, new(*store.Conflict)) {
		err = nil // others moved meanwhile
	}
	c.wake()
	return false, err
}

// read takes over what the rows say of this node. Work that it forsook it takes up again once it was told that it lives.
func (c *Claims) read() (*table, error) {
	v, err := c.o.Store.View()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	t, err := load(v)
	if err != nil {
		return nil, err
	}
	self := c.o.Store.Self()
	c.mu.Lock()
	defer c.mu.Unlock()
	moved := false
	for i := range c.held {
		row, mine := t.shards[i], t.claims[i].Holder == self
		if g := c.held[i]; g != nil && (!mine || g.row.Version != row.Version) {
			g.lose()
			c.held[i], moved = nil, true
		}
		if mine && c.held[i] == nil && time.Since(c.heard) < store.PeerTerm {
			c.held[i], moved = newGrip(row), true
		}
	}
	if moved {
		c.tell()
	}
	return t, nil
}

// tell tells those who wait for a change. The caller holds the lock.
func (c *Claims) tell() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// alive asks the store who lives.
func (c *Claims) alive(ctx context.Context) (map[string]bool, error) {
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, store.PeerTerm)
	defer cancel()
	peers, err := c.o.Store.Peers(ctx)
	if err != nil {
		return nil, err
	}
	alive := make(map[string]bool, len(peers))
	for _, p := range peers {
		alive[p.ID] = p.Alive
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = asked
	return alive, nil
}

// doubt ends all work whenever the store was out of reach for so long that others may have taken it over.
func (c *Claims) doubt(ctx context.Context) {
	tick := time.NewTicker(c.o.Look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c.forsake(time.Now())
		}
	}
}

func (c *Claims) forsake(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.heard) >= store.PeerTerm {
		c.drop()
	}
}

// drop ends all work, and holds nothing any more. The caller holds the lock.
func (c *Claims) drop() {
	moved := false
	for i, g := range c.held {
		if g != nil {
			g.lose()
			c.held[i], moved = nil, true
		}
	}
	if moved {
		c.tell()
	}
}

// busy tells of a shard whether it cannot be handed over yet: somebody holds on to it, or may still.
func (c *Claims) busy() func(int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	var busy [Shards]bool
	for i, g := range c.held {
		busy[i] = g != nil && (g.users > 0 || !g.over())
	}
	return func(i int) bool { return busy[i] }
}

// want has the shards finished that others should have, and takes that back where it is no longer so. It reports whether some are news.
func (c *Claims) want(surplus []int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	news, moved := false, false
	for i, g := range c.held {
		switch elsewhere := slices.Contains(surplus, i); {
		case g == nil || elsewhere == g.over():
		case elsewhere:
			close(g.wanted)
			news = true
		case g.users == 0:
			c.held[i], moved = newGrip(g.row), true
		}
	}
	if moved {
		c.tell()
	}
	return news
}

// errAlone is why a node that retires keeps its work for now.
var errAlone = errors.New("claim: there is no other node to take over")

// leave hands over everything, and this node's part in the work with it; to nobody, if nobody else takes part, only once ctx has ended. A node
// that could not leave before goes on.
func (c *Claims) leave(ctx context.Context) error {
	ended := ctx.Err() != nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), parting)
	defer cancel()
	if err := c.finish(ctx, ended); err != nil {
		return err
	}
	for {
		err := c.handOver(ctx, ended)
		if err == nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.drop()
			return nil
		}
		if ctx.Err() != nil || errors.Is(err, errAlone) || errors.Is(err, store.ErrClosed) || c.o.Store.Fault() != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// finish lets nobody take hold of work any more, and waits until all is released; what is not after a while, is lost. Unless it may be handed over to
// nobody, it stops short of that once there is nobody to hand over to: errAlone.
func (c *Claims) finish(ctx context.Context, nobody bool) error {
	var all []int
	for i := range Shards {
		all = append(all, i)
	}
	c.want(all)
	patience, cancel := context.WithTimeout(ctx, parting/2)
	defer cancel()
	tick := time.NewTicker(c.o.Look)
	defer tick.Stop()
	for {
		if _, _, err := c.successors(ctx); errors.Is(err, errAlone) && !nobody {
			return err
		}
		if !c.used() || patience.Err() != nil {
			break
		}
		select {
		case <-c.nudge:
		case <-tick.C:
		case <-patience.Done():
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, g := range c.held {
		if g != nil {
			g.lose()
		}
	}
	return nil
}

// used reports whether somebody holds on to work.
func (c *Claims) used() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.held[:], func(g *grip) bool { return g != nil && g.users > 0 })
}

// successors are the rows as they are, and who lives; errAlone, if that is nobody else who takes part.
func (c *Claims) successors(ctx context.Context) (*table, map[string]bool, error) {
	v, err := c.o.Store.View()
	if err != nil {
		return nil, nil, err
	}
	defer v.Close()
	t, err := load(v)
	if err != nil {
		return nil, nil, err
	}
	alive, err := c.alive(ctx)
	if err == nil && len(t.others(c.o.Store.Self(), alive)) == 0 {
		err = errAlone
	}
	return t, alive, err
}

// handOver commits that others have what this node held, or nobody, if it may be nobody, and that it takes part no more.
func (c *Claims) handOver(ctx context.Context, nobody bool) error {
	t, alive, err := c.successors(ctx)
	if err != nil && !(nobody && errors.Is(err, errAlone)) {
		return err
	}
	txn, err := t.part(c.o.Store.Self(), alive)
	if err != nil || len(txn.Puts)+len(txn.Deletes) == 0 {
		return err
	}
	_, err = c.o.Store.Commit(ctx, txn)
	return err
}
