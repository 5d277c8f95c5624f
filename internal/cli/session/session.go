// Package session is one run of the command line: what it was told (flags, environment, standard input, the stored
// token), how it reaches the server, and how it tells what came of it (tables, JSON, YAML, errors with advice, progress).
package session

import (
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
	Environ  []string // all of the environment, for commands that are run in it; as os.Environ
	Home     string   // folder of the stored token; empty: none can be stored
}

// Session is one run.
type Session struct {
	Env      client.Lookup
	home     string
	Input    *input
	Out, Err io.Writer
	Terminal bool // out is one
	screen   *os.File
	Progress *Progress
	Flags    Globals
	Token    client.Token // that connect found, for advice

	Tokenless bool // the command gets on without a stored token, and without an error about it

	System System // as it was handed in: for who passes it on
}

// New begins a run. Nothing is read or called yet.
func New(system System) *Session {
	p := newProgress(system.Err, IsTerminal(system.Err))
	screen, _ := system.Out.(*os.File)
	return &Session{
		Env: system.Env, home: system.Home,
		Input: &input{Stdin: system.In}, Out: p.writer(system.Out), Err: p.writer(system.Err),
		Terminal: IsTerminal(system.Out), screen: screen, Progress: p, System: system,
	}
}

// IsTerminal reports whether a stream is a terminal: whether somebody is there.
func IsTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// Width is how many columns the terminal of the output has; 0 if it is none.
func (a *Session) Width() int {
	if !a.Terminal {
		return 0
	}
	width, _, err := term.GetSize(int(a.screen.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// Globals are the flags of every command that calls the server.
type Globals struct {
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
	Format     string

	agentAddress   string
	noRedirects    bool
	policyOverride bool
	mfa            []string
	unlockKey      string
	asCurl         bool
	asPolicy       bool
	nonInteractive bool
}

// Register adds the flags to f.
func (g *Globals) Register(f *pflag.FlagSet) {
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
	g.registerFormat(f)
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

func (g *Globals) registerFormat(f *pflag.FlagSet) {
	f.StringVar(&g.Format, "format", "", "`form` of the output: table, json or yaml; raw for lessor read (LESSOR_FORMAT, VAULT_FORMAT; default table)")
}

// run is the body of a command.
type run func(cmd *cobra.Command, args []string) error

// Remote makes a command that calls the server: global flags, and the number of arguments checked. use names them
// ("get PATH"); most < 0 is any number.
func (a *Session) Remote(use, short, long string, least, most int, body run) *cobra.Command {
	command := &cobra.Command{Use: use, Short: short, Long: Describe(short, long), Args: Arguments(least, most), RunE: body}
	a.Flags.Register(command.Flags())
	completeFormat(command)
	return command
}

func completeFormat(command *cobra.Command) {
	_ = command.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
}

// Local makes a command that works without a server: of the global flags it has -format. A form that does not exist is
// told before anything is done.
func (a *Session) Local(use, short, long string, least, most int, body run) *cobra.Command {
	command := a.offline(use, short, long, least, most, body)
	a.Flags.registerFormat(command.Flags())
	completeFormat(command)
	return command
}

// Hybrid makes a command like Local that calls the server as well, if a flag of its own says so: it has all global flags.
func (a *Session) Hybrid(use, short, long string, least, most int, body run) *cobra.Command {
	command := a.offline(use, short, long, least, most, body)
	a.Flags.Register(command.Flags())
	completeFormat(command)
	return command
}

func (a *Session) offline(use, short, long string, least, most int, body run) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: Describe(short, long), Args: Arguments(least, most),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f, err := a.Format(); err != nil {
				return err
			} else if f == FormRaw {
				return errRaw
			}
			return body(cmd, args)
		},
	}
}

// Group makes a command that only holds others.
func Group(use, short, long string, children ...*cobra.Command) *cobra.Command {
	command := &cobra.Command{Use: use, Short: short, Long: Describe(short, long)}
	command.AddCommand(children...)
	return command
}

// Describe is the help of a command.
func Describe(short, long string) string {
	if long == "" {
		return short + "."
	}
	return short + ".\n\n" + strings.Trim(long, "\n")
}

// Arguments checks the number of arguments; most < 0 is any.
func Arguments(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		_, names, _ := strings.Cut(cmd.Use, " ")
		switch {
		case len(args) < least && names != "":
			return Usage(cmd, "it needs %s", names)
		case most >= 0 && len(args) > most && names == "":
			return Usage(cmd, "it takes no arguments")
		case most >= 0 && len(args) > most:
			return Usage(cmd, "too many arguments: it takes %s", names)
		}
		return nil
	}
}

// Connect makes the client that flags, environment and stored token ask for, and shows progress from now on.
func (a *Session) Connect() (*client.Client, error) {
	if _, err := a.Format(); err != nil {
		return nil, err
	}
	config, err := client.FromEnvironment(a.Env)
	if err != nil {
		return nil, err
	}
	g := a.Flags
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
	if a.Env.Setting("MAX_RETRIES") == "" {
		config.MaxRetries = 0
	}
	switch {
	case g.asCurl:
		config.Preview = func(request *http.Request, body []byte) error { return asCurl(request, body, config.TLS) }
	case g.asPolicy:
		config.Preview = func(request *http.Request, _ []byte) error { return asPolicy(request) }
	}
	if config.Token.Empty() {
		store, err := a.TokenStore()
		if err != nil {
			return nil, err
		}
		if config.Token, err = store.Load(); err != nil && !a.Tokenless {
			return nil, err
		}
	}
	config.Waiting = func(n int, wait time.Duration, err error) {
		a.Progress.Say(fmt.Sprintf("%s; trying again (%d of %d)", Printable(err.Error()), n, config.MaxRetries))
	}
	a.Token = config.Token
	c, err := client.New(config)
	if err != nil {
		return nil, err
	}
	a.Progress.Begin("waiting for " + config.Address)
	return c, nil
}

// Unwrapped is Connect for commands that read what the server answers: it is never wrapped, whatever flags and
// environment say.
func (a *Session) Unwrapped() (*client.Client, error) {
	c, err := a.Connect()
	if err != nil {
		return nil, err
	}
	return c.WithWrapTTL(0), nil
}

// Complain tells the user something that is not the command's output.
func (a *Session) Complain(format string, args ...any) {
	_, _ = fmt.Fprintf(a.Err, format+"\n", args...)
}

// Say prints a line of the command's output, for people: nothing when the output is to be parsed.
func (a *Session) Say(format string, args ...any) error {
	if f, err := a.Format(); f != FormTable {
		return err
	}
	_, err := fmt.Fprintf(a.Out, format+"\n", args...)
	return err
}

// Refusal is a command of Vault's that lessor does not have, and says what to do instead. It is not listed.
func Refusal(name, instead string) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: "Not here: " + instead, DisableFlagParsing: true, Hidden: true,
		RunE: func(*cobra.Command, []string) error { return errors.New(instead) },
	}
}
