package operator

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

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
	Seq      uint64    `json:"sequence"`        // the last commit
	Hash     string    `json:"hash"`            // of that one's header, hex
	Time     time.Time `json:"time"`            // of that one
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
	var recovery, report bool
	command := a.Hybrid("drill [FILE]", "Try whether a backup can be restored: into a scratch folder, verified, and thrown away", `
The backup is named as for lessor operator restore. It is restored and unsealed with the seal's key, or with -recovery with the recovery file
alone, and verified wholly. Nothing of it is served, no target is touched, and the server may run meanwhile. Exit code 2: what was restored
is broken.

With -report the outcome, good or bad, is sent to the server, which keeps it (lessor operator drills), shows it in its metrics, and takes only that of a drill
of its own store. Nothing else of this command asks a server. The token needs update and sudo on sys/lessor/drills.`,
		0, 1, func(cmd *cobra.Command, args []string) error {
			from, err := origin(args)
			if err != nil {
				return session.Usage(cmd, "%s", err.Error())
			}
			var c *client.Client
			if report { // what is wrong with address or token is better known before
				if c, err = a.Unwrapped(); err != nil {
					return err
				}
			}
			a.Progress.Begin("restoring")
			o := DrillOptions{Origin: from, Store: store(), Scratch: scratch, Recovery: recovery, Progress: a.Progress.Say}
			found, failed := commands.Drill(cmd.Context(), o)
			if metrics != "" {
				err = session.WriteFile(metrics, 0o644, func(w io.Writer) error { return found.expose(w, failed == nil && found.OK, time.Now()) })
			}
			if report && cmd.Context().Err() == nil { // a drill that was broken off tells nothing
				a.Progress.Say("reporting")
				_, told := c.Write(cmd.Context(), drills, found.report(failed, recovery))
				err = errors.Join(err, told)
			}
			if err = errors.Join(failed, err); err != nil {
				return err
			}
			return found.print(a)
		})
	f := command.Flags()
	f.StringVar(&scratch, "scratch", "", "restore below this `folder` (default: that of temporary files)")
	f.StringVar(&metrics, "metrics-file", "", "write the outcome to this `file`, for the textfile collector of Prometheus's node_exporter")
	f.BoolVar(&report, "report", false, "report the outcome to the server")
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
			byteSize(d.Bytes), d.Segments, d.Seq, d.Time.Format(time.RFC3339), seconds(d.Age), seconds(d.Restore), d.Rows, d.Records, seconds(d.Verify))
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

// drills is where the server keeps what was reported of drills.
const drills = "sys/lessor/drills"

// longestFailure is how much of an error the server takes, in bytes.
const longestFailure = 512

// report is what the server is told of a drill that ended with failed; nil: with what was found.
func (d *Drilled) report(failed error, recovery bool) map[string]any {
	why := ""
	switch {
	case failed != nil:
		why = failed.Error()
	case !d.OK && d.Broken != nil:
		why = d.Broken.Reason
	case !d.OK:
		why = "what was restored is broken"
	}
	if why != "" {
		why = session.PrintableLine(why)
		return map[string]any{"error": strings.ToValidUTF8(why[:min(len(why), longestFailure)], "")}
	}
	return map[string]any{
		"sequence": d.Seq, "hash": d.Hash, "restore_time": d.Restore, "verify_time": d.Verify, "bytes": d.Bytes, "rows": d.Rows, "records": d.Records,
		"recovery": recovery,
	}
}

func operatorDrills(a *session.Session) *cobra.Command {
	var most string
	command := a.Remote("drills", "List the restore drills that were reported to the server", `
The latest ones, and the last that found a backup which is whole, as lessor operator drill -report reported them. With -max-age, exit code 2
says that this one, or what it restored, is older, or that there is none.`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			limit := time.Duration(0)
			if most != "" {
				var err error
				if limit, err = client.ParseDuration(most); err != nil {
					return session.Usage(cmd, "-max-age: %s", err.Error())
				}
			}
			c, err := a.Unwrapped()
			if err != nil {
				return err
			}
			if err := printDrills(a, cmd, c); err != nil || most == "" {
				return err
			}
			return checkDrills(a, cmd, c, limit)
		})
	command.Flags().StringVar(&most, "max-age", "", "how long ago the last good drill, and the last commit that it restored, may have been, such as 8d")
	return command
}

// printDrills lists what the server keeps, the latest first.
func printDrills(a *session.Session, cmd *cobra.Command, c *client.Client) error {
	answer, err := c.List(cmd.Context(), drills+"/")
	if refused, ok := errors.AsType[*client.Error](err); ok && refused.Status == http.StatusNotFound && len(refused.Errors) == 0 {
		return a.Print(map[string]any{"keys": []string{}}, func() error { return a.Say("None was reported.") })
	}
	if err != nil {
		return err
	}
	var found struct {
		Keys  []string `json:"keys"`
		Drill map[string]struct {
			Time    time.Time `json:"time"`
			By      string    `json:"reported_by"`
			OK      bool      `json:"ok"`
			Error   string    `json:"error"`
			Made    time.Time `json:"backup_time"`
			Restore float64   `json:"restore_seconds"`
			Verify  float64   `json:"verify_seconds"`
		} `json:"key_info"`
	}
	if err := answer.Decode(&found); err != nil {
		return err
	}
	a.Warn(answer)
	return a.Print(answer, func() error {
		var rows []session.Row
		for i := len(found.Keys) - 1; i >= 0; i-- {
			d := found.Drill[found.Keys[i]]
			outcome, took := "FAILED", ""
			if d.OK {
				outcome, took = "whole", seconds(d.Restore+d.Verify)
			}
			rows = append(rows, session.Row{
				session.Moment(d.Time), outcome, session.Moment(d.Made), session.Dash(took), session.PrintableLine(session.Dash(d.By)), session.PrintableLine(session.Dash(d.Error)),
			})
		}
		return a.Table(session.Row{"Time", "Backup", "Of", "Took", "Reported By", "Error"}, rows)
	})
}

// checkDrills ends the program with code 2 unless a good drill was reported within the limit, of a backup that is within it, too, by the server's clock.
func checkDrills(a *session.Session, cmd *cobra.Command, c *client.Client, limit time.Duration) error {
	answer, err := c.Read(cmd.Context(), drills, nil)
	if err != nil {
		return err
	}
	var found freshness
	if err := answer.Decode(&found); err != nil {
		return err
	}
	complaint := found.complaint(limit)
	if complaint == "" {
		return nil
	}
	a.Complain("%s", complaint)
	return session.ExitCode(session.ExitRemote)
}

// freshness is how long ago the last good drill was, and the last commit that it restored, in seconds. nil: there is none, or an older server does
// not tell.
type freshness struct {
	Drill  *float64 `json:"last_good_age_seconds"`
	Backup *float64 `json:"last_good_backup_age_seconds"`
}

// complaint says what is longer ago than a limit; empty: nothing is.
func (f *freshness) complaint(limit time.Duration) string {
	switch most := limit.Seconds(); {
	case f.Drill == nil:
		return "No drill was reported that found a backup which is whole: run lessor operator drill -report."
	case *f.Drill > most:
		return fmt.Sprintf("The last drill that found a backup which is whole was %s ago.", session.Seconds(int64(*f.Drill)))
	case f.Backup != nil && *f.Backup > most:
		return fmt.Sprintf("The last drill that found a backup which is whole restored nothing later than of %s ago: run one with a newer backup.", session.Seconds(int64(*f.Backup)))
	}
	return ""
}
