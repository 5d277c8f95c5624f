// Package lessor holds the domain's words, shared by every other package: the operation that is asked for, the
// principal who asks, the values that must not be seen, time and chance as arguments. It decides nothing and does
// nothing. Read it first, then package core.
package lessor

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"net/netip"
	"time"
)

// Verb is what an operation does to its path. The set is closed.
type Verb uint8

const (
	Read   Verb = iota + 1 // HTTP GET
	List                   // HTTP LIST, or GET ?list=true
	Create                 // HTTP POST or PUT where nothing is yet
	Update                 // HTTP POST or PUT where something is (a write before the existence check is Update, too)
	Patch                  // HTTP PATCH
	Delete                 // HTTP DELETE
)

var verbs = [...]string{Read: "read", List: "list", Create: "create", Update: "update", Patch: "patch", Delete: "delete"}

// String is the verb as policies and audit records spell it.
func (v Verb) String() string {
	if int(v) < len(verbs) && v != 0 {
		return verbs[v]
	}
	return "unknown"
}

// Writes reports whether the verb may change state.
func (v Verb) Writes() bool { return v >= Create }

// RootNamespace is the only namespace there is until namespaces exist. Its id begins every store key.
const RootNamespace uint32 = 1

// Op is one request, decoded and not yet trusted. It is a value: nobody writes to it after the server made it.
type Op struct {
	ID        string         // request id, unique, chosen by the server
	Verb      Verb           //
	Namespace uint32         // RootNamespace
	Path      string         // without "/v1/" and leading slash; "secret/data/app"; a List path ends in "/"
	Data      map[string]any // JSON object of the body or the query; numbers are json.Number; nil if none
	Token     Secret         // bearer token as presented; empty if none
	WrapTTL   time.Duration  // X-Vault-Wrap-TTL; 0 if the answer is not to be wrapped
	Client    netip.Addr     // the peer's address after trusted proxies were taken off
	Instance  string         // X-Lessor-Instance: which process of the holder this is; may be empty
	Renewable bool           // X-Lessor-Lease: renewable — the client will renew leases on static secrets
	Accept    string         // media types that the client would like, in its own words; may be empty
	Private   bool           // it came over TLS or from this machine: nobody on the way can have read or changed it
	Time      time.Time      // lease time at which the operation arrived

	// Certificates are the client's, its own first, then what it sent besides: the TLS handshake proved that it has the first one's key, and
	// nothing else about them. nil if it showed none.
	Certificates []*x509.Certificate

	// Headers are those of the request that audit records are to keep, by name in lower case; nil if none is.
	Headers map[string]string
}

// Digest identifies what exactly is asked for, by content: two Ops with the same digest ask for the same thing.
// Grants and approvals bind to it. Request id, time, token and headers are not part of it.
func (o *Op) Digest() [32]byte {
	h := sha256.New()
	var n [8]byte
	field := func(b []byte) {
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	binary.BigEndian.PutUint32(n[:4], o.Namespace)
	h.Write([]byte{'o', 'p', 1, byte(o.Verb)})
	h.Write(n[:4])
	field([]byte(o.Path))
	binary.BigEndian.PutUint64(n[:], uint64(o.WrapTTL))
	h.Write(n[:])
	if len(o.Data) > 0 {
		field(AppendJSON(nil, o.Data))
	}
	var d [32]byte
	h.Sum(d[:0])
	return d
}

// TokenKind is how a principal's token lives.
type TokenKind uint8

const (
	Service TokenKind = iota + 1 // stored, renewable, has children
	Batch                        // sealed into itself, not stored
)

func (k TokenKind) String() string {
	switch k {
	case Service:
		return "service"
	case Batch:
		return "batch"
	}
	return ""
}

// Principal is who asks, after the token (or the login) was verified. The zero Principal is an anonymous client.
// A background act has System set and no token.
type Principal struct {
	Entity      string            // entity id; empty for root and orphaned tokens without an alias
	EntityName  string            //
	EntityMeta  map[string]string //
	DisplayName string            // "approle-billing"
	Alias       Alias             // the alias through which the entity logged in
	Aliases     []Alias           // all aliases of the entity, for policy templates
	Groups      []Group           // direct and inherited, for policy templates
	Token       string            // keyed hash of the token, as the store's key has it; empty for batch tokens
	Accessor    string            // empty for batch tokens
	TokenKind   TokenKind         //
	Role        string            // role of the auth method that the login named
	Metadata    map[string]string // the token's own metadata
	Policies    []string          // token's and identity's policies united, sorted; what Decide uses
	Identity    []string          // those of them that come from entity and groups
	Root        bool              // holds the root policy
	System      string            // "reaper", "bootstrap", …: a background act; empty for requests
}

// Anonymous reports whether nobody in particular asks.
func (p *Principal) Anonymous() bool { return p.Accessor == "" && p.TokenKind == 0 && p.System == "" }

// Alias is one identity of an entity at one auth mount.
type Alias struct {
	ID            string            `json:"id"`
	Name          string            `json:"name"`
	MountAccessor string            `json:"mount_accessor"`
	Metadata      map[string]string `json:"metadata,omitempty"`
}

// Group is a named set of entities.
type Group struct {
	ID       string            `json:"id"`
	Name     string            `json:"name"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// Clock tells lease time. Implementations never run back and are safe for concurrent use.
type Clock interface {
	Now() time.Time
}

// SystemClock is the machine's clock.
type SystemClock struct{}

// Now returns the current time in UTC, with its monotonic reading.
func (SystemClock) Now() time.Time { return time.Now().UTC() }
