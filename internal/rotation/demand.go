package rotation

import "time"

// Demand makes a rotation due at now, whatever the schedule says, and keeps why: cause is a fixed text, for the audit trail. It reports whether
// anything changed: it did not if a password is on its way, in whose place this one would come, or if a rotation was demanded already.
func (a *Account) Demand(cause string, now time.Time) bool {
	if a.Pending != 0 || a.Cause != "" {
		return false
	}
	if a.Due.IsZero() || now.Before(a.Due) {
		a.Due = now
	}
	a.Cause = cause
	return true
}
