package audit

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
)

// Seal sets the header's MAC and returns its encoding.
func (h *Header) Seal(a Authority) []byte {
	h.MAC = [32]byte{}
	b := h.Encode()
	h.MAC = a.MAC(b)
	copy(b[len(b)-len(h.MAC):], h.MAC[:]) // key 13 sorts last: the encoding ends with the MAC
	return b
}

// VerifyMAC checks that the header was made by who holds the keys.
func (h *Header) VerifyMAC(a Authority) error {
	bare := *h
	bare.MAC = [32]byte{}
	if want := a.MAC(bare.Encode()); !hmac.Equal(want[:], h.MAC[:]) {
		return errMAC(h.Seq)
	}
	return nil
}

// authentic is VerifyMAC for an encoded header: it ends with the MAC.
func authentic(encoded []byte, a Authority) bool {
	n := len(encoded) - len(Header{}.MAC)
	if n < 0 {
		return false
	}
	bare := make([]byte, len(encoded))
	copy(bare, encoded[:n])
	want := a.MAC(bare)
	return hmac.Equal(want[:], encoded[n:])
}

func errMAC(seq uint64) error {
	return fmt.Errorf("audit: header %d has a wrong MAC: it was altered, or made under another key", seq)
}

// SetSums puts the authenticated sums into the header, masked. Incarnation, Seq and Batch must be set before.
func (h *Header) SetSums(a Authority, sums [Sums]Sum) {
	for i := range sums {
		h.Power[i] = xor(sums[i], a.Mask(h.Incarnation, h.Seq, h.Batch, i))
	}
}

// Sums are the authenticated sums that the header carries. Of the zero header (an empty store) they are zero.
func (h *Header) Sums(a Authority) (sums [Sums]Sum) {
	if h.Seq == 0 {
		return sums
	}
	for i := range sums {
		sums[i] = xor(h.Power[i], a.Mask(h.Incarnation, h.Seq, h.Batch, i))
	}
	return sums
}

func xor(a, b [32]byte) [32]byte {
	for i := range a {
		a[i] ^= b[i]
	}
	return a
}

// Chain follows the headers of a store one after the other and checks that each continues the one before.
type Chain struct {
	Authority Authority
	Last      Header // the header verified last; the zero Header before the first
	hash      Hash
}

// Resume is the chain after last, whose hash is given; both were verified before.
func Resume(a Authority, last Header, hash Hash) *Chain {
	return &Chain{Authority: a, Last: last, hash: hash}
}

// Hash is the hash of the last header.
func (c *Chain) Hash() Hash { return c.hash }

// Next verifies the next header, given as stored, and returns it. The error names what is broken; the chain then
// stands where it stood.
func (c *Chain) Next(encoded []byte) (*Header, error) {
	h, err := decodeHeader(encoded) // in the canonical encoding, if its MAC holds
	if err != nil {
		return nil, fmt.Errorf("audit: header after %d: %w", c.Last.Seq, err)
	}
	switch {
	case h.Seq != c.Last.Seq+1:
		return nil, fmt.Errorf("audit: header %d follows header %d: what was between is missing", h.Seq, c.Last.Seq)
	case h.Prev != c.hash:
		return nil, fmt.Errorf("audit: header %d does not continue header %d: one of them was replaced", h.Seq, c.Last.Seq)
	case h.Time.Before(c.Last.Time):
		return nil, fmt.Errorf("audit: header %d is of an earlier time than header %d", h.Seq, c.Last.Seq)
	case h.Incarnation < c.Last.Incarnation || h.Incarnation > c.Last.Incarnation+1:
		return nil, fmt.Errorf("audit: header %d is of incarnation %d after %d", h.Seq, h.Incarnation, c.Last.Incarnation)
	}
	if !authentic(encoded, c.Authority) {
		return nil, errMAC(h.Seq)
	}
	c.Last, c.hash = h, sha256.Sum256(encoded)
	return &c.Last, nil
}

// VerifyRecords checks the leaves of all records of the commit against its header.
func (h *Header) VerifyRecords(leaves []Hash) error {
	if uint32(len(leaves)) != h.Count {
		return fmt.Errorf("audit: commit %d has %d records where its header says %d", h.Seq, len(leaves), h.Count)
	}
	if Root(leaves) != h.Root {
		return fmt.Errorf("audit: the records of commit %d are not those that its header binds", h.Seq)
	}
	return nil
}
