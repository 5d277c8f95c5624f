package agent_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/agent"
)

func parse(t *testing.T, name, text string) (agent.Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return agent.Parse(func(string) (string, bool) { return "", false }, file)
}

// What Vault's documents show works here, in each of its spellings.
func TestConfiguration(t *testing.T) {
	const asHCL = `
pid_file = "./pidfile"
vault {
  address = "https://vault.example.org:8200"
  ca_cert = "ca.pem"
  retry {
    num_retries = 5
  }
}
auto_auth {
  method {
    type       = "approle"
    mount_path = "auth/second"
    config {
      role_id_file_path                   = "role"
      secret_id_file_path                 = "secret"
      remove_secret_id_file_after_reading = false
    }
  }
  sinks {
    sink {
      type = "file"
      config = { path = "token", mode = 0640 }
    }
  }
}
cache {}
api_proxy {
  use_auto_auth_token = "force"
}
listener "unix" {
  address                = "/run/agent.sock"
  require_request_header = true
  tls_disable            = true
  allow_uids             = [0, "1000"]
}
listener "tcp" {
  address     = "127.0.0.1:8100"
  tls_disable = true
}
template_config {
  exit_on_retry_failure = false
  static_secret_render_interval = "5m"
}
template {
  source      = "app.tmpl"
  destination = "app"
  perms       = 0640
  left_delimiter = "<<"
  right_delimiter = ">>"
  wait { min = "2s" }
  exec {
    command = ["systemctl", "reload", "app"]
    timeout = "5s"
  }
}
template {
  contents        = "x"
  destination     = "other"
  reload_signal   = "SIGHUP"
  reload_pid_file = "other.pid"
}`
	const asJSON = `{
"pid_file": "./pidfile",
"vault": {"address": "https://vault.example.org:8200", "ca_cert": "ca.pem"},
"auto_auth": [{"method": [{"approle": {"mount_path": "auth/second", "config": {"role_id_file_path": "role", "secret_id_file_path": "secret", "remove_secret_id_file_after_reading": false}}}],
  "sinks": [{"sink": [{"type": "file", "config": {"path": "token", "mode": "0640"}}]}]}],
"cache": {"use_auto_auth_token": "force"},
"listener": [{"unix": {"address": "/run/agent.sock", "require_request_header": true, "allow_uids": "0,1000"}}, {"tcp": [{"address": "127.0.0.1:8100", "tls_disable": true}]}],
"template": [{"source": "app.tmpl", "destination": "app", "perms": "0640", "left_delimiter": "<<", "right_delimiter": ">>", "wait": {"min": "2s"}, "exec": {"command": ["systemctl", "reload", "app"], "timeout": 5}},
  {"contents": "x", "destination": "other", "reload_signal": "HUP", "reload_pid_file": "other.pid"}]
}`
	want, err := parse(t, "agent.hcl", asHCL)
	if err != nil {
		t.Fatal(err)
	}
	for what, ok := range map[string]bool{
		"server":   want.Server.Address == "https://vault.example.org:8200" && want.Server.TLS.CACert == "ca.pem",
		"auth":     reflect.DeepEqual(want.Auth, agent.Auth{Type: "approle", Mount: "second", RoleIDFile: "role", File: "secret", Sinks: []agent.Sink{{Path: "token", Mode: 0o640}}}),
		"proxy":    want.OwnToken && want.ForceToken && len(want.Listeners) == 2 && reflect.DeepEqual(want.Listeners[0].UIDs, []int{0, 1000}) && want.Listeners[0].RequireHeader,
		"template": reflect.DeepEqual(want.Templates[0].Command, agent.Command{Args: []string{"systemctl", "reload", "app"}, Timeout: 5 * time.Second}) && want.Templates[0].Wait.Most == 8*time.Second,
		"signal":   want.Templates[1].Command.Signal == syscall.SIGHUP && want.Templates[1].Left == "{{" && want.Templates[1].MakeFolders,
		"notes":    strings.Contains(strings.Join(want.Notes, "\n"), "static_secret_render_interval has no effect"),
	} {
		if !ok {
			t.Errorf("%s: %+v", what, want)
		}
	}
	got, err := parse(t, "agent.json", asJSON)
	if err != nil {
		t.Fatal(err)
	}
	want.Notes, got.Notes = nil, nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("as JSON:\n%+v\nas HCL:\n%+v", got, want)
	}
}

