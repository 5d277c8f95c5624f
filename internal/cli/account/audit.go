package account

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

// Audit is the group audit.
func Audit(a *session.Session) *cobra.Command {
	return session.Group("audit", "Read the audit trail: who did what, when, and by which rule; and let it go out to devices", "",
		auditTail(a), auditTimeline(a), auditExport(a), auditVerify(a), auditEnable(a), auditDisable(a), auditList(a))
}

// record is one audit record, as far as its line tells of it.
type record struct {
	Time          time.Time `json:"time"`
	Seq           uint64    `json:"seq"`
	Index         uint64    `json:"index"`
	Operation     string    `json:"operation"`
	Path          string    `json:"path"`
	Phase         string    `json:"phase"`
	Outcome       string    `json:"outcome"`
	Rule          string    `json:"rule"`
	Policy        string    `json:"policy"`
	PolicyVersion uint64    `json:"policy_version"`
	Entity        string    `json:"entity_id"`
	Name          string    `json:"display_name"`
	Alias         string    `json:"alias"`
	Accessor      string    `json:"accessor"`
	Role          string    `json:"role"`
	Client        string    `json:"client_address"`
	Lease         string    `json:"lease_id"`
	Error         string    `json:"error"`
	Cause         string    `json:"cause"`
	System        string    `json:"system"`
	Count         uint64    `json:"count"`
	Secrets       []struct {
		Path    string `json:"path"`
		Version uint64 `json:"version"`
		How     string `json:"how"`
	} `json:"secrets"`
}

// recordPage is an answer that holds records.
type recordPage struct {
	Records []record `json:"records"`
	Next    string   `json:"next"`
}

var recordHeadings = session.Row{"Time", "Identity", "Operation", "Path", "Outcome", "Rule", "Policy", "Lease"}

// line tells a record on one line.
func (r *record) line() session.Row {
	cells := session.Row{
		r.Time.UTC().Format("2006-01-02T15:04:05.000000Z"),
		r.identity(), r.Operation, r.place(), r.outcome(), r.Rule, r.policy(), r.Lease,
	}
	for i := range cells {
		cells[i] = session.Dash(session.PrintableLine(cells[i]))
	}
	return cells
}

// identity names who acted, by the name that says most to people.
func (r *record) identity() string {
	if r.System != "" {
		if r.Cause != "" {
			return "system:" + r.System + " (" + r.Cause + ")"
		}
		return "system:" + r.System
	}
	if name := cmp.Or(r.Name, r.Alias, r.Entity, r.Accessor); name != "" {
		if r.Role != "" {
			name += " as " + r.Role
		}
		return name
	}
	return strings.TrimSpace("anonymous " + r.Client)
}

// place is the path, with the version where one of it was shown or written.
func (r *record) place() string {
	if len(r.Secrets) == 1 && r.Secrets[0].Version > 0 {
		return fmt.Sprintf("%s v%d", r.Path, r.Secrets[0].Version)
	}
	return r.Path
}

func (r *record) outcome() string {
	text := r.Outcome
	if r.Phase != "" && r.Phase != "done" && r.Phase != r.Outcome {
		text += ", " + r.Phase
	}
	if r.Error != "" && r.Error != r.Outcome {
		text += ": " + r.Error
	}
	if r.Count > 1 {
		text += fmt.Sprintf(" (%d times)", r.Count)
	}
	return text
}

func (r *record) policy() string {
	if r.Policy == "" || r.PolicyVersion == 0 {
		return r.Policy
	}
	return fmt.Sprintf("%s@%d", r.Policy, r.PolicyVersion)
}

func auditTimeline(a *session.Session) *cobra.Command {
	var identity, from, to string
	var limit int
	command := a.Remote("timeline PATH", "Tell all that happened to a path, oldest first", `
One line a record: exact time, identity, operation, path, outcome, the rule that decided, its policy and version, lease.
-format=json shows everything that was recorded.

  lessor audit timeline secret/data/app
  lessor audit timeline -identity=approle-billing -from=2026-01-31T08:00:00Z secret/data/app`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			query := url.Values{"path": {session.CleanPath(args[0])}}
			for name, text := range map[string]string{"from": from, "to": to} {
				if text == "" {
					continue
				}
				if _, err := time.Parse(time.RFC3339, text); err != nil {
					return session.Usage(cmd, "-%s must be a time such as 2026-01-31T08:00:00Z", name)
				}
				query.Set(name, text)
			}
			if limit < 1 {
				return session.Usage(cmd, "-limit must be 1 or more")
			}
			c, err := a.Connect()
			if err != nil {
				return err
			}
			c = c.WithWrapTTL(0)
			if identity != "" {
				query.Set("identity", identity)
			}
			records, raw, more, err := timeline(cmd.Context(), c, query, limit)
			if err != nil {
				return err
			}
			err = a.Print(raw, func() error {
				if len(records) == 0 {
					return a.Say("Nothing is on record for %s.", session.PrintableLine(args[0]))
				}
				rows := make([]session.Row, len(records))
				for i := range records {
					rows[i] = records[i].line()
				}
				return a.Table(recordHeadings, rows)
			})
			if err == nil && more {
				a.Complain("There is more before that: raise -limit, or choose a time with -from and -to.")
			}
			return err
		})
	f := command.Flags()
	f.StringVar(&identity, "identity", "", "only what this `name` did: a display name, an entity's id or a token's accessor")
	f.StringVar(&from, "from", "", "only from this `time` on (RFC 3339)")
	f.StringVar(&to, "to", "", "only before this `time` (RFC 3339)")
	f.IntVar(&limit, "limit", 1000, "`number` of records at most")
	return command
}

