// Package cli is lessor's command line. It speaks the HTTP API through package client and reaches no other part of
// lessor: what runs inside the process (the server, offline restore and verification) is handed in as Commands.
//
// Vault's users find their commands, flags, variables, output and exit codes here: 0 is success, 1 an error on this
// side, 2 a refusal of the server or a server that cannot be reached.
//
// This package puts the commands together. What they share is in session; the commands are in secret, access, account
// and operator.
package cli

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lessor-dev/lessor/internal/cli/access"
	"github.com/lessor-dev/lessor/internal/cli/account"
	"github.com/lessor-dev/lessor/internal/cli/operator"
	"github.com/lessor-dev/lessor/internal/cli/secret"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

// What the program hands in, and what its own commands are asked for.
type (
	System         = session.System
	Commands       = operator.Commands
	Server         = operator.Server
	ServerOptions  = operator.ServerOptions
	RestoreOptions = operator.RestoreOptions
	Restored       = operator.Restored
	VerifyOptions  = operator.VerifyOptions
	AdmitOptions   = operator.AdmitOptions

	MigrateOptions  = operator.MigrateOptions
	Migrated        = operator.Migrated
	Passing         = operator.Passing
	TakeoverOptions = operator.TakeoverOptions
	TakenOver       = operator.TakenOver
	JoinOptions     = operator.JoinOptions
	Joined          = operator.Joined

	Origin        = operator.Origin
	PointsOptions = operator.PointsOptions
	Points        = operator.Points
	Point         = operator.Point
	DrillOptions  = operator.DrillOptions
	Drilled       = operator.Drilled
	Verification  = session.Verification
	Broken        = session.Broken
	ExitCode      = session.ExitCode
)

// Run parses args (without the program's name), runs the command that they name and returns the exit code. Ending
// ctx ends the command.
func Run(ctx context.Context, system session.System, commands operator.Commands, args []string) int {
	if len(args) == 1 {
		if shell, ok := autocomplete(args[0], system.Env); ok {
			_, _ = io.WriteString(system.Err, shell)
			return session.ExitLocal
		}
	}
	var typed *dashes
	if completes(args) {
		typed = &dashes{out: system.Out, last: args[len(args)-1]}
		system.Out = typed
	}
	a := session.New(system)
	root := root(a, commands)
	root.SetArgs(session.Normalize(args))
	err := root.ExecuteContext(ctx)
	a.Progress.End()
	if typed != nil {
		typed.flush()
	}
	if err == nil {
		return 0
	}
	if shown, ok := errors.AsType[session.Preview](err); ok {
		if _, err := io.WriteString(a.Out, string(shown)+"\n"); err != nil {
			return session.ExitLocal
		}
		return 0
	}
	if code, ok := errors.AsType[session.ExitCode](err); ok {
		return int(code)
	}
	if ctx.Err() != nil {
		a.Complain("Interrupted.")
		return session.ExitLocal
	}
	a.Complain("%s", session.Sentence(err))
	if advice := a.Advice(err); advice != "" {
		a.Complain("%s", advice)
	}
	return session.CodeOf(err)
}

