// Package cli is lessor's command line. It speaks the HTTP API through package client and reaches no other part of
// lessor: what runs inside the process (the server, offline restore and verification) is handed in as Commands.
//
// Vault's users find their commands, flags, variables, output and exit codes here: 0 is success, 1 an error on this
// side, 2 a refusal of the server or a server that cannot be reached.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/lessor-dev/lessor/client"
)

// System is what a run of the command line may touch besides the network and the files that its arguments name.
type System struct {
	In       io.Reader
	Out, Err io.Writer
	Env      client.Lookup
	Home     string // folder of the stored token; empty: none can be stored
}

// Commands are the commands whose bodies live elsewhere. One that is nil is not offered.
type Commands struct {
	Version string // of this binary

	Server  *Server
	Restore func(context.Context, RestoreOptions) error
	Verify  func(context.Context, VerifyOptions) (Verification, error)
	Admit   func(context.Context, AdmitOptions) (tokenFile string, err error)
}

// Run parses args (without the program's name), runs the command that they name and returns the exit code. Ending
// ctx ends the command.
func Run(ctx context.Context, system System, commands Commands, args []string) int {
	if len(args) == 1 {
		if shell, ok := autocomplete(args[0], system.Env); ok {
			_, _ = io.WriteString(system.Err, shell)
			return exitLocal
		}
	}
	var typed *dashes
	if completes(args) {
		typed = &dashes{out: system.Out, last: args[len(args)-1]}
		system.Out = typed
	}
	a := newApp(system, commands)
	root := a.root()
	root.SetArgs(Normalize(args))
	err := root.ExecuteContext(ctx)
	a.progress.end()
	if typed != nil {
		typed.flush()
	}
	if err == nil {
		return 0
	}
	if shown, ok := errors.AsType[preview](err); ok {
		if _, err := io.WriteString(a.out, string(shown)+"\n"); err != nil {
			return exitLocal
		}
		return 0
	}
	if code, ok := errors.AsType[ExitCode](err); ok {
		return int(code)
	}
	if ctx.Err() != nil {
		a.complain("Interrupted.")
		return exitLocal
	}
	a.complain("%s", sentence(err))
	if advice := a.advice(err); advice != "" {
		a.complain("%s", advice)
	}
	return codeOf(err)
}

// app is one run.
type app struct {
	commands Commands
	env      client.Lookup
	home     string
	input    *input
	out, err io.Writer
	terminal bool // out is one
	progress *progress
	flags    globals
	token    client.Token // that connect found, for advice

	tokenless bool // the command gets on without a stored token, and without an error about it
}

func newApp(system System, commands Commands) *app {
	p := newProgress(system.Err, isTerminal(system.Err))
	return &app{
		commands: commands, env: system.Env, home: system.Home,
		input: &input{stdin: system.In}, out: p.writer(system.Out), err: p.writer(system.Err),
		terminal: isTerminal(system.Out), progress: p,
	}
}

func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// globals are the flags of every command that calls the server.
type globals struct {
	address    string
	namespace  string
	wrapTTL    string
	caCert     string
	caPath     string
	clientCert string
	clientKey  string
	serverName string
	skipVerify bool
	headers    []string
	format     string

	agentAddress   string
	noRedirects    bool
	policyOverride bool
	mfa            []string
	unlockKey      string
	asCurl         bool
	asPolicy       bool
	nonInteractive bool
}

func (g *globals) register(f *pflag.FlagSet) {
	f.StringVar(&g.address, "address", "", "server's `URL` (LESSOR_ADDR, VAULT_ADDR; default "+client.DefaultPlainAddress+")")
	f.StringVar(&g.namespace, "namespace", "", "`namespace` of the request (LESSOR_NAMESPACE, VAULT_NAMESPACE)")
	f.StringVar(&g.wrapTTL, "wrap-ttl", "", "wrap the answer in a single-use token that lives for this `duration` (LESSOR_WRAP_TTL, VAULT_WRAP_TTL)")
	f.StringVar(&g.caCert, "ca-cert", "", "PEM `file` of the authority to trust (LESSOR_CACERT, VAULT_CACERT)")
	f.StringVar(&g.caPath, "ca-path", "", "`folder` of such files (LESSOR_CAPATH, VAULT_CAPATH)")
	f.StringVar(&g.clientCert, "client-cert", "", "PEM `file` of the client's certificate (LESSOR_CLIENT_CERT, VAULT_CLIENT_CERT)")
	f.StringVar(&g.clientKey, "client-key", "", "PEM `file` of its key (LESSOR_CLIENT_KEY, VAULT_CLIENT_KEY)")
	f.StringVar(&g.serverName, "tls-server-name", "", "`name` to expect in the server's certificate (LESSOR_TLS_SERVER_NAME, VAULT_TLS_SERVER_NAME)")
	f.BoolVar(&g.skipVerify, "tls-skip-verify", false, "accept any certificate: anyone on the way can read along (LESSOR_SKIP_VERIFY, VAULT_SKIP_VERIFY)")
	f.StringArrayVar(&g.headers, "header", nil, "further header of the request, as `name=value`; may be repeated")
	f.StringVar(&g.format, "format", "", formatHelp)
	f.BoolVar(&g.asCurl, "output-curl-string", false, "make no call: print the curl command that would make it")
	f.BoolVar(&g.asPolicy, "output-policy", false, "make no call: print the policy that it would need")
	f.BoolVar(&g.nonInteractive, "non-interactive", false, "ask nothing on the terminal: what is missing is an error")
	f.BoolVar(&g.noRedirects, "disable-redirects", false, "do not follow redirects (LESSOR_DISABLE_REDIRECTS, VAULT_DISABLE_REDIRECTS)")
	f.StringArrayVar(&g.mfa, "mfa", nil, "second `factor`, as method[:passcode]; may be repeated (LESSOR_MFA, VAULT_MFA)")
	// Vault's users may have these in their scripts; few need them here.
	f.StringVar(&g.agentAddress, "agent-address", "", "URL of an agent to go through")
	f.BoolVar(&g.policyOverride, "policy-override", false, "override soft-mandatory policies of Vault's")
	f.StringVar(&g.unlockKey, "unlock-key", "", "key of a namespace's API lock of Vault's")
	for _, name := range []string{"agent-address", "policy-override", "unlock-key"} {
		_ = f.MarkHidden(name)
	}
}

