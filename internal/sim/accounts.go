package sim

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// accounts is a database with accounts that stay, whose passwords lessor's database engine changes: those of static roles, and lessor's own. It
// survives lessor's deaths, and fails as the target does; what it was asked lands late at times, when another password is in force.
type accounts struct {
	*target
	mu        sync.Mutex
	passwords map[string]string          // username: the one in force
	ever      map[string]map[string]bool // username: those that were
	mount     string                     // UUID of the engine's
}

// own is the account that lessor logs in with.
const own = "lessor"

func (a *accounts) set(username, password string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ever[username] == nil {
		a.ever[username] = map[string]bool{}
	}
	a.passwords[username], a.ever[username][password] = password, true
}

func (a *accounts) inForce(username string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.passwords[username]
}

func (a *accounts) was(username, password string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ever[username][password]
}

// changed counts the passwords that accounts came to have.
func (a *accounts) changed() (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, all := range a.ever {
		n += len(all) - 1
	}
	return n
}

// pair are two accounts that take turns, those of the role "p".
var pair = []string{"p0", "p1"}

// roleOf is the static role that an account is of.
func roleOf(username string) string {
	if slices.Contains(pair, username) {
		return "p"
	}
	return username
}

// accountOf is what package rotation calls an account.
func accountOf(username string) string {
	if username == own {
		return "root/d"
	}
	return "static/" + roleOf(username)
}

// furnish configures the connection, and a role for each account.
func (a *accounts) furnish(n *node, do func(path string, data map[string]any) error) error {
	a.set(own, "first")
	err := do("db/config/d", map[string]any{
		"plugin_name": a.Plugin(), "connection_url": "sim", "username": own, "password": "first", "allowed_roles": "*", "rotation_period": 45,
	})
	for i := 0; i < 3 && err == nil; i++ {
		username := fmt.Sprintf("u%d", i)
		a.set(username, "first")
		err = do("db/static-roles/"+username, map[string]any{
			"db_name": "d", "username": username, "rotation_period": 30, "password": "first", "skip_import_rotation": true,
		})
	}
	if err != nil {
		return err
	}
	for _, username := range pair {
		a.set(username, "first")
	}
	err = do("db/static-roles/p", map[string]any{
		"db_name": "d", "usernames": []any{pair[0], pair[1]}, "rotation_period": 30, "rotation_quiet": 20, "password": "first", "skip_import_rotation": true,
	})
	if err != nil {
		return err
	}
	v, err := n.db.View()
	if err != nil {
		return err
	}
	defer v.Close()
	for row, err := range v.Scan(store.Engine, "", "") {
		if err != nil {
			return err
		}
		if _, mount, name := store.SplitMountKey(row.Name); name == "config/d" {
			a.mount = mount
		}
	}
	return nil
}

// Plugin, and what else a Driver says of itself.
func (a *accounts) Plugin() string                                             { return "simulated" }
func (a *accounts) Usernames() (string, int)                                   { return "{{random 20}}", 63 }
func (a *accounts) Check(*database.Connection, database.Secrets) error         { return nil }
func (a *accounts) CheckRole(*database.Statements) error                       { return nil }
func (a *accounts) CheckRotation(string, []string) error                       { return nil }
func (a *accounts) CheckPassword(*database.Connection, lessor.Secret) error    { return nil }
func (a *accounts) Account(c *database.Connection) (string, error)             { return c.Username, nil }
func (a *accounts) SameServer(*database.Connection, *database.Connection) bool { return true }

// visitor is the Driver as one node has it: what it checks, it checks in that node's durable store.
type visitor struct {
	*accounts
	node *node
}

func (v *visitor) Open(*database.Connection, database.Secrets) (database.Database, error) {
	return &visit{visitor: v}, nil
}

// visit is a Database for rotations only.
type visit struct {
	database.Database
	*visitor
	mu     sync.Mutex
	logins []lessor.Secret
}

func (s *visit) Use(passwords []lessor.Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logins = passwords
}

