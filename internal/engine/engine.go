// Package engine is the contract between the core and what is mounted: secrets engines, auth methods, and lessor's own
// sys, token and identity interfaces. A handler touches nothing. It reads one View and says, as a Reply, what should
// happen: what to answer, which rows to write, which lease to make, whom to log in. The core commits that together with
// the audit record, touches targets where one is named, and only then answers.
package engine

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/event"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// Backend is one type of engine. It holds no state of a mount: that is in the store, under the mount's UUID.
// Methods are safe for concurrent use.
type Backend interface {
	// Routes is the method table. What is not in it does not exist.
	Routes() []Route
}

// Route is one pattern and what may be done there.
type Route struct {
	// Pattern is relative to the mount. Segments are literal, "{name}" (one segment, not empty) or, last, "{name...}" (the
	// rest, which may be empty only for List); behind it there may be literal ones again ("{path...}/tune"). A List on "config" is asked for as "config/": trailing slashes of List paths
	// are taken off before matching. More literal patterns win.
	Pattern string
	Help    string                       // one line, for ?help=1
	Fields  []Field                      // what the body may hold besides the pattern's names; others are ignored with a warning
	Ops     map[lessor.Verb]Handler      // Create and Update share the handler at Update unless Create has its own
	Exists  func(*Request) (bool, error) // existence check: nil means that every write is an update
	Sudo    bool                         // root-protected: needs sudo besides
	Open    bool                         // needs no token: logins and their like
	Subject SubjectOf                    // logins that can be guessed at: whom they would log in
	Roles   bool                         // the Subject has a role
	Fold    bool                         // names in the path have no case: a rule that refuses the lower-case spelling refuses all
	Owned   bool                         // a Read tells the owner of what it shows, if it has one
	Free    bool                         // any data is accepted without a warning (KV v1, cubbyhole)
}

// SubjectOf says of a login whom it would log in, from what it says and before anything of it is believed. The request is bound;
// it has no Grant.
type SubjectOf func(*Request) (Subject, error)

// Subject is whom a login would log in.
type Subject struct {
	Alias string // name of the alias at the mount; empty: the request does not say
	Role  string // name of the role; empty: there is none
	Known bool   // there is such a user or role
}

// ErrCredentials is the cause (api.Error.Cause) of the refusal of a login whose proof is wrong: it counts towards a lockout.
var ErrCredentials = errors.New("wrong credentials")

// Handler decides what an operation does. It may be called again for the same Op when the ground moved.
type Handler func(ctx context.Context, r *Request) (*Reply, error)

// Unknown is the error of a handler that depends on something which this node has yet to find out elsewhere: the keys of an issuer of
// tokens, or whom a code is for. The core lets go of the View, calls Learn, and lets the operation walk again. A handler that knows enough to
// answer or to refuse after an attempt that failed does so: it does not ask for the same thing for ever.
type Unknown struct {
	// Learn finds it out, or gives up, soon and at the latest when ctx ends. There is no audit record of it, but of what comes of it: so it gives
	// nobody anything, and changes nothing elsewhere but what the client brought, a code that is used up. Calls are concurrent.
	Learn func(ctx context.Context)
}

func (*Unknown) Error() string { return "engine: something has to be found out first" }

// Field describes one parameter.
type Field struct {
	Name string
	Type FieldType
	Help string
}

// FieldType is a parameter's type, weakly parsed as Vault's clients expect.
type FieldType uint8

const (
	String   FieldType = iota + 1
	Int                // integer, also as a string
	Bool               // also "true", "1", …
	Duration           // integer seconds, "3600", "1h", "5d"
	Strings            // array, or comma-separated string
	Map                // object
	Pairs              // object of strings, or array/string of k=v
	Any
)

// Request is an Op that was granted, on its way to a handler.
type Request struct {
	Op        *lessor.Op
	Verb      lessor.Verb       // Op.Verb, with Create and Update told apart
	Path      string            // relative to the mount, no trailing slash
	Params    map[string]string // the pattern's names
	Principal *lessor.Principal
	Grant     policy.Grant
	Mount     *mount.Entry
	View      store.View
	Opener    Opener
	Now       time.Time
	Random    io.Reader
	Default   Limits // the mount's ttl limits, resolved
	System    System
	values    map[string]any // of declared fields, parsed
}

