package ldap

import (
	"context"
	"slices"
	"strings"
	"time"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/turn"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// StaticRole is an account that exists at the directory and stays there; lessor changes its password. CBOR keys are on disk: never renumber,
// only append.
type StaticRole struct {
	Username string        `cbor:"1,keyasint"`
	DN       string        `cbor:"2,keyasint,omitempty"` // empty: it is searched for by its username
	Period   time.Duration `cbor:"3,keyasint,omitempty"`
	Cron     string        `cbor:"4,keyasint,omitempty"`
	Window   time.Duration `cbor:"5,keyasint,omitempty"`
	Jitter   time.Duration `cbor:"6,keyasint,omitempty"`
}

// names are those by which no other role or set may manage the account.
func (role *StaticRole) names() []string {
	dn, err := goldap.ParseDN(role.DN)
	if role.DN == "" || err != nil {
		return []string{role.Username}
	}
	return []string{role.Username, dn.String()}
}

func (role *StaticRole) schedule() rotation.Schedule {
	return rotation.Schedule{Period: role.Period, Cron: role.Cron, Window: role.Window, Jitter: role.Jitter}
}

var staticFields = []engine.Field{
	{Name: "username", Type: engine.String, Help: "Name of the account whose password is managed. It exists already, and stays when the role is deleted."},
	{Name: "dn", Type: engine.String, Help: "Its DN; by default it is searched for by its name."},
	{Name: "rotation_period", Type: engine.Duration, Help: "Time from one rotation to the next; 5 seconds or more. Excludes rotation_schedule."},
	{Name: "rotation_schedule", Type: engine.String, Help: "Times of rotations as cron has them (minute, hour, day of month, month, day of week), in UTC."},
	{Name: "rotation_window", Type: engine.Duration, Help: "With rotation_schedule: how long after such a time a rotation may begin; an hour or more."},
	{Name: "rotation_jitter", Type: engine.Duration, Help: "Up to so much later than its time each rotation is due, so that not all are at once; default 0."},
	{Name: "skip_import_rotation", Type: engine.Bool, Help: "Do not rotate when the role is made."},
}

func (e *Engine) readStaticRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := nameOf(r)
	var role StaticRole
	row, err := load(r.View, r.Mount, staticPrefix, name, &role)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, &api.Error{Kind: api.NotFound}
	}
	a, _, err := rotation.Load(r.View, r.Mount.Namespace, r.Mount.UUID, staticPrefix+name)
	if err != nil {
		return nil, err
	}
	data := map[string]any{"username": role.Username, "dn": role.DN}
	turn.Tell(data, role.schedule(), a)
	return &engine.Reply{Data: data, Warnings: turn.Warnings(a, r.Now)}, nil
}

// writeStaticRole makes or changes a static role; what is not sent stays as it was. A new one is rotated at once, or not made at all.
func (e *Engine) writeStaticRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := named(r)
	if err != nil {
		return nil, err
	}
	var role StaticRole
	row, err := load(r.View, r.Mount, staticPrefix, name, &role)
	if err != nil {
		return nil, err
	}
	before := role
	if err := role.amend(r, !row.Exists()); err != nil {
		return nil, err
	}
	k, t, err := e.forRequest(r, name, &role, row)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	reply.Txn.Require(k.over)
	use(&reply.Txn, r.Mount)
	if role.DN != "" && same(role.DN, k.config.BindDN) {
		return nil, errOwn(role.Username)
	}
	for _, n := range role.names() {
		if err := manage(r, &reply.Txn, n, staticPrefix+name); err != nil {
			return nil, err
		}
	}
	for _, n := range before.names() {
		if row.Exists() && !slices.Contains(role.names(), n) {
			reply.Txn.Delete(store.Engine, accountKey(r.Mount, n).Name)
		}
	}
	if err := save(&reply.Txn, row, &role); err != nil {
		return nil, err
	}
	skip := k.config.SkipImport
	if r.Has("skip_import_rotation") {
		skip = r.Bool("skip_import_rotation")
	}
	schedule := role.schedule().Drawn(rotation.Chance(r.Random))
	switch {
	case row.Exists():
		if r.Has("skip_import_rotation") {
			reply.Warnings = append(reply.Warnings, "skip_import_rotation has no effect on updates")
		}
		last := t.Rotated
		if last.IsZero() {
			last = r.Now
		}
		if before.schedule() != role.schedule() {
			t.Due = schedule.Next(last)
		}
	case skip:
		t.Born = uint64(r.Now.UnixMicro())
		t.Due = schedule.Next(r.Now)
	default:
		t.Born, t.New = uint64(r.Now.UnixMicro()), true
		if err := turn.Accounts(e.turn).Begin(t, r, reply); err != nil {
			return nil, err
		}
		return reply, nil
	}
	return reply, t.Save(&reply.Txn)
}

