package database

import "time"

// Username compiles a template and makes the name of a lease by it, as creds does.
func Username(d Driver, text, lease string, issued time.Time, display, role string) (string, error) {
	t, err := usernames(d, text)
	if err != nil {
		return "", err
	}
	return t.Name(lease, issued, display, role)
}
