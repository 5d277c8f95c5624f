package postgres

import (
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

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/target"
)

// baseline is what pgx has to parse before it takes a configuration; settings replaces all of it, so that neither
// environment nor files of the process decide where lessor connects to.
const baseline = "host=127.0.0.1 port=5432 user=lessor dbname=postgres password=none passfile=/nonexistent connect_timeout=10 " +
	"target_session_attrs=any sslmode=disable sslrootcert='' sslcert='' sslkey='' sslcertmode=allow sslnegotiation=postgres " +
	"channel_binding=prefer require_auth='' min_protocol_version='' max_protocol_version=''"

// parameters are those that a URL may have.
var parameters = []string{"sslmode", "connect_timeout", "target_session_attrs", "host", "search_path"}

const defaultConnectTimeout = 10 * time.Second

// settings reads a connection's URL and TLS options, strictly, and returns what puts them into a configuration of pgx.
func settings(c *database.Connection, s database.Secrets) (func(*pgx.ConnConfig), error) {
	scheme, login, hosts, name, query := parts(c.URL)
	if scheme != "postgresql" && scheme != "postgres" {
		return nil, errors.New("connection_url must be a URL, such as postgresql://{{username}}:{{password}}@db.example.com:5432/app?sslmode=verify-full")
	}
	q, err := url.ParseQuery(query)
	if err != nil {
		return nil, errors.New("connection_url: its parameters are not well-formed")
	}
	if strings.ContainsAny(query, "@#") {
		return nil, errors.New("connection_url: its parameters are not well-formed; if they are part of a password, put that into the parameter password, and {{password}} in its place")
	}
	for p, values := range q {
		if !slices.Contains(parameters, p) {
			return nil, fmt.Errorf("connection_url: the parameter %q is not allowed; only %s are, and TLS has parameters of the connection: tls_ca, tls_certificate, private_key, tls_server_name", p, strings.Join(parameters, ", "))
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
	if name, err = url.PathUnescape(name); err != nil || strings.ContainsAny(name, "/@#") {
		return nil, errors.New("connection_url: its database name is not well-formed; if it is part of a password, put that into the parameter password, and {{password}} in its place")
	}
	if name == "" {
		name = user
	}
	at, err := addresses(hosts, q.Get("host"))
	if err != nil {
		return nil, err
	}
	timeout := defaultConnectTimeout
	if t := q.Get("connect_timeout"); t != "" {
		n, err := strconv.Atoi(t)
		if err != nil || n < 1 || n > 600 {
			return nil, errors.New("connection_url: connect_timeout must be from 1 to 600 seconds")
		}
		timeout = time.Duration(n) * time.Second
	}
	var primary pgconn.ValidateConnectFunc
	switch a := q.Get("target_session_attrs"); a {
	case "", "any":
	case "read-write":
		primary = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	case "primary":
		primary = pgconn.ValidateConnectTargetSessionAttrsPrimary
	default:
		return nil, errors.New("connection_url: target_session_attrs must be any, read-write or primary")
	}
	var tries []*pgconn.FallbackConfig
	for _, a := range at {
		ways, err := encryption(c, s, q.Get("sslmode"), a.host)
		if err != nil {
			return nil, err
		}
		for _, t := range ways {
			tries = append(tries, &pgconn.FallbackConfig{Host: a.host, Port: a.port, TLSConfig: t})
		}
	}
	session := map[string]string{"application_name": "lessor", "standard_conforming_strings": "on"}
	if p := q.Get("search_path"); p != "" {
		session["search_path"] = p
	}
	return func(cfg *pgx.ConnConfig) {
		cfg.Host, cfg.Port, cfg.TLSConfig = tries[0].Host, tries[0].Port, tries[0].TLSConfig
		cfg.Fallbacks = tries[1:]
		cfg.Database, cfg.User, cfg.Password = name, user, s.Password.Reveal()
		cfg.RuntimeParams, cfg.ValidateConnect, cfg.ConnectTimeout = session, primary, timeout
		cfg.MaxProtocolMessageBodyLen = 1 << 20
		cfg.DialFunc = target.Dialer(timeout).DialContext
		cfg.LookupFunc = net.DefaultResolver.LookupHost
	}, nil
}

type address struct {
	host string // name, address, or folder of a Unix socket
	port uint16
}

// parts takes a URL apart: scheme://login@hosts/name?query.
func parts(text string) (scheme, login, hosts, name, query string) {
	scheme, rest, _ := strings.Cut(text, "://")
	rest, query, _ = strings.Cut(rest, "?")
	hosts, name, _ = strings.Cut(rest, "/")
	if at := strings.LastIndex(hosts, "@"); at >= 0 {
		login, hosts = hosts[:at], hosts[at+1:]
	}
	return scheme, login, hosts, name, query
}

// userOf is the name that a connection logs in with.
func userOf(c *database.Connection) (string, error) {
	_, login, _, _, _ := parts(c.URL)
	user, _, _ := strings.Cut(login, ":")
	if user == "{{username}}" || user == "" {
		user = c.Username
	} else if plain, err := url.PathUnescape(user); err != nil {
		return "", errors.New("connection_url: its user name is not well-formed")
	} else {
		user = plain
	}
	if user == "" {
		return "", errors.New("username is needed: the account that lessor logs in with")
	}
	return user, nil
}

// servers are the addresses that a connection's URL names, as text.
func servers(c *database.Connection) (all []string) {
	_, _, hosts, _, query := parts(c.URL)
	q, err := url.ParseQuery(query)
	if err != nil {
		return nil
	}
	at, err := addresses(hosts, q.Get("host"))
	if err != nil {
		return nil
	}
	for _, a := range at {
		all = append(all, strings.ToLower(a.host)+":"+strconv.Itoa(int(a.port)))
	}
	return all
}

// addresses are the servers that a URL names.
func addresses(hosts, folder string) ([]address, error) {
	if folder != "" {
		if hosts != "" && hosts[0] != ':' || !strings.HasPrefix(folder, "/") {
			return nil, errors.New("connection_url: the parameter host is for the folder of a Unix socket, in the place of a host")
		}
	}
	var all []address
	for h := range strings.SplitSeq(hosts, ",") {
		a := address{h, 5432}
		port := ""
		if !strings.HasSuffix(h, "]") && strings.Contains(h, ":") {
			var err error
			if a.host, port, err = net.SplitHostPort(h); err != nil {
				return nil, errors.New("connection_url: a host is not well-formed")
			}
		}
		a.host = strings.Trim(a.host, "[]")
		if a.host == "" {
			a.host = folder
		}
		if port != "" {
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil || n == 0 {
				return nil, errors.New("connection_url: a port is no number from 1 to 65535")
			}
			a.port = uint16(n)
		}
		if a.host == "" {
			return nil, errors.New("connection_url names no host")
		}
		if strings.ContainsRune(a.host, '%') { // nothing in a host is ever decoded
			return nil, errors.New("connection_url: a host is not well-formed; the folder of a Unix socket goes into the parameter host")
		}
		if ip, err := netip.ParseAddr(a.host); err == nil {
			if err := target.Forbidden(ip); err != nil {
				return nil, err
			}
		}
		all = append(all, a)
	}
	return all, nil
}

// encryption is how to talk to a host, in order of preference: nil stands for plain. Without an sslmode it is verify-full,
// but for this machine itself.
func encryption(c *database.Connection, s database.Secrets, mode, host string) ([]*tls.Config, error) {
	if strings.HasPrefix(host, "/") {
		return []*tls.Config{nil}, nil
	}
	if mode == "" {
		mode = "verify-full"
		if ip, err := netip.ParseAddr(host); c.CA == "" && (host == "localhost" || err == nil && ip.Unmap().IsLoopback()) {
			mode = "prefer"
		}
	}
	name := host
	if c.ServerName != "" {
		name = c.ServerName
	}
	t, err := target.TLS(name, c.CA, c.Certificate, s.PrivateKey.Reveal())
	if err != nil {
		return nil, err
	}
	switch mode {
	case "disable":
		if c.CA != "" || c.Certificate != "" {
			return nil, errors.New("sslmode=disable contradicts tls_ca and tls_certificate")
		}
		return []*tls.Config{nil}, nil
	case "verify-full":
		return []*tls.Config{t}, nil
	case "verify-ca":
		return []*tls.Config{target.ChainOnly(t)}, nil
	case "require", "prefer":
		if c.CA != "" {
			return []*tls.Config{target.ChainOnly(t)}, nil
		}
		t.InsecureSkipVerify = true
		if mode == "require" {
			return []*tls.Config{t}, nil
		}
		return []*tls.Config{t, nil}, nil
	}
	return nil, errors.New("connection_url: sslmode must be disable, prefer, require, verify-ca or verify-full")
}
