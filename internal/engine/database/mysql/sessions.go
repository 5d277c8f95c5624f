package mysql

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
)

// Sessions of accounts, as the process list has them.

const (
	patience = 10 * time.Second // for sessions to end that were told to
	dawdling = time.Second      // how long a login may take during which an account is removed
)

// kill ends sessions by their numbers, which are never given again while the server runs.
func (s *session) kill(ids []string) error {
	for _, id := range ids {
		_, err := s.run("KILL " + id)
		switch code(err) {
		case noSuchThread:
		case killDenied:
			return &refusal{"lessor's account at the database may not end the sessions of others: GRANT CONNECTION ADMIN ON *.* to it (at MySQL: CONNECTION_ADMIN, and SYSTEM_USER to end those of accounts that have that)"}
		default:
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// sees says why lessor's account does not see the sessions of others, if it does not: then the process list is silent about them.
func (s *session) sees() error {
	if s.seeing == 0 {
		_, err := s.run("SELECT 1 FROM information_schema.innodb_cmp LIMIT 1") // asks for the same right, and says so
		switch {
		case code(err) == notPrivileged:
			s.seeing = -1
		case err != nil:
			return err
		default:
			s.seeing = 1
		}
	}
	if s.seeing < 0 {
		return &api.Error{Kind: api.Upstream, Cause: database.ErrUnseen,
			Text: "lessor's account at the database does not see the sessions of others: GRANT PROCESS ON *.* to it"}
	}
	return nil
}

// evict ends the sessions of accounts and waits until they have ended. removed: nobody can log in with them any more, but for those who had begun to.
// MariaDB says of such a session whose it is to be; MySQL does not, so it waits for all of them, and ends those who take their time.
func (s *session) evict(usernames []string, removed bool) error {
	if err := s.sees(); err != nil {
		return err
	}
	start := time.Now()
	var entering map[string]bool
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		rows, err := s.run("SELECT ID,USER,COMMAND FROM information_schema.processlist WHERE ID<>CONNECTION_ID() AND USER IN (" +
			texts(append([]string{unauthenticated}, usernames...)) + ")")
		if err != nil {
			return err
		}
		var theirs, late []string
		still := map[string]bool{}
		for _, r := range rows {
			switch {
			case slices.Contains(usernames, r[1]): // the comparison there is not exact
				theirs = append(theirs, r[0])
			case r[1] == unauthenticated && removed && !s.maria && (entering == nil || entering[r[0]]):
				if still[r[0]] = true; time.Since(start) > dawdling {
					late = append(late, r[0])
				}
			}
		}
		if entering = still; len(theirs) == 0 && len(still) == 0 {
			return nil
		}
		if err := s.kill(append(theirs, late...)); err != nil {
			return err
		}
		if time.Since(start) > patience {
			return &refusal{"sessions of the account at the database do not end"}
		}
		select {
		case <-time.After(pause):
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
}

// unauthenticated is whose sessions are in the process list that have not logged in yet.
const unauthenticated = "unauthenticated user"

// Sessions lists the sessions of accounts. Since when they are open the process list does not tell.
func (d *server) Sessions(ctx context.Context, usernames []string) (all []database.Session, err error) {
	for _, name := range usernames {
		if !existing(name) {
			return nil, api.Errorf(api.Invalid, "the username cannot be put into statements")
		}
	}
	err = d.session(ctx, func(s *session) error {
		if err := s.sees(); err != nil {
			return d.fail(err)
		}
		rows, err := s.run("SELECT ID,USER,HOST FROM information_schema.processlist WHERE ID<>CONNECTION_ID() AND USER IN (" + texts(usernames) + ") ORDER BY ID")
		if err != nil {
			return d.fail(err)
		}
		called := map[string]string{}
		// Only where the performance schema is switched on, and open to lessor's account.
		named, err := s.run("SELECT PROCESSLIST_ID,ATTR_VALUE FROM performance_schema.session_connect_attrs WHERE ATTR_NAME='program_name'")
		if err != nil && code(err) == 0 {
			return d.fail(err)
		}
		for _, r := range named {
			called[r[0]] = r[1]
		}
		for _, r := range rows {
			if !slices.Contains(usernames, r[1]) {
				continue
			}
			found := database.Session{Username: r[1], Client: clientOf(r[2]), Application: called[r[0]]}
			if len(found.Application) > database.LongestApplication {
				found.Application = strings.ToValidUTF8(found.Application[:database.LongestApplication], "")
			}
			all = append(all, found)
		}
		return nil
	})
	return all, err
}

// clientOf is where a session comes from, by the host that the process list has.
func clientOf(host string) string {
	if host == "localhost" {
		return "local"
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		return host[:i]
	}
	return host
}

// End ends an account's sessions.
func (d *server) End(ctx context.Context, username string) error {
	if !existing(username) {
		return api.Errorf(api.Invalid, "the username cannot be put into statements")
	}
	return d.session(ctx, func(s *session) error { return d.fail(s.evict([]string{username}, false)) })
}
