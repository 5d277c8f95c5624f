package operator

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/internal/cli/session"
)

// MigrateOptions ask for a move of a store, either by Config or by From and To.
type MigrateOptions struct {
	Config   []string // files with the stanzas storage_source and storage_destination
	From, To []string // flags that name a store and its key, as ServerOptions.Args
	Progress func(Passing)
}

// Passing tells how far a move came: of rows while copying, of commits while verifying.
type Passing struct {
	Doing               string // "counting", "copying" or "verifying"
	Done, Total         uint64 // Total 0: not known yet
	Bytes, BytesInTotal uint64 // 0 but for copying
}

// Migrated is what a move did.
type Migrated struct {
	From        string `json:"from"`
	To          string `json:"to"`
	Seq         uint64 `json:"sequence"` // of the first commit at the destination
	Incarnation uint64 `json:"incarnation"`
	Rows        uint64 `json:"rows"`
	Records     uint64 `json:"records"`
}

func operatorMigrate(a *session.Session, commands Commands) *cobra.Command {
	var o MigrateOptions
	var from, to []string
	command := a.Local("migrate", "Move a store elsewhere, with its servers stopped: into PostgreSQL, or back", `
The store stays what it is: tokens, leases and the audit trail go on at the destination, whose servers need the same keys in
their place. Either name the two servers' configurations, or one file with the stanzas storage_source and
storage_destination, which are written as storage is, and the seal:

  lessor operator migrate -from=embedded.hcl -to=postgresql.hcl

A move that is cut off goes on where it was when the same command is run again. What was copied is verified before it counts. Then
the source is marked as moved and does not start any more; take it away when the new servers run.`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			if (len(o.Config) > 0) == (len(from) > 0 || len(to) > 0) || (len(from) > 0) != (len(to) > 0) {
				return session.Usage(cmd, "say either -config, or -from and -to")
			}
			o.From, o.To = configs(from), configs(to)
			w := &passage{say: a.Progress.Say, line: func(text string) { a.Complain("%s", text) }, lines: !a.Progress.Watched(), now: time.Now}
			o.Progress = w.tell
			a.Progress.Begin("migrating")
			made, err := commands.Migrate(cmd.Context(), o)
			if err != nil {
				return err
			}
			return a.Print(made, func() error {
				return a.Say("Moved from %s to %s: %d rows and %d audit records, all verified.\nThe first commit there is %d. Start the servers there; "+
					"the source is marked as moved, and does not start.", made.From, made.To, made.Rows, made.Records, made.Seq)
			})
		})
	f := command.Flags()
	f.StringArrayVar(&o.Config, "config", nil, "`file` with both ends of the move; may be repeated")
	f.StringArrayVar(&from, "from", nil, "configuration `file` of the server whose store it is; may be repeated")
	f.StringArrayVar(&to, "to", nil, "configuration `file` of the server to be; may be repeated")
	return command
}

func configs(files []string) (args []string) {
	for _, file := range files {
		args = append(args, "-config="+file)
	}
	return args
}

// passage tells the person who waits how far a move came: in one line that changes, or in lines of their own, one every ten seconds.
type passage struct {
	say   func(string)
	line  func(string)
	lines bool
	now   func() time.Time

	doing string
	began time.Time
	first uint64 // Done when it began: what an earlier try did
	told  time.Time
}

const lineEvery = 10 * time.Second

func (p *passage) tell(at Passing) {
	now := p.now()
	if at.Doing != p.doing {
		p.doing, p.began, p.first, p.told = at.Doing, now, at.Done, time.Time{}
	}
	text := at.describe(now.Sub(p.began), p.first)
	p.say(text)
	if p.lines && now.Sub(p.told) >= lineEvery {
		p.told = now
		p.line(text)
	}
}

// barWidth is how many characters a bar has.
const barWidth = 20

// describe is one line on how far it came in the time since Done was first.
func (at Passing) describe(since time.Duration, first uint64) string {
	unit := map[bool]string{true: "commits", false: "rows"}[at.Doing == "verifying"]
	if at.Total == 0 {
		return fmt.Sprintf("%s: %d %s", at.Doing, at.Done, unit)
	}
	part := min(float64(at.Done)/float64(at.Total), 1)
	full := int(part * barWidth)
	text := fmt.Sprintf("%s [%s%s] %d %%, %d of %d %s", at.Doing, strings.Repeat("#", full), strings.Repeat(".", barWidth-full),
		int(part*100), at.Done, at.Total, unit)
	if at.BytesInTotal > 0 {
		text += fmt.Sprintf(", %s of %s", byteSize(int64(at.Bytes)), byteSize(int64(at.BytesInTotal)))
	}
	if done := at.Done - min(first, at.Done); done > 0 && since >= time.Second && at.Done < at.Total {
		left := time.Duration(float64(since) / float64(done) * float64(at.Total-at.Done))
		text += fmt.Sprintf(", %s left", left.Round(time.Second))
	}
	return text
}

// TakeoverOptions ask that the state that a store is in counts, where a later one is lost.
type TakeoverOptions struct {
	Store    []string // flags that name the store and its key, as ServerOptions.Args
	Force    bool     // though nothing tells that a later state is lost
	Accept   string   // go along with the takeover on another node that began with the commit of this hash; empty: take over
	Progress func(doing string)
}

// TakenOver is what a takeover made, or what was accepted.
type TakenOver struct {
	Seq         uint64 `json:"sequence"` // the last commit
	Incarnation uint64 `json:"incarnation"`
	Hash        string `json:"hash,omitempty"` // of the first commit of the incarnation
	TokenFile   string `json:"bootstrap_token_file,omitempty"`
}

func operatorTakeover(a *session.Session, commands Commands) *cobra.Command {
	var store func() []string
	var o TakeoverOptions
	command := a.Local("takeover", "Take over the earlier state that is left of a store, with its servers stopped", `
For a database that was restored to an earlier time, or what is left of a store in some other way, where its latest state is lost. It
becomes a new incarnation of the store, fenced as a restored backup is: its servers touch no database and revoke nothing
until lessor operator fence resume. Tokens, wrapped answers and approvals of before are void.

The anchors of the other nodes remember the state that was lost. There, say -accept with the hash that the takeover told,
which keeps anybody from putting another copy in its place.`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			o.Store, o.Progress = store(), a.Progress.Say
			if o.Accept != "" && o.Force {
				return session.Usage(cmd, "-accept and -force are for two different things")
			}
			a.Progress.Begin("taking over")
			made, err := commands.Takeover(cmd.Context(), o)
			if err != nil {
				return err
			}
			return a.Print(made, func() error {
				if o.Accept != "" {
					return a.Say("Success! This node goes along with incarnation %d, up to commit %d.", made.Incarnation, made.Seq)
				}
				return a.Say("Taken over up to commit %d, as incarnation %d. The store is fenced: start it, look whether it is what you want,\n"+
					"and lift the fence with lessor operator fence resume. All earlier tokens are void.\nBootstrap Token File: %s\n"+
					"On each other node, before its start: lessor operator takeover -accept=%s", made.Seq, made.Incarnation, made.TokenFile, made.Hash)
			})
		})
	f := command.Flags()
	f.BoolVar(&o.Force, "force", false, "take over though nothing tells that a later state is lost")
	f.StringVar(&o.Accept, "accept", "", "go along with the takeover on another node whose first commit has this `hash`")
	store = storeFlags(command)
	return command
}
