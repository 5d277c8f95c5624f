package database

import (
	"slices"
	"sync"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// Logins are the passwords that may open a session, while a rotation of lessor's own account is under way more than one. It is safe for concurrent use.
type Logins struct {
	mu        sync.Mutex
	passwords []lessor.Secret
	good      int // the one that is tried first
	changes   int // how often they were replaced
}

// Use replaces them, and reports whether the first of them was another before.
func (l *Logins) Use(passwords []lessor.Secret) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.EqualFunc(l.passwords, passwords, lessor.Secret.Equal) {
		return false
	}
	changed := len(l.passwords) > 0 && (len(passwords) == 0 || !l.passwords[0].Equal(passwords[0]))
	l.passwords, l.good, l.changes = slices.Clone(passwords), 0, l.changes+1
	return changed
}

// Current is the password that is tried now.
func (l *Logins) Current() lessor.Secret {
	password, _, _, _ := l.state()
	return password
}

// state is the password that is tried now, which one it is, of how many, and how often they were replaced before.
func (l *Logins) state() (password lessor.Secret, at, of, changes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.passwords) == 0 {
		return lessor.Secret{}, 0, 0, l.changes
	}
	return l.passwords[l.good], l.good, len(l.passwords), l.changes
}

// Try has attempt log in by the password that is tried now, and by the next where refused says that the server did not take it, twice round: while they are
// tried, the one in force may become another that was tried already. A refusal counts if they were not replaced meanwhile. The error is the last attempt's.
func (l *Logins) Try(refused func(error) bool, attempt func(password lessor.Secret) error) error {
	for denials := 0; ; {
		password, at, of, changes := l.state()
		err := attempt(password)
		if err == nil || !refused(err) {
			return err
		}
		if _, _, _, now := l.state(); now != changes {
			denials = 0
			continue
		}
		if denials++; denials >= 2*of || of == 1 {
			return err
		}
		l.wrong(at)
	}
}

// Reveal is all of them, to be kept out of errors.
func (l *Logins) Reveal() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, p := range l.passwords {
		out = append(out, p.Reveal())
	}
	return out
}

// wrong goes on to the next password if at is still the one that is tried.
func (l *Logins) wrong(at int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.good == at && len(l.passwords) > 0 {
		l.good = (l.good + 1) % len(l.passwords)
	}
}
