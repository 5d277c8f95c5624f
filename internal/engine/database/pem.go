package database

import (
	"encoding/pem"
	"errors"
	"strings"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// certified takes apart a certificate and its key that come in one PEM text, as some of Vault's plugins have them.
func certified(both lessor.Secret) (certificate string, key lessor.Secret, err error) {
	var certificates, keys strings.Builder
	rest := []byte(both.Reveal())
	for {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		switch {
		case b.Type == "CERTIFICATE":
			certificates.Write(pem.EncodeToMemory(b))
		case strings.HasSuffix(b.Type, "PRIVATE KEY"):
			keys.Write(pem.EncodeToMemory(b))
		}
	}
	if !both.Empty() && (certificates.Len() == 0 || keys.Len() == 0) {
		return "", lessor.Secret{}, errors.New("tls_certificate_key is not a certificate and its key, in PEM")
	}
	return certificates.String(), lessor.NewSecret(keys.String()), nil
}
