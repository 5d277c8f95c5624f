// Package database leases accounts at databases. It knows connections, roles and what Vault's clients expect of them; how
// an account is made and removed at one kind of database is a Driver's.
//
// A credential walks through creds.go: creds (plans it) → Apply → Renew … → Revert. The password of an account that stays, a static role's
// (static.go) or lessor's own, walks through turn.go: rotateRole, rotateRoot or Plan → Turn.
package database

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/target"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/template"
)

// Driver is one kind of database. It is stateless and safe for concurrent use.
type Driver interface {
	// Plugin is the name that clients configure it by ("postgresql-database-plugin").
	Plugin() string
	// Usernames is the default template of usernames, and how long they may be, in bytes.
	Usernames() (template string, longest int)
	// Check says what is wrong with a connection, in words for the administrator who wrote it. It touches nothing.
	Check(c *Connection, s Secrets) error
	// CheckRole does the same for a role's statements, those of creation included: a Driver that has none of its own refuses a role without.
	CheckRole(s *Statements) error
	// CheckRotation does the same for the account of a static role, and for statements that change a password.
	CheckRotation(username string, statements []string) error
	// CheckPassword says whether an account's password can be changed to this one.
	CheckPassword(c *Connection, password lessor.Secret) error
	// Account is the name of the account that lessor logs in with.
	Account(c *Connection) (string, error)
	// SameServer reports whether two connections may lead to the same accounts.
	SameServer(a, b *Connection) bool
	// Open prepares sessions with the database; it connects only when asked for something.
	Open(c *Connection, s Secrets) (Database, error)
}

// Database is one configured connection: a bounded set of sessions. Calls are concurrent. Errors are of kind Upstream and
// free of secrets; those that say nothing about the request itself, only that the database cannot be asked at
// present, are ErrUnreachable besides (errors.Is).
type Database interface {
	// Ping logs in and asks for a sign of life.
	Ping(ctx context.Context) error
	// Create makes the account, marked with its lease. Again, for the same lease, it changes nothing.
	Create(ctx context.Context, a Account) error
	// Renew moves the account's end to a.Until.
	Renew(ctx context.Context, a Account) error
	// Remove ends logins and sessions of the accounts, removes them, and says of each whether it is gone (nil). What is not
	// there, or bears another lease's mark, is gone. A Create of theirs that is still under way is ended first.
	Remove(ctx context.Context, as []Account) []error
	// Use says which passwords may log lessor in from now on, likely ones first. Sessions that are open stay until they are given back.
	Use(passwords []lessor.Secret)
	// Login tries a password of an account in a session of its own. An error says that the database cannot be asked.
	Login(ctx context.Context, username string, password lessor.Secret) (Verdict, error)
	// SetPassword changes the password of an account that is not lessor's making. Again, with the same, it changes nothing. What an earlier call
	// for the same account left under way is ended first.
	SetPassword(ctx context.Context, c Change) error
	// Changeable is what would keep SetPassword from making a change, whatever the password, as far as the database says without anything being changed: there is
	// no such account, or lessor may not change it. Statements of somebody's own are not run, and so what becomes of them is not known. nil: nothing is
	// known to.
	Changeable(ctx context.Context, c Change) error
	// Sessions lists the sessions that the accounts have open now, wherever they come from, lessor's own included. It changes nothing. Whoever gets
	// an error knows nothing: neither that the accounts are in use nor that they are not. A database that cannot show sessions at all returns
	// ErrUnseen.
	Sessions(ctx context.Context, usernames []string) ([]Session, error)
	// End ends the sessions that an account has open, and returns when the database says that they are over. New ones are not kept away: whoever
	// wants that changes the password first. Again, when there is none, it changes nothing.
	End(ctx context.Context, username string) error
	// Marked lists the accounts that bear lessor's mark.
	Marked(ctx context.Context) ([]Marked, error)
	// Close ends all sessions; those in use when they are given back. It does not wait.
	Close()
}

