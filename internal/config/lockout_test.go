package config

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/lockout"
)

func TestLockout(t *testing.T) {
	terms := func(n uint64, lock, reset time.Duration, off bool) lockout.Terms {
		return lockout.Terms{Threshold: n, Duration: lock, CounterReset: reset, Disabled: off}
	}
	const m = time.Minute
	for text, want := range map[string]map[string]lockout.Terms{
		"ui = true": nil,
		"user_lockout \"userpass\" {\n lockout_threshold = \"3\"\n lockout_duration = \"1m\"\n}\n" +
			"user_lockout \"all\" {\n lockout_counter_reset = 600\n disable_lockout = true\n}\n" +
			"user_lockout \"ldap\" {\n disable_lockout = \"false\"\n}": {
			"all": terms(5, 15*m, 10*m, true), "approle": terms(5, 15*m, 10*m, true),
			"userpass": terms(3, m, 10*m, true), "ldap": terms(5, 15*m, 10*m, false),
		},
		`{"user_lockout": {"approle": {"lockout_threshold": 7}}}`: {
			"all": lockout.Default, "userpass": lockout.Default, "ldap": lockout.Default, "approle": terms(7, 15*m, 15*m, false),
		},
	} {
		var c Config
		if err := c.read([]string{file(t, "a.hcl", text)}); err != nil {
			t.Errorf("%s: %v", text, err)
		} else if !reflect.DeepEqual(c.Lockout.ByType, want) {
			t.Errorf("%s: got\n%+v, want\n%+v", text, c.Lockout.ByType, want)
		}
	}
	for text, want := range map[string]string{
		"user_lockout \"okta\" {}":                                  `unsupported auth type "okta"`,
		"user_lockout \"all\" {}\nuser_lockout \"all\" {}":          "user_lockout all was set before",
		"user_lockout \"all\" {\n lockout_threshold = -1\n}":        ":2: lockout_threshold must be a number of failures",
		"user_lockout \"all\" {\n lockout_duration = \"soon\"\n}":   ":2: lockout_duration must be a duration",
		"user_lockout \"all\" {\n lockout_treshold = 1\n}":          "lockout_treshold",
		"user_lockout \"all\" {\n disable_lockout = \"perhaps\"\n}": ":2: disable_lockout must be true or false",
	} {
		var c Config
		if err := c.read([]string{file(t, "a.hcl", text)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
	for value, want := range map[string]any{"": nil, "1": true, "false": false, "off": "VAULT_DISABLE_USER_LOCKOUT"} {
		var c Config
		err := c.environ(user("VAULT_DISABLE_USER_LOCKOUT=" + value))
		var got any
		if c.Lockout.Disabled != nil {
			got = *c.Lockout.Disabled
		}
		if text, wrong := want.(string); wrong && (err == nil || !strings.Contains(err.Error(), text)) || !wrong && (err != nil || got != want) {
			t.Errorf("%q: %v %v, want %v", value, got, err, want)
		}
	}
}
