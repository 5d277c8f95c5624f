// Package cert logs programs in by the certificate of their TLS connection: the handshake has proved that they have its key. A role says
// which authorities, or which certificates themselves, are trusted, and what must stand in a certificate.
//
// Which role a certificate is good for is a pure function of the chain, the roles, the revocation lists and the time (match.go). Unless the
// method is told otherwise, a token is renewed only over a connection with the same key, and while that certificate would still log in.
//
// Rows, all in Config, since taking any of them away would grant power: "config", "cert/" + name, "crl/" + name, "crls" → when a list was changed last. Names are lower case.
package cert

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/auth"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// Backend is the auth method.
type Backend struct{}

type ops = map[lessor.Verb]engine.Handler

// Routes is the method table.
func (Backend) Routes() []engine.Route {
	return []engine.Route{
		{Pattern: "config", Help: "Settings of the method.", Fields: configFields, Ops: ops{lessor.Read: readConfig, lessor.Update: writeConfig}},
		{Pattern: "certs", Help: "List roles.", Ops: ops{lessor.List: list(certPrefix)}},
		{
			Pattern: "certs/{name}", Owned: true, Help: "Manage a role: certificates that are trusted, and the terms of their tokens.", Fields: roleFields,
			Exists: exists(certPrefix), Fold: true, Ops: ops{lessor.Read: readRole, lessor.Update: writeRole, lessor.Delete: remove(certPrefix)},
		},
		{Pattern: "crls", Help: "List revocation lists.", Ops: ops{lessor.List: list(crlPrefix)}},
		{
			Pattern: "crls/{name}", Help: "Manage a revocation list.", Fields: crlFields, Exists: exists(crlPrefix), Fold: true,
			Ops: ops{lessor.Read: readCRL, lessor.Update: writeCRL, lessor.Delete: removeCRL},
		},
		{
			Pattern: "login", Help: "Log in with the certificate of the connection.", Open: true, Subject: subject, Roles: true, Ops: ops{lessor.Update: login},
			Fields: []engine.Field{{Name: "name", Type: engine.String, Help: "the role; none: the first one that the certificate is good for"}},
		},
	}
}

const (
	certPrefix = "cert/"
	crlPrefix  = "crl/"
)

func key(r *engine.Request, prefix, name string) store.Key {
	return store.Key{Table: store.Config, Name: store.MountKey(r.Mount.Namespace, r.Mount.UUID, prefix, name)}
}

// named is what the path names.
func named(r *engine.Request) (string, error) {
	name := strings.ToLower(r.Param("name"))
	return name, auth.CheckName("name", name)
}

// load reads a row into v; there is none if the row says so.
func load(r *engine.Request, prefix, name string, v any) (store.Row, error) {
	row, err := r.View.Get(key(r, prefix, name))
	if err != nil || !row.Exists() {
		return row, err
	}
	return row, auth.Decode(row.Value, v)
}

func exists(prefix string) func(*engine.Request) (bool, error) {
	return func(r *engine.Request) (bool, error) {
		row, err := r.View.Get(key(r, prefix, strings.ToLower(r.Param("name"))))
		return row.Exists(), err
	}
}

func list(prefix string) engine.Handler {
	return func(_ context.Context, r *engine.Request) (*engine.Reply, error) {
		names, err := engine.List(r.View, store.Config, key(r, prefix, "").Name)
		if err != nil {
			return nil, err
		}
		return engine.Keys(names)
	}
}

func remove(prefix string) engine.Handler {
	return func(_ context.Context, r *engine.Request) (*engine.Reply, error) {
		name, err := named(r)
		if err != nil {
			return nil, err
		}
		reply := &engine.Reply{}
		k := key(r, prefix, name)
		reply.Txn.Delete(k.Table, k.Name)
		return reply, nil
	}
}

// save writes v where the row was read.
func save(row store.Row, v any) *engine.Reply {
	reply := &engine.Reply{}
	reply.Txn.Require(row)
	reply.Txn.Put(row.Table, row.Name, auth.Encode(v))
	return reply
}

// config is a row of store.Config. CBOR keys are on disk: never renumber, only append.
type config struct {
	DisableBinding bool `cbor:"1,keyasint,omitempty"` // tokens are renewed over any connection
	AliasMetadata  bool `cbor:"2,keyasint,omitempty"` // what tokens have as metadata goes into the alias, too
}

var configFields = []engine.Field{
	{Name: "disable_binding", Type: engine.Bool, Help: "renew tokens over any connection, not only over one with the same key"},
	{Name: "enable_identity_alias_metadata", Type: engine.Bool, Help: "keep what tokens have as metadata with the alias as well, for templates of policies"},
}

func readConfig(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	var c config
	if _, err := load(r, "config", "", &c); err != nil {
		return nil, err
	}
	return &engine.Reply{Data: map[string]any{"disable_binding": c.DisableBinding, "enable_identity_alias_metadata": c.AliasMetadata}}, nil
}

