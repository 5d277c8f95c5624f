package mysql

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/target"
)

// parameters are those that a URL may have; the last are those of Vault's users that change nothing here.
var parameters = []string{"tls", "timeout", "parseTime", "multiStatements", "charset", "collation", "loc", "interpolateParams", "allowNativePasswords"}

const defaultConnectTimeout = 10 * time.Second

// settings reads a connection's URL and TLS options, strictly: nothing of the process's environment or files decides where lessor connects to, no file is
// ever sent to a server, and no server is shown a password in clear.
func settings(c *database.Connection, s database.Secrets) (*mysql.Config, error) {
	login, _, name, query, err := parts(c.URL)
	if err != nil {
		return nil, err
	}
	at, err := addressOf(c)
	if err != nil {
		return nil, err
	}
	q, err := url.ParseQuery(query)
	if err != nil || strings.ContainsAny(query, "@#") {
		return nil, errors.New("connection_url: its parameters are not well-formed; if they are part of a password, put that into the parameter password, and {{password}} in its place")
	}
	for p, values := range q {
		if !slices.Contains(parameters, p) {
			return nil, fmt.Errorf("connection_url: the parameter %q is not allowed; only tls and timeout are, and TLS has parameters of the connection: tls_ca, tls_certificate, private_key (or both as tls_certificate_key), tls_server_name, tls_skip_verify", p)
		}
		if len(values) > 1 {
			return nil, fmt.Errorf("connection_url: the parameter %q is there twice", p)
		}
	}
	user, err := userOf(c)
	if err != nil {
		return nil, err
	}
	if _, literal, _ := strings.Cut(login, ":"); literal != "" && literal != "{{password}}" {
		return nil, errors.New("connection_url: the password belongs into the parameter password, and {{password}} in its place")
	}
	if name, err = url.PathUnescape(name); err != nil || strings.ContainsAny(name, "/@#()") {
		return nil, errors.New("connection_url: its database name is not well-formed; if it is part of a password, put that into the parameter password, and {{password}} in its place")
	}
	cfg := mysql.NewConfig()
	cfg.User, cfg.DBName, cfg.Net, cfg.Addr, cfg.Timeout = user, name, at.network, at.text(), defaultConnectTimeout
	if t := q.Get("timeout"); t != "" {
		d, err := time.ParseDuration(t)
		if err != nil || d < time.Second || d > 10*time.Minute {
			return nil, errors.New(`connection_url: timeout must be from "1s" to "10m"`)
		}
		cfg.Timeout = d
	}
	if cfg.TLS, cfg.AllowFallbackToPlaintext, err = encryption(c, s, q.Get("tls"), at); err != nil {
		return nil, err
	}
	cfg.DialFunc = func(ctx context.Context, network, at string) (net.Conn, error) {
		return target.Dialer(cfg.Timeout).DialContext(ctx, network, at)
	}
	cfg.MultiStatements, cfg.ConnectionAttributes, cfg.Logger = true, "program_name:lessor", &mysql.NopLogger{}
	return cfg, nil
}

// errURL is what is wrong with most URLs.
var errURL = errors.New("connection_url must be as {{username}}:{{password}}@tcp(db.example.com:3306)/app?tls=true, or with unix(/run/mysqld/mysqld.sock)")

// parts takes a URL apart: login@network(address)/name?query.
func parts(text string) (login, at, name, query string, err error) {
	i := strings.LastIndex(text, "/")
	if i < 0 {
		return "", "", "", "", errURL
	}
	at, name = text[:i], text[i+1:]
	name, query, _ = strings.Cut(name, "?")
	if i := strings.LastIndex(at, "@"); i >= 0 {
		login, at = at[:i], at[i+1:]
	}
	return login, at, name, query, nil
}

// userOf is the name that a connection logs in with. It stands in the URL as it is.
func userOf(c *database.Connection) (string, error) {
	login, _, _, _, err := parts(c.URL)
	if err != nil {
		return "", err
	}
	user, _, _ := strings.Cut(login, ":")
	if user == "{{username}}" || user == "" {
		user = c.Username
	}
	if user == "" {
		return "", errors.New("username is needed: the account that lessor logs in with")
	}
	return user, nil
}

// address is where a server is.
type address struct {
	network string // tcp, unix
	host    string // name or address, lower case; path of a Unix socket
	port    uint16 // 0: Unix socket
}

func (a address) text() string {
	if a.network == "unix" {
		return a.host
	}
	return net.JoinHostPort(a.host, strconv.Itoa(int(a.port)))
}

// addressOf is the server that a connection's URL names.
func addressOf(c *database.Connection) (address, error) {
	_, at, _, _, err := parts(c.URL)
	if err != nil {
		return address{}, err
	}
	network, rest, _ := strings.Cut(at, "(")
	inner, ok := strings.CutSuffix(rest, ")")
	if !ok || inner == "" {
		return address{}, errURL
	}
	switch network {
	case "unix":
		if !strings.HasPrefix(inner, "/") {
			return address{}, errors.New("connection_url: a Unix socket has a path from /")
		}
		return address{network: "unix", host: inner}, nil
	case "tcp":
	default:
		return address{}, errURL
	}
	a := address{"tcp", inner, 3306}
	if !strings.HasSuffix(inner, "]") && strings.Contains(inner, ":") {
		host, port, err := net.SplitHostPort(inner)
		if err != nil {
			return address{}, errors.New("connection_url: its host is not well-formed")
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return address{}, errors.New("connection_url: its port is no number from 1 to 65535")
		}
		a.host, a.port = host, uint16(n)
	}
	if inner, ok := strings.CutPrefix(a.host, "["); ok {
		a.host = strings.TrimSuffix(inner, "]")
	}
	if a.host == "" || strings.ContainsAny(a.host, "%@/()[]?#\\ ") { // nothing in a host is ever decoded
		return address{}, errors.New("connection_url: its host is not well-formed")
	}
	if ip, err := netip.ParseAddr(a.host); err == nil {
		if err := target.Forbidden(ip); err != nil {
			return address{}, err
		}
	}
	a.host = strings.ToLower(a.host)
	return a, nil
}

// encryption is how to talk to a server: nil stands for plain; loose: plain will do if it speaks no TLS. Without a word about it TLS has to be
// verified, but for this machine itself.
func encryption(c *database.Connection, s database.Secrets, mode string, at address) (t *tls.Config, loose bool, err error) {
	if at.network == "unix" {
		return nil, false, nil
	}
	if mode == "" {
		mode = "true"
		ip, err := netip.ParseAddr(at.host)
		switch here := at.host == "localhost" || err == nil && ip.Unmap().IsLoopback(); {
		case c.InsecureTLS:
			mode = "skip-verify"
		case here && c.CA == "":
			mode = "preferred"
		}
	}
	name := at.host
	if c.ServerName != "" {
		name = c.ServerName
	}
	if t, err = target.TLS(name, c.CA, c.Certificate, s.PrivateKey.Reveal()); err != nil {
		return nil, false, err
	}
	switch mode {
	case "false":
		if c.CA != "" || c.Certificate != "" {
			return nil, false, errors.New("tls=false contradicts tls_ca and tls_certificate")
		}
		return nil, false, nil
	case "true":
		if c.InsecureTLS {
			return nil, false, errors.New("tls=true contradicts tls_skip_verify")
		}
		return t, false, nil
	case "skip-verify", "preferred":
		if c.CA != "" {
			return target.ChainOnly(t), false, nil
		}
		t.InsecureSkipVerify = true
		return t, mode == "preferred", nil
	}
	return nil, false, errors.New("connection_url: tls must be true, skip-verify, preferred or false")
}
