package lease

import (
	"crypto/sha256"
	"maps"
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// Who says with each read that it is another instance leaves a pointer with each, which outlives the lease and is in no quota. So beyond some, those of one
// holder and secret are merged into one, of many instances: from the oldest version that any of them may use to the newest that any has read. It
// acknowledges nothing, and goes as others do, when all of that is dead. Nobody is forgotten, and nobody is waited for more briefly than without it; who is among
// them is not known any more.

const (
	// Crowd is the Instance of a holder that stands for many that have lapsed.
	Crowd = "many instances"
	// individuals are how many lapsed instances of one holder of a secret stay on record by themselves.
	individuals = 256
)

// Tidying is a walk over all who may use the secrets of a mount, in as many transactions as it takes. It drops who may use what is gone, and merges who are too
// many. Its zero value is at the beginning. It is for one goroutine.
type Tidying struct {
	most int               // individuals, if not 0
	from string            // where it goes on
	path string            // that it is at
	over bool              // path is gone
	seen map[store.Key]int // lapsed pointers at path that were left alone, by the crowd that they belong to
}

// Users adds to txn what comes next, rows required to be still what v shows. Those with a lease that is there stay until it ends. It reports whether there is more:
// then it is to be called again, on a View of after the commit. What a commit that failed did not do is for another walk.
func (y *Tidying) Users(v store.View, txn *store.Txn, e *mount.Entry, gone func(path string) (bool, error)) (more bool, err error) {
	tombs, err := LoadTombs(v)
	if err != nil {
		return false, err
	}
	prefix := pointerRows(e.Namespace, e.UUID)
	crowds := crowds{}
	looked := 0
	for row, err := range v.Scan(store.LeaseIdx, max(y.from, prefix), store.PrefixEnd(prefix)) {
		if err != nil {
			return false, err
		}
		if looked == examined || len(txn.Deletes) == settled {
			y.from = row.Name
			crowds.put(txn)
			return true, nil
		}
		looked++
		p, err := decodePointer(row)
		if err != nil {
			return false, err
		}
		if p.Lapsed.IsZero() {
			continue
		}
		path, _, _ := strings.Cut(row.Name[len(prefix):], "\x00")
		if y.seen == nil || path != y.path {
			y.path, y.seen = path, map[store.Key]int{}
			if y.over, err = gone(path); err != nil {
				return false, err
			}
		}
		k := p.crowdKey(e, path)
		switch {
		case y.over:
			txn.Require(row)
			txn.Delete(row.Table, row.Name)
		case p.Many > 0 || len(tombs) > 0: // a revocation that is under way is about some of them, and no others
		case y.seen[k] < y.limit():
			y.seen[k]++
		default:
			if err := crowds.join(v, e, path, p); err != nil {
				return false, err
			}
			txn.Require(row)
			txn.Delete(row.Table, row.Name)
		}
	}
	crowds.put(txn)
	return false, nil
}

func (y *Tidying) limit() int {
	if y.most > 0 {
		return y.most
	}
	return individuals
}

// crowdKey names the pointer that stands for many like p. They are of one holder, owner and secret, were asked for at one path, so that the same revocations hit
// them, and ended alike, so that either all of them are waited for or none. It comes after those that it takes in: who walks over all in their order misses nobody.
func (p *pointer) crowdKey(e *mount.Entry, path string) store.Key {
	return crowdKey(e.Namespace, e.UUID, path, p.Born, p.Holder, p.Owner, (&Lease{ID: p.ID}).Path(), p.ended())
}

// ended is how a lapsed pointer's lease did.
func (p *pointer) ended() string {
	switch {
	case p.Released && p.Revoked:
		return "released, revoked"
	case p.Released:
		return "released"
	case p.Revoked:
		return "revoked"
	}
	return "lapsed"
}

func crowdKey(namespace uint32, mount, path string, born uint64, h Holder, owner, asked, ended string) store.Key {
	sum := sha256.Sum256([]byte(strings.Join([]string{h.Entity, h.Alias, owner, asked, ended, store.Uint64Key(born)}, "\x00")))
	return store.Key{Table: store.LeaseIdx, Name: pointerPrefix(namespace, mount, path) + strings.Repeat("\xff", pointerSum) + string(sum[:pointerSum])}
}

// successor is the pointer to l, which its holder gets now, where before led to its last lease; nil: it had none. Who comes back after it was thrown out takes up
// what it had: if it is not on record by itself, what those had who were thrown out together, for it may have been one of them.
func (l *Lease) successor(v store.View, before *pointer) (*pointer, error) {
	p := l.pointer()
	if !l.Rotatable || before != nil && !before.Revoked {
		return p.after(before), nil
	}
	for _, ended := range []string{"lapsed", "revoked"} { // as they were when they were merged
		row, err := v.Get(crowdKey(l.Namespace, l.Mount, l.Secret, l.Born, l.Holder, l.Owner, l.Path(), ended))
		if err != nil {
			return nil, err
		}
		if !row.Exists() {
			continue
		}
		many, err := decodePointer(row)
		if err != nil {
			return nil, err
		}
		if many.Revoked { // else it is waited for by itself
			p = p.after(many)
		}
	}
	return p.after(before), nil
}

// crowds are those that a transaction changes.
type crowds map[store.Key]*crowd

type crowd struct {
	row store.Row // as it was
	all *pointer
}

// join takes p, which may be a crowd itself, into the crowd that it belongs to. Those there that were thrown out since they came together make way, to the crowd
// of those that were: else they were waited for again.
func (c crowds) join(v store.View, e *mount.Entry, path string, p *pointer) error {
	k := p.crowdKey(e, path)
	if c[k] == nil {
		row, err := v.Get(k)
		if err != nil {
			return err
		}
		c[k] = &crowd{row: row}
		if row.Exists() {
			many, err := decodePointer(row)
			switch {
			case err != nil:
				return err
			case many.ended() == p.ended():
				c[k].all = many
			default:
				if err := c.join(v, e, path, many); err != nil {
					return err
				}
			}
		}
	}
	c[k].all = c[k].all.with(p)
	return nil
}

// put puts them, in the order of their names.
func (c crowds) put(txn *store.Txn) {
	for _, k := range slices.SortedFunc(maps.Keys(c), func(a, b store.Key) int { return strings.Compare(a.Name, b.Name) }) {
		txn.Require(c[k].row)
		txn.Put(k.Table, k.Name, c[k].all.encode())
	}
}

// with is the pointer that stands for those of many and for p, or those of p, which lapsed as they have; nil: there are none yet.
func (many *pointer) with(p *pointer) *pointer {
	all := *p
	all.Version, all.Newest, all.Acked, all.Many, all.Holder.Instance = p.newest(), 0, 0, max(1, p.Many), Crowd
	if many == nil {
		return &all
	}
	if many.Lapsed.After(p.Lapsed) {
		all.ID, all.Hold, all.Lapsed = many.ID, many.Hold, many.Lapsed
	}
	all.Version, all.Oldest, all.Position, all.Many = max(many.Version, all.Version), min(many.Oldest, p.Oldest), max(many.Position, p.Position), many.Many+max(1, p.Many)
	all.Revoked, all.Released = many.Revoked && p.Revoked, many.Released && p.Released
	return &all
}
