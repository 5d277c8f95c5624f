// Package ldap leases accounts at directory servers. It knows configuration, roles, libraries and what Vault's clients expect of them; how a
// server is talked to is a Directory's.
//
// A mount leads to one directory. A credential that is made, and goes with its lease, walks through creds.go: creds (plans it) → Apply →
// Revert. So does an account of a library (library.go) that is checked out: its lease's end gives it a password that nobody knows. The
// password of an account that stays, a static role's (static.go) or lessor's own, walks through turn.go: rotateRole, rotateRoot or Plan → Turn.
package ldap

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"sync"

	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/target"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Directory is one configured server, or several that have the same tree. Calls are concurrent. Errors are of kind Upstream and free of
// secrets; those that say nothing about the request itself, only that the directory cannot be asked at present, are ErrUnreachable
// besides (errors.Is).
type Directory interface {
	// Ping logs in and asks for a sign of life.
	Ping(ctx context.Context) error
	// Locate finds the DN of an account by its name; ErrNoAccount if there is none.
	Locate(ctx context.Context, username string) (dn string, err error)
	// Shows reports whether the directory shows an entry of that DN.
	Shows(ctx context.Context, dn string) (bool, error)
	// Self finds the DN of the account that lessor logs in with, and the names by which Locate might find it. What the directory does not show is not among them;
	// if it does not show which entry that is, dn is what the configuration says.
	Self(ctx context.Context) (dn string, names []string, err error)
	// Login tries a password of an account in a connection of its own. An error says that the directory cannot be asked.
	Login(ctx context.Context, dn string, password lessor.Secret) (Verdict, error)
	// SetPassword changes an account's password, whatever it was. Again, with the same, it changes nothing.
	SetPassword(ctx context.Context, dn string, password lessor.Secret) error
	// Make makes entries, marked, in its steps' order. Again, for the same mark, it changes nothing. A step that holds a password is
	// not sent once ctx is over.
	Make(ctx context.Context, e Entries) error
	// Remove removes what was made, and says whether the directory shows none of it any more (nil). What is not there, or bears another
	// mark, is gone.
	Remove(ctx context.Context, e Entries) error
	// Marked lists the entries that bear lessor's mark.
	Marked(ctx context.Context) ([]Marked, error)
	// Use says which passwords may log lessor in from now on, likely ones first.
	Use(passwords []lessor.Secret)
	// Close ends all connections; those in use when they are given back. It does not wait.
	Close()
}

// Open prepares a Directory; it connects only when asked for something. Its error is for the administrator who wrote the configuration.
type Open func(c *Config, s Secrets) (Directory, error)

// Verdict is what a directory says of a password.
type Verdict = target.Verdict

// What it says.
const (
	Refused  = target.Refused
	Accepted = target.Accepted
	Unknown  = target.Unknown
	Barred   = target.Barred
)

// Entries are what a lease made, or is to make, at a directory.
type Entries struct {
	Mark  Mark
	DNs   []string // of those that it adds
	Steps []Step   // that make, or remove, them
}

// Verb is what a Step does.
type Verb uint8

const (
	Add      Verb = iota + 1 // an entry, with its Values
	Modify                   // an entry's attributes, by Changes
	Delete                   // an entry
	Password                 // gives an entry its Password, which the directory hashes
)

// Step is one operation at a directory. CBOR keys are on disk: never renumber, only append.
type Step struct {
	Verb     Verb          `cbor:"1,keyasint"`
	DN       string        `cbor:"2,keyasint"`
	Values   []Values      `cbor:"3,keyasint,omitempty"` // Add
	Changes  []Change      `cbor:"4,keyasint,omitempty"` // Modify
	Password lessor.Secret `cbor:"-"`                    // Password; never kept
	Secret   bool          `cbor:"-"`                    // it holds a password that somebody will know
}

// Values are those of one attribute. CBOR keys are on disk.
type Values struct {
	Attribute string   `cbor:"1,keyasint"`
	Values    []string `cbor:"2,keyasint"` // bytes, as the directory gets them
}

// ChangeKind is what becomes of an attribute's values.
type ChangeKind uint8

const (
	AddValues ChangeKind = iota + 1
	DeleteValues
	ReplaceValues
)

// Change is one change of a Step. CBOR keys are on disk.
type Change struct {
	Kind   ChangeKind `cbor:"1,keyasint"`
	Values Values     `cbor:"2,keyasint"`
}

// Mark is what entries bear of their lease: enough to find out whose they are, nothing that helps a reader of the directory. Name is that of the
// account, which deletion needs.
type Mark struct {
	Lease string // markOf the lease's id
	Mount string
	Role  string
	Name  string
}

// Marked is an entry that bears a mark of lessor's.
type Marked struct {
	Mark
	DN string
}

func digest(kind, text string) string {
	h := sha256.Sum256([]byte("lessor " + kind + "\x00" + text))
	return hex.EncodeToString(h[:12])
}

