// Package audit defines what lessor remembers of every act: the record of one act, the header of one commit, and the
// chain that headers form. It is pure: it computes and verifies, it stores nothing.
//
// A record is bound to its commit by a Merkle root (RFC 6962 hashes) in the commit's header; headers are bound to each
// other by hash, and each is MACed under a sealed key, so that whoever alters the store cannot recompute the chain.
package audit

import (
	"strings"
	"time"
)

// Phase tells which part of an act a record is about.
type Phase string

const (
	Done    Phase = "done"    // the act and its outcome, in one commit
	Begun   Phase = "begun"   // a target is about to be touched
	Outcome Phase = "outcome" // what the target answered
)

// Record is what one act leaves behind. It never holds a value of a secret; the fields are typed so that none slips in.
// CBOR keys are on disk: never renumber, only append.
type Record struct {
	Time          time.Time `cbor:"1,keyasint" json:"time"` // lease time of the decision
	Node          string    `cbor:"2,keyasint,omitempty" json:"node,omitempty"`
	Request       string    `cbor:"3,keyasint,omitempty" json:"request_id,omitempty"`
	Operation     string    `cbor:"4,keyasint" json:"operation"` // "read", …; background acts: "revoke", "expire", …
	Namespace     uint32    `cbor:"5,keyasint,omitempty" json:"namespace,omitempty"`
	Path          string    `cbor:"6,keyasint,omitempty" json:"path,omitempty"`
	Phase         Phase     `cbor:"7,keyasint" json:"phase"`
	Entity        string    `cbor:"8,keyasint,omitempty" json:"entity_id,omitempty"`
	Name          string    `cbor:"9,keyasint,omitempty" json:"display_name,omitempty"`
	Alias         string    `cbor:"10,keyasint,omitempty" json:"alias,omitempty"`
	Accessor      string    `cbor:"11,keyasint,omitempty" json:"accessor,omitempty"`
	Role          string    `cbor:"12,keyasint,omitempty" json:"role,omitempty"`
	Groups        []string  `cbor:"13,keyasint,omitempty" json:"groups,omitempty"`
	System        string    `cbor:"14,keyasint,omitempty" json:"system,omitempty"` // the background actor
	Cause         string    `cbor:"15,keyasint,omitempty" json:"cause,omitempty"`  // what made a background actor act
	Client        string    `cbor:"16,keyasint,omitempty" json:"client_address,omitempty"`
	Granted       bool      `cbor:"17,keyasint,omitempty" json:"granted"`
	Rule          string    `cbor:"18,keyasint,omitempty" json:"rule,omitempty"` // that granted or denied
	Policy        string    `cbor:"19,keyasint,omitempty" json:"policy,omitempty"`
	PolicyVersion uint64    `cbor:"20,keyasint,omitempty" json:"policy_version,omitempty"`
	Approvals     []string  `cbor:"21,keyasint,omitempty" json:"approvals,omitempty"`
	Lease         string    `cbor:"22,keyasint,omitempty" json:"lease_id,omitempty"`
	Secrets       []Shown   `cbor:"23,keyasint,omitempty" json:"secrets,omitempty"`
	ErrorKind     string    `cbor:"24,keyasint,omitempty" json:"error,omitempty"` // api.Kind; empty: it succeeded
	Owner         string    `cbor:"25,keyasint,omitempty" json:"owner,omitempty"`
	Instance      string    `cbor:"26,keyasint,omitempty" json:"instance,omitempty"`
	Note          string    `cbor:"27,keyasint,omitempty" json:"note,omitempty"`  // fixed texts, with accessors, with places of stores, and with hashes in the place of tokens
	Count         uint64    `cbor:"28,keyasint,omitempty" json:"count,omitempty"` // acts that this record sums up; 0 is 1
	Tombstone     string    `cbor:"29,keyasint,omitempty" json:"tombstone,omitempty"`
	Headers       []Heading `cbor:"30,keyasint,omitempty" json:"headers,omitempty"` // those of the request that are to be kept, by name
}

