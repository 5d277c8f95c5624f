package seal

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// ShamirName is the name in the store of the KEK whose key nobody has, but some people together.
const ShamirName = "shamir"

// MaxShares bounds the shares of one key.
const MaxShares = 255

// Shamir is a KEK whose key is cut into shares. Its row in the store holds, in clear,
//
//	format byte, key id (8), threshold, shares, a digest (16) of each share, what wrap made
//
// and what stands before the wrapped root key is bound to it. The digests tell a wrong share at once, and by itself; a share
// is 32 random bytes, of which a digest says nothing to whoever has to guess.
type Shamir struct {
	keyKEK
	threshold int
	digests   []byte
}

const (
	shamirFormat = 1
	shareFormat  = 1
	idSize       = 8
	digestSize   = 16
	slipSize     = 3
	headSize     = 1 + idSize + 2 // of a row
)

// shareSize is that of a share: format byte, key id, point, value, and a checksum that catches slips. It needs no padding
// in base64.
const shareSize = 1 + idSize + 1 + keySize + slipSize

// Share is one share of a Shamir. It prints as a Secret does.
type Share struct{ b [shareSize]byte }

// Hex is the share as Vault's clients show it under "keys".
func (s Share) Hex() lessor.Secret { return lessor.NewSecret(hex.EncodeToString(s.b[:])) }

// Base64 is the share as Vault's clients show it under "keys_base64".
func (s Share) Base64() lessor.Secret {
	return lessor.NewSecret(base64.StdEncoding.EncodeToString(s.b[:]))
}

func (s Share) String() string   { return "[secret]" }
func (s Share) GoString() string { return "[secret]" }

// NewShamir makes a key from random and cuts it into shares, threshold of which bring it back: 1 ≤ threshold ≤ shares ≤
// MaxShares. The KEK still has the whole key, to wrap a root key with; Forget it then.
func NewShamir(random io.Reader, shares, threshold int) (*Shamir, []Share, error) {
	if threshold < 1 || shares < threshold || shares > MaxShares {
		return nil, nil, fmt.Errorf("seal: a key cannot be cut into %d shares of which %d are needed", shares, threshold)
	}
	secret := make([]byte, threshold*keySize) // and the coefficients
	defer clear(secret)
	if _, err := io.ReadFull(random, secret); err != nil {
		return nil, nil, fmt.Errorf("seal: no randomness: %w", err)
	}
	k := newShamir(secret[:keySize])
	k.threshold = threshold
	id := keyID(k.key[:])
	out := make([]Share, shares)
	for i, value := range split(secret[:keySize], secret[keySize:], shares) {
		out[i] = newShare(id, byte(i+1), value)
		clear(value)
		k.digests = append(k.digests, out[i].digest()...)
	}
	return k, out, nil
}

// newShamir is the KEK of a secret that was shared, good for unwrapping.
func newShamir(secret []byte) *Shamir {
	k := &Shamir{keyKEK: keyKEK{name: ShamirName, where: "the unseal keys"}}
	key := must(hkdf.Key(sha256.New, secret, nil, "lessor unseal key", keySize))
	copy(k.key[:], key)
	clear(key)
	return k
}

func newShare(id [idSize]byte, point byte, value []byte) (s Share) {
	b := append(s.b[:0], shareFormat)
	b = append(b, id[:]...)
	b = append(b, point)
	b = append(b, value...)
	copy(s.b[shareSize-slipSize:], slip(b))
	return s
}

// slip is the checksum of what a share says.
func slip(b []byte) []byte {
	sum := sha256.Sum256(append([]byte("lessor share"), b...))
	return sum[:slipSize]
}

func (s *Share) id() []byte    { return s.b[1 : 1+idSize] }
func (s *Share) point() byte   { return s.b[1+idSize] }
func (s *Share) value() []byte { return s.b[2+idSize : 2+idSize+keySize] }

func (s *Share) digest() []byte {
	sum := sha256.Sum256(append([]byte("lessor digest of a share"), s.b[:]...))
	return sum[:digestSize]
}

// noKey is an ErrNoKey that says why.
type noKey string

func (e noKey) Error() string        { return string(e) }
func (e noKey) Is(target error) bool { return target == ErrNoKey }

// parseShare reads a share; a slip in copying it is an error.
func parseShare(b []byte) (s Share, err error) {
	switch {
	case len(b) != shareSize:
		return s, noKey(fmt.Sprintf("an unseal key has %d bytes, this has %d", shareSize, len(b)))
	case b[0] != shareFormat:
		return s, noKey("this is no unseal key, or one of a newer lessor")
	case !bytes.Equal(slip(b[:shareSize-slipSize]), b[shareSize-slipSize:]):
		return s, noKey("there is a slip in this unseal key: compare it with the original, character by character")
	}
	copy(s.b[:], b)
	return s, nil
}

// Wrap implements KEK.
func (k *Shamir) Wrap(root []byte) ([]byte, error) {
	id := keyID(k.key[:])
	head := append([]byte{shamirFormat}, id[:]...)
	head = append(head, byte(k.threshold), byte(len(k.digests)/digestSize))
	head = append(head, k.digests...)
	return wrap(head, k.key[:], rootLabel+string(head), root), nil
}

