// Package seal keeps what the store must not know. It encrypts each row to its place, authenticates the chain, and
// hashes what is only ever compared; it opens a secret for a policy.Grant and for nothing else.
//
// The keys form three layers. A KEK (a key file, a recovery file, a key in shares; each alone suffices) wraps the root key;
// the root key wraps the keyring; the keyring holds one key for each purpose and, for rows, one key for each term. Only the last
// layer ever meets data.
//
// Everything is sealed by XAES-256-GCM (c2sp.org/XAES-256-GCM): the first half of a 24-byte nonce derives the key, the
// second half is AES-GCM's nonce. For the few long-lived values the first half is random, too, and is kept before
// the second. For rows it is the row's table and block of versions, which are known, so that each sealed row carries
// 12 bytes of nonce only. A block is 2^14 commits: a derived key would meet 2^32 random nonces only if each of them
// wrote 2^18 rows of one table, which no commit does.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
)

// Schema is the version of what Init lays down in store.Meta. Unseal refuses newer stores.
const Schema = 1

// The rows of store.Meta that belong to this package.
const (
	schemaRow  = "schema"  // Schema, in decimal
	keyringRow = "keyring" // the keyring, wrapped by the root key
	kekRows    = "kek/"    // kek/NAME: the root key, wrapped by the KEK of that name
)

// Errors of unsealing. The texts around them say what to do.
var (
	ErrUninitialised = errors.New("the store was never initialised")
	ErrNewer         = errors.New("written by a newer lessor")
	ErrMissing       = errors.New("key missing")
	ErrWrongKey      = errors.New("wrong key")
	ErrNoKey         = errors.New("this is no key")
	ErrForeign       = errors.New("this unseal key does not belong to this store")
	ErrDamaged       = errors.New("damaged, or altered by someone")
	ErrForgotten     = errors.New("seal: the keys were forgotten")
)

const (
	keySize   = 32
	halfSize  = 12 // of an XAES nonce
	tagSize   = 16
	wrapSize  = 2*halfSize + tagSize // what wrap adds
	blockBits = 14                   // commits that share a derived key, as a power of two
)

// half is the first half of an XAES nonce, the one that derives the key.
type half [halfSize]byte

// newAEAD derives the AES-256-GCM instance of key for the first half of the nonce: NIST SP 800-108 in counter mode
// with AES-CMAC. The second half is drawn at random for each message and stands before its ciphertext.
func newAEAD(key []byte, h half) cipher.AEAD {
	block := must(aes.NewCipher(key))
	var k1 [aes.BlockSize]byte
	block.Encrypt(k1[:], k1[:])
	double(&k1)
	derived := [keySize]byte{1: 1, 2: 'X', 17: 2, 18: 'X'}
	copy(derived[4:], h[:])
	copy(derived[20:], h[:])
	for i := range derived {
		derived[i] ^= k1[i%aes.BlockSize]
	}
	block.Encrypt(derived[:16], derived[:16])
	block.Encrypt(derived[16:], derived[16:])
	defer clear(derived[:])
	return must(cipher.NewGCMWithRandomNonce(must(aes.NewCipher(derived[:]))))
}

// double multiplies by x in GF(2^128), as CMAC makes its subkey.
func double(b *[aes.BlockSize]byte) {
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	carry := hi >> 63
	binary.BigEndian.PutUint64(b[:8], hi<<1|lo>>63)
	binary.BigEndian.PutUint64(b[8:], lo<<1^carry*0x87)
}

// wrap appends plaintext, sealed under key and label with a random nonce, to dst.
func wrap(dst, key []byte, label string, plaintext []byte) []byte {
	var h half
	_, _ = rand.Read(h[:]) // never fails
	return newAEAD(key, h).Seal(append(dst, h[:]...), nil, plaintext, []byte(label))
}

// unwrap opens what wrap sealed.
func unwrap(key []byte, label string, sealed []byte) ([]byte, error) {
	if len(sealed) < wrapSize {
		return nil, ErrDamaged
	}
	plaintext, err := newAEAD(key, half(sealed)).Open(nil, nil, sealed[halfSize:], []byte(label))
	if err != nil {
		return nil, ErrDamaged
	}
	return plaintext, nil
}

// keyID tells keys apart without telling anything about them.
func keyID(key []byte) [8]byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte("lessor key id"))
	return [8]byte(h.Sum(nil))
}

// must is for errors that a key of the right size rules out.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
