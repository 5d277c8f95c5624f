package system

import (
	"context"
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/quota"
)

// quotaFields are what rules of both kinds have.
var quotaFields = []engine.Field{
	{Name: "name", Type: engine.String, Help: "name of the rule, as in the path"},
	{Name: "type", Type: engine.String, Help: "kind of the rule, as in the path"},
	{Name: "path", Type: engine.String, Help: "mount, or path in one, that the rule is about; empty: everything; with * at the end: all that begin so"},
	{Name: "role", Type: engine.String, Help: "login role that the rule is about; path is an auth method with roles then"},
	{Name: "inheritable", Type: engine.Bool, Help: "always true for rules about everything, false for the others"},
}

var rateFields = []engine.Field{
	{Name: "rate", Type: engine.Any, Help: "requests in an interval, more than 0"},
	{Name: "secondary_rate", Type: engine.Any, Help: "with group_by entity_then_…: rate of requests without an entity; default: rate"},
	{Name: "interval", Type: engine.Duration, Help: "length of an interval; default: 1s"},
	{Name: "block_interval", Type: engine.Duration, Help: "how long who reached the rate is refused; 0: for the rest of the interval"},
	{Name: "group_by", Type: engine.String, Help: "what is counted together: ip (default; of IPv6 the /64), none, entity_then_ip, entity_then_none"},
}

var leaseCountFields = []engine.Field{
	{Name: "max_leases", Type: engine.Int, Help: "dynamic credentials and service tokens at once, more than 0; leases on static secrets do not count"},
}

func (b *Backend) quotaRoutes() []engine.Route {
	routes := []engine.Route{{
		Pattern: "quotas/config", Help: "settings of all quotas", Ops: ops{lessor.Read: b.readQuotas, lessor.Update: b.writeQuotas},
		Fields: []engine.Field{
			{Name: "enable_rate_limit_audit_logging", Type: engine.Bool, Help: "accepted for compatibility: what rate limits refuse is counted in the audit trail in any case"},
			{Name: "enable_rate_limit_response_headers", Type: engine.Bool, Help: "tell clients their limit in headers of answers"},
			{Name: "rate_limit_exempt_paths", Type: engine.Strings, Help: "paths, and all that begin with them, that no rate limit covers"},
			{Name: "absolute_rate_limit_exempt_paths", Type: engine.Strings, Help: "the same, from the root namespace on"},
		},
	}}
	for kind, fields := range map[quota.Kind][]engine.Field{quota.RateLimit: rateFields, quota.LeaseCount: leaseCountFields} {
		what := map[quota.Kind]string{quota.RateLimit: "rate limit quotas", quota.LeaseCount: "lease count quotas"}[kind]
		of := func(h func(context.Context, *engine.Request, quota.Kind) (*engine.Reply, error)) engine.Handler {
			return func(ctx context.Context, r *engine.Request) (*engine.Reply, error) { return h(ctx, r, kind) }
		}
		routes = append(routes,
			engine.Route{Pattern: "quotas/" + string(kind), Help: "list " + what, Ops: ops{lessor.List: of(listQuotas)}},
			engine.Route{
				Pattern: "quotas/" + string(kind) + "/{name}", Help: what, Fields: append(quotaFields[1:len(quotaFields):len(quotaFields)], fields...),
				Ops: ops{lessor.Read: of(b.readQuota), lessor.Update: of(b.writeQuota), lessor.Delete: of(b.deleteQuota)},
			})
	}
	return routes
}

// inForce lets the answer wait until the change that it reports is in force on this node.
func (b *Backend) inForce(ctx context.Context) error { return b.Quotas.Sync(ctx) }

func rules(r *engine.Request) (*quota.Rules, error) {
	mounts, err := mount.Load(r.View)
	if err != nil {
		return nil, err
	}
	return quota.Load(r.View, mounts)
}