// Limits are ttl bounds in force.
type Limits struct{ TTL, MaxTTL time.Duration }

// Opener opens rows of secret tables for a Grant, and keys hashes. seal.Keyring implements it.
type Opener interface {
	Open(g policy.Grant, row store.Row) (lessor.Secret, error)
	TokenHash(token string) string
	Fingerprint(mount, path string, value []byte) []byte
}

// System is what lessor knows beyond the mount, derived from the request's View. The core implements it.
type System interface {
	// Mounts yields all mounts, sorted by path.
	Mounts() []*mount.Entry
	// Password makes a password by a stored password policy; "" is the built-in one.
	Password(name string) (lessor.Secret, error)
	// OwnerOf resolves the owner of a full path: nearest ancestor's; "" if nobody owns it. from is the path that names the owner.
	OwnerOf(path string) (owner, from string)
	// Caller is the caller's own token; nil for an anonymous caller.
	Caller() *token.Token
	// Holder is who the caller is as the holder of a lease.
	Holder() lease.Holder
	// Sudo reports whether the caller's policies grant sudo on the request's path.
	Sudo() bool
	// Reaches reports whether the caller's policies grant anything at the path or somewhere below it.
	Reaches(path string) bool
	// Resultant is what the caller's policies give, by pattern, as sys/internal/ui/resultant-acl tells.
	Resultant() (map[string]any, error)
	// Capabilities are what a token may do at a path, as sys/capabilities tells.
	Capabilities(t *token.Token, path string) ([]string, error)
	// Token finds a live token by its id, whether stored or sealed into itself; nil: there is none.
	Token(id lessor.Secret) (*token.Token, store.Row, error)
	// Alive reports whether a lease is in force: it and what it hangs on have not ended, and no wide revocation hits it.
	Alive(l *lease.Lease) (bool, error)
	// Bury puts a tombstone: whatever the selector matches so far ends with this commit, and is cleaned up in the background.
	// It returns the tombstone's id.
	Bury(txn *store.Txn, s lease.Selector, cause string) (id string, err error)
	// BuryForced is Bury, but leases go even if their target fails.
	BuryForced(txn *store.Txn, s lease.Selector, cause string) (id string, err error)
	// Renewal asks the auth method that gave a token on which terms it may be renewed now, and adds to txn what that rests on. An error
	// of kind Invalid refuses.
	Renewal(txn *store.Txn, t *token.Token) (token.Lifetime, error)
	// EntityID finds an entity by id or name.
	EntityID(idOrName string) (string, error)
}

// Reply is what a handler wants to happen. The zero Reply changes nothing and answers 204.
type Reply struct {
	Data      map[string]any // answer's "data"; secrets in it are lessor.Secret or lessor.SecretJSON
	Status    int            // 0: 200 with Data, Auth or Warnings, else 204. 404 with Data is a deleted KV version
	Raw       *Raw           // instead of the envelope
	Flat      bool           // repeat Data at the top level of the envelope
	Bare      bool           // Data is the whole body, no envelope
	Warnings  []string
	Txn       store.Txn // Audit is the core's to fill
	Shown     []audit.Shown
	Static    *Static
	Issue     *Issue
	Rotate    *Rotate
	Login     *Login
	Mint      *Mint
	Renewed   *lessor.Auth       // a token that was renewed (Reply.Txn holds its row)
	Wrapped   *lessor.SecretJSON // unwrap: a stored answer, to be sent as it is
	Rewrap    *Rewrap
	Unwrapped string                                            // id of the lease inside what is unwrapped: the caller becomes its holder
	First     func(ctx context.Context) ([]string, error)       // touches a target, after it is on record that it is about to be and before the commit, which an error prevents; it may warn
	Later     func(ctx context.Context) (map[string]any, error) // makes Data after the commit, when the View is closed: a long read of what is no secret
	Feed      lessor.Feed                                       // messages that follow, instead of an answer; none is a secret
	Do        func(ctx context.Context) error                   // after the commit, before the answer: waits for background work, never touches a target itself
	Then      func(ctx context.Context) error                   // after the commit, before the answer: what it changes on this node
	Extend    *Extend
	Continues bool   // goes on with what the same token began, which is on record, and shows nothing secret: without a record of its own, unless something is written
	Tidy      bool   // asks for what Tidiers do in the background, soon
	Accessor  string // of the credential in Data: who wraps it learns of it
	Note      string // audit.Record.Note, a fixed text
	Lease     string // audit.Record.Lease, where the act is about a lease that it does not make
}

