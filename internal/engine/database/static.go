package database

import (
	"context"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/turn"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// StaticRole is an account that exists at the database and stays there; lessor changes its password. Or it is two that take turns. CBOR keys are on disk: never
// renumber, only append.
type StaticRole struct {
	Connection     string        `cbor:"1,keyasint"` // db_name
	Usernames      turn.Names    `cbor:"2,keyasint"` // one, or two that take turns
	Period         time.Duration `cbor:"3,keyasint,omitempty"`
	Cron           string        `cbor:"4,keyasint,omitempty"`
	Window         time.Duration `cbor:"5,keyasint,omitempty"`
	Rotation       []string      `cbor:"6,keyasint,omitempty"`
	PasswordPolicy string        `cbor:"7,keyasint,omitempty"`
	SkipImport     bool          `cbor:"8,keyasint,omitempty"`
	SelfManaged    bool          `cbor:"9,keyasint,omitempty"` // the account changes its password itself
	Jitter         time.Duration `cbor:"10,keyasint,omitempty"`
	Grace          time.Duration `cbor:"11,keyasint,omitempty"` // of two: how long holders are waited for; 0: for ever
	Quiet          time.Duration `cbor:"12,keyasint,omitempty"` // of two: how long no use is evidence; 0: rotation.DefaultQuiet
	CheckOut       bool          `cbor:"13,keyasint,omitempty"` // it is rotated when a lease on it ends
}

func (role *StaticRole) schedule() rotation.Schedule {
	return rotation.Schedule{Period: role.Period, Cron: role.Cron, Window: role.Window, Jitter: role.Jitter}
}

func (role *StaticRole) quiet() time.Duration {
	if role.Quiet == 0 {
		return rotation.DefaultQuiet
	}
	return role.Quiet
}

var staticFields = []engine.Field{
	{Name: "db_name", Type: engine.String, Help: "Connection that the role uses."},
	{Name: "username", Type: engine.String, Help: "Account at the database whose password is managed. It exists already, and stays when the role is deleted."},
	{Name: "usernames", Type: engine.Strings, Help: "Instead of username: two accounts with equal rights that take turns, so that a rotation breaks nobody. A role with one becomes one with two if the first is the one that it has."},
	{Name: "rotation_grace", Type: engine.Duration, Help: "With usernames: how long holders of the old password are waited for, from when there is a new one; then it is retired all the same. 0, the default: for ever."},
	{Name: "rotation_quiet", Type: engine.Duration, Help: "With usernames: for how long the database must show no session of the old account to be evidence that nobody uses it; default 10m, 5 seconds or more."},
	{Name: "rotation_jitter", Type: engine.Duration, Help: "Up to so much later than its time each rotation is due, so that not all are at once; default 0."},
	{Name: "rotation_on_lease_end", Type: engine.Bool, Help: "Rotate, too, when a lease on the password in force ends: given back, lapsed or revoked. With username, when the last one does. Counts for leases that begin from then on."},
	{Name: "rotation_period", Type: engine.Duration, Help: "Time from one rotation to the next; 5 seconds or more. Excludes rotation_schedule."},
	{Name: "rotation_schedule", Type: engine.String, Help: "Times of rotations as cron has them (minute, hour, day of month, month, day of week), in UTC."},
	{Name: "rotation_window", Type: engine.Duration, Help: "With rotation_schedule: how long after such a time a rotation may begin; an hour or more."},
	{Name: "rotation_statements", Type: engine.Any, Help: "Statements that give the account {{name}} its {{password}}; by default ALTER ROLE."},
	{Name: "credential_type", Type: engine.String, Help: "password, the only type."},
	{Name: "credential_config", Type: engine.Pairs, Help: "password_policy: policy of the passwords that are made."},
	{Name: "skip_import_rotation", Type: engine.Bool, Help: "Do not rotate when the role is made."},
	{Name: "password", Type: engine.String, Help: "Password that the account has now, if the role is made without rotating it. Never returned but as the credential."},
	{Name: "self_managed_password", Type: engine.String, Help: "The same, and the account changes its password itself, so that lessor's own account needs no right to."},
}

func (e *Engine) readStaticRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := r.Param("name")
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
	data := map[string]any{
		"db_name": role.Connection, "username": role.Usernames[0], "credential_type": "password", "rotation_statements": nonNil(role.Rotation),
		"skip_import_rotation": role.SkipImport, "strategy": role.Usernames.Strategy(),
	}
	if role.Usernames.Pair() {
		data["username"], data["usernames"] = role.Usernames[a.Slot], []string(role.Usernames)
		data["rotation_grace"], data["rotation_quiet"] = turn.Seconds(role.Grace), turn.Seconds(role.quiet())
	}
	if role.CheckOut {
		data["rotation_on_lease_end"] = true
	}
	turn.Tell(data, role.schedule(), a)
	if role.PasswordPolicy != "" {
		data["credential_config"] = map[string]string{"password_policy": role.PasswordPolicy}
	}
	warnings := append(turn.Warnings(a, r.Now), rotation.NoLeaseEnds(role.CheckOut, r.Mount)...)
	return &engine.Reply{Data: data, Warnings: warnings}, nil
}

