package postgres

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
)

// Sessions of accounts, as pg_stat_activity has them. Everybody sees whose a session is and what it calls itself; where it comes from and since when
// only superusers do, members of pg_read_all_stats, and those who are members of the account.

// Sessions lists the sessions of accounts, those that replicate included.
func (d *server) Sessions(ctx context.Context, usernames []string) (all []database.Session, err error) {
	names, err := literals(usernames)
	if err != nil {
		return nil, err
	}
	err = d.session(ctx, func(s *session) error {
		rows, err := s.run("BEGIN;" + s.bounds("lessor") + `
SELECT r.rolname, coalesce(host(a.client_addr), CASE WHEN a.backend_start IS NULL THEN '' ELSE 'local' END), a.application_name,
  coalesce(extract(epoch FROM a.backend_start), 0)
FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid
WHERE r.rolname IN (` + names + `) AND a.pid <> pg_backend_pid() AND coalesce(a.backend_type, '') <> 'parallel worker' ORDER BY 4, a.pid;
COMMIT`)
		if err != nil {
			return d.fail(err)
		}
		for _, row := range rows {
			since, err := strconv.ParseFloat(row[3], 64)
			if err != nil {
				return d.fail(&refusal{"the database does not tell the time"})
			}
			found := database.Session{Username: row[0], Client: row[1], Application: row[2]}
			if len(found.Application) > database.LongestApplication {
				found.Application = strings.ToValidUTF8(found.Application[:database.LongestApplication], "")
			}
			if since > 0 {
				found.Since = time.UnixMicro(int64(since * 1e6)).UTC()
			}
			all = append(all, found)
		}
		return nil
	})
	return all, err
}

// End ends an account's sessions.
func (d *server) End(ctx context.Context, username string) error {
	name, err := literals([]string{username})
	if err != nil {
		return err
	}
	return d.session(ctx, func(s *session) error {
		rows, err := s.run("SELECT oid, rolsuper FROM pg_roles WHERE rolname = " + name)
		if err != nil || len(rows) == 0 {
			return d.fail(err)
		}
		oid, superuser := rows[0][0], rows[0][1] == "t"
		err = s.evict(oid)
		switch {
		case code(err) == notPermitted && superuser:
			err = &refusal{"lessor's account may not end a superuser's sessions: only a superuser may"}
		case code(err) == notPermitted:
			err = &refusal{"lessor's account may not end these sessions: grant it pg_signal_backend"}
		}
		return d.fail(err)
	})
}

// literals is a list of accounts' names, as literals.
func literals(usernames []string) (string, error) {
	for _, name := range usernames {
		if !existing(name) {
			return "", api.Errorf(api.Invalid, "the username cannot be put into statements")
		}
	}
	if len(usernames) == 0 {
		return "NULL", nil
	}
	return texts(usernames), nil
}