// Rewrap asks to wrap an answer that was wrapped before, or data that a client wants wrapped.
type Rewrap struct {
	Body     lessor.Secret // the answer's bytes, as unwrapping will return them
	Path     string        // that was wrapped first
	TTL      time.Duration
	Accessor string    // of the token inside
	Lease    string    // id of the lease inside
	At       time.Time // when it was wrapped first; zero: now
}

// Raw is an answer that is no JSON.
type Raw struct {
	Type  string
	Write func(ctx context.Context, w io.Writer) error
}

// Static asks for a lease on the secret value that the Reply shows.
type Static = lease.Value

// Issue asks for a dynamic credential.
type Issue struct {
	Path      string        // within the mount: lease id is mount path + Path + "/" + random
	Owned     string        // within the mount: what the credential's owner is looked up for; empty: Path
	Target    string        // name of the target, e.g. connection name; the core adds the mount
	TTL       time.Duration // 0: the mount's default
	MaxTTL    time.Duration // 0: the mount's maximum
	Renewable bool
	// Plan completes the credential once the lease's id and end are known. intent goes into the lease row; answer is shown to the
	// client when Apply has succeeded.
	Plan func(l *lease.Lease) (intent []byte, answer map[string]any, password lessor.Secret, err error)
}

// Rotate asks to bring into force what was recorded, by the Reply's Txn or by Rotator.Plan, as an account's pending password.
type Rotate struct {
	Account string // within the mount, as the Rotator knows it
	Path    string // within the mount, of what is rotated: for the audit record of a background act
	Note    string // for the audit record, a fixed text
	Cause   string // of a background act, a fixed text; empty: it is due
	// Done says that nothing is to be touched: with what is recorded by Plan it is done, and by that Shown is in force.
	Done  bool
	Shown []audit.Shown
	// Look says that the target is only looked at: that changes nothing and shows no secret, so it is not on record before, but what comes of it is.
	Look bool
	// Also are what is on record besides: of each the core fills in whose act it is, when and why.
	Also []audit.Record
	// Untouched fills what is recorded if, after all that, Turn is not called, on a View of then; may be called again. nil: nothing
	Untouched func(a Access, txn *store.Txn) error
}

// Rotator is a Backend that changes passwords of accounts at targets (package rotation), for a request or because it is time.
type Rotator interface {
	Backend
	// Plan decides what comes next with an account, and fills txn: what is recorded, with the audit record that the target is about to be
	// touched, before Turn. nil: the target need not be touched; what txn has is committed all the same.
	Plan(a Access, account string, txn *store.Txn) (*Rotate, error)
	// Turn touches the target as the account's rows say, and tells what came of it. It may be called again after it succeeded, and
	// after one that died. For one account it is called once at a time by this process.
	Turn(ctx context.Context, a Access, account string) Turned
	// AccountOf is the account that a path within the mount is about: whose password its readers are shown, or which it configures. It knows the
	// Path of a Static, too.
	AccountOf(path string) (account string, ok bool)
}

// Explainer is a Rotator that tells on which terms it rotates an account.
type Explainer interface {
	Rotator
	// Terms are an account's as v has them; nil: it does not exist.
	Terms(v store.View, m *mount.Entry, account string) (*Terms, error)
}

// Terms are those on which an account is rotated.
type Terms struct {
	Path     string   // within the mount, of what configures it
	Reads    string   // within the mount, where its password is read; empty: nobody is shown it
	Accounts []string // their names at the target
	Schedule rotation.Schedule
	CheckOut bool   // the end of a lease on it, however it comes, demands a rotation
	Strategy string // what people call the way in which it is rotated; empty: by how many Accounts there are
}

