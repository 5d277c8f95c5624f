// Package postgres makes and removes leased accounts at PostgreSQL (12 and later).
//
// What touches the server is in accounts.go. Each account is made in one transaction and one round trip, under an advisory
// lock that its lease's id names, and bears its lease's mark as the role's comment; nothing without the mark is removed.
// The server gets a SCRAM verifier, not the password, unless the connection says password_authentication=password.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Values of password_authentication.
const (
	scram = "scram-sha-256"
	plain = "password"
)

// Driver is PostgreSQL's.
type Driver struct{}

var _ database.Driver = Driver{}

// Plugin is the name that Vault's users know.
func (Driver) Plugin() string { return "postgresql-database-plugin" }

// Usernames is Vault's template, which makes names as v-approle-app-Zk3…-1700000000.
func (Driver) Usernames() (string, int) {
	return `{{ printf "v-%s-%s-%s-%s" (.DisplayName | truncate 8 | trim) (.RoleName | truncate 8 | trim) (random 20) (unix_time) | truncate 63 }}`, 63
}

// Check says what is wrong with a connection.
func (Driver) Check(c *database.Connection, s database.Secrets) error {
	switch {
	case c.Authentication != "" && c.Authentication != scram && c.Authentication != plain:
		return fmt.Errorf("password_authentication must be %s or %s", scram, plain)
	case c.ScramIterations < 0 || c.ScramIterations > mostIterations:
		return fmt.Errorf("scram_iterations must be from 1 to %d; 0 stands for %d", mostIterations, defaultIterations)
	}
	_, err := settings(c, s)
	return err
}

// CheckRole says what is wrong with statements.
func (Driver) CheckRole(s *database.Statements) error {
	if len(s.Creation) == 0 {
		return errors.New("creation_statements are needed: they make the account {{name}} with {{password}}")
	}
	for _, kind := range []struct {
		name string
		list []string
		can  string
	}{
		{"creation_statements", s.Creation, "name username password expiration"},
		{"renew_statements", s.Renewal, "name username expiration"},
		{"revocation_statements", s.Revocation, "name username"},
		{"rollback_statements", s.Rollback, "name username"},
	} {
		for _, sql := range kind.list {
			if err := check(sql, kind.can); err != nil {
				return fmt.Errorf("%s: %w", kind.name, err)
			}
		}
	}
	return nil
}

// CheckRotation says what is wrong with an account's name, and with statements that change a password.
func (Driver) CheckRotation(username string, statements []string) error {
	if !existing(username) {
		return errors.New(`the username must be 1 to 63 bytes, without quotes, "\\", "$" and control characters`)
	}
	for _, sql := range statements {
		if err := check(sql, "name username password"); err != nil {
			return err
		}
	}
	return nil
}

// CheckPassword says whether statements and verifiers can take a password.
func (Driver) CheckPassword(c *database.Connection, password lessor.Secret) error {
	if unsafe.MatchString(password.Reveal()) {
		return errPassword
	}
	if c.Authentication != plain {
		_, err := verifier(password.Reveal(), salt(""), 1)
		return err
	}
	return nil
}

// Account is the name of the account that lessor logs in with.
func (Driver) Account(c *database.Connection) (string, error) { return userOf(c) }

// SameServer reports whether the URLs have an address in common.
func (Driver) SameServer(a, b *database.Connection) bool {
	at := servers(a)
	return slices.ContainsFunc(servers(b), func(s string) bool { return slices.Contains(at, s) })
}

// Open prepares a pool of sessions.
func (Driver) Open(c *database.Connection, s database.Secrets) (database.Database, error) {
	connect, err := settings(c, s)
	if err != nil {
		return nil, err
	}
	cfg, err := pgxpool.ParseConfig(baseline)
	if err != nil {
		return nil, errors.New("PostgreSQL's environment variables of this process contradict each other")
	}
	connect(cfg.ConnConfig)
	cfg.MaxConns = int32(c.Open())
	cfg.MaxConnLifetime = c.Lifetime()
	if cfg.MaxConnLifetime == 0 {
		cfg.MaxConnLifetime = 100 * 365 * 24 * time.Hour
	}
	d := &server{
		open: c.Open(), iterations: int(c.ScramIterations), verify: c.Authentication != plain,
		hide: []string{s.Password.Reveal(), s.PrivateKey.Reveal()},
	}
	if d.iterations == 0 {
		d.iterations = defaultIterations
	}
	if c.MaxIdle != 0 {
		cfg.AfterRelease = func(*pgx.Conn) bool { return int64(d.pool.Stat().IdleConns()) < c.MaxIdle }
	}
	d.logins.Use([]lessor.Secret{s.Password})
	cfg.BeforeConnect = d.present
	if d.pool, err = pgxpool.NewWithConfig(context.Background(), cfg); err != nil {
		return nil, d.fail(err)
	}
	return d, nil
}