// What is not here is refused by name, with all that is wrong at once.
func TestConfigurationIsRefused(t *testing.T) {
	const auth = "auto_auth {\n method \"approle\" {\n config = { role_id_file_path = \"x\" }\n }\n}\n"
	for text, want := range map[string]string{
		"":                                   "one stanza auto_auth",
		"auto":                               "",
		"auto_auth {\n method \"aws\" {}\n}": `the method "aws" is not here: use jwt with a token that the platform signs`,
		"auto_auth {\n method \"nonsense\" {}\n}":                                `use approle, cert, jwt, kubernetes or token_file`,
		"auto_auth {\n method \"ldap\" {\n config = { username = \"x\" }\n }\n}": `it is for people`,
		"vault {\n address = \"http://127.0.0.1:8200\"\n}\nauto_auth {\n method \"cert\" {\n config = { client_cert = \"c\", client_key = \"k\" }\n }\n}": "https://",
		"auto_auth {\n method \"cert\" {}\n}":                                                                             "needs a client_cert",
		"instance = \"" + strings.Repeat("x", 101) + "\"\n" + auth:                                                        "instance has 100 bytes at most",
		auth + "listener \"unix\" {\n address = \"/x\"\n role = \"metrics_only\"\n}":                                      "role \"metrics_only\" is not here",
		"auto_auth {\n method \"jwt\" {}\n}":                                                                              "needs the path",
		auth + "nonsense = 1":                                                                                             "nonsense is nothing that is known here",
		auth + "template {\n contents = \"x\"\n destination = \"d\"\n sandbox_path = \"/\"\n}":                            "template sandbox_path is not here: the function file",
		auth + "template {\n destination = \"d\"\n}":                                                                      "a source or contents",
		auth + "template {\n contents = \"x\"\n}":                                                                         "needs a destination",
		auth + "template {\n contents = \"x\"\n destination = \"d\"\n perms = \"rw\"\n}":                                  "octal",
		auth + "template {\n contents = \"${x}\"\n destination = \"d\"\n}":                                                "computes nothing",
		auth + "template {\n contents = \"x\"\n destination = \"d\"\n reload_signal = \"KILL\"\n}":                        "reload_signal is",
		auth + "template {\n contents=\"x\"\n destination=\"d\"\n}\ntemplate {\n contents=\"x\"\n destination=\"./d\"\n}": "two templates",
		auth + "env_template \"X\" {}":                                                                                    "env_template is not here: run the program by lessor run",
		auth + "cache {\n persist \"kubernetes\" {}\n}":                                                                   "cache persist is not here: nothing secret is on disk",
		auth + "template_config {\n exit_on_retry_failure = true\n}":                                                      "exit_on_retry_failure cannot be on",
		auth + "listener \"tcp\" {\n address = \"0.0.0.0:8100\"\n}":                                                       "loopback",
		auth + "listener \"tcp\" {\n address = \"127.0.0.1:8100\"\n allow_uids = [0]\n}":                                  "unix socket only",
		auth + "listener \"unix\" {\n address = \"/x\"\n allow_users = [\"no-such-user\"]\n}":                             "no-such-user",
		"auto_auth {\n method \"token_file\" {\n token_file_path = \"x\"\n wrap_ttl = \"5m\"\n }\n}":                      "method wrap_ttl is not here",
	} {
		if _, err := parse(t, "agent.hcl", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v\nwant %s", text, err, want)
		}
	}
	if _, err := parse(t, "agent.hcl", auth+"a = 1\nb = 2"); err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("not all that is wrong: %v", err)
	}
}
