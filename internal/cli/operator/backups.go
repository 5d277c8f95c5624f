package operator

import (
	"bytes"
	"errors"
	"fmt"
	"io"
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

// DrillOptions ask for a drill.
type DrillOptions struct {
	Origin
	Store    []string // flags that name the configuration and the key, as ServerOptions.Args
	Scratch  string   // folder to restore below; empty: the system's temporary one
	Recovery bool     // unseal by the recovery file only
	Progress func(doing string)
}

// Drilled is what a drill found.
type Drilled struct {
	session.Verification
	Point    string    `json:"point,omitempty"`
	Time     time.Time `json:"time"`            // of the last commit
	Age      float64   `json:"age_seconds"`     // since then
	Restore  float64   `json:"restore_seconds"` // that restoring took
	Verify   float64   `json:"verify_seconds"`  // that verifying took
	Segments int       `json:"segments"`
	Bytes    int64     `json:"bytes"`
	Rows     uint64    `json:"rows"`
}

func operatorDrill(a *session.Session, commands Commands) *cobra.Command {
	var store func() []string
	var origin func([]string) (Origin, error)
	var scratch, metrics string
	var recovery bool
	command := a.Local("drill [FILE]", "Try whether a backup can be restored: into a scratch folder, verified, and thrown away", `
The backup is named as for lessor operator restore. It is restored and unsealed with the seal's key, or with -recovery with the recovery file
alone, and verified wholly. Nothing of it is served, no target is touched, and the server may run meanwhile. Exit code 2: what was restored
is broken.`,
		0, 1, func(cmd *cobra.Command, args []string) error {
			from, err := origin(args)
			if err != nil {
				return session.Usage(cmd, "%s", err.Error())
			}
			a.Progress.Begin("restoring")
			o := DrillOptions{Origin: from, Store: store(), Scratch: scratch, Recovery: recovery, Progress: a.Progress.Say}
			found, err := commands.Drill(cmd.Context(), o)
			if metrics != "" {
				told := session.WriteFile(metrics, 0o644, func(w io.Writer) error { return found.expose(w, err == nil && found.OK, time.Now()) })
				err = errors.Join(err, told)
			}
			if err != nil {
				return err
			}
			return found.print(a)
		})
	f := command.Flags()
	f.StringVar(&scratch, "scratch", "", "restore below this `folder` (default: that of temporary files)")
	f.StringVar(&metrics, "metrics-file", "", "write the outcome to this `file`, for the textfile collector of Prometheus's node_exporter")
	f.BoolVar(&recovery, "recovery", false, "unseal with the recovery file alone, to see whether that works")
	store, origin = storeFlags(command), originFlags(command, true)
	return command
}

func (d *Drilled) print(a *session.Session) error {
	err := a.Print(d, func() error {
		if !d.OK {
			return nil
		}
		return a.Say("Restored %s in %d segments up to commit %d of %s (%s ago) in %s; verified %d rows and %d audit records in %s.",
			byteSize(d.Bytes), d.Segments, d.Last-1, d.Time.Format(time.RFC3339), seconds(d.Age), seconds(d.Restore), d.Rows, d.Records, seconds(d.Verify))
	})
	if f, formatErr := a.Format(); err == nil && formatErr == nil && (f == session.FormTable || !d.OK) {
		if f == session.FormTable {
			return a.PrintVerification(d.Verification)
		}
		return session.ExitCode(session.ExitRemote)
	}
	return err
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(10 * time.Millisecond).String()
}

// expose writes the outcome of a drill that ended at now in Prometheus's text format.
func (d *Drilled) expose(w io.Writer, ok bool, now time.Time) error {
	var b bytes.Buffer
	gauge := func(name, help string, value float64) {
		fmt.Fprintf(&b, "# HELP lessor_drill_%s %s\n# TYPE lessor_drill_%s gauge\nlessor_drill_%s %g\n", name, help, name, name, value)
	}
	success := 0.0
	if ok {
		success = 1
	}
	gauge("success", "1 if the last drill restored a backup that is whole.", success)
	gauge("timestamp_seconds", "When the last drill ended.", float64(now.UnixMilli())/1000)
	if ok {
		gauge("backup_age_seconds", "How old the backup was that the last drill restored.", d.Age)
		gauge("restore_seconds", "How long restoring took.", d.Restore)
		gauge("verify_seconds", "How long verifying took.", d.Verify)
		gauge("bytes", "How large the backup was.", float64(d.Bytes))
		gauge("rows", "How many rows were verified.", float64(d.Rows))
		gauge("records", "How many audit records were verified.", float64(d.Records))
	}
	_, err := w.Write(b.Bytes())
	return err
}
