// Package auth holds what auth methods share: the terms on which they give tokens (Vault's token_* parameters), addresses
// that something is bound to, and names.
package auth

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/policy/book"
	"github.com/lessor-dev/lessor/internal/token"
)

// TokenFields are the parameters that every auth method's roles and users have.
func TokenFields() []engine.Field { return slices.Clone(tokenFields) }

var tokenFields = []engine.Field{
	{Name: "token_bound_cidrs", Type: engine.Strings, Help: "addresses that the tokens may be used from; none: any"},
	{Name: "token_explicit_max_ttl", Type: engine.Duration, Help: "end of the tokens that no renewal goes beyond, whatever changes later"},
	{Name: "token_max_ttl", Type: engine.Duration, Help: "end of the tokens that no renewal goes beyond"},
	{Name: "token_no_default_policy", Type: engine.Bool, Help: `leave the policy "default" out`},
	{Name: "token_num_uses", Type: engine.Int, Help: "uses of each token; 0: unlimited"},
	{Name: "token_period", Type: engine.Duration, Help: "makes the tokens periodic: each renewal gives them this long, without an end"},
	{Name: "token_policies", Type: engine.Strings, Help: "policies of the tokens"},
	{Name: "token_ttl", Type: engine.Duration, Help: "how long the tokens live unless they are renewed"},
	{Name: "token_type", Type: engine.String, Help: "service, batch or default"},
}

// Older maps parameters to the names that they had once, which some clients still use: token_policies → policies.
// The present name wins where both are sent.
type Older map[string]string

// Fields are the parameters under their older names, whose present ones are among fields.
func (o Older) Fields(fields []engine.Field) []engine.Field {
	var out []engine.Field
	for _, f := range fields {
		if name, ok := o[f.Name]; ok {
			out = append(out, engine.Field{Name: name, Type: f.Type, Help: "older name of " + f.Name})
		}
	}
	return out
}

// Name is the name under which the client sent a parameter, if it did.
func (o Older) Name(r *engine.Request, name string) (string, bool) {
	if r.Has(name) {
		return name, true
	}
	if older, ok := o[name]; ok && r.Has(older) {
		return older, true
	}
	return "", false
}

// Used are the parameters that were last written by their older names, given those before: they are shown by both.
func (o Older) Used(r *engine.Request, before []string) []string {
	used := slices.Clone(before)
	for name, older := range o {
		if !r.Has(name) && !r.Has(older) {
			continue
		}
		used = slices.DeleteFunc(used, func(s string) bool { return s == name })
		if r.Has(older) {
			used = append(used, name)
		}
	}
	slices.Sort(used)
	return used
}

// Show repeats the parameters in used under their older names.
func (o Older) Show(data map[string]any, used []string) {
	for _, name := range used {
		if older, ok := o[name]; ok {
			data[older] = data[name]
		}
	}
}

// ParseTokenTerms takes over what the client sent of the token parameters. Errors are of kind Invalid.
func ParseTokenTerms(r *engine.Request, t *engine.TokenTerms, o Older) error {
	duration := func(name string, to *time.Duration) {
		if sent, ok := o.Name(r, name); ok {
			*to = r.Dur(sent)
		}
	}
	duration("token_ttl", &t.TTL)
	duration("token_max_ttl", &t.MaxTTL)
	duration("token_explicit_max_ttl", &t.ExplicitMaxTTL)
	duration("token_period", &t.Period)
	if name, ok := o.Name(r, "token_policies"); ok {
		t.Policies = r.List(name)
	}
	if name, ok := o.Name(r, "token_no_default_policy"); ok {
		t.NoDefaultPolicy = r.Bool(name)
	}
	if name, ok := o.Name(r, "token_bound_cidrs"); ok {
		bound, err := Prefixes(name, r.List(name))
		if err != nil {
			return err
		}
		t.BoundCIDRs = bound
	}
	if name, ok := o.Name(r, "token_num_uses"); ok {
		n := r.Int(name)
		if n < 0 {
			return api.Errorf(api.Invalid, "'token_num_uses' cannot be negative")
		}
		t.NumUses = int(n)
	}
	if name, ok := o.Name(r, "token_type"); ok {
		switch v := r.Str(name); v {
		case "", "default":
			t.Type = ""
		case "service", "batch", "default-service", "default-batch":
			t.Type = v
		default:
			return api.Errorf(api.Invalid, "invalid 'token_type' value %q", v)
		}
	}
	batch := t.Type == "batch" || t.Type == "default-batch"
	switch {
	case batch && t.Period != 0:
		return api.Errorf(api.Invalid, "'token_type' cannot be 'batch' or 'default_batch' when set to generate periodic tokens")
	case batch && t.NumUses != 0:
		return api.Errorf(api.Invalid, "'token_type' cannot be 'batch' or 'default_batch' when set to generate tokens with limited use count")
	case t.MaxTTL > 0 && t.TTL > t.MaxTTL:
		return api.Errorf(api.Invalid, "'token_ttl' cannot be greater than 'token_max_ttl'")
	}
	return nil
}

