package audit

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"math/big"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

var update = flag.Bool("update", false, "write the golden file anew")

// keys is an Authority under a fixed key.
type keys string

func (k keys) hmac(purpose string, msg []byte) (sum [32]byte) {
	h := hmac.New(sha256.New, []byte(k))
	h.Write([]byte(purpose))
	h.Write(msg)
	h.Sum(sum[:0])
	return sum
}

func (k keys) MAC(b []byte) [32]byte { return k.hmac("mac", b) }
func (k keys) Element(table uint8, name string, version uint64) [32]byte {
	return k.hmac("element", binary.BigEndian.AppendUint64(append([]byte{table}, name...), version))
}
func (k keys) Mask(incarnation, seq uint64, batch string, sum int) [32]byte {
	return k.hmac("mask", fmt.Appendf(nil, "%d %d %q %d", incarnation, seq, batch, sum))
}

// fill sets every field of v to something of its own.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Date(2026, 11, 24, 1, 2, 3, 456789000+*n, time.UTC)))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte{byte(*n), 0, 0xff})
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fallthrough
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), n)
		}
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n) & 0xff)
	default:
		panic("no value for " + v.Type().String())
	}
}

func fullRecord() (r Record) {
	n := 0
	fill(reflect.ValueOf(&r).Elem(), &n)
	return r
}

func fullHeader() (h Header) {
	n := 0
	fill(reflect.ValueOf(&h).Elem(), &n)
	h.Touched[0].Name = "bytes \x00\xff\xc3\x28"
	h.Batch = "\x00\xfe batch id"
	return h
}

// TestFormat holds the encodings to what is on disks out there: they must never change, only grow.
func TestFormat(t *testing.T) {
	record, header := fullRecord(), fullHeader()
	small := Header{Seq: 1, Incarnation: 1, Writer: "n", Time: time.Unix(1, 2)}
	var b strings.Builder
	line := func(name string, data []byte) { fmt.Fprintf(&b, "%s %s\n", name, hex.EncodeToString(data)) }
	line("record", record.Encode())
	line("empty-record", (&Record{}).Encode())
	leaf := Leaf(record.Encode())
	line("leaf", leaf[:])
	line("header", header.Encode())
	line("small-header", small.Seal(keys("k")))
	hash := small.Hash()
	line("hash", hash[:])
	root := Root([]Hash{Leaf([]byte("a")), Leaf([]byte("b")), Leaf([]byte("c"))})
	line("root", root[:])
	const file = "testdata/format.golden"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the format changed. Got:\n%s\nwant:\n%s", b.String(), want)
	}
}

func TestRoundTrip(t *testing.T) {
	record := fullRecord()
	if got, err := DecodeRecord(record.Encode()); err != nil || !reflect.DeepEqual(got, record) {
		t.Errorf("record: %+v, %v", got, err)
	}
	if got, err := DecodeRecord((&Record{}).Encode()); err != nil || !got.Time.IsZero() {
		t.Errorf("empty record: %+v, %v", got, err)
	}
	header := fullHeader()
	if got, err := DecodeHeader(header.Encode()); err != nil || !reflect.DeepEqual(got, header) {
		t.Errorf("header: %+v, %v", got, err)
	}
	enc := header.Encode()
	if !bytes.Equal(enc[len(enc)-32:], header.MAC[:]) {
		t.Error("a header does not end with its MAC")
	}
	small := Header{Seq: 1, Touched: []Touch{}}
	if got, err := DecodeHeader(small.Encode()); err != nil || got.Seq != 1 {
		t.Errorf("small header: %+v, %v", got, err)
	}
	for name, bad := range map[string][]byte{
		"empty":        nil,
		"cut":          enc[:len(enc)-1],
		"trailing":     append(slices.Clone(enc), 0),
		"no map":       {0x01},
		"longer map":   append([]byte{0xb8, enc[0] & 0x1f}, enc[1:]...), // the same header, length not shortest
		"duplicate":    {0xa2, 0x01, 0x01, 0x01, 0x02},
		"indefinite":   {0xbf, 0x01, 0x01, 0xff},
		"unknown keys": {0xa2, 0x01, 0x01, 0x18, 0x63, 0x01},
	} {
		if h, err := DecodeHeader(bad); err == nil {
			t.Errorf("%s was decoded: %+v", name, h)
		}
	}
}

func leaves(n int) []Hash {
	ls := make([]Hash, n)
	for i := range ls {
		ls[i] = Leaf(fmt.Appendf(nil, "record %d", i))
	}
	return ls
}

// TestMerkle compares with the transparency log of golang.org/x/mod.
func TestMerkle(t *testing.T) {
	if Root(nil) != (Hash{}) {
		t.Error("root of nothing")
	}
	var stored []tlog.Hash
	read := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		hs := make([]tlog.Hash, len(at))
		for i, j := range at {
			hs[i] = stored[j]
		}
		return hs, nil
	})
	for n := 1; n <= 40; n++ {
		hs, err := tlog.StoredHashes(int64(n-1), fmt.Appendf(nil, "record %d", n-1), read)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, hs...)
		ls := leaves(n)
		root := Root(ls)
		if want, err := tlog.TreeHash(int64(n), read); err != nil || Hash(want) != root {
			t.Fatalf("root of %d leaves: %x, want %x (%v)", n, root, want, err)
		}
		for i := range n {
			p := Prove(ls, i)
			if err := VerifyProof(p, n, i, ls[i], root); err != nil {
				t.Errorf("proof of %d of %d: %v", i, n, err)
			}
			if n == 1 {
				continue
			}
			if VerifyProof(p, n, (i+1)%n, ls[i], root) == nil || VerifyProof(p, n, i, ls[(i+1)%n], root) == nil {
				t.Errorf("proof of %d of %d holds for another record", i, n)
			}
			p[0][3] ^= 1
			if VerifyProof(p, n, i, ls[i], root) == nil || VerifyProof(p[1:], n, i, ls[i], root) == nil {
				t.Errorf("a wrong proof of %d of %d holds", i, n)
			}
		}
	}
	if VerifyProof(nil, 0, 0, Hash{}, Hash{}) == nil || VerifyProof(nil, 1, -1, Hash{}, Hash{}) == nil {
		t.Error("proof of nothing")
	}
}