func (b *Backend) readQuotas(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	rs, err := rules(r)
	if err != nil {
		return nil, err
	}
	return &engine.Reply{Data: map[string]any{
		"enable_rate_limit_audit_logging":    rs.AuditLogging,
		"enable_rate_limit_response_headers": rs.ResponseHeaders,
		"rate_limit_exempt_paths":            append([]string{}, rs.Exempt...),
		"absolute_rate_limit_exempt_paths":   append([]string{}, rs.Absolute...),
	}}, nil
}

// writeQuotas sets all settings: what is not sent is off, or empty.
func (b *Backend) writeQuotas(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	reply := &engine.Reply{Then: b.inForce}
	quota.PutConfig(&reply.Txn, quota.Config{
		AuditLogging: r.Bool("enable_rate_limit_audit_logging"), ResponseHeaders: r.Bool("enable_rate_limit_response_headers"),
		Exempt: r.List("rate_limit_exempt_paths"), Absolute: r.List("absolute_rate_limit_exempt_paths"),
	})
	return reply, nil
}

func listQuotas(_ context.Context, r *engine.Request, kind quota.Kind) (*engine.Reply, error) {
	rs, err := rules(r)
	if err != nil {
		return nil, err
	}
	return engine.Keys(rs.Names(kind))
}

func (b *Backend) readQuota(ctx context.Context, r *engine.Request, kind quota.Kind) (*engine.Reply, error) {
	rs, err := rules(r)
	if err != nil {
		return nil, err
	}
	q := rs.Named(kind, r.Param("name"))
	if q == nil {
		return nil, empty()
	}
	data := map[string]any{"type": string(kind), "name": q.Name, "path": rs.Path(q), "role": q.Role, "inheritable": q.Mount == ""}
	if kind == quota.LeaseCount {
		if err := b.Quotas.Sync(ctx); err != nil {
			return nil, err
		}
		data["max_leases"], data["counter"] = q.Max, b.Quotas.Count(q.Name)
		return &engine.Reply{Data: data}, nil
	}
	data["rate"], data["secondary_rate"] = q.Rate, q.SecondaryRate
	data["interval"], data["block_interval"], data["group_by"] = whole(q.Interval), whole(q.Block), q.GroupBy
	return &engine.Reply{Data: data}, nil
}

func (b *Backend) deleteQuota(_ context.Context, r *engine.Request, kind quota.Kind) (*engine.Reply, error) {
	reply := &engine.Reply{Then: b.inForce}
	quota.Delete(&reply.Txn, kind, r.Param("name"))
	return reply, nil
}

func (b *Backend) writeQuota(_ context.Context, r *engine.Request, kind quota.Kind) (*engine.Reply, error) {
	q := &quota.Rule{Kind: kind, Name: r.Param("name"), Role: r.Str("role")}
	if err := quotaName(q.Name); err != nil {
		return nil, err
	}
	var err error
	switch kind {
	case quota.RateLimit:
		err = readRate(r, q)
	case quota.LeaseCount:
		if n := r.Int("max_leases"); n > 0 {
			q.Max = uint64(n)
		} else {
			err = api.Errorf(api.Invalid, "'max_leases' is invalid")
		}
	}
	if err == nil {
		err = b.aim(r, q)
	}
	if err != nil {
		return nil, err
	}
	rs, err := rules(r)
	if err != nil {
		return nil, err
	}
	if other := rs.Alike(q); other != nil && other.Name != q.Name {
		return nil, api.Errorf(api.Invalid, "quota rule with similar properties exists under the name %q", other.Name)
	}
	reply := &engine.Reply{Then: b.inForce}
	quota.Put(&reply.Txn, q, r.View.Position())
	return reply, nil
}

// quotaName accepts what Vault does: letters, digits, and within the name points, hyphens and underscores.
func quotaName(name string) error {
	within := func(c rune) bool {
		return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
	}
	for i, c := range name {
		if !within(c) && (i == 0 || i == len(name)-1 || c != '.' && c != '-') || len(name) > 256 {
			return api.Errorf(api.Invalid, "names of quotas have up to 256 letters, digits, and within them points, hyphens and underscores")
		}
	}
	return nil
}

