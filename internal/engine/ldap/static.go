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

// StaticRole is an account that exists at the directory and stays there; lessor changes its password. Or it is two that take turns. CBOR keys are on disk:
// never renumber, only append.
type StaticRole struct {
	Usernames turn.Names    `cbor:"1,keyasint"`           // one, or two that take turns
	DN        string        `cbor:"2,keyasint,omitempty"` // of the first; empty: it is searched for by its username
	Period    time.Duration `cbor:"3,keyasint,omitempty"`
	Cron      string        `cbor:"4,keyasint,omitempty"`
	Window    time.Duration `cbor:"5,keyasint,omitempty"`
	Jitter    time.Duration `cbor:"6,keyasint,omitempty"`
	Grace     time.Duration `cbor:"7,keyasint,omitempty"` // of two: how long holders are waited for; 0: for ever
	SecondDN  string        `cbor:"8,keyasint,omitempty"` // of the second, as DN
	CheckOut  bool          `cbor:"9,keyasint,omitempty"` // it is rotated when a lease on it ends
}

// dns are the DNs of the accounts, as far as they are given.
func (role *StaticRole) dns() []string { return []string{role.DN, role.SecondDN}[:len(role.Usernames)] }

// names are those by which no other role or set may manage the accounts.
func (role *StaticRole) names() []string {
	all := slices.Clone(role.Usernames)
	for _, text := range role.dns() {
		if dn, err := goldap.ParseDN(text); text != "" && err == nil {
			all = append(all, dn.String())
		}
	}
	return all
}

func (role *StaticRole) schedule() rotation.Schedule {
	return rotation.Schedule{Period: role.Period, Cron: role.Cron, Window: role.Window, Jitter: role.Jitter}
}

