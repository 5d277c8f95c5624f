package node

import (
	"context"
	"encoding/base64"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/token"
)

// rooting is a root token under way to people who show keys that unseal the store. It leaves encrypted: to a one-time pad that whoever
// began was told, or to a PGP key.
type rooting struct {
	nonce  string
	pad    lessor.Secret
	to     seal.Recipients
	quorum seal.Quorum
}

// padSize is the length of a token, and so of its one-time pad.
var padSize = len(token.ServicePrefix) + base64.RawURLEncoding.EncodedLen(24)

func (n *Node) dropRooting() {
	if n.rooting != nil {
		n.rooting.quorum.Clear()
	}
	n.rooting = nil
}

// rootStatus tells how far a generation of a root token came.
func (n *Node) rootStatus(_ context.Context, l *life, _ *engine.Request) (*deed, error) {
	data, err := n.rootData(l)
	return &deed{data: data}, err
}

func (n *Node) rootData(l *life) (map[string]any, error) {
	if l == nil {
		return nil, errSealed
	}
	threshold, _ := required(n.locks(n.state.Load()))
	data := map[string]any{
		"nonce": "", "started": false, "progress": 0, "required": threshold, "complete": false, "encoded_token": "", "encoded_root_token": "",
		"pgp_fingerprint": "", "otp": "", "otp_length": padSize,
	}
	if a := n.rooting; a != nil {
		data["nonce"], data["started"], data["progress"], data["pgp_fingerprint"] = a.nonce, true, a.quorum.Progress(), a.fingerprint()
	}
	return data, nil
}

func (a *rooting) fingerprint() string {
	if len(a.to) == 0 {
		return ""
	}
	return a.to.Fingerprints()[0]
}

func (n *Node) rootBegin(_ context.Context, l *life, r *engine.Request) (*deed, error) {
	if l == nil {
		return nil, errSealed
	}
	if n.rooting != nil {
		return nil, api.Errorf(api.Invalid, "root generation already in progress")
	}
	a, made := &rooting{pad: r.Secret("otp")}, ""
	var err error
	switch key := r.Str("pgp_key"); {
	case !a.pad.Empty():
		if len(a.pad.Reveal()) != padSize {
			return nil, api.Errorf(api.Invalid, "OTP string is wrong length")
		}
	case key != "":
		if a.to, err = seal.ParseRecipients([]string{key}); err != nil {
			return nil, err
		}
	default:
		if made, err = base62(padSize); err != nil {
			return nil, err
		}
		a.pad = lessor.NewSecret(made)
	}
	if a.nonce, err = n.newNonce(); err != nil {
		return nil, err
	}
	n.rooting = a
	data, err := n.rootData(l)
	if err != nil {
		return nil, err
	}
	data["otp"] = lessor.NewSecret(made)
	return &deed{note: "generation of a root token begun", free: true, data: data}, nil
}

func (n *Node) rootCancel(_ context.Context, l *life, _ *engine.Request) (*deed, error) {
	if l == nil {
		return nil, errSealed
	}
	if n.rooting == nil {
		return &deed{}, nil
	}
	n.dropRooting()
	return &deed{note: "generation of a root token cancelled", free: true}, nil
}

// rootUpdate takes one key. With enough of them it makes the token.
func (n *Node) rootUpdate(_ context.Context, l *life, r *engine.Request) (*deed, error) {
	key := r.Secret("key")
	switch a := n.rooting; {
	case l == nil:
		return nil, errSealed
	case key.Empty():
		return nil, api.Errorf(api.Invalid, "'key' must be specified in request body as JSON")
	case a == nil:
		return nil, api.Errorf(api.Invalid, "no root generation in progress")
	case r.Str("nonce") != a.nonce:
		return nil, wrongNonce("root generation", a.nonce)
	}
	a := n.rooting
	before := a.quorum.Progress()
	enough, err := n.proven(l, &a.quorum, key)
	if err != nil {
		return nil, err
	}
	data, err := n.rootData(l)
	if err != nil {
		return nil, err
	}
	data["otp_length"] = 0
	if !enough {
		return &deed{note: "unseal key taken for a root token", data: data}, nil
	}
	d := &deed{note: "root token generated", data: data, after: n.dropRooting}
	view, err := l.db.View()
	if err != nil {
		return nil, err
	}
	defer view.Close()
	id, accessor, err := l.core.MintRoot(view, &d.txn, bootstrapTTL)
	if err != nil {
		return nil, err
	}
	d.named = accessor
	encoded, err := a.encode(id)
	if err != nil {
		return nil, err
	}
	data["complete"], data["progress"], data["encoded_token"], data["encoded_root_token"] = true, max(before+1, data["required"].(int)), encoded, encoded
	return d, nil
}

// encode is the token as it leaves: under the pad, as Vault's clients take it off again, or to the PGP key.
func (a *rooting) encode(id lessor.Secret) (string, error) {
	if len(a.to) > 0 {
		b, err := a.to.Encrypt(0, id)
		return encodeBase64(b), err
	}
	b, pad := []byte(id.Reveal()), a.pad.Reveal()
	for i := range b {
		b[i] ^= pad[i]
	}
	return base64.RawStdEncoding.EncodeToString(b), nil
}
