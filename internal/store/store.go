// Package store keeps lessor's state: ordered tables of sealed rows, changed only by transactions that carry their
// own audit records, chained commit after commit.
//
// The protocol lives here once, in DB: what queues while a flush is under way becomes the next batch; each
// transaction's checks are validated against the latest state plus the batch's own overlay; what holds is sealed,
// gets one header (audit chain, change feed and unit of incremental backup in one) and one durable flush. A Backend
// (pebble, mem, postgres) only stores bytes in order and makes them durable.
//
// What anyone can see is durable: Views show the state as of the last flush that succeeded, never later.
package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
)

// Table is a key space of its own.
type Table uint8

// The tables. Numbers are on disk: never renumber, only append.
const (
	Meta     Table = iota + 1 // cluster identity, wrapped root keys, schema version; stored in clear
	Head                      // commit headers by sequence; stored in clear (MACed)
	Records                   // audit records by day, sequence, index
	ByPath                    // audit index: day, hash of path, sequence, index
	ByWho                     // audit index: day, hash of entity or accessor, sequence, index
	Mounts                    // mounts and auth methods
	Policies                  // ACL policies
	Identity                  // entities, aliases, groups and their indexes
	Config                    // roles of auth methods, token roles, owners, password policies, switches
	Tokens                    // tokens by keyed hash
	TokenIdx                  // accessors, children, join secrets
	Leases                    // leases by mount and id
	Due                       // leases and tokens by expiry
	LeaseIdx                  // leases by token; holders of static secrets
	Holds                     // extended expiry of static leases
	Tombs                     // wide revocations under way
	Engine                    // engines' rows that hold no secret: KV metadata, database roles
	Secrets                   // engines' rows that do: KV data, connections, verifiers, cubbyholes, wrappings
	Batches                   // ids of recent batches, to ask for an unknown outcome
	Claims                    // which node does which background work; names are plain words, under no namespace
	tables
)

// class says how rows of a table are kept.
type class struct {
	name   string
	clear  bool // not sealed by the keyring
	secret bool // opened only for a Grant
	own    bool // written by the committer alone
	index  bool // rows without a value, which name a record
	power  int  // 1+index of the authenticated sum that covers the table; 0 = none
}

var classes = [tables]class{
	Meta: {name: "meta", clear: true, power: 1}, Head: {name: "head", clear: true, own: true},
	Records: {name: "records", own: true}, ByPath: {name: "by_path", own: true, index: true}, ByWho: {name: "by_who", own: true, index: true},
	Mounts: {name: "mounts", power: 1}, Policies: {name: "policies", power: 1}, Identity: {name: "identity", power: 1},
	Config: {name: "config", power: 1}, Tokens: {name: "tokens", power: 2}, TokenIdx: {name: "token_idx", power: 2},
	Leases: {name: "leases"}, Due: {name: "due"}, LeaseIdx: {name: "lease_idx"}, Holds: {name: "holds"}, Tombs: {name: "tombs", power: 1},
	Engine: {name: "engine"}, Secrets: {name: "secrets", secret: true}, Batches: {name: "batches", clear: true, own: true, index: true},
	Claims: {name: "claims"},
}

// String is the table's name.
func (t Table) String() string {
	if t > 0 && t < tables {
		return classes[t].name
	}
	return fmt.Sprintf("table(%d)", uint8(t))
}

// Secret reports whether the table's rows are opened only for a Grant.
func (t Table) Secret() bool { return classes[t].secret }

// Once reports whether the table's rows are written once and never again: those that the committer writes for itself.
func (t Table) Once() bool { return classes[t].own }

// Power is 1+index of the authenticated sum (audit.Header.Power) over the table's rows, or 0.
func (t Table) Power() int { return classes[t].power }

// Key names a row. Name is bytes in order; but for Meta, Head, the audit tables, Batches and Claims it begins with a namespace
// id (4 bytes, big endian) and the UUID of the mount (16 bytes; zero for what belongs to no mount), see MountKey.
type Key struct {
	Table Table
	Name  string
}

