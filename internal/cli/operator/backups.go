package operator

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/internal/cli/session"
)

// Origin names a backup: a file, or else a point of a destination.
type Origin struct {
	File        string
	Destination string    // URL; empty: the configuration's
	Set         string    // only of this set, or the point of this name; empty: of all
	At          time.Time // the last point at or before this time; zero: the last of all
}

// originFlags say which point is meant, if it is no file that is named: or which points, if not timed. What they return gives it back, once
// the command line is parsed.
func originFlags(command *cobra.Command, timed bool) func(args []string) (Origin, error) {
	f := command.Flags()
	destination := f.String("destination", "", "`URL` of what was backed up to, file:///folder or s3://bucket/prefix (default: as the configuration says)")
	set := f.String("set", "", "only what is in this `set`, or the point of this name")
	at := new(string)
	if timed {
		f.StringVar(at, "at", "", "the last point at or before this `time`, in RFC 3339 (default: the last)")
	}
	return func(args []string) (Origin, error) {
		o := Origin{Destination: *destination, Set: *set}
		if len(args) > 0 {
			o.File = args[0]
		}
		if *at != "" {
			var err error
			if o.At, err = time.Parse(time.RFC3339Nano, *at); err != nil {
				return o, fmt.Errorf("-at must be a time like %s", time.Date(2026, 11, 29, 7, 30, 0, 0, time.UTC).Format(time.RFC3339))
			}
		}
		if o.File != "" && (o.Destination != "" || o.Set != "" || *at != "") {
			return o, errors.New("name a FILE, or a destination, not both")
		}
		return o, nil
	}
}

// PointsOptions ask what a destination has.
type PointsOptions struct {
	Origin
	Store []string // flags that name the configuration, as ServerOptions.Args
}

// Points are what a destination has.
type Points struct {
	Points []Point  `json:"points"`
	Broken []string `json:"broken"` // what is missing, in words
}

// Point is one at which a store can be restored.
type Point struct {
	Time time.Time `json:"time"`
	Seq  uint64    `json:"sequence"` // its last commit
	Set  string    `json:"set"`
	Name string    `json:"name"`
}

const backups = "sys/lessor/backups"

func operatorBackups(a *session.Session, commands Commands) *cobra.Command {
	status := a.Remote("status", "Tell how the backups fare that the server makes by itself", "",
		0, 0, func(cmd *cobra.Command, _ []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			answer, err := c.Read(cmd.Context(), backups, nil)
			if err != nil {
				return err
			}
			return a.PrintAnswer(answer, "")
		})
	run := a.Remote("run", "Make the server back up now, rather than when the next backup is due", "",
		0, 0, func(cmd *cobra.Command, _ []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			answer, err := c.Write(cmd.Context(), backups, nil)
			if err != nil {
				return err
			}
			return a.PrintAnswer(answer, "")
		})
	children := []*cobra.Command{status, run}
	if commands.Points != nil {
		children = append(children, operatorPoints(a, commands))
	}
	return session.Group("backups", "See and make backups in the folder or bucket that the server's configuration names", "", children...)
}

func operatorPoints(a *session.Session, commands Commands) *cobra.Command {
	var store func() []string
	var origin func([]string) (Origin, error)
	command := a.Local("list", "List the points that can be restored, without a server", `
Each is a state of the store, named by the time of its last commit. Exit code 2: something is missing.`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			from, err := origin(nil)
			if err != nil {
				return session.Usage(cmd, "%s", err.Error())
			}
			found, err := commands.Points(cmd.Context(), PointsOptions{Origin: from, Store: store()})
			if err != nil {
				return err
			}
			err = a.Print(found, func() error {
				rows := []session.Row{}
				for _, p := range found.Points {
					rows = append(rows, session.Row{p.Time.Format(time.RFC3339Nano), fmt.Sprint(p.Seq), p.Set})
				}
				return a.Table(session.Row{"Time", "Commit", "Set"}, rows)
			})
			for _, broken := range found.Broken {
				a.Complain("%s", session.PrintableLine(broken))
			}
			if err == nil && len(found.Broken) > 0 {
				return session.ExitCode(session.ExitRemote)
			}
			return err
		})
	store, origin = storeFlags(command), originFlags(command, false)
	return command
}
