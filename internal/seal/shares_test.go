package seal

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/internal/lessor"
	"pgregory.net/rapid"
)

// The field's laws, and values of FIPS 197, section 4.2 and 4.2.1.
func TestField(t *testing.T) {
	if got := multiply(0x57, 0x83); got != 0xc1 {
		t.Errorf("57·83 = %x", got)
	}
	if got := multiply(0x57, 0x13); got != 0xfe {
		t.Errorf("57·13 = %x", got)
	}
	for a := 1; a < 256; a++ {
		if got := multiply(byte(a), inverse(byte(a))); got != 1 {
			t.Fatalf("%x·%x⁻¹ = %x", a, a, got)
		}
	}
}

// Every threshold-subset of the shares brings the secret back; with one share less, each value of a byte is as likely as
// any other: for each there is exactly one missing share that would say so.
func TestSplitCombine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shares := rapid.IntRange(1, 6).Draw(t, "shares")
		threshold := rapid.IntRange(1, shares).Draw(t, "threshold")
		secret := rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "secret")
		coefficients := rapid.SliceOfN(rapid.Byte(), 4*(threshold-1), 4*(threshold-1)).Draw(t, "coefficients")
		values := split(secret, coefficients, shares)
		for subset := range 1 << shares {
			var points []byte
			var some [][]byte
			for i := range shares {
				if subset>>i&1 == 1 {
					points, some = append(points, byte(i+1)), append(some, values[i])
				}
			}
			if len(points) == threshold {
				if got := combine(points, some); !bytes.Equal(got, secret) {
					t.Fatalf("%d of %d, points %v: got %x, want %x", threshold, shares, points, got, secret)
				}
			}
			if len(points) == threshold-1 && threshold > 1 {
				seen := map[byte]bool{}
				for v := range 256 {
					seen[combine(append(slices.Clone(points), 200), append(slices.Clone(some), []byte{byte(v), 0, 0, 0}))[0]] = true
				}
				if len(seen) != 256 {
					t.Fatalf("%d shares of %d needed rule out %d values", len(points), threshold, 256-len(seen))
				}
			}
		}
	})
}

// shared is a keyring under a Shamir of its own.
func shared(t testing.TB, seed byte, shares, threshold int) (*Keyring, Locks, []Share) {
	t.Helper()
	kek, all, err := NewShamir(chance(seed), shares, threshold)
	if err != nil {
		t.Fatal(err)
	}
	k, meta := newKeyring(t, kek)
	kek.Forget()
	return k, Locks{rows: meta}, all
}

func TestQuorum(t *testing.T) {
	k, l, shares := shared(t, 3, 5, 3)
	if lock, ok := l.Find(ShamirName); !ok || lock.Threshold != 3 || lock.Shares != 5 || len(lock.ID) != 16 {
		t.Fatalf("the lock is %+v", lock)
	}
	_, other, foreign := shared(t, 4, 5, 3)
	var q Quorum
	give := func(key lessor.Secret, progress int, want error) {
		t.Helper()
		kek, _, err := q.Add(l, key)
		if !errors.Is(err, want) || q.Progress() != progress || kek != nil {
			t.Errorf("got %v, %v, progress %d; want %v, %d", kek, err, q.Progress(), want, progress)
		}
	}
	give(shares[4].Hex(), 1, nil)
	give(shares[4].Base64(), 1, nil) // again, and it does not count
	if _, again, _ := q.Add(l, shares[4].Hex()); !again {
		t.Error("a share that was given before is not told so")
	}
	// None of what is wrong costs what was given.
	give(foreign[0].Hex(), 1, ErrForeign)
	typo := []byte(shares[1].Hex().Reveal())
	typo[30] ^= 1
	give(lessor.NewSecret(typo), 1, ErrNoKey)
	altered := shares[1]
	altered.value()[0] ^= 1
	copy(altered.b[shareSize-slipSize:], slip(altered.b[:shareSize-slipSize]))
	give(altered.Hex(), 1, ErrForeign)
	moved := newShare([8]byte(shares[1].id()), 77, shares[1].value())
	give(moved.Base64(), 1, ErrForeign)
	zero := newShare([8]byte(shares[1].id()), 0, shares[1].value())
	give(zero.Base64(), 1, ErrForeign)
	for _, text := range []string{"", "not a key", "AAAA", strings.Repeat("ab", shareSize), strings.Repeat("ab", shareSize+1)} {
		give(lessor.NewSecret(text), 1, ErrNoKey)
	}
	give(lessor.NewSecret(strings.Repeat("ab", keySize)), 1, ErrForeign)
	give(lessor.NewSecret("  "+shares[0].Base64().Reveal()+"\n"), 2, nil)
	kek, _, err := q.Add(l, shares[2].Base64())
	if err != nil || kek == nil || q.Progress() != 0 {
		t.Fatalf("complete: %v, %v, progress %d", kek, err, q.Progress())
	}
	if err := k.Prove(l, kek); err != nil {
		t.Errorf("no proof: %v", err)
	}
	if err := k.Prove(other, kek); !errors.Is(err, ErrWrongKey) {
		t.Errorf("a proof for another store: %v", err)
	}
	again, err := unseal(l.rows, kek)
	if err != nil || hashes(again) != hashes(k) {
		t.Errorf("the shares do not unseal: %v", err)
	}
	text := fmt.Sprintf("%v %+v %#v %s", shares[0], shares[0], shares[0], shares[:1])
	if value := hex.EncodeToString(shares[0].value()); strings.Contains(text, value[:8]) || strings.Count(text, "[secret]") != 4 {
		t.Errorf("a share prints as %s", text)
	}
}

