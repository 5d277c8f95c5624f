package mysql

import (
	"context"
	"database/sql"
	"errors"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/go-sql-driver/mysql"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
)

const batch = 64 // accounts removed together

// server is a pool of sessions with one MariaDB or MySQL.
type server struct {
	cfg            *mysql.Config
	pool           *sql.DB
	open           int    // sessions at most
	authentication string // of the connection
	hide           []string
	logins         database.Logins
	generation     atomic.Int64 // of sessions: those of an earlier one are not used again
}

// Close ends all sessions, those in use when they are given back.
func (d *server) Close() { go d.pool.Close() }

// Ping asks for a sign of life.
func (d *server) Ping(ctx context.Context) error {
	return d.session(ctx, func(s *session) error {
		_, err := s.run("SELECT 1")
		return d.fail(err)
	})
}

// A marker is an account that nobody can log in with: it is locked, nobody knows its password, and its host is in a domain that never exists (RFC 6761).
// Until what it marks has been made it says "unfinished". Where the server resolves no names it says at its start that it ignores markers; they can be
// found and dropped all the same.
const (
	domain     = ".lessor.invalid"
	unfinished = ".unfinished"
)

// marker is the host of an account's marker: MARK[.MOUNT[.ROLE]][.unfinished].lessor.invalid.
func marker(a *database.Account, done bool) string {
	host := a.Bears()
	if a.Mount != "" {
		host += "." + a.Mount
		if a.Role != "" {
			host += "." + a.Role
		}
	}
	if !done {
		host += unfinished
	}
	return host + domain
}

var hex16 = regexp.MustCompile(`^[0-9a-f]{1,64}$`)

// marks reads a host; mark is empty if it is none of lessor's.
func marks(host string) (mark, mount, role string, done bool) {
	rest, ok := strings.CutSuffix(host, domain)
	if !ok {
		return "", "", "", false
	}
	rest, begun := strings.CutSuffix(rest, unfinished)
	mark, rest, _ = strings.Cut(rest, ".")
	mount, role, _ = strings.Cut(rest, ".")
	if !hex16.MatchString(mark) {
		return "", "", "", false
	}
	return mark, mount, role, !begun
}

// state is what the server has under a username.
type state struct {
	hosts   []string // of accounts
	mark    string   // of the lease that they are; empty: they are not lessor's
	markers []string // hosts
	done    bool     // all that the marker stands for was made
}

// look tells what the server has under usernames.
func (s *session) look(usernames ...string) (map[string]state, error) {
	rows, err := s.run("SELECT User,Host FROM mysql.user WHERE Host<>'' AND User IN (" + texts(usernames) + ") ORDER BY Host")
	if code(err) == noTableRight || code(err) == noColumnRight {
		return nil, &refusal{"lessor's account at the database may not see which accounts there are: GRANT SELECT ON mysql.* to it"}
	}
	if err != nil {
		return nil, err
	}
	found := map[string]state{}
	for _, r := range rows {
		f := found[r[0]]
		if mark, _, _, done := marks(r[1]); mark != "" {
			f.mark, f.done, f.markers = mark, done, append(f.markers, r[1])
		} else {
			f.hosts = append(f.hosts, r[1])
		}
		found[r[0]] = f
	}
	return found, nil
}

// accounts is a list of accounts of one name, as statements have it.
func accounts(username string, hosts []string) []string {
	all := make([]string, len(hosts))
	for i, host := range hosts {
		all[i] = text(username) + "@" + text(host)
	}
	return all
}

// Create makes the marker, runs the statements, and finishes the marker. What fails midway is taken back at once.
func (d *server) Create(ctx context.Context, a database.Account) error {
	v, err := newValues(a.Username, a.Password.Reveal(), a.Until)
	if err != nil {
		return api.Errorf(api.Invalid, "%v", err)
	}
	return d.session(ctx, func(s *session) error {
		hidden := []string{a.Password.Reveal()}
		if v.identified = s.identified(a.Password); v.identified != nil {
			hidden = append(hidden, hashes(a.Password)...)
		}
		if err := s.begin(a.Lease); err != nil {
			return d.fail(err)
		}
		found, err := s.look(a.Username)
		if err != nil {
			return d.fail(err)
		}
		f := found[a.Username]
		switch {
		case f.mark == "" && len(f.hosts) > 0:
			return api.Errorf(api.Upstream, "the database has an account %q, which is not lessor's", a.Username)
		case f.mark != "" && f.mark != a.Bears():
			return api.Errorf(api.Upstream, "the database has an account %q, which is another lease's: see whether username_template makes different names", a.Username)
		case f.done && len(f.hosts) > 0:
			return nil // made before
		}
		if err := s.drop(a.Username, f); err != nil { // what an attempt left that ended midway
			return d.fail(err)
		}
		err = s.create(&a, v)
		if err == nil {
			return nil
		}
		failure := d.fail(err, hidden...)
		if s.ctx.Err() != nil || errors.Is(failure, database.ErrUnreachable) {
			return failure // whoever removes it sees what there is
		}
		if err := s.takeBack(&a, v); err != nil {
			return &api.Error{Kind: api.Upstream, Text: failure.Error() + "; and what was made could not be taken back yet: " + d.fail(err, hidden...).Error(), Cause: errors.Unwrap(failure)}
		}
		return failure
	})
}

