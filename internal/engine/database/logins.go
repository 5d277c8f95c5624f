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

// Current is the password that is tried now, and how many there are.
func (l *Logins) Current() (password lessor.Secret, at, of int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.passwords) == 0 {
		return lessor.Secret{}, 0, 0
	}
	return l.passwords[l.good], l.good, len(l.passwords)
}

// Changes is how often they were replaced: a password that was refused says nothing of the others if that was meanwhile.
func (l *Logins) Changes() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changes
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

// Wrong goes on to the next password if at is still the one that is tried.
func (l *Logins) Wrong(at int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.good == at && len(l.passwords) > 0 {
		l.good = (l.good + 1) % len(l.passwords)
	}
}
