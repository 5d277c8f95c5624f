package exporter

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// Headers says which request headers audit records keep. The zero Headers keeps none.
type Headers struct {
	Names  []string        // in lower case, sorted
	hashed map[string]bool // whether a Digest is kept instead of the value
}

// longestValue is the number of bytes of a value that a record keeps as it is; a longer one is hashed.
const longestValue = 512

var headers = store.MountKey(lessor.RootNamespace, "", "audit-header/")

// header is the row of one name. CBOR keys are on disk: never renumber, only append.
type header struct {
	Hashed bool `cbor:"1,keyasint"`
}

// LoadHeaders reads which headers are kept.
func LoadHeaders(v store.View) (Headers, error) {
	h := Headers{hashed: map[string]bool{}}
	for row, err := range v.Scan(store.Config, headers, store.PrefixEnd(headers)) {
		if err != nil {
			return Headers{}, err
		}
		var kept header
		if err := cbor.Unmarshal(row.Value, &kept); err != nil {
			return Headers{}, fmt.Errorf("exporter: damaged row %s: %w", row.Key, err)
		}
		name := strings.TrimPrefix(row.Name, headers)
		h.Names, h.hashed[name] = append(h.Names, name), kept.Hashed
	}
	return h, nil
}

// Hashed reports whether a header is kept, and whether as a hash.
func (h Headers) Hashed(name string) (hashed, kept bool) {
	hashed, kept = h.hashed[strings.ToLower(name)]
	return hashed, kept
}

// Keep makes what a record keeps of an operation's headers.
func (h Headers) Keep(k Keys, of map[string]string) []audit.Heading {
	var kept []audit.Heading
	for _, name := range slices.Sorted(maps.Keys(of)) {
		value := of[name]
		hashed, known := h.Hashed(name)
		switch {
		case !known:
		case hashed || len(value) > longestValue:
			kept = append(kept, audit.Heading{Name: name, Digest: Digest(k, value)})
		default:
			kept = append(kept, audit.Heading{Name: name, Value: value})
		}
	}
	return kept
}

// credentials are headers that records never keep in clear.
var credentials = []string{"authorization", "cookie", "proxy-authorization", "x-vault-mfa", "x-vault-token"}

// KeepHeader adds to txn that records keep a header, as a hash or as it is.
func KeepHeader(txn *store.Txn, name string, hashed bool) error {
	name = strings.ToLower(name)
	switch {
	case name == "" || len(name) > 128 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r) }):
		return wrong("%q is no name of a header", name)
	case !hashed && slices.Contains(credentials, name):
		return wrong("the header %q carries credentials: it is kept as a hash (hmac=true) or not at all", name)
	}
	b, err := encoding.Marshal(header{hashed})
	if err != nil {
		return err
	}
	txn.Put(store.Config, headers+name, b)
	return nil
}

// DropHeader adds to txn that records no longer keep a header.
func DropHeader(txn *store.Txn, name string) {
	txn.Delete(store.Config, headers+strings.ToLower(name))
}
