package core_test

import (
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// body is an answer as it goes over the wire, without the request's id.
func body(a *lessor.Answer) string { return string(a.Append(nil, "")) }

// says reports what data says of a key, as JSON; "absent" if it has no such key.
func says(data map[string]any, key string) string {
	v, ok := data[key]
	if !ok {
		return "absent"
	}
	return string(lessor.AppendJSON(nil, v))
}

func TestTuningOfUserLockout(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass"}`)
	if got := says(g.do(g.root, lessor.Read, "sys/auth/userpass/tune", "").Data, "user_lockout_threshold"); got != "absent" {
		t.Errorf("before it was tuned: %s", got)
	}
	g.do(g.root, lessor.Update, "sys/auth/userpass/tune",
		`{"user_lockout_config":{"lockout_threshold":"7","lockout_duration":"10m","lockout_counter_reset_duration":"90","lockout_disable":true}}`)
	g.do(g.root, lessor.Update, "sys/auth/userpass/tune", `{"user_lockout_config":{"lockout_threshold":"","lockout_disable":false,"lockout_duration":"20m"}}`)
	data := g.do(g.root, lessor.Read, "sys/auth/userpass/tune", "").Data
	for key, want := range map[string]string{
		"user_lockout_threshold": "7", "user_lockout_duration": "1200", "user_lockout_counter_reset_duration": "90", "user_lockout_disable": "false",
	} {
		if got := says(data, key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	const told = `"user_lockout_config":{"user_lockout_counter_reset_duration":90,"user_lockout_disable":false,"user_lockout_duration":1200,"user_lockout_threshold":7}`
	if got := body(g.do(g.root, lessor.Read, "sys/auth/userpass", "")); !strings.Contains(got, told) {
		t.Errorf("the method as it is read: %s", got)
	}
	g.kv2("secret")
	if text := g.refused(api.Invalid, g.root, lessor.Update, "sys/mounts/secret/tune", `{"user_lockout_config":{"lockout_threshold":"7"}}`); !strings.Contains(text, `for auth type "kv" not allowed`) {
		t.Error(text)
	}
}
