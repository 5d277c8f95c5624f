// Package drivertest is the conformance suite that every database.Driver passes at a real server: what a Database promises, over the network that there is and over
// one that breaks. What is a driver's alone is tested next to it.
package drivertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Target is a server, as its administrator sees it, and how a driver is led there.
type Target struct {
	Driver     database.Driver
	Connection database.Connection // as the administrator, by Address
	Secrets    database.Secrets
	Address    string                                          // of the server: host and port
	Through    func(c *database.Connection, address string)    // leads a connection to another address
	Creation   []string                                        // statements of accounts that may log in; none: the driver's own
	Broken     map[string]string                               // statements that the server refuses, and a part of what the error says
	Has        func(t testing.TB, username string) bool        // whether there is anything of an account, a mark of its own included
	Person     func(username, password string) error           // makes an account that no lease is for, and that may log in; an error: the server has no such name
	Drop       func(username string)                           // undoes Person, and Onlooker
	Onlooker   func(username, password string) error           // makes an account that sees others and may not change them; nil: there are none such
	Session    func(username, password string) (Client, error) // logs in as a client does; nil: the server refuses
}

// Client is a session of an account's.
type Client interface {
	// Works reports whether the server still serves it.
	Works() bool
	Close()
}

// Run runs the suite, or only those of its tests.
func Run(t *testing.T, target *Target, only ...string) {
	for _, c := range tests {
		if len(only) > 0 && !slices.Contains(only, c.name) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			s := &suite{Target: target, T: t}
			s.db = s.open(nil)
			c.test(s)
		})
	}
}

var tests = []struct {
	name string
	test func(*suite)
}{
	{"life", testLife},
	{"every order", testEveryOrder},
	{"again", testAgain},
	{"at once", testAtOnce},
	{"others'", testOthers},
	{"what never was", testNeverWas},
	{"broken statements", testBroken},
	{"passwords", testPasswords},
	{"names", testNames},
	{"login", testLogin},
	{"changeable", testChangeable},
	{"two passwords at once", testTwoPasswords},
	{"sessions", testSessions},
	{"own password", testOwnPassword},
	{"interrupted", testInterrupted},
	{"interrupted password", testInterruptedPassword},
	{"unreachable", testUnreachable},
}

// suite is one test's.
type suite struct {
	*Target
	*testing.T
	db database.Database
}

// open is a connection of the administrator's, changed by change (nil: as it is), until the test ends.
func (s *suite) open(change func(*database.Connection, *database.Secrets)) database.Database {
	s.Helper()
	c, secrets := s.Connection, s.Secrets
	if change != nil {
		change(&c, &secrets)
	}
	if err := s.Driver.Check(&c, secrets); err != nil {
		s.Fatal(err)
	}
	db, err := s.Driver.Open(&c, secrets)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(db.Close)
	return db
}

// over is a connection that leads through a wire.
func (s *suite) over(w *wire) database.Database {
	s.Helper()
	return s.open(func(c *database.Connection, _ *database.Secrets) { s.Through(c, w.Address()) })
}

var serial atomic.Int64

// name is unlike any other of the process, and of those that run beside it.
func name(kind string) string { return fmt.Sprintf("%s-%d_%d", kind, os.Getpid(), serial.Add(1)) }

// account is a new one.
func (s *suite) account() database.Account {
	username := name("V_SUITE.APP")
	return database.Account{
		Lease: "database/creds/app/" + username, Username: username, Mount: strings.Repeat("a1", 12), Role: strings.Repeat("b2", 12),
		Password: lessor.NewSecret("hush!$ word " + username), Until: time.Now().Add(time.Hour), Statements: database.Statements{Creation: s.Creation},
	}
}

// person is a new account that no lease is for, with the password "hush-0".
func (s *suite) person() string {
	s.Helper()
	username := name("person")
	if err := s.Person(username, "hush-0"); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { s.Drop(username) })
	return username
}

func (s *suite) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *suite) create(a database.Account) database.Account {
	s.Helper()
	s.must(s.db.Create(s.Context(), a))
	return a
}

// remove removes accounts, which is said of each, and is so.
func (s *suite) remove(as ...database.Account) {
	s.Helper()
	for i, err := range s.db.Remove(s.Context(), as) {
		if err != nil {
			s.Errorf("%s: %v", as[i].Username, err)
		}
		if s.Has(s.T, as[i].Username) {
			s.Errorf("%s is still there", as[i].Username)
		}
	}
}

// session opens one, which must be possible.
func (s *suite) session(username, password string) Client {
	s.Helper()
	c, err := s.Session(username, password)
	if err != nil || c == nil {
		s.Fatalf("%q cannot log in: %v", username, err)
	}
	s.Cleanup(c.Close)
	return c
}

func (s *suite) logsIn(username, password string) bool {
	s.Helper()
	c, err := s.Session(username, password)
	s.must(err)
	if c != nil {
		c.Close()
	}
	return c != nil
}

// verdict asks for one, and wants it to be what clients find.
func (s *suite) verdict(username, password string, want database.Verdict) {
	s.Helper()
	if got, err := s.db.Login(s.Context(), username, lessor.NewSecret(password)); err != nil || got != want {
		s.Errorf("%q: verdict %d, %v; want %d", username, got, err, want)
	}
	if in := s.logsIn(username, password); in != (want == database.Accepted) {
		s.Errorf("%q logs in: %v", username, in)
	}
}

// refused wants an error which says that the server was asked, and no secret.
func (s *suite) refused(err error) {
	s.Helper()
	if api.KindOf(err) != api.Upstream || errors.Is(err, database.ErrUnreachable) {
		s.Errorf("refused with: %v", err)
	}
	s.silent(err)
}

// unknown wants an error which says that the server could not be asked, or did not answer; and no secret.
func (s *suite) unknown(what string, err error) {
	s.Helper()
	if api.KindOf(err) != api.Upstream || !errors.Is(err, database.ErrUnreachable) {
		s.Errorf("%s: %v", what, err)
	}
	s.silent(err)
}

// silent wants an error with no secret in all that it wraps.
func (s *suite) silent(err error) {
	s.Helper()
	for ; err != nil; err = errors.Unwrap(err) {
		if said := err.Error(); strings.Contains(said, "hush") || strings.Contains(said, s.Secrets.Password.Reveal()) {
			s.Errorf("a secret is told: %s", said)
		}
	}
}

// eventually waits for what happens at the server.
func (s *suite) eventually(what string, holds func() bool) {
	s.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.Fatalf("never: %s", what)
		}
	}
}

// soon is a context that is over before anybody's patience is.
func (s *suite) soon() (context.Context, context.CancelFunc) {
	return context.WithTimeout(s.Context(), 100*time.Millisecond)
}