// String names the row in words where it is a commit's, else by table and name.
func (k Key) String() string {
	seq, index, ok := k.commit()
	switch {
	case ok && k.Table == Head:
		return fmt.Sprintf("header of commit %d", seq)
	case ok:
		return fmt.Sprintf("audit record %d of commit %d", index, seq)
	}
	return fmt.Sprintf("%s/%q", k.Table, k.Name)
}

// commit is the commit that a header or an audit record belongs to, and the record's index in it.
func (k Key) commit() (seq uint64, index uint32, ok bool) {
	switch {
	case k.Table == Head && len(k.Name) == seqLen:
		return binary.BigEndian.Uint64([]byte(k.Name)), 0, true
	case k.Table == Records:
		_, seq, index, err := place(k.Name)
		return seq, index, err == nil
	}
	return 0, 0, false
}

// Row is a row as of some View.
type Row struct {
	Key
	Version uint64 // sequence of the commit that wrote it; 0: there is no such row
	Value   []byte // the opened value; nil for rows of a secret table. Callers must not change it
	sealed  []byte
}

// Exists reports whether there is such a row.
func (r Row) Exists() bool { return r.Version != 0 }

// Sealed is the value as the backend keeps it. seal.Open opens those of secret tables, for a Grant.
func (r Row) Sealed() []byte { return r.sealed }

// View is one consistent state: that of a durable commit. Views are cheap, safe for concurrent use, and must be
// closed soon: they hold back what the backend may reclaim.
type View interface {
	// Position is the sequence of the last commit that the View shows.
	Position() uint64
	// Changed is the sequence of the last commit, as of this View, that touched table t: what was derived from t
	// by a View at Position p is still true if Changed(t) <= p. After a start it may be later than the truth, never earlier.
	Changed(t Table) uint64
	// Get returns the row of k; one that does not exist has Version 0. An error means damage or a failing backend.
	Get(k Key) (Row, error)
	// Scan yields the rows of t with from <= name < to in order ("" as to: to the table's end).
	// It stops after the first error.
	Scan(t Table, from, to string) iter.Seq2[Row, error]
	// Close ends the View. Calls after the first do nothing.
	Close()
}

// Check is a condition of a transaction.
type Check struct {
	Key
	Version uint64 // the row's version must be this; 0: there must be no such row
	Exists  bool   // instead of Version: the row must exist, whatever its version
}

// Since is the condition that no commit after Position touched the table.
type Since struct {
	Table    Table
	Position uint64
}

// Put writes a row.
type Put struct {
	Key
	Value []byte // in clear; the committer seals it under its place and version
}

// Range is a range of names in a table, From <= name < To.
type Range struct {
	Table    Table
	From, To string
}

// Txn is what one request changes, all or nothing, together with its audit records.
// A key appears in at most one of Puts and Deletes. A Txn without changes still commits its audit records.
type Txn struct {
	Checks    []Check
	Unchanged []Since
	Puts      []Put
	Deletes   []Key
	Ranges    []Range // deleted before Puts apply; To "" is the table's end; not for tables under an authenticated sum
	Audit     []audit.Record
	Urgent    bool // revocation: may use the space that is kept for it when the disk is almost full
}

// Put adds a put.
func (t *Txn) Put(table Table, name string, value []byte) {
	t.Puts = append(t.Puts, Put{Key{table, name}, value})
}

// Delete adds a deletion; deleting what is not there is no error.
func (t *Txn) Delete(table Table, name string) { t.Deletes = append(t.Deletes, Key{table, name}) }

// Require adds the check that row is still as it was read.
func (t *Txn) Require(row Row) {
	t.Checks = append(t.Checks, Check{Key: row.Key, Version: row.Version})
}

// Absent adds the check that no such row exists.
func (t *Txn) Absent(table Table, name string) {
	t.Checks = append(t.Checks, Check{Key: Key{table, name}})
}

// Present adds the check that such a row exists, at whatever version.
func (t *Txn) Present(table Table, name string) {
	t.Checks = append(t.Checks, Check{Key: Key{table, name}, Exists: true})
}

// Join adds all that u has.
func (t *Txn) Join(u *Txn) {
	t.Checks = append(t.Checks, u.Checks...)
	t.Unchanged = append(t.Unchanged, u.Unchanged...)
	t.Puts = append(t.Puts, u.Puts...)
	t.Deletes = append(t.Deletes, u.Deletes...)
	t.Ranges = append(t.Ranges, u.Ranges...)
	t.Audit = append(t.Audit, u.Audit...)
	t.Urgent = t.Urgent || u.Urgent
}

