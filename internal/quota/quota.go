// Package quota limits what may be asked for: how many requests in an interval (rate limits), and how many leases there are at
// once (lease counts). A rule is about everything, one mount, one path in it (or all that begin alike: "…*"), or
// one login role; of each kind the most specific one that covers a request decides, and no other.
//
// quota.go says what rules are and which one decides; window.go counts requests, lease.go leases; Guard applies both on one
// node. Rules are rows; a Guard follows the store's change feed, so that a request under no rule pays for the look at one
// pointer.
package quota

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// Kind is what a rule limits.
type Kind string

const (
	RateLimit  Kind = "rate-limit"
	LeaseCount Kind = "lease-count"
)

// How a rate limit tells requests apart (Rule.GroupBy).
const (
	ByIP             = "ip"               // by source address; of IPv6, by /64
	ByNone           = "none"             // all together
	ByEntityThenIP   = "entity_then_ip"   // by entity; those without one, at the secondary rate, by address
	ByEntityThenNone = "entity_then_none" // by entity; those without one, at the secondary rate, together
)

// Rule is one row. CBOR keys are on disk: never renumber, only append.
type Rule struct {
	Kind          Kind          `cbor:"1,keyasint"`
	Name          string        `cbor:"2,keyasint"`
	Mount         string        `cbor:"3,keyasint,omitempty"` // UUID; empty: everything
	Suffix        string        `cbor:"4,keyasint,omitempty"` // path within the mount; "…*": all that begin so
	Role          string        `cbor:"5,keyasint,omitempty"` // of logins at the mount
	Rate          float64       `cbor:"6,keyasint,omitempty"` // requests in an interval, rounded
	SecondaryRate float64       `cbor:"7,keyasint,omitempty"`
	Interval      time.Duration `cbor:"8,keyasint,omitempty"`
	Block         time.Duration `cbor:"9,keyasint,omitempty"` // how long who reached the limit is refused
	GroupBy       string        `cbor:"10,keyasint,omitempty"`
	Max           uint64        `cbor:"11,keyasint,omitempty"` // leases

	row store.Row
}

// Config is the row of what all rules share. CBOR keys are on disk: never renumber, only append.
type Config struct {
	AuditLogging    bool     `cbor:"1,keyasint,omitempty"` // as asked for; refusals are counted in the audit trail in any case
	ResponseHeaders bool     `cbor:"2,keyasint,omitempty"`
	Exempt          []string `cbor:"3,keyasint,omitempty"` // paths, and all below them, that no rate limit covers
	Absolute        []string `cbor:"4,keyasint,omitempty"` // the same, from the root namespace on
}

// Unconfigured is the Config before anybody wrote one.
var Unconfigured = Config{Exempt: []string{
	"sys/generate-recovery-token/attempt", "sys/generate-recovery-token/update", "sys/generate-root/attempt", "sys/generate-root/update",
	"sys/health", "sys/seal-status", "sys/unseal",
}}

var (
	root      = store.MountKey(lessor.RootNamespace, "", "quota/")
	configKey = store.Key{Table: store.Config, Name: root + "config"}
)

func key(k Kind, name string) store.Key {
	return store.Key{Table: store.Config, Name: root + "rule/" + string(k) + "/" + name}
}

func encode(v any) []byte {
	b, err := cbor.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("quota: %v", err)) // plain data: a defect
	}
	return b
}

// decoding takes names as they are: UUIDs are raw bytes.
var decoding = func() cbor.DecMode {
	d, err := cbor.DecOptions{UTF8: cbor.UTF8DecodeInvalid}.DecMode()
	if err != nil {
		panic(err)
	}
	return d
}()

// Put writes a rule, new or changed, on condition that nobody changed rules since the View at position.
func Put(txn *store.Txn, r *Rule, position uint64) {
	k := key(r.Kind, r.Name)
	txn.Unchanged = append(txn.Unchanged, store.Since{Table: store.Config, Position: position})
	txn.Put(k.Table, k.Name, encode(r))
}

// Delete removes a rule, if there is one.
func Delete(txn *store.Txn, k Kind, name string) {
	at := key(k, name)
	txn.Delete(at.Table, at.Name)
}

// PutConfig writes the Config.
func PutConfig(txn *store.Txn, c Config) { txn.Put(configKey.Table, configKey.Name, encode(c)) }

// Forget removes the rules of a mount that is gone.
func Forget(v store.View, txn *store.Txn, uuid string) error {
	rules, err := scan(v)
	if err != nil {
		return err
	}
	for _, r := range rules {
		if r.Mount == uuid {
			txn.Delete(r.row.Table, r.row.Name)
		}
	}
	return nil
}

