package database

import (
	"context"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/turn"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// Connection is a configured database, without its secrets. CBOR keys are on disk: never renumber, only append.
type Connection struct {
	Plugin           string   `cbor:"1,keyasint"`
	URL              string   `cbor:"2,keyasint"` // {{username}} and {{password}} stand for those; never contains a password
	Username         string   `cbor:"3,keyasint,omitempty"`
	AllowedRoles     []string `cbor:"4,keyasint,omitempty"` // globs
	Verify           bool     `cbor:"5,keyasint,omitempty"` // connect when it is written
	MaxOpen          int64    `cbor:"6,keyasint,omitempty"` // sessions; 0: DefaultOpen, < 0: MostOpen
	MaxIdle          int64    `cbor:"7,keyasint,omitempty"` // of them idle; 0: as many as may be open, < 0: none
	MaxLifetime      string   `cbor:"8,keyasint,omitempty"` // of a session, as it was written; zero: no end
	UsernameTemplate string   `cbor:"9,keyasint,omitempty"`
	PasswordPolicy   string   `cbor:"10,keyasint,omitempty"`
	Authentication   string   `cbor:"11,keyasint,omitempty"` // password_authentication; empty: the Driver's default
	ScramIterations  int64    `cbor:"12,keyasint,omitempty"` // 0: the Driver's default
	RootRotation     []string `cbor:"13,keyasint,omitempty"`
	CA               string   `cbor:"14,keyasint,omitempty"` // PEM
	Certificate      string   `cbor:"15,keyasint,omitempty"` // PEM; its key is a secret
	ServerName       string   `cbor:"16,keyasint,omitempty"` // expected in the server's certificate; empty: the host

	RotationPeriod  time.Duration `cbor:"17,keyasint,omitempty"` // of lessor's own account
	RotationCron    string        `cbor:"18,keyasint,omitempty"`
	RotationWindow  time.Duration `cbor:"19,keyasint,omitempty"`
	RotationOff     bool          `cbor:"20,keyasint,omitempty"` // disable_automated_rotation
	SkipImport      bool          `cbor:"21,keyasint,omitempty"` // static roles are not rotated when they are made
	DisableEscaping bool          `cbor:"22,keyasint,omitempty"` // kept for who reads it back: nothing is put into the URL

	Host        string `cbor:"23,keyasint,omitempty"` // where there is no URL
	Port        int64  `cbor:"24,keyasint,omitempty"` // 0: the Driver's default
	TLS         bool   `cbor:"25,keyasint,omitempty"`
	InsecureTLS bool   `cbor:"26,keyasint,omitempty"` // any certificate is taken
	Persistence string `cbor:"27,keyasint,omitempty"` // persistence_mode, upper case; empty: the Driver's default
}

// Secrets are a connection's, as the Secrets table keeps them. CBOR keys are on disk: never renumber, only append.
type Secrets struct {
	Password   lessor.Secret
	PrivateKey lessor.Secret // PEM
}

// DefaultOpen is how many sessions a connection has where it does not say, and MostOpen how many it can have.
const (
	DefaultOpen = 4
	MostOpen    = 1000
)

// Lifetime is how long a session may live; 0 means without end.
func (c *Connection) Lifetime() time.Duration {
	d, _ := engine.ParseDuration(c.MaxLifetime)
	return d
}

// Open is how many sessions there may be.
func (c *Connection) Open() int {
	switch {
	case c.MaxOpen == 0:
		return DefaultOpen
	case c.MaxOpen < 0:
		return MostOpen
	}
	return int(c.MaxOpen)
}

// allows reports whether the role may use the connection.
func (c *Connection) allows(role string) bool {
	return slices.ContainsFunc(c.AllowedRoles, func(glob string) bool {
		ok, _ := path.Match(glob, role)
		return ok
	})
}

var connectionFields = []engine.Field{
	{Name: "plugin_name", Type: engine.String, Help: "Kind of database: postgresql-database-plugin, mysql-database-plugin (MariaDB, MySQL) or redis-database-plugin."},
	{Name: "connection_url", Type: engine.String, Help: "URL of the database; {{username}} and {{password}} stand for those parameters."},
	{Name: "host", Type: engine.String, Help: "Redis: name or address of the server, in the place of a connection_url."},
	{Name: "port", Type: engine.Int, Help: "Redis: port of the server. Default 6379."},
	{Name: "tls", Type: engine.Bool, Help: "Redis: speak TLS. Default false."},
	{Name: "insecure_tls", Type: engine.Bool, Help: "Redis: take any certificate of the server's, and so talk to whoever is in its place. Default false."},
	{Name: "ca_cert", Type: engine.String, Help: "Redis: another name of tls_ca."},
	{Name: "persistence_mode", Type: engine.String, Help: "Redis: ACLFILE saves accounts with ACL SAVE, REWRITE with CONFIG REWRITE, NONE not at all. By default they are saved where the server has a file for them."},
	{Name: "username", Type: engine.String, Help: "Account that lessor logs in with."},
	{Name: "password", Type: engine.String, Help: "Its password. Never returned."},
	{Name: "allowed_roles", Type: engine.Strings, Help: "Roles that may use the connection; globs, \"*\" for all. None by default."},
	{Name: "verify_connection", Type: engine.Bool, Help: "Log in when the connection is written, and try what static roles over it say when they are. Default true."},
	{Name: "max_open_connections", Type: engine.Int, Help: "Sessions at most. Default 4; a negative number stands for 1000."},
	{Name: "max_idle_connections", Type: engine.Int, Help: "Idle sessions at most; 0 means all, a negative number none."},
	{Name: "max_connection_lifetime", Type: engine.Any, Help: "Age at which a session is closed; 0 for never."},
	{Name: "username_template", Type: engine.String, Help: "Template of the usernames that are made."},
	{Name: "password_policy", Type: engine.String, Help: "Policy of the passwords that are made; empty for the built-in one."},
	{Name: "password_authentication", Type: engine.String, Help: "PostgreSQL: scram-sha-256 (default), the database gets a verifier only. MariaDB, MySQL: mysql_native_password (MariaDB's default) or ed25519, it gets a hash only. password (MySQL's default): it gets the password."},
	{Name: "scram_iterations", Type: engine.Int, Help: "Iterations of SCRAM verifiers, from 1. Default 4096: some drivers refuse fewer."},
	{Name: "plugin_version", Type: engine.String, Help: "Empty: lessor's drivers are built in, and have its version."},
	{Name: "disable_escaping", Type: engine.Bool, Help: "Without effect: user name and password are given to the driver, never put into the URL."},
	{Name: "skip_static_role_import_rotation", Type: engine.Bool, Help: "Do not rotate static roles when they are made, unless they say otherwise."},
	{Name: "rotation_period", Type: engine.Duration, Help: "Time from one rotation of lessor's own account to the next; 0 for none. Excludes rotation_schedule."},
	{Name: "rotation_schedule", Type: engine.String, Help: "Times of such rotations as cron has them, in UTC."},
	{Name: "rotation_window", Type: engine.Duration, Help: "With rotation_schedule: how long after such a time a rotation may begin."},
	{Name: "disable_automated_rotation", Type: engine.Bool, Help: "Rotate lessor's own account on request only."},
	{Name: "root_rotation_statements", Type: engine.Any, Help: "Statements that change the password of lessor's own account."},
	{Name: "tls_ca", Type: engine.String, Help: "Certificate authorities of the server, PEM."},
	{Name: "tls_certificate", Type: engine.String, Help: "Client certificate, PEM."},
	{Name: "private_key", Type: engine.String, Help: "Key of the client certificate, PEM. Never returned."},
	{Name: "tls_certificate_key", Type: engine.String, Help: "Client certificate and its key in one PEM text, as Vault has them for MySQL. The key is never returned."},
	{Name: "tls_skip_verify", Type: engine.Bool, Help: "MariaDB, MySQL: take any certificate for the server's. Default false."},
	{Name: "tls_server_name", Type: engine.String, Help: "Name expected in the server's certificate, if it is not the host's."},
}

func (e *Engine) readConnection(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	var c Connection
	row, err := load(r.View, r.Mount, connectionPrefix, r.Param("name"), &c)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, &api.Error{Kind: api.NotFound}
	}
	details, ca := map[string]any{"connection_url": c.URL}, "tls_ca"
	if c.Host != "" {
		details, ca = map[string]any{"host": c.Host, "tls": c.TLS, "insecure_tls": c.InsecureTLS}, "ca_cert"
	}
	for name, v := range map[string]string{
		"username": c.Username, "username_template": c.UsernameTemplate, "password_authentication": c.Authentication,
		ca: c.CA, "tls_certificate": c.Certificate, "tls_server_name": c.ServerName, "max_connection_lifetime": c.MaxLifetime,
		"persistence_mode": c.Persistence,
	} {
		if v != "" {
			details[name] = v
		}
	}
	for name, n := range map[string]int64{"port": c.Port, "max_open_connections": c.MaxOpen, "max_idle_connections": c.MaxIdle, "scram_iterations": c.ScramIterations} {
		if n != 0 {
			details[name] = count(n)
		}
	}
	for name, yes := range map[string]bool{"disable_escaping": c.DisableEscaping, "tls_skip_verify": c.InsecureTLS && c.Host == ""} {
		if yes {
			details[name] = true
		}
	}
	a, _, err := rotation.Load(r.View, r.Mount.Namespace, r.Mount.UUID, rootPrefix+r.Param("name"))
	if err != nil {
		return nil, err
	}
	return &engine.Reply{Warnings: turn.Warnings(a, r.Now), Data: map[string]any{
		"rotation_schedule": c.RotationCron, "rotation_window": turn.Seconds(c.RotationWindow), "rotation_period": turn.Seconds(c.RotationPeriod),
		"disable_automated_rotation": c.RotationOff, "skip_static_role_import_rotation": c.SkipImport,
		"plugin_name": c.Plugin, "plugin_version": "", "connection_details": details, "allowed_roles": nonNil(c.AllowedRoles),
		"root_credentials_rotate_statements": nonNil(c.RootRotation), "password_policy": c.PasswordPolicy, "verify_connection": c.Verify,
	}}, nil
}

