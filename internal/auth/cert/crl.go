package cert

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"slices"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/auth"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/store"
)

// crl is which of an authority's certificates are revoked. CBOR keys are on disk: never renumber, only append.
type crl struct {
	Issuer  []byte    `cbor:"1,keyasint"` // its name in DER
	Serials [][]byte  `cbor:"2,keyasint"` // big endian, sorted
	Next    time.Time `cbor:"3,keyasint,omitempty"`
}

const longestCRL = 1 << 20 // bytes in DER: some twenty thousand certificates

var crlFields = []engine.Field{
	{Name: "crl", Type: engine.String, Help: "the list, in PEM or DER as the authority signed it"},
	{Name: "url", Type: engine.String, Help: "not supported: lessor fetches no lists"},
}

func readCRL(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := named(r)
	if err != nil {
		return nil, err
	}
	var l crl
	row, err := load(r, crlPrefix, name, &l)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, &api.Error{Kind: api.NotFound}
	}
	serials := map[string]any{}
	for _, s := range l.Serials {
		serials[new(big.Int).SetBytes(s).String()] = map[string]any{}
	}
	reply := &engine.Reply{Data: map[string]any{"serials": serials}}
	if !l.Next.IsZero() && !r.Now.Before(l.Next) {
		reply.Warnings = []string{"the authority was to publish a newer list at " + l.Next.Format(time.RFC3339) + ": write it here"}
	}
	return reply, nil
}

func writeCRL(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := named(r)
	if err != nil {
		return nil, err
	}
	row, err := r.View.Get(key(r, crlPrefix, name))
	if err != nil {
		return nil, err
	}
	if r.Str("url") != "" {
		return nil, api.Errorf(api.Invalid, "url is not supported: lessor fetches no revocation lists; write the list itself as crl, whenever the authority publishes one")
	}
	der := []byte(r.Str("crl"))
	if block, _ := pem.Decode(der); block != nil {
		der = block.Bytes
	}
	if len(der) == 0 || len(der) > longestCRL {
		return nil, api.Errorf(api.Invalid, "one of 'crl' or 'url' must be provided: a list of at most %d bytes as crl", longestCRL)
	}
	parsed, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "failed to parse CRL")
	}
	l := crl{Issuer: parsed.RawIssuer, Next: parsed.NextUpdate}
	for _, e := range parsed.RevokedCertificateEntries {
		l.Serials = append(l.Serials, e.SerialNumber.Bytes())
	}
	slices.SortFunc(l.Serials, bytes.Compare)
	reply := save(row, l)
	changed(r, &reply.Txn)
	return reply, nil
}

func removeCRL(ctx context.Context, r *engine.Request) (*engine.Reply, error) {
	reply, err := remove(crlPrefix)(ctx, r)
	if err == nil {
		changed(r, &reply.Txn)
	}
	return reply, err
}

// changed writes the row that every commit writes which changes a list, so that logins rest on all of them.
func changed(r *engine.Request, txn *store.Txn) {
	k := key(r, "crls", "")
	txn.Put(k.Table, k.Name, auth.Encode(r.Now))
}

// revocations are the mount's lists. That none of them changes, and no other comes, goes into txn.
func revocations(r *engine.Request, txn *store.Txn) ([]*crl, error) {
	mark, err := r.View.Get(key(r, "crls", ""))
	if err != nil {
		return nil, err
	}
	txn.Require(mark)
	var out []*crl
	begin := key(r, crlPrefix, "").Name
	for row, err := range r.View.Scan(store.Config, begin, store.PrefixEnd(begin)) {
		if err != nil {
			return nil, err
		}
		l := &crl{}
		if err := auth.Decode(row.Value, l); err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// revoked reports whether a list names one of the certificates.
func revoked(lists []*crl, way []*x509.Certificate) bool {
	return slices.ContainsFunc(way, func(c *x509.Certificate) bool {
		return slices.ContainsFunc(lists, func(l *crl) bool {
			if !bytes.Equal(l.Issuer, c.RawIssuer) {
				return false
			}
			_, found := slices.BinarySearchFunc(l.Serials, c.SerialNumber.Bytes(), bytes.Compare)
			return found
		})
	})
}
