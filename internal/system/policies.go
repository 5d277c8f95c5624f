package system

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/password"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/policy/book"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

func (b *Backend) policyRoutes() []engine.Route {
	policyFields := []engine.Field{{Name: "policy", Type: engine.String, Help: "the policy, HCL or JSON, in clear or base64"}}
	pathFields := []engine.Field{
		{Name: "path", Type: engine.Strings, Help: "the same as paths"},
		{Name: "paths", Type: engine.Strings, Help: "paths to tell the capabilities of"},
	}
	return []engine.Route{
		{Pattern: "policy", Help: "the same as policies/acl, for older clients", Ops: ops{lessor.List: b.listPoliciesFlat, lessor.Read: b.listPoliciesFlat}},
		{Pattern: "policy/{name...}", Help: "the same as policies/acl, for older clients", Fold: true,
			Fields: append(slices.Clone(policyFields), engine.Field{Name: "rules", Type: engine.String, Help: "older name of policy"}),
			Ops:    ops{lessor.Read: b.readPolicyFlat, lessor.Update: b.writePolicy, lessor.Delete: b.deletePolicy}},
		{Pattern: "policies/acl", Help: "list policies", Ops: ops{lessor.List: b.listPolicies}},
		{Pattern: "policies/acl/{name...}", Help: "ACL policies", Fields: policyFields, Fold: true,
			Ops: ops{lessor.Read: b.readPolicy, lessor.Update: b.writePolicy, lessor.Delete: b.deletePolicy}},
		{Pattern: "policies/password", Help: "list password policies", Ops: ops{lessor.List: b.listPasswordPolicies}},
		{Pattern: "policies/password/{name}", Help: "password policies",
			Fields: append(slices.Clone(policyFields), engine.Field{Name: "entropy_source", Type: engine.String, Help: "platform or seal: randomness comes from the operating system"}),
			Ops:    ops{lessor.Read: b.readPasswordPolicy, lessor.Update: b.writePasswordPolicy, lessor.Delete: b.deletePasswordPolicy}},
		{Pattern: "policies/password/{name}/generate", Help: "make a password by a policy", Ops: read(b.generate)},
		{Pattern: "capabilities", Help: "what a token may do", Fields: append(slices.Clone(pathFields), engine.Field{Name: "token", Type: engine.String, Help: "the token"}),
			Ops: update(b.capabilities)},
		{Pattern: "capabilities-accessor", Help: "what the token of an accessor may do", Ops: update(b.capabilitiesAccessor),
			Fields: append(slices.Clone(pathFields), engine.Field{Name: "accessor", Type: engine.String, Help: "the accessor"})},
		{Pattern: "capabilities-self", Help: "what the calling token may do", Fields: pathFields, Ops: update(b.capabilitiesSelf)},
	}
}

// decoded is a policy document as it was sent, or the text that it is the base64 of.
func decoded(r *engine.Request) (string, error) {
	text := r.Str("policy")
	if text == "" && r.Has("rules") {
		text = r.Str("rules")
	}
	if raw, err := base64.StdEncoding.DecodeString(text); err == nil {
		text = string(raw)
	}
	return text, nil
}

func (b *Backend) listPolicies(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	names, err := book.Names(r.View)
	if err != nil {
		return nil, err
	}
	info := map[string]any{}
	for _, name := range names {
		row, err := book.Row(r.View, name)
		if err != nil {
			return nil, err
		}
		info[name] = map[string]any{"version": row.Version} // as decisions and audit records name it
	}
	return &engine.Reply{Data: map[string]any{"keys": append(names, token.RootPolicy), "key_info": info}}, nil
}

func (b *Backend) listPoliciesFlat(ctx context.Context, r *engine.Request) (*engine.Reply, error) {
	reply, err := b.listPolicies(ctx, r)
	if err == nil {
		delete(reply.Data, "key_info")
		reply.Data["policies"], reply.Flat = reply.Data["keys"], true
	}
	return reply, err
}

func (b *Backend) readPolicyFlat(ctx context.Context, r *engine.Request) (*engine.Reply, error) {
	reply, err := b.readPolicy(ctx, r)
	if err != nil {
		return nil, err
	}
	reply.Data["rules"] = reply.Data["policy"]
	delete(reply.Data, "policy")
	reply.Flat = true
	return reply, nil
}

func policyName(r *engine.Request) string { return strings.ToLower(r.Param("name")) }

func (b *Backend) readPolicy(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := policyName(r)
	if name == token.RootPolicy {
		return &engine.Reply{Data: map[string]any{"name": name, "policy": ""}}, nil
	}
	row, err := book.Row(r.View, name)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, empty()
	}
	return &engine.Reply{Data: map[string]any{"name": name, "policy": string(row.Value)}}, nil // no more: clients take other keys amiss
}

