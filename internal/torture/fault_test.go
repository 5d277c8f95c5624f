package torture

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lessor-dev/lessor/internal/pgtest"
)

// fault is something that goes wrong, At so long after its episode began, For so long.
type fault struct {
	Kind string
	Node int // which node; of faults that are about one
	At   time.Duration
	For  time.Duration
	Late time.Duration // of slow links, per piece; of wrong clocks, by how much
}

func (f fault) String() string {
	s := f.Kind
	if kinds[f.Kind].node {
		s += fmt.Sprintf(" (node %d)", f.Node)
	}
	if f.Late != 0 {
		s += fmt.Sprintf(" by %s", f.Late)
	}
	return fmt.Sprintf("%s for %s", s, f.For.Round(time.Millisecond))
}

// episode is a few faults that overlap. All are healed when it is over, and the next begins when the cluster serves again.
type episode []fault

// calm is how long nothing is wrong where an episode has no faults: long enough for whatever should have ended to be seen to have.
const calm = lateBy + 10*time.Second

// halts reports whether no node could end credentials meanwhile.
func (e episode) halts() bool {
	return slices.ContainsFunc(e, func(f fault) bool { return kinds[f.Kind].halts })
}

func (e episode) String() string {
	if len(e) == 0 {
		return "calm"
	}
	var all []string
	for _, f := range e {
		all = append(all, f.String())
	}
	return strings.Join(all, "; ")
}

// kind is what a fault does to the cluster, and how it heals. what it hits excludes other faults that hit the same.
type kind struct {
	hits  string
	node  bool // it is about one node
	disk  bool // it takes servers with disks of their own
	slow  bool // Late is a delay
	clock bool // Late is a clock's error
	blow  bool // it is over at once; For is how long until something else may happen
	halts bool // no node, however well it is, can end credentials meanwhile
	begin func(*cluster, fault) (heal func() error, err error)
}

var kinds = map[string]kind{
	"kill node":         {hits: "node", node: true, begin: killNode},
	"retire node":       {hits: "node", node: true, begin: retireNode},
	"pause node":        {hits: "node", node: true, begin: pauseNode},
	"wrong clock":       {hits: "clock", node: true, clock: true, begin: wrongClock},
	"kill primary":      {hits: "primary", halts: true, begin: killServer("primary")},
	"kill standby":      {hits: "standby", halts: true, begin: killServer("standby")},
	"kill target":       {hits: "target", halts: true, begin: killServer("target")},
	"kill session":      {hits: "primary", halts: true, blow: true, begin: killSession},
	"pause session":     {hits: "primary", halts: true, begin: pauseSession},
	"pause primary":     {hits: "primary", halts: true, begin: pauseServer("primary")},
	"pause standby":     {hits: "standby", halts: true, begin: pauseServer("standby")},
	"pause target":      {hits: "target", halts: true, begin: pauseServer("target")},
	"failover":          {hits: "failover", halts: true, blow: true, begin: failover},
	"split failover":    {hits: "failover", halts: true, blow: true, begin: splitFailover},
	"full disk":         {hits: "disk", halts: true, disk: true, begin: fullDisk},
	"cut store":         {hits: "store", node: true, begin: storeLink(cut)},
	"silent store":      {hits: "store", node: true, begin: storeLink(hole)},
	"half-open store":   {hits: "store", node: true, begin: storeLink(halfOpen)},
	"slow store":        {hits: "store", node: true, slow: true, begin: storeLink(slow)},
	"cut target":        {hits: "aim", halts: true, begin: targetLink(cut)},
	"silent target":     {hits: "aim", halts: true, begin: targetLink(hole)},
	"half-open target":  {hits: "aim", halts: true, begin: targetLink(halfOpen)},
	"slow target":       {hits: "aim", halts: true, slow: true, begin: targetLink(slow)},
	"cut clients":       {hits: "clients", node: true, begin: clientLink(cut)},
	"silent clients":    {hits: "clients", node: true, begin: clientLink(hole)},
	"half-open clients": {hits: "clients", node: true, begin: clientLink(halfOpen)},
	"slow clients":      {hits: "clients", node: true, slow: true, begin: clientLink(slow)},
	"cut standby":       {hits: "stream", halts: true, begin: standbyLink(cut)},
	"silent standby":    {hits: "stream", halts: true, begin: standbyLink(hole)},
	"slow standby":      {hits: "stream", halts: true, slow: true, begin: standbyLink(slow)},
}