const formatHelp = "`form` of the output: table, json or yaml; raw for lessor read (LESSOR_FORMAT, VAULT_FORMAT; default table)"

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "lessor",
		Short: "Lease, renew, revoke and account for secrets",
		Long: `lessor leases credentials: each one is owned, scoped, expiring, revocable and on record.

Flags may be written with one dash or two: -format=json and --format=json are the same. Values that should not be
seen by other users of this machine come from files (key=@file) or standard input (key=-, or - in place of a token).

Exit codes: 0 success, 1 an error on this side, 2 the server refused or cannot be reached.`,
		Version:           a.commands.Version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		Args:              cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return usage(cmd, "there is no command %q%s", args[0], suggestion(cmd, args[0]))
		},
	}
	root.SetVersionTemplate(a.versionText() + "\n")
	root.SetIn(a.input.stdin)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetUsageFunc(a.usage)
	root.SetFlagErrorFunc(flagError)
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
	add("secrets", a.kv(), a.read(), a.write(), a.patch(), a.list(), a.delete(), a.unwrap(), a.secrets(), a.pathHelp())
	add("leases", a.lease(), a.holders(), a.exposures(), a.owner(), a.revoke(), a.audit())
	add("access", a.login(), a.tokens(), a.policy(), a.auth(), a.printing())
	add("server", a.status(), a.operator(), a.plugin(), a.version(), a.versionHistory(), a.completion(root))
	root.AddCommand(a.namespace())
	if a.commands.Server != nil {
		add("server", a.server())
	}
	root.SetHelpCommandGroupID("server")
	completeGroups(root)
	return root
}

// usage writes how a command is called: its children or its own flags, then those that all share.
func (a *app) usage(cmd *cobra.Command) error {
	var b strings.Builder
	name, rest, _ := strings.Cut(cmd.Use, " ")
	if cmd.HasParent() {
		name = cmd.Parent().CommandPath() + " " + name
	}
	switch {
	case cmd.HasSubCommands():
		fmt.Fprintf(&b, "Usage:\n  %s COMMAND\n", name)
		children := func(title, group string) {
			var rows []row
			for _, child := range cmd.Commands() {
				if child.IsAvailableCommand() && child.GroupID == group {
					rows = append(rows, row{"  " + child.Name(), child.Short})
				}
			}
			if len(rows) > 0 {
				fmt.Fprintf(&b, "\n%s\n%s", title, align(rows))
			}
		}
		children("Commands:", "")
		for _, g := range cmd.Groups() {
			children(g.Title, g.ID)
		}
		fmt.Fprintf(&b, "\nMore about a command: %s COMMAND -help\n", name)
	default:
		fmt.Fprintf(&b, "Usage:\n  %s\n", strings.TrimRight(name+" [flags] "+rest, " "))
		var connection globals
		shared, own := pflag.NewFlagSet("", pflag.ContinueOnError), pflag.NewFlagSet("", pflag.ContinueOnError)
		connection.register(shared)
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if shared.Lookup(f.Name) == nil && f.Name != "help" {
				own.AddFlag(f)
			}
		})
		if own.HasFlags() {
			fmt.Fprintf(&b, "\nFlags:\n%s", own.FlagUsages())
		}
		if cmd.Flags().Lookup("address") != nil {
			fmt.Fprintf(&b, "\nFlags of every command that calls the server:\n%s", shared.FlagUsages())
		}
	}
	_, err := io.WriteString(cmd.OutOrStdout(), b.String())
	return err
}

