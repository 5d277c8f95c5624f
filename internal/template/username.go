package template

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Username is a template of names of accounts. What it makes is within an allowlist of characters, so that no name needs quoting; one lease
// always gets the same name, and two never do.
type Username struct {
	*Template
	longest int
}

// subject is what a name is about.
type subject struct {
	DisplayName string // of who asks; characters that usernames cannot have are "-"
	RoleName    string
}

var usernames = Language{Name: "usernames", Longest: 1024, Fields: []string{"DisplayName", "RoleName"}}

// NewUsername compiles a template of names of at most longest bytes. It is refused if it does not parse, or may make one name for two leases.
func NewUsername(text string, longest int) (*Username, error) {
	compiled, err := usernames.Compile(text)
	if err != nil {
		return nil, err
	}
	t := &Username{compiled, longest}
	made := map[string]bool{}
	for i := range 8 {
		name, err := t.Name("lease "+strconv.Itoa(i), time.Unix(1700000000, 0), "approle-billing-service", "reporting-readonly")
		if err != nil {
			return nil, err
		}
		made[name] = true
	}
	if len(made) < 8 {
		return nil, errors.New("it makes the same name for different leases: add {{random 20}} or {{uuid}}, and see that nothing truncates it")
	}
	return t, nil
}

// Name is the username of a lease.
func (t *Username) Name(lease string, issued time.Time, display, role string) (string, error) {
	name, err := t.Execute(lease, issued, subject{Clean(display), Clean(role)})
	if err != nil {
		return "", err
	}
	if len(name) == 0 || len(name) > t.longest {
		return "", fmt.Errorf("it makes a name of %d bytes; from 1 to %d are possible: truncate it", len(name), t.longest)
	}
	if Clean(name) != name {
		return "", errors.New("it makes a name with characters other than letters, digits, \"_\", \".\" and \"-\"")
	}
	return name, nil
}

// Clean puts "-" for every character that a username cannot have.
func Clean(s string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '-' {
			return c
		}
		return '-'
	}, s)
}
