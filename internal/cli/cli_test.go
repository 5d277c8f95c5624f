package cli

import (
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/operator"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// all offers every command; bodies that live elsewhere are not run.
func all(t *testing.T) operator.Commands {
	unexpected := errors.New("this body is not to be run")
	return operator.Commands{
		Version: "1.2.3",
		Server: &operator.Server{
			Usage: "  (flags of the server's configuration)\n",
			Run:   func(context.Context, operator.ServerOptions) error { t.Error(unexpected); return unexpected },
		},
		Restore: func(context.Context, operator.RestoreOptions) (operator.Restored, error) {
			t.Error(unexpected)
			return operator.Restored{}, unexpected
		},
		Verify: func(context.Context, operator.VerifyOptions) (session.Verification, error) {
			t.Error(unexpected)
			return session.Verification{}, unexpected
		},
		Admit: func(context.Context, operator.AdmitOptions) (string, error) {
			t.Error(unexpected)
			return "", unexpected
		},
		Migrate: func(context.Context, operator.MigrateOptions) (operator.Migrated, error) {
			t.Error(unexpected)
			return operator.Migrated{}, unexpected
		},
		Takeover: func(context.Context, operator.TakeoverOptions) (operator.TakenOver, error) {
			t.Error(unexpected)
			return operator.TakenOver{}, unexpected
		},
		Join: func(context.Context, operator.JoinOptions) (operator.Joined, error) {
			t.Error(unexpected)
			return operator.Joined{}, unexpected
		},
		Points: func(context.Context, operator.PointsOptions) (operator.Points, error) {
			t.Error(unexpected)
			return operator.Points{}, unexpected
		},
		Drill: func(context.Context, operator.DrillOptions) (operator.Drilled, error) {
			t.Error(unexpected)
			return operator.Drilled{}, unexpected
		},
	}
}

func TestHelpOfEveryCommand(t *testing.T) {
	var got strings.Builder
	var walk func(*cobra.Command)
	walk = func(command *cobra.Command) {
		args := strings.Fields(command.CommandPath())[1:]
		got.WriteString("$ " + strings.Join(append([]string{"lessor"}, args...), " ") + " -help\n")
		var out, err strings.Builder
		if code := Run(t.Context(), session.System{In: strings.NewReader(""), Out: &out, Err: &err, Env: noEnvironment}, all(t), append(args, "-help")); code != 0 || err.String() != "" {
			t.Errorf("%v: code %d, %s", args, code, &err)
		}
		got.WriteString(out.String() + "\n")
		for _, child := range command.Commands() {
			if child.IsAvailableCommand() {
				walk(child)
			}
		}
	}
	a := session.New(session.System{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard, Env: noEnvironment})
	walk(root(a, all(t)))

	golden := filepath.Join("testdata", "help.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the help is not that of %s: look at the difference, and if it is meant, run go test ./internal/cli -run Help -update", golden)
	}
}

// closedPort is an address where nobody listens.
func closedPort(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return "http://" + listener.Addr().String()
}