func scan(v store.View) (rules []*Rule, err error) {
	prefix := root + "rule/"
	for row, err := range v.Scan(store.Config, prefix, store.PrefixEnd(prefix)) {
		if err != nil {
			return nil, err
		}
		r := &Rule{row: row}
		if err := decoding.Unmarshal(row.Value, r); err != nil {
			return nil, fmt.Errorf("quota: damaged row: %w", err)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// Rules are all rules as of one View; immutable.
type Rules struct {
	Config
	mounts *mount.Table
	rules  []*Rule // of mounts that there are, by kind and name
	at     map[place]*Rule
	globs  map[string][]*Rule // by kind and mount: those whose suffix ends in "*"
	roles  map[string]bool    // kind and mount that have a rule for some role
	kinds  map[Kind]bool
}

type place struct {
	kind                Kind
	mount, suffix, role string
}

func (r *Rule) place() place { return place{r.Kind, r.Mount, r.Suffix, r.Role} }

// Load reads the rules of a View.
func Load(v store.View, mounts *mount.Table) (*Rules, error) {
	rs := &Rules{Config: Unconfigured, mounts: mounts, at: map[place]*Rule{}, globs: map[string][]*Rule{}, roles: map[string]bool{}, kinds: map[Kind]bool{}}
	row, err := v.Get(configKey)
	if err != nil {
		return nil, err
	}
	if row.Exists() {
		rs.Config = Config{}
		if err := decoding.Unmarshal(row.Value, &rs.Config); err != nil {
			return nil, fmt.Errorf("quota: damaged row: %w", err)
		}
	}
	all, err := scan(v)
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if e := mounts.ByUUID(r.Mount); r.Mount != "" && (e == nil || e.Removing) {
			continue
		}
		rs.rules = append(rs.rules, r)
		rs.at[r.place()] = r
		rs.kinds[r.Kind] = true
		if strings.HasSuffix(r.Suffix, "*") {
			rs.globs[string(r.Kind)+r.Mount] = append(rs.globs[string(r.Kind)+r.Mount], r)
		}
		if r.Role != "" {
			rs.roles[string(r.Kind)+r.Mount] = true
		}
	}
	return rs, nil
}

// Names are those of a kind's rules, in order.
func (rs *Rules) Names(k Kind) (names []string) {
	for _, r := range rs.rules {
		if r.Kind == k {
			names = append(names, r.Name)
		}
	}
	return names
}

// Named is the rule of a name; nil if there is none.
func (rs *Rules) Named(k Kind, name string) *Rule {
	for _, r := range rs.rules {
		if r.Kind == k && r.Name == name {
			return r
		}
	}
	return nil
}

// Alike is the rule that covers exactly what r does; nil if there is none.
func (rs *Rules) Alike(r *Rule) *Rule { return rs.at[r.place()] }

// Path is what a rule covers, as people say it: the mount's path today and the path in it.
func (rs *Rules) Path(r *Rule) string {
	if e := rs.mounts.ByUUID(r.Mount); e != nil && r.Mount != "" {
		return e.Path + r.Suffix
	}
	return ""
}

// MountOf is the mount that serves path; nil: none does.
func (rs *Rules) MountOf(path string) *mount.Entry {
	e, _ := rs.mounts.Route(path)
	return e
}

// For is the rule of a kind that decides on a request for path, or on a lease that was given there; nil if none does.
func (rs *Rules) For(k Kind, path, role string) *Rule {
	if !rs.kinds[k] {
		return nil
	}
	e, rest := rs.mounts.Route(path)
	uuid := ""
	if e != nil {
		uuid = e.UUID
	}
	return rs.within(k, uuid, strings.TrimSuffix(rest, "/"), role)
}

// within is For what is at rest in a mount.
func (rs *Rules) within(k Kind, mount, rest, role string) *Rule {
	if mount != "" {
		if role != "" {
			if r := rs.at[place{k, mount, "", role}]; r != nil {
				return r
			}
		}
		if rest != "" {
			if r := rs.at[place{k, mount, rest, ""}]; r != nil {
				return r
			}
		}
		var longest *Rule
		for _, r := range rs.globs[string(k)+mount] {
			if strings.HasPrefix(rest, r.Suffix[:len(r.Suffix)-1]) && (longest == nil || len(r.Suffix) > len(longest.Suffix)) {
				longest = r
			}
		}
		if longest != nil {
			return longest
		}
		if r := rs.at[place{k, mount, "", ""}]; r != nil {
			return r
		}
	}
	return rs.at[place{kind: k}]
}

// Roles reports whether the mount that serves path has a rule of the kind for some role, so that the role matters.
func (rs *Rules) Roles(k Kind, path string) bool {
	if len(rs.roles) == 0 {
		return false
	}
	e, _ := rs.mounts.Route(path)
	return e != nil && rs.roles[string(k)+e.UUID]
}

// Exempts reports whether no rate limit covers path. A pattern covers all that begin with it; one with a "!" in front takes
// back what a shorter one covers.
func (rs *Rules) Exempts(path string) bool {
	longest, exempt := -1, false
	for _, p := range slices.Concat(rs.Exempt, rs.Absolute) {
		p, exception := strings.CutPrefix(p, "!")
		p = strings.TrimSuffix(p, "*")
		if len(p) > longest && strings.HasPrefix(path, p) {
			longest, exempt = len(p), !exception
		}
	}
	return exempt
}
