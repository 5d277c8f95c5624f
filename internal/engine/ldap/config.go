package ldap

import (
	"cmp"
	"context"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"
	goldap "github.com/go-ldap/ldap/v3"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/turn"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// Schemas that lessor knows: how accounts are found, and passwords set.
const (
	OpenLDAP = "openldap"
	AD       = "ad"
)

// Timeouts where a configuration has none: to reach one server, and for a whole request.
const (
	ConnectTimeout = 10 * time.Second
	RequestTimeout = 30 * time.Second
)

// Config is a mount's directory, without its secrets. CBOR keys are on disk: never renumber, only append.
type Config struct {
	URL            string        `cbor:"1,keyasint"` // several with commas in between
	Schema         string        `cbor:"2,keyasint"`
	BindDN         string        `cbor:"3,keyasint"`
	UserDN         string        `cbor:"4,keyasint,omitempty"` // below which accounts are searched for
	UserAttr       string        `cbor:"5,keyasint"`           // by which they are
	UPNDomain      string        `cbor:"6,keyasint,omitempty"`
	StartTLS       bool          `cbor:"7,keyasint,omitempty"`
	InsecureTLS    bool          `cbor:"8,keyasint,omitempty"`
	CA             string        `cbor:"9,keyasint,omitempty"`  // PEM
	Certificate    string        `cbor:"10,keyasint,omitempty"` // PEM; its key is a secret
	MinTLS         string        `cbor:"11,keyasint,omitempty"`
	MaxTLS         string        `cbor:"12,keyasint,omitempty"`
	ConnectTimeout time.Duration `cbor:"13,keyasint,omitempty"` // 0: the default
	RequestTimeout time.Duration `cbor:"14,keyasint,omitempty"`
	PasswordPolicy string        `cbor:"15,keyasint,omitempty"`
	MarkAttribute  string        `cbor:"16,keyasint,omitempty"` // empty: the schema's, see Mark

	SkipImport     bool          `cbor:"17,keyasint,omitempty"` // static roles are not rotated when they are made
	RotationPeriod time.Duration `cbor:"18,keyasint,omitempty"` // of lessor's own account
	RotationCron   string        `cbor:"19,keyasint,omitempty"`
	RotationWindow time.Duration `cbor:"20,keyasint,omitempty"`
	RotationOff    bool          `cbor:"21,keyasint,omitempty"` // disable_automated_rotation
}

// Secrets are a configuration's, as the Secrets table keeps them.
type Secrets struct {
	Password   lessor.Secret // bindpass
	PrivateKey lessor.Secret // PEM
}

// Mark is the attribute in which entries bear lessor's mark.
func (c *Config) Mark() string {
	if c.Schema == AD {
		return cmp.Or(c.MarkAttribute, "adminDescription")
	}
	return cmp.Or(c.MarkAttribute, "description")
}

// schedule is when lessor's own account is rotated.
func (c *Config) schedule() rotation.Schedule {
	if c.RotationOff {
		return rotation.Schedule{}
	}
	return rotation.Schedule{Period: c.RotationPeriod, Cron: c.RotationCron, Window: c.RotationWindow}
}

// same reports whether two DNs name the same entry.
func same(a, b string) bool {
	x, err := goldap.ParseDN(a)
	if err != nil {
		return strings.EqualFold(a, b)
	}
	y, err := goldap.ParseDN(b)
	return err == nil && x.EqualFold(y)
}

var configFields = []engine.Field{
	{Name: "url", Type: engine.String, Help: "ldap:// or ldaps:// and the host; several, with commas in between, are tried in turn. Default ldap://127.0.0.1."},
	{Name: "schema", Type: engine.String, Help: "openldap (default), or ad for Active Directory."},
	{Name: "binddn", Type: engine.String, Help: "DN of the account that lessor logs in with."},
	{Name: "bindpass", Type: engine.String, Help: "Its password. Never returned."},
	{Name: "userdn", Type: engine.String, Help: "DN below which accounts are searched for."},
	{Name: "userattr", Type: engine.String, Help: "Attribute by which they are. Default cn; for ad userPrincipalName."},
	{Name: "upndomain", Type: engine.String, Help: "With userattr userPrincipalName: domain that is added to names without one."},
	{Name: "password_policy", Type: engine.String, Help: "Policy of the passwords that are made; empty for the built-in one."},
	{Name: "mark_attribute", Type: engine.String, Help: "Attribute in which entries that lessor makes bear its mark. Default description; for ad adminDescription."},
	{Name: "starttls", Type: engine.Bool, Help: "Begin TLS on ldap:// connections before anything else."},
	{Name: "insecure_tls", Type: engine.Bool, Help: "Do not verify the server's certificate: whoever is on the way can read the passwords."},
	{Name: "certificate", Type: engine.String, Help: "Certificate authorities of the server, PEM; by default the system's."},
	{Name: "client_tls_cert", Type: engine.String, Help: "Client certificate, PEM."},
	{Name: "client_tls_key", Type: engine.String, Help: "Its key, PEM. Never returned."},
	{Name: "tls_min_version", Type: engine.String, Help: "tls12 (default) or tls13."},
	{Name: "tls_max_version", Type: engine.String, Help: "tls12 or tls13; by default the newest."},
	{Name: "connection_timeout", Type: engine.Duration, Help: "How long to try to reach one server. Default 10 seconds."},
	{Name: "request_timeout", Type: engine.Duration, Help: "How long a request may take. Default 30 seconds."},
	{Name: "skip_static_role_import_rotation", Type: engine.Bool, Help: "Do not rotate static roles when they are made, unless they say otherwise."},
	{Name: "rotation_period", Type: engine.Duration, Help: "Time from one rotation of lessor's own account to the next; 0 for none. Excludes rotation_schedule."},
	{Name: "rotation_schedule", Type: engine.String, Help: "Times of such rotations as cron has them, in UTC."},
	{Name: "rotation_window", Type: engine.Duration, Help: "With rotation_schedule: how long after such a time a rotation may begin."},
	{Name: "disable_automated_rotation", Type: engine.Bool, Help: "Rotate lessor's own account on request only."},
	{Name: "verify_connection", Type: engine.Bool, Help: "Log in before the configuration is stored. Default true; not kept."},
}

func (e *Engine) readConfig(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	var c Config
	row, err := load(r.View, r.Mount, configRow, "", &c)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, &api.Error{Kind: api.NotFound}
	}
	a, _, err := rotation.Load(r.View, r.Mount.Namespace, r.Mount.UUID, rootAccount)
	if err != nil {
		return nil, err
	}
	data := map[string]any{
		"url": c.URL, "schema": c.Schema, "binddn": c.BindDN, "userdn": c.UserDN, "userattr": c.UserAttr, "upndomain": c.UPNDomain,
		"starttls": c.StartTLS, "insecure_tls": c.InsecureTLS, "certificate": c.CA, "client_tls_cert": c.Certificate,
		"tls_min_version": cmp.Or(c.MinTLS, "tls12"), "tls_max_version": cmp.Or(c.MaxTLS, "tls13"),
		"connection_timeout": turn.Seconds(cmp.Or(c.ConnectTimeout, ConnectTimeout)), "request_timeout": turn.Seconds(cmp.Or(c.RequestTimeout, RequestTimeout)), "mark_attribute": c.Mark(),
		"skip_static_role_import_rotation": c.SkipImport, "rotation_period": turn.Seconds(c.RotationPeriod), "rotation_schedule": c.RotationCron,
		"rotation_window": turn.Seconds(c.RotationWindow), "disable_automated_rotation": c.RotationOff,
	}
	if c.PasswordPolicy != "" {
		data["password_policy"] = c.PasswordPolicy
	}
	if !a.Rotated.IsZero() {
		data["last_bind_password_rotation"] = a.Rotated
	}
	return &engine.Reply{Data: data, Warnings: append(turn.Warnings(a, r.Now), c.dangers()...)}, nil
}