// writeConnection makes or changes a connection; what is not sent stays as it was.
func (e *Engine) writeConnection(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := named(r)
	if err != nil {
		return nil, err
	}
	var c Connection
	row, err := load(r.View, r.Mount, connectionPrefix, name, &c)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		c.Verify = true
	}
	kept, err := r.View.Get(store.Key{Table: store.Secrets, Name: key(r.Mount, connectionPrefix, name)})
	if err != nil {
		return nil, err
	}
	s, err := open(r.Opener.Open, r.Grant, kept)
	if err != nil {
		return nil, err
	}
	before, known := c, s
	if err := c.amend(r, &s); err != nil {
		return nil, err
	}
	if c.Plugin == "" {
		return nil, api.Errorf(api.Invalid, "empty plugin name")
	}
	d, err := e.driver(c.Plugin)
	if err != nil {
		return nil, err
	}
	if err := e.checkConnection(d, &c, s); err != nil {
		return nil, err
	}
	if err := c.schedule().Check(r.Now); err != nil {
		return nil, api.Errorf(api.Invalid, "%v", err)
	}

	reply := &engine.Reply{}
	logins, err := e.rekey(r, d, name, &reply.Txn, own{&before, known, row.Exists()}, own{&c, s, true})
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
	if row.Exists() && !d.SameServer(&before, &c) {
		if reply.Warnings, err = moved(r, &reply.Txn, name); err != nil {
			return nil, err
		}
	}
	reply.Warnings = append(reply.Warnings, c.exposed()...)
	if c.Verify {
		reply.First = func(ctx context.Context) ([]string, error) { return nil, verify(ctx, d, &c, s, logins) }
	}
	mount := r.Mount.UUID
	reply.Then = func(context.Context) error { e.open.close(mount, name); return nil }
	return reply, nil
}

