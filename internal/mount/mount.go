// Package mount knows what is mounted where: the entries of secrets engines and auth methods, their tuning, and the
// routing of a path to its entry. Entries are rows of store.Mounts; a Table is derived from them and immutable.
package mount

import (
	"time"
)

// Class separates secrets engines from auth methods.
type Class string

const (
	Secret Class = "secret"
	Auth   Class = "auth"
)

// Entry is one mount. CBOR keys are on disk: never renumber, only append.
type Entry struct {
	UUID        string            `cbor:"1,keyasint"` // 16 raw bytes; begins the store keys of all that the mount keeps
	Namespace   uint32            `cbor:"2,keyasint"`
	Path        string            `cbor:"3,keyasint"` // "secret/", "auth/approle/": with trailing slash, auth ones with "auth/"
	Class       Class             `cbor:"4,keyasint"`
	Type        string            `cbor:"5,keyasint"` // "kv", "database", "approle", …
	Accessor    string            `cbor:"6,keyasint"` // "kv_1a2b3c4d"
	Description string            `cbor:"7,keyasint,omitempty"`
	Config      Config            `cbor:"8,keyasint"`
	Options     map[string]string `cbor:"9,keyasint,omitempty"` // kv: "version"; "lease": shown | quiet | off
	Owner       string            `cbor:"10,keyasint,omitempty"`
	Created     time.Time         `cbor:"11,keyasint"`
	Local       bool              `cbor:"12,keyasint,omitempty"`
	SealWrap    bool              `cbor:"13,keyasint,omitempty"`
	Builtin     bool              `cbor:"14,keyasint,omitempty"` // sys, identity, cubbyhole, auth/token: cannot be disabled or moved
	Removing    bool              `cbor:"15,keyasint,omitempty"` // disabled, its leases are being reverted; routes nothing
	Entropy     bool              `cbor:"16,keyasint,omitempty"` // external_entropy_access, as it was asked for
	Moves       []Move            `cbor:"17,keyasint,omitempty"` // the latest moves, oldest first
	Upgrading   bool              `cbor:"18,keyasint,omitempty"` // kv: what it kept as version 1 is being made version 2; serves nothing meanwhile
}

// Move is one change of a mount's path. What it kept stays where it is: store keys begin with its UUID.
type Move struct {
	ID   string `cbor:"1,keyasint"` // that clients ask for
	From string `cbor:"2,keyasint"`
	To   string `cbor:"3,keyasint"`
}

// MostMoves is how many moves of a mount are remembered.
const MostMoves = 8

// Config is what tuning changes. Durations are zero where the server's default holds.
type Config struct {
	DefaultTTL           time.Duration `cbor:"1,keyasint,omitempty"`
	MaxTTL               time.Duration `cbor:"2,keyasint,omitempty"`
	ForceNoCache         bool          `cbor:"3,keyasint,omitempty"`
	ListingVisibility    string        `cbor:"4,keyasint,omitempty"` // "", "hidden", "unauth"
	TokenType            string        `cbor:"5,keyasint,omitempty"` // auth: default-service, default-batch, service, batch
	PassthroughHeaders   []string      `cbor:"6,keyasint,omitempty"`
	AllowedHeaders       []string      `cbor:"7,keyasint,omitempty"`
	AuditNonHMACRequest  []string      `cbor:"8,keyasint,omitempty"`
	AuditNonHMACResponse []string      `cbor:"9,keyasint,omitempty"`
	Lockout              *Lockout      `cbor:"10,keyasint,omitempty"` // auth: nil where the server's default holds
	ManagedKeys          []string      `cbor:"11,keyasint,omitempty"`
	DelegatedAccessors   []string      `cbor:"12,keyasint,omitempty"`
	IdentityTokenKey     string        `cbor:"13,keyasint,omitempty"`
	TrimSlashes          bool          `cbor:"14,keyasint,omitempty"`
}

// Lockout is what tuning says of users who fail to log in (user_lockout_config). Zero fields are not said: there the server's
// own setting holds, then the default.
type Lockout struct {
	Threshold    uint64        `cbor:"1,keyasint,omitempty"` // failures in a row that lock a user out
	Duration     time.Duration `cbor:"2,keyasint,omitempty"` // how long the user stays locked out
	CounterReset time.Duration `cbor:"3,keyasint,omitempty"` // time without a failure after which the count begins anew
	Disabled     bool          `cbor:"4,keyasint,omitempty"` // nobody is locked out here
}

// Leases reports whether there are leases of who reads static secrets of the mount: its option "lease" is not off.
func (e *Entry) Leases() bool { return e.Options["lease"] != "off" }

// Backend is the name of the backend that serves the mount: its type, but for KV, of which each version is a backend.
func (e *Entry) Backend() string {
	if e.Type == "kv" && e.Options["version"] == "2" {
		return "kv-v2"
	}
	return e.Type
}
