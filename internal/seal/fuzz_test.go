package seal

import (
	"bytes"
	"testing"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// FuzzBatchToken: a batch token opens as what was sealed; altered anywhere, or made up, it opens as nothing.
func FuzzBatchToken(f *testing.F) {
	k, _ := newKeyring(f)
	f.Add([]byte("payload"), uint16(5), byte(1), "hvb.AAAA")
	f.Add([]byte{}, uint16(0), byte(0x20), batchPrefix)
	f.Fuzz(func(t *testing.T, payload []byte, at uint16, by byte, made string) {
		good := k.SealToken(payload)
		if got, err := k.OpenToken(good); err != nil || !bytes.Equal(got, payload) {
			t.Fatalf("%x opens as %x (%v)", payload, got, err)
		}
		if by != 0 {
			b := []byte(good)
			b[int(at)%len(b)] ^= by
			if got, err := k.OpenToken(string(b)); err == nil {
				t.Fatalf("%q, altered to %q, opens as %x", good, b, got)
			}
		}
		if got, err := k.OpenToken(made); err == nil {
			t.Fatalf("%q opens as %x", made, got)
		}
	})
}

// FuzzShare: what is accepted as an unseal key is one to the last bit, and is shown as it was read.
func FuzzShare(f *testing.F) {
	_, shares, err := NewShamir(&ones{}, 3, 2)
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range shares {
		f.Add(s.Hex().Reveal())
		f.Add(s.Base64().Reveal())
	}
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		b, err := decode(lessor.NewSecret(text))
		if err != nil {
			return
		}
		s, err := parseShare(b)
		if err != nil {
			return
		}
		for _, shown := range []lessor.Secret{s.Hex(), s.Base64()} {
			again, err := decode(shown)
			if err != nil || !bytes.Equal(again, b) {
				t.Fatalf("%q is shown as another key", text)
			}
		}
		for i := range b {
			b[i] ^= 1
			if _, err := parseShare(b); err == nil {
				t.Fatalf("%q is accepted with byte %d altered", text, i)
			}
			b[i] ^= 1
		}
	})
}

// FuzzTerms: rows of unseal keys that are damaged are refused, never read beyond.
func FuzzTerms(f *testing.F) {
	k, _, err := NewShamir(&ones{}, 5, 3)
	if err != nil {
		f.Fatal(err)
	}
	row, err := k.Wrap(make([]byte, keySize))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(row)
	f.Add([]byte{shamirFormat})
	f.Fuzz(func(t *testing.T, row []byte) {
		terms, err := parseTerms(row)
		if err != nil {
			return
		}
		if terms.threshold < 1 || terms.shares < terms.threshold || terms.size() > len(row) {
			t.Fatalf("%x is %+v", row, terms)
		}
	})
}

// ones is a source of bytes that are no two alike for a while.
type ones struct{ n byte }

func (o *ones) Read(p []byte) (int, error) {
	for i := range p {
		o.n += 7
		p[i] = o.n
	}
	return len(p), nil
}
