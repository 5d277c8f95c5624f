package policy

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// Capabilities is a set of what a rule lets do, or its denial.
type Capabilities uint16

const (
	Deny Capabilities = 1 << iota // wins over all others
	Create
	Read
	Update
	Patch
	Delete
	List
	Sudo      // root-protected paths
	Recover   // of a deleted value from a snapshot; accepted, nothing asks for it
	Subscribe // to events about the path (Hears)
)

var capabilityNames = [...]string{"deny", "create", "read", "update", "patch", "delete", "list", "sudo", "recover", "subscribe"}

// Has reports whether all of d are in c.
func (c Capabilities) Has(d Capabilities) bool { return c&d == d }

// Names lists the set as policies spell it, sorted. A set that denies, or that is empty, is ["deny"].
func (c Capabilities) Names() []string {
	if c == 0 || c.Has(Deny) {
		return []string{"deny"}
	}
	names := make([]string, 0, bits.OnesCount16(uint16(c)))
	for i, name := range capabilityNames {
		if c.Has(1 << i) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// capability finds the one with this name, 0 if there is none.
func capability(name string) Capabilities {
	if i := slices.Index(capabilityNames[:], name); i >= 0 {
		return 1 << i
	}
	return 0
}

// legacy are the values of the key "policy", which older policies have instead of capabilities.
var legacy = map[string]Capabilities{
	"deny":  Deny,
	"read":  Read | List,
	"write": Create | Read | Update | Delete | List,
	"sudo":  Create | Read | Update | Delete | List | Sudo,
}

// Policy is a parsed policy document. After Parse its Version is the caller's to set; from then on nobody writes to it.
type Policy struct {
	Name     string
	Version  uint64   // of its row in the store, set by the caller; 0 if it has none
	Source   string   // as it was given
	Rules    []Rule   // in the order of the document
	Warnings []string // what parses but probably does not mean what it seems to

	root      bool
	templated []int // indexes of Rules that have a template
}

// Rule is one path stanza.
type Rule struct {
	Path         string       // pattern as written, before templates
	Capabilities Capabilities // Deny stands alone
	Comment      string
	Required     []string         // parameters that must be there; lower case
	Denied       map[string][]any // parameter, in lower case, or "*" → values refused; none: any value
	Allowed      map[string][]any // parameter, in lower case, or "*" → values accepted; none: any value
	MinWrap      time.Duration    // the answer must be wrapped for at least this; 0: no bound
	MaxWrap      time.Duration    // the answer must be wrapped, for at most this; 0: no bound
	Control      *ControlGroup    // approvals that it takes; nil if none
	Events       []string         // subscribe_event_types, for Subscribe
	Line         int              // of its stanza in the source, from 1

	label    string  // `path "secret/*"`: how decisions name it
	template []piece // of Path; nil if it has no template
}

// ControlGroup asks for approvals by other people.
type ControlGroup struct {
	TTL     time.Duration // how long a request waits for them; 0: as the server's default says
	Factors []Factor      // all must be met; at least one
}

// Factor is a number of approvals from members of certain groups.
type Factor struct {
	Name         string
	Capabilities Capabilities // what it controls; 0: everything that the rule lets do
	GroupIDs     []string     // members of any of these groups may approve …
	GroupNames   []string     // … and of these; at least one group is named
	Approvals    int          // how many people; at least 1
}

// Templated reports whether the ACL of these policies depends on the principal. If not, it may be cached by the set of
// their names and versions; see also [Variant].
func Templated(policies []*Policy) bool {
	return slices.ContainsFunc(policies, func(p *Policy) bool { return p != nil && len(p.templated) > 0 })
}

// Variant is what the templates of these policies become for p, as a key: two principals with the same variant have the
// same ACL from the same policies. It is empty if there are no templates. As the policy "default" has templates, an ACL
// is best cached by names, versions and variant.
func Variant(policies []*Policy, p *lessor.Principal) string {
	var key []byte
	for _, policy := range policies {
		if policy == nil {
			continue
		}
		for _, i := range policy.templated {
			pattern, ok := policy.Rules[i].resolve(p)
			if !ok {
				key = append(key, 0)
				continue
			}
			key = binary.AppendUvarint(key, uint64(len(pattern))+1)
			key = append(key, pattern...)
		}
	}
	return string(key)
}

// Root returns the built-in policy "root", which grants everything to a principal with Root set.
func Root() *Policy { return &rootPolicy }

var rootPolicy = Policy{Name: "root", root: true}

// Default returns the source of the built-in policy "default": what every token may do with itself.
func Default() string { return defaultSource }

const defaultSource = `# What every token may do: look after itself, its identity and its leases, and keep things of its own.

# The token itself.
path "auth/token/lookup-self"    { capabilities = ["read"] }
path "auth/token/renew-self"     { capabilities = ["update"] }
path "auth/token/revoke-self"    { capabilities = ["update"] }
path "sys/capabilities-self"     { capabilities = ["update"] }
path "sys/internal/ui/resultant-acl" { capabilities = ["read"] }

# The entity that the token belongs to.
path "identity/entity/id/{{identity.entity.id}}"     { capabilities = ["read"] }
path "identity/entity/name/{{identity.entity.name}}" { capabilities = ["read"] }

# Leases, to whoever knows their ids.
path "sys/leases/lookup" { capabilities = ["update"] }
path "sys/leases/renew"  { capabilities = ["update"] }
path "sys/renew"         { capabilities = ["update"] }
path "sys/lessor/leases/acknowledge" { capabilities = ["update"] } # the token's own
path "sys/lessor/leases/release"     { capabilities = ["update"] } # the token's own
path "sys/lessor/leases/supersede"   { capabilities = ["update"] } # the token's own

# A private place that ends with the token.
path "cubbyhole/*" { capabilities = ["create", "read", "update", "delete", "list"] }

# Wrapping: make, look at and open.
path "sys/wrapping/wrap"   { capabilities = ["update"] }
path "sys/wrapping/lookup" { capabilities = ["update"] }
path "sys/wrapping/unwrap" { capabilities = ["update"] }

# Random bytes and hashes.
path "sys/tools/random"   { capabilities = ["update"] }
path "sys/tools/random/*" { capabilities = ["update"] }
path "sys/tools/hash"     { capabilities = ["update"] }
path "sys/tools/hash/*"   { capabilities = ["update"] }

# How far the approvals of a request are.
path "sys/control-group/request" { capabilities = ["update"] }

# Hearing of changes, of what the token's other policies let it read or subscribe to.
path "sys/events/subscribe/*" { capabilities = ["read"] }
path "sys/lessor/events/*"    { capabilities = ["read"] }

# Which mounts there are, as far as the token's other policies reach them.
path "sys/internal/ui/mounts"   { capabilities = ["read"] }
path "sys/internal/ui/mounts/*" { capabilities = ["read"] }
`

// needed is the capability that an operation takes, and its name for a text that does not tell whether the thing
// exists.
func needed(v lessor.Verb, f Facts) (Capabilities, lessor.Verb) {
	switch v {
	case lessor.Read:
		return Read, v
	case lessor.List:
		return List, v
	case lessor.Patch:
		return Patch, v
	case lessor.Delete:
		return Delete, v
	case lessor.Create, lessor.Update:
		if f.ExistsKnown && !f.Exists {
			return Create, lessor.Create
		}
		return Update, lessor.Update
	}
	return 0, v
}

// asked says the operation without telling whether the thing exists.
func asked(v lessor.Verb) string {
	if v == lessor.Create || v == lessor.Update {
		return "write"
	}
	return v.String()
}

// Origin says where a decision comes from.
type Origin struct {
	Rule    string `json:"rule"`              // `path "secret/*"`, as written; "open", "system:reaper", "*" (root), "no rule"
	Policy  string `json:"policy,omitempty"`  // its name
	Version uint64 `json:"version,omitempty"` // its store version
}

// String is how texts name it: `policy "dev" version 12, rule path "secret/*"`.
func (o Origin) String() string {
	if o.Policy == "" {
		return "rule " + o.Rule
	}
	return o.policy() + ", rule " + o.Rule
}

func (o Origin) policy() string {
	if o.Version == 0 {
		return fmt.Sprintf("policy %q", o.Policy)
	}
	return fmt.Sprintf("policy %q version %d", o.Policy, o.Version)
}

// several says at most limit of the items, and how many more there are.
func several[T any](items []T, limit int, say func(T) string) string {
	var said []string
	for _, item := range items[:min(len(items), limit)] {
		said = append(said, say(item))
	}
	text := strings.Join(said, ", ")
	if more := len(items) - limit; more > 0 {
		return fmt.Sprintf("%s and %d more", text, more)
	}
	return text
}