// writeStaticRole makes or changes a static role; what is not sent stays as it was. A new one is rotated at once, or not made at all.
func (e *Engine) writeStaticRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := named(r)
	if err != nil {
		return nil, err
	}
	other, err := r.View.Get(store.Key{Table: store.Engine, Name: key(r.Mount, rolePrefix, name)})
	if err != nil {
		return nil, err
	}
	if other.Exists() {
		return nil, api.Errorf(api.Invalid, "Role and Static Role names must be unique")
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
	reply := &engine.Reply{}
	reply.Txn.Require(other)
	k, t, err := e.forRequest(r, name, &role, row)
	if err != nil {
		return nil, err
	}
	reply.Txn.Require(k.over)
	if err := k.lend(t, &reply.Txn, &before); err != nil {
		return nil, err
	}
	if r.Has("skip_import_rotation") && row.Exists() {
		reply.Warnings = append(reply.Warnings, "skip_import_rotation has no effect on updates")
	}
	if !row.Exists() {
		role.SkipImport = role.SkipImport || !r.Has("skip_import_rotation") && k.connection.SkipImport
	}
	sent, err := imported(t, r, &role)
	if err != nil {
		return nil, err
	}
	if err := paired(t, &role, &before); err != nil {
		return nil, err
	}
	if !role.Usernames.Pair() {
		reply.Warnings = append(reply.Warnings, turn.Alone)
	}
	reply.Warnings = append(reply.Warnings, rotation.NoLeaseEnds(role.CheckOut, r.Mount)...)
	if err := save(&reply.Txn, row, &role); err != nil {
		return nil, err
	}
	var was *rotation.Schedule
	if row.Exists() {
		s := before.schedule()
		was = &s
	}
	if err := turn.Accounts(e.turn).Write(t, r, reply, was, role.SkipImport); err != nil {
		return nil, err
	}
	if had := before.Usernames; reply.Rotate == nil && k.connection.Verify {
		if before.Connection != role.Connection {
			had = nil // of these it has none there
		}
		reply.First = t.Untried(had, sent)
	}
	return reply, nil
}

// paired refuses what goes with one account only, or with two.
func paired(t *turn.Turn, role, before *StaticRole) error {
	switch {
	case !role.Usernames.Pair() && (role.Grace != 0 || role.Quiet != 0):
		return api.Errorf(api.Invalid, "rotation_grace and rotation_quiet are for two accounts that take turns: a role with one cannot wait for anybody; send usernames")
	case !role.Usernames.Pair():
		return nil
	case role.Quiet != 0 && role.Quiet < rotation.ShortestQuiet:
		return api.Errorf(api.Invalid, "rotation_quiet must be %d seconds or more", rotation.ShortestQuiet/time.Second)
	case role.SelfManaged:
		return api.Errorf(api.Invalid, "self_managed_password is for one account: two that take turns are changed by lessor's own account")
	}
	return t.CheckPair(before.Usernames, role.SkipImport, "send it as password, or let the role be rotated when it is made")
}

// amend takes over what the client sent.
func (role *StaticRole) amend(r *engine.Request, create bool) error {
	if r.Has("db_name") {
		role.Connection = r.Str("db_name")
	}
	if role.Connection == "" {
		return api.Errorf(api.Invalid, "database name is a required field")
	}
	var err error
	if role.Usernames, err = role.Usernames.Renamed(r); err != nil {
		return err
	}
	if len(role.Usernames) == 0 {
		return api.Errorf(api.Invalid, "username is a required field to create a static account")
	}
	for name, to := range map[string]*time.Duration{"rotation_grace": &role.Grace, "rotation_quiet": &role.Quiet} {
		if r.Has(name) {
			*to = r.Dur(name)
		}
	}
	if r.Has("rotation_on_lease_end") {
		role.CheckOut = r.Bool("rotation_on_lease_end")
	}
	if err := role.reschedule(r, create); err != nil {
		return err
	}
	if r.Has("rotation_statements") {
		l, ok := statements(r.Any("rotation_statements"))
		if !ok {
			return api.Errorf(api.Invalid, `field "rotation_statements" is not a list of strings`)
		}
		role.Rotation = l
	}
	if create {
		if r.Has("skip_import_rotation") {
			role.SkipImport = r.Bool("skip_import_rotation")
		}
		role.SelfManaged = r.Str("self_managed_password") != ""
	}
	return credential(r, &role.PasswordPolicy)
}

// reschedule takes over when the role is rotated.
func (role *StaticRole) reschedule(r *engine.Request, create bool) error {
	if create && !turn.Scheduled(r) {
		return api.Errorf(api.Invalid, "one of rotation_schedule or rotation_period must be provided to create a static account")
	}
	s, err := turn.Reschedule(role.schedule(), r)
	role.Period, role.Cron, role.Window, role.Jitter = s.Period, s.Cron, s.Window, s.Jitter
	return err
}