// Heading is a header of a request. It has a Value or a Digest.
type Heading struct {
	Name   string `cbor:"1,keyasint" json:"name"` // in lower case
	Value  string `cbor:"2,keyasint,omitempty" json:"value,omitempty"`
	Digest []byte `cbor:"3,keyasint,omitempty" json:"digest,omitempty"` // keyed hash of the value
}

// About is the paths that the record is about: its own, and the one that its lease was given at, where that is another: so a
// secret's timeline has the renewals and revocations of leases on it, too.
func (r *Record) About() []string {
	paths := make([]string, 0, 2)
	if r.Path != "" {
		paths = append(paths, r.Path)
	}
	if i := strings.LastIndexByte(r.Lease, '/'); i > 0 && r.Lease[:i] != r.Path {
		paths = append(paths, r.Lease[:i])
	}
	return paths
}

// Shown is one version of a secret that an act showed or wrote.
type Shown struct {
	Path        string `cbor:"1,keyasint" json:"path"`
	Version     uint64 `cbor:"2,keyasint,omitempty" json:"version,omitempty"`
	Fingerprint []byte `cbor:"3,keyasint,omitempty" json:"fingerprint,omitempty"` // keyed hash of the value, 16 bytes
	How         string `cbor:"4,keyasint" json:"how"`                             // "shown", "written", "destroyed", "issued"
}

// At is a record with its place in the chain.
type At struct {
	Seq    uint64    // sequence of its commit
	Index  uint32    // within the commit
	Commit time.Time // the commit's time
	Record
}

// Touch is a row that a commit changed, as the change feed tells it.
type Touch struct {
	Table   uint8  `cbor:"1,keyasint"`
	Name    string `cbor:"2,keyasint"`
	To      string `cbor:"3,keyasint,omitempty"` // the end of a deleted range [Name, To); empty: the table's end
	Deleted bool   `cbor:"4,keyasint,omitempty"`
	Range   bool   `cbor:"5,keyasint,omitempty"` // a range was deleted; ranges apply before the commit's other changes
}

// Sums is the number of authenticated sums over rows that grant power.
const Sums = 2

// Header describes one commit. CBOR keys are on disk: never renumber, only append.
type Header struct {
	Seq         uint64         `cbor:"1,keyasint"` // dense, from 1
	Incarnation uint64         `cbor:"2,keyasint"` // counts restores
	Writer      string         `cbor:"3,keyasint"` // node
	Time        time.Time      `cbor:"4,keyasint"` // lease time; never before the previous header's
	Prev        [32]byte       `cbor:"5,keyasint"` // Hash of the previous header; zero for the first
	Root        [32]byte       `cbor:"6,keyasint"` // Merkle root over the records
	Count       uint32         `cbor:"7,keyasint"` // records
	Touched     []Touch        `cbor:"8,keyasint,omitempty"`
	Batch       string         `cbor:"9,keyasint,omitempty"`  // random id of the batch
	Power       [Sums][32]byte `cbor:"10,keyasint"`           // authenticated sums, masked (see Authority.Mask)
	Checkpoint  bool           `cbor:"11,keyasint,omitempty"` // records before this commit's day were pruned by policy up to Pruned
	Pruned      uint64         `cbor:"12,keyasint,omitempty"` // records of commits before this sequence are gone
	MAC         [32]byte       `cbor:"13,keyasint"`           // Authority.MAC over the encoding with MAC zero
}

// Authority holds the keys of the chain. Calls are concurrent.
type Authority interface {
	// MAC authenticates a header's encoding.
	MAC(encoded []byte) [32]byte
	// Element is the keyed hash of one row's place and version, the summand of an authenticated sum.
	Element(table uint8, name string, version uint64) [32]byte
	// Mask is a one-time pad for the sums of the header, derived from what is unique to the header
	// (incarnation, sequence, batch id).
	Mask(incarnation, seq uint64, batch string, sum int) [32]byte
}