func TestRun(t *testing.T) {
	environment := map[string]string{"LESSOR_ADDR": closedPort(t), "VAULT_MAX_RETRIES": "0"}
	for line, try := range map[string]struct {
		code     int
		out, err string // parts
	}{
		"":                                {127, "", "Usage:\n  lessor COMMAND"},
		"-help":                           {0, "Exit codes", ""},
		"-version":                        {0, "lessor 1.2.3", ""},
		"--version":                       {0, "lessor 1.2.3", ""},
		"-v":                              {0, "lessor 1.2.3", ""},
		"version":                         {0, "lessor 1.2.3", ""},
		"kv":                              {1, "", "Usage:\n  lessor kv COMMAND"},
		"kv -help":                        {0, "Usage:\n  lessor kv COMMAND", ""},
		"kv metadata":                     {1, "", "Usage:\n  lessor kv metadata COMMAND"},
		"server -h":                       {0, "flags of the server's configuration", ""},
		"server -dev -help":               {0, "flags of the server's configuration", ""},
		"raed":                            {127, "", "did you mean read?\nSee: lessor -help"},
		"kv gte":                          {127, "", "did you mean get?\nSee: lessor kv -help"},
		"read":                            {1, "", "it needs PATH"},
		"read -feild=x a":                 {1, "", "unknown flag: --feild\n"},
		"list a b":                        {1, "", "too many arguments: it takes PATH"},
		"status x":                        {1, "", "it takes no arguments"},
		"write a":                         {1, "", "-force"},
		"write a sesame":                  {1, "", "not of the form key=value"},
		"read a -format=xml":              {1, "", "table, json, yaml or raw"},
		"read a":                          {2, "", "Start a server there (lessor server)"},
		"kv get a/b":                      {2, "", "connection refused"},
		"status":                          {1, "", "connection refused"},
		"read -address=ftp://x a":         {1, "", "https://host:port"},
		"read -wrap-ttl=soon a":           {1, "", "-wrap-ttl"},
		"read -header=x a":                {1, "", "-header"},
		"read -ca-cert=/nowhere a":        {1, "", "/nowhere"},
		"revoke":                          {1, "", "say what to revoke by"},
		"revoke -owner=":                  {1, "", "-owner needs a value"},
		"revoke -owner=a -mount=b":        {1, "", "exclude each other"},
		"revoke -token=hvs.sesame":        {1, "", "takes an accessor"},
		"lease revoke -force a":           {1, "", "-force needs -prefix"},
		"lease renew -increment=soon a":   {1, "", "not a duration"},
		"token revoke":                    {1, "", "-self"},
		"token create -orphan -role=r":    {1, "", "exclude each other"},
		"secrets tune a":                  {1, "", "say what to change"},
		"audit timeline -from=today a":    {1, "", "-from must be a time"},
		"login":                           {1, "", "there is no terminal"},
		"login -method=userpass":          {1, "", "username=NAME"},
		"login -method=userpass username": {1, "", "not of the form key=value"},
		"login -method=approle":           {1, "", "role_id=ID"},
		"login -":                         {1, "", "the value is empty"},
		"completion tcsh":                 {1, "", "bash, zsh, fish or powershell"},
		"completion bash":                 {0, "__start_lessor", ""},
		"operator backup /dev/null":       {1, "", "exists already"},
		"operator backup -f /dev/null":    {1, "", "not a plain file"},
	} {
		var out, side strings.Builder
		code := Run(t.Context(), session.System{
			In: strings.NewReader(""), Out: &out, Err: &side, Home: t.TempDir(),
			Env: func(name string) (string, bool) { value, ok := environment[name]; return value, ok },
		}, all(t), strings.Fields(line))
		if code != try.code || !strings.Contains(out.String(), try.out) || !strings.Contains(side.String(), try.err) || (side.String() == "") != (try.err == "") {
			t.Errorf("lessor %s: code %d, want %d\n%s\n%s", line, code, try.code, &out, &side)
		}
		if strings.Contains(side.String(), "sesame") {
			t.Errorf("lessor %s: the error tells a value: %s", line, &side)
		}
	}
}

func TestServerGetsItsArguments(t *testing.T) {
	var got operator.ServerOptions
	commands := operator.Commands{Version: "v", Server: &operator.Server{Run: func(_ context.Context, o operator.ServerOptions) error {
		got = o
		return o.StoreToken(client.NewToken("root"))
	}}}
	home := t.TempDir()
	code := Run(t.Context(), session.System{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard, Env: noEnvironment, Home: home},
		commands, []string{"server", "-dev", "-dev-root-token-id=root", "-config", "a.hcl"})
	if text := strings.Join(got.Args, " "); code != 0 || text != "--dev --dev-root-token-id=root -config a.hcl" && text != "--dev --dev-root-token-id=root --config a.hcl" {
		t.Errorf("code %d, arguments %s", code, text)
	}
	if token, err := (client.TokenFile{Home: home}).Load(); err != nil || token.Reveal() != "root" {
		t.Errorf("stored %q, %v", token.Reveal(), err)
	}
}

