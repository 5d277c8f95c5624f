package store

import (
	"slices"

	"github.com/lessor-dev/lessor/internal/audit"
)

// plan works out what a batch changes. It holds one cell for each key that the batch checks or changes; a cell knows the
// row's version before the batch, and the version and value after the transactions admitted so far.
type plan struct {
	seq      uint64 // of the commit that the batch becomes
	cells    []cell
	index    map[Key]int
	sought   []int // cells whose versions the backend has to tell
	keys     []Key // of those
	versions []uint64
	ranges   []Range
	void     bool
	changed  [tables]uint64 // last commit that touched each table, the batch included
}

type cell struct {
	Key
	base    uint64 // version before the batch; known if the row is checked or under an authenticated sum
	now     uint64 // version within the batch; 0: no such row
	value   []byte
	touched bool
	known   bool // base is
	summed  bool // the batch may change it, under an authenticated sum
	hinted  bool // a check says what base should be: guess
	guess   uint64
}

func (p *plan) reset() {
	clear(p.cells)
	clear(p.keys)
	clear(p.index)
	p.cells, p.keys, p.sought, p.ranges, p.void = p.cells[:0], p.keys[:0], p.sought[:0], p.ranges[:0], false
	if p.index == nil {
		p.index = make(map[Key]int)
	}
}

func (p *plan) cell(k Key) *cell {
	i, ok := p.index[k]
	if !ok {
		i = len(p.cells)
		p.cells = append(p.cells, cell{Key: k})
		p.index[k] = i
	}
	return &p.cells[i]
}

// gather makes a cell for each row whose version the batch depends on: of what it checks, and of what it changes under an authenticated
// sum. What the cache knows as of head is known; the others' are to be sought. It may be called again with what joins the batch.
func (p *plan) gather(head *audit.Header, rows *rowCache, batch []*pending) {
	known := len(p.cells)
	p.keys, p.sought = p.keys[:0], p.sought[:0]
	for _, b := range batch {
		t := &b.txn
		for i := range t.Checks {
			p.cell(t.Checks[i].Key).hint(&t.Checks[i])
		}
		for i := range t.Puts {
			if t.Puts[i].Table.Power() != 0 {
				p.cell(t.Puts[i].Key).summed = true
			}
		}
		for _, k := range t.Deletes {
			if k.Table.Power() != 0 {
				p.cell(k).summed = true
			}
		}
	}
	for i := known; i < len(p.cells); i++ {
		c := &p.cells[i]
		if version, ok := rows.version(c.Key, head.Seq); ok {
			c.base, c.now, c.known = version, version, true
			continue
		}
		p.keys, p.sought = append(p.keys, c.Key), append(p.sought, i)
	}
	p.versions = slices.Grow(p.versions[:0], len(p.keys)+1)[:len(p.keys)]
}

// hint takes down what a check expects.
func (c *cell) hint(k *Check) {
	switch {
	case k.Exists && !c.hinted:
		c.guess, c.hinted = Any, true
	case !k.Exists && (!c.hinted || c.guess == Any):
		c.guess, c.hinted = k.Version, true
	}
}

// guess supposes that what was sought is as the checks expect. It reports false where they do not tell enough.
func (p *plan) guess() bool {
	for v, i := range p.sought {
		c := &p.cells[i]
		if !c.hinted || c.summed && c.guess == Any {
			return false
		}
		p.versions[v] = c.guess
	}
	p.learn()
	return true
}

// learn takes the versions of what was sought.
func (p *plan) learn() {
	for v, i := range p.sought {
		c := &p.cells[i]
		c.base, c.now, c.known = p.versions[v], p.versions[v], p.versions[v] != Any
	}
}