// What was given of a set that was replaced meanwhile counts no more.
func TestQuorumAcrossRekey(t *testing.T) {
	k, l, old := shared(t, 5, 3, 2)
	var q Quorum
	if _, _, err := q.Add(l, old[0].Hex()); err != nil {
		t.Fatal(err)
	}
	kek, fresh, err := NewShamir(chance(6), 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	put, err := k.WrapRoot(kek)
	if err != nil {
		t.Fatal(err)
	}
	l.rows[put.Name] = put.Value
	if kek, _, err := q.Add(l, fresh[0].Hex()); kek != nil || err != nil || q.Progress() != 1 {
		t.Errorf("got %v, %v, progress %d", kek, err, q.Progress())
	}
	if _, _, err := q.Add(l, old[1].Hex()); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "of an earlier set") {
		t.Errorf("a share of the earlier set: %v", err)
	}
	if kek, _, err := q.Add(l, fresh[2].Hex()); kek == nil || err != nil {
		t.Errorf("the new shares: %v", err)
	}
}

// A whole key, of a key file or of a store in memory, is enough by itself, also beside shares.
func TestQuorumOfOneKey(t *testing.T) {
	memory, err := NewKey(MemoryName, chance(8))
	if err != nil {
		t.Fatal(err)
	}
	shamir, shares, err := NewShamir(chance(9), 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	k, meta := newKeyring(t, memory, shamir)
	l := Locks{rows: meta}
	var q Quorum
	if kek, _, err := q.Add(l, shares[0].Hex()); kek != nil || err != nil {
		t.Fatal(kek, err)
	}
	kek, _, err := q.Add(l, memory.Text())
	if err != nil || kek == nil {
		t.Fatal(err)
	}
	if err := k.Prove(l, kek); err != nil {
		t.Error(err)
	}
	delete(l.rows, "kek/shamir")
	if _, _, err := q.Add(l, shares[1].Hex()); !errors.Is(err, ErrMissing) {
		t.Errorf("a share where there are none: %v", err)
	}
}

// Whoever writes to the store cannot lower the threshold, nor make the row accept other shares.
func TestShamirRow(t *testing.T) {
	_, l, shares := shared(t, 10, 3, 2)
	row := l.rows["kek/shamir"]
	kek := newShamir(combine([]byte{shares[0].point(), shares[1].point()}, [][]byte{shares[0].value(), shares[1].value()}))
	if _, err := kek.Unwrap(row); err != nil {
		t.Fatal(err)
	}
	for at := range row {
		harmed := slices.Clone(row)
		harmed[at] ^= 3
		if _, err := kek.Unwrap(harmed); err == nil {
			t.Fatalf("byte %d was altered unnoticed", at)
		}
	}
	for n := range row {
		if _, err := kek.Unwrap(row[:n]); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	for _, c := range [][2]int{{0, 0}, {1, 2}, {256, 2}, {3, 0}} {
		if _, _, err := NewShamir(chance(1), c[0], c[1]); err == nil {
			t.Errorf("%d shares, threshold %d", c[0], c[1])
		}
	}
	if _, all, err := NewShamir(chance(1), 255, 255); err != nil || len(all) != 255 {
		t.Error(err)
	}
}

// Shares that people keep in safes, and rows in stores, must stay readable.
func TestSharesFormat(t *testing.T) {
	const file = "testdata/shares.txt"
	if *update {
		_, l, shares := shared(t, 11, 3, 2)
		text := "row " + hex.EncodeToString(l.rows["kek/shamir"]) + "\nkeyring " + hex.EncodeToString(l.rows["keyring"]) + "\n"
		for _, s := range shares {
			text += "share " + s.Base64().Reveal() + "\n"
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(text))
	l := Locks{rows: map[string][]byte{"schema": []byte("1"), "kek/shamir": unhex(t, f[1]), "keyring": unhex(t, f[3])}}
	for _, pair := range [][2]int{{5, 7}, {5, 9}, {9, 7}} {
		var q Quorum
		_, _, err1 := q.Add(l, lessor.NewSecret(f[pair[0]]))
		kek, _, err2 := q.Add(l, lessor.NewSecret(f[pair[1]]))
		if err := errors.Join(err1, err2); err != nil || kek == nil {
			t.Fatalf("shares %v: %v", pair, err)
		}
		if _, err := unseal(l.rows, kek); err != nil {
			t.Errorf("shares %v: %v", pair, err)
		}
	}
}

// The keys lie in memory of their own, which Forget zeroes and gives back.
func TestLockedMemory(t *testing.T) {
	b, err := allocate(100)
	if len(b) != 100 || !bytes.Equal(b, make([]byte, 100)) {
		t.Fatalf("got %d bytes", len(b))
	}
	b[99] = 1
	release(b)
	k, _ := newKeyring(t)
	if got := k.Loose(); (got == nil) != (err == nil) {
		t.Errorf("the keys are loose: %v; other memory: %v", got, err)
	}
	k.Forget()
	if k.Loose() != nil || k.Term() != (Term{}) {
		t.Error("something was kept")
	}
}
