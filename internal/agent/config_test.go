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
		"signal":   want.Templates[1].Command.Signal == syscall.SIGHUP && want.Templates[1].Command.Settle == 30*time.Second && want.Templates[1].Left == "{{" && want.Templates[1].MakeFolders,
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
		auth + "template {\n contents = \"x\"\n destination = \"d\"\n reload_settle = \"5s\"\n}":                          "reload_settle is for a reload_signal",
		auth + "template {\n contents = \"x\"\n destination = \"d\"\n reload_signal = \"KILL\"\n}":                        "reload_signal is",
		auth + "template {\n contents=\"x\"\n destination=\"d\"\n}\ntemplate {\n contents=\"x\"\n destination=\"./d\"\n}": "two templates",
		auth + "env_template \"X\" {}":                                                                                    "env_template is not here: run the program by lessor run",
		auth + "cache {\n max_size = \"64MiB\"\n}":                                                                        "max_size is a number of bytes",
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

// What the public documents of Vault Agent show works, but for what is refused by its name, each with what to do instead.
func TestConfigurationsOfTheDocuments(t *testing.T) {
	const approle = `
auto_auth {
  method "approle" {
    mount_path = "auth/approle"
    config = {
      role_id_file_path = "roleid"
      secret_id_file_path = "secretid"
      remove_secret_id_file_after_reading = false
    }
  }
  sink "file" {
    config = {
      path = "/tmp/file-foo"
    }
  }
}
`
	for name, text := range map[string]string{
		"templates": approle + `
pid_file = "./pidfile"
vault {
  address = "https://vault-fqdn:8200"
  retry {
    num_retries = 5
  }
}
template_config {
  static_secret_render_interval = "10m"
  exit_on_retry_failure = false
  max_connections_per_host = 20
  lease_renewal_threshold = 0.9
}
template {
  source      = "/tmp/agent/template.ctmpl"
  destination = "/tmp/agent/render.txt"
  error_on_missing_key = true
  error_fatal = false
  backup = true
  perms = "0600"
  create_dest_dirs = true
  exec {
    command = ["bash", "-c", "restart-app.sh"]
    timeout = "30s"
    kill_timeout = "5s"
  }
  wait {
    min = "2s"
    max = "10s"
  }
}
template {
  contents     = "{{ with secret \"secret/my-secret\" }}{{ .Data.data.foo }}{{ end }}"
  destination  = "/tmp/agent/render-content.txt"
  left_delimiter  = "{{"
  right_delimiter = "}}"
}
`,
		"proxy": approle + `
vault {
  address = "https://vault-fqdn:8200"
}
cache {
}
api_proxy {
  use_auto_auth_token = true
}
listener "unix" {
  address = "/path/to/socket"
  tls_disable = true
  socket_mode = "0660"
}
listener "tcp" {
  address = "127.0.0.1:8100"
  tls_disable = true
  role = "default"
}
log_level = "info"
disable_mlock = true
disable_keep_alives = ["caching", "auto-auth"]
`,
		"static secrets": approle + `
cache {
  cache_static_secrets = true
  static_secret_token_capability_refresh_interval = "1h"
}
`,
		"Kubernetes": `
auto_auth {
  method "kubernetes" {
    mount_path = "auth/kubernetes"
    config = {
      role = "web"
    }
  }
  sink {
    type = "file"
    config = {
      path = "/home/vault/.vault-token"
    }
  }
}
`,
		"a JWT": `
auto_auth {
  method {
    type = "jwt"
    min_backoff = "1s"
    max_backoff = "5m"
    config = {
      path = "/run/jwt"
      role = "dev-role"
      remove_jwt_after_reading = false
    }
  }
}
`,
	} {
		if _, err := parse(t, "agent.hcl", text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	const elsewhere = `
auto_auth {
  method "aws" {
    mount_path = "auth/aws-subaccount"
    config = {
      type = "iam"
      role = "foobar"
    }
  }
  sink "file" {
    wrap_ttl = "5m"
    aad_env_var = "TEST_AAD_ENV"
    dh_type = "curve25519"
    dh_path = "/tmp/file-foo-dhpath2"
    config = {
      path = "/tmp/file-bar"
    }
  }
}
cache {
  persist "kubernetes" {
    path = "/vault/agent-cache"
  }
}
listener "unix" {
  address = "/path/to/socket"
  agent_api {
    enable_quit = true
  }
}
listener "tcp" {
  address = "127.0.0.1:3000"
  role = "metrics_only"
}
telemetry {
  prometheus_retention_time = "30s"
}
env_template "FOO_PASSWORD" {
  contents = "{{ with secret \"secret/data/foo\" }}{{ .Data.data.password }}{{ end }}"
}
exec {
  command = ["./my-app", "arg1"]
  restart_on_secret_changes = "always"
}
`
	_, err := parse(t, "agent.hcl", elsewhere)
	if err == nil {
		t.Fatal("all of it is taken")
	}
	for _, name := range []string{"aws", "wrap_ttl", "aad_env_var", "dh_type", "dh_path", "persist", "agent_api", "metrics_only", "telemetry", "env_template", "exec"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not named:\n%v", name, err)
		}
	}
	if strings.Contains(err.Error(), "nothing that is known") || strings.Count(err.Error(), "\n") != 10 {
		t.Errorf("each is refused by its name, once:\n%v", err)
	}
}