func writeConfig(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	var c config
	row, err := load(r, "config", "", &c)
	if err != nil {
		return nil, err
	}
	for name, to := range map[string]*bool{"disable_binding": &c.DisableBinding, "enable_identity_alias_metadata": &c.AliasMetadata} {
		if r.Has(name) {
			*to = r.Bool(name)
		}
	}
	return save(row, c), nil
}

// subject is the role that a login names. Nobody can guess at a key: nothing locks.
func subject(r *engine.Request) (engine.Subject, error) {
	name := strings.ToLower(r.Str("name"))
	if name == "" {
		return engine.Subject{}, nil
	}
	row, err := r.View.Get(key(r, certPrefix, name))
	if err != nil || !row.Exists() {
		return engine.Subject{}, err
	}
	return engine.Subject{Role: name, Known: true}, nil
}

// errCertificate refuses a certificate. It does not say which role it failed at, nor why.
var errCertificate = api.Errorf(api.Invalid, "invalid certificate or no client certificate supplied")

func login(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	chain := r.Op.Certificates
	if len(chain) == 0 {
		return nil, api.Errorf(api.Invalid, "client certificate must be supplied: this takes a TLS connection straight to lessor, with a certificate")
	}
	var c config
	configRow, err := load(r, "config", "", &c)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	reply.Txn.Require(configRow)
	lists, err := revocations(r, &reply.Txn)
	if err != nil {
		return nil, err
	}
	name, ro, err := find(r, &reply.Txn, chain, lists)
	if err != nil {
		return nil, err
	}
	if !auth.Within(ro.Token.BoundCIDRs, r.Op.Client) {
		return nil, api.Errorf(api.Unauthenticated, "permission denied")
	}
	leaf := chain[0]
	alias := identity(leaf)
	if alias == "" {
		return nil, api.Errorf(api.Invalid, "the certificate names nobody: it has no common name and no alternative name")
	}
	l := &engine.Login{Alias: alias, Name: ro.DisplayName, Role: name, Owned: "certs/" + name, Metadata: ro.metadata(name, leaf), Instance: keyHash(leaf), Token: ro.Token}
	if l.Name == "" {
		l.Name = name
	}
	if c.AliasMetadata {
		l.AliasMeta = l.Metadata
	}
	reply.Login = l
	return reply, nil
}

// find is the role that the login names, or the first one, that the chain is good for. What it rests on goes into txn.
func find(r *engine.Request, txn *store.Txn, chain []*x509.Certificate, lists []*crl) (string, *role, error) {
	if name := strings.ToLower(r.Str("name")); name != "" {
		var ro role
		row, err := load(r, certPrefix, name, &ro)
		if err != nil {
			return "", nil, err
		}
		if !row.Exists() || !ro.accepts(chain, lists, r.Now) {
			return "", nil, errCertificate
		}
		txn.Require(row)
		return name, &ro, nil
	}
	begin := key(r, certPrefix, "").Name
	for row, err := range r.View.Scan(store.Config, begin, store.PrefixEnd(begin)) {
		if err != nil {
			return "", nil, err
		}
		ro := &role{}
		if err := auth.Decode(row.Value, ro); err != nil {
			return "", nil, err
		}
		if ro.accepts(chain, lists, r.Now) {
			txn.Require(row)
			return row.Name[len(begin):], ro, nil
		}
	}
	return "", nil, errCertificate
}

// keyHash names a certificate's key: it stays the same when the certificate is renewed for the same key.
func keyHash(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// Renew refuses tokens of roles that are gone or whose policies have changed, and, unless the method does not bind tokens, those that
// come without their key, or with a certificate that would not log in any more. Others live on by what the role's terms are now.
func (Backend) Renew(r *engine.Request, txn *store.Txn, t *token.Token, terms *token.Lifetime) error {
	var c config
	configRow, err := load(r, "config", "", &c)
	if err != nil {
		return err
	}
	var ro role
	row, err := load(r, certPrefix, t.Role, &ro)
	switch {
	case err != nil:
		return err
	case !row.Exists():
		return api.Errorf(api.Invalid, "certificate %q no longer exists", t.Role)
	case !auth.SamePolicies(ro.Token.Policies, t.Policies):
		return api.Errorf(api.Invalid, "policies have changed, not renewing")
	}
	txn.Require(configRow)
	txn.Require(row)
	if !c.DisableBinding {
		lists, err := revocations(r, txn)
		if err != nil {
			return err
		}
		chain := r.Op.Certificates
		if len(chain) == 0 || keyHash(chain[0]) != t.Instance {
			return api.Errorf(api.Invalid, "client identity during renewal not matching client identity used during login")
		}
		if !ro.accepts(chain, lists, r.Now) {
			return errCertificate
		}
	}
	auth.Terms(&ro.Token, terms)
	return nil
}