func markOf(lease string) string        { return digest("mark", lease) }
func mountMark(uuid string) string      { return digest("mount", uuid) }
func roleMark(uuid, name string) string { return digest("role", uuid+"\x00"+name) }
func (e *Engine) Mark(id string) string { return markOf(id) }
func (e *Engine) Close(mount string)    { e.open.close(mount) }
func (e *Engine) Shutdown()             { e.open.close("") }

// ErrUnreachable marks errors of a directory that cannot be asked at present: down, hanging, busy. Others say that it was asked and refused. ErrUntouched
// marks those of them that came before anything was sent: nothing can have happened.
var (
	ErrUnreachable = target.ErrUnreachable
	ErrUntouched   = target.ErrUntouched
)

// ErrNoAccount is the cause of the error that there is no account of a name.
var ErrNoAccount = errors.New("ldap: no such account")

// Engine is the ldap engine's backend. Its only state are open directories, and templates that it compiled.
type Engine struct {
	opener    Open
	open      directories
	templates sync.Map // text of a username template → *template.Username

	// Settle waits until what is revoked is gone; the core's.
	Settle func(ctx context.Context, l *lease.Lease) error
}

var (
	_ engine.Finder    = (*Engine)(nil)
	_ engine.Explainer = (*Engine)(nil)
	_ engine.Versioner = (*Engine)(nil)
)

// New makes the engine over directories as open opens them.
func New(open Open) *Engine {
	return &Engine{opener: open, Settle: func(context.Context, *lease.Lease) error { return nil }}
}

// Target is the one target of a mount.
const Target = "directory"

// Routes is the engine's method table.
func (e *Engine) Routes() []engine.Route {
	type ops = map[lessor.Verb]engine.Handler
	names := []engine.Field{{Name: "service_account_names", Type: engine.Strings, Help: "Accounts to check in; may be left out where only one is checked out."}}
	return []engine.Route{
		{Pattern: "config", Owned: true, Help: "Configure the directory.", Fields: configFields, Exists: e.exists(configRow),
			Ops: ops{lessor.Read: e.readConfig, lessor.Update: e.writeConfig, lessor.Delete: e.deleteConfig}},
		{Pattern: "rotate-root", Help: "Change the password of lessor's own account at the directory; nobody is told the new one.", Ops: ops{lessor.Update: e.rotateRoot}},
		{Pattern: "static-role/{name...}", Fold: true, Owned: true, Help: "Have lessor manage the password of an account that exists.", Fields: staticFields, Exists: e.exists(staticPrefix),
			Ops: ops{lessor.List: e.list(staticPrefix), lessor.Read: e.readStaticRole, lessor.Update: e.writeStaticRole, lessor.Delete: e.deleteStaticRole}},
		{Pattern: "static-cred/{name...}", Fold: true, Help: "Read the password of a static role.", Ops: ops{lessor.Read: e.staticCred}},
		{Pattern: "rotate-role/{name...}", Fold: true, Help: "Change the password of a static role now.", Ops: ops{lessor.Update: e.rotateRole}},
		{Pattern: "role/{name...}", Fold: true, Owned: true, Help: "Say how accounts of a role are made.", Fields: roleFields, Exists: e.exists(rolePrefix),
			Ops: ops{lessor.List: e.list(rolePrefix), lessor.Read: e.readRole, lessor.Update: e.writeRole, lessor.Delete: e.deleteRole}},
		{Pattern: "creds/{name...}", Fold: true, Help: "Get a leased account of a role.", Ops: ops{lessor.Read: e.creds}},
		{Pattern: "library/{name...}", Fold: true, Owned: true, Help: "Have a set of accounts that are lent one by one.", Fields: setFields, Exists: e.exists(setPrefix),
			Ops: ops{lessor.List: e.list(setPrefix), lessor.Read: e.readSet, lessor.Update: e.writeSet, lessor.Delete: e.deleteSet}},
		{Pattern: "library/{name...}/check-out", Fold: true, Help: "Borrow an account of a set.", Fields: []engine.Field{
			{Name: "ttl", Type: engine.Duration, Help: "Length of the lease, if shorter than the set's."},
		}, Ops: ops{lessor.Update: e.checkOut}},
		{Pattern: "library/{name...}/check-in", Fold: true, Help: "Give accounts back that the caller borrowed.", Fields: names, Ops: ops{lessor.Update: e.checkIn(false)}},
		{Pattern: "library/{name...}/status", Fold: true, Help: "Tell which accounts of a set are lent.", Ops: ops{lessor.Read: e.setStatus}},
		{Pattern: "library/manage/{name...}/check-in", Fold: true, Help: "Take accounts back, whoever borrowed them.", Fields: names, Ops: ops{lessor.Update: e.checkIn(true)}},
	}
}
