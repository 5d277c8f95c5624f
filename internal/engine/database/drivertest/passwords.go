package drivertest

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// change is a new password for an account.
func change(username, password string) database.Change {
	return database.Change{Name: "suite/" + username, Username: username, Password: lessor.NewSecret(password)}
}

// hostile is what leads out of quotes, patterns, formats and paths where somebody trusts it.
var hostile = []string{
	`it's`, `say "so"`, `back\slash`, `back\`, "back`tick", `per%cent%s%2F`, `{{name}}{{password}}`, `$1$$`, `semi;colon -- x`, `/* x */`, "two  blanks ", "tab\tline\nend",
	`snöwman ☃`, `<>&#~*+@`, `a:b@c/d?e=f`, `..`, "nul\x00byte", `\x27`, strings.Repeat("x", 63), strings.Repeat("y", 64),
}

// A password that the driver takes is the account's to the letter, at an account that is made and at one that is changed.
func testPasswords(s *suite) {
	taken := 0
	for _, word := range hostile {
		password := "hush" + word
		if s.Driver.CheckPassword(&s.Connection, lessor.NewSecret(password)) != nil {
			continue
		}
		taken++
		person := s.person()
		for range 2 {
			s.must(s.db.SetPassword(s.Context(), change(person, password)))
		}
		s.verdict(person, password, database.Accepted)
		s.verdict(person, password+"x", database.Refused)
		s.verdict(person, "hush-0", database.Refused)
		a := s.account()
		a.Password = lessor.NewSecret(password)
		s.create(a)
		s.verdict(a.Username, password, database.Accepted)
		s.remove(a)
	}
	if taken < 3 {
		s.Errorf("the driver takes %d passwords of %d", taken, len(hostile))
	}
}

// What the driver takes for a name is that account's, and nobody else's.
func testNames(s *suite) {
	bystander := s.person()
	var names []string
	var sessions []Client
	for _, word := range hostile {
		username := word
		if len(word) < 63 {
			username = name(word)
		}
		if err := s.Driver.CheckRotation(username, nil); err != nil {
			s.silent(s.db.SetPassword(s.Context(), change(username, "hush-1")))
			s.silent(s.db.Changeable(s.Context(), change(username, "hush-1")))
			if _, err := s.db.Login(s.Context(), username, lessor.NewSecret("hush-0")); err != nil {
				s.silent(err)
			}
			_, err := s.db.Sessions(s.Context(), []string{username})
			s.silent(err)
			s.silent(s.db.End(s.Context(), username))
			continue
		}
		if s.Person(username, "hush-0") != nil {
			s.refused(s.db.SetPassword(s.Context(), change(username, "hush-1")))
			s.refused(s.db.Changeable(s.Context(), change(username, "hush-1")))
			continue
		}
		s.Cleanup(func() { s.Drop(username) })
		s.must(s.db.Changeable(s.Context(), change(username, "hush-1")))
		s.must(s.db.SetPassword(s.Context(), change(username, "hush-1")))
		s.verdict(username, "hush-1", database.Accepted)
		s.verdict(username, "hush-0", database.Refused)
		names, sessions = append(names, username), append(sessions, s.session(username, "hush-1"))
	}
	if len(names) < 3 {
		s.Errorf("the driver takes %d names of %d", len(names), len(hostile))
	}
	s.eventually("each has its session", func() bool {
		seen, err := s.db.Sessions(s.Context(), names)
		s.must(err)
		count := map[string]int{}
		for _, session := range seen {
			count[session.Username]++
		}
		return len(count) == len(names) && !slices.ContainsFunc(names, func(n string) bool { return count[n] != 1 })
	})
	for i, username := range names {
		s.must(s.db.End(s.Context(), username))
		s.eventually("its session ends", func() bool { return !sessions[i].Works() })
		if i+1 < len(names) && !sessions[i+1].Works() {
			s.Errorf("to end those of %q ended those of %q", username, names[i+1])
		}
	}
	s.verdict(bystander, "hush-0", database.Accepted)
	s.must(s.db.Ping(s.Context()))
}

func testLogin(s *suite) {
	person := s.person()
	s.verdict(person, "hush-0", database.Accepted)
	s.verdict(person, "hush-1", database.Refused)
	s.verdict(person, "HUSH-0", database.Refused)
	s.verdict(person, "hush", database.Refused)
	s.verdict(name("nobody"), "hush-0", database.Refused)
}