// exposed warns of a connection by host that somebody on the way may read, or stand in for.
func (c *Connection) exposed() []string {
	ip, err := netip.ParseAddr(strings.Trim(c.Host, "[]"))
	switch {
	case c.Host == "" || c.Host == "localhost" || err == nil && ip.Unmap().IsLoopback():
	case c.InsecureTLS:
		return []string{"insecure_tls takes any certificate: who stands between lessor and the database gets lessor's password; say ca_cert instead"}
	case !c.TLS:
		return []string{"without TLS, who stands between lessor and the database reads lessor's password; say tls=true"}
	}
	return nil
}

// verify logs in once. What fails is not stored, as with Vault: a mistake must not take away a connection that works.
func verify(ctx context.Context, d Driver, c *Connection, s Secrets, logins []lessor.Secret) error {
	db, err := d.Open(c, s)
	if err == nil {
		defer db.Close()
		db.Use(logins)
		err = db.Ping(ctx)
	}
	if err != nil {
		return &api.Error{Kind: api.Invalid, Text: "error creating database object: error verifying connection: " + err.Error(), Cause: err}
	}
	return nil
}

// amend takes over what the client sent.
func (c *Connection) amend(r *engine.Request, s *Secrets) error {
	for name, to := range map[string]*string{
		"plugin_name": &c.Plugin, "connection_url": &c.URL, "username": &c.Username, "username_template": &c.UsernameTemplate,
		"password_policy": &c.PasswordPolicy, "password_authentication": &c.Authentication, "tls_ca": &c.CA,
		"tls_certificate": &c.Certificate, "tls_server_name": &c.ServerName, "host": &c.Host, "persistence_mode": &c.Persistence,
	} {
		if r.Has(name) {
			*to = r.Str(name)
		}
	}
	for name, to := range map[string]*int64{"port": &c.Port, "max_open_connections": &c.MaxOpen, "max_idle_connections": &c.MaxIdle, "scram_iterations": &c.ScramIterations} {
		if r.Has(name) {
			*to = r.Int(name)
		}
	}
	c.Persistence = strings.ToUpper(c.Persistence)
	if r.Has("ca_cert") {
		c.CA = r.Str("ca_cert")
	}
	if r.Has("allowed_roles") {
		c.AllowedRoles = r.List("allowed_roles")
	}
	if r.Has("verify_connection") {
		c.Verify = r.Bool("verify_connection")
	}
	if r.Has("max_connection_lifetime") {
		text, ok := lifetime(r.Any("max_connection_lifetime"))
		if !ok {
			return api.Errorf(api.Invalid, `field "max_connection_lifetime" is not a duration`)
		}
		c.MaxLifetime = text
	}
	for name, to := range map[string]*bool{
		"disable_automated_rotation": &c.RotationOff, "skip_static_role_import_rotation": &c.SkipImport, "disable_escaping": &c.DisableEscaping,
		"tls": &c.TLS, "insecure_tls": &c.InsecureTLS, "tls_skip_verify": &c.InsecureTLS,
	} {
		if r.Has(name) {
			*to = r.Bool(name)
		}
	}
	if v := r.Str("plugin_version"); v != "" {
		return api.Errorf(api.Invalid, "plugin_version %q: lessor's drivers are built in and have no versions of their own; leave it empty", v)
	}
	if err := c.reschedule(r); err != nil {
		return err
	}
	if r.Has("root_rotation_statements") {
		var ok bool
		if c.RootRotation, ok = statements(r.Any("root_rotation_statements")); !ok {
			return api.Errorf(api.Invalid, `field "root_rotation_statements" is not a list of strings`)
		}
	}
	if r.Has("password") {
		s.Password = r.Secret("password")
	}
	if r.Has("private_key") {
		s.PrivateKey = r.Secret("private_key")
	}
	if r.Has("tls_certificate_key") {
		var err error
		if c.Certificate, s.PrivateKey, err = certified(r.Secret("tls_certificate_key")); err != nil {
			return api.Errorf(api.Invalid, "%v", err)
		}
	}
	return c.withdraw(s)
}

