package seal

import (
	"bytes"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/internal/store"
)

// KEK is a key that wraps the root key. Several independent ones may wrap the same root key: each unseals alone, and
// losing all but one loses nothing. Both methods may take as long as a remote key service does.
type KEK interface {
	// Name is the KEK's name in the store, unique among its KEKs: "keyfile", "recovery".
	Name() string
	// Wrap encrypts the root key. The result is stored in clear.
	Wrap(root []byte) (wrapped []byte, err error)
	// Unwrap is the inverse of Wrap. It returns ErrWrongKey if something else wrapped, ErrDamaged if the bytes were altered;
	// its text names the KEK so that the operator knows which file or service is meant.
	Unwrap(wrapped []byte) (root []byte, err error)
}

// Labels keep what the layers wrap from passing for each other.
const (
	keyringLabel = "lessor keyring"
	rootLabel    = "lessor root key"
)

// Init makes the keys of a new store. The puts (of store.Meta) must be its first commit; nothing may be sealed before they
// are durable. Keys come from random, which is crypto/rand outside of tests.
func Init(random io.Reader, now time.Time, keks ...KEK) (*Keyring, []store.Put, error) {
	if len(keks) == 0 {
		return nil, nil, fmt.Errorf("seal: a store needs at least one key to be unsealed with")
	}
	keys := make([]byte, keySize+termsAt+keySize)
	defer clear(keys)
	if _, err := io.ReadFull(random, keys); err != nil {
		return nil, nil, fmt.Errorf("seal: no randomness: %w", err)
	}
	root, encoded, first := keys[:keySize], keys[keySize:keySize+termsAt:keySize+termsAt], keys[keySize+termsAt:]
	encoded[0] = ringFormat
	encoded = appendTerm(encoded, term{id: 1, born: now}, first)
	defer clear(encoded)

	k := &Keyring{}
	k.ring.Store(newRing(root, encoded))
	puts := []store.Put{
		{Key: metaKey(schemaRow), Value: strconv.AppendInt(nil, Schema, 10)},
		{Key: metaKey(keyringRow), Value: wrap(nil, root, keyringLabel, encoded)},
	}
	for _, kek := range keks {
		put, err := k.WrapRoot(kek)
		if err != nil {
			return nil, nil, err
		}
		if slices.ContainsFunc(puts, func(p store.Put) bool { return p.Key == put.Key }) {
			return nil, nil, fmt.Errorf("seal: two keys are named %q", kek.Name())
		}
		puts = append(puts, put)
	}
	return k, puts, nil
}

// KeyringKey is the row that keeps the keyring, wrapped.
var KeyringKey = metaKey(keyringRow)

func metaKey(name string) store.Key { return store.Key{Table: store.Meta, Name: name} }

// Locks are what a store says of itself while it is sealed: whether it was ever initialised, and what unseals it.
type Locks struct {
	rows     map[string][]byte
	versions map[string]uint64
}

// ReadLocks reads store.Meta, which a View of a sealed store shows.
func ReadLocks(view store.View) (Locks, error) {
	l := Locks{map[string][]byte{}, map[string]uint64{}}
	for row, err := range view.Scan(store.Meta, "", "") {
		if err != nil {
			return Locks{}, err
		}
		l.rows[row.Name], l.versions[row.Name] = row.Value, row.Version
	}
	return l, nil
}

// NewLocks are those that rows would make which are not in the store yet.
func NewLocks(rows ...store.Put) Locks {
	l := Locks{rows: map[string][]byte{}}
	for _, p := range rows {
		l.rows[p.Name] = p.Value
	}
	return l
}

// Lock is one KEK as the store knows it.
type Lock struct {
	Name              string
	ID                string // of its key, in hex; empty if the row does not tell
	Threshold, Shares int    // how many keys of how many unseal; 1 of 1 but for a Shamir
	Version           uint64 // commit that made it
}