// dangers warn of passwords that others on the network may read.
func (c *Config) dangers() (all []string) {
	if c.InsecureTLS {
		all = append(all, "insecure_tls: the directory's certificate is not verified, so whoever is on the way can read the passwords")
	}
	for raw := range strings.SplitSeq(c.URL, ",") {
		u, err := url.Parse(strings.TrimSpace(raw))
		if err != nil || u.Scheme != "ldap" || c.StartTLS {
			continue
		}
		if ip, err := netip.ParseAddr(u.Hostname()); u.Hostname() != "localhost" && (err != nil || !ip.IsLoopback()) {
			all = append(all, "passwords go over the network in clear: use ldaps://, or starttls=true")
			break
		}
	}
	return all
}

// writeConfig makes or changes the configuration; what is not sent stays as it was.
func (e *Engine) writeConfig(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	c := Config{URL: "ldap://127.0.0.1", Schema: OpenLDAP}
	row, err := load(r.View, r.Mount, configRow, "", &c)
	if err != nil {
		return nil, err
	}
	kept, err := r.View.Get(store.Key{Table: store.Secrets, Name: row.Name})
	if err != nil {
		return nil, err
	}
	s, err := open(r.Opener, r.Grant, kept)
	if err != nil {
		return nil, err
	}
	before, known := c, s
	if err := c.amend(r, &s); err != nil {
		return nil, err
	}
	if err := c.schedule().Check(r.Now); err != nil {
		return nil, api.Errorf(api.Invalid, "%v", err)
	}
	d, err := e.opener(&c, s)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "%v", err)
	}
	d.Close()
	reply := &engine.Reply{Warnings: c.dangers()}
	var was *turn.Login
	if row.Exists() {
		if was = before.login(known); same(before.BindDN, c.BindDN) {
			was.Username = c.BindDN
		}
	}
	if err := c.unmanaged(r, &reply.Txn); err != nil {
		return nil, err
	}
	logins, err := own.Rekey(r, &reply.Txn, was, c.login(s))
	if err != nil {
		return nil, err
	}
	if err := save(&reply.Txn, row, &c); err != nil {
		return nil, err
	}
	sealed, err := cbor.Marshal(map[int]string{1: s.Password.Reveal(), 2: s.PrivateKey.Reveal()})
	if err != nil {
		return nil, err
	}
	reply.Txn.Require(kept)
	reply.Txn.Put(kept.Table, kept.Name, sealed)
	if row.Exists() && before.URL != c.URL {
		warnings, err := moved(r, &reply.Txn)
		if err != nil {
			return nil, err
		}
		reply.Warnings = append(reply.Warnings, warnings...)
	}
	if !r.Has("verify_connection") || r.Bool("verify_connection") {
		reply.First = func(ctx context.Context) ([]string, error) { return nil, e.verify(ctx, &c, s, logins) }
	}
	mount := r.Mount.UUID
	reply.Then = func(context.Context) error { e.open.close(mount); return nil }
	return reply, nil
}

