package cli

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
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

func (a *app) server() *cobra.Command {
	short := "Run a lessor server"
	command := &cobra.Command{
		Use:   "server",
		Short: short,
		Long: describe(short, `
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
			return a.commands.Server.Run(cmd.Context(), ServerOptions{
				Args: args, Version: a.commands.Version, Out: a.out, Err: a.err,
				StoreToken: func(token client.Token) error {
					store, err := a.tokenStore()
					if err != nil {
						return err
					}
					return store.Store(token)
				},
			})
		},
	}
	command.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		_, _ = fmt.Fprintf(a.out, "%s\n\nUsage:\n  lessor server [flags]\n\nFlags:\n%s", cmd.Long, a.commands.Server.Usage)
	})
	return command
}
