package rotator

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/store"
)

// Signing are the keys that requests to a webhook are signed with: one, or while it is changed two, which both sign. It is a row of store.Secrets, of the
// mount at sys/. Signatures are those of standardwebhooks.com, so that receivers in many languages have a library for them. CBOR keys are on disk: never
// renumber, only append.
type Signing struct {
	Keys [][]byte `cbor:"1,keyasint"` // the newest first
}

const keySize = 32 // bytes, of HMAC-SHA256

// signingKey is the row of a rotator's Signing.
func signingKey(mount, name string) store.Key {
	return store.Key{Table: store.Secrets, Name: store.MountKey(lessor.RootNamespace, mount, "rotator/", name)}
}

// LoadSigning reads the keys of a rotator, for a Grant of the mount at sys/; without keys if there are none.
func LoadSigning(v store.View, mount, name string, keys Opener, g policy.Grant) (*Signing, store.Row, error) {
	s := &Signing{}
	row, err := v.Get(signingKey(mount, name))
	if err != nil || !row.Exists() {
		return s, row, err
	}
	sealed, err := keys.Open(g, row)
	if err != nil {
		return nil, row, err
	}
	if err := cbor.Unmarshal([]byte(sealed.Reveal()), s); err != nil {
		return nil, row, fmt.Errorf("rotator: the signing keys are damaged") // cbor's errors may quote
	}
	return s, row, nil
}

// Save puts s in row's place, provided that it is as it was read.
func (s *Signing) Save(txn *store.Txn, row store.Row) error { return save(txn, row, s) }

// DropSigning deletes the keys of a rotator, if it has some.
func DropSigning(txn *store.Txn, v store.View, mount, name string) error {
	row, err := v.Get(signingKey(mount, name))
	if err == nil && row.Exists() {
		txn.Require(row)
		txn.Delete(row.Table, row.Name)
	}
	return err
}

// Renew makes a key, which signs besides the one before. If two sign already the newer of them is replaced: the older is the one that the receiver knows,
// since whoever asks again has not heard of the other. The key is returned as receivers are configured with it.
func (s *Signing) Renew(r *Rotator, random io.Reader, now time.Time) (lessor.Secret, error) {
	key := make([]byte, keySize)
	if _, err := io.ReadFull(random, key); err != nil {
		return lessor.Secret{}, fmt.Errorf("rotator: no randomness: %w", err)
	}
	if len(r.Keyed) == 0 {
		s.Keys = nil // of one that had the name before: a version that knew of no keys has left them
	}
	if n := len(s.Keys); n > 0 {
		s.Keys, r.Keyed = s.Keys[n-1:], r.Keyed[n-1:]
	}
	s.Keys, r.Keyed = append([][]byte{key}, s.Keys...), append([]int64{now.Unix()}, r.Keyed...)
	return lessor.NewSecret("whsec_" + base64.StdEncoding.EncodeToString(key)), nil
}

// Retire has the newest key sign alone.
func (s *Signing) Retire(r *Rotator) error {
	if len(s.Keys) < 2 {
		return api.Errorf(api.Invalid, "one key signs alone already: make another first")
	}
	s.Keys, r.Keyed = s.Keys[:1], r.Keyed[:1]
	return nil
}

// sign puts the signatures of a body into a request's header, each key's for itself. The id is another one for each request; receivers refuse one that they
// have seen, and a time that is more than a minute from theirs: what is late for longer must not land when lessor has proven
// old values dead (rotation.Watch).
func (s *Signing) sign(h http.Header, id string, at time.Time, body []byte) {
	stamp := strconv.FormatInt(at.Unix(), 10)
	var all []string
	for _, key := range s.Keys {
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.", id, stamp)
		mac.Write(body)
		all = append(all, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	h.Set("Webhook-Id", id)
	h.Set("Webhook-Timestamp", stamp)
	h.Set("Webhook-Signature", strings.Join(all, " "))
}