// verify logs in once. What fails is not stored: a mistake must not take away a configuration that works.
func (e *Engine) verify(ctx context.Context, c *Config, s Secrets, logins []lessor.Secret) error {
	d, err := e.opener(c, s)
	if err == nil {
		defer d.Close()
		d.Use(logins)
		err = d.Ping(ctx)
	}
	if err != nil {
		return &api.Error{Kind: api.Invalid, Text: "error verifying the configuration: " + err.Error(), Cause: err}
	}
	return nil
}

// amend takes over what the client sent.
func (c *Config) amend(r *engine.Request, s *Secrets) error {
	before := c.Schema
	for name, to := range map[string]*string{
		"url": &c.URL, "schema": &c.Schema, "binddn": &c.BindDN, "userdn": &c.UserDN, "userattr": &c.UserAttr, "upndomain": &c.UPNDomain,
		"certificate": &c.CA, "client_tls_cert": &c.Certificate, "tls_min_version": &c.MinTLS, "tls_max_version": &c.MaxTLS,
		"password_policy": &c.PasswordPolicy, "mark_attribute": &c.MarkAttribute,
	} {
		if r.Has(name) {
			*to = r.Str(name)
		}
	}
	for name, to := range map[string]*bool{
		"starttls": &c.StartTLS, "insecure_tls": &c.InsecureTLS, "skip_static_role_import_rotation": &c.SkipImport,
		"disable_automated_rotation": &c.RotationOff,
	} {
		if r.Has(name) {
			*to = r.Bool(name)
		}
	}
	for name, to := range map[string]*time.Duration{"connection_timeout": &c.ConnectTimeout, "request_timeout": &c.RequestTimeout} {
		if r.Has(name) {
			if *to = r.Dur(name); *to < 0 || *to > 10*time.Minute {
				return api.Errorf(api.Invalid, "%s must be from 1 second to 10 minutes; 0 stands for the default", name)
			}
		}
	}
	if r.Has("bindpass") {
		s.Password = r.Secret("bindpass")
	}
	if r.Has("client_tls_key") {
		s.PrivateKey = r.Secret("client_tls_key")
	}
	switch c.Schema {
	case OpenLDAP, AD:
	case "racf":
		return api.Errorf(api.Invalid, "schema racf is not supported: only openldap and ad are")
	default:
		return api.Errorf(api.Invalid, "the configured schema %s is not valid. Supported schemas: [%s %s]", c.Schema, OpenLDAP, AD)
	}
	if c.UserAttr == "" || c.Schema != before && !r.Has("userattr") {
		c.UserAttr = "cn"
		if c.Schema == AD {
			c.UserAttr = "userPrincipalName"
		}
	}
	switch {
	case c.BindDN == "":
		return api.Errorf(api.Invalid, "binddn is needed: the account that lessor logs in with")
	case s.Password.Empty():
		return api.Errorf(api.Invalid, "bindpass is needed: the password of binddn")
	case !attribute.MatchString(c.UserAttr), c.MarkAttribute != "" && !attribute.MatchString(c.MarkAttribute):
		return api.Errorf(api.Invalid, "userattr and mark_attribute must be names of attributes")
	}
	return c.reschedule(r)
}