// possible are the kinds of faults that may be made to happen here, in order.
func possible(disks bool) (names []string) {
	for name, k := range kinds {
		if disks || !k.disk {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// plan makes the episodes of a run from its seed. Kinds are dealt from a deck, so that all come up before one comes again. Where most is
// long, some faults last longer than every timeout, and every eighth episode is calm.
func plan(seed uint64, episodes int, most time.Duration, names []string) (all []episode) {
	r := rand.New(rand.NewPCG(seed, 1))
	var deck []string
	for i := range episodes {
		var e episode
		if most > calm && i%8 == 7 {
			all = append(all, e)
			continue
		}
		taken := map[string]bool{}
		for range 1 + r.IntN(3) {
			if len(deck) == 0 {
				deck = slices.Clone(names)
				r.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
			}
			name := deck[0]
			k := kinds[name]
			f := fault{Kind: name, Node: r.IntN(nodes), At: time.Duration(r.Int64N(int64(1500 * time.Millisecond))), For: length(r, most)}
			switch {
			case k.blow:
				f.For = length(r, min(most, 3*time.Second))
			case k.slow:
				f.Late = time.Duration(5+r.IntN(200)) * time.Millisecond
			case k.clock:
				f.Late = time.Duration(1-2*r.IntN(2)) * 5 * time.Second
			}
			hit := k.hits
			if k.node && k.hits != "clock" && k.hits != "clients" {
				hit = fmt.Sprintf("%s %d", k.hits, f.Node)
			}
			if taken[hit] {
				break // it comes in the next episode
			}
			taken[hit] = true
			deck = deck[1:]
			e = append(e, f)
		}
		slices.SortFunc(e, func(a, b fault) int { return cmp.Compare(a.At, b.At) })
		all = append(all, e)
	}
	return all
}

// length is mostly short, now and then longer than every timeout.
func length(r *rand.Rand, most time.Duration) time.Duration {
	least := min(time.Second, most)
	if most > 30*time.Second && r.IntN(5) > 0 {
		most = 10 * time.Second
	}
	return least + time.Duration(r.Int64N(int64(most-least)+1))
}

// run makes the faults of an episode happen, and returns when all are healed.
func (e episode) run(ctx context.Context, c *cluster) error {
	if len(e) == 0 {
		sleep(ctx, calm)
		return nil
	}
	var all sync.WaitGroup
	errs := make([]error, len(e))
	for i, f := range e {
		all.Go(func() {
			sleep(ctx, f.At)
			heal, err := kinds[f.Kind].begin(c, f)
			if err != nil {
				errs[i] = fmt.Errorf("%s: %w", f.Kind, err)
				return
			}
			sleep(ctx, f.For)
			if err := heal(); err != nil {
				errs[i] = fmt.Errorf("healing %s: %w", f.Kind, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errors.Join(errs...), c.mend())
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func killNode(c *cluster, f fault) (func() error, error) {
	p := c.nodes[f.Node]
	return p.release, p.kill()
}

func retireNode(c *cluster, f fault) (func() error, error) {
	p := c.nodes[f.Node]
	return p.release, p.retire()
}

func pauseNode(c *cluster, f fault) (func() error, error) {
	p := c.nodes[f.Node]
	return func() error { return p.signal(syscall.SIGCONT) }, p.signal(syscall.SIGSTOP)
}

func wrongClock(c *cluster, f fault) (func() error, error) {
	p := c.nodes[f.Node]
	return func() error { return p.turn(0) }, p.turn(f.Late)
}

// killServer kills a server and starts it again. While its disk is full, from another fault, it does not start: then mend does it.
func killServer(name string) func(*cluster, fault) (func() error, error) {
	return func(c *cluster, _ fault) (func() error, error) {
		s := c.server(name)
		heal := func() error {
			if err := c.raise(s); err != nil {
				c.t.Logf("%s: %v; it is tried again when all else is healed", name, err)
			}
			return nil
		}
		return heal, c.unless(s, s.Crash())
	}
}

func pauseServer(name string) func(*cluster, fault) (func() error, error) {
	return func(c *cluster, _ fault) (func() error, error) {
		s := c.server(name)
		return func() error { return c.unless(s, s.Resume()) }, c.unless(s, s.Pause())
	}
}

// unless is err, unless a failover has removed s, or another fault ended it.
func (c *cluster) unless(s *pgtest.Server, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s != c.primary && s != c.standby && s != c.target || !s.Alive() {
		return nil
	}
	return err
}

// killSession makes the primary end all sessions and recover.
func killSession(c *cluster, _ fault) (func() error, error) {
	s := c.server("primary")
	_, err := s.CrashBackend("lessor")
	return func() error { return nil }, c.unless(s, err)
}

// pauseSession leaves a session with whatever it holds, the lock of all commits perhaps.
func pauseSession(c *cluster, _ fault) (func() error, error) {
	s := c.server("primary")
	resume, err := s.PauseBackend("lessor")
	if err != nil {
		return func() error { return nil }, c.unless(s, err)
	}
	return func() error { resume(); return nil }, nil
}

func failover(c *cluster, _ fault) (func() error, error) {
	return func() error { return nil }, c.failover()
}

// splitFailover lets the primary commit what its standby does not get: the standby is cut off, then a session of the primary is killed, so that
// recovery shows what waited for the standby. Then the standby takes over, which never had it.
func splitFailover(c *cluster, f fault) (func() error, error) {
	c.stream.set(cut, 0)
	time.Sleep(300 * time.Millisecond) // for commits to come and wait
	s := c.server("primary")
	if _, err := s.CrashBackend("lessor"); err != nil {
		return func() error { return nil }, c.unless(s, err)
	}
	time.Sleep(f.For) // for nodes to come back and look
	return func() error { return nil }, c.failover()
}

func fullDisk(c *cluster, _ fault) (func() error, error) {
	s := c.server("primary")
	heal := func() error {
		if err := c.unless(s, s.Free()); err != nil {
			return err
		}
		return c.raise(s)
	}
	return heal, c.unless(s, s.Fill(1<<20))
}

func storeLink(m manner) func(*cluster, fault) (func() error, error) {
	return func(c *cluster, f fault) (func() error, error) { return treat(m, f.Late, c.nodes[f.Node].stores...) }
}

func clientLink(m manner) func(*cluster, fault) (func() error, error) {
	return func(c *cluster, f fault) (func() error, error) { return treat(m, f.Late, c.nodes[f.Node].link) }
}

func targetLink(m manner) func(*cluster, fault) (func() error, error) {
	return func(c *cluster, f fault) (func() error, error) { return treat(m, f.Late, c.aim) }
}

func standbyLink(m manner) func(*cluster, fault) (func() error, error) {
	return func(c *cluster, f fault) (func() error, error) { return treat(m, f.Late, c.stream) }
}

func treat(m manner, late time.Duration, links ...*link) (func() error, error) {
	for _, k := range links {
		k.set(m, late)
	}
	return func() error {
		for _, k := range links {
			k.set(open, 0)
		}
		return nil
	}, nil
}
