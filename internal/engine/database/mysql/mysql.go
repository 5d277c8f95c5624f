// Package mysql makes and removes leased accounts at MariaDB (10.6 and later) and MySQL (8.0 and later).
//
// What touches the server is in accounts.go. Neither server has transactions for accounts, or a place for a mark on one: each statement commits by itself.
// So an account is made under a *marker*, another account of the same name that nobody can log in with, whose host says whose it is ("MARK.lessor.invalid").
// It is there before the first statement that an administrator wrote runs, and goes after the last account of its name has gone. Nothing without a
// marker is removed. Whoever makes something holds a lock of the server's by its name, by which a successor finds his session, and ends it first.
//
// MariaDB gets the hash of a password, not the password, unless the connection says password_authentication=password; MySQL, which hashes it before
// it logs the statement, gets the password.
package mysql

import (
	"database/sql"
	"errors"
	"fmt"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Values of password_authentication. Where it is empty, MariaDB gets hashes of native, MySQL passwords.
const (
	plain   = "password"
	native  = "mysql_native_password"
	ed25519 = "ed25519"
	parsec  = "parsec" // of accounts that have it; lessor itself cannot log in by it
)

// Driver is MariaDB's and MySQL's.
type Driver struct {
	plugin   string
	template string
	longest  int
}

var _ database.Driver = Driver{}

// Drivers are all of them: Vault has one by several names, which differ in the usernames that they make.
func Drivers() []database.Driver {
	const (
		long  = `{{ printf "v-%s-%s-%s-%s" (.DisplayName | truncate 10 | trim) (.RoleName | truncate 10 | trim) (random 20) (unix_time) | truncate 32 }}`
		short = `{{ printf "v-%s-%s" (.RoleName | truncate 4 | trim) (random 20) | truncate 16 }}`
	)
	return []database.Driver{
		Driver{"mysql-database-plugin", long, 32}, Driver{"mysql-aurora-database-plugin", short, 16}, Driver{"mysql-rds-database-plugin", short, 16},
		Driver{"mysql-legacy-database-plugin", short, 16},
	}
}

// Plugin is the name that Vault's users know.
func (d Driver) Plugin() string { return d.plugin }

// Usernames is Vault's template, which makes names as v-approle-bi-app-Zk3….
func (d Driver) Usernames() (string, int) { return d.template, d.longest }

// Check says what is wrong with a connection.
func (Driver) Check(c *database.Connection, s database.Secrets) error {
	switch c.Authentication {
	case "", plain, native, ed25519:
	default:
		return fmt.Errorf("password_authentication must be %s, %s or %s; empty: hashes of %s at MariaDB, passwords at MySQL", native, ed25519, plain, native)
	}
	if c.ScramIterations != 0 {
		return errors.New("scram_iterations is for PostgreSQL")
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
		return errors.New(`the username must be 1 to 80 bytes, without quotes, backticks, "\\" and control characters, and without a host: an account is changed at all of its hosts`)
	}
	for _, sql := range statements {
		if err := check(sql, "name username password"); err != nil {
			return err
		}
		if clause(sql, "RETAIN", "CURRENT", "PASSWORD") {
			return errors.New("RETAIN CURRENT PASSWORD is not allowed: the password before would not be dead")
		}
	}
	return nil
}

// CheckPassword says whether statements can take a password.
func (Driver) CheckPassword(_ *database.Connection, password lessor.Secret) error {
	if unsafe.MatchString(password.Reveal()) {
		return errPassword
	}
	return nil
}

// Account is the name of the account that lessor logs in with.
func (Driver) Account(c *database.Connection) (string, error) { return userOf(c) }

// SameServer reports whether the URLs have the same address.
func (Driver) SameServer(a, b *database.Connection) bool {
	at, err := addressOf(a)
	other, otherErr := addressOf(b)
	return err == nil && otherErr == nil && at == other
}

// Open prepares a pool of sessions.
func (Driver) Open(c *database.Connection, s database.Secrets) (database.Database, error) {
	cfg, err := settings(c, s)
	if err != nil {
		return nil, err
	}
	d := &server{cfg: cfg, open: c.Open(), authentication: c.Authentication, hide: []string{s.Password.Reveal(), s.PrivateKey.Reveal()}}
	d.logins.Use([]lessor.Secret{s.Password})
	d.pool = sql.OpenDB(d)
	d.pool.SetMaxOpenConns(d.open)
	d.pool.SetConnMaxLifetime(c.Lifetime())
	switch {
	case c.MaxIdle == 0:
		d.pool.SetMaxIdleConns(d.open)
	default:
		d.pool.SetMaxIdleConns(int(c.MaxIdle))
	}
	return d, nil
}
