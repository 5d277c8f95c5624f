package seal

import (
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/store"
)

// Keyring holds a store's keys, unsealed. Its methods are safe for concurrent use; after Forget they panic, but for those
// that return an error.
type Keyring struct {
	ring   atomic.Pointer[ring]
	source atomic.Pointer[func() ([]byte, error)] // see Follow
}

// The keyring in the clear, as it is wrapped and as it lies in memory:
//
//	format byte, purposes × 32 bytes of key, terms: id (4), born (8, seconds), since (8), key (32)
//
// Integers are big endian, terms ascend.
const (
	ringFormat = 1
	termSize   = 4 + 8 + 8 + keySize
	termsAt    = 1 + int(purposes)*keySize
)

// purpose is what one key of the keyring is for. Numbers are on disk: never renumber, only append (and raise ringFormat).
type purpose int

const (
	macKey purpose = iota
	elementKey
	maskKey
	tokenKey
	fingerprintKey
	batchKey
	purposes
)

// slots bounds the cache of derived keys to about 3 MB. Keys of 64 blocks of 32 tables, about a million commits in a row,
// never displace each other.
const slots = 64 * 32

// ring is what Forget lets go.
type ring struct {
	mu      sync.Mutex // guards the keys
	keys    []byte     // root key, then the keyring: the only place of key bytes, of allocate; nil when forgotten
	loose   error      // why the keys are not in locked memory; nil: they are
	current atomic.Uint32
	derived [slots]atomic.Pointer[derived]
	hashes  [purposes]sync.Pool // of *prf
}

// derived is the key of one table and block of versions.
type derived struct {
	term  uint32
	table store.Table
	block uint64
	cipher.AEAD
}

// term is the time in which one key seals rows.
type term struct {
	id    uint32
	born  time.Time
	since uint64 // position of the store when it was made
}

func newRing(root, encoded []byte) *ring {
	r := &ring{}
	r.keep(root, encoded)
	r.current.Store(lastTerm(encoded).id)
	for p := range r.hashes {
		r.hashes[p].New = func() any { return r.newPRF(purpose(p)) }
	}
	return r
}

// keep takes the keys over, into memory that is not swapped out, and lets go those that it had.
func (r *ring) keep(root, encoded []byte) {
	keys, err := allocate(len(root) + len(encoded))
	copy(keys[copy(keys, root):], encoded)
	release(r.keys)
	r.keys, r.loose = keys, err
}

// Loose is why the keys could be swapped out or dumped, an operating system's error; nil: they cannot.
func (k *Keyring) Loose() (err error) {
	_ = k.locked(func(r *ring) error { err = r.loose; return nil })
	return err
}

func (r *ring) root() []byte    { return r.keys[:keySize] }
func (r *ring) encoded() []byte { return r.keys[keySize:] }

func (r *ring) key(p purpose) []byte {
	at := keySize + 1 + int(p)*keySize
	return r.keys[at : at+keySize]
}

// checkRing says whether encoded is a keyring.
func checkRing(encoded []byte) error {
	switch {
	case len(encoded) == 0:
		return ErrDamaged
	case encoded[0] != ringFormat:
		return fmt.Errorf("%w (keyring format %d)", ErrNewer, encoded[0])
	case len(encoded) < termsAt+termSize || (len(encoded)-termsAt)%termSize != 0:
		return ErrDamaged
	}
	var last uint32
	for at := termsAt; at < len(encoded); at += termSize {
		t, _ := termAt(encoded, at)
		if t.id <= last {
			return ErrDamaged
		}
		last = t.id
	}
	return nil
}

func termAt(encoded []byte, at int) (term, []byte) {
	b := encoded[at : at+termSize]
	return term{
		id:    binary.BigEndian.Uint32(b),
		born:  time.Unix(int64(binary.BigEndian.Uint64(b[4:])), 0).UTC(),
		since: binary.BigEndian.Uint64(b[12:]),
	}, b[20:]
}