func root(a *session.Session, commands operator.Commands) *cobra.Command {
	root := &cobra.Command{
		Use:   "lessor",
		Short: "Lease, renew, revoke and account for secrets",
		Long: `lessor leases credentials: each one is owned, scoped, expiring, revocable and on record.

Flags may be written with one dash or two: -format=json and --format=json are the same. Values that should not be
seen by other users of this machine come from files (key=@file) or standard input (key=-, or - in place of a token).

Variables that commands read, each as LESSOR_NAME or VAULT_NAME, of which the first wins: ADDR, AGENT_ADDR, TOKEN, NAMESPACE,
CACERT, CACERT_BYTES, CAPATH, CLIENT_CERT, CLIENT_KEY, TLS_SERVER_NAME, SKIP_VERIFY, PROXY_ADDR, HTTP_PROXY, DISABLE_REDIRECTS,
CLIENT_TIMEOUT (of a call; default 60s), MAX_RETRIES (of a call that fails for now; default 0), WRAP_TTL, MFA, FORMAT, DETAILED,
INSTANCE (which process of its holder this is), CONFIG_PATH (of a file that says who keeps the token: see lessor login).

Exit codes: 0 success, 1 an error on this side, 2 the server refused or cannot be reached, 127 there is no such command.`,
		Version:           commands.Version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		Args:              cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return incomplete(cmd, session.ExitUnknown)
			}
			return session.Unknown(cmd, "there is no command %q%s", args[0], suggestion(cmd, args[0]))
		},
	}
	root.SetVersionTemplate(operator.VersionText(commands.Version) + "\n")
	root.SetIn(a.Input.Stdin)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { _, _ = io.WriteString(cmd.OutOrStdout(), help(cmd, a.Width())) })
	root.SetFlagErrorFunc(session.FlagError)
	root.SetGlobalNormalizationFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "ns" {
			name = "namespace"
		}
		return pflag.NormalizedName(name)
	})
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddGroup(
		&cobra.Group{ID: "secrets", Title: "Secrets:"},
		&cobra.Group{ID: "leases", Title: "Leases and who holds them:"},
		&cobra.Group{ID: "access", Title: "Access:"},
		&cobra.Group{ID: "server", Title: "Server:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, command := range commands {
			command.GroupID = group
			root.AddCommand(command)
		}
	}
	add("secrets", secret.KV(a), secret.Read(a), secret.Write(a), secret.Patch(a), secret.List(a), secret.Delete(a), secret.Unwrap(a), secret.Run(a), secret.Agent(a), secret.Secrets(a), secret.PathHelp(a))
	add("leases", account.Lease(a), account.Holders(a), account.Exposures(a), account.Owner(a), account.Rotation(a), account.Revoke(a), account.Audit(a), account.Events(a))
	add("access", access.Login(a), access.Tokens(a), access.Policy(a), secret.Auth(a), access.Print(a))
	add("server", operator.Status(a), operator.Operator(a, commands), secret.Plugin(a), operator.Version(a, commands.Version), operator.VersionHistory(a), completion(a, root))
	root.AddCommand(elsewhere()...)
	if commands.Server != nil {
		add("server", operator.Serve(a, commands))
	}
	root.SetHelpCommandGroupID("server")
	completeGroups(root)
	return root
}

// completeGroups makes a bare "lessor kv" show what could follow, and "lessor kv gte" say what is wrong, for every group of
// commands.
func completeGroups(command *cobra.Command) {
	for _, child := range command.Commands() {
		completeGroups(child)
		if child.HasSubCommands() && child.Run == nil && child.RunE == nil {
			child.Args = cobra.ArbitraryArgs
			child.RunE = func(cmd *cobra.Command, args []string) error {
				if len(args) == 0 {
					return incomplete(cmd, session.ExitLocal)
				}
				return session.Unknown(cmd, "there is no command %q%s", cmd.Name()+" "+args[0], suggestion(cmd, args[0]))
			}
		}
	}
}

// incomplete shows the help of what is no command yet. It was not asked for, so it is no output, and the code is no success: a script
// that left out half a command notices, as it does with Vault.
func incomplete(cmd *cobra.Command, code int) error {
	cmd.SetOut(cmd.ErrOrStderr())
	if err := cmd.Help(); err != nil {
		return err
	}
	return session.ExitCode(code)
}

func suggestion(cmd *cobra.Command, typed string) string {
	cmd.SuggestionsMinimumDistance = 2
	similar := cmd.SuggestionsFor(typed)
	if len(similar) == 0 {
		return ""
	}
	return "; did you mean " + strings.Join(similar, " or ") + "?"
}

// elsewhere are commands of Vault's that lessor does not have, and what to do instead.
func elsewhere() (commands []*cobra.Command) {
	for _, c := range [][2]string{
		{"debug", "the server's log, its metrics (sys/metrics) and lessor status tell what it does"},
		{"monitor", "read the server's log; what was done through it is shown by: lessor audit tail"},
		{"namespace", "this server has one namespace, its root; keep tenants apart by mounts and policies (lessor secrets enable -path=TENANT/...)"},
		{"pki", "there is no such engine; what there is: lessor plugin list"},
		{"proxy", "let the program ask the server itself, or through a listener of the agent: lessor agent"},
		{"ssh", "there is no such engine; what there is: lessor plugin list"},
		{"transform", "there is no such engine; what there is: lessor plugin list"},
		{"transit", "there is no such engine; what there is: lessor plugin list"},
	} {
		commands = append(commands, session.Refusal(c[0], c[1]))
	}
	return commands
}
