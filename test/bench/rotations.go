package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// strategy is one way in which static roles are rotated.
type strategy struct {
	name     string
	accounts int // of a role
}

var strategies = []strategy{{"one account", 1}, {"two accounts in turns", 2}}

// Lateness is measured in slices, in turns without dead databases and beside them: each has as many of the roles, but no more than are due in a while.
const (
	spreads = 6
	while   = 30 * time.Second
)

// enough is how long roles that are all due at once may take for it to be measured once more.
const enough = 2 * time.Minute

// rotations measures rotations that time makes due: how fast many are through that are due at once, beside the statements that they
// come to; how late each is at half of that rate, in turns without and beside databases that are dead.
func (b *bench) rotations() error {
	n := pick(b.quick, 200, b.roles)
	title := func(k strategy) string { return fmt.Sprintf("%s static roles of %s", count(float64(n)), k.name) }
	const rate, late, dead = ": rotated, all due at once", ": lateness at half of that rate", ": the same, beside two dead databases"
	names := func(k strategy) []string { return []string{title(k) + rate, title(k) + late, title(k) + dead} }
	if !b.wants(slices.Concat(names(strategies[0]), names(strategies[1]))...) {
		return nil
	}
	p, err := b.startPostgres()
	if err != nil {
		return err
	}
	for _, k := range strategies {
		if !b.wants(names(k)...) {
			continue
		}
		r, err := b.newRotated(p, k, n)
		if err != nil {
			return err
		}
		f := &figure{name: title(k) + rate}
		for began, i := time.Now(), 0; i < pick(b.quick, 1, 2) && time.Since(began) < enough; i++ {
			have, err := r.atOnce()
			if err != nil {
				return err
			}
			limit, err := r.straight(min(n, 2000))
			if err != nil {
				return err
			}
			f.rates, f.limits = append(f.rates, have), append(f.limits, limit)
			b.say("%.0f/s, straight %.0f/s", have, limit)
		}
		b.figures = append(b.figures, f)
		b.say("%s", f)

		if err := r.die(b, pick(b.quick, 20, 100)); err != nil {
			return err
		}
		var alone, beside []sample
		var times []float64 // as late beside dead databases, in each pair of slices
		for i := 0; i < spreads; i += 2 {
			without, err := r.spread(median(f.rates)/2, i, false)
			if err != nil {
				return err
			}
			with, err := r.spread(median(f.rates)/2, i+1, true)
			if err != nil {
				return err
			}
			b.say("without dead databases %s, beside them %s", lateness(without), lateness(with))
			times = append(times, ms(percentile(with, 0.99))/ms(percentile(without, 0.99)))
			alone, beside = append(alone, without...), append(beside, with...)
		}
		b.plain(&figure{name: title(k) + late, value: lateness(alone)})
		b.plain(&figure{
			name: title(k) + dead, bound: "≤ 1.5 times without", met: median(times) <= 1.5,
			value: fmt.Sprintf("%s; p99 %.1f times (%.1f to %.1f)", lateness(beside), median(times), slices.Min(times), slices.Max(times)),
		})
		r.end(syscall.SIGTERM)
		if err := os.RemoveAll(r.dir); err != nil { // what comes next begins anew
			return err
		}
	}
	p.stop()
	return os.RemoveAll(p.dir)
}

func lateness(samples []sample) string {
	return fmt.Sprintf("p50 %.0f ms, p99 %.0f ms", ms(percentile(samples, 0.5)), ms(percentile(samples, 0.99)))
}

// rotated is a server with static roles whose rotations are due when the benchmark says.
type rotated struct {
	*lessorServer
	pg    *postgres
	kind  strategy
	conn  *pgx.Conn
	pause time.Duration // between looks at all roles, so that they cost little of what is measured
}

// newRotated makes accounts at PostgreSQL, and a server with n static roles for them, each of which is rotated once by that.
func (b *bench) newRotated(p *postgres, k strategy, n int) (*rotated, error) {
	r := &rotated{pg: p, kind: k, pause: max(often, time.Duration(n)*500*time.Microsecond)}
	var err error
	if r.conn, err = p.connect(); err != nil {
		return nil, err
	}
	if r.lessorServer, err = newServer(b.binary, fmt.Sprintf("%s/rotated-%d", b.dir, k.accounts)); err != nil {
		return nil, err
	}
	b.later(func() { r.end(syscall.SIGKILL) })
	if err := r.furnishDatabase(p, 1); err != nil {
		return nil, err
	}
	for i := range n * k.accounts {
		if _, err := r.conn.Exec(context.Background(), `CREATE ROLE "`+k.account(i)+`" LOGIN`, pgx.QueryExecModeSimpleProtocol); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	var next atomic.Int64
	var all sync.WaitGroup
	errs := make([]error, sessions)
	for w := range errs {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && errs[w] == nil; i = int(next.Add(1)) - 1 {
				role := object{"db_name": "scram-1", "username": k.account(i), "rotation_period": "720h"}
				if k.accounts == 2 {
					delete(role, "username")
					role["usernames"] = []string{k.account(2 * i), k.account(2*i + 1)}
				}
				_, errs[w] = r.call("POST", fmt.Sprintf("database/static-roles/role-%d", i), role)
			}
		})
	}
	if all.Wait(); errors.Join(errs...) != nil {
		return nil, errors.Join(errs...)
	}
	b.say("%d static roles of %s, made in %.0f s", n, k.name, time.Since(began).Seconds())
	return r, r.idle()
}