// reschedule takes over when lessor's own account is rotated.
func (c *Connection) reschedule(r *engine.Request) error {
	s, err := turn.RescheduleOwn(rotation.Schedule{Period: c.RotationPeriod, Cron: c.RotationCron, Window: c.RotationWindow}, r)
	c.RotationPeriod, c.RotationCron, c.RotationWindow = s.Period, s.Cron, s.Window
	return err
}

// schedule is when lessor's own account is rotated.
func (c *Connection) schedule() rotation.Schedule {
	if c.RotationOff {
		return rotation.Schedule{}
	}
	return rotation.Schedule{Period: c.RotationPeriod, Cron: c.RotationCron, Window: c.RotationWindow}
}

// own is the account that lessor logs in with, as a connection says.
type own struct {
	*Connection
	Secrets
	exists bool
}

// rekey brings the rotation of lessor's own account in line with a connection that is written, and returns the passwords that may log in.
func (e *Engine) rekey(r *engine.Request, d Driver, name string, txn *store.Txn, before, after own) ([]lessor.Secret, error) {
	account, err := d.Account(after.Connection)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "%v", err)
	}
	there, err := e.users(r.View, r.Mount, d, after.Connection, name, account)
	if err != nil {
		return nil, err
	}
	for _, u := range there {
		if u.managed.Exists() {
			return nil, api.Errorf(api.Invalid, "the account %q is that of the static role %q: give the connection an account of its own", account, u.managed.Value)
		}
		txn.Require(u.managed)
	}
	var was *turn.Login
	if before.exists {
		was = &turn.Login{Username: account, Password: before.Password, Schedule: before.schedule()}
		if username, err := d.Account(before.Connection); err == nil {
			was.Username = username
		}
	}
	o := turn.Own{Account: rootPrefix + name, Queue: name, Username: "username", Password: "password"}
	return o.Rekey(r, txn, was, &turn.Login{Username: account, Password: after.Password, Schedule: after.schedule()})
}

