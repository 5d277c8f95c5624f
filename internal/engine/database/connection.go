package database

import (
	"context"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// Connection is a configured database, without its secrets. CBOR keys are on disk: never renumber, only append.
type Connection struct {
	Plugin           string   `cbor:"1,keyasint"`
	URL              string   `cbor:"2,keyasint"` // {{username}} and {{password}} stand for those; never contains a password
	Username         string   `cbor:"3,keyasint,omitempty"`
	AllowedRoles     []string `cbor:"4,keyasint,omitempty"` // globs
	Verify           bool     `cbor:"5,keyasint,omitempty"` // connect when it is written
	MaxOpen          int64    `cbor:"6,keyasint,omitempty"` // sessions; 0: DefaultOpen
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
	if c.MaxOpen == 0 {
		return DefaultOpen
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
	{Name: "plugin_name", Type: engine.String, Help: "Kind of database: postgresql-database-plugin."},
	{Name: "connection_url", Type: engine.String, Help: "URL of the database; {{username}} and {{password}} stand for those parameters."},
	{Name: "username", Type: engine.String, Help: "Account that lessor logs in with."},
	{Name: "password", Type: engine.String, Help: "Its password. Never returned."},
	{Name: "allowed_roles", Type: engine.Strings, Help: "Roles that may use the connection; globs, \"*\" for all. None by default."},
	{Name: "verify_connection", Type: engine.Bool, Help: "Log in when the connection is written. Default true."},
	{Name: "max_open_connections", Type: engine.Int, Help: "Sessions at most. Default 4."},
	{Name: "max_idle_connections", Type: engine.Int, Help: "Idle sessions at most; 0 means all, a negative number none."},
	{Name: "max_connection_lifetime", Type: engine.Any, Help: "Age at which a session is closed; 0 for never."},
	{Name: "username_template", Type: engine.String, Help: "Template of the usernames that are made."},
	{Name: "password_policy", Type: engine.String, Help: "Policy of the passwords that are made; empty for the built-in one."},
	{Name: "password_authentication", Type: engine.String, Help: "scram-sha-256 (default): the database gets a verifier only; password: it gets the password."},
	{Name: "scram_iterations", Type: engine.Int, Help: "Iterations of SCRAM verifiers, from 1. Default 4096: some drivers refuse fewer."},
	{Name: "root_rotation_statements", Type: engine.Any, Help: "Statements that change the password of lessor's own account."},
	{Name: "tls_ca", Type: engine.String, Help: "Certificate authorities of the server, PEM."},
	{Name: "tls_certificate", Type: engine.String, Help: "Client certificate, PEM."},
	{Name: "private_key", Type: engine.String, Help: "Key of the client certificate, PEM. Never returned."},
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
	details := map[string]any{"connection_url": c.URL}
	for name, v := range map[string]string{
		"username": c.Username, "username_template": c.UsernameTemplate, "password_authentication": c.Authentication,
		"tls_ca": c.CA, "tls_certificate": c.Certificate, "tls_server_name": c.ServerName, "max_connection_lifetime": c.MaxLifetime,
	} {
		if v != "" {
			details[name] = v
		}
	}
	for name, n := range map[string]int64{"max_open_connections": c.MaxOpen, "max_idle_connections": c.MaxIdle, "scram_iterations": c.ScramIterations} {
		if n != 0 {
			details[name] = count(n)
		}
	}
	return &engine.Reply{Data: map[string]any{
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
	if err := c.amend(r, &s); err != nil {
		return nil, err
	}
	d, err := e.driver(c.Plugin)
	if err != nil {
		return nil, err
	}
	if err := e.checkConnection(d, &c, s); err != nil {
		return nil, err
	}

	reply := &engine.Reply{}
	if err := save(&reply.Txn, row, &c); err != nil {
		return nil, err
	}
	sealed, err := cbor.Marshal(map[int]string{1: s.Password.Reveal(), 2: s.PrivateKey.Reveal()})
	if err != nil {
		return nil, err
	}
	reply.Txn.Require(kept)
	reply.Txn.Put(kept.Table, kept.Name, sealed)
	mount := r.Mount.UUID
	reply.Do = func(ctx context.Context) error {
		e.open.close(mount, name)
		if !c.Verify {
			return nil
		}
		db, err := d.Open(&c, s)
		if err != nil {
			return err
		}
		defer db.Close()
		if err := db.Ping(ctx); err != nil {
			return &api.Error{Kind: api.KindOf(err), Text: "the connection is stored, but verifying it failed: " + err.Error(), Cause: err}
		}
		return nil
	}
	return reply, nil
}

// amend takes over what the client sent.
func (c *Connection) amend(r *engine.Request, s *Secrets) error {
	for name, to := range map[string]*string{
		"plugin_name": &c.Plugin, "connection_url": &c.URL, "username": &c.Username, "username_template": &c.UsernameTemplate,
		"password_policy": &c.PasswordPolicy, "password_authentication": &c.Authentication, "tls_ca": &c.CA,
		"tls_certificate": &c.Certificate, "tls_server_name": &c.ServerName,
	} {
		if r.Has(name) {
			*to = r.Str(name)
		}
	}
	for name, to := range map[string]*int64{"max_open_connections": &c.MaxOpen, "max_idle_connections": &c.MaxIdle, "scram_iterations": &c.ScramIterations} {
		if r.Has(name) {
			*to = r.Int(name)
		}
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
	return c.withdraw(s)
}

// withdraw takes a password that is written in the URL out of it, and keeps it as the secret that it is.
func (c *Connection) withdraw(s *Secrets) error {
	scheme, rest, ok := strings.Cut(c.URL, "://")
	if !ok {
		return nil
	}
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

func (e *Engine) checkConnection(d Driver, c *Connection, s Secrets) error {
	if c.MaxOpen < 0 || c.MaxOpen > MostOpen {
		return api.Errorf(api.Invalid, "max_open_connections must be from 1 to %d; 0 stands for %d", MostOpen, DefaultOpen)
	}
	for _, glob := range c.AllowedRoles {
		if _, err := path.Match(glob, ""); err != nil {
			return api.Errorf(api.Invalid, "allowed_roles: %q is no pattern", glob)
		}
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
	from := key(r.Mount)
	for l, err := range r.View.Scan(store.Leases, from, store.PrefixEnd(from)) {
		if err != nil {
			return nil, err
		}
		var held lease.Lease
		var in intent
		if cbor.Unmarshal(l.Value, &held) == nil && cbor.Unmarshal(held.Intent, &in) == nil && in.Connection == name {
			return nil, api.Errorf(api.Invalid, "connection %q is still needed to revert its leases: revoke them first, for example with lessor lease revoke -prefix %screds/", name, r.Mount.Path)
		}
	}
	reply := &engine.Reply{}
	reply.Txn.Require(row)
	reply.Txn.Delete(row.Table, row.Name)
	reply.Txn.Delete(store.Secrets, row.Name)
	mount := r.Mount.UUID
	reply.Do = func(context.Context) error { e.open.close(mount, name); return nil }
	return reply, nil
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
	return &engine.Reply{Do: func(context.Context) error { e.open.close(mount, name); return nil }}, nil
}
