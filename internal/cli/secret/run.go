package secret

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
	"github.com/lessor-dev/lessor/internal/instance"
	"github.com/lessor-dev/lessor/internal/run"
)

// environmentFile is read if no other is named.
const environmentFile = ".env.lessor"

// Codes that a command ends with which was not run, as shells say it.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// Run is the command run.
func Run(a *session.Session) *cobra.Command {
	var variables []string
	var file, change, grace, settle string
	var login method
	var self identity
	command := a.Remote("run -- COMMAND [ARGUMENT...]", "Run a command with secrets in its environment", `
Variables whose value is a reference, lessor://PATH#FIELD, have the secret's field in the command's environment. PATH is as lessor read takes
it. Other text may have references in it, each as ${lessor://PATH#FIELD}. Variables come from the flag -env, the environment, and a file
of lines NAME=VALUE, .env.lessor, which may be committed: it has no secrets. Of these the first wins. #/a/b is what is in a field (a JSON pointer).

  DATABASE_URL=postgres://${lessor://database/creds/app#username}:${lessor://database/creds/app#password}@db/app
  API_KEY=lessor://secret/data/app#api_key
  TLS_KEY_FILE=lessor://secret/data/app?as=file#key
  OLD_KEY=lessor://secret/data/app?version=3#api_key

  lessor run -- ./server -listen=:8080
  lessor run -env=PGPASSWORD=lessor://secret/data/db#password -- psql -h db app

With as=file the variable has the name of a file, in memory where the system has a place for that, that only this user can read; with as=escaped, the
text as a part of a URL.

When a secret changes, and before a dynamic credential ends, the command is ended (SIGTERM, after -grace SIGKILL) and started anew.
-on-change=signal:HUP sends it a signal instead, and counts it as one that uses the new values only after -settle; -on-change=none does
nothing. Files have the new values in each case. An old password is retired when nobody uses it any more: after the restart, that is.

The command's leases end with it. Signals are passed on to it. The command gets neither LESSOR_TOKEN nor VAULT_TOKEN. The exit code is
the command's; 126 and 127 say that it could not be run, as shells do.

If this is killed (SIGKILL), its leases are left. With -state-dir, a folder that keeps who this is and that one process at a time may use, or -instance, a name
that is in use once at a time, its next start ends the credentials that it left, as soon as the command has others.`,
		1, -1, func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 0 {
				return session.Usage(cmd, "write -- before the command: lessor run -- COMMAND")
			}
			c := run.Command{
				Args: args, Environment: &run.Environment{}, In: a.System.In, Out: a.System.Out, Err: a.System.Err,
				Terminal: session.IsTerminal(a.System.In) || run.Foreground(),
				Tell: func(format string, args ...any) {
					a.Complain("lessor run: %s", session.Printable(fmt.Sprintf(format, args...)))
				},
			}
			var err error
			for text, d := range map[*string]*time.Duration{&grace: &c.Grace, &settle: &c.Settle} {
				if *d, err = client.ParseDuration(*text); err != nil {
					return err
				}
			}
			if c.OnChange, err = onChange(change); err != nil {
				return session.Usage(cmd, "%v", err)
			}
			if err := environment(c.Environment, a, file, variables); err != nil {
				return err
			}
			if _, err := exec.LookPath(args[0]); err != nil {
				a.Complain("%s", session.Sentence(err))
				if errors.Is(err, os.ErrPermission) {
					return session.ExitCode(exitNotExecutable)
				}
				return session.ExitCode(exitNotFound)
			}
			if err := run.Harden(); err != nil {
				a.Complain("Warning: core dumps may show secrets: %v", err)
			}
			name, release, err := self.claim(cmd)
			if err != nil {
				return err
			}
			defer release()
			c.Heir = name != ""
			kept, err := login.open(cmd, a, name)
			if err != nil {
				return err
			}
			a.Progress.End()
			exit, err := run.Run(cmd.Context(), kept, c)
			if err != nil || exit == 0 {
				return err
			}
			return session.ExitCode(exit)
		})
	f := command.Flags()
	f.StringArrayVar(&variables, "env", nil, "variable of the command, as `NAME=VALUE`; may be repeated")
	f.StringVar(&file, "env-file", "", "`file` of variables (default .env.lessor, if it is there)")
	f.StringVar(&change, "on-change", "restart", "`what` to do when a secret changes: restart, signal:NAME or none")
	f.StringVar(&grace, "grace", "10s", "`duration` after which a command is killed that does not end")
	f.StringVar(&settle, "settle", "30s", "with signal: `duration` after which the command uses the new values only")
	f.SetInterspersed(false) // what follows the command is its own
	login.register(command)
	self.register(command)
	return command
}

