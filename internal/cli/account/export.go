package account

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

const exportPath = "sys/lessor/audit/export"

func auditExport(a *session.Session) *cobra.Command {
	var from, to string
	command := a.Remote("export FILE", "Write a part of the audit trail to a file that can be verified without the server", `
The file has a line of JSON for each commit: its header, and its audit records. Days begin at midnight UTC. If the file is there already,
as after an export that was broken off, it is checked, and what is missing is added.

  lessor audit export -from=2026-01-31 -to=2026-02-01 january-31.jsonl
  lessor audit verify january-31.jsonl`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			query := url.Values{}
			for name, text := range map[string]string{"since": from, "before": to} {
				if text == "" {
					continue
				}
				t, err := moment(text)
				if err != nil {
					return session.Usage(cmd, "%s is neither a day such as 2026-01-31 nor a time such as 2026-01-31T08:00:00Z", text)
				}
				query.Set(name, t.Format(time.RFC3339Nano))
			}
			c, err := a.Connect()
			if err != nil {
				return err
			}
			file, err := os.OpenFile(args[0], os.O_RDWR|os.O_CREATE, 0o600)
			if err != nil {
				return err
			}
			err = export(cmd.Context(), c.WithWrapTTL(0), query, file)
			if err = errors.Join(err, file.Close()); err != nil {
				return err
			}
			found, err := readExport(args[0])
			if err != nil {
				return fmt.Errorf("what was exported does not hold: %w", err)
			}
			told := tell(&found)
			return told.print(a, "Exported to "+args[0])
		})
	f := command.Flags()
	f.StringVar(&from, "from", "", "from this `day` or time on (default the beginning)")
	f.StringVar(&to, "to", "", "before this `day` or time (default now)")
	return command
}

// moment is a day, from its beginning (UTC), or a time.
func moment(text string) (time.Time, error) {
	if t, err := time.Parse(time.DateOnly, text); err == nil {
		return t, nil
	}
	return time.Parse(time.RFC3339, text)
}

// export adds to file what it has not of the range that query names, and makes it durable.
func export(ctx context.Context, c *client.Client, query url.Values, file *os.File) error {
	have, err := audit.ReadExport(file)
	if errors.Is(err, audit.ErrCut) && begun(file) {
		err = file.Truncate(have.Size)
	}
	if err != nil {
		return fmt.Errorf("%s is there and is no export that could be continued, name another file: %w", file.Name(), err)
	}
	if _, err := file.Seek(have.Size, io.SeekStart); err != nil {
		return err
	}
	if have.Commits > 0 {
		query.Set("from", strconv.FormatUint(have.Last.Seq+1, 10))
	}
	body, _, err := c.Stream(ctx, client.Request{Method: http.MethodGet, Path: exportPath, Query: query})
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	if _, err := io.Copy(file, body); err != nil {
		return fmt.Errorf("the export broke off: give the same command again to go on: %w", err)
	}
	return file.Sync()
}

// begun reports whether file begins as an export does, so that cutting off its last line loses nothing of anybody's.
func begun(file *os.File) bool {
	const start = `{"seq":`
	b := make([]byte, len(start))
	n, _ := file.ReadAt(b, 0)
	return string(b[:n]) == start[:n]
}

func readExport(name string) (audit.Exported, error) {
	file, err := os.Open(name)
	if err != nil {
		return audit.Exported{}, err
	}
	defer func() { _ = file.Close() }()
	return audit.ReadExport(file)
}

// exported is what a file holds, as it is told.
type exported struct {
	OK      bool   `json:"ok"`
	First   uint64 `json:"first_seq"`
	Last    uint64 `json:"last_seq"`
	From    string `json:"first_time"`
	To      string `json:"last_time"`
	Records uint64 `json:"records"`
	Gone    uint64 `json:"pruned_commits"` // whose records had been pruned before
	Hash    string `json:"last_hash"`
	Chain   bool   `json:"in_chain"` // the server was asked, and its chain has the last commit
	Broken  string `json:"broken,omitempty"`
}

