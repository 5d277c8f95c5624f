package audit

import (
	"encoding/binary"
	"math/bits"
)

// Sum is a number modulo 2^256, little endian: the sum of Authority.Element over rows. It does not depend on the
// rows' order, and a row comes and goes at constant cost.
type Sum = [32]byte

// Add is a+b modulo 2^256.
func Add(a, b Sum) (s Sum) {
	var carry uint64
	for i := 0; i < 32; i += 8 {
		var x uint64
		x, carry = bits.Add64(binary.LittleEndian.Uint64(a[i:]), binary.LittleEndian.Uint64(b[i:]), carry)
		binary.LittleEndian.PutUint64(s[i:], x)
	}
	return s
}

// Sub is a-b modulo 2^256.
func Sub(a, b Sum) (s Sum) {
	var borrow uint64
	for i := 0; i < 32; i += 8 {
		var x uint64
		x, borrow = bits.Sub64(binary.LittleEndian.Uint64(a[i:]), binary.LittleEndian.Uint64(b[i:]), borrow)
		binary.LittleEndian.PutUint64(s[i:], x)
	}
	return s
}
