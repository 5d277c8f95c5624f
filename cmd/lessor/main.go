// Command lessor is the server and the command line, in one binary. It only wires: what the commands do lives in
// internal/cli and internal/node.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/node"
	"github.com/lessor-dev/lessor/internal/version"
)

func main() {
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	home, _ := os.UserHomeDir()
	return cli.Run(ctx, cli.System{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Env: os.LookupEnv, Home: home,
	}, cli.Commands{
		Version: version.String(),
		Server:  &cli.Server{Usage: config.Usage(), Run: serve},
	}, os.Args[1:])
}

// serve runs a server until ctx ends.
func serve(ctx context.Context, o cli.ServerOptions) error {
	program := node.Program{
		Version:    o.Version,
		StoreToken: func(token lessor.Secret) error { return o.StoreToken(client.NewToken(token.Reveal())) },
	}
	if code := program.Main(ctx, o.Args, o.Out, o.Err); code != 0 {
		return cli.ExitCode(code)
	}
	return nil
}