// Turned is what came of a touch.
type Turned struct {
	Err   error                                                       // for whoever asked, free of secrets; nil: it is done
	Shown []audit.Shown                                               // what is in force now
	Note  string                                                      // for the audit record, a fixed text
	Then  func(a Access, txn *store.Txn, jitter func() float64) error // fills what is recorded of it, on a View of after the touch; may be called again. txn has the audit record, which is taken out of it where a Look showed nothing worth one. nil: nothing; with an Err the target was not touched
}

// Extend asks to renew a lease (sys/leases/renew).
type Extend struct {
	Lease     string // id
	Increment time.Duration
}

// Access is what an Issuer or Rotator needs to reach its target in the background or for a request.
type Access struct {
	Mount    *mount.Entry
	View     store.View
	Grant    policy.Grant
	Opener   Opener
	Now      time.Time
	Password func(policy string) (lessor.Secret, error) // System.Password; for a Rotator only
	Chance   float64                                    // in [0, 1), drawn afresh; for a Rotator only
	Look     bool                                       // Rotate.Look: nothing else is on record, and so nothing else is to be done
}

// Issuer is a Backend that makes leased credentials. Every method is idempotent, keyed by the lease's id: it may be called
// again after it succeeded, and Revert before, during or after an Apply that is still under way. Errors are free of secrets.
type Issuer interface {
	Backend
	// Apply makes the credential of a pending lease real.
	Apply(ctx context.Context, a Access, l *lease.Lease, password lessor.Secret) error
	// Renew extends it at the target to until.
	Renew(ctx context.Context, a Access, l *lease.Lease, until time.Time) error
	// Revert removes the credentials of leases of one target, and says of each whether the target confirmed that it is gone.
	Revert(ctx context.Context, a Access, ls []*lease.Lease) []error
	// Close drops what is cached for the mount (connections).
	Close(mount string)
}

// Finder is an Issuer whose credentials bear a mark at their targets, by which those are found that no lease knows: made after the
// state that a store was put back to.
type Finder interface {
	Issuer
	// Targets are those of the mount, as Lease.Target names them.
	Targets(a Access) ([]string, error)
	// Find looks at one target for the credentials that the mount made there, those of other mounts and of other stores left out. What two
	// targets have in common each of them finds.
	Find(ctx context.Context, a Access, target string) ([]Found, error)
	// Keep puts into txn what keeps a target of the mount configured until the leases are gone that txn makes there, on condition that it is
	// configured as v has it. It is an error if it is not.
	Keep(v store.View, m *mount.Entry, target string, txn *store.Txn) error
	// Mark is what the credential of a lease bears.
	Mark(lease string) string
	// Advice is what a person can do about a target that Find cannot look at.
	Advice(m *mount.Entry, target string) string
}

// Found is a credential at a target.
type Found struct {
	Mark   string // of its lease
	Target string // where it is to be undone: the one that was looked at, or another that leads to it, too
	Intent []byte // what Revert needs of a lease to undo it, whatever the lease's id
}

// Renewer is an auth method that has a say in the renewal of tokens that it gave.
type Renewer interface {
	Backend
	// Renew looks at what the token was given for, a role or a user, and puts into terms what that says now. What it rests on goes into
	// txn. An error of kind Invalid refuses the renewal. The request is at the method's mount; its operation is somebody else's.
	Renew(r *Request, txn *store.Txn, t *token.Token, terms *token.Lifetime) error
}

// Tidier is a Backend that keeps what is over by itself, and is asked in the background, now and then, to clear it away.
type Tidier interface {
	Backend
	// Tidy adds to txn the removal of what is over at now, of some thousands of rows from where the last call left off ("" at first), each
	// required to be still what the View shows. It says where to go on; "" means that it came to the end.
	Tidy(v store.View, txn *store.Txn, m *mount.Entry, from string, now time.Time) (next string, err error)
}

// Follower is a Backend that keeps something open for what is stored, and is told what any node commits, where there are several.
type Follower interface {
	Backend
	// Heard takes notice of a commit. Calls come one at a time, in the chain's order; commits may be left out while the store is out of reach. It returns
	// soon, and does not change the header.
	Heard(h *audit.Header)
}

