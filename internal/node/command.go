package node

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lessor-dev/lessor/internal/archive"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/server"
	"github.com/lessor-dev/lessor/internal/store"
)

// Program is what the server command takes from the program around it.
type Program struct {
	Version    string
	Env        func(string) (string, bool)     // nil: os.LookupEnv
	StoreToken func(token lessor.Secret) error // keeps the dev server's root token for later commands; nil: nobody does
}

// Main is "lessor server": args are its flags. It runs until ctx ends, then drains, and returns the exit code: 0 after
// an orderly end, 1 otherwise. What to know goes to stdout, the log to stderr; SIGHUP reloads certificates.
func (p Program) Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if err := p.run(ctx, args, stdout, stderr); err != nil {
		_, _ = fmt.Fprintf(stderr, "Error: %s\n", err)
		return 1
	}
	return 0
}

func (p Program) run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	c, err := config.Flags(args)
	if errors.Is(err, flag.ErrHelp) {
		_, err = fmt.Fprintf(stdout, "Usage: lessor server [flags]\n\n%s", config.Usage())
		return err
	}
	if err != nil {
		return err
	}
	level := &slog.LevelVar{}
	level.Set(c.LogLevel)
	log := newLog(stderr, c.LogJSON, level)
	harden(log)
	recovery, err := p.recovery(c)
	if err != nil {
		return err
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)

	n, err := Start(ctx, c, Options{Version: p.Version, Log: log, Recovery: recovery, Level: level})
	if err != nil {
		return err
	}
	if c.Dev.Enabled && !c.Dev.NoStoreToken && p.StoreToken != nil {
		if err := p.StoreToken(n.Root); err != nil {
			log.Warn("the root token was not stored for later commands", "error", err)
		}
	}
	if c.PIDFile != "" {
		if err := os.WriteFile(c.PIDFile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
			return errors.Join(fmt.Errorf("cannot write the PID file: %w", err), n.Stop(ctx))
		}
		defer func() { _ = os.Remove(c.PIDFile) }()
	}
	if _, err := io.WriteString(stdout, n.banner()); err != nil {
		return errors.Join(err, n.Stop(ctx))
	}
	n.notify("READY=1")
	fault := n.wait(ctx, hangup)
	n.notify(fmt.Sprintf("STOPPING=1\nEXTEND_TIMEOUT_USEC=%d", n.patience().Microseconds()))
	return errors.Join(fault, n.Stop(context.WithoutCancel(ctx)))
}

// Restore is "lessor operator restore": args are the server's flags that name the store and its key. progress is told
// how far it came.
func (p Program) Restore(ctx context.Context, args []string, from Origin, progress func(string)) (Restored, error) {
	c, err := config.Flags(args)
	if err != nil {
		return Restored{}, err
	}
	backup, err := from.open(ctx, c.Backup, progress) // before offline, which may put /dev/stdin out of reach
	if err != nil {
		return Restored{}, err
	}
	defer func() { _ = backup.close() }()
	c, o, err := p.offline(args)
	if err != nil {
		return Restored{}, err
	}
	return RestoreFrom(ctx, c, o, backup)
}

// Points is "lessor operator backups list"; args as of Restore.
func (p Program) Points(ctx context.Context, args []string, from Origin) ([]archive.Segment, []string, error) {
	c, err := config.Flags(args)
	if err != nil {
		return nil, nil, err
	}
	return Points(ctx, c, from)
}

// Drill is "lessor operator drill"; args as of Restore.
func (p Program) Drill(ctx context.Context, args []string, from Origin, how DrillOptions) (Drilled, error) {
	c, o, err := p.offline(args)
	if err != nil {
		return Drilled{}, err
	}
	return Drill(ctx, c, o, from, how)
}

// told says how much was read.
type told struct {
	io.Reader
	n        int64
	progress func(string)
}

func (t *told) Read(b []byte) (int, error) {
	n, err := t.Reader.Read(b)
	t.n += int64(n)
	t.progress(fmt.Sprintf("read %d MiB of the backup", t.n>>20))
	return n, err
}