// Unwrap implements KEK.
func (k *Shamir) Unwrap(row []byte) ([]byte, error) {
	t, err := parseTerms(row)
	if err != nil {
		return nil, err
	}
	if id := keyID(k.key[:]); !bytes.Equal(t.id, id[:]) {
		return nil, fmt.Errorf("%w: the unseal keys are of another set", ErrWrongKey)
	}
	root, err := unwrap(k.key[:], rootLabel+string(row[:t.size()]), row[t.size():])
	if err != nil {
		return nil, fmt.Errorf("the store's row for the unseal keys is %w: use another key, or restore the store from a backup", err)
	}
	return root, nil
}

// terms are what the row of a Shamir says in clear.
type terms struct {
	id                []byte
	threshold, shares int
	digests           []byte
}

func (t *terms) size() int { return headSize + len(t.digests) }

func parseTerms(row []byte) (t terms, err error) {
	damaged := fmt.Errorf("the store's row for the unseal keys is %w: use another key, or restore the store from a backup", ErrDamaged)
	switch {
	case len(row) < headSize:
		return t, damaged
	case row[0] != shamirFormat:
		return t, fmt.Errorf("the store's row for the unseal keys was %w: upgrade lessor", ErrNewer)
	}
	t = terms{id: row[1 : 1+idSize], threshold: int(row[1+idSize]), shares: int(row[2+idSize])}
	if t.threshold < 1 || t.shares < t.threshold || len(row) < headSize+t.shares*digestSize {
		return terms{}, damaged
	}
	t.digests = row[headSize : headSize+t.shares*digestSize]
	return t, nil
}

// check says whether s is one of the shares.
func (t *terms) check(s *Share) error {
	if !bytes.Equal(s.id(), t.id) {
		return fmt.Errorf("%w: it is of key %x, the store is sealed with key %x: of an earlier set, as of before a rekey, or of another store", ErrForeign, s.id(), t.id)
	}
	at := (int(s.point()) - 1) * digestSize
	if at < 0 || at >= len(t.digests) || subtle.ConstantTimeCompare(s.digest(), t.digests[at:at+digestSize]) != 1 {
		return fmt.Errorf("%w: it names the right key, but was altered", ErrForeign)
	}
	return nil
}

// Quorum collects what people give until it suffices to unwrap the root key. The zero Quorum is empty. It is not safe for
// concurrent use. What it holds is zeroed by Clear, and when it is complete.
type Quorum struct{ shares []Share }

// Progress is the number of different shares given so far.
func (q *Quorum) Progress() int { return len(q.shares) }

// Clear begins anew.
func (q *Quorum) Clear() {
	clear(q.shares)
	q.shares = nil
}

// Add takes a key, in hex or base64: a share, or the whole key of a key file. It returns a KEK that unseals l once
// what was given suffices, and nil before. again tells that the share was given before, and does not count. On an error (of ErrNoKey, ErrForeign,
// ErrMissing, ErrDamaged, ErrNewer) nothing is lost of what was given.
func (q *Quorum) Add(l Locks, key lessor.Secret) (kek Forgetter, again bool, err error) {
	b, err := decode(key)
	if err != nil {
		return nil, false, err
	}
	defer clear(b)
	if len(b) == keySize {
		kek, err := l.whole(b)
		return kek, false, err
	}
	share, err := parseShare(b)
	if err != nil {
		return nil, false, err
	}
	defer clear(share.b[:])
	row, ok := l.rows[kekRows+ShamirName]
	if !ok {
		return nil, false, fmt.Errorf("%w: no unseal keys were made for this store, which is unsealed by: %s", ErrMissing, kekNames(l.rows))
	}
	t, err := parseTerms(row)
	if err != nil {
		return nil, false, err
	}
	if err := t.check(&share); err != nil {
		return nil, false, err
	}
	// What was given before the set changed counts no more.
	q.shares = slices.DeleteFunc(q.shares, func(s Share) bool { return !bytes.Equal(s.id(), t.id) })
	if slices.Contains(q.shares, share) {
		return nil, true, nil
	}
	q.shares = append(q.shares, share)
	if len(q.shares) < t.threshold {
		return nil, false, nil
	}
	defer q.Clear()
	points, values := make([]byte, len(q.shares)), make([][]byte, len(q.shares))
	for i := range q.shares {
		points[i], values[i] = q.shares[i].point(), q.shares[i].value()
	}
	secret := combine(points, values)
	defer clear(secret)
	return newShamir(secret), false, nil
}

// CheckKey says whether key is in hex or base64, as a key must be.
func CheckKey(key lessor.Secret) error {
	b, err := decode(key)
	clear(b)
	return err
}

// decode reads a key as people are given it: hex or base64.
func decode(key lessor.Secret) ([]byte, error) {
	text := strings.TrimSpace(key.Reveal())
	if b, err := hex.DecodeString(text); err == nil && (len(b) == shareSize || len(b) == keySize) {
		return b, nil
	}
	if b, err := base64.StdEncoding.DecodeString(text); err == nil {
		return b, nil
	}
	return nil, noKey("'key' must be a valid hex or base64 string")
}
