// Package rabbitmq leases accounts at RabbitMQ, and rotates the passwords of such as exist. Its paths are those of Vault's engine of this name; what
// is behind them is the database engine's, with one connection: this package says what clients write and read (backend.go), and how accounts are made
// at a broker (Driver, accounts.go), over the management API.
//
// The broker gets a salted hash of a password, as it keeps it, and never the password. An account bears its lease's mark as a tag.
package rabbitmq

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/target"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// plugin is what the database engine knows the Driver by; no client does.
const plugin = "rabbitmq"

// Driver is RabbitMQ's. A role's creation is one statement, the JSON of rights.
type Driver struct{}

var _ database.Driver = Driver{}

// Plugin is the name that connections have it by.
func (Driver) Plugin() string { return plugin }

// Usernames is Vault's template, which makes names as approle-billing-0b7c….
func (Driver) Usernames() (string, int) {
	return `{{ printf "%s-%s" (.DisplayName | truncate 200) (uuid) }}`, 255
}

// Check says what is wrong with a connection.
func (Driver) Check(c *database.Connection, s database.Secrets) error {
	switch {
	case c.Host != "":
		return errors.New("say connection_uri, in the place of a host")
	case c.Username == "":
		return errors.New("username is needed: the administrator that lessor logs in as")
	case !existing(c.Username):
		return errName
	}
	at, err := endpoint(c)
	if err != nil {
		return err
	}
	_, err = encryption(c, s, at)
	return err
}

// CheckRole says what is wrong with a role's rights.
func (Driver) CheckRole(s *database.Statements) error {
	if len(s.Renewal)+len(s.Revocation)+len(s.Rollback) > 0 {
		return errors.New("RabbitMQ has no statements")
	}
	r, err := parse(s.Creation)
	if err != nil {
		return err
	}
	return r.check()
}

// CheckRotation says what is wrong with an account's name; there are no statements that change a password.
func (Driver) CheckRotation(username string, statements []string) error {
	if !existing(username) {
		return errName
	}
	if len(statements) > 0 {
		return errors.New("there are no statements that change a password at RabbitMQ")
	}
	return nil
}

// CheckPassword says whether a password can be an account's.
func (Driver) CheckPassword(_ *database.Connection, password lessor.Secret) error {
	if password.Empty() {
		return errors.New("the password is empty, by which nobody could log in")
	}
	if strings.Contains(password.Reveal(), "\x00") {
		return errors.New("the password contains a zero byte, by which clients could not log in")
	}
	return nil
}

// Account is the name of the account that lessor logs in with.
func (Driver) Account(c *database.Connection) (string, error) {
	if c.Username == "" {
		return "", errors.New("username is needed: the administrator that lessor logs in as")
	}
	return c.Username, nil
}

// SameServer reports whether both lead to one API.
func (Driver) SameServer(a, b *database.Connection) bool {
	at, err := endpoint(a)
	to, other := endpoint(b)
	return err == nil && other == nil && strings.EqualFold(at.Host, to.Host)
}