func (k strategy) account(i int) string { return fmt.Sprintf("rotated-%d-%d", k.accounts, i) }

// standing is how the rotation of one role stands, as the server tells.
type standing struct {
	Path    string
	Version uint64
	Step    string
	Due     time.Time
	Since   time.Time // that it is in this step
	Rotated time.Time `json:"last_rotation"` // when its version came into force
}

// list is how those of roles stand that are rotated; all, or those only of which a rotation is under way: not one whose proof failed, because the server was
// ended in the midst of it, and was put off.
func (r *rotated) list(all bool) (map[string]standing, error) {
	path := "sys/lessor/rotation/status"
	if all {
		path += "?all=true"
	}
	text, err := r.fetch(r.root, "GET", path, nil)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Data struct{ Rotations []standing }
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, err
	}
	found := map[string]standing{}
	for _, s := range answer.Data.Rotations {
		if strings.HasPrefix(s.Path, "database/static-creds/role-") && (all || s.Step != "idle") {
			found[s.Path] = s
		}
	}
	return found, nil
}

// idle waits until no rotation is under way.
func (r *rotated) idle() error {
	return eventually(10*time.Minute, r.pause, "no rotation is under way", func() (bool, error) {
		under, err := r.list(false)
		return len(under) == 0, err
	})
}

// often is how long pauses are between looks that cost next to nothing.
const often = 250 * time.Millisecond

// eventually looks whether something is so, with a pause between one look and the next.
func eventually(d, pause time.Duration, what string, is func() (bool, error)) error {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(pause) {
		if yes, err := is(); err != nil || yes {
			return err
		}
	}
	return fmt.Errorf("not within %s: %s", d, what)
}

// far is out of a measurement's way.
const far = 24 * time.Hour

// due sets when roles are due, while the server is down, and starts it; those that at has no time for are not. Accounts at dead databases are if dead says so, and
// are left alone else. Proofs that an earlier rotation has left for later, which would come in between, are put off.
func (r *rotated) due(dead bool, at func(role int) (time.Duration, bool)) error {
	r.end(syscall.SIGTERM)
	if err := r.offline(func(db *store.DB) error {
		view, err := db.View()
		if err != nil {
			return err
		}
		defer view.Close()
		mounts, err := mount.Load(view)
		if err != nil {
			return err
		}
		m := mounts.ByPath("database/")
		var names []string
		for a, err := range rotation.Accounts(view, rotation.Mount{Namespace: m.Namespace, UUID: m.UUID}) {
			if err != nil {
				return err
			}
			names = append(names, a.Name)
		}
		now := db.Now()
		return many(db, len(names), func(txn *store.Txn, view store.View, i int) error {
			a, row, err := rotation.Load(view, m.Namespace, m.UUID, names[i])
			if err != nil {
				return err
			}
			number, live := strings.CutPrefix(a.Name, "static/role-")
			if !live {
				a.Retry = now
				if !dead {
					a.Retry = now.Add(far)
				}
				return rotation.Save(txn, row, a)
			}
			role, err := strconv.Atoi(number)
			if err != nil {
				return err
			}
			after, ok := at(role)
			if !ok {
				after = far
			}
			if a.Due = now.Add(after); !a.Check.IsZero() {
				a.Check = now.Add(far)
			}
			return rotation.Save(txn, row, a)
		})
	}); err != nil {
		return err
	}
	return r.start()
}

// through waits until each of the roles has been rotated once since before and no rotation is under way any more, and returns how all stand then.
func (r *rotated) through(before map[string]standing) (map[string]standing, error) {
	if err := eventually(30*time.Minute, r.pause, "every role is rotated", func() (bool, error) {
		after, err := r.list(true)
		if err != nil {
			return false, err
		}
		for path, s := range before {
			if after[path].Version == s.Version {
				return false, nil
			}
		}
		return true, nil
	}); err != nil {
		return nil, err
	}
	if err := r.idle(); err != nil {
		return nil, err
	}
	return r.list(true)
}

// atOnce has every role due when the server starts, and returns how many a second were through with it, of two accounts the old password proven dead,
// from when the first new one was in force until the last was through.
func (r *rotated) atOnce() (float64, error) {
	before, err := r.list(true)
	if err != nil {
		return 0, err
	}
	if err := r.due(false, func(int) (time.Duration, bool) { return 0, true }); err != nil {
		return 0, err
	}
	after, err := r.through(before)
	if err != nil {
		return 0, err
	}
	var first, last time.Time
	for _, s := range after {
		if first.IsZero() || s.Rotated.Before(first) {
			first = s.Rotated
		}
		for _, at := range []time.Time{s.Rotated, s.Since} {
			if at.After(last) {
				last = at
			}
		}
	}
	return float64(len(after)) / last.Sub(first).Seconds(), nil
}