// Receipt says where a transaction went.
type Receipt struct {
	Seq  uint64    // sequence of its commit
	Time time.Time // lease time of its commit
}

// Conflict is the error of a transaction whose check failed; nothing of it was written.
type Conflict struct{ Key Key }

func (c *Conflict) Error() string { return "store: " + c.Key.String() + " changed meanwhile" }

// Uncertain is the error of a transaction whose flush failed after it had begun; DB.Outcome tells after a restart
// what became of it. errors.Is(err, ErrUncertain) holds.
type Uncertain struct {
	Batch string // id of the batch, for DB.Outcome
	Cause error
}

func (u *Uncertain) Error() string        { return ErrUncertain.Error() + ": " + u.Cause.Error() }
func (u *Uncertain) Unwrap() error        { return u.Cause }
func (u *Uncertain) Is(target error) bool { return target == ErrUncertain }

// Damage is the error of a row that is not what lessor wrote in its place.
type Damage struct {
	Key Key
	Why string
}

// Commit is the commit whose header or audit record is damaged, and the record's index in it; ok is false for other rows.
func (d *Damage) Commit() (seq uint64, index uint32, ok bool) { return d.Key.commit() }

func (d *Damage) Error() string { return "store: damaged: " + d.Key.String() + ": " + d.Why }

// Errors of Commit. What is none of these and no *Conflict means that nothing was written.
var (
	// ErrUncertain: the flush failed after it had begun; whether the transaction is durable is known after a restart.
	ErrUncertain = errors.New("store: outcome of the commit is unknown")
	// ErrSealed: the store has no keys yet; only clear tables can be read.
	ErrSealed = errors.New("store: sealed")
	// ErrFull: the disk is almost full; only Urgent transactions are taken.
	ErrFull = errors.New("store: disk almost full, only revocations are accepted")
	// ErrUnreachable: what the store lies in does not answer; nothing was written, and trying again may help.
	ErrUnreachable = errors.New("store: cannot be reached")
	// ErrOutdated: a newer lessor changed what the store lies in, and this one cannot work on it any more. It comes with other errors.
	ErrOutdated = errors.New("store: it takes a newer lessor")
	// ErrClosed: the store is closed, or stopped after a failed flush.
	ErrClosed = errors.New("store: closed")
)

// ErrMoved is the error of Write.Commit when a guess (Shared.Guess) was wrong: nothing was written.
var ErrMoved = errors.New("store: another node's commit came first")

// Cipher seals rows to their place and authenticates headers. seal.Keyring implements it; calls are concurrent.
type Cipher interface {
	// Seal appends value, sealed under (key, version), to dst.
	Seal(dst []byte, key Key, version uint64, value []byte) []byte
	// Open appends the value that Seal sealed to dst. An error means damage, or a value moved here from elsewhere.
	Open(dst []byte, key Key, version uint64, sealed []byte) ([]byte, error)
	audit.Authority
}

// Checker is a Cipher that opens rows of secret tables for a Grant only, and says of one whether it would open.
type Checker interface {
	Check(row Row) error
}

// Backend stores bytes in order. It knows no chain, no checks, no keys; DB calls Begin from one goroutine at a time,
// everything else from any.
type Backend interface {
	// Begin opens a write at the latest state, exclusive in the whole cluster until Commit or Abort.
	Begin() (Write, error)
	// Snapshot is the latest durable state.
	Snapshot() (Snapshot, error)
	// Usage is the space in bytes: used by the store, and free where it lives (-1: unbounded).
	Usage() (used, free int64)
	// Close releases everything. No Snapshot may be open.
	Close() error
	// A Backend may also say where its data was when it was opened, and which part of it to suspect when that is not whole:
	//	Found() string
}