// completeGroups makes a bare "lessor kv" show help, and "lessor kv gte" say what is wrong, for every group of
// commands.
func completeGroups(command *cobra.Command) {
	for _, child := range command.Commands() {
		completeGroups(child)
		if child.HasSubCommands() && child.Run == nil && child.RunE == nil {
			child.Args = cobra.ArbitraryArgs
			child.RunE = func(cmd *cobra.Command, args []string) error {
				if len(args) == 0 {
					return cmd.Help()
				}
				return usage(cmd, "there is no command %q%s", cmd.Name()+" "+args[0], suggestion(cmd, args[0]))
			}
		}
	}
}

func suggestion(cmd *cobra.Command, typed string) string {
	cmd.SuggestionsMinimumDistance = 2
	similar := cmd.SuggestionsFor(typed)
	if len(similar) == 0 {
		return ""
	}
	return "; did you mean " + strings.Join(similar, " or ") + "?"
}

// run is the body of a command.
type run func(cmd *cobra.Command, args []string) error

// remote makes a command that calls the server: global flags, and the number of arguments checked. use names them
// ("get PATH"); most < 0 is any number.
func (a *app) remote(use, short, long string, least, most int, body run) *cobra.Command {
	command := &cobra.Command{Use: use, Short: short, Long: describe(short, long), Args: arguments(least, most), RunE: body}
	a.flags.register(command.Flags())
	_ = command.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	return command
}

// group makes a command that only holds others.
func group(use, short, long string, children ...*cobra.Command) *cobra.Command {
	command := &cobra.Command{Use: use, Short: short, Long: describe(short, long)}
	command.AddCommand(children...)
	return command
}

func describe(short, long string) string {
	if long == "" {
		return short + "."
	}
	return short + ".\n\n" + strings.Trim(long, "\n")
}

func arguments(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		_, names, _ := strings.Cut(cmd.Use, " ")
		switch {
		case len(args) < least && names != "":
			return usage(cmd, "it needs %s", names)
		case most >= 0 && len(args) > most && names == "":
			return usage(cmd, "it takes no arguments")
		case most >= 0 && len(args) > most:
			return usage(cmd, "too many arguments: it takes %s", names)
		}
		return nil
	}
}

// connect makes the client that flags, environment and stored token ask for, and shows progress from now on.
func (a *app) connect() (*client.Client, error) {
	if _, err := a.format(); err != nil {
		return nil, err
	}
	config, err := client.FromEnvironment(a.env)
	if err != nil {
		return nil, err
	}
	g := a.flags
	if g.asCurl && g.asPolicy {
		return nil, errors.New("-output-curl-string and -output-policy exclude each other")
	}
	for _, override := range []struct {
		setting *string
		flag    string
	}{
		{&config.Address, g.address},
		{&config.Address, g.agentAddress},
		{&config.Namespace, g.namespace},
		{&config.TLS.CACert, g.caCert},
		{&config.TLS.CAPath, g.caPath},
		{&config.TLS.ClientCert, g.clientCert},
		{&config.TLS.ClientKey, g.clientKey},
		{&config.TLS.ServerName, g.serverName},
	} {
		if override.flag != "" {
			*override.setting = override.flag
		}
	}
	config.TLS.SkipVerify = config.TLS.SkipVerify || g.skipVerify
	if g.wrapTTL != "" {
		if config.WrapTTL, err = client.ParseDuration(g.wrapTTL); err != nil {
			return nil, fmt.Errorf("-wrap-ttl: %w", err)
		}
	}
	config.Header = map[string][]string{}
	for _, text := range g.headers {
		if err := client.ParseHeader(config.Header, text); err != nil {
			return nil, fmt.Errorf("-header: %w", err)
		}
	}
	config.NoRedirects = config.NoRedirects || g.noRedirects
	config.PolicyOverride = g.policyOverride
	if len(g.mfa) > 0 {
		config.MFA = g.mfa
	}
	// A person tries again sooner than a program waits: without a word in the environment, once is enough.
	if a.env.Setting("MAX_RETRIES") == "" {
		config.MaxRetries = 0
	}
	switch {
	case g.asCurl:
		config.Preview = func(request *http.Request, body []byte) error { return asCurl(request, body, config.TLS) }
	case g.asPolicy:
		config.Preview = func(request *http.Request, _ []byte) error { return asPolicy(request) }
	}
	if config.Token.Empty() {
		store, err := a.tokenStore()
		if err != nil {
			return nil, err
		}
		if config.Token, err = store.Load(); err != nil && !a.tokenless {
			return nil, err
		}
	}
	config.Waiting = func(n int, wait time.Duration, err error) {
		a.progress.say(fmt.Sprintf("%s; trying again (%d of %d)", printable(err.Error()), n, config.MaxRetries))
	}
	a.token = config.Token
	c, err := client.New(config)
	if err != nil {
		return nil, err
	}
	a.progress.begin("waiting for " + config.Address)
	return c, nil
}

// complain tells the user something that is not the command's output.
func (a *app) complain(format string, args ...any) {
	_, _ = fmt.Fprintf(a.err, format+"\n", args...)
}

// say prints a line of the command's output, for people: nothing when the output is to be parsed.
func (a *app) say(format string, args ...any) error {
	if f, err := a.format(); f != formTable {
		return err
	}
	_, err := fmt.Fprintf(a.out, format+"\n", args...)
	return err
}