// Verify is "lessor operator verify"; args and progress as of Restore.
func (p Program) Verify(ctx context.Context, args []string, progress func(string)) (Verified, error) {
	c, o, err := p.offline(args)
	if err != nil {
		return Verified{}, err
	}
	return Verify(ctx, c, o, func(done, total uint64) { progress(fmt.Sprintf("verified %d of %d commits", done, total)) })
}

// Admit is "lessor operator bootstrap-token"; args as of Restore. It returns the file that the new token is in.
func (p Program) Admit(ctx context.Context, args []string) (tokenFile string, err error) {
	c, o, err := p.offline(args)
	if err != nil {
		return "", err
	}
	return Admit(ctx, c, o)
}

// Migrate is "lessor operator migrate": either files, a configuration with both ends of the move, or the flags of the two servers.
func (p Program) Migrate(ctx context.Context, files, from, to []string, progress func(store.Stage)) (Migrated, error) {
	source, destination, err := config.Config{}, config.Config{}, error(nil)
	if len(files) > 0 {
		source, destination, err = config.Migration(files...)
	} else if source, err = config.Flags(from); err == nil {
		destination, err = config.Flags(to)
	}
	if err != nil {
		return Migrated{}, err
	}
	o, err := p.alone(source)
	if err != nil {
		return Migrated{}, err
	}
	return Migrate(ctx, source, destination, o, progress)
}

// Takeover is "lessor operator takeover"; args and progress as of Restore.
func (p Program) Takeover(ctx context.Context, args []string, force bool, progress func(string)) (Taken, error) {
	c, o, err := p.offline(args)
	if err != nil {
		return Taken{}, err
	}
	return Takeover(ctx, c, o, force, func(done, total uint64) { progress(fmt.Sprintf("verified %d of %d commits", done, total)) })
}

// Accept is "lessor operator takeover -accept".
func (p Program) Accept(ctx context.Context, args []string, first string) (Taken, error) {
	c, o, err := p.offline(args)
	if err != nil {
		return Taken{}, err
	}
	return Accept(ctx, c, o, first)
}

func (p Program) offline(args []string) (config.Config, Options, error) {
	c, err := config.Flags(args)
	if err != nil {
		return c, Options{}, err
	}
	o, err := p.alone(c)
	return c, o, err
}

// alone are the options for work on the store of c without a server.
func (p Program) alone(c config.Config) (Options, error) {
	log := newLog(os.Stderr, false, slog.LevelWarn)
	harden(log)
	recovery, err := p.recovery(c)
	if err == nil {
		recovery.UnsealKeys, err = p.unsealKeys()
	}
	return Options{Version: p.Version, Log: log, Recovery: recovery}, err
}

// harden is called before a key is read.
func harden(log *slog.Logger) {
	if err := server.Harden(); err != nil {
		log.Warn("core dumps of this process may hold keys: they could not be forbidden", "error", err)
	}
}

// wait returns when ctx ends, or with the reason why the store stopped serving: another start may mend what this process
// cannot.
func (n *Node) wait(ctx context.Context, hangup <-chan os.Signal) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
			n.notify("RELOADING=1")
			if err := n.Reload(); err != nil {
				n.log.Error("reloading failed: what was loaded before stays in use", "error", err)
			}
			n.notify("READY=1")
		case <-tick.C:
			if err := n.Fault(); err != nil {
				return fmt.Errorf("the store stopped serving: %w", err)
			}
		}
	}
}

// Bounds of files that hold secrets, in bytes.
const (
	maxPassphrase = 4096
	maxUnsealKeys = 64 << 10
)

func (p Program) env(name string) string {
	lookup := p.Env
	if lookup == nil {
		lookup = os.LookupEnv
	}
	value, _ := lookup(name)
	return value
}