// Whether a password can be changed is told without changing anything: not of an account that is not there, and not if lessor may not.
func testChangeable(s *suite) {
	person, nobody := s.person(), name("nobody")
	c := s.session(person, "hush-0")
	for range 2 {
		s.must(s.db.Changeable(s.Context(), change(person, "hush-1")))
		s.refused(s.db.Changeable(s.Context(), change(nobody, "hush-1")))
	}
	own := change(person, "hush-1")
	own.Statements = []string{"nonsense"}
	s.must(s.db.Changeable(s.Context(), own))
	own.Username = nobody
	s.refused(s.db.Changeable(s.Context(), own))
	s.verdict(person, "hush-0", database.Accepted)
	s.verdict(person, "hush-1", database.Refused)
	if !c.Works() || s.Has(s.T, nobody) {
		s.Error("something was changed")
	}
	if s.Onlooker == nil {
		return
	}
	onlooker := name("onlooker")
	s.must(s.Onlooker(onlooker, "hush-0"))
	s.Cleanup(func() { s.Drop(onlooker) })
	db := s.open(func(c *database.Connection, secrets *database.Secrets) {
		c.Username, secrets.Password = onlooker, lessor.NewSecret("hush-0")
	})
	s.refused(db.Changeable(s.Context(), change(person, "hush-1")))
	s.refused(db.SetPassword(s.Context(), change(person, "hush-1")))
	s.verdict(person, "hush-0", database.Accepted)
}

// Of two new passwords at the same time one is in force in the end, and no other.
func testTwoPasswords(s *suite) {
	person := s.person()
	for round := range 4 {
		words := []string{"hush-" + string(rune('a'+2*round)), "hush-" + string(rune('b'+2*round))}
		var all sync.WaitGroup
		for _, word := range words {
			all.Go(func() {
				if err := s.db.SetPassword(s.Context(), change(person, word)); err != nil {
					s.unknown("one of two", err) // the other ended it
				}
			})
		}
		all.Wait()
		accepted := 0
		for _, word := range words {
			verdict, err := s.db.Login(s.Context(), person, lessor.NewSecret(word))
			s.must(err)
			if verdict == database.Accepted {
				accepted++
			}
		}
		if accepted != 1 {
			s.Errorf("%d of two passwords are in force", accepted)
		}
	}
	s.must(s.db.SetPassword(s.Context(), change(person, "hush-last")))
	s.verdict(person, "hush-last", database.Accepted)
}

// Sessions are seen while they are open, and end when they are told to; new ones are not kept away, and others' go on.
func testSessions(s *suite) {
	person, other := s.person(), s.person()
	before := time.Now().Add(-time.Minute)
	c, kept := s.session(person, "hush-0"), s.session(other, "hush-0")
	s.eventually("the session is seen", func() bool {
		seen, err := s.db.Sessions(s.Context(), []string{person, name("nobody")})
		s.must(err)
		if len(seen) > 1 || len(seen) == 1 && seen[0].Username != person {
			s.Fatalf("sessions %+v", seen)
		}
		return len(seen) == 1 && (seen[0].Client == "127.0.0.1" || seen[0].Client == "localhost") && (seen[0].Since.IsZero() || seen[0].Since.After(before)) &&
			len(seen[0].Application) <= database.LongestApplication
	})
	if seen, err := s.db.Sessions(s.Context(), nil); err != nil || len(seen) != 0 {
		s.Errorf("sessions of nobody: %+v, %v", seen, err)
	}
	for range 2 {
		s.must(s.db.End(s.Context(), person))
	}
	s.eventually("the session ends", func() bool { return !c.Works() })
	if !kept.Works() {
		s.Error("another's session was ended")
	}
	if !s.session(person, "hush-0").Works() {
		s.Error("a new session is kept away")
	}
}

// Lessor logs in by whichever of its passwords is in force, and says so where none is.
func testOwnPassword(s *suite) {
	right, wrong := s.Secrets.Password, lessor.NewSecret("hush-wrong")
	db := s.open(nil)
	db.Use([]lessor.Secret{wrong, right})
	s.must(db.Ping(s.Context()))
	db = s.open(func(_ *database.Connection, s *database.Secrets) { s.Password = wrong })
	err := db.Ping(s.Context())
	s.refused(err)
	if err != nil && !strings.Contains(err.Error(), "refused lessor's own login") {
		s.Errorf("with a wrong password: %v", err)
	}
	a := s.account()
	s.refused(db.Create(s.Context(), a))
	if s.Has(s.T, a.Username) {
		s.Error("it was made")
	}
	db.Use([]lessor.Secret{right})
	s.must(db.Ping(s.Context()))
}

