package operator

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

// Server is the command whose body runs the server. It reads its own flags: they belong to the configuration.
type Server struct {
	Usage string // its flags, one or two lines each
	Run   func(context.Context, ServerOptions) error
}

// ServerOptions are what a server is started with.
type ServerOptions struct {
	Args       []string                 // flags, without the command's name; long ones have one dash or two
	Version    string                   // of this binary
	StoreToken func(client.Token) error // keeps a development server's root token for later commands, as login does
	Out, Err   io.Writer
}

// Serve is the command server.
func Serve(a *session.Session, commands Commands) *cobra.Command {
	short := "Run a lessor server"
	command := &cobra.Command{
		Use:   "server",
		Short: short,
		Long: session.Describe(short, `
Without configuration: an embedded store in a data folder, sealed with a key file outside of it, listening on loopback.
The first start writes a bootstrap root token to a file that only you can read, and prints where that is.

  lessor server
  lessor server -config=/etc/lessor.hcl
  lessor server -dev -dev-root-token-id=root`),
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if slices.ContainsFunc(args, func(arg string) bool { return arg == "-h" || arg == "--help" }) {
				return cmd.Help()
			}
			return commands.Server.Run(cmd.Context(), ServerOptions{
				Args: args, Version: commands.Version, Out: a.Out, Err: a.Err,
				StoreToken: func(token client.Token) error {
					store, err := a.TokenStore()
					if err != nil {
						return err
					}
					return store.Store(token)
				},
			})
		},
	}
	command.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		_, _ = fmt.Fprintf(a.Out, "%s\n\nUsage:\n  lessor server [flags]\n\nFlags:\n%s", cmd.Long, commands.Server.Usage)
	})
	return command
}