// Ping logs in, by any of the passwords that may do.
func (s *visit) Ping(context.Context) error {
	if _, told := s.fault(); !told {
		return unreachable
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !holds(s.logins, s.inForce(own)) {
		return api.Errorf(api.Upstream, "the database refused lessor's own login")
	}
	return nil
}

// Close does nothing: there are no sessions.
func (s *visit) Close() {}

// Login says whether a password is in force.
func (s *visit) Login(_ context.Context, username string, password lessor.Secret) (database.Verdict, error) {
	s.known(s.node, username)
	if _, told := s.fault(); !told {
		return 0, unreachable
	}
	if password.Reveal() != s.inForce(username) {
		return database.Refused, nil
	}
	return database.Accepted, nil
}

// Changeable says whether there is such an account.
func (s *visit) Changeable(_ context.Context, c database.Change) error {
	if _, told := s.fault(); !told {
		return unreachable
	}
	if s.inForce(c.Username) == "" {
		return api.Errorf(api.Upstream, "there is no account %q", c.Username)
	}
	return nil
}

// Sessions tells of somebody now and then.
func (s *visit) Sessions(_ context.Context, usernames []string) ([]database.Session, error) {
	if _, told := s.fault(); !told {
		return nil, unreachable
	}
	if s.world.chance(0.2) && !s.whole() {
		return []database.Session{{Username: usernames[0], Client: "somewhere"}}, nil
	}
	return nil, nil
}

// End ends nothing: sessions come and go.
func (s *visit) End(context.Context, string) error {
	if _, told := s.fault(); !told {
		return unreachable
	}
	return nil
}

// SetPassword changes a password; now, later, or not.
func (s *visit) SetPassword(ctx context.Context, c database.Change) error {
	s.known(s.node, c.Username)
	s.onRecord(c)
	if err := s.Ping(ctx); err != nil {
		return err
	}
	if s.world.chance(0.05) && !s.whole() {
		s.late.Go(func() {
			time.Sleep(time.Duration(s.world.pick(400)) * time.Millisecond)
			s.set(c.Username, c.Password.Reveal())
		})
		<-ctx.Done()
		return unreachable
	}
	done, told := s.fault()
	if done {
		s.set(c.Username, c.Password.Reveal())
	}
	if !told {
		return unreachable
	}
	return nil
}

var unreachable = &api.Error{Kind: api.Upstream, Text: "the database does not answer", Cause: database.ErrUnreachable}

// known checks that lessor knows the password that is in force, from rows that are durable.
func (a *accounts) known(n *node, username string) {
	password := a.inForce(username)
	p, err := a.recorded(n, username)
	if err != nil {
		return // the store has died
	}
	if !holds(p.Candidates(), password) {
		a.world.violation("lost: the password of %s that is in force is not on record", username)
	}
}

// onRecord checks that a password is durable, with the audit record that the database is touched, before it is set.
func (a *visitor) onRecord(c database.Change) {
	p, err := a.recorded(a.node, c.Username)
	if err != nil {
		return
	}
	if !p.Pending.Equal(c.Password) && !p.Current.Equal(c.Password) && !p.Other.Equal(c.Password) {
		a.world.violation("a password of %s was set before it was durable", c.Username)
	}
	paths := []string{"db/rotate-role/" + roleOf(c.Username), "db/static-roles/" + roleOf(c.Username)}
	if c.Username == own {
		paths = []string{"db/rotate-root/d", "db/config/d"}
	}
	for _, path := range paths {
		if rec, err := recorded(a.node.db, path, func(r *audit.At) bool { return r.Phase == audit.Begun }); err != nil || rec != nil {
			return
		}
	}
	a.world.violation("unaudited: the password of %s was touched before the audit record was durable", c.Username)
}

// recorded are the passwords of an account as a node's store has them.
func (a *accounts) recorded(n *node, username string) (*rotation.Passwords, error) {
	v, err := n.db.View()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	row, err := v.Get(rotation.SecretKey(lessor.RootNamespace, a.mount, accountOf(username)))
	if err != nil || !row.Exists() {
		return &rotation.Passwords{Current: lessor.NewSecret("first")}, err
	}
	op := &lessor.Op{Verb: lessor.Read, Namespace: lessor.RootNamespace, Path: "db/"}
	d := policy.Decide(nil, &lessor.Principal{System: "simulation"}, op, policy.Facts{Mount: a.mount})
	value, err := a.world.keys.Open(d.Grant, row)
	if err != nil {
		return nil, err
	}
	return rotation.Open(value)
}

// settled reports whether every account has the password that is on record as the one in force: of two that take turns, each its own.
func (a *accounts) settled(n *node) bool {
	for username := range a.ever {
		p, err := a.recorded(n, username)
		if err != nil || !p.Pending.Empty() {
			return false
		}
		password := p.Current
		if slices.Contains(pair, username) {
			turn, err := a.turn(n)
			if err != nil || turn.Phase() != rotation.Idle {
				return false
			}
			if password = p.Of(turn, uint8(slices.Index(pair, username))); password.Empty() {
				continue // it never was its turn
			}
		}
		if password.Reveal() != a.inForce(username) {
			return false
		}
	}
	return true
}

// turn is how the rotation of the pair stands.
func (a *accounts) turn(n *node) (*rotation.Account, error) {
	v, err := n.db.View()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	t, _, err := rotation.Load(v, lessor.RootNamespace, a.mount, "static/p")
	return t, err
}

// holds reports whether a password is among others.
func holds(passwords []lessor.Secret, password string) bool {
	return slices.ContainsFunc(passwords, func(s lessor.Secret) bool { return s.Reveal() == password })
}