// create is Create where there is nothing yet.
func (s *session) create(a *database.Account, v values) error {
	begun := text(a.Username) + "@" + text(marker(a, false))
	if err := s.make("CREATE USER " + begun + " IDENTIFIED BY " + text(nobody()) + " ACCOUNT LOCK"); err != nil {
		return err
	}
	if err := s.make(v.statements(a.Creation)...); err != nil {
		return err
	}
	found, err := s.look(a.Username)
	if err != nil {
		return err
	}
	if len(found[a.Username].hosts) == 0 {
		return &refusal{"creation_statements made no account with the name {{name}}"}
	}
	return s.make("RENAME USER " + begun + " TO " + text(a.Username) + "@" + text(marker(a, true)))
}

// takeBack undoes what creation statements did before one of them failed.
func (s *session) takeBack(a *database.Account, v values) error {
	var failure error
	if len(a.Rollback) > 0 {
		if err := s.make(v.statements(a.Rollback)...); err != nil {
			failure = &refusal{"rollback_statements failed: " + s.fail(err, a.Password.Reveal()).Error()}
		}
	}
	found, err := s.look(a.Username)
	if err == nil && found[a.Username].mark == a.Bears() {
		err = s.drop(a.Username, found[a.Username])
	}
	if failure != nil {
		return failure
	}
	return err
}

// drop drops accounts that nobody has had the password of, and their marker after them.
func (s *session) drop(username string, f state) error {
	if len(f.markers) == 0 {
		return nil
	}
	return s.make("DROP USER IF EXISTS " + strings.Join(accounts(username, append(slices.Clone(f.hosts), f.markers...)), ","))
}

// Renew runs renew_statements: nothing of the server's own says when an account ends.
func (d *server) Renew(ctx context.Context, a database.Account) error {
	v, err := newValues(a.Username, "", a.Until)
	if err != nil {
		return api.Errorf(api.Invalid, "%v", err)
	}
	return d.session(ctx, func(s *session) error {
		if len(a.Renewal) > 0 {
			if err := s.begin(a.Lease); err != nil {
				return d.fail(err)
			}
		}
		found, err := s.look(a.Username)
		if err != nil {
			return d.fail(err)
		}
		if f := found[a.Username]; f.mark != a.Bears() || len(f.hosts) == 0 {
			return api.Errorf(api.Upstream, "the database has no account %q of this lease", a.Username)
		}
		if len(a.Renewal) == 0 {
			return nil
		}
		return d.fail(s.make(v.statements(a.Renewal)...))
	})
}

// Marked lists the accounts that have a marker of lessor's.
func (d *server) Marked(ctx context.Context) (all []database.Marked, err error) {
	err = d.session(ctx, func(s *session) error {
		rows, err := s.run("SELECT User,Host FROM mysql.user WHERE Host LIKE '%" + domain + "' ORDER BY User,Host")
		for _, r := range rows {
			if mark, mount, role, _ := marks(r[1]); mark != "" {
				all = append(all, database.Marked{Username: r[0], Mark: mark, Mount: mount, Role: role})
			}
		}
		return d.fail(err)
	})
	return all, err
}

// Remove ends the accounts. Those that need nothing special go many at a time, over all sessions that there may be.
func (d *server) Remove(ctx context.Context, as []database.Account) []error {
	errs := make([]error, len(as))
	var parts [][]int
	var usual []int
	for i, a := range as {
		if !identifier.MatchString(a.Username) {
			errs[i] = api.Errorf(api.Internal, "the lease's notes are damaged: no username")
		} else if len(a.Revocation) > 0 {
			parts = append(parts, []int{i})
		} else {
			usual = append(usual, i)
		}
	}
	parts = slices.AppendSeq(parts, slices.Chunk(usual, batch))
	var wg sync.WaitGroup
	free := make(chan struct{}, d.open)
	for _, part := range parts {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			some := make([]database.Account, len(part))
			for n, i := range part {
				some[n] = as[i]
			}
			for n, err := range d.removeAll(ctx, some) {
				errs[part[n]] = err
			}
		})
	}
	wg.Wait()
	return errs
}

// attempts at what a session was ended in, as whoever ends the session of an account's maker may be late, and hit what the session does next.
const attempts = 8

// removeAll removes accounts over one session, or over another when that one is ended.
func (d *server) removeAll(ctx context.Context, as []database.Account) (errs []error) {
	for try := 1; ; try++ {
		errs = make([]error, len(as))
		ended := false
		if err := d.session(ctx, func(s *session) error {
			err := s.remove(as, errs)
			ended = err != nil && s.ctx.Err() == nil && (code(err) == killed || code(err) == queryInterrupted || !s.IsValid())
			return d.fail(err)
		}); err != nil {
			for i := range errs {
				errs[i] = err
			}
		}
		if !ended || try == attempts {
			return errs
		}
	}
}