// Account is a leased account as a Driver sees it.
type Account struct {
	Lease    string // id of the lease; marks the account
	Mount    string // what accounts of its mount bear besides; empty: nothing
	Role     string // what accounts of its role bear besides those of its mount; empty: nothing
	Found    string // the mark that it bears, where that is not its lease's: it was found, and a lease made for it
	Username string
	Password lessor.Secret // Create only
	Until    time.Time     // end of the lease; the database gets an allowance for clocks that differ, Skew
	Statements
}

// Verdict is what a database says of a password.
type Verdict = target.Verdict

// What it says.
const (
	Refused  = target.Refused
	Accepted = target.Accepted
	Unknown  = target.Unknown
	Barred   = target.Barred
)

// Change is a new password for an account.
type Change struct {
	Name       string // of the change's lock: two for one account do not overlap
	Username   string
	Password   lessor.Secret
	Statements []string        // empty: the Driver's own
	Self       []lessor.Secret // not empty: the account does it itself, logged in by one of these
}

// Session is one that an account has open at a database, as far as the database tells.
type Session struct {
	Username    string
	Client      string    // address it comes from, without the port; "local" for a socket of the same machine; empty: not told
	Application string    // what the client calls itself, at most LongestApplication bytes; may be empty: it is the client's word
	Since       time.Time // when it was opened, by the database's clock; zero: not told
}

// LongestApplication is how much is kept of what a client calls itself, in bytes.
const LongestApplication = 64

// Skew is how much later than its lease an account ends at the database by itself. The database's clock may be ahead of
// lessor's by as much without a lease ending early; the reaper removes the account in time, this is the net below it.
const Skew = time.Minute

// Statements are those of a role, as the administrator wrote them. Empty lists stand for the Driver's defaults; not every one has some for Creation.
type Statements struct {
	Creation   []string `cbor:"1,keyasint,omitempty"`
	Renewal    []string `cbor:"2,keyasint,omitempty"`
	Revocation []string `cbor:"3,keyasint,omitempty"`
	Rollback   []string `cbor:"4,keyasint,omitempty"`
}

// Bears is the mark by which the account is known to be the one that is meant.
func (a *Account) Bears() string { return cmp.Or(a.Found, Mark(a.Lease)) }

// Marked is an account that bears lessor's mark.
type Marked struct {
	Username string
	Mark     string // Mark(id of its lease)
	Mount    string // Account.Mount
	Role     string // Account.Role; empty: it bears none
}

// Mark is what an account carries of its lease: enough to find out whose it is, nothing that helps a reader of the
// database's catalog.
func Mark(lease string) string {
	h := sha256.Sum256([]byte("lessor mark\x00" + lease))
	return hex.EncodeToString(h[:16])
}

// mountMark is what accounts that a mount made bear besides. It tells them from those of other mounts, and of other lessors.
func mountMark(uuid string) string {
	h := sha256.Sum256([]byte("lessor mount\x00" + uuid))
	return hex.EncodeToString(h[:12])
}

// roleMark is what accounts that a role made bear besides: by it a stray is removed as its role says.
func roleMark(uuid, name string) string {
	h := sha256.Sum256([]byte("lessor role\x00" + uuid + "\x00" + name))
	return hex.EncodeToString(h[:12])
}

// ErrUnreachable marks errors of a database that cannot be asked at present: down, hanging, out of sessions. Others say that
// it was asked and refused. ErrUntouched marks those of them that came before anything was sent: nothing can have happened.
var (
	ErrUnreachable = target.ErrUnreachable
	ErrUntouched   = target.ErrUntouched
)

// ErrUnseen marks the error of a database that shows lessor no sessions: there is no evidence to be had, whatever it is asked.
var ErrUnseen = errors.New("database: sessions are not shown")

// Engine is the database engine's backend. Its only state are open sessions, and templates that it compiled.
type Engine struct {
	drivers   map[string]Driver
	open      pools
	templates sync.Map // text, after the plugin's name → *template.Username
}