func (b *Backend) writePolicy(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := policyName(r)
	switch {
	case name == token.RootPolicy || book.IsBearer(name):
		return nil, api.Errorf(api.Invalid, "cannot update %q policy", name)
	case name == "" || len(name) > 256 || strings.ContainsAny(name, "\x00\r\n\t, "):
		return nil, api.Errorf(api.Invalid, "a policy's name has 1 to 256 bytes, without white space, commas or control characters")
	}
	text, err := decoded(r)
	if err != nil {
		return nil, err
	}
	if text == "" {
		return nil, api.Errorf(api.Invalid, "'policy' parameter not supplied or empty")
	}
	if _, err := policy.Parse(name, text); err != nil {
		return nil, api.Errorf(api.Invalid, "failed to parse policy: %w", err)
	}
	row, err := book.Row(r.View, name)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	if name != r.Param("name") {
		reply.Warnings = append(reply.Warnings, "policy name was converted to "+name)
	}
	if r.Str("policy") == "" && r.Has("rules") {
		reply.Warnings = append(reply.Warnings, "'rules' is deprecated, please use 'policy' instead")
	}
	book.Put(&reply.Txn, row, text)
	return reply, nil
}

func (b *Backend) deletePolicy(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := policyName(r)
	if name == book.DefaultPolicy {
		return nil, api.Errorf(api.Invalid, "cannot delete default policy")
	}
	if name == token.RootPolicy || book.IsBearer(name) {
		return nil, api.Errorf(api.Invalid, "cannot delete %q policy", name)
	}
	reply := &engine.Reply{}
	book.Delete(&reply.Txn, name)
	return reply, nil
}

func (b *Backend) listPasswordPolicies(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	keys := []string{}
	p := password.RowPrefix()
	for row, err := range r.View.Scan(store.Config, p, store.PrefixEnd(p)) {
		if err != nil {
			return nil, err
		}
		keys = append(keys, strings.TrimPrefix(row.Name, p))
	}
	if len(keys) == 0 {
		return nil, empty()
	}
	return &engine.Reply{Data: map[string]any{"keys": keys}}, nil
}

func (b *Backend) readPasswordPolicy(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	row, err := r.View.Get(password.Key(r.Param("name")))
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, notFound("policy does not exist")
	}
	return &engine.Reply{Data: map[string]any{"policy": string(row.Value)}}, nil
}

func (b *Backend) writePasswordPolicy(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	text, err := decoded(r)
	if err != nil {
		return nil, err
	}
	if text == "" {
		return nil, api.Errorf(api.Invalid, "missing policy")
	}
	if s := r.Str("entropy_source"); s != "" && s != "platform" && s != "seal" {
		return nil, api.Errorf(api.Invalid, "unsupported entropy source %s", s)
	}
	p, err := password.Parse(text)
	switch {
	case errors.Is(err, password.ErrLength):
		return nil, api.Errorf(api.Invalid, "passwords must be between %d and %d characters", password.MinLength, password.MaxLength)
	case err != nil:
		return nil, api.Errorf(api.Invalid, "invalid password policy: %w", err)
	}
	if _, err := p.Generate(r.Random); err != nil {
		return nil, api.Errorf(api.Invalid, "no password can be made by this policy: %v", err)
	}
	k := password.Key(r.Param("name"))
	reply := &engine.Reply{}
	reply.Txn.Put(k.Table, k.Name, []byte(text))
	return reply, nil
}

func (b *Backend) deletePasswordPolicy(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	k := password.Key(r.Param("name"))
	reply := &engine.Reply{}
	reply.Txn.Delete(k.Table, k.Name)
	return reply, nil
}

func (b *Backend) generate(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	row, err := r.View.Get(password.Key(r.Param("name")))
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, notFound("policy does not exist")
	}
	secret, err := r.System.Password(r.Param("name"))
	if err != nil {
		return nil, err
	}
	return &engine.Reply{Data: map[string]any{"password": secret}}, nil
}

func (b *Backend) capabilitiesSelf(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	return tell(r, r.System.Caller())
}

func (b *Backend) capabilities(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t, _, err := r.System.Token(r.Secret("token"))
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, api.Errorf(api.Invalid, "invalid token")
	}
	return tell(r, t)
}

func (b *Backend) capabilitiesAccessor(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	if r.Str("accessor") == "" {
		return nil, api.Errorf(api.Invalid, "missing accessor")
	}
	t, _, err := token.ByAccessor(r.View, r.Str("accessor"))
	if err != nil {
		return nil, err
	}
	if t != nil {
		live, err := t.Live(r.View, r.Now)
		if err != nil {
			return nil, err
		}
		if !live {
			t = nil
		}
	}
	if t == nil {
		return nil, api.Errorf(api.Invalid, "invalid accessor")
	}
	return tell(r, t)
}

// mostPaths bounds the paths of one question: every token may ask, and each path costs more to answer than to send.
const mostPaths = 10_000

func tell(r *engine.Request, t *token.Token) (*engine.Reply, error) {
	paths := append(r.List("paths"), r.List("path")...)
	switch {
	case len(paths) == 0:
		return nil, api.Errorf(api.Invalid, "paths must be supplied")
	case len(paths) > mostPaths:
		return nil, api.Errorf(api.Invalid, "%d paths in one request: ask about %d at most", len(paths), mostPaths)
	}
	data := map[string]any{}
	for _, p := range paths {
		caps, err := r.System.Capabilities(t, strings.TrimPrefix(p, "/"))
		if err != nil {
			return nil, err
		}
		data[p] = caps
	}
	if len(paths) == 1 {
		data["capabilities"] = data[paths[0]]
	}
	return &engine.Reply{Data: data, Flat: true}, nil
}