// errOwn refuses to manage lessor's own account otherwise than by rotate-root.
func errOwn(username string) error {
	return api.Errorf(api.Invalid, "%q is the account that lessor itself logs in with: give the configuration another one, or rotate it with rotate-root", username)
}

// manage sees to it that an account is managed by one role or set.
func manage(r *engine.Request, txn *store.Txn, username, by string) error {
	row, err := r.View.Get(accountKey(r.Mount, username))
	if err != nil {
		return err
	}
	if row.Exists() && string(row.Value) != by {
		return api.Errorf(api.Invalid, "%q is already managed by the secrets engine: by %s", username, row.Value)
	}
	txn.Require(row)
	txn.Put(row.Table, row.Name, []byte(by))
	return nil
}

// amend takes over what the client sent.
func (role *StaticRole) amend(r *engine.Request, create bool) error {
	if u := r.Str("username"); u != "" || create || r.Has("username") {
		switch {
		case u == "" && create && !r.Has("username"):
			return api.Errorf(api.Invalid, "username is a required field to manage a static account")
		case u == "":
			return api.Errorf(api.Invalid, "username must not be empty")
		case len(u) > 255 || strings.ContainsFunc(u, func(c rune) bool { return c < ' ' }):
			return api.Errorf(api.Invalid, "username must be at most 255 bytes, without control characters")
		case !create && u != role.Username:
			return api.Errorf(api.Invalid, "cannot update static account username")
		}
		role.Username = u
	}
	if r.Has("dn") {
		dn := r.Str("dn")
		if _, err := goldap.ParseDN(dn); err != nil {
			return api.Errorf(api.Invalid, "dn is no distinguished name")
		}
		if !create && dn != "" && dn != role.DN {
			return api.Errorf(api.Invalid, "cannot update static account distinguished name (dn)")
		}
		role.DN = dn
	}
	return role.reschedule(r, create)
}

// reschedule takes over when the role is rotated.
func (role *StaticRole) reschedule(r *engine.Request, create bool) error {
	if create && !turn.Scheduled(r) {
		return api.Errorf(api.Invalid, "rotation_period is required to create static accounts")
	}
	s, err := turn.Reschedule(role.schedule(), r)
	role.Period, role.Cron, role.Window, role.Jitter = s.Period, s.Cron, s.Window, s.Jitter
	return err
}

func (e *Engine) deleteStaticRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := nameOf(r)
	var role StaticRole
	row, err := load(r.View, r.Mount, staticPrefix, name, &role)
	if err != nil || !row.Exists() {
		return nil, err
	}
	a, account, err := rotation.Load(r.View, r.Mount.Namespace, r.Mount.UUID, staticPrefix+name)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{Warnings: []string{"the account " + role.Username + " stays at the directory as it is, with its password, which lessor has forgotten"}}
	forget(&reply.Txn, r.Mount, row, &role)
	rotation.Drop(&reply.Txn, account, a)
	return reply, nil
}