func tell(found *audit.Exported) exported {
	return exported{
		OK: true, First: found.First.Seq, Last: found.Last.Seq, From: found.First.Time.UTC().Format(time.RFC3339Nano), To: found.Last.Time.UTC().Format(time.RFC3339Nano),
		Records: found.Records, Gone: found.Gone, Hash: hex.EncodeToString(found.Hash[:]),
	}
}

func (e *exported) print(a *session.Session, what string) error {
	return a.Print(e, func() error {
		switch {
		case !e.OK:
			return a.Say("The file is BROKEN: %s", session.PrintableLine(e.Broken))
		case e.Last == 0:
			return a.Say("%s: there are no commits in it.", what)
		}
		err := a.Say("%s: commits %d to %d, %d records, %s to %s, last commit %s", what, e.First, e.Last, e.Records, e.From, e.To, e.Hash)
		if err == nil && e.Gone > 0 {
			err = a.Say("The records of %d of these commits had been pruned before.", e.Gone)
		}
		if err == nil && e.Chain {
			err = a.Say("The server's chain has that commit.")
		}
		return err
	})
}

// errOther is the error of a file that is not of the server's chain.
var errOther = errors.New("the server's commit is another than the file's: the file, or the chain, was made anew")

// inChain asks the server for the commit that the file ends with, and compares.
func inChain(ctx context.Context, c *client.Client, found *audit.Exported) error {
	query := url.Values{"from": {strconv.FormatUint(found.Last.Seq, 10)}, "limit": {"1"}}
	body, _, err := c.Stream(ctx, client.Request{Method: http.MethodGet, Path: exportPath, Query: query})
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	theirs, err := audit.ReadExport(body)
	if err != nil {
		return err
	}
	if theirs.Commits != 1 || theirs.Hash != found.Hash {
		return fmt.Errorf("%w: commit %d", errOther, found.Last.Seq)
	}
	return nil
}

func auditVerify(a *session.Session) *cobra.Command {
	var compare bool
	command := a.Remote("verify [FILE]", "Verify the audit chain from end to end, or a file that was exported from it", `
It recomputes every hash and names the first record that does not fit. Exit code 2: the chain is broken.

A FILE is verified without the server: that it is one whole piece of a chain, and that its records are those of the chain. Whose chain it is follows
from the hash of its last commit: -compare asks the server whether that is its own.`,
		0, 1, func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return verifyFile(cmd, a, args[0], compare)
			}
			if compare {
				return session.Usage(cmd, "-compare is for a FILE")
			}
			c, err := a.Connect()
			if err != nil {
				return err
			}
			answer, err := c.WithTimeout(0).WithWrapTTL(0).Read(cmd.Context(), "sys/lessor/audit/verify", nil)
			if err != nil {
				return err
			}
			var found session.Verification
			if err := answer.Decode(&found); err != nil {
				return err
			}
			a.Warn(answer)
			return a.PrintVerification(found)
		})
	command.Flags().BoolVar(&compare, "compare", false, "ask the server whether its chain has the last commit of FILE")
	return command
}

func verifyFile(cmd *cobra.Command, a *session.Session, name string, compare bool) error {
	found, err := readExport(name)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return err
	}
	told := tell(&found)
	if err == nil && compare && found.Commits > 0 {
		c, refused := a.Connect()
		if refused != nil {
			return refused
		}
		if err = inChain(cmd.Context(), c.WithWrapTTL(0), &found); err != nil && !errors.Is(err, errOther) {
			return err
		}
		told.Chain = err == nil
	}
	if err != nil {
		told.OK, told.Broken = false, err.Error()
	}
	if err := told.print(a, "The file holds"); err != nil || told.OK {
		return err
	}
	return session.ExitCode(session.ExitRemote)
}