var staticFields = []engine.Field{
	{Name: "username", Type: engine.String, Help: "Name of the account whose password is managed. It exists already, and stays when the role is deleted."},
	{Name: "usernames", Type: engine.Strings, Help: "Instead of username: two accounts with equal rights that take turns, so that a rotation breaks nobody. A role with one becomes one with two if the first is the one that it has."},
	{Name: "dn", Type: engine.String, Help: "Its DN; by default it is searched for by its name."},
	{Name: "dns", Type: engine.Strings, Help: "Instead of dn, with usernames: the DNs of both, in their order, as an array."},
	{Name: "rotation_grace", Type: engine.Duration, Help: "With usernames: how long holders of the old password are waited for, from when there is a new one; then it is retired all the same. 0, the default: until each has said that it has moved."},
	{Name: "rotation_on_lease_end", Type: engine.Bool, Help: "Rotate, too, when a lease on the password in force ends: given back, lapsed or revoked. With username, when the last one does. Counts for leases that begin from then on."},
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
	data := map[string]any{"username": role.Usernames[a.Slot], "dn": role.dns()[a.Slot], "strategy": role.Usernames.Strategy()}
	if role.Usernames.Pair() {
		data["usernames"], data["dns"], data["rotation_grace"] = []string(role.Usernames), role.dns(), turn.Seconds(role.Grace)
	}
	if role.CheckOut {
		data["rotation_on_lease_end"] = true
	}
	turn.Tell(data, role.schedule(), a)
	warnings := append(turn.Warnings(a, r.Now), rotation.NoLeaseEnds(role.CheckOut, r.Mount)...)
	return &engine.Reply{Data: data, Warnings: warnings}, nil
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
	for i, dn := range role.dns() {
		if dn != "" && same(dn, k.config.BindDN) {
			return nil, errOwn(role.Usernames[i])
		}
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
	var was *rotation.Schedule
	if row.Exists() {
		s := before.schedule()
		was = &s
		if r.Has("skip_import_rotation") {
			reply.Warnings = append(reply.Warnings, "skip_import_rotation has no effect on updates")
		}
	}
	if err := t.CheckPair(before.Usernames, skip && !row.Exists(), "let the role be rotated when it is made, with skip_import_rotation=false"); err != nil {
		return nil, err
	}
	reply.Warnings = append(reply.Warnings, role.dangers()...)
	reply.Warnings = append(reply.Warnings, rotation.NoLeaseEnds(role.CheckOut, r.Mount)...)
	if err := turn.Accounts(e.turn).Write(t, r, reply, was, skip); err != nil {
		return nil, err
	}
	if reply.Rotate == nil {
		reply.First = t.Untried(before.Usernames, false)
	}
	return reply, nil
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

// dangers warn of rotations that lock somebody out, or never end.
func (role *StaticRole) dangers() []string {
	switch {
	case !role.Usernames.Pair():
		return []string{turn.Alone}
	case role.Grace == 0:
		return []string{"no directory shows who uses an account: holders of the old password that do not say that they have moved, as plain clients of Vault do not, are waited for until somebody says lessor rotation retire; give the role a rotation_grace"}
	}
	return nil
}

// amend takes over what the client sent.
func (role *StaticRole) amend(r *engine.Request, create bool) error {
	paired := role.Usernames.Pair()
	if err := role.rename(r, create); err != nil {
		return err
	}
	if err := role.place(r, create, paired); err != nil {
		return err
	}
	if r.Has("rotation_grace") {
		role.Grace = r.Dur("rotation_grace")
	}
	if r.Has("rotation_on_lease_end") {
		role.CheckOut = r.Bool("rotation_on_lease_end")
	}
	if role.Grace != 0 && !role.Usernames.Pair() {
		return api.Errorf(api.Invalid, "rotation_grace is for two accounts that take turns: a role with one cannot wait for anybody; send usernames")
	}
	return role.reschedule(r, create)
}

// rename takes over which accounts the role has.
func (role *StaticRole) rename(r *engine.Request, create bool) error {
	switch {
	case create && !r.Has("username") && !r.Has("usernames"):
		return api.Errorf(api.Invalid, "username is a required field to manage a static account")
	case r.Has("username") && r.Str("username") == "":
		return api.Errorf(api.Invalid, "username must not be empty")
	}
	names, err := role.Usernames.Renamed(r)
	switch {
	case err != nil:
		return err
	case len(names) == 0 || names.Pair() && strings.EqualFold(names[0], names[1]):
		return api.Errorf(api.Invalid, "usernames are two different accounts; a role that has one says username")
	}
	for _, u := range names {
		if len(u) > 255 || strings.ContainsFunc(u, func(c rune) bool { return c < ' ' }) {
			return api.Errorf(api.Invalid, "username must be at most 255 bytes, without control characters")
		}
	}
	role.Usernames = names
	return nil
}

// place takes over where the accounts are. That stays; it may be left to a search. paired: the role had two accounts before.
func (role *StaticRole) place(r *engine.Request, create, paired bool) error {
	dns := role.dns()
	switch {
	case r.Has("dns") && (!role.Usernames.Pair() || len(r.List("dns")) != 2):
		return api.Errorf(api.Invalid, `dns are those of the two accounts that usernames name, as an array: "dns": ["cn=a,dc=example", "cn=b,dc=example"]`)
	case r.Has("dns") && r.Has("dn"):
		return api.Errorf(api.Invalid, "send dn or dns, not both")
	case r.Has("dns"):
		dns = r.List("dns")
	case r.Has("dn") && !slices.Contains(dns, r.Str("dn")): // else it is the one that is shown now
		dns[0] = r.Str("dn")
	}
	for i, dn := range dns {
		was, known := role.dns()[i], !create && (i == 0 || paired)
		switch _, err := goldap.ParseDN(dn); {
		case err != nil:
			return api.Errorf(api.Invalid, "dn is no distinguished name")
		case known && dn != "" && dn != was:
			return api.Errorf(api.Invalid, "cannot update static account distinguished name (dn)")
		}
	}
	if role.DN = dns[0]; role.Usernames.Pair() {
		if role.SecondDN = dns[1]; role.DN != "" && same(role.DN, role.SecondDN) {
			return api.Errorf(api.Invalid, "dns are those of two different accounts")
		}
	}
	return nil
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
	reply := &engine.Reply{Warnings: []string{"the account " + strings.Join(role.Usernames, " and ") + " stays at the directory as it is, with its password, which lessor has forgotten"}}
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

// staticCred shows the password of a static role. Whoever reads it is on record as its holder.
func (e *Engine) staticCred(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := nameOf(r)
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
	data := map[string]any{"dn": role.dns()[t.Slot], "username": t.Username(t.Slot), "password": t.Passwords.Current, "ttl": turn.Seconds(t.TTL(r.Now))}
	turn.Tell(data, role.schedule(), t.Account)
	shown := []audit.Shown{t.Shown("shown")}
	for _, f := range slices.Backward(t.Passwords.Former) { // what was in force before, until it is forgotten
		if f.Version > 0 && !t.Pair { // else it is the other account's
			data["last_password"] = f.Password
			shown = append(shown, t.ShownAs(f.Version, f.Password, "shown"))
			break
		}
	}
	reply := &engine.Reply{
		Data: data, Warnings: turn.Warnings(t.Account, r.Now), Shown: shown,
		Static: t.Static(r.Now),
	}
	return reply, t.Show(&reply.Txn)
}

// Current is the version of a static role's password, for leases on it.
func (e *Engine) Current(v store.View, m *mount.Entry, path string) (version, born uint64, err error) {
	name, ok := strings.CutPrefix(path, staticCred)
	if !ok {
		return 0, 0, nil
	}
	return turn.Current(v, m, staticPrefix+name)
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
	return engine.Terms{Path: "static-role/" + name, Reads: staticCred + name, Accounts: role.Usernames, Schedule: role.schedule(), CheckOut: role.CheckOut}
}

func (c *Config) terms() engine.Terms {
	return engine.Terms{Path: configRow, Accounts: []string{c.BindDN}, Schedule: c.schedule()}
}