// forget deletes a static role, but for its rotation's rows.
func forget(txn *store.Txn, m *mount.Entry, row store.Row, role *StaticRole) {
	txn.Require(row)
	txn.Delete(row.Table, row.Name)
	for _, n := range role.names() {
		txn.Delete(store.Engine, accountKey(m, n).Name)
	}
}

// staticCred shows the password of a static role. Whoever reads it is on record as its holder.
func (e *Engine) staticCred(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := nameOf(r)
	var role StaticRole
	row, err := load(r.View, r.Mount, staticPrefix, name, &role)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, api.Errorf(api.Invalid, "unknown role: %s", name)
	}
	_, t, err := e.forRequest(r, name, &role, row)
	if err != nil {
		return nil, err
	}
	if t.Version == 0 {
		if t.Pending != 0 || t.Attempts > 0 {
			return nil, api.Errorf(api.Upstream, "the first rotation of static role %q has not succeeded yet; it is tried again, or write to rotate-role/%s", name, name)
		}
		return nil, api.Errorf(api.Invalid, "the password of static role %q is not known, since it was made without rotating it: write to rotate-role/%s", name, name)
	}
	data := map[string]any{"dn": role.DN, "username": role.Username, "password": t.Passwords.Current, "ttl": turn.Seconds(max(0, t.Due.Sub(r.Now)))}
	turn.Tell(data, role.schedule(), t.Account)
	shown := []audit.Shown{t.Shown("shown")}
	for _, f := range slices.Backward(t.Passwords.Former) { // what was in force before, until it is forgotten
		if f.Version > 0 {
			data["last_password"] = f.Password
			shown = append(shown, t.ShownAs(f.Version, f.Password, "shown"))
			break
		}
	}
	reply := &engine.Reply{
		Data: data, Warnings: turn.Warnings(t.Account, r.Now), Shown: shown,
		Static: &engine.Static{Path: staticCred + name, Born: t.Born, Version: t.Version, Current: t.Version, Duration: max(time.Second, t.Due.Sub(r.Now)), Quiet: true, Rotatable: true},
	}
	return reply, t.Show(&reply.Txn)
}

// Current is the version of a static role's password, for leases on it.
func (e *Engine) Current(v store.View, m *mount.Entry, path string) (version, born uint64, err error) {
	name, ok := strings.CutPrefix(path, staticCred)
	if !ok {
		return 0, 0, nil
	}
	a, _, err := rotation.Load(v, m.Namespace, m.UUID, staticPrefix+name)
	if err != nil {
		return 0, 0, err
	}
	return a.Version, a.Born, nil
}

// AccountOf is the account that a path is about.
func (e *Engine) AccountOf(path string) (account string, ok bool) {
	if path == configRow || path == "rotate-root" {
		return rootAccount, true
	}
	for _, prefix := range []string{staticCred, "static-role/", "rotate-role/"} {
		if name, ok := strings.CutPrefix(path, prefix); ok && name != "" {
			return staticPrefix + strings.ToLower(name), true
		}
	}
	return "", false
}

// Terms are those on which an account is rotated.
func (e *Engine) Terms(v store.View, m *mount.Entry, account string) (*engine.Terms, error) {
	if name, ok := strings.CutPrefix(account, staticPrefix); ok {
		var role StaticRole
		row, err := load(v, m, staticPrefix, name, &role)
		if err != nil || !row.Exists() {
			return nil, err
		}
		terms := role.terms(name)
		return &terms, nil
	}
	var c Config
	row, err := load(v, m, configRow, "", &c)
	if err != nil || !row.Exists() {
		return nil, err
	}
	terms := c.terms()
	return &terms, nil
}

func (role *StaticRole) terms(name string) engine.Terms {
	return engine.Terms{Path: "static-role/" + name, Reads: staticCred + name, Accounts: []string{role.Username}, Schedule: role.schedule()}
}

func (c *Config) terms() engine.Terms {
	return engine.Terms{Path: configRow, Accounts: []string{c.BindDN}, Schedule: c.schedule()}
}
