package seal

// What follows is Shamir's secret sharing (CACM 22, 1979) over GF(2^8), each byte of the secret for itself. A secret is the
// value at 0 of a polynomial of degree threshold-1 whose other coefficients are random; share i is its value at i. Fewer
// shares than the threshold tell nothing at all. It takes the same time whatever the bytes are.
//
// Why not by a library that publishes commitments (Feldman's g^s beside the store): whoever copies the store today could
// then take the secret from it with a quantum computer some day. The digests of shares.go tell a wrong share just as well,
// and rest on a hash alone.

// split cuts secret into values at 1 … shares. coefficients are (threshold-1) × len(secret) random bytes.
func split(secret, coefficients []byte, shares int) [][]byte {
	n := len(secret)
	out := make([][]byte, shares)
	for i := range out {
		x := byte(i + 1)
		value := make([]byte, n)
		for at := len(coefficients) - n; at >= 0; at -= n { // Horner, the highest power first
			for j := range value {
				value[j] = multiply(value[j], x) ^ coefficients[at+j]
			}
		}
		for j := range value {
			value[j] = multiply(value[j], x) ^ secret[j]
		}
		out[i] = value
	}
	return out
}

// combine is the inverse of split: values[i] is the value at points[i], the points are different and none is 0. With fewer
// values than the threshold what comes out is random.
func combine(points []byte, values [][]byte) []byte {
	secret := make([]byte, len(values[0]))
	for i, x := range points {
		weight := byte(1) // Lagrange's basis polynomial of x, at 0
		for j, other := range points {
			if j != i {
				weight = multiply(weight, multiply(other, inverse(other^x)))
			}
		}
		for j := range secret {
			secret[j] ^= multiply(weight, values[i][j])
		}
	}
	return secret
}

// multiply is the product in GF(2^8) modulo x^8+x^4+x^3+x+1.
func multiply(a, b byte) (product byte) {
	for range 8 {
		product ^= a & -(b & 1)
		a = a<<1 ^ 0x1b&-(a>>7)
		b >>= 1
	}
	return product
}

// inverse is a^254, the inverse of any a but 0.
func inverse(a byte) byte {
	power := a
	for range 6 {
		power = multiply(multiply(power, power), a)
	}
	return multiply(power, power)
}
