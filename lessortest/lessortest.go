// Package lessortest gives tests a real lessor server: on a free loopback port, with a store in memory, gone when the test is. It is the
// server that production runs, with its policies, leases and audit trail, and it speaks Vault's API, so that what is tested is what will happen.
//
//	server := lessortest.Start(t)
//	server.Write("secret/data/app", map[string]any{"data": map[string]any{"password": "sesame"}})
//	app := newApp(server.Address, server.Token("app-policy"))
//
// As "lessor server -dev" it has the key-value engine, version 2, at secret/. All else is done by the API, as in production: Write
// enables engines and logins, writes policies and secrets.
package lessortest

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/node"
	"github.com/lessor-dev/lessor/internal/version"
)

// Server is a running server. Its methods are safe for concurrent use, but those that fail the test belong to the test's goroutine, as
// T.FailNow does.
type Server struct {
	Address string       // "http://127.0.0.1:PORT"
	Root    client.Token // may do everything

	t      testing.TB
	client *client.Client
}

// Option changes how a server is started.
type Option func(*options)

type options struct {
	flags []string
	log   io.Writer
}

// Listen has the server listen on an address of loopback ("127.0.0.1:8200") instead of a free port of 127.0.0.1.
func Listen(address string) Option {
	return func(o *options) { o.flags = append(o.flags, "-dev-listen-address="+address) }
}

// TokenID makes the root token this text instead of a random one, for programs that cannot be told another.
func TokenID(id string) Option {
	return func(o *options) { o.flags = append(o.flags, "-dev-root-token-id="+id) }
}

// Log writes the server's log, which has no secrets, to w. Without it there is none.
func Log(w io.Writer) Option { return func(o *options) { o.log = w } }

// Start starts a server, which answers when Start returns. It is stopped when the test and its subtests have ended.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	o := options{flags: []string{"-dev", "-dev-no-store-token", "-dev-listen-address=127.0.0.1:0"}, log: io.Discard}
	for _, opt := range opts {
		opt(&o)
	}
	c, err := config.Flags(o.flags)
	if err != nil {
		t.Fatalf("lessortest: %v", err)
	}
	n, err := node.Start(context.Background(), c, node.Options{Version: version.String(), Log: slog.New(slog.NewTextHandler(o.log, nil))})
	if err != nil {
		t.Fatalf("lessortest: %v", err)
	}
	t.Cleanup(func() {
		// What a test leaves open is not waited for.
		now, cancel := context.WithCancel(context.Background())
		cancel()
		if err := n.Stop(now); err != nil {
			t.Errorf("lessortest: stopping: %v", err)
		}
	})
	s := &Server{Address: n.Address(), Root: client.NewToken(n.Root.Reveal()), t: t}
	if s.client, err = client.New(client.Config{Address: s.Address, Token: s.Root}); err != nil {
		t.Fatalf("lessortest: %v", err)
	}
	return s
}

// Client is a client with the root token.
func (s *Server) Client() *client.Client { return s.client }

// As is a client with a token that has these policies, and "default".
func (s *Server) As(policies ...string) *client.Client {
	return s.client.WithToken(s.Token(policies...))
}

// Write writes data to a path as root, or fails the test.
func (s *Server) Write(path string, data map[string]any) *client.Response {
	s.t.Helper()
	return s.must(client.Request{Method: http.MethodPut, Path: path, Body: data})
}

// Read reads a path as root, or fails the test.
func (s *Server) Read(path string) *client.Response {
	s.t.Helper()
	return s.must(client.Request{Method: http.MethodGet, Path: path})
}

// Delete deletes what is at a path as root, or fails the test.
func (s *Server) Delete(path string) {
	s.t.Helper()
	s.must(client.Request{Method: http.MethodDelete, Path: path})
}

// Policy writes a policy, in the language of Vault's (`path "secret/data/app" { capabilities = ["read"] }`).
func (s *Server) Policy(name, text string) {
	s.t.Helper()
	s.Write("sys/policies/acl/"+name, map[string]any{"policy": text})
}

// Token makes a token with these policies, and "default".
func (s *Server) Token(policies ...string) client.Token {
	s.t.Helper()
	answer := s.Write("auth/token/create", map[string]any{"policies": policies, "display_name": strings.ToLower(s.t.Name())})
	return client.NewToken(answer.Auth.ClientToken)
}

func (s *Server) must(r client.Request) *client.Response {
	s.t.Helper()
	answer, err := s.client.Do(s.t.Context(), r)
	if err != nil {
		s.t.Fatalf("lessortest: %v", err)
	}
	return answer
}