// remove is removeAll over one session. An error that it returns is true of all the accounts.
func (s *session) remove(as []database.Account, errs []error) error {
	ids, names := make([]string, len(as)), make([]string, len(as))
	for i, a := range as {
		ids[i], names[i] = a.Lease, a.Username
	}
	if err := s.succeed(ids...); err != nil {
		return err
	}
	found, err := s.look(names...)
	if err != nil {
		return err
	}
	var usual []int
	for i, a := range as {
		f, ok := found[a.Username]
		switch {
		case !ok || f.mark != "" && f.mark != a.Bears():
			// gone; or another lease's, and so this one's was never made
		case f.mark == "":
			errs[i] = api.Errorf(api.Upstream, "the account %q has no marker of lessor's any more: see whose it is, and drop it", a.Username)
		case len(a.Revocation) > 0 && len(f.hosts) > 0:
			if err := s.removeAs(a, f); local(err) {
				errs[i] = s.fail(err)
			} else if err != nil {
				return err
			}
		default:
			usual = append(usual, i)
		}
	}
	if len(usual) == 0 {
		return nil
	}
	for queue := [][]int{usual}; len(queue) > 0; queue = queue[1:] {
		switch err := s.removeUsual(as, found, queue[0]); {
		case err == nil:
		case !local(err):
			return err
		case len(queue[0]) == 1:
			one := queue[0][0]
			errs[one] = s.fail(err)
			if err := s.shut(as[one].Username, found[as[one].Username].hosts); err != nil && !local(err) {
				return err
			}
		default: // whichever of them it is about
			queue = slices.AppendSeq(queue, slices.Chunk(usual, 1))
		}
	}
	return nil
}

// local reports whether an error is about an account, and not about the session.
func local(err error) bool {
	switch code(err) {
	case killed, queryInterrupted:
		return false
	case 0:
		_, refused := errors.AsType[*refusal](err)
		_, told := errors.AsType[*api.Error](err)
		return refused || told && !errors.Is(err, database.ErrUnreachable)
	}
	return true
}

// removeUsual drops accounts, ends the sessions that they left, and drops their markers: as long as there may be a session, there is a marker.
func (s *session) removeUsual(as []database.Account, found map[string]state, which []int) error {
	var names, all, markers []string
	for _, i := range which {
		f := found[as[i].Username]
		names = append(names, as[i].Username)
		all = append(all, accounts(as[i].Username, f.hosts)...)
		markers = append(markers, accounts(as[i].Username, f.markers)...)
	}
	if len(all) > 0 {
		if err := s.make("DROP USER IF EXISTS " + strings.Join(all, ",")); err != nil {
			return err
		}
	}
	if err := s.evict(names, true); err != nil {
		return err
	}
	return s.make("DROP USER IF EXISTS " + strings.Join(markers, ","))
}

// shut locks accounts and ends their sessions. Those that cannot be dropped are of no use any more by then: MySQL drops none that a view of its own making
// runs as.
func (s *session) shut(username string, hosts []string) error {
	if len(hosts) == 0 {
		return nil
	}
	if err := s.make("ALTER USER " + strings.Join(accounts(username, hosts), ",") + " ACCOUNT LOCK"); err != nil {
		return err
	}
	return s.evict([]string{username}, true)
}

// removeAs removes an account as its role's revocation_statements say.
func (s *session) removeAs(a database.Account, f state) error {
	v, err := newValues(a.Username, "", a.Until)
	if err != nil {
		return err
	}
	err = s.shut(a.Username, f.hosts)
	if err != nil && code(err) != notPrivileged && !errors.Is(err, database.ErrUnseen) { // revocation_statements may do what lessor's account may not
		return err
	}
	if err := s.make(v.statements(a.Revocation)...); err != nil {
		return err
	}
	after, err := s.look(a.Username)
	if err != nil {
		return err
	}
	for _, account := range accounts(a.Username, after[a.Username].hosts) {
		if locked, err := s.isLocked(account); err != nil {
			return err
		} else if !locked {
			return &refusal{"revocation_statements left the account able to log in: they must drop it, or leave it locked"}
		}
	}
	if err := s.evict([]string{a.Username}, true); err != nil {
		return err
	}
	return s.make("DROP USER IF EXISTS " + strings.Join(accounts(a.Username, f.markers), ","))
}

// isLocked reports whether nobody can log in with an account.
func (s *session) isLocked(account string) (bool, error) {
	rows, err := s.run("SHOW CREATE USER " + account)
	if err != nil || len(rows) == 0 {
		return false, err
	}
	return clause(rows[0][0], "ACCOUNT", "LOCK"), nil
}

// clause reports whether words follow each other in a statement, outside of quotes.
func clause(sql string, words ...string) bool {
	at := 0
	for i := 0; i < len(sql); {
		kind, n := token(sql, i)
		if kind == word && strings.EqualFold(sql[i:i+n], words[at]) {
			if at++; at == len(words) {
				return true
			}
		} else if kind != blank {
			at = 0
		}
		i += n
	}
	return false
}