func appendTerm(encoded []byte, t term, key []byte) []byte {
	encoded = binary.BigEndian.AppendUint32(encoded, t.id)
	encoded = binary.BigEndian.AppendUint64(encoded, uint64(t.born.Unix()))
	encoded = binary.BigEndian.AppendUint64(encoded, t.since)
	return append(encoded, key...)
}

func lastTerm(encoded []byte) term {
	t, _ := termAt(encoded, len(encoded)-termSize)
	return t
}

// termKey is the key of term id; nil if the keyring has none.
func termKey(encoded []byte, id uint32) []byte {
	for at := len(encoded) - termSize; at >= termsAt; at -= termSize {
		if t, key := termAt(encoded, at); t.id == id {
			return key
		}
	}
	return nil
}

// live is the ring; it panics after Forget.
func (k *Keyring) live() *ring {
	r := k.ring.Load()
	if r == nil {
		panic(ErrForgotten)
	}
	return r
}

// Forget zeroes the keys. Close the store first: what is under way in other goroutines then fails or panics. Keys that the
// cipher implementations have expanded for themselves are left to the garbage collector.
func (k *Keyring) Forget() {
	r := k.ring.Swap(nil)
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	release(r.keys)
	r.keys = nil
}

// The format of a sealed row: format byte, term (uvarint), nonce (12), ciphertext and tag. Associated data: place.
const (
	rowFormat = 1
	overhead  = 1 + binary.MaxVarintLen32 + halfSize + tagSize
)

// Cipher is the part of the Keyring that the store gets. It opens no row of a secret table: Open of the Keyring does, for a Grant.
func (k *Keyring) Cipher() store.Cipher { return rows{k} }

type rows struct{ *Keyring }

// Seal appends value, sealed under (key, version) with the current term's key, to dst.
func (c rows) Seal(dst []byte, key store.Key, version uint64, value []byte) []byte {
	r := c.live()
	id := r.current.Load()
	aead, err := r.aead(id, key.Table, version)
	if err != nil {
		panic(err)
	}
	dst = append(slices.Grow(dst, overhead+len(value)), rowFormat)
	dst = binary.AppendUvarint(dst, uint64(id))
	s := scratch.Get().(*buffer)
	s.b = appendPlace(s.b[:0], uint8(key.Table), key.Name, version)
	dst = aead.Seal(dst, nil, value, s.b)
	scratch.Put(s)
	return dst
}

// Open appends the value that Seal sealed to dst.
func (c rows) Open(dst []byte, key store.Key, version uint64, sealed []byte) ([]byte, error) {
	if key.Table.Secret() {
		return nil, fmt.Errorf("seal: a row of %s is opened for a grant only", key.Table)
	}
	return c.open(dst, key, version, sealed)
}

func (k *Keyring) open(dst []byte, key store.Key, version uint64, sealed []byte) ([]byte, error) {
	r := k.ring.Load()
	if r == nil {
		return nil, ErrForgotten
	}
	id, body, err := parseRow(sealed)
	if err != nil {
		return nil, fmt.Errorf("seal: %s of commit %d: %w", key, version, err)
	}
	aead, err := r.aead(id, key.Table, version)
	if errors.Is(err, errNoTerm) && k.reload() {
		aead, err = r.aead(id, key.Table, version)
	}
	if err != nil {
		return nil, fmt.Errorf("seal: %s of commit %d: %w", key, version, err)
	}
	s := scratch.Get().(*buffer)
	defer scratch.Put(s)
	s.b = appendPlace(s.b[:0], uint8(key.Table), key.Name, version)
	value, err := aead.Open(dst, nil, body, s.b)
	if err != nil {
		return nil, fmt.Errorf("seal: %s of commit %d: %w, or moved here from elsewhere", key, version, ErrDamaged)
	}
	return value, nil
}

