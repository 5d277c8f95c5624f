// Package operator has the commands of those who run a server: its seal, its keys, its backups, its state; and the
// server itself.
package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

// Commands are the commands whose bodies live elsewhere. One that is nil is not offered.
type Commands struct {
	Version string // of this binary

	Server  *Server
	Restore func(context.Context, RestoreOptions) (Restored, error)
	Verify  func(context.Context, VerifyOptions) (session.Verification, error)
	Admit   func(context.Context, AdmitOptions) (tokenFile string, err error)
	Points  func(context.Context, PointsOptions) (Points, error)
	Drill   func(context.Context, DrillOptions) (Drilled, error)

	Migrate  func(context.Context, MigrateOptions) (Migrated, error)
	Takeover func(context.Context, TakeoverOptions) (TakenOver, error)
	Join     func(context.Context, JoinOptions) (Joined, error)
}

// RestoreOptions ask for an offline restore.
type RestoreOptions struct {
	Origin                      // the backup
	Store    []string           // flags that name the store and its key, as ServerOptions.Args
	Progress func(doing string) // tells the person who waits; may be called at any time
}

// Restored is what a restore made.
type Restored struct {
	Seq         uint64 `json:"sequence"` // the last commit
	Incarnation uint64 `json:"incarnation"`
	TokenFile   string `json:"bootstrap_token_file"`
}

// VerifyOptions ask for an offline verification.
type VerifyOptions struct {
	Store    []string // flags that name the store and its key, as ServerOptions.Args
	Progress func(doing string)
}

// AdmitOptions ask for a new bootstrap token.
type AdmitOptions struct {
	Store []string // flags that name the store and its key, as ServerOptions.Args
}

// Operator is the group operator.
func Operator(a *session.Session, commands Commands) *cobra.Command {
	command := session.Group("operator", "Initialize, unseal, back up, restore, verify and look after a server", "",
		operatorInit(a), operatorUnseal(a), operatorSeal(a), operatorSealStatus(a), operatorMigrateSeal(a), operatorRekey(a),
		operatorRotate(a), operatorKeyStatus(a), operatorGenerateRoot(a), operatorStepDown(a), operatorMembers(a), operatorJoinSecret(a),
		operatorBackup(a), operatorBackups(a, commands), operatorDrills(a), operatorFence(a),
		session.Refusal("diagnose", "lessor status tells the server's state, lessor operator verify checks its store"),
		session.Refusal("raft", "the store is no raft cluster; to copy it: lessor operator backup; to see its servers: lessor operator members"),
		session.Refusal("usage", "nothing is counted for licences; who uses what is told by lessor holders and lessor audit timeline"))
	if commands.Restore != nil {
		command.AddCommand(operatorRestore(a, commands))
	}
	if commands.Drill != nil {
		command.AddCommand(operatorDrill(a, commands))
	}
	if commands.Verify != nil {
		command.AddCommand(operatorVerify(a, commands))
	}
	if commands.Admit != nil {
		command.AddCommand(operatorBootstrapToken(a, commands))
	}
	if commands.Migrate != nil {
		command.AddCommand(operatorMigrate(a, commands))
	}
	if commands.Join != nil {
		command.AddCommand(operatorJoin(a, commands))
	}
	if commands.Takeover != nil {
		command.AddCommand(operatorTakeover(a, commands))
	}
	return command
}

// operatorBootstrapToken lets an operator in again.
func operatorBootstrapToken(a *session.Session, commands Commands) *cobra.Command {
	var store func() []string
	command := a.Local("bootstrap-token", "Make a new bootstrap token, with the server stopped", `
For an operator who has the store and its key, but no token left that is good for anything. The token is a root token, lives
for 24 hours, and is written to a file that only you can read. That it was made is on record.`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			file, err := commands.Admit(cmd.Context(), AdmitOptions{Store: store()})
			if err != nil {
				return err
			}
			return a.Print(map[string]any{"bootstrap_token_file": file}, func() error { return a.Say("Bootstrap Token File: %s", file) })
		})
	store = storeFlags(command)
	return command
}

func operatorBackup(a *session.Session) *cobra.Command {
	var force bool
	command := a.Remote("backup FILE", "Back a running server up into a file, or to standard output (-)", `
The backup is one consistent state, encrypted as the store is: without the seal's key it is worth nothing to anyone, and
the key is not in it. The file appears once it is complete, readable only by you.`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if name == "-" && a.Terminal {
				return session.Usage(cmd, "a backup is not for terminals: name a file, or redirect the output")
			}
			if _, err := os.Stat(name); name != "-" && err == nil && !force {
				return fmt.Errorf("%s exists already: name another file, or replace it with -force", name)
			}
			c, err := a.Connect()
			if err != nil {
				return err
			}
			if name == "-" {
				_, err := backup(a, cmd.Context(), c, a.Out)
				return err
			}
			var size int64
			err = session.WriteFile(name, 0o600, func(w io.Writer) error {
				var err error
				size, err = backup(a, cmd.Context(), c, w)
				return err
			})
			if err != nil {
				return err
			}
			return a.Print(map[string]any{"file": name, "bytes": size}, func() error {
				a.Complain("Success! Backed up to %s (%s).", name, byteSize(size))
				return nil
			})
		})
	command.Flags().BoolVarP(&force, "force", "f", false, "replace the file if it exists")
	return command
}

