package mem

import "hash/maphash"

// node is a persistent treap: ordered by name, a heap by a hash of the name. Nodes are never changed once linked.
type node struct {
	name        string
	value       []byte
	rank        uint64
	size        int // bytes of names and values in the tree
	left, right *node
}

var seed = maphash.MakeSeed()

func (n *node) bytes() int {
	if n == nil {
		return 0
	}
	return n.size
}

// with is n with other children.
func (n *node) with(left, right *node) *node {
	c := *n
	c.left, c.right = left, right
	c.size = len(n.name) + len(n.value) + left.bytes() + right.bytes()
	return &c
}

func (n *node) get(name string) []byte {
	for n != nil {
		switch {
		case name < n.name:
			n = n.left
		case name > n.name:
			n = n.right
		default:
			return n.value
		}
	}
	return nil
}

func (n *node) set(name string, value []byte) *node {
	fresh := &node{name: name, value: value, rank: maphash.String(seed, name)}
	return n.insert(fresh)
}

func (n *node) insert(f *node) *node {
	switch {
	case n == nil:
		return f.with(nil, nil)
	case f.name == n.name:
		return f.with(n.left, n.right)
	case f.rank > n.rank: // f is not below n: its rank is that of its name
		left, right := n.split(f.name)
		return f.with(left, right)
	case f.name < n.name:
		return n.with(n.left.insert(f), n.right)
	default:
		return n.with(n.left, n.right.insert(f))
	}
}

func (n *node) delete(name string) *node {
	switch {
	case n == nil:
		return nil
	case name < n.name:
		if left := n.left.delete(name); left != n.left {
			return n.with(left, n.right)
		}
		return n
	case name > n.name:
		if right := n.right.delete(name); right != n.right {
			return n.with(n.left, right)
		}
		return n
	default:
		return join(n.left, n.right)
	}
}

// split parts the tree into names below at, and the others.
func (n *node) split(at string) (below, rest *node) {
	switch {
	case n == nil:
		return nil, nil
	case n.name < at:
		below, rest = n.right.split(at)
		return n.with(n.left, below), rest
	default:
		below, rest = n.left.split(at)
		return below, n.with(rest, n.right)
	}
}

// join unites two trees; all names of a are below those of b.
func join(a, b *node) *node {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.rank > b.rank:
		return a.with(a.left, join(a.right, b))
	default:
		return b.with(join(a, b.left), b.right)
	}
}

func (n *node) ascend(from, to string, step func(*node) bool) bool {
	if n == nil {
		return true
	}
	if from < n.name && !n.left.ascend(from, to, step) {
		return false
	}
	if from <= n.name && n.name < to && !step(n) {
		return false
	}
	return n.name >= to || n.right.ascend(from, to, step)
}

func (n *node) descend(from, to string, step func(*node) bool) bool {
	if n == nil {
		return true
	}
	if n.name < to && !n.right.descend(from, to, step) {
		return false
	}
	if from <= n.name && n.name < to && !step(n) {
		return false
	}
	return n.name <= from || n.left.descend(from, to, step)
}
