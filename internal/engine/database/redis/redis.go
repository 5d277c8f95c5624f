// Package redis makes and removes leased accounts at Redis (6.2 and later).
//
// What touches the server is in accounts.go and passwords.go. The server gets the SHA-256 of a password, which is what it keeps, and never the
// password. An account bears its lease's mark as a password that nobody has: see marks.go. Nothing without the mark is removed.
//
// Accounts are a server's own: neither replicas nor other nodes of a cluster know them. So a connection leads to one server.
package redis

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/target"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Values of persistence_mode: how a change of accounts is made to outlive the server.
const (
	automatic = ""        // in the file of accounts, where the server has one
	users     = "ACLFILE" // in the file of accounts, which the server must have
	rewrite   = "REWRITE" // in the server's configuration file, which is written anew
	none      = "NONE"    // it does not
)

// Driver is Redis'.
type Driver struct{}

var _ database.Driver = Driver{}

// Plugin is the name that Vault's users know.
func (Driver) Plugin() string { return "redis-database-plugin" }

// Usernames is Vault's template, which makes names as V_APPROLE-BILLING_APP_ZK3…_1700000000.
func (Driver) Usernames() (string, int) {
	return `{{ printf "V_%s_%s_%s_%s" (.DisplayName | uppercase | truncate 40 | trim) (.RoleName | uppercase | truncate 40 | trim) (random 20 | uppercase) (unix_time) | truncate 128 }}`, 128
}

// Check says what is wrong with a connection.
func (Driver) Check(c *database.Connection, s database.Secrets) error {
	switch {
	case c.URL != "":
		return errors.New("connection_url is not for Redis: say host and port, and tls=true for TLS")
	case c.Authentication != "" || c.ScramIterations != 0:
		return errors.New("password_authentication and scram_iterations are not for Redis: it gets the SHA-256 of a password, always")
	case c.Username == "":
		return errors.New("username is needed: the account that lessor logs in with")
	case !existing(c.Username):
		return errName
	}
	switch c.Persistence {
	case automatic, users, rewrite, none:
	default:
		return errors.New("persistence_mode must be ACLFILE, REWRITE or NONE; by default accounts are saved where the server has a file for them")
	}
	if _, err := address(c); err != nil {
		return err
	}
	_, err := encryption(c, s)
	return err
}

// CheckRole says what is wrong with a role's rules.
func (Driver) CheckRole(s *database.Statements) error {
	if len(s.Renewal)+len(s.Revocation)+len(s.Rollback) > 0 {
		return errors.New("only creation_statements are for Redis, as a list of ACL rules: an account is removed as a whole, and has no end of its own to move")
	}
	if _, err := rules(s.Creation, ""); err != nil {
		return fmt.Errorf("creation_statements: %w", err)
	}
	return nil
}

// CheckRotation says what is wrong with an account's name; Redis has no statements that change a password.
func (Driver) CheckRotation(username string, statements []string) error {
	if !existing(username) {
		return errName
	}
	if len(statements) > 0 {
		return errors.New("there are no statements that change a password at Redis: leave them out")
	}
	return nil
}

// CheckPassword says whether a password can be an account's.
func (Driver) CheckPassword(_ *database.Connection, password lessor.Secret) error {
	if password.Empty() {
		return errors.New("the password is empty")
	}
	return nil
}

// Account is the name of the account that lessor logs in with.
func (Driver) Account(c *database.Connection) (string, error) {
	if c.Username == "" {
		return "", errors.New("username is needed: the account that lessor logs in with")
	}
	return c.Username, nil
}

// SameServer reports whether host and port are the same.
func (Driver) SameServer(a, b *database.Connection) bool {
	at, err := address(a)
	to, other := address(b)
	return err == nil && other == nil && strings.EqualFold(at, to)
}

// Open prepares a pool of sessions.
func (Driver) Open(c *database.Connection, s database.Secrets) (database.Database, error) {
	at, err := address(c)
	if err != nil {
		return nil, err
	}
	t, err := encryption(c, s)
	if err != nil {
		return nil, err
	}
	hush()
	d := &server{address: at, tls: t, username: c.Username, persistence: c.Persistence, hide: []string{s.Password.Reveal(), s.PrivateKey.Reveal()}}
	d.open, d.idle, d.lifetime = c.Open(), int(c.MaxIdle), c.Lifetime()
	d.logins.Use([]lessor.Secret{s.Password})
	d.pool.Store(d.fill())
	return d, nil
}

// address is host and port of the server.
func address(c *database.Connection) (string, error) {
	host, port := strings.Trim(c.Host, "[]"), c.Port
	if port == 0 {
		port = 6379
	}
	if host == "" {
		return "", errors.New("host is needed: the server's name or address")
	}
	if port < 1 || port > 65535 {
		return "", errors.New("port must be from 1 to 65535")
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if err := target.Forbidden(ip); err != nil {
			return "", err
		}
	} else if !hostname.MatchString(host) {
		return "", errors.New("host is not well-formed: it is a name or an address, without port and protocol")
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port))), nil
}

var hostname = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?$`)

var errName = errors.New("the username must be 1 to 128 bytes, without spaces and control characters")

// existing reports whether an account can have the name: Redis takes all but spaces and zeros.
func existing(username string) bool {
	return username != "" && len(username) <= 128 && !strings.ContainsFunc(username, func(c rune) bool { return c <= ' ' || c == 0x7f || c == 0x85 || c == 0xa0 })
}

// identifier is what usernames of leased accounts look like.
var identifier = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)
