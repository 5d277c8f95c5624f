// Command lessor is the server and the command line, in one binary. It only wires: what the commands do lives in
// internal/cli and internal/node.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/node"
	"github.com/lessor-dev/lessor/internal/server"
	"github.com/lessor-dev/lessor/internal/store"
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
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Env: os.LookupEnv, Environ: os.Environ(), Home: home,
	}, cli.Commands{
		Version: version.String(),
		Server:  &cli.Server{Usage: config.Usage(), Run: serve},
		Restore: restore,
		Verify:  verify,
		Admit:   admit,
		Points:  points,
		Drill:   drill,

		Migrate:  migrate,
		Takeover: takeover,
		Join:     join,
	}, os.Args[1:])
}

// serve runs a server until ctx ends.
func serve(ctx context.Context, o cli.ServerOptions) error {
	if err := server.Shed(); err != nil {
		_, _ = fmt.Fprintf(o.Err, "Warning: the server keeps its environment: %s\n", err)
	}
	shareCores()
	collectLess()
	program := node.Program{
		Version:    o.Version,
		StoreToken: func(token lessor.Secret) error { return o.StoreToken(client.NewToken(token.Reveal())) },
	}
	if code := program.Main(ctx, o.Args, o.Out, o.Err); code != 0 {
		return cli.ExitCode(code)
	}
	return nil
}

// shareCores lets the kernel divide few cores between requests and long work, such as the store's compactions: Go's own scheduler
// would make requests wait for it 10 ms at a time. GOMAXPROCS in the environment wins.
func shareCores() {
	if _, set := os.LookupEnv("GOMAXPROCS"); !set && runtime.GOMAXPROCS(0) < 4 {
		runtime.GOMAXPROCS(4)
	}
}

// gcPercent is how much a server's heap grows before garbage is collected. What lives in it is small, some tens of megabytes, and most of what a
// request makes is gone with the request: at Go's default of 100, a tenth of all work is looking at what lives.
const gcPercent = 200

// collectLess has garbage collected less often. GOGC in the environment wins.
func collectLess() {
	if _, set := os.LookupEnv("GOGC"); !set {
		debug.SetGCPercent(gcPercent)
	}
}

// restore fills an empty store from a backup.
func restore(ctx context.Context, o cli.RestoreOptions) (cli.Restored, error) {
	made, err := node.Program{Version: version.String()}.Restore(ctx, o.Store, origin(o.Origin), o.Progress)
	return cli.Restored{Seq: made.Head.Seq, Incarnation: made.Head.Incarnation, TokenFile: made.TokenFile}, err
}

// admit makes a bootstrap token for a store, whose server does not run.
func admit(ctx context.Context, o cli.AdmitOptions) (string, error) {
	return node.Program{Version: version.String()}.Admit(ctx, o.Store)
}

// migrate moves a store, whose servers do not run.
func migrate(ctx context.Context, o cli.MigrateOptions) (cli.Migrated, error) {
	progress := func(p store.Stage) {
		o.Progress(cli.Passing{Doing: p.Doing, Done: p.Done.Rows, Total: p.Total.Rows, Bytes: p.Done.Bytes, BytesInTotal: p.Total.Bytes})
	}
	made, err := node.Program{Version: version.String()}.Migrate(ctx, o.Config, o.From, o.To, progress)
	return cli.Migrated{
		From: made.From, To: made.To, Seq: made.First.Seq, Incarnation: made.First.Incarnation, Rows: made.Rows, Records: made.Records,
	}, err
}

// takeover makes the state that is left of a store count, or goes along with that.
func takeover(ctx context.Context, o cli.TakeoverOptions) (cli.TakenOver, error) {
	p := node.Program{Version: version.String()}
	var made node.Taken
	var err error
	if o.Accept != "" {
		made, err = p.Accept(ctx, o.Store, o.Accept)
	} else {
		made, err = p.Takeover(ctx, o.Store, o.Force, o.Progress)
	}
	return cli.TakenOver{Seq: made.Head.Seq, Incarnation: made.Head.Incarnation, Hash: made.Hash, TokenFile: made.TokenFile}, err
}

// join makes this machine a server of a cluster.
func join(ctx context.Context, o cli.JoinOptions) (cli.Joined, error) {
	made, err := node.Program{Version: version.String()}.Join(ctx, node.Joining{
		Config: o.Config, KeyFile: o.KeyFile, Node: o.Node, Listen: o.Listen, CertFile: o.CertFile, CertKey: o.CertKey, APIAddr: o.APIAddr,
		ConnectionURLFile: o.ConnectionURLFile, Ask: o.Ask,
	})
	return cli.Joined(made), err
}

// verify checks a store, whose server does not run.
func verify(ctx context.Context, o cli.VerifyOptions) (cli.Verification, error) {
	found, err := node.Program{Version: version.String()}.Verify(ctx, o.Store, o.Progress)
	if err != nil {
		return cli.Verification{}, err
	}
	return verification(found), nil
}

func verification(found node.Verified) cli.Verification {
	v := cli.Verification{
		OK: found.Broken == nil, First: max(1, found.Pruned), Last: found.Head, Records: found.Records, HeadHash: found.HeadHash,
	}
	if found.Broken != nil {
		v.Broken = &cli.Broken{Reason: found.Broken.Error()}
	}
	return v
}

func origin(o cli.Origin) node.Origin {
	return node.Origin{File: o.File, Destination: o.Destination, Set: o.Set, At: o.At}
}

// points lists what can be restored from a destination.
func points(ctx context.Context, o cli.PointsOptions) (cli.Points, error) {
	found, broken, err := node.Program{Version: version.String()}.Points(ctx, o.Store, origin(o.Origin))
	all := cli.Points{Points: []cli.Point{}, Broken: append([]string{}, broken...)}
	for _, p := range found {
		all.Points = append(all.Points, cli.Point{Time: p.Time, Seq: p.Seq, Set: p.Set, Name: p.Name()})
	}
	return all, err
}

// drill tries whether a backup can be restored.
func drill(ctx context.Context, o cli.DrillOptions) (cli.Drilled, error) {
	found, err := node.Program{Version: version.String()}.Drill(ctx, o.Store, origin(o.Origin), node.DrillOptions{
		Scratch: o.Scratch, Recovery: o.Recovery, Progress: o.Progress,
	})
	return cli.Drilled{
		Verification: verification(found.Verified), Point: found.Point, Seq: found.Seq, Hash: found.Hash, Time: found.Time, Age: found.Age.Seconds(), Restore: found.Restore.Seconds(),
		Verify: found.Verify.Seconds(), Segments: found.Segments, Bytes: found.Bytes, Rows: found.Rows,
	}, err
}