// lead is between the moment that the first role is set due and the moment that it is: the server starts meanwhile.
const lead = 5 * time.Second

// spread has one slice of the roles due one after the other, so many a second, and returns for each how long after that its new password was in force.
func (r *rotated) spread(rate float64, slice int, dead bool) ([]sample, error) {
	before, err := r.list(true)
	if err != nil {
		return nil, err
	}
	if err := r.due(dead, func(role int) (time.Duration, bool) {
		after := time.Duration(float64(role/spreads) / rate * float64(time.Second))
		return lead + after, role%spreads == slice && after < while
	}); err != nil {
		return nil, err
	}
	planned, err := r.list(true)
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(planned, func(_ string, s standing) bool { return time.Until(s.Due) > far/2 })
	time.Sleep(lead + time.Duration(float64(len(planned))/rate*float64(time.Second))) // undisturbed
	after, err := r.through(planned)
	if err != nil {
		return nil, err
	}
	var all []sample
	for path, s := range planned {
		if s.Version != before[path].Version {
			return nil, fmt.Errorf("%s was rotated before it was due", path)
		}
		all = append(all, sample{s.Due, after[path].Rotated.Sub(s.Due)})
	}
	return all, nil
}

// die adds two databases, one that takes connections and never says a word, and one that refuses them, with n roles each that are due all the time.
func (r *rotated) die(b *bench, n int) error {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	b.later(func() { _ = silent.Close() })
	go func() {
		var open []net.Conn // and unread; what nobody refers to would be closed
		defer func() {
			for _, c := range open {
				_ = c.Close()
			}
		}()
		for {
			c, err := silent.Accept()
			if err != nil {
				return
			}
			open = append(open, c)
		}
	}()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := closed.Close(); err != nil {
		return err
	}
	for name, l := range map[string]net.Listener{"silent": silent, "closed": closed} {
		if _, err := r.call("POST", "database/config/"+name, object{
			"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "username": superuser, "password": password, "verify_connection": false,
			"connection_url": fmt.Sprintf("postgresql://{{username}}:{{password}}@%s/postgres?sslmode=disable", l.Addr()),
		}); err != nil {
			return err
		}
		for i := range n {
			if _, err := r.call("POST", fmt.Sprintf("database/static-roles/%s-%d", name, i), object{
				"db_name": name, "username": fmt.Sprintf("gone-%d", i), "rotation_period": "5s", "skip_import_rotation": true, "password": "whatever-it-was",
			}); err != nil {
				return err
			}
		}
	}
	return eventually(time.Minute, often, "a dead database fails", func() (bool, error) {
		m, err := r.call("GET", "sys/lessor/rotation/status/database/static-creds/silent-0", nil)
		return text(m, "data", "last_error") != "", err
	})
}

// straight rotates n roles over a session that stays open, one after the other, as their strategy would have it with the least that shows the same: each new
// password is set and logged in with; the outgoing account is given another one, and refuses what it had. It returns how many roles a second. The server is down
// meanwhile, since it may have proofs to do.
func (r *rotated) straight(n int) (perSecond float64, err error) {
	r.end(syscall.SIGTERM)
	defer func() { err = errors.Join(err, r.start()) }()
	ctx := context.Background()
	login := func(account, password string) error {
		cfg, err := pgx.ParseConfig(fmt.Sprintf("host=127.0.0.1 port=%d user=%s dbname=postgres sslmode=disable", r.pg.port, account))
		if err != nil {
			return err
		}
		cfg.Password = password
		c, err := pgx.ConnectConfig(ctx, cfg)
		if err == nil {
			err = c.Close(ctx)
		}
		return err
	}
	for i := range n * r.kind.accounts {
		name := fmt.Sprintf("straight-rotated-%d-%d", r.kind.accounts, i)
		if _, err := r.conn.Exec(ctx, fmt.Sprintf(`DO $$ BEGIN IF to_regrole('"%s"') IS NULL THEN CREATE ROLE "%s" LOGIN; END IF; END $$`, name, name), pgx.QueryExecModeSimpleProtocol); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	for i := range n * r.kind.accounts {
		name := fmt.Sprintf("straight-rotated-%d-%d", r.kind.accounts, i)
		if _, err := r.conn.Exec(ctx, `ALTER ROLE "`+name+`" PASSWORD '`+straightVerifier+`'`, pgx.QueryExecModeSimpleProtocol); err != nil {
			return 0, err
		}
		outgoing := i%2 == 1 && r.kind.accounts == 2
		if err := login(name, pick(outgoing, "what-it-was-before", straightPassword)); (err == nil) == outgoing {
			return 0, fmt.Errorf("logging in as %s: %w", name, err)
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}