func chainOf(n int, a Authority) []Header {
	var hs []Header
	var prev Hash
	for i := range n {
		h := Header{Seq: uint64(i + 1), Incarnation: 1, Writer: "n", Time: time.Unix(int64(i), 0).UTC(), Prev: prev, Batch: fmt.Sprint(i),
			Root: Root(leaves(i)), Count: uint32(i)}
		h.SetSums(a, [Sums]Sum{{1}, {2}})
		h.Seal(a)
		prev = h.Hash()
		hs = append(hs, h)
	}
	return hs
}

func TestChain(t *testing.T) {
	a := keys("k")
	good := chainOf(5, a)
	follow := func(hs []Header) error {
		c := Chain{Authority: a}
		for i := range hs {
			h, err := c.Next(hs[i].Encode())
			if err != nil {
				return err
			}
			if err := h.VerifyRecords(leaves(i)); err != nil {
				return err
			}
			if h.Sums(a) != [Sums]Sum{{1}, {2}} {
				return fmt.Errorf("sums of %d", h.Seq)
			}
		}
		return nil
	}
	if err := follow(good); err != nil {
		t.Fatal(err)
	}
	if (&Header{}).Sums(a) != [Sums]Sum{} {
		t.Error("sums of an empty store")
	}
	for want, change := range map[string]func(hs []Header) []Header{
		"header 4 follows header 2":         func(hs []Header) []Header { return append(hs[:2], hs[3:]...) },
		"header 2 follows header 0":         func(hs []Header) []Header { return hs[1:] },
		"header 3 has a wrong MAC":          func(hs []Header) []Header { hs[2].Writer = "m"; return hs },
		"header 5 has a wrong MAC":          func(hs []Header) []Header { hs[4].MAC[0] ^= 1; return hs },
		"header 4 has a wrong MAC":          func(hs []Header) []Header { hs[3].Power[1][0] ^= 1; return hs },
		"header 4 does not continue":        func(hs []Header) []Header { hs[2].Writer = "m"; hs[2].Seal(a); return hs },
		"header 4 is of an earlier time":    func(hs []Header) []Header { hs[3].Time = time.Unix(1, 0); hs[3].Seal(a); return hs },
		"header 5 is of incarnation 3":      func(hs []Header) []Header { hs[4].Incarnation = 3; hs[4].Seal(a); return hs },
		"header 5 is of incarnation 0":      func(hs []Header) []Header { hs[4].Incarnation = 0; hs[4].Seal(a); return hs },
		"commit 5 has 4 records where":      func(hs []Header) []Header { hs[4].Count = 3; hs[4].Seal(a); return hs },
		"records of commit 5 are not those": func(hs []Header) []Header { hs[4].Root[9] ^= 1; hs[4].Seal(a); return hs },
	} {
		if err := follow(change(slices.Clone(good))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	c := Chain{Authority: keys("another")}
	if _, err := c.Next(good[0].Encode()); err == nil {
		t.Error("verified under another key")
	}
	r := Resume(a, good[2], good[2].Hash())
	if _, err := r.Next(good[3].Encode()); err != nil || r.Hash() != good[3].Hash() {
		t.Errorf("resumed: %v", err)
	}
}

func TestSums(t *testing.T) {
	mod := new(big.Int).Lsh(big.NewInt(1), 256)
	number := func(s Sum) *big.Int { // little endian
		b := slices.Clone(s[:])
		slices.Reverse(b)
		return new(big.Int).SetBytes(b)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	random := func() (s Sum) {
		for i := range s {
			s[i] = []byte{0, 0xff, byte(rng.Uint32())}[rng.IntN(3)]
		}
		return s
	}
	for range 2000 {
		a, b := random(), random()
		want := new(big.Int).Add(number(a), number(b))
		if got := number(Add(a, b)); got.Cmp(want.Mod(want, mod)) != 0 {
			t.Fatalf("%x + %x = %x", a, b, got)
		}
		if Sub(Add(a, b), b) != a || Add(a, b) != Add(b, a) {
			t.Fatalf("%x and %x", a, b)
		}
	}
}

func FuzzDecode(f *testing.F) {
	r, h := fullRecord(), fullHeader()
	f.Add(r.Encode())
	f.Add(h.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := DecodeHeader(b); err == nil && !bytes.Equal(h.Encode(), b) {
			t.Errorf("two encodings of one header: %x", b)
		}
		if r, err := DecodeRecord(b); err == nil {
			again, err := DecodeRecord(r.Encode())
			if err != nil || !bytes.Equal(again.Encode(), r.Encode()) { // an empty list and none are the same
				t.Errorf("%+v becomes %+v, %v", r, again, err)
			}
		}
	})
}

func BenchmarkRecord(b *testing.B) {
	r := fullRecord()
	b.ReportAllocs()
	for b.Loop() {
		Leaf(r.Encode())
	}
}