// List is what unseals the store, by name. A row that makes no sense is listed without an ID.
func (l Locks) List() []Lock {
	var all []Lock
	for row, value := range l.rows {
		name, ok := strings.CutPrefix(row, kekRows)
		if !ok {
			continue
		}
		lock := Lock{Name: name, Threshold: 1, Shares: 1, Version: l.versions[row]}
		if len(value) > idSize {
			lock.ID = hex.EncodeToString(value[1 : 1+idSize])
		}
		if t, err := parseTerms(value); name == ShamirName && err == nil {
			lock.Threshold, lock.Shares = t.threshold, t.shares
		}
		all = append(all, lock)
	}
	slices.SortFunc(all, func(a, b Lock) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Find is the Lock of a name.
func (l Locks) Find(name string) (Lock, bool) {
	all := l.List()
	i := slices.IndexFunc(all, func(k Lock) bool { return k.Name == name })
	if i < 0 {
		return Lock{}, false
	}
	return all[i], true
}

// Initialised reports whether there is anything to unseal.
func (l Locks) Initialised() bool { return len(l.rows) > 0 }

// KEKKey is the key of the row by which the KEK of that name unseals the store.
func KEKKey(name string) store.Key { return metaKey(kekRows + name) }

// whole is the KEK of a whole key, if the store knows one with that key.
func (l Locks) whole(key []byte) (Forgetter, error) {
	kek := &keyKEK{"", "the key that was given", [keySize]byte(key)}
	for row, value := range l.rows {
		name, ok := strings.CutPrefix(row, kekRows)
		if ok && name != ShamirName && kek.opens(value) {
			kek.name = name
			return kek, nil
		}
	}
	kek.Forget()
	return nil, fmt.Errorf("%w: the store is unsealed by: %s", ErrForeign, kekNames(l.rows))
}

// Forgetter is a KEK that has its key in memory.
type Forgetter interface {
	KEK
	// Forget zeroes the key; the KEK wraps and unwraps no more.
	Forget()
}

// Unseal opens the keyring of a store with one of its KEKs. It reads store.Meta only, which a View of a sealed store shows.
// The error is one of ErrUninitialised, ErrNewer, ErrMissing (the store knows no such KEK), ErrWrongKey or ErrDamaged, or the
// KEK's or the store's own.
func Unseal(view store.View, kek KEK) (*Keyring, error) {
	l, err := ReadLocks(view)
	if err != nil {
		return nil, fmt.Errorf("refusing to start: %w", err)
	}
	return unseal(l.rows, kek)
}

func unseal(meta map[string][]byte, kek KEK) (*Keyring, error) {
	root, err := unwrapRoot(meta, kek)
	if err != nil {
		return nil, fmt.Errorf("refusing to start: %w", err)
	}
	defer clear(root)
	encoded, err := openRing(root, meta[keyringRow])
	if err != nil {
		return nil, fmt.Errorf("refusing to start: %w", err)
	}
	defer clear(encoded)
	k := &Keyring{}
	k.ring.Store(newRing(root, encoded))
	return k, nil
}

// Check says whether the store could be unsealed at all, by whatever: nil, ErrUninitialised, ErrNewer or ErrDamaged.
func (l Locks) Check() error { return check(l.rows) }

func check(meta map[string][]byte) error {
	if len(meta) == 0 {
		return ErrUninitialised
	}
	if err := checkSchema(meta[schemaRow]); err != nil {
		return err
	}
	if meta[keyringRow] == nil {
		return fmt.Errorf("the store has data but no keyring (%w): restore it from a backup", ErrDamaged)
	}
	return nil
}

// unwrapRoot is the root key, by one of the KEKs.
func unwrapRoot(meta map[string][]byte, kek KEK) ([]byte, error) {
	if err := check(meta); err != nil {
		return nil, err
	}
	_, wrapped, ok := rowOf(meta, kek)
	if _, file := kek.(*KeyFile); !ok && file {
		return nil, fmt.Errorf("%w: the store cannot be unsealed by %q, whose key was removed from it, or is of another store, but by: %s", ErrMissing, kek.Name(), kekNames(meta))
	}
	if !ok {
		return nil, fmt.Errorf("%w: the store cannot be unsealed by %q, but by: %s", ErrMissing, kek.Name(), kekNames(meta))
	}
	root, err := kek.Unwrap(wrapped)
	if err == nil && len(root) != keySize {
		clear(root)
		return nil, fmt.Errorf("the root key under %q is %w: use another key, or restore the store from a backup", kek.Name(), ErrDamaged)
	}
	return root, err
}

// Try says whether kek unseals the store: nil, or the error of Unseal.
func (l Locks) Try(kek KEK) error {
	root, err := unwrapRoot(l.rows, kek)
	clear(root)
	return err
}

// Prove says whether kek unseals the store that the Keyring is of: nil, or the error of Unseal. So people show, of a store
// that is unsealed, that they could have done it.
func (k *Keyring) Prove(l Locks, kek KEK) error {
	root, err := unwrapRoot(l.rows, kek)
	if err != nil {
		return err
	}
	defer clear(root)
	return k.locked(func(r *ring) error {
		if subtle.ConstantTimeCompare(root, r.root()) != 1 {
			return fmt.Errorf("the root key under %q is %w", kek.Name(), ErrDamaged)
		}
		return nil
	})
}

func checkSchema(row []byte) error {
	schema, err := strconv.ParseUint(string(row), 10, 32)
	switch {
	case err != nil:
		return fmt.Errorf("the store's schema version is %w: restore it from a backup", ErrDamaged)
	case schema > Schema:
		return fmt.Errorf("the store was %w (schema %d, this one knows %d): upgrade lessor", ErrNewer, schema, Schema)
	}
	return nil
}

func kekNames(meta map[string][]byte) string {
	var names []string
	for row := range meta {
		if name, ok := strings.CutPrefix(row, kekRows); ok {
			names = append(names, strconv.Quote(name))
		}
	}
	if len(names) == 0 {
		return "nothing"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// openRing unwraps and checks the row of the keyring.
func openRing(root, wrapped []byte) ([]byte, error) {
	encoded, err := unwrap(root, keyringLabel, wrapped)
	if err == nil {
		err = checkRing(encoded)
	}
	if err != nil {
		clear(encoded)
		return nil, fmt.Errorf("the store's keyring is %w: restore it from a backup", err)
	}
	return encoded, nil
}

// WrapRoot makes the row by which kek, too, unseals the store once the put is committed. Deleting that row takes it away
// again, from then on; it does not undo what a copy of both allows.
func (k *Keyring) WrapRoot(kek KEK) (store.Put, error) { return k.WrapRootAs(kek.Name(), kek) }

// WrapRootAs is WrapRoot under another name, one of IsKeyFile for a key file.
func (k *Keyring) WrapRootAs(name string, kek KEK) (store.Put, error) {
	var root []byte
	if err := k.locked(func(r *ring) error { root = slices.Clone(r.root()); return nil }); err != nil {
		return store.Put{}, err
	}
	defer clear(root)
	wrapped, err := kek.Wrap(root)
	if err != nil {
		return store.Put{}, fmt.Errorf("seal: wrapping the root key by %q: %w", kek.Name(), err)
	}
	return store.Put{Key: KEKKey(name), Value: wrapped}, nil
}

// Rotation says when terms end by themselves.
type Rotation struct {
	Disabled bool
	Interval time.Duration // 0: not by time
	Commits  uint64
}

// DefaultRotation is that of a store for which nobody said otherwise.
var DefaultRotation = Rotation{Interval: 90 * 24 * time.Hour, Commits: MaxCommits}

// MinCommits and MaxCommits bound Rotation.Commits, as Vault bounds its max_operations.
const (
	MinCommits = 1_000_000
	MaxCommits = 3_865_470_566
)

// Due says whether it is time to Rotate, with the store at position.
func (k *Keyring) Due(rotation Rotation, now time.Time, position uint64) bool {
	t := k.Term()
	return !rotation.Disabled && (rotation.Interval > 0 && now.Sub(t.Born) >= rotation.Interval || position >= t.Since+rotation.Commits)
}

// Term is the time in which one key seals rows.
type Term struct {
	ID    uint32 // from 1
	Born  time.Time
	Since uint64 // position of the store when it began
}

// Term is the current one; the zero Term after Forget.
func (k *Keyring) Term() (t Term) {
	_ = k.locked(func(r *ring) error {
		last := lastTerm(r.encoded())
		t = Term{last.id, last.born, last.since}
		return nil
	})
	return t
}

// Rotate begins a new term: the put adds its key to the keyring's row, beside all earlier ones. The new key is used only
// after the put is durable and was given to Adopt. Commit it with a check that the row is as it was: two nodes may
// rotate at once. Besides when Due, rotate after each restore, since commits then get numbers that were used before.
func (k *Keyring) Rotate(random io.Reader, now time.Time, position uint64) (store.Put, error) {
	var key [keySize]byte
	defer clear(key[:])
	if _, err := io.ReadFull(random, key[:]); err != nil {
		return store.Put{}, fmt.Errorf("seal: no randomness: %w", err)
	}
	put := store.Put{Key: metaKey(keyringRow)}
	err := k.locked(func(r *ring) error {
		next := term{id: lastTerm(r.encoded()).id + 1, born: now, since: position}
		encoded := appendTerm(slices.Clip(slices.Clone(r.encoded())), next, key[:])
		defer clear(encoded)
		put.Value = wrap(nil, r.root(), keyringLabel, encoded)
		return nil
	})
	return put, err
}

// Adopt takes over the keyring's row as somebody committed it, in this process or another, and seals under its last
// term from then on. An error leaves the Keyring as it was: the row is damaged, or older than what is known already.
func (k *Keyring) Adopt(row []byte) error {
	return k.locked(func(r *ring) error {
		encoded, err := openRing(r.root(), row)
		if err != nil {
			return err
		}
		defer clear(encoded)
		if !bytes.HasPrefix(encoded, r.encoded()) {
			return fmt.Errorf("the store's keyring lacks keys that it had: it was set back to an older state, or altered")
		}
		r.keep(r.root(), encoded)
		r.current.Store(lastTerm(encoded).id)
		return nil
	})
}

// Follow tells the Keyring where to read the keyring's row when it meets a row that was sealed in a later term than it
// knows: another node has rotated. read is called from Open, at times by several goroutines.
func (k *Keyring) Follow(read func() (row []byte, err error)) { k.source.Store(&read) }

// reload adopts the keyring's row as it is now, and says whether that went well.
func (k *Keyring) reload() bool {
	read := k.source.Load()
	if read == nil {
		return false
	}
	row, err := (*read)()
	return err == nil && k.Adopt(row) == nil
}

// locked calls f with the keys held still.
func (k *Keyring) locked(f func(*ring) error) error {
	r := k.ring.Load()
	if r == nil {
		return ErrForgotten
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keys == nil {
		return ErrForgotten
	}
	return f(r)
}
