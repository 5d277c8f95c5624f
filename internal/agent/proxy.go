package agent

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/client"
)

// headerTimeout is how long who asks may take to say what.
const headerTimeout = 10 * time.Second

// Listener is where programs of this machine reach the server through the agent.
type Listener struct {
	Unix          bool
	Address       string // of loopback, or the socket's file
	Mode          os.FileMode
	User, Group   string // of the socket's file
	RequireHeader bool   // requests must carry X-Vault-Request: true, which no browser sends unasked

	UIDs, GIDs []int // who may ask, by the kernel's word; none: whoever can open the socket
}

func listener(s *stanza) (l Listener, ok bool) {
	kind := s.label
	s.text("type", &kind)
	l = Listener{Unix: kind == "unix", Mode: 0o600}
	s.text("address", &l.Address)
	role := "default"
	if s.text("role", &role); role != "default" {
		s.complain("role %q is not here: metrics are at the status socket", role)
	}
	s.boolean("require_request_header", &l.RequireHeader)
	s.mode("socket_mode", &l.Mode)
	s.text("socket_user", &l.User)
	s.text("socket_group", &l.Group)
	ids := func(name string, id func(string) (int, error), to *[]int) {
		for _, text := range s.list(name) {
			n, err := id(text)
			if err != nil {
				s.complain("%s: there is no %q", name, text)
				continue
			}
			*to = append(*to, n)
		}
	}
	ids("allow_uids", strconv.Atoi, &l.UIDs)
	ids("allow_users", userID, &l.UIDs)
	ids("allow_gids", strconv.Atoi, &l.GIDs)
	ids("allow_groups", groupID, &l.GIDs)
	switch {
	case kind != "unix" && kind != "tcp":
		s.complain("the listener %q is not here: use unix or tcp", kind)
	case l.Address == "":
		s.complain("a listener needs an address")
	case kind == "tcp" && (len(l.UIDs) > 0 || len(l.GIDs) > 0):
		s.complain("who asks is known at a unix socket only")
	case kind == "tcp" && !loopback(l.Address):
		s.complain("a tcp listener is for this machine: use an address of loopback, such as 127.0.0.1:8100")
	default:
		return l, true
	}
	return l, false
}

func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip, notIP := netip.ParseAddr(host)
	return err == nil && (host == "localhost" || notIP == nil && ip.IsLoopback())
}

func (l Listener) listen(log *slog.Logger) (net.Listener, error) {
	if !l.Unix {
		return net.Listen("tcp", l.Address)
	}
	file := strings.TrimPrefix(l.Address, "unix://")
	opened, err := listenUnix(file, 0o600)
	if err != nil {
		return nil, err
	}
	to := owner{user: -1, group: -1}
	if l.User != "" {
		to.user, err = userID(l.User)
	}
	if l.Group != "" && err == nil {
		to.group, err = groupID(l.Group)
	}
	if err == nil && (to.user >= 0 || to.group >= 0) {
		err = os.Lchown(file, to.user, to.group)
	}
	if err == nil {
		err = os.Chmod(file, l.Mode)
	}
	if err != nil {
		return nil, errors.Join(err, opened.Close())
	}
	return &peers{UnixListener: opened.(*net.UnixListener), of: l, log: log}, nil
}

// listenUnix opens a socket, in the place of one that nobody answers at.
func listenUnix(file string, mode os.FileMode) (net.Listener, error) {
	if info, err := os.Lstat(file); err == nil && info.Mode().Type() == os.ModeSocket {
		if c, err := net.DialTimeout("unix", file, time.Second); err == nil {
			_ = c.Close()
			return nil, fmt.Errorf("another process answers at %s", file)
		}
		if err := os.Remove(file); err != nil {
			return nil, err
		}
	}
	l, err := listenMasked(file)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(file, mode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// peers lets in who may ask, and closes the connections of others. It logs one of these a second at most: they can come as often as they like.
type peers struct {
	*net.UnixListener
	of   Listener
	log  *slog.Logger
	told time.Time
}

func (p *peers) Accept() (net.Conn, error) {
	for {
		c, err := p.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if len(p.of.UIDs) == 0 && len(p.of.GIDs) == 0 {
			return c, nil
		}
		uid, gid, err := peerOf(c)
		if err == nil && (slices.Contains(p.of.UIDs, uid) || slices.Contains(p.of.GIDs, gid)) {
			return c, nil
		}
		_ = c.Close()
		if now := time.Now(); now.Sub(p.told) >= time.Second {
			p.told = now
			if err != nil {
				p.log.Warn("a connection was closed, since whose it is cannot be found out", "socket", p.of.Address, "err", err)
			} else {
				p.log.Warn("a connection was closed of a user who may not ask here: see allow_users", "socket", p.of.Address, "uid", uid, "gid", gid)
			}
		}
	}
}

// proxy passes requests on to the server. Those that carry no token get the agent's, if they are to.
func (a *agent) proxy(l Listener) *http.Server {
	onward := a.server.Forward()
	if a.cache != nil {
		onward = a.cache.around(onward)
	}
	return &http.Server{
		ReadHeaderTimeout: headerTimeout, ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case l.RequireHeader && r.Header.Get("X-Vault-Request") != "true":
				refuse(w, http.StatusPreconditionFailed, "missing 'X-Vault-Request' header")
			case !l.Unix && !loopback(r.Host) && !loopback(r.Host+":0"):
				refuse(w, http.StatusForbidden, "name the agent by its address: another name may be a web page's")
			case !l.Unix && elsewhere(r):
				refuse(w, http.StatusForbidden, "a web page of elsewhere asks here for nothing")
			default:
				if own := a.introduce(r.Header); !own.Empty() && strings.HasPrefix(path.Clean(r.URL.Path), "/v1/auth/token/") {
					reserved(own, onward).ServeHTTP(w, r)
					return
				}
				onward.ServeHTTP(w, r)
			}
		}),
	}
}