// follow brings the cells up to date with a later commit, whose header tells all that it touched. It comes before learn.
func (p *plan) follow(h *audit.Header) {
	for i := range h.Touched {
		t := &h.Touched[i]
		if t.Range {
			p.eachIn(Range{Table(t.Table), t.Name, t.To}, func(c *cell) { c.base, c.now, c.known = 0, 0, true })
			continue
		}
		if at, ok := p.index[Key{Table(t.Table), t.Name}]; ok {
			c := &p.cells[at]
			c.base = h.Seq
			if t.Deleted {
				c.base = 0
			}
			c.now, c.known = c.base, true
		}
	}
}

func (p *plan) eachIn(r Range, f func(*cell)) {
	for i := range p.cells {
		if r.Contains(p.cells[i].Key) {
			f(&p.cells[i])
		}
	}
}

// build says upon which state the batch builds.
func (p *plan) build(s *state) { p.seq, p.changed = s.head.Seq+1, s.changed }

// admit takes the transaction into the batch if its checks hold.
func (p *plan) admit(b *pending) *Conflict {
	t := &b.txn
	for i := range t.Checks {
		c := &t.Checks[i]
		now := p.cell(c.Key).now
		if c.Exists && now == 0 || !c.Exists && now != c.Version {
			return &Conflict{c.Key}
		}
	}
	for _, u := range t.Unchanged {
		if p.changed[u.Table] > u.Position {
			return &Conflict{Key{Table: u.Table}}
		}
	}
	if b.void {
		p.voidTokens()
	}
	for _, r := range t.Ranges {
		p.drop(r)
	}
	for _, r := range b.drops {
		p.drop(r)
	}
	for _, k := range t.Deletes {
		c := p.cell(k)
		c.now, c.value, c.touched = 0, nil, true
		p.changed[k.Table] = p.seq
	}
	for i := range t.Puts {
		c := p.cell(t.Puts[i].Key)
		c.now, c.value, c.touched = p.seq, t.Puts[i].Value, true
		p.changed[c.Table] = p.seq
	}
	return nil
}

func (p *plan) drop(r Range) {
	p.ranges = append(p.ranges, r)
	p.changed[r.Table] = p.seq
	p.eachIn(r, func(c *cell) { c.now, c.value = 0, nil })
}

// voidTokens deletes all tables under the tokens' sum, which so becomes zero.
func (p *plan) voidTokens() {
	p.void = true
	for t := Table(1); t < tables; t++ {
		if t.Power() == 2 {
			p.drop(Range{Table: t})
		}
	}
	for i := range p.cells {
		if p.cells[i].Table.Power() == 2 {
			p.cells[i].base = 0
		}
	}
}

// Contains reports whether k lies in r.
func (r Range) Contains(k Key) bool {
	return k.Table == r.Table && k.Name >= r.From && (r.To == "" || k.Name < r.To)
}

// touched tells what the batch changed, ranges first.
func (p *plan) touched() []audit.Touch {
	n := len(p.ranges)
	for i := range p.cells {
		if p.cells[i].touched {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	ts := make([]audit.Touch, 0, n)
	for _, r := range p.ranges {
		ts = append(ts, audit.Touch{Table: uint8(r.Table), Name: r.From, To: r.To, Deleted: true, Range: true})
	}
	for i := range p.cells {
		if c := &p.cells[i]; c.touched {
			ts = append(ts, audit.Touch{Table: uint8(c.Table), Name: c.Name, Deleted: c.now == 0})
		}
	}
	return ts
}

// sums are the authenticated sums after the batch.
func (p *plan) sums(a audit.Authority, sums [audit.Sums]audit.Sum) [audit.Sums]audit.Sum {
	if p.void {
		sums[1] = audit.Sum{}
	}
	for i := range p.cells {
		c := &p.cells[i]
		power := c.Table.Power()
		if power == 0 || !c.touched {
			continue
		}
		s := &sums[power-1]
		if c.base != 0 {
			*s = audit.Sub(*s, a.Element(uint8(c.Table), c.Name, c.base))
		}
		if c.now != 0 {
			*s = audit.Add(*s, a.Element(uint8(c.Table), c.Name, c.now))
		}
	}
	return sums
}
