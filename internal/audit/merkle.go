package audit

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// Hash is a SHA-256 hash.
type Hash = [32]byte

// Leaf is the hash of one encoded record in its commit's tree (RFC 6962, section 2.1).
func Leaf(encoded []byte) Hash { return Hash(tlog.RecordHash(encoded)) }

// Root is the Merkle tree hash of leaves (RFC 6962, section 2.1); of none, it is the zero hash.
func Root(leaves []Hash) Hash {
	switch n := len(leaves); n {
	case 0:
		return Hash{}
	case 1:
		return leaves[0]
	default:
		k := split(n)
		return node(Root(leaves[:k]), Root(leaves[k:]))
	}
}

func node(left, right Hash) Hash { return Hash(tlog.NodeHash(tlog.Hash(left), tlog.Hash(right))) }

// split is the largest power of two below n, for n > 1.
func split(n int) int {
	k := 1
	for k<<1 < n {
		k <<= 1
	}
	return k
}

// Proof shows that one record is the one at its index of a commit: the hashes beside its path to the root, nearest
// first (RFC 6962, section 2.1.1).
type Proof []Hash

// Prove makes the proof for leaves[i].
func Prove(leaves []Hash, i int) Proof {
	if i < 0 || i >= len(leaves) {
		panic(fmt.Sprintf("audit: no leaf %d among %d", i, len(leaves)))
	}
	if len(leaves) == 1 {
		return Proof{}
	}
	if k := split(len(leaves)); i < k {
		return append(Prove(leaves[:k], i), Root(leaves[k:]))
	} else {
		return append(Prove(leaves[k:], i-k), Root(leaves[:k]))
	}
}

// VerifyProof checks that leaf is at index i of the tree of n leaves with the given root.
func VerifyProof(p Proof, n, i int, leaf, root Hash) error {
	t := make(tlog.RecordProof, len(p))
	for j, h := range p {
		t[j] = tlog.Hash(h)
	}
	if err := tlog.CheckRecord(t, int64(n), tlog.Hash(root), int64(i), tlog.Hash(leaf)); err != nil {
		return fmt.Errorf("audit: record %d of %d does not belong to this commit", i, n)
	}
	return nil
}