// environment is the command's: file, inherited variables, flags, of which the last wins.
func environment(e *run.Environment, a *session.Session, file string, variables []string) error {
	name := file
	if name == "" {
		name = environmentFile
	}
	text, err := readVariables(name, file != "")
	switch {
	case err == nil:
		if err := e.Load(string(text)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	case file != "" || !os.IsNotExist(err):
		return err
	}
	if err := e.Inherit(a.System.Environ); err != nil {
		return err
	}
	for _, v := range variables {
		if err := e.Assign(v); err != nil {
			return fmt.Errorf("-env: %w", err)
		}
	}
	return nil
}

// readVariables reads a file. One that nobody named, and that somebody else may have put there, is refused: what it says decides what the command does (LD_PRELOAD, say).
func readVariables(name string, named bool) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat() // of what is read, whatever is put in its place meanwhile
	if err != nil {
		return nil, err
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	if !named && (owner != 0 && owner != uint32(os.Geteuid()) || info.Mode()&0o002 != 0) {
		return nil, fmt.Errorf("%s is somebody else's, or anybody may write it: if it is meant, say -env-file=%s", name, name)
	}
	return io.ReadAll(file)
}

// signals are those that commands take for "read your files again", and the like.
var signals = map[string]syscall.Signal{
	"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "QUIT": syscall.SIGQUIT, "TERM": syscall.SIGTERM, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2,
}

func onChange(text string) (run.Change, error) {
	name, isSignal := strings.CutPrefix(text, "signal:")
	switch {
	case text == "restart":
		return run.Change{Restart: true}, nil
	case text == "none":
		return run.Change{}, nil
	case isSignal:
		if s, ok := signals[strings.TrimPrefix(strings.ToUpper(name), "SIG")]; ok {
			return run.Change{Notify: s}, nil
		}
		return run.Change{}, errors.New("-on-change=signal takes HUP, INT, QUIT, TERM, USR1 or USR2")
	}
	return run.Change{}, errors.New("-on-change is restart, signal:NAME or none")
}

// identity is who a command is that is there once: who comes after it takes its place.
type identity struct{ stateDir, instance string }

func (i *identity) register(command *cobra.Command) {
	f := command.Flags()
	f.StringVar(&i.stateDir, "state-dir", "", "`folder` of this command alone, which keeps its instance: what it left when it was killed is ended")
	f.StringVar(&i.instance, "instance", "", "`name` that no other process with this login has: what it left when it was killed is ended")
}

// claim returns the instance, which is this process's until it is released; empty: it is one of many.
func (i *identity) claim(cmd *cobra.Command) (name string, release func(), err error) {
	for flag, text := range map[string]string{"state-dir": i.stateDir, "instance": i.instance} {
		if cmd.Flags().Changed(flag) && text == "" { // an unset variable, say
			return "", nil, session.Usage(cmd, "-%s is empty", flag)
		}
	}
	if i.stateDir == "" {
		return i.instance, func() {}, nil
	}
	claim, err := instance.In(i.stateDir, "run", i.instance)
	if err != nil {
		return "", nil, fmt.Errorf("-state-dir: %w", err)
	}
	return claim.Name, claim.Release, nil
}

// method is how the command logs in, again and again.
type method struct {
	role, roleID, secretIDFile, jwtFile, tokenFile, mount string
}

func (m *method) register(command *cobra.Command) {
	f := command.Flags()
	f.StringVar(&m.roleID, "role-id", "", "log in with this AppRole `id`, instead of the token")
	f.StringVar(&m.secretIDFile, "secret-id-file", "", "with -role-id: `file` of the secret id")
	f.StringVar(&m.jwtFile, "jwt-file", "", "log in with the JWT in this `file`, instead of the token")
	f.StringVar(&m.role, "role", "", "with -jwt-file: `role` to log in as")
	f.StringVar(&m.tokenFile, "token-file", "", "take the token from this `file`, and again when it ends")
	f.StringVar(&m.mount, "auth-path", "", "`path` where the login is enabled (default approle or jwt)")
}

// open logs in, as an instance; empty: as the environment says, or one that is made up.
func (m *method) open(cmd *cobra.Command, a *session.Session, instance string) (*client.Session, error) {
	var how client.Method
	given := 0
	if m.roleID != "" {
		how, given = &client.AppRole{Mount: m.mount, RoleID: m.roleID, SecretIDFile: m.secretIDFile}, given+1
	}
	if m.jwtFile != "" {
		how, given = client.JWT{Mount: m.mount, Role: m.role, File: m.jwtFile}, given+1
	}
	if m.tokenFile != "" {
		how, given = client.KeptToken{File: m.tokenFile}, given+1
	}
	if given > 1 {
		return nil, session.Usage(cmd, "-role-id, -jwt-file and -token-file exclude each other")
	}
	a.Tokenless = how != nil
	c, err := a.Unwrapped()
	if err != nil {
		return nil, err
	}
	if instance != "" {
		c = c.WithInstance(instance)
	}
	return client.Open(cmd.Context(), c, how)
}