// Shared is a Backend that other nodes write to as well. Besides writing under the cluster's lock it lets a node guess that it is
// alone, which costs one round trip instead of two. Snapshots given to it are its own, and open.
type Shared interface {
	Backend
	// Moved receives a hint when the state may have changed. Hints may be lost, and mean nothing by themselves.
	// A closed channel sends no more hints.
	Moved() <-chan struct{}
	// Look tells what is new to a node that shows at, whose last header is after. Its answer is of a moment after the call: it has
	// every commit that any node was told of before.
	Look(ctx context.Context, at Snapshot, after uint64) (News, error)
	// Enter is Begin, Look and Write.Versions in one: both answers are as the Write finds things. A backend that is away, or other
	// nodes' Writes, are waited for until ctx ends at the latest.
	Enter(ctx context.Context, at Snapshot, after uint64, keys []Key, versions []uint64) (Write, News, error)
	// Guess is a Write upon at, which waits for nobody until its Commit. That fails with ErrMoved, and writes nothing, unless at
	// is the latest state then and the keys have those versions; Any is whatever version there is. Its Versions is not to be called.
	Guess(at Snapshot, keys []Key, versions []uint64) Write
	// Confirm returns without an error once everything that could be seen when it was called has been made as durable as commits
	// are, on synchronous standbys too. A crash, or a wait for standbys that was cut short, may show commits that are not yet.
	Confirm(ctx context.Context) error

	// Self is the id of this start of this node: 16 hex digits, never used again.
	Self() string
	// Announce sets what Peers tells other nodes of this one, PeerBytes at most; the Backend keeps about, which nobody changes
	// afterwards. It does not wait until others can see it.
	Announce(about []byte)
	// Peers are the nodes that have the store open, in the order in which they started, as of now. Each gives a sign of life
	// a second, and whoever did not for a minute is told no more.
	Peers(ctx context.Context) ([]Peer, error)
}

// Any is the version that Shared.Guess takes for any but 0.
const Any = math.MaxUint64

// News is what others committed.
type News struct {
	State   Snapshot // the latest state, for the caller to close; nil if nothing is new
	Headers []Stored // entries of Head that are new, in order, without a gap
	More    bool     // there are later ones, in State
}

// Write is one change under way, exclusive in the cluster. Its changes apply all or none: ranges first, which are to be given
// first, then rows, none of them twice.
type Write interface {
	// Versions sets versions[i] to the version of the row keys[i] (the first 8 bytes of what is stored, big endian)
	// in the latest state, without the write's own changes; 0 if there is none.
	Versions(keys []Key, versions []uint64) error
	// DeleteRange deletes From <= name < To (to the table's end if To is empty).
	DeleteRange(r Range)
	// Set stores bytes; it keeps no reference to them.
	Set(k Key, stored []byte)
	Delete(k Key)
	// Commit makes the changes durable. An error but ErrMoved means that the outcome is unknown. Either way the write is over.
	Commit() error
	// Abort drops the changes. After Commit it does nothing.
	Abort()
}

// Adder is a Write that is faster at setting rows of which it is known that they were not there.
type Adder interface {
	Write
	// Add sets what is stored for a row that is not there. If it is, the outcome is that of a Commit that failed.
	Add(k Key, stored []byte)
}

// Exact is a Write that can tell the very state that it made. Backend.Snapshot cannot where other nodes write as well: it may
// show their commits, too. Writes of a Shared backend are Exact; behind a
// wrapper that hides it, DB takes the later commits in.
type Exact interface {
	Write
	// State is the state as of the write, once it is known to be committed, by Commit or otherwise.
	State() Snapshot
}

// Snapshot is one consistent durable state of a Backend; calls are concurrent.
type Snapshot interface {
	// Get returns a copy of what is stored; nil, nil for what is not there.
	Get(k Key) ([]byte, error)
	// Scan yields what is stored in order of names, or in the reverse order; bytes are valid until the next step.
	// It stops after the first error.
	Scan(r Range, reverse bool) iter.Seq2[Stored, error]
	Close()
}

// Stored is an entry as the backend has it: 8 bytes of version, then what depends on the table.
type Stored struct {
	Key   Key
	Bytes []byte
}

// Last is the last entry of r in s; a zero Stored if r is empty.
func Last(s Snapshot, r Range) (Stored, error) {
	for e, err := range s.Scan(r, true) {
		if err != nil {
			return Stored{}, err
		}
		e.Bytes = append([]byte(nil), e.Bytes...)
		return e, nil
	}
	return Stored{}, nil
}