// elsewhere reports whether a web page of another place has a browser of this machine ask: it sees no answer, but what is asked for would be done, with the agent's token perhaps.
func elsewhere(r *http.Request) bool {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" {
		return site != "same-origin" && site != "none"
	}
	origin := r.Header.Get("Origin")
	return origin != "" && origin != "http://"+r.Host
}

// introduce puts the agent's token into a request's headers, if it is to go there, and that who asks is the agent's. It returns that token; empty: the request has one of its own, or none.
func (a *agent) introduce(h http.Header) (own client.Token) {
	if scheme, text, ok := strings.Cut(h.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") && h.Get("X-Vault-Token") == "" {
		h.Set("X-Vault-Token", strings.TrimSpace(text))
	}
	h.Del("Authorization")
	if upgrade := slices.ContainsFunc(h["Connection"], func(s string) bool { return strings.Contains(strings.ToLower(s), "upgrade") }); upgrade {
		h.Set("Connection", "Upgrade")
	} else {
		h.Del("Connection") // it may name headers that go no further: those that are put here
	}
	if !a.config.OwnToken || h.Get("X-Vault-Token") != "" && !a.config.ForceToken {
		return own
	}
	a.mu.Lock()
	session := a.session
	a.mu.Unlock()
	h.Del("X-Vault-Token")
	if session != nil {
		own = session.Client().Token()
		h.Set("X-Vault-Token", own.Reveal())
		if a.config.Instance != "" {
			h.Set("X-Lessor-Instance", a.asker(h.Get("X-Lessor-Instance")))
		}
	}
	return own
}

// asker is the instance of who asks with the agent's token and calls himself as. He is one of the agent's: as the agent itself, or as another one with the same login, he could end what their
// templates are made of, or acknowledge it.
func (a *agent) asker(as string) string {
	through := a.through()
	switch {
	case as == "" || as == a.config.Instance || as == through:
		return through
	case strings.HasPrefix(as, through+"/"): // as the server told him
		return as
	}
	if named := through + "/" + as; len(named) <= mostInstance {
		return named
	}
	sum := sha256.Sum256([]byte(as))
	return through + "/~" + base64.RawURLEncoding.EncodeToString(sum[:10])
}

// mostInstance is how many bytes servers take of one.
const mostInstance = 128

// reserved is for what is asked about tokens with the agent's own. Who may ask through the agent may do so while it lets him: he neither learns the token, with which he could ask from
// anywhere, nor ends it.
func reserved(own client.Token, onward http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(path.Clean(r.URL.Path), "/v1/auth/token/revoke-self") {
			refuse(w, http.StatusForbidden, "the token is the agent's, which ends it itself")
			return
		}
		r.Header.Del("X-Vault-Wrap-TTL") // what is wrapped could not be looked at
		r.Header.Del("Accept-Encoding")
		got := &recorded{header: http.Header{}, status: http.StatusOK}
		onward.ServeHTTP(got, r)
		got.body = concealed(got.body, own)
		got.header.Del("Content-Length")
		got.copyTo(w)
	})
}

// concealed is an answer without a token that is in it, and without that token's accessor.
func concealed(answer []byte, own client.Token) []byte {
	if !bytes.Contains(answer, []byte(own.Reveal())) {
		return answer
	}
	var all map[string]any
	d := json.NewDecoder(bytes.NewReader(answer))
	d.UseNumber()
	if d.Decode(&all) != nil {
		return nil
	}
	for _, part := range []string{"data", "auth"} {
		fields, _ := all[part].(map[string]any)
		for _, name := range []string{"id", "client_token"} {
			if fields[name] == own.Reveal() {
				fields[name], fields["accessor"] = "", ""
			}
		}
	}
	text, err := json.Marshal(all)
	if err != nil || bytes.Contains(text, []byte(own.Reveal())) {
		return nil
	}
	return append(text, '\n')
}

// refuse answers as the server would.
func refuse(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "{\"errors\":[%q]}\n", text)
}