// backup copies the server's backup to w.
func backup(a *session.Session, ctx context.Context, c *client.Client, w io.Writer) (int64, error) {
	body, _, err := c.WithWrapTTL(0).Stream(ctx, client.Request{Method: http.MethodGet, Path: "sys/lessor/backup"})
	if err != nil {
		return 0, err
	}
	defer func() { _ = body.Close() }()
	size, err := io.Copy(w, &counted{Reader: body, progress: a.Progress})
	if err != nil {
		return size, fmt.Errorf("the backup broke off after %s and is of no use: %w", byteSize(size), err)
	}
	if size == 0 {
		return 0, errors.New("the server sent an empty backup")
	}
	return size, nil
}

// counted tells how much was read.
type counted struct {
	io.Reader
	progress *session.Progress
	n        int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.n += int64(n)
	c.progress.Say("received " + byteSize(c.n))
	return n, err
}

func byteSize(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	size, unit := float64(n), 0
	for size >= 1024 && unit < len(units)-1 {
		size, unit = size/1024, unit+1
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", size, units[unit])
}

// storeFlags name the store that an offline command works on, as flags of lessor server do. What they return gives
// them back, once the command line is parsed.
func storeFlags(command *cobra.Command) (store func() []string) {
	f := command.Flags()
	config := f.StringArray("config", nil, "configuration `file` of the server; may be repeated")
	data := f.String("data", "", "data `folder` of the server (default as for lessor server)")
	key := f.String("key-file", "", "key `file` of the seal (default as for lessor server)")
	return func() []string {
		var args []string
		for _, file := range *config {
			args = append(args, "-config="+file)
		}
		if *data != "" {
			args = append(args, "-data="+*data)
		}
		if *key != "" {
			args = append(args, "-key-file="+*key)
		}
		return args
	}
}

func operatorRestore(a *session.Session, commands Commands) *cobra.Command {
	var store func() []string
	var origin func(args []string) (Origin, error)
	command := a.Local("restore [FILE]", "Restore a backup into an empty store, with the server stopped", `
Of a FILE that lessor operator backup made; without one, of what a server backed up by itself: the last point, or with -at the last at
or before a time. The seal's key must be in its place. The restored server starts fenced: it touches no database and revokes nothing until
lessor operator fence resume, so that a copy never acts on what the original is responsible for. Tokens, wrapped answers
and approvals of before are void.`,
		0, 1, func(cmd *cobra.Command, args []string) error {
			from, err := origin(args)
			if err != nil {
				return session.Usage(cmd, "%s", err.Error())
			}
			a.Progress.Begin("restoring " + from.File)
			made, err := commands.Restore(cmd.Context(), RestoreOptions{Origin: from, Store: store(), Progress: a.Progress.Say})
			if err != nil {
				return err
			}
			return a.Print(made, func() error {
				return a.Say("Restored up to commit %d, as incarnation %d. The store is fenced: once it is started, lift the fence with\n"+
					"lessor operator fence resume, but only if the server that the backup was taken of will not run again.\n"+
					"All earlier tokens are void. Bootstrap Token File: %s", made.Seq, made.Incarnation, made.TokenFile)
			})
		})
	store, origin = storeFlags(command), originFlags(command, true)
	return command
}

func operatorVerify(a *session.Session, commands Commands) *cobra.Command {
	var store func() []string
	command := a.Local("verify", "Verify a store and its audit chain, with the server stopped", `
It names the first record that does not fit. Exit code 2: the chain is broken.`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			a.Progress.Begin("verifying")
			found, err := commands.Verify(cmd.Context(), VerifyOptions{Store: store(), Progress: a.Progress.Say})
			if err != nil {
				return err
			}
			return a.PrintVerification(found)
		})
	store = storeFlags(command)
	return command
}

const fence = "sys/lessor/fence"

func operatorFence(a *session.Session) *cobra.Command {
	status := a.Remote("status", "Tell whether the server is fenced: whether it leaves targets alone", "",
		0, 0, func(cmd *cobra.Command, _ []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			answer, err := c.Read(cmd.Context(), fence, nil)
			if err != nil {
				return err
			}
			return a.PrintAnswer(answer, "")
		})
	resume := a.Remote("resume", "Let a fenced server act on its targets again", `
Do this only when the server that the backup was taken of will not run again.`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			answer, err := c.Delete(cmd.Context(), fence, nil)
			if err != nil {
				return err
			}
			a.Warn(answer)
			return a.Say("Success! The server acts on its targets again.")
		})
	return session.Group("fence", "See and lift the fence of a restored server", "", status, resume)
}

func operatorSealStatus(a *session.Session) *cobra.Command {
	return a.Remote("seal-status", "Show the seal's state, as the server tells it", `
Needs no token.`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			answer, err := c.WithWrapTTL(0).Read(cmd.Context(), "sys/seal-status", nil)
			if err != nil {
				return err
			}
			return a.PrintAnswer(answer, "")
		})
}