// timeline asks page by page for the newest records, at most limit. It returns them oldest first, decoded and as they
// came, and whether there are older ones.
func timeline(ctx context.Context, c *client.Client, query url.Values, limit int) (records []record, raw []any, more bool, err error) {
	for {
		query.Set("limit", strconv.Itoa(limit-len(records)))
		answer, err := c.Read(ctx, "sys/lessor/audit/timeline", query)
		if err != nil {
			return nil, nil, false, err
		}
		var page recordPage
		if err := answer.Decode(&page); err != nil {
			return nil, nil, false, err
		}
		records = append(records, page.Records...)
		list, _ := answer.Data["records"].([]any)
		raw = append(raw, list...)
		if page.Next == "" || len(page.Records) == 0 {
			break
		}
		if len(records) >= limit {
			more = true
			break
		}
		query.Set("after", page.Next)
	}
	sortRecords(records, raw)
	return records, raw, more, nil
}

// sortRecords puts both forms of the same records into the order of the chain.
func sortRecords(records []record, raw []any) {
	order := make([]int, len(records))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(x, y int) int {
		return cmp.Or(cmp.Compare(records[x].Seq, records[y].Seq), cmp.Compare(records[x].Index, records[y].Index))
	})
	sorted, sortedRaw := slices.Clone(records), slices.Clone(raw)
	for to, from := range order {
		sorted[to] = records[from]
		if from < len(raw) && to < len(sortedRaw) {
			sortedRaw[to] = raw[from]
		}
	}
	copy(records, sorted)
	copy(raw, sortedRaw)
}

// tailWait is how long the server holds a call that has nothing to tell.
const tailWait = 30 * time.Second

func auditTail(a *session.Session) *cobra.Command {
	var from uint64
	var once bool
	command := a.Remote("tail", "Show audit records as they are written", `
It goes on until it is interrupted. -format=json writes one JSON object a line.`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			f, err := a.Format()
			if err != nil {
				return err
			}
			wait := tailWait
			if once {
				wait = 0
			}
			c = c.WithWrapTTL(0).WithTimeout(tailWait + time.Minute)
			query := url.Values{"wait": {wait.String()}}
			if cmd.Flags().Changed("from") {
				query.Set("from", strconv.FormatUint(from, 10))
			}
			lines := tailLines{Session: a, form: f}
			for {
				answer, err := c.Read(cmd.Context(), "sys/lessor/audit/tail", query)
				if err != nil {
					if cmd.Context().Err() != nil {
						return nil // the usual end
					}
					return err
				}
				a.Progress.End()
				if err := lines.write(answer); err != nil || once {
					return err
				}
				var page recordPage
				if err := answer.Decode(&page); err != nil {
					return err
				}
				if page.Next == "" {
					return fmt.Errorf("the server did not say where to go on")
				}
				query.Set("from", page.Next)
			}
		})
	command.Flags().Uint64Var(&from, "from", 0, "begin with the commit of this `sequence` (default what comes next)")
	command.Flags().BoolVar(&once, "once", false, "show what there is, and end")
	return command
}

// tailLines writes records as they come, in columns that grow and never shrink.
type tailLines struct {
	Session *session.Session
	form    session.Form
	widths  []int
}

func (l *tailLines) write(answer *client.Response) error {
	if l.form != session.FormTable {
		list, _ := answer.Data["records"].([]any)
		for _, element := range list {
			text, err := session.Compact(element)
			if err != nil {
				return err
			}
			if l.form == session.FormYAML {
				document, err := session.Yaml([]byte(text))
				if err != nil {
					return err
				}
				text = "---\n" + strings.TrimSuffix(string(document), "\n")
			}
			if _, err := fmt.Fprintln(l.Session.Out, text); err != nil {
				return err
			}
		}
		return nil
	}
	var page recordPage
	if err := answer.Decode(&page); err != nil {
		return err
	}
	for i := range page.Records {
		if _, err := fmt.Fprintln(l.Session.Out, l.pad(page.Records[i].line())); err != nil {
			return err
		}
	}
	return nil
}

// pad aligns one line below those before it.
func (l *tailLines) pad(cells session.Row) string {
	if l.widths == nil {
		l.widths = []int{27, 16, 6, 34, 7, 24, 10, 0}
	}
	var b strings.Builder
	for i, text := range cells {
		n := utf8.RuneCountInString(text)
		l.widths[i] = max(l.widths[i], n)
		b.WriteString(text)
		if i < len(cells)-1 {
			b.WriteString(strings.Repeat(" ", l.widths[i]-n+2))
		}
	}
	return b.String()
}
