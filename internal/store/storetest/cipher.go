package storetest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"github.com/lessor-dev/lessor/internal/store"
)

// Cipher is a store.Cipher under one fixed key: AES-256-GCM with random nonces, HMAC-SHA-256. It is for tests of the store;
// lessor itself uses seal.Keyring.
type Cipher struct {
	aead cipher.AEAD
	key  [32]byte
}

var _ store.Cipher = (*Cipher)(nil)

// NewCipher returns the cipher of a key derived from seed.
func NewCipher(seed string) *Cipher {
	c := &Cipher{key: sha256.Sum256([]byte("storetest:" + seed))}
	k := c.mac("rows", nil)
	block, err := aes.NewCipher(k[:])
	if err != nil {
		panic(err)
	}
	if c.aead, err = cipher.NewGCMWithRandomNonce(block); err != nil {
		panic(err)
	}
	return c
}

func (c *Cipher) mac(purpose string, msg []byte) (sum [32]byte) {
	h := hmac.New(sha256.New, c.key[:])
	h.Write([]byte{byte(len(purpose))})
	h.Write([]byte(purpose))
	h.Write(msg)
	h.Sum(sum[:0])
	return sum
}

func place(k store.Key, version uint64) []byte {
	b := append(make([]byte, 0, 16+len(k.Name)), byte(k.Table))
	return append(binary.BigEndian.AppendUint64(b, version), k.Name...)
}

// Seal implements store.Cipher.
func (c *Cipher) Seal(dst []byte, k store.Key, version uint64, value []byte) []byte {
	return c.aead.Seal(dst, nil, value, place(k, version))
}

// Open implements store.Cipher.
func (c *Cipher) Open(dst []byte, k store.Key, version uint64, sealed []byte) ([]byte, error) {
	if len(sealed) < c.aead.Overhead() {
		return nil, errors.New("storetest: too short")
	}
	return c.aead.Open(dst, nil, sealed, place(k, version))
}

// MAC implements audit.Authority.
func (c *Cipher) MAC(encoded []byte) [32]byte { return c.mac("header", encoded) }

// Element implements audit.Authority.
func (c *Cipher) Element(table uint8, name string, version uint64) [32]byte {
	return c.mac("element", place(store.Key{Table: store.Table(table), Name: name}, version))
}

// Mask implements audit.Authority.
func (c *Cipher) Mask(incarnation, seq uint64, batch string, sum int) [32]byte {
	b := binary.BigEndian.AppendUint64([]byte{byte(sum)}, incarnation)
	b = binary.BigEndian.AppendUint64(b, seq)
	return c.mac("mask", append(b, batch...))
}

// Random is n random bytes.
func Random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}