func TestOfflineCommandsGetTheirStore(t *testing.T) {
	var restore operator.RestoreOptions
	var verify operator.VerifyOptions
	commands := operator.Commands{
		Restore: func(_ context.Context, o operator.RestoreOptions) (operator.Restored, error) {
			restore = o
			return operator.Restored{Seq: 7, Incarnation: 2, TokenFile: "/k.token"}, nil
		},
		Verify: func(_ context.Context, o operator.VerifyOptions) (session.Verification, error) {
			verify = o
			return session.Verification{Broken: &session.Broken{Seq: 5, Reason: "altered"}}, nil
		},
	}
	var out strings.Builder
	system := session.System{In: strings.NewReader(""), Out: &out, Err: io.Discard, Env: noEnvironment}
	if code := Run(t.Context(), system, commands, strings.Fields("operator restore -format=xml b.lessor")); code != 1 || restore.File != "" {
		t.Errorf("restored %q before it was clear how to tell it: code %d", restore.File, code)
	}
	if code := Run(t.Context(), system, commands, strings.Fields("operator restore -data=/d -key-file=/k -config=1 -config=2 b.lessor")); code != 0 {
		t.Errorf("restore: code %d", code)
	}
	if got := strings.Join(restore.Store, " "); restore.File != "b.lessor" || got != "-config=1 -config=2 -data=/d -key-file=/k" {
		t.Errorf("restore: %s, %s", restore.File, got)
	}
	if code := Run(t.Context(), system, commands, strings.Fields("operator restore -destination=file:///b -set=s -at=2026-11-29T07:30:00Z")); code != 0 {
		t.Errorf("restore from a destination: code %d", code)
	}
	at := time.Date(2026, 11, 29, 7, 30, 0, 0, time.UTC)
	if want := (operator.Origin{Destination: "file:///b", Set: "s", At: at}); restore.Origin != want {
		t.Errorf("restore from %+v, not from %+v", restore.Origin, want)
	}
	for _, wrong := range []string{"operator restore -at=yesterday", "operator restore -destination=file:///b b.lessor", "operator restore -at=2026-11-29T07:30:00Z b.lessor"} {
		if code := Run(t.Context(), system, commands, strings.Fields(wrong)); code != 1 {
			t.Errorf("%s: code %d", wrong, code)
		}
	}
	if code := Run(t.Context(), system, commands, strings.Fields("operator verify -format=json -data /d")); code != 2 {
		t.Errorf("verify: code %d", code)
	}
	if strings.Join(verify.Store, " ") != "-data=/d" || !strings.Contains(out.String(), `"seq": 5`) {
		t.Errorf("verify: %v, %s", verify.Store, &out)
	}
}

func TestPolicyFormat(t *testing.T) {
	dir := t.TempDir()
	file, link, bad := filepath.Join(dir, "p.hcl"), filepath.Join(dir, "link"), filepath.Join(dir, "bad.hcl")
	const ugly, pretty = "path \"a/*\" {\ncapabilities=[\"read\"]\n  # why\n}\n", "path \"a/*\" {\n  capabilities = [\"read\"]\n  # why\n}\n"
	for name, text := range map[string]string{file: ugly, bad: "path {"} {
		if err := os.WriteFile(name, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	run := func(stdin string, args ...string) (int, string) {
		var out strings.Builder
		code := Run(t.Context(), session.System{In: strings.NewReader(stdin), Out: &out, Err: &out, Env: noEnvironment}, operator.Commands{}, append([]string{"policy", "fmt"}, args...))
		return code, out.String()
	}
	if code, out := run("", link); code != 0 {
		t.Errorf("code %d, %s", code, out)
	}
	text, _ := os.ReadFile(file)
	info, _ := os.Lstat(file)
	if string(text) != pretty || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v\n%s", info.Mode(), text)
	}
	if info, _ := os.Lstat(link); info.Mode()&os.ModeSymlink == 0 {
		t.Error("the link became a file")
	}
	if code, out := run(ugly, "-"); code != 0 || out != pretty {
		t.Errorf("code %d, %s", code, out)
	}
	if code, out := run("", bad); code != 1 || !strings.Contains(out, "line 1") {
		t.Errorf("code %d, %s", code, out)
	}
}

func noEnvironment(string) (string, bool) { return "", false }