var (
	_ engine.Finder    = (*Engine)(nil)
	_ engine.Versioner = (*Engine)(nil)
)

// New makes the engine, with the kinds of database that it knows.
func New(drivers ...Driver) *Engine {
	e := &Engine{drivers: map[string]Driver{}}
	for _, d := range drivers {
		e.drivers[d.Plugin()] = d
	}
	return e
}

// Routes is the engine's method table.
func (e *Engine) Routes() []engine.Route {
	type ops = map[lessor.Verb]engine.Handler
	return []engine.Route{
		{Pattern: "config", Help: "List the configured connections.", Ops: ops{lessor.List: e.list(connectionPrefix)}},
		{Pattern: "config/{name}", Owned: true, Help: "Configure a connection to a database.", Fields: connectionFields, Exists: e.exists(connectionPrefix),
			Ops: ops{lessor.Read: e.readConnection, lessor.Update: e.writeConnection, lessor.Delete: e.deleteConnection}},
		{Pattern: "reset/{name}", Help: "Close a connection's sessions; new ones are opened as they are needed.", Ops: ops{lessor.Update: e.reset}},
		{Pattern: "roles", Help: "List the roles.", Ops: ops{lessor.List: e.list(rolePrefix)}},
		{Pattern: "roles/{name}", Owned: true, Help: "Say how accounts of a role are made.", Fields: roleFields, Exists: e.exists(rolePrefix),
			Ops: ops{lessor.Read: e.readRole, lessor.Update: e.writeRole, lessor.Delete: e.deleteRole}},
		{Pattern: "creds/{name}", Help: "Get a leased account of a role.", Ops: ops{lessor.Read: e.creds}},
		{Pattern: "reload/{plugin_name}", Help: "Reset all connections of a plugin.", Ops: ops{lessor.Update: e.reload}},
		{Pattern: "rotate-root/{name}", Help: "Change the password of lessor's own account at a connection; nobody is told the new one.", Ops: ops{lessor.Update: e.rotateRoot}},
		{Pattern: "static-roles", Help: "List the static roles.", Ops: ops{lessor.List: e.list(staticPrefix)}},
		{Pattern: "static-roles/{name}", Owned: true, Help: "Have lessor manage the password of an account that exists.", Fields: staticFields, Exists: e.exists(staticPrefix),
			Ops: ops{lessor.Read: e.readStaticRole, lessor.Update: e.writeStaticRole, lessor.Delete: e.deleteStaticRole}},
		{Pattern: "static-creds/{name}", Help: "Read the password of a static role.", Ops: ops{lessor.Read: e.staticCreds}},
		{Pattern: "rotate-role/{name}", Help: "Change the password of a static role now.", Ops: ops{lessor.Update: e.rotateRole}},
	}
}

// Close ends the sessions of a mount.
func (e *Engine) Close(mount string) { e.open.close(mount, "") }

// Shutdown drops the connections of all mounts.
func (e *Engine) Shutdown() { e.open.close("", "") }

func (e *Engine) driver(plugin string) (Driver, error) {
	if d := e.drivers[plugin]; d != nil {
		return d, nil
	}
	return nil, api.Errorf(api.Invalid, "there is no plugin %q; plugin_name must be one of %v", plugin, e.plugins())
}

// template is a stored username template, compiled once.
func (e *Engine) template(d Driver, text string) (*template.Username, error) {
	at := d.Plugin() + " " + text
	if t, ok := e.templates.Load(at); ok {
		return t.(*template.Username), nil
	}
	t, err := usernames(d, text)
	if err == nil {
		e.templates.Store(at, t)
	}
	return t, err
}

// usernames compiles a template; "" is the Driver's own.
func usernames(d Driver, text string) (*template.Username, error) {
	own, longest := d.Usernames()
	return template.NewUsername(cmp.Or(text, own), longest)
}