// withdraw takes a password that is written in the URL out of it, and keeps it as the secret that it is.
func (c *Connection) withdraw(s *Secrets) error {
	if !scheme.MatchString(c.URL) {
		c.withdrawPlain(s)
		return nil
	}
	scheme, rest, _ := strings.Cut(c.URL, "://")
	end := len(rest)
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		end = i
	}
	at := strings.LastIndex(rest[:end], "@")
	if at < 0 {
		return nil
	}
	user, password, ok := strings.Cut(rest[:at], ":")
	if !ok || password == "" || password == "{{password}}" {
		return nil
	}
	plain, err := url.PathUnescape(password)
	if err != nil {
		return api.Errorf(api.Invalid, "the password in connection_url is not well-formed: put it in the parameter password, and {{password}} in its place")
	}
	s.Password = lessor.NewSecret(plain)
	c.URL = scheme + "://" + user + ":{{password}}" + rest[at:]
	return nil
}

// scheme begins URLs, but not those of MySQL.
var scheme = regexp.MustCompile(`^[a-z]+://`)

// withdrawPlain is withdraw for the URLs of MySQL, user:password@network(address)/name, in which a password stands as it is.
func (c *Connection) withdrawPlain(s *Secrets) {
	end := max(strings.LastIndex(c.URL, "/"), 0)
	at := max(strings.LastIndex(c.URL[:end], "@"), 0)
	user, password, ok := strings.Cut(c.URL[:at], ":")
	if !ok || password == "" || password == "{{password}}" {
		return
	}
	s.Password = lessor.NewSecret(password)
	c.URL = user + ":{{password}}" + c.URL[at:]
}

func (e *Engine) checkConnection(d Driver, c *Connection, s Secrets) error {
	if c.MaxOpen > MostOpen {
		return api.Errorf(api.Invalid, "max_open_connections must be from 1 to %d; 0 stands for %d, a negative number for the most", MostOpen, DefaultOpen)
	}
	for _, glob := range c.AllowedRoles {
		if _, err := path.Match(glob, ""); err != nil {
			return api.Errorf(api.Invalid, "allowed_roles: %q is no pattern", glob)
		}
	}
	if err := d.CheckRotation("x", c.RootRotation); err != nil {
		return api.Errorf(api.Invalid, "root_rotation_statements: %v", err)
	}
	if _, err := usernames(d, c.UsernameTemplate); err != nil {
		return api.Errorf(api.Invalid, "username_template: %v", err)
	}
	if err := d.Check(c, s); err != nil {
		return api.Errorf(api.Invalid, "%v", err)
	}
	return nil
}

