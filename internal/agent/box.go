package agent

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"os"
)

// box encrypts what the agent keeps, under a key of this process that lies in a page of its own: it is never swapped out, nor in a dump. What a cipher makes of the key while
// it is at work is on the heap for that moment. Safe for concurrent use.
type box struct {
	key []byte // of the page; 32 bytes
}

// newBox makes a key. The error says why its page may be swapped out; the box works all the same.
func newBox() (*box, error) {
	page, err := lockedPage(os.Getpagesize())
	b := &box{key: page[:32]}
	_, _ = rand.Read(b.key) // never fails
	return b, err
}

func (b *box) cipher() cipher.AEAD {
	block, err := aes.NewCipher(b.key)
	if err != nil {
		panic(err) // not with a key of that length
	}
	seal, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return seal
}

// Seal implements client.Sealer.
func (b *box) Seal(plain []byte) []byte { return b.cipher().Seal(nil, nil, plain, nil) }

// Open implements client.Sealer.
func (b *box) Open(sealed []byte) []byte {
	plain, err := b.cipher().Open(nil, nil, sealed, nil)
	if err != nil {
		panic(fmt.Sprintf("agent: memory is damaged: %v", err))
	}
	return plain
}
