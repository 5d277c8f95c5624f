package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
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

func (l Listener) listen() (net.Listener, error) {
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
	return peers{opened.(*net.UnixListener), l}, nil
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

// peers lets in who may ask, and closes the connections of others.
type peers struct {
	*net.UnixListener
	of Listener
}

func (p peers) Accept() (net.Conn, error) {
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
			default:
				a.introduce(r.Header)
				onward.ServeHTTP(w, r)
			}
		}),
	}
}

// introduce puts the agent's token into a request's headers, if it is to go there, and that who asks is the agent's.
func (a *agent) introduce(h http.Header) {
	if text, ok := strings.CutPrefix(h.Get("Authorization"), "Bearer "); ok && h.Get("X-Vault-Token") == "" {
		h.Set("X-Vault-Token", text)
	}
	h.Del("Authorization")
	if !a.config.OwnToken || h.Get("X-Vault-Token") != "" && !a.config.ForceToken {
		return
	}
	a.mu.Lock()
	session := a.session
	a.mu.Unlock()
	h.Del("X-Vault-Token")
	if session != nil {
		h.Set("X-Vault-Token", session.Client().Token().Reveal())
		if a.config.Instance != "" && h.Get("X-Lessor-Instance") == "" {
			h.Set("X-Lessor-Instance", a.through())
		}
	}
}

// refuse answers as the server would.
func refuse(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "{\"errors\":[%q]}\n", text)
}