// recovery reads where the recovery file is, and its passphrase: from the environment, LESSOR_RECOVERY_FILE and
// LESSOR_RECOVERY_PASSPHRASE_FILE, or from the configuration. Both name a file, so that the passphrase is in no process list.
func (p Program) recovery(c config.Config) (r Recovery, err error) {
	r.File = p.env("LESSOR_RECOVERY_FILE")
	what, path := "LESSOR_RECOVERY_PASSPHRASE_FILE", p.env("LESSOR_RECOVERY_PASSPHRASE_FILE")
	if path == "" {
		what, path = `seal "recovery"`, c.Seal.Recovery.PassphraseFile
	}
	if path == "" {
		return r, nil
	}
	text, err := readSecret("the recovery passphrase", what, path, maxPassphrase)
	r.Passphrase = lessor.NewSecret(strings.TrimRight(text, "\r\n"))
	if err == nil && r.Passphrase.Empty() {
		err = fmt.Errorf("the recovery passphrase in %s is empty", path)
	}
	return r, err
}

// unsealKeys reads keys for work without a server, one a line, from the file that LESSOR_UNSEAL_KEYS_FILE names.
func (p Program) unsealKeys() (keys []lessor.Secret, err error) {
	const name = "LESSOR_UNSEAL_KEYS_FILE"
	path := p.env(name)
	if path == "" {
		return nil, nil
	}
	text, err := readSecret("the unseal keys", name, path, maxUnsealKeys)
	for line := range strings.FieldsSeq(text) {
		keys = append(keys, lessor.NewSecret(line))
	}
	return keys, err
}

// readSecret reads a file of at most so many bytes.
func readSecret(what, named, path string, most int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("%s (%s): %w", what, named, err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil || int64(len(text)) > most {
		return "", errors.Join(err, fmt.Errorf("%s in %s cannot be read, or is longer than %d bytes", what, path, most))
	}
	return string(text), nil
}

func newLog(w io.Writer, asJSON bool, level slog.Leveler) *slog.Logger {
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if level, ok := a.Value.Any().(slog.Level); ok && a.Key == slog.LevelKey && level <= config.LevelTrace {
			a.Value = slog.StringValue("TRACE")
		}
		return a
	}}
	if asJSON {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// banner says what somebody who started the server wants to know. It holds a secret only with -dev.
func (n *Node) banner() string {
	var b strings.Builder
	line := func(name, value string) { fmt.Fprintf(&b, "%s: %s\n", name, value) }
	where := func(what, path string) string {
		if path == "" {
			return what
		}
		return what + " (" + path + ")"
	}
	b.WriteString("==> lessor server configuration:\n\n")
	for _, l := range n.listeners {
		line("Listener Address", l.url())
	}
	line("Api Address", n.reachable())
	line("Storage", where(string(n.config.Storage.Type), n.config.Storage.Path))
	switch s := n.config.Seal; {
	case n.config.Storage.Type == config.Mem:
		line("Seal", "none: the key is in memory, too")
	case n.manual():
		line("Seal", seal.ShamirName)
	default:
		line("Seal", where(seal.KeyFileName, s.KeyFile))
	}
	line("Log Level", strings.ToLower(n.config.LogLevel.String()))
	line("Version", fmt.Sprintf("lessor %s, for Vault's clients %s", n.o.Version, n.config.ReportedVersion))
	if n.Recovered != "" {
		line("Recovery File", n.Recovered+" (keep it elsewhere: not with the key file, not with the data)")
	}
	if n.TokenFile != "" {
		line("Bootstrap Token File", n.TokenFile)
	}
	switch s := n.Status(); {
	case !s.Initialized:
		line("Sealed", "yes: the store is new and waits to be initialised (lessor operator init)")
	case s.Sealed:
		line("Sealed", "yes: it waits to be unsealed (lessor operator unseal)")
	}
	b.WriteString("\n==> lessor server started! Its log goes to standard error.\n")
	if !n.config.Dev.Enabled {
		return b.String()
	}
	b.WriteString("\nWARNING! This is a development server: all that it holds is in memory, unsealed, and gone when it ends.\n\n")
	fmt.Fprintf(&b, "    $ export VAULT_ADDR='%s'\n", n.reachable())
	if n.CAFile != "" {
		fmt.Fprintf(&b, "    $ export VAULT_CACERT='%s'\n", n.CAFile)
	}
	b.WriteString("\n")
	line("Unseal Key", n.UnsealKey.Reveal())
	line("Root Token", n.Root.Reveal())
	b.WriteString("\nDevelopment mode must not be used for anything that matters.\n")
	return b.String()
}