// deleteConnection refuses while there are leases to revert over the connection: without it they could not be.
func (e *Engine) deleteConnection(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := r.Param("name")
	var c Connection
	row, err := load(r.View, r.Mount, connectionPrefix, name, &c)
	if err != nil || !row.Exists() {
		return nil, err
	}
	needed, err := leased(r.View, r.Mount, name)
	if err != nil {
		return nil, err
	}
	if needed {
		return nil, api.Errorf(api.Invalid, "connection %q is still needed to revert its leases: revoke them first, for example with lessor lease revoke -prefix %screds/", name, r.Mount.Path)
	}
	from := key(r.Mount, accountPrefix, name, "\x00")
	for managed, err := range r.View.Scan(store.Engine, from, store.PrefixEnd(from)) {
		if err != nil {
			return nil, err
		}
		return nil, api.Errorf(api.Invalid, "connection %q is still needed to rotate the static role %q: delete that first", name, managed.Value)
	}
	used, err := r.View.Get(usedKey(r.Mount, name))
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	a, account, err := rotation.Load(r.View, r.Mount.Namespace, r.Mount.UUID, rootPrefix+name)
	if err != nil {
		return nil, err
	}
	if account.Exists() {
		reply.Warnings = []string{"lessor has forgotten the password of its own account at this database, which it had rotated: an administrator of the database has to set another"}
		rotation.Drop(&reply.Txn, account, a)
	}
	reply.Txn.Require(row)
	reply.Txn.Require(account)
	reply.Txn.Require(used) // nobody begins to need it meanwhile
	reply.Txn.Delete(used.Table, used.Name)
	reply.Txn.Delete(row.Table, row.Name)
	reply.Txn.Delete(store.Secrets, row.Name)
	mount := r.Mount.UUID
	reply.Then = func(context.Context) error { e.open.close(mount, name); return nil }
	return reply, nil
}

// leased reports whether there are leases whose accounts were made over a connection.
func leased(v store.View, m *mount.Entry, connection string) (bool, error) {
	from := key(m)
	for row, err := range v.Scan(store.Leases, from, store.PrefixEnd(from)) {
		if err != nil {
			return false, err
		}
		held, err := lease.Decode(row)
		if err != nil {
			return false, err
		}
		if in, err := intentOf(held); held.Kind == lease.Dynamic && (err != nil || in.Connection == connection) {
			return true, nil // one with damaged notes may be any connection's
		}
	}
	return false, nil
}

// moved has the accounts of static roles tried, of a connection that leads elsewhere than it did, and warns of those of leases. That it is another
// server, not the same by another name, only who moved it knows.
func moved(r *engine.Request, txn *store.Txn, connection string) (warnings []string, err error) {
	from := key(r.Mount, accountPrefix, connection, "\x00")
	seen := map[string]bool{} // a role may have two accounts
	for managed, err := range r.View.Scan(store.Engine, from, store.PrefixEnd(from)) {
		if err != nil {
			return nil, err
		}
		if seen[string(managed.Value)] {
			continue
		}
		seen[string(managed.Value)] = true
		if err := turn.Recheck(r, txn, staticPrefix+string(managed.Value)); err != nil {
			return nil, err
		}
	}
	needed, err := leased(r.View, r.Mount, connection)
	if needed {
		warnings = append(warnings, "there are leases of accounts that were made where this connection led before: if that is another server, they are not removed there, and can be used until they expire there; lead it back and revoke the leases first")
	}
	return warnings, err
}

// reload resets all connections of a plugin.
func (e *Engine) reload(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	found := []string{}
	from := key(r.Mount, connectionPrefix)
	for row, err := range r.View.Scan(store.Engine, from, store.PrefixEnd(from)) {
		if err != nil {
			return nil, err
		}
		var c Connection
		name := strings.TrimPrefix(row.Name, from)
		if err := decode(row, &c); err != nil {
			return nil, err
		}
		if c.Plugin == r.Param("plugin_name") {
			found = append(found, name)
		}
	}
	mount := r.Mount.UUID
	return &engine.Reply{
		Data: map[string]any{"connections": found, "count": len(found)},
		Then: func(context.Context) error {
			for _, name := range found {
				e.open.close(mount, name)
			}
			return nil
		},
	}, nil
}

func (e *Engine) reset(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := r.Param("name")
	var c Connection
	row, err := load(r.View, r.Mount, connectionPrefix, name, &c)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, api.Errorf(api.Invalid, "there is no connection %q", name)
	}
	mount := r.Mount.UUID
	return &engine.Reply{Then: func(context.Context) error { e.open.close(mount, name); return nil }}, nil
}