// parseRow takes a sealed row apart into its term and what the term's AEAD reads.
func parseRow(sealed []byte) (id uint32, body []byte, err error) {
	if len(sealed) == 0 {
		return 0, nil, ErrDamaged
	}
	if sealed[0] != rowFormat {
		return 0, nil, fmt.Errorf("%w (row format %d)", ErrNewer, sealed[0])
	}
	n, used := binary.Uvarint(sealed[1:])
	if used <= 0 || n == 0 || n > 1<<32-1 || len(sealed) < 1+used+halfSize+tagSize {
		return 0, nil, ErrDamaged
	}
	return uint32(n), sealed[1+used:], nil
}

// appendPlace says where a row is and which commit wrote it, injectively.
func appendPlace(b []byte, table uint8, name string, version uint64) []byte {
	b = append(b, table)
	b = append(b, name...)
	return binary.BigEndian.AppendUint64(b, version)
}

var errNoTerm = errors.New("sealed in a term that the keyring does not have")

// aead finds or derives the key of a table and of the block that version is in.
func (r *ring) aead(id uint32, table store.Table, version uint64) (cipher.AEAD, error) {
	block := version >> blockBits
	slot := &r.derived[(block<<5|uint64(table)&31)%slots]
	if d := slot.Load(); d != nil && d.block == block && d.table == table && d.term == id {
		return d, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keys == nil {
		return nil, ErrForgotten
	}
	key := termKey(r.encoded(), id)
	if key == nil {
		return nil, errNoTerm
	}
	h := half{0: byte(table)}
	binary.BigEndian.PutUint64(h[4:], block)
	d := &derived{term: id, table: table, block: block, AEAD: newAEAD(key, h)}
	slot.Store(d)
	return d, nil
}

// Open opens a row of a secret table for a Grant: a valid one, for the mount that the row belongs to. Otherwise it
// opens nothing, and the error is Internal, since whoever asks so has skipped the gate.
func (k *Keyring) Open(grant policy.Grant, row store.Row) (lessor.Secret, error) {
	_, mount, _ := store.SplitMountKey(row.Name)
	switch {
	case !row.Table.Secret():
		return lessor.Secret{}, api.Errorf(api.Internal, "seal: %s holds no secrets", row.Table)
	case !row.Exists():
		return lessor.Secret{}, api.Errorf(api.Internal, "seal: no such row: %s", row.Key)
	case !grant.Valid():
		return lessor.Secret{}, api.Errorf(api.Internal, "seal: no grant to open %s", row.Key)
	case len(mount) != 16 || mount != grant.Mount():
		return lessor.Secret{}, api.Errorf(api.Internal, "seal: the grant is for another mount than %s", row.Key)
	}
	value, err := k.open(nil, row.Key, row.Version, row.Sealed())
	if err != nil {
		return lessor.Secret{}, &api.Error{Kind: api.Internal, Cause: err}
	}
	defer clear(value)
	return lessor.NewSecret(value), nil
}

// Check says whether a row of any table but those in clear can be opened, without opening it to anybody.
func (k *Keyring) Check(row store.Row) error {
	value, err := k.open(nil, row.Key, row.Version, row.Sealed())
	clear(value)
	return err
}

// prf is a keyed hash, ready for use.
type prf struct {
	hash.Hash
	sum [sha256.Size]byte
}

func (r *ring) newPRF(p purpose) *prf {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keys == nil {
		panic(ErrForgotten)
	}
	return &prf{Hash: hmac.New(sha256.New, r.key(p))}
}

// hash is HMAC-SHA256 of message under the key of purpose p.
func (k *Keyring) hash(p purpose, message []byte) [32]byte {
	r := k.live()
	h := r.hashes[p].Get().(*prf)
	h.Reset()
	h.Write(message)
	h.Hash.Sum(h.sum[:0])
	sum := h.sum
	r.hashes[p].Put(h)
	return sum
}

// MAC implements audit.Authority.
func (k *Keyring) MAC(encoded []byte) [32]byte { return k.hash(macKey, encoded) }

// Element implements audit.Authority.
func (k *Keyring) Element(table uint8, name string, version uint64) [32]byte {
	s := scratch.Get().(*buffer)
	defer scratch.Put(s)
	s.b = appendPlace(s.b[:0], table, name, version)
	return k.hash(elementKey, s.b)
}

// Mask implements audit.Authority.
func (k *Keyring) Mask(incarnation, seq uint64, batch string, sum int) [32]byte {
	s := scratch.Get().(*buffer)
	defer scratch.Put(s)
	s.b = binary.BigEndian.AppendUint64(s.b[:0], incarnation)
	s.b = binary.BigEndian.AppendUint64(s.b, seq)
	s.b = binary.BigEndian.AppendUint64(s.b, uint64(sum))
	s.b = append(s.b, batch...)
	return k.hash(maskKey, s.b)
}

// TokenHash is what is stored of a bearer secret (token, secret id, wrapping token): 20 raw bytes of a keyed hash.
func (k *Keyring) TokenHash(token string) string {
	s := scratch.Get().(*buffer)
	defer s.wipe()
	s.b = append(s.b[:0], token...)
	sum := k.hash(tokenKey, s.b)
	return string(sum[:20])
}

// Fingerprint is what audit records keep of a secret's value: 16 bytes of a keyed hash of the value and of where it is,
// so that equal values in different places look different.
func (k *Keyring) Fingerprint(mount, path string, value []byte) []byte {
	s := scratch.Get().(*buffer)
	defer s.wipe()
	s.b = binary.AppendUvarint(s.b[:0], uint64(len(mount)))
	s.b = append(s.b, mount...)
	s.b = binary.AppendUvarint(s.b, uint64(len(path)))
	s.b = append(s.b, path...)
	s.b = append(s.b, value...)
	sum := k.hash(fingerprintKey, s.b)
	return slices.Clone(sum[:16])
}

// Batch tokens carry themselves: prefix, then base64url of format byte and what wrap made.
const (
	batchPrefix = "hvb."
	batchFormat = 1
	batchLabel  = "lessor batch token"
)

// SealToken makes the batch token that carries payload. Nobody but this keyring can read or alter it.
func (k *Keyring) SealToken(payload []byte) string {
	key := must(k.batchKey())
	defer clear(key)
	sealed := wrap([]byte{batchFormat}, key, batchLabel, payload)
	return batchPrefix + base64.RawURLEncoding.EncodeToString(sealed)
}

// OpenToken returns the payload of a batch token. A token that is none of ours is Unauthenticated, and no more is said.
func (k *Keyring) OpenToken(token string) ([]byte, error) {
	key, err := k.batchKey()
	if err != nil {
		return nil, err
	}
	defer clear(key)
	text, ok := strings.CutPrefix(token, batchPrefix)
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if !ok || err != nil || len(sealed) == 0 || sealed[0] != batchFormat {
		return nil, api.Errorf(api.Unauthenticated, "permission denied")
	}
	payload, err := unwrap(key, batchLabel, sealed[1:])
	if err != nil {
		return nil, api.Errorf(api.Unauthenticated, "permission denied")
	}
	return payload, nil
}

// batchKey is a copy, since Forget may zero the original.
func (k *Keyring) batchKey() ([]byte, error) {
	r := k.ring.Load()
	if r == nil {
		return nil, ErrForgotten
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keys == nil {
		return nil, ErrForgotten
	}
	return slices.Clone(r.key(batchKey)), nil
}

// buffer is scratch space that does not burden the heap.
type buffer struct{ b []byte }

var scratch = sync.Pool{New: func() any { return &buffer{make([]byte, 0, 256)} }}

// wipe zeroes the buffer and gives it back, unless it has become large.
func (s *buffer) wipe() {
	clear(s.b)
	if cap(s.b) <= 64<<10 {
		scratch.Put(s)
	}
}