// Open prepares connections to the API.
func (Driver) Open(c *database.Connection, s database.Secrets) (database.Database, error) {
	at, err := endpoint(c)
	if err != nil {
		return nil, err
	}
	t, err := encryption(c, s, at)
	if err != nil {
		return nil, err
	}
	b := &broker{at: at, username: c.Username, hide: []string{s.Password.Reveal(), s.PrivateKey.Reveal()}, free: make(chan struct{}, c.Open())}
	b.transport = &http.Transport{
		DialContext: target.Dialer(connect).DialContext, TLSClientConfig: t, TLSHandshakeTimeout: connect, DisableCompression: true,
		MaxConnsPerHost: c.Open(), MaxIdleConnsPerHost: c.Open(), IdleConnTimeout: 30 * time.Second,
	}
	// Credentials go where they were meant to.
	b.client = &http.Client{Transport: b.transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	b.logins.Use([]lessor.Secret{s.Password})
	return b, nil
}

// endpoint is where the management API is.
func endpoint(c *database.Connection) (*url.URL, error) {
	u, err := url.Parse(c.URL)
	switch {
	case c.URL == "":
		return nil, errors.New("connection_uri is needed: the management API, such as https://rabbit.example.com:15671")
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Opaque != "" || u.Hostname() == "":
		return nil, errors.New("connection_uri must be a URL of the management API, such as https://rabbit.example.com:15671")
	case u.User != nil:
		return nil, errors.New("the account belongs into the parameters username and password, not into connection_uri")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, errors.New("connection_uri ends with its host, or with the path that the management API is below")
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
		if err := target.Forbidden(ip); err != nil {
			return nil, err
		}
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	}
	return u.JoinPath("api"), nil
}

// encryption is how to know the broker by its certificate; nil stands for plain.
func encryption(c *database.Connection, s database.Secrets, at *url.URL) (*tls.Config, error) {
	if at.Scheme == "http" {
		if c.CA != "" || c.Certificate != "" || c.ServerName != "" || !s.PrivateKey.Empty() {
			return nil, errors.New("connection_uri with http:// contradicts tls_ca and what else is about TLS")
		}
		return nil, nil
	}
	name := at.Hostname()
	if c.ServerName != "" {
		name = c.ServerName
	}
	return target.TLS(name, c.CA, c.Certificate, s.PrivateKey.Reveal())
}

// rights are what a role gives its accounts.
type rights struct {
	Tags   string                      `json:"tags,omitempty"`   // with commas between
	VHosts map[string]grant            `json:"vhosts,omitempty"` // by virtual host
	Topics map[string]map[string]topic `json:"vhost_topics,omitempty"`
}

// grant is what may be done in a virtual host: regular expressions of names.
type grant struct {
	Configure string `json:"configure"`
	Write     string `json:"write"`
	Read      string `json:"read"`
}

// topic is what may be done at a topic exchange: regular expressions of routing keys.
type topic struct {
	Write string `json:"write"`
	Read  string `json:"read"`
}

// parse reads rights from a role's statements.
func parse(creation []string) (*rights, error) {
	var r rights
	if len(creation) != 1 || json.Unmarshal([]byte(creation[0]), &r) != nil {
		return nil, errors.New("the role is damaged: write it anew")
	}
	return &r, nil
}

func (r *rights) check() error {
	if r.Tags == "" && len(r.VHosts) == 0 && len(r.Topics) == 0 {
		return errors.New("both tags and vhosts not specified")
	}
	for _, t := range r.tags() {
		if strings.HasPrefix(t, tagPrefix) {
			return fmt.Errorf("tags that begin with %q are lessor's own", tagPrefix)
		}
		if !printable(t) {
			return errors.New("tags are printable, and 255 bytes at most")
		}
	}
	for vhost := range r.VHosts {
		if !printable(vhost) {
			return fmt.Errorf("%q is no virtual host", vhost)
		}
	}
	for vhost, exchanges := range r.Topics {
		for exchange := range exchanges {
			if !printable(vhost) || !printable(exchange) {
				return fmt.Errorf("%q, %q: no virtual host, or no exchange", vhost, exchange)
			}
		}
	}
	return nil
}

// tags are the role's, one by one.
func (r *rights) tags() []string {
	all := strings.Split(r.Tags, ",")
	for i := range all {
		all[i] = strings.TrimSpace(all[i])
	}
	return slices.DeleteFunc(all, func(t string) bool { return t == "" })
}

func printable(s string) bool {
	return s != "" && len(s) <= 255 && utf8.ValidString(s) && !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f })
}

var errName = errors.New("the username must be 1 to 255 bytes, without control characters")

// existing reports whether an account can have the name.
func existing(username string) bool { return printable(username) }

// identifier is what usernames of leased accounts look like.
var identifier = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)
