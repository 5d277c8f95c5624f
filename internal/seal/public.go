package seal

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/sha256"
	"fmt"
	"strings"

	"github.com/lessor-dev/lessor/internal/store"
)

// The key of a key file has a public half, so that a machine which is to unseal the store, too, gives away nothing: it sends the public
// half, and the root key is wrapped to that. This is HPKE (RFC 9180) with X-Wing (ML-KEM-768 and X25519), since what it
// wraps is in every copy of the store, for those who will have a quantum computer, too.
//
// A row so made: format byte, id of the public half (8), encapsulated key, ciphertext.

const publicFormat = 2

var (
	kem  = hpke.MLKEM768X25519()
	kdf  = hpke.HKDFSHA256()
	aead = hpke.AES256GCM()
)

// Public is the public half of a key.
type Public []byte

func (p Public) id() [8]byte {
	h := sha256.Sum256(append([]byte("lessor public key id"), p...))
	return [8]byte(h[:8])
}

// Check says whether p is one.
func (p Public) Check() error {
	if _, err := kem.NewPublicKey(p); err != nil {
		return fmt.Errorf("%w: it is no public half of a key file's key", ErrNoKey)
	}
	return nil
}

// Seal seals plaintext for whoever has the key. label says what for: it takes the same to open it.
func (p Public) Seal(label string, plaintext []byte) ([]byte, error) {
	key, err := kem.NewPublicKey(p)
	if err != nil {
		return nil, p.Check()
	}
	return hpke.Seal(key, kdf, aead, []byte(label), plaintext)
}

// private is the other half.
func (k *keyKEK) private() (hpke.PrivateKey, error) {
	seed, err := hkdf.Key(sha256.New, k.key[:], nil, "lessor key file: private half", 64)
	if err != nil {
		return nil, err
	}
	defer clear(seed)
	return kem.DeriveKeyPair(seed)
}

// Public is the public half of the file's key.
func (k *KeyFile) Public() (Public, error) {
	private, err := k.private()
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return private.PublicKey().Bytes(), nil
}

// Open opens what was sealed for the file's public half. The error is ErrDamaged if it was not, or not under this label.
func (k *KeyFile) Open(label string, sealed []byte) ([]byte, error) { return k.open(label, sealed) }

func (k *keyKEK) open(label string, sealed []byte) ([]byte, error) {
	private, err := k.private()
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	plaintext, err := hpke.Open(private, kdf, aead, []byte(label), sealed)
	if err != nil {
		return nil, ErrDamaged
	}
	return plaintext, nil
}

// WrapRootTo makes the row by which the key with the public half p, too, unseals the store, under a name of IsKeyFile, once the put is committed.
func (k *Keyring) WrapRootTo(name string, p Public) (store.Put, error) {
	id := p.id()
	put := store.Put{Key: KEKKey(name), Value: append([]byte{publicFormat}, id[:]...)}
	err := k.locked(func(r *ring) error {
		sealed, err := p.Seal(rootLabel, r.root())
		put.Value = append(put.Value, sealed...)
		return err
	})
	return put, err
}

// KeyFileOf is the name of the KEK of one node's own key file. That of the first is KeyFileName.
func KeyFileOf(node string) string { return KeyFileName + "/" + node }

// IsKeyFile says whether a KEK of that name is a key file's.
func IsKeyFile(name string) bool {
	return name == KeyFileName || strings.HasPrefix(name, KeyFileName+"/")
}

// Opened reports whether the row was made for the public half p.
func Opened(row store.Row, p Public) bool {
	id := p.id()
	return len(row.Value) > idSize && row.Value[0] == publicFormat && bytes.Equal(row.Value[1:1+idSize], id[:])
}

// opens says whether a row of store.Meta names the key.
func (k *keyKEK) opens(row []byte) bool {
	if len(row) <= idSize {
		return false
	}
	var id [8]byte
	switch row[0] {
	case kekFormat:
		id = keyID(k.key[:])
	case publicFormat:
		private, err := k.private()
		if err != nil {
			return false
		}
		id = Public(private.PublicKey().Bytes()).id()
	default:
		return false
	}
	return bytes.Equal(row[1:1+idSize], id[:])
}

// rowOf is the row by which kek unseals the store, and the name that it has there: a key file's key may be known under several, one for each
// node. ok is false if there is none.
func rowOf(meta map[string][]byte, kek KEK) (name string, row []byte, ok bool) {
	own, ok := meta[kekRows+kek.Name()]
	file, isFile := kek.(*KeyFile)
	if !isFile || ok && file.opens(own) {
		return kek.Name(), own, ok
	}
	for at, value := range meta {
		if name, is := strings.CutPrefix(at, kekRows); is && IsKeyFile(name) && file.opens(value) {
			return name, value, true
		}
	}
	return kek.Name(), own, ok
}

// NameOf is the name under which the store knows kek.
func (l Locks) NameOf(kek KEK) string {
	name, _, _ := rowOf(l.rows, kek)
	return name
}