// TermsData puts the terms into the data of an answer.
func TermsData(t *engine.TokenTerms, data map[string]any) {
	data["token_bound_cidrs"] = addresses(t.BoundCIDRs)
	data["token_explicit_max_ttl"] = Seconds(t.ExplicitMaxTTL)
	data["token_max_ttl"] = Seconds(t.MaxTTL)
	data["token_no_default_policy"] = t.NoDefaultPolicy
	data["token_num_uses"] = t.NumUses
	data["token_period"] = Seconds(t.Period)
	data["token_policies"] = append([]string{}, t.Policies...)
	data["token_ttl"] = Seconds(t.TTL)
	data["token_type"] = "default"
	if t.Type != "" {
		data["token_type"] = t.Type
	}
}

// Terms puts into a token's terms what its role or user says now of how long it lives.
func Terms(t *engine.TokenTerms, terms *token.Lifetime) {
	terms.TTL, terms.MaxTTL, terms.Period = t.TTL, t.MaxTTL, t.Period
}

// SamePolicies reports whether two lists name the same policies, whatever their case and order. default counts for nothing.
func SamePolicies(a, b []string) bool {
	set := func(names []string) map[string]bool {
		out := map[string]bool{}
		for _, n := range names {
			if n = strings.ToLower(strings.TrimSpace(n)); n != "" && n != book.DefaultPolicy {
				out[n] = true
			}
		}
		return out
	}
	return maps.Equal(set(a), set(b))
}

// Seconds is a duration as clients see it.
func Seconds(d time.Duration) int64 { return int64(d / time.Second) }

// Prefixes reads CIDR blocks and single addresses that the client sent as field.
func Prefixes(field string, blocks []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range blocks {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, err := netip.ParseAddr(s)
			if err != nil || a.Zone() != "" {
				return nil, api.Errorf(api.Invalid, "field %q: %q is no CIDR block and no address", field, s)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p)
	}
	return out, nil
}

// addresses are prefixes as Vault shows those of tokens: one address without its length.
func addresses(prefixes []netip.Prefix) []string {
	out := make([]string, 0, len(prefixes))
	for _, p := range prefixes {
		if p.IsSingleIP() {
			out = append(out, p.Addr().String())
		} else {
			out = append(out, p.String())
		}
	}
	return out
}

// Within reports whether the address is in one of the blocks, whatever zone it has: blocks have none. No blocks: any address is.
func Within(blocks []netip.Prefix, a netip.Addr) bool {
	return len(blocks) == 0 || slices.ContainsFunc(blocks, func(p netip.Prefix) bool { return p.Contains(a.Unmap().WithZone("")) })
}

// Inside reports whether each of the inner blocks lies in one of the outer ones. No outer blocks: they do.
func Inside(outer, inner []netip.Prefix) bool {
	if len(outer) == 0 {
		return true
	}
	return !slices.ContainsFunc(inner, func(in netip.Prefix) bool {
		return !slices.ContainsFunc(outer, func(out netip.Prefix) bool { return out.Bits() <= in.Bits() && out.Contains(in.Addr()) })
	})
}

// Glob matches "*" in pattern with anything.
func Glob(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	last := len(parts) - 1
	if last == 0 {
		return s == pattern
	}
	if len(s) < len(parts[0])+len(parts[last]) || !strings.HasPrefix(s, parts[0]) || !strings.HasSuffix(s, parts[last]) {
		return false
	}
	s = s[len(parts[0]) : len(s)-len(parts[last])]
	for _, part := range parts[1:last] {
		_, after, found := strings.Cut(s, part)
		if !found {
			return false
		}
		s = after
	}
	return true
}

// CheckName refuses names of roles and users that nobody could address again. Errors are of kind Invalid.
func CheckName(what, name string) error {
	switch {
	case name == "":
		return api.Errorf(api.Invalid, "missing %s", what)
	case len(name) > engine.LongestPath:
		return api.Errorf(api.Invalid, "%s is longer than maximum of %d bytes", what, engine.LongestPath)
	}
	return engine.CheckPath(name)
}

// NewUUID makes a random UUID (version 4).
func NewUUID(random io.Reader) (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", fmt.Errorf("auth: no randomness: %w", err)
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]), nil
}

// encoding keeps times to the nanosecond; decoding takes strings of any bytes.
var encoding, decoding = func() (cbor.EncMode, cbor.DecMode) {
	o := cbor.CoreDetEncOptions()
	o.Time = cbor.TimeRFC3339Nano
	e, err := o.EncMode()
	if err != nil {
		panic(err)
	}
	d, err := cbor.DecOptions{UTF8: cbor.UTF8DecodeInvalid}.DecMode()
	if err != nil {
		panic(err)
	}
	return e, d
}()

// Encode is the value of a row that holds v, which is plain data.
func Encode(v any) []byte {
	b, err := encoding.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("auth: %v", err)) // a defect
	}
	return b
}

// Decode reads into v what Encode made.
func Decode[T ~string | ~[]byte](value T, v any) error {
	if err := decoding.Unmarshal([]byte(value), v); err != nil {
		return fmt.Errorf("auth: damaged row: %w", err)
	}
	return nil
}