// Versioner is a Backend whose secrets have versions: a renewal of a lease on one tells its holder when there is a newer one.
type Versioner interface {
	// Current is the current version of the secret at a path within the mount, 0 if there is none, and which secret it is a version of, as
	// Static.Born says it.
	Current(v store.View, m *mount.Entry, path string) (version uint64, born uint64, err error)
}

// Announcer is a Backend that tells what commits did to what a mount keeps.
type Announcer interface {
	// Announce tells it as events, in the order of what was touched, four of one touched row at most, as of a View that shows the commit: of later
	// commits, too, if they were made meanwhile. It knows no more than the commit's header, its records, while they are kept, and rows.
	Announce(v store.View, c *event.Commit) ([]*event.Event, error)
}

// Guide is a Backend that tells who asks for a path that is not in its method table what they may have meant.
type Guide interface {
	// Astray is the warning in the answer, a 404, to an operation on a path within the mount.
	Astray(m *mount.Entry, verb lessor.Verb, path string) string
}

// Fronted is a Backend some of whose paths something before the gate answers: what anybody may know, and what people do who show keys.
type Fronted interface {
	// Front is the method table of those paths. It is described (?help=1, OpenAPI), never served.
	Front() []Route
}

// Described is the method table of all that a mount of the backend answers, whoever does.
func Described(b Backend) []Route {
	routes := b.Routes()
	if f, ok := b.(Fronted); ok {
		routes = append(routes[:len(routes):len(routes)], f.Front()...)
	}
	return routes
}

// Upgrader is a Backend to which mounts can be upgraded that another one kept so far.
type Upgrader interface {
	// Upgrade adds to txn what makes a part of what is kept from one row on new, and says where to go on; "" means that there is nothing
	// left. Nobody else reads or writes meanwhile.
	Upgrade(a Access, txn *store.Txn, from string) (next string, err error)
}

// Login is the proof of an auth method that somebody is who they say: using up a secret id (Reply.Txn) and making the
// token are one commit.
type Login struct {
	Alias     string            // name of the alias at the mount; empty: no entity
	AliasMeta map[string]string // metadata of the alias
	Groups    []string          // what the method says that they are in: names of group aliases at the mount
	Name      string            // display name, without the mount's path: "billing"
	Role      string
	Owned     string            // within the mount: what the token's owner is looked up for, if it has a Role; empty: "role/" and that
	Metadata  map[string]string // of the token
	Instance  string            // what tells running instances of this alias apart: secret-id accessor; may be empty
	Token     TokenTerms
}

// TokenTerms are the terms on which an auth method gives tokens (Vault's token_* parameters).
// CBOR keys are on disk: never renumber, only append.
type TokenTerms struct {
	TTL             time.Duration  `cbor:"1,keyasint,omitempty"`
	MaxTTL          time.Duration  `cbor:"2,keyasint,omitempty"`
	Period          time.Duration  `cbor:"3,keyasint,omitempty"`
	ExplicitMaxTTL  time.Duration  `cbor:"4,keyasint,omitempty"`
	Policies        []string       `cbor:"5,keyasint,omitempty"`
	NoDefaultPolicy bool           `cbor:"6,keyasint,omitempty"`
	NumUses         int            `cbor:"7,keyasint,omitempty"`
	Type            string         `cbor:"8,keyasint,omitempty"` // "", default, service, batch, default-service, default-batch
	BoundCIDRs      []netip.Prefix `cbor:"9,keyasint,omitempty"`
}

// Mint asks for a token (auth/token/create and what is like it).
type Mint struct {
	ID           lessor.Secret     // custom id; needs sudo, checked by the handler
	Parent       *lessor.Principal // nil: orphan
	Name         string
	Policies     []string
	NoDefault    bool
	Metadata     map[string]string
	TTL          time.Duration // 0: default
	Explicit     time.Duration // explicit_max_ttl
	Period       time.Duration
	NumUses      int
	Batch        bool
	Renewable    bool
	Entity       string
	EntityAlias  string // name at the mount of the alias whose entity the token is for; made if it is not there
	Role         string // token role
	PathSuffix   string
	BoundCIDRs   []netip.Prefix
	NeverExpires bool // root tokens without ttl
}