// reschedule takes over when lessor's own account is rotated.
func (c *Config) reschedule(r *engine.Request) error {
	s, err := turn.RescheduleOwn(rotation.Schedule{Period: c.RotationPeriod, Cron: c.RotationCron, Window: c.RotationWindow}, r)
	c.RotationPeriod, c.RotationCron, c.RotationWindow = s.Period, s.Cron, s.Window
	return err
}

// own is how lessor's own account is configured, and rotated.
var own = turn.Own{Account: rootAccount, Queue: Target, Username: "binddn", Password: "bindpass"}

// unmanaged refuses an account for lessor itself that a static role manages: each would change the password under the other.
func (c *Config) unmanaged(r *engine.Request, txn *store.Txn) error {
	dn, err := goldap.ParseDN(c.BindDN)
	if err != nil {
		return nil // it is no DN, but a name that the directory takes for one
	}
	row, err := r.View.Get(accountKey(r.Mount, dn.String()))
	if err != nil {
		return err
	}
	if row.Exists() {
		return api.Errorf(api.Invalid, "the account %q is managed by %s: give lessor an account of its own", c.BindDN, row.Value)
	}
	txn.Require(row)
	return nil
}

// login is how lessor logs in.
func (c *Config) login(s Secrets) *turn.Login {
	return &turn.Login{Username: c.BindDN, Password: s.Password, Schedule: c.schedule()}
}

// deleteConfig refuses while there is something that could not be undone, or rotated, without it.
func (e *Engine) deleteConfig(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	var c Config
	row, err := load(r.View, r.Mount, configRow, "", &c)
	if err != nil || !row.Exists() {
		return nil, err
	}
	needed, err := leased(r.View, r.Mount)
	if err != nil {
		return nil, err
	}
	if needed {
		return nil, api.Errorf(api.Invalid, "the configuration is still needed to revert leases: revoke them first, for example with lessor lease revoke -prefix %s", r.Mount.Path)
	}
	from := key(r.Mount, accountPrefix)
	for managed, err := range r.View.Scan(store.Engine, from, store.PrefixEnd(from)) {
		if err != nil {
			return nil, err
		}
		return nil, api.Errorf(api.Invalid, "the configuration is still needed for the accounts of %s: delete that first", managed.Value)
	}
	used, err := r.View.Get(rowKey(r.Mount, usedRow))
	if err != nil {
		return nil, err
	}
	a, account, err := rotation.Load(r.View, r.Mount.Namespace, r.Mount.UUID, rootAccount)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	if account.Exists() {
		reply.Warnings = []string{"lessor has forgotten the password of its own account at this directory, which it had rotated: an administrator of the directory has to set another"}
		rotation.Drop(&reply.Txn, account, a)
	}
	reply.Txn.Require(row)
	reply.Txn.Require(account)
	reply.Txn.Require(used) // nobody begins to need it meanwhile
	reply.Txn.Delete(used.Table, used.Name)
	reply.Txn.Delete(row.Table, row.Name)
	reply.Txn.Delete(store.Secrets, row.Name)
	mount := r.Mount.UUID
	reply.Then = func(context.Context) error { e.open.close(mount); return nil }
	return reply, nil
}

// leased reports whether there are leases to revert at the directory.
func leased(v store.View, m *mount.Entry) (bool, error) {
	from := key(m)
	for row, err := range v.Scan(store.Leases, from, store.PrefixEnd(from)) {
		if err != nil {
			return false, err
		}
		l, err := lease.Decode(row)
		if err != nil {
			return false, err
		}
		if l.Kind == lease.Dynamic {
			return true, nil
		}
	}
	return false, nil
}

// moved has the accounts of static roles tried, of a configuration that leads elsewhere than it did, and warns of those of leases. That it is
// another directory, not the same by another name, only who moved it knows.
func moved(r *engine.Request, txn *store.Txn) (warnings []string, err error) {
	from := key(r.Mount, staticPrefix)
	for role, err := range r.View.Scan(store.Engine, from, store.PrefixEnd(from)) {
		if err != nil {
			return nil, err
		}
		if err := turn.Recheck(r, txn, staticPrefix+role.Name[len(from):]); err != nil {
			return nil, err
		}
	}
	needed, err := leased(r.View, r.Mount)
	if needed {
		warnings = append(warnings, "there are leases of accounts where this configuration led before: if that is another directory, they are not ended there; lead it back and revoke the leases first")
	}
	return warnings, err
}