// readRate takes over what is said of a rate limit.
func readRate(r *engine.Request, q *quota.Rule) error {
	q.GroupBy = r.Str("group_by")
	byEntity := false
	switch q.GroupBy {
	case "":
		q.GroupBy = quota.ByIP
	case quota.ByIP, quota.ByNone:
	case quota.ByEntityThenIP, quota.ByEntityThenNone:
		byEntity = true
	default:
		return api.Errorf(api.Invalid, "invalid grouping mode %q", q.GroupBy)
	}
	var ok bool
	if q.Rate, ok = number(r.Any("rate")); !ok || q.Rate <= 0 || q.Rate > math.MaxInt32 {
		return api.Errorf(api.Invalid, "'rate' is invalid")
	}
	q.SecondaryRate, ok = number(r.Any("secondary_rate"))
	switch {
	case !ok || q.SecondaryRate < 0 || q.SecondaryRate > math.MaxInt32:
		return api.Errorf(api.Invalid, "secondary rate must be greater than or equal to 0")
	case byEntity && q.SecondaryRate == 0:
		q.SecondaryRate = q.Rate
	case !byEntity && q.SecondaryRate != 0:
		return api.Errorf(api.Invalid, "secondary rate is only valid when using entity-based grouping")
	}
	q.Interval, q.Block = r.Dur("interval").Truncate(time.Second), r.Dur("block_interval").Truncate(time.Second)
	if q.Interval == 0 {
		q.Interval = time.Second
	}
	return nil
}

// number reads a number that may have a fraction, also as a string.
func number(raw any) (float64, bool) {
	var text string
	switch v := raw.(type) {
	case nil:
		return 0, true
	case json.Number:
		text = v.String()
	case string:
		text = v
	default:
		return 0, false
	}
	f, err := strconv.ParseFloat(text, 64)
	return f, err == nil && !math.IsNaN(f) && !math.IsInf(f, 0)
}

// aim finds out what a rule is about: everything, a mount, a path in one, a role of one.
func (b *Backend) aim(r *engine.Request, q *quota.Rule) error {
	path := strings.TrimPrefix(strings.TrimSpace(r.Str("path")), "/")
	if path != "" && !strings.HasSuffix(path, "/") {
		path += "/"
	}
	if path != "" {
		e, rest := mountOf(r, path)
		if e == nil || e.Removing {
			return api.Errorf(api.Invalid, "invalid mount path %q", path)
		}
		q.Mount, q.Suffix = e.UUID, strings.TrimSuffix(rest, "/")
		if q.Role != "" {
			if err := b.takesRoles(e, q); err != nil {
				return err
			}
		}
	} else if q.Role != "" {
		return api.Errorf(api.Invalid, "Mount path %q is not a valid auth method and therefore unsuitable for use with role-based quotas", "")
	}
	switch {
	case r.Has("inheritable") && r.Bool("inheritable") && path != "":
		return api.Errorf(api.Invalid, "only namespace quotas can be configured as inheritable")
	case r.Has("inheritable") && !r.Bool("inheritable") && path == "":
		return api.Errorf(api.Invalid, "all global quotas must be inheritable")
	}
	return nil
}

// takesRoles refuses rules about roles where there are none.
func (b *Backend) takesRoles(e *mount.Entry, q *quota.Rule) error {
	switch {
	case q.Suffix != "":
		return api.Errorf(api.Invalid, "Quotas cannot contain both a path suffix and a role. If a role is provided, path must be a valid auth mount with a concept of roles")
	case e.Class != mount.Auth:
		return api.Errorf(api.Invalid, "Mount path %q is not a valid auth method and therefore unsuitable for use with role-based quotas", e.Path)
	}
	for _, route := range b.Backends[e.Backend()].Routes() {
		if route.Subject != nil && route.Roles {
			return nil
		}
	}
	return api.Errorf(api.Invalid, "Mount path %q does not support use with role-based quotas", e.Path)
}