// imported takes over the password that the account has, if it was sent, as long as lessor has not changed it.
func imported(t *turn.Turn, r *engine.Request, role *StaticRole) (sent bool, err error) {
	password, self := r.Secret("password"), r.Secret("self_managed_password")
	switch {
	case password.Empty() && self.Empty():
		return false, nil
	case !password.Empty() && !self.Empty():
		return false, api.Errorf(api.Invalid, "cannot set both `password` and `self_managed_password`")
	case !t.Rotated.IsZero() || t.Pending != 0:
		return false, api.Errorf(api.Invalid, "updating password not allowed after rotation")
	}
	if password.Empty() {
		password, role.SelfManaged = self, true
	}
	t.Passwords.Current = lessor.Secret{} // what was said before is taken back: lessor has not put it into force, and need not see that it is dead
	t.Import(t.Passwords, password, r.Now)
	return true, nil
}

// lend sees to it that an account at a database is managed by one static role, and is not lessor's own.
func (k *keeper) lend(t *turn.Turn, txn *store.Txn, before *StaticRole) error {
	if before.Connection != "" && before.Connection != k.role.Connection {
		if t.Phase() != rotation.Idle {
			return api.Errorf(api.Invalid, "a rotation of this role is under way: wait until it is done before you change db_name")
		}
		before.returned(txn, k.mount)
		t.Check = t.Access.Now // it may have another password there
	}
	for _, username := range k.role.Usernames {
		there, err := k.engine.users(k.view, k.mount, k.driver, k.connection, k.at, username)
		if err != nil {
			return err
		}
		for _, u := range there {
			if u.own {
				return api.Errorf(api.Invalid, "%q is the account that lessor itself uses at connection %q: give the connection another one, or rotate it with rotate-root", username, u.connection)
			}
			if role := string(u.managed.Value); u.managed.Exists() && role != k.name {
				return api.Errorf(api.Invalid, "the account %q at connection %q is managed by the static role %q already", username, u.connection, role)
			}
			txn.Require(u.managed)
		}
		txn.Put(store.Engine, accountKey(k.mount, k.at, username).Name, []byte(k.name))
	}
	use(txn, k.mount, k.at)
	return nil
}

// returned deletes what says that the role manages its accounts.
func (role *StaticRole) returned(txn *store.Txn, m *mount.Entry) {
	for _, username := range role.Usernames {
		txn.Delete(store.Engine, accountKey(m, role.Connection, username).Name)
	}
}

func (e *Engine) deleteStaticRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := r.Param("name")
	var role StaticRole
	row, err := load(r.View, r.Mount, staticPrefix, name, &role)
	if err != nil || !row.Exists() {
		return nil, err
	}
	a, account, err := rotation.Load(r.View, r.Mount.Namespace, r.Mount.UUID, staticPrefix+name)
	if err != nil {
		return nil, err
	}
	left := "the account " + role.Usernames[0] + " stays at the database as it is, with its password, which lessor has forgotten"
	if role.Usernames.Pair() {
		left = "the accounts " + strings.Join(role.Usernames, " and ") + " stay at the database as they are, with their passwords, which lessor has forgotten"
	}
	reply := &engine.Reply{Warnings: []string{left}}
	forget(&reply.Txn, r.Mount, row, &role)
	rotation.Drop(&reply.Txn, account, a)
	return reply, nil
}

// forget deletes a static role, but for its rotation's rows.
func forget(txn *store.Txn, m *mount.Entry, row store.Row, role *StaticRole) {
	txn.Require(row)
	txn.Delete(row.Table, row.Name)
	role.returned(txn, m)
}

// named is a static role, and its account, for a request; nil: there is none of the name.
func (e *Engine) named(r *engine.Request, name string) (*StaticRole, *turn.Turn, error) {
	role := &StaticRole{}
	row, err := load(r.View, r.Mount, staticPrefix, name, role)
	if err != nil || !row.Exists() {
		return nil, nil, err
	}
	_, t, err := e.forRequest(r, name, role, row)
	return role, t, err
}

// staticCreds shows the password of a static role. Whoever reads it is on record as its holder.
func (e *Engine) staticCreds(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := r.Param("name")
	role, t, err := e.named(r, name)
	if err != nil {
		return nil, err
	}
	if role == nil {
		return nil, api.Errorf(api.Invalid, "unknown role: %s", name)
	}
	if err := t.Known(name); err != nil {
		return nil, err
	}
	data := map[string]any{"username": t.Username(t.Slot), "password": t.Passwords.Current, "ttl": turn.Seconds(t.TTL(r.Now))}
	turn.Tell(data, role.schedule(), t.Account)
	reply := &engine.Reply{
		Data: data, Warnings: turn.Warnings(t.Account, r.Now), Shown: []audit.Shown{t.Shown("shown")},
		Static: t.Static(r.Now),
	}
	return reply, t.Show(&reply.Txn)
}

// Current is the version of a static role's password, for leases on it.
func (e *Engine) Current(v store.View, m *mount.Entry, path string) (version, born uint64, err error) {
	name, ok := strings.CutPrefix(path, staticCreds)
	if !ok {
		return 0, 0, nil
	}
	return turn.Current(v, m, staticPrefix+name)
}
