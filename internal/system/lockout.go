package system

import (
	"slices"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/mount"
)

// lockable are the auth methods of which user lockout can be tuned: those that check a password or its like.
var lockable = []string{"approle", "ldap", "userpass"}

// tuneLockout applies user_lockout_config; what it does not name stays as it was.
func tuneLockout(e *mount.Entry, values map[string]any) error {
	if !slices.Contains(lockable, e.Type) {
		return api.Errorf(api.Invalid, "tuning of user lockout configuration for auth type %q not allowed", e.Type)
	}
	var l mount.Lockout
	if e.Config.Lockout != nil {
		l = *e.Config.Lockout
	}
	if raw, ok := values["lockout_threshold"]; ok && raw != "" {
		n, good := engine.ParseInt(raw)
		if !good || n < 0 {
			return api.Errorf(api.Invalid, "unable to parse user lockout threshold: a number of failures, 0 for the server's own")
		}
		l.Threshold = uint64(n)
	}
	for name, to := range map[string]*time.Duration{"lockout_duration": &l.Duration, "lockout_counter_reset_duration": &l.CounterReset} {
		raw, ok := values[name]
		if !ok || raw == "" {
			continue
		}
		if raw == "system" {
			raw = 0
		}
		d, good := engine.ParseDuration(raw)
		if !good {
			return api.Errorf(api.Invalid, "%s is no duration", name)
		}
		*to = d
	}
	if raw, ok := values["lockout_disable"]; ok && raw != nil {
		yes, good := engine.ParseBool(raw)
		if !good {
			return api.Errorf(api.Invalid, "lockout_disable is not a boolean")
		}
		l.Disabled = yes
	}
	e.Config.Lockout = &l
	return nil
}

// lockoutData is the tuning of user lockout as it is told; nil if there is none.
func lockoutData(e *mount.Entry) map[string]any {
	l := e.Config.Lockout
	if l == nil {
		return nil
	}
	return map[string]any{
		"user_lockout_counter_reset_duration": whole(l.CounterReset), "user_lockout_threshold": l.Threshold,
		"user_lockout_duration": whole(l.Duration), "user_lockout_disable": l.Disabled,
	}
}
