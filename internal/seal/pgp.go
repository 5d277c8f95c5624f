package seal

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Recipients are the public keys that something is encrypted to, one each (OpenPGP, RFC 9580).
type Recipients []*openpgp.Entity

// Bounds of public keys, in bytes of base64: anybody may send some, and reading one means checking what it signed.
const (
	longestRecipient  = 128 << 10
	longestRecipients = 1 << 20
)

// ParseRecipients reads public keys, each in base64 without armor, as Vault's clients send them.
func ParseRecipients(keys []string) (Recipients, error) {
	var all Recipients
	size := 0
	for i, key := range keys {
		if size += len(key); len(key) > longestRecipient || size > longestRecipients {
			return nil, api.Errorf(api.Invalid, "error parsing given PGP key: number %d is too long: export it without photos and other people's signatures", i+1)
		}
		b, err := base64.StdEncoding.DecodeString(key)
		if err != nil {
			return nil, api.Errorf(api.Invalid, "error decoding given PGP key: number %d is not base64", i+1)
		}
		e, err := openpgp.ReadEntity(packet.NewReader(bytes.NewReader(b)))
		if err != nil {
			return nil, api.Errorf(api.Invalid, "error parsing given PGP key: number %d: %v", i+1, err)
		}
		if _, ok := e.EncryptionKey(time.Now()); !ok {
			return nil, api.Errorf(api.Invalid, "PGP key number %d (%x) cannot encrypt, or has expired", i+1, e.PrimaryKey.Fingerprint)
		}
		all = append(all, e)
	}
	return all, nil
}

// Fingerprints are those of the keys, in hex.
func (r Recipients) Fingerprints() []string {
	all := make([]string, len(r))
	for i, e := range r {
		all[i] = hex.EncodeToString(e.PrimaryKey.Fingerprint)
	}
	return all
}

// Encrypt is text, for the i-th recipient only.
func (r Recipients) Encrypt(i int, text lessor.Secret) ([]byte, error) {
	var out bytes.Buffer
	w, err := openpgp.Encrypt(&out, r[i:i+1], nil, nil, nil)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write([]byte(text.Reveal())); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