// A change that broke off after whatever message leaves the old password in force, or the new one; again, it is the new one.
func testInterruptedPassword(s *suite) {
	person, word := s.person(), "hush-0"
	for messages := 1; ; messages++ {
		if messages > 100 {
			s.Fatal("it takes more than 100 messages to change a password")
		}
		w := newWire(s.T, s.Address)
		db := s.over(w)
		s.must(db.Ping(s.Context()))
		w.cutAfter(messages)
		next := name("hush")
		err := db.SetPassword(s.Context(), change(person, next))
		if err != nil {
			s.unknown("set", err)
		}
		s.eventually("one of the two is in force", func() bool {
			old, oldErr := s.db.Login(s.Context(), person, lessor.NewSecret(word))
			now, nowErr := s.db.Login(s.Context(), person, lessor.NewSecret(next))
			s.must(errors.Join(oldErr, nowErr))
			return (old == database.Accepted) != (now == database.Accepted) // it may change between the two questions
		})
		s.must(s.db.SetPassword(s.Context(), change(person, next)))
		s.verdict(person, next, database.Accepted)
		s.verdict(person, word, database.Refused)
		if word = next; err == nil && !w.wasCut() {
			return
		}
	}
}

// Where nobody listens, and where nothing is answered, nothing is said to be refused; and what was asked of nobody was not done.
func testUnreachable(s *suite) {
	a := s.create(s.account())
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	s.must(err)
	s.must(closed.Close())
	silent := newWire(s.T, s.Address)
	held := s.over(silent)
	s.must(held.Ping(s.Context()))
	silent.cutAfter(0)
	hanging := newWire(s.T, s.Address)
	hung := s.over(hanging)
	s.must(hung.Ping(s.Context()))
	hanging.hold()
	over, cancel := context.WithCancel(s.Context())
	cancel()
	for what, c := range map[string]struct {
		db   database.Database
		ctx  context.Context
		sent bool // something may have been
	}{
		"dead":     {s.open(func(c *database.Connection, _ *database.Secrets) { s.Through(c, closed.Addr().String()) }), nil, false},
		"cut":      {held, nil, true},
		"hanging":  {hung, nil, true},
		"too late": {s.db, over, true},
	} {
		during := s.account()
		call := func(which string, f func(context.Context) error) {
			s.Helper()
			ctx, cancel := c.ctx, context.CancelFunc(func() {})
			if ctx == nil {
				ctx, cancel = s.soon()
			}
			defer cancel()
			began := time.Now()
			err := f(ctx)
			s.unknown(what+": "+which, err)
			if changes := which == "create" || which == "password"; changes && !c.sent && !errors.Is(err, database.ErrUntouched) {
				s.Errorf("%s: %s may have been done, it is said: %v", what, which, err)
			}
			if took := time.Since(began); took > 20*time.Second {
				s.Errorf("%s: %s took %s", what, which, took)
			}
		}
		call("ping", c.db.Ping)
		call("create", func(ctx context.Context) error { return c.db.Create(ctx, during) })
		call("renew", func(ctx context.Context) error { return c.db.Renew(ctx, a) })
		call("remove", func(ctx context.Context) error { return c.db.Remove(ctx, []database.Account{a})[0] })
		call("login", func(ctx context.Context) error { _, err := c.db.Login(ctx, a.Username, a.Password); return err })
		call("password", func(ctx context.Context) error { return c.db.SetPassword(ctx, change(a.Username, "hush-late")) })
		call("changeable", func(ctx context.Context) error { return c.db.Changeable(ctx, change(a.Username, "hush-late")) })
		call("sessions", func(ctx context.Context) error { _, err := c.db.Sessions(ctx, []string{a.Username}); return err })
		call("end", func(ctx context.Context) error { return c.db.End(ctx, a.Username) })
		call("marked", func(ctx context.Context) error { _, err := c.db.Marked(ctx); return err })
	}
	s.verdict(a.Username, a.Password.Reveal(), database.Accepted)
	s.remove(a)
}
