package drivertest

import (
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
)

func testLife(s *suite) {
	a := s.create(s.account())
	c := s.session(a.Username, a.Password.Reveal())
	s.verdict(a.Username, a.Password.Reveal(), database.Accepted)
	s.verdict(a.Username, "wrong", database.Refused)
	s.must(s.db.Renew(s.Context(), a))
	marked, err := s.db.Marked(s.Context())
	if want := (database.Marked{Username: a.Username, Mark: database.Mark(a.Lease), Mount: a.Mount, Role: a.Role}); err != nil || !slices.Contains(marked, want) {
		s.Errorf("%+v is not among %+v, %v", want, marked, err)
	}
	s.remove(a)
	s.eventually("a session ends with its account", func() bool { return !c.Works() })
	s.verdict(a.Username, a.Password.Reveal(), database.Refused)
	s.refused(s.db.Renew(s.Context(), a))
	if marked, err = s.db.Marked(s.Context()); err != nil || slices.ContainsFunc(marked, func(m database.Marked) bool { return m.Username == a.Username }) {
		s.Errorf("it bears a mark yet: %v", err)
	}
	s.remove(a)
}

// Create and Remove, in every order of up to four, leave what the last of them says, and neither fails.
func testEveryOrder(s *suite) {
	for n := range 1 << 4 {
		a := s.account()
		for step := range 4 {
			if n>>step&1 == 0 {
				s.create(a)
				if !s.Has(s.T, a.Username) {
					s.Fatal("created, and not there")
				}
			} else {
				s.remove(a)
			}
		}
		s.remove(a)
	}
}

// Made again, an account that is in use stays as it is.
func testAgain(s *suite) {
	a := s.create(s.account())
	c := s.session(a.Username, a.Password.Reveal())
	s.create(a)
	if !c.Works() {
		s.Error("its session was ended")
	}
	s.verdict(a.Username, a.Password.Reveal(), database.Accepted)
	s.remove(a)
}

// All at once, many times over: whatever wins, a last Remove confirmed means gone, and a last Create there.
func testAtOnce(s *suite) {
	for n := range 10 {
		a := s.account()
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() { _ = s.db.Create(s.Context(), a) })
			all.Go(func() { s.db.Remove(s.Context(), []database.Account{a}) })
		}
		all.Wait()
		if n%2 == 0 {
			s.create(a)
			if !s.logsIn(a.Username, a.Password.Reveal()) {
				s.Error("created, and does not log in")
			}
		}
		s.remove(a)
	}
}

// Only what bears the lease's mark, or the one that was found, is removed.
func testOthers(s *suite) {
	mine, theirs := s.create(s.account()), s.account()
	theirs.Username = mine.Username
	if err := s.db.Create(s.Context(), theirs); err == nil {
		s.Error("one account for two leases")
	}
	if errs := s.db.Remove(s.Context(), []database.Account{theirs}); errs[0] != nil || !s.Has(s.T, mine.Username) {
		s.Errorf("another lease's account: %v", errs[0])
	}
	s.verdict(mine.Username, mine.Password.Reveal(), database.Accepted)

	person := s.account()
	person.Username = s.person()
	if err := s.db.Create(s.Context(), person); err == nil {
		s.Error("took over an account that was there")
	}
	if errs := s.db.Remove(s.Context(), []database.Account{person}); errs[0] == nil || errors.Is(errs[0], database.ErrUnreachable) {
		s.Errorf("an account without a mark: %v", errs[0])
	}
	s.verdict(person.Username, "hush-0", database.Accepted)

	stray := database.Account{Lease: "database/strays/1", Found: database.Mark("another"), Username: mine.Username}
	if errs := s.db.Remove(s.Context(), []database.Account{stray}); errs[0] != nil || !s.Has(s.T, mine.Username) {
		s.Errorf("removed by another mark: %v", errs[0])
	}
	stray.Found = mine.Bears()
	s.remove(stray)
}

func testNeverWas(s *suite) {
	a, there := s.account(), s.create(s.account())
	s.remove(a, there, a)
	s.remove()
	s.refused(s.db.Renew(s.Context(), a))
	s.refused(s.db.SetPassword(s.Context(), database.Change{Name: "suite/" + a.Username, Username: a.Username, Password: lessor.NewSecret("hush")}))
	if s.Has(s.T, a.Username) {
		s.Error("it was made")
	}
	s.must(s.db.End(s.Context(), a.Username))
}

// Whatever goes wrong in the statements, the error says it without a secret, and what stays can be removed.
func testBroken(s *suite) {
	if len(s.Broken) == 0 {
		s.Error("no broken statements are given")
	}
	for statement, want := range s.Broken {
		a := s.account()
		a.Creation = []string{statement}
		err := s.db.Create(s.Context(), a)
		s.refused(err)
		if err != nil && !strings.Contains(err.Error(), want) {
			s.Errorf("%s: %v, not %q", statement, err, want)
		}
		s.remove(a)
		s.verdict(a.Username, a.Password.Reveal(), database.Refused)
	}
}

// An attempt that broke off after whatever message is made good by the next, or by its removal; and it does not say that it was refused.
func testInterrupted(s *suite) {
	var gone []database.Account
	for messages := 1; ; messages++ {
		if messages > 100 {
			s.Fatal("it takes more than 100 messages to make an account")
		}
		w := newWire(s.T, s.Address)
		db := s.over(w)
		s.must(db.Ping(s.Context()))
		w.cutAfter(messages)
		a := s.account()
		err := db.Create(s.Context(), a)
		whole := err == nil
		if !whole {
			s.unknown("create", err)
		}
		if messages%2 == 0 || whole {
			s.create(a)
			s.verdict(a.Username, a.Password.Reveal(), database.Accepted)
		}
		s.remove(a)
		gone = append(gone, a)
		if whole && !w.wasCut() {
			break
		}
	}
	for _, a := range gone {
		if s.Has(s.T, a.Username) {
			s.Errorf("%s came back", a.Username)
		}
	}
}
