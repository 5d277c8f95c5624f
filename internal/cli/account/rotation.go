package account

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

// Rotation is the group rotation.
func Rotation(a *session.Session) *cobra.Command {
	return session.Group("rotation", "See how rotations stand, plan them, give them up, end their wait", `
PATH is that of the secret which readers read, in full: database/static-creds/app. A rotation is begun by its schedule, or with
lessor write -f database/rotate-role/app.`,
		rotationStatus(a), rotationPlan(a), rotationAbort(a), rotationRetire(a))
}

const rotations = "sys/lessor/rotation/"

// rotated is how the server describes the rotation of one account.
type rotated struct {
	Path       string     `json:"path"`
	Step       string     `json:"step"`
	Since      string     `json:"since"`
	Strategy   string     `json:"strategy"`
	Version    int64      `json:"version"`
	Outgoing   int64      `json:"outgoing_version"`
	Behind     int64      `json:"holders_behind"`
	Deadline   string     `json:"deadline"`
	Due        string     `json:"due"`
	LastError  string     `json:"last_error"`
	Overdue    bool       `json:"overdue"`
	Account    string     `json:"account"`
	From       string     `json:"outgoing_account"`
	Aborting   bool       `json:"aborting"`
	GivenUp    bool       `json:"given_up"`
	Cause      string     `json:"cause"`
	NextTry    string     `json:"next_attempt"`
	NextLook   string     `json:"next_look"`
	LastLook   string     `json:"last_look"`
	QuietSince string     `json:"quiet_since"`
	Quiet      int64      `json:"quiet_needed"`
	WaitOver   string     `json:"wait_over"`
	Holders    []usedBy   `json:"holders"`
	Sessions   []sessions `json:"sessions"`
	Seen       string     `json:"sessions_seen"`
	Stragglers []usedBy   `json:"stragglers"`
	Unnamed    int64      `json:"stragglers_unnamed"`
}

// usedBy is a holder, or a straggler of which only sessions are known.
type usedBy struct {
	Entity   string `json:"entity_id"`
	Name     string `json:"display_name"`
	Alias    string `json:"alias"`
	Instance string `json:"instance"`
	Owner    string `json:"owner"`
	Oldest   uint64 `json:"oldest"`
	Newest   uint64 `json:"newest"`
	Last     string `json:"last_read"`
	Lapsed   string `json:"lapsed"`
	Moves    string `json:"moves"`
	Breaks   string `json:"breaks_at"`
	sessions
}

type sessions struct {
	Client      string `json:"client"`
	Application string `json:"application"`
	Count       int64  `json:"count"`
	Since       string `json:"since"`
	Seen        string `json:"last_seen"`
}

func rotationStatus(a *session.Session) *cobra.Command {
	var all bool
	command := a.Remote("status [PATH]", "Show rotations that are under way, fail or are late; or one, with who has not moved yet", `
Steps: set (a new password is recorded, set and tried), wait (readers are shown it, and those who hold the old one are waited
for), retire (the old account gets a password that nobody is told), prove (each old password is refused), idle.`,
		0, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				answer, err := c.Read(cmd.Context(), rotations+"status/"+session.CleanPath(args[0]), nil)
				if err != nil {
					return err
				}
				return printRotation(a, answer)
			}
			answer, err := c.Read(cmd.Context(), rotations+"status", map[string][]string{"all": {fmt.Sprint(all)}})
			if err != nil {
				return err
			}
			return printRotations(a, answer)
		})
	command.Flags().BoolVar(&all, "all", false, "show accounts with nothing under way, too")
	return a.CompleteArgument(command, 0, session.CompletePath)
}

func printRotations(a *session.Session, answer *client.Response) error {
	if answer.WrapInfo != nil {
		return a.PrintAnswer(answer, "")
	}
	var found struct {
		Rotations []rotated `json:"rotations"`
		Accounts  int64     `json:"accounts"`
	}
	if err := answer.Decode(&found); err != nil {
		return err
	}
	a.Warn(answer)
	return a.Print(answer.Data["rotations"], func() error {
		if len(found.Rotations) == 0 {
			return a.Say("None: of %d accounts that are rotated, no rotation is under way, fails or is late.", found.Accounts)
		}
		var rows []session.Row
		for _, r := range found.Rotations {
			behind := "-"
			if r.Step == "wait" {
				behind = fmt.Sprint(r.Behind)
			}
			rows = append(rows, session.Row{
				session.PrintableLine(r.Path), r.Step, session.Dash(r.Since), fmt.Sprint(r.Version), behind, session.Dash(r.Deadline), session.Dash(r.Due),
				session.Dash(session.PrintableLine(r.LastError)),
			})
		}
		return a.Table(session.Row{"Path", "Step", "Since", "Version", "Behind", "Deadline", "Due", "Last Error"}, rows)
	})
}

func printRotation(a *session.Session, answer *client.Response) error {
	if answer.WrapInfo != nil {
		return a.PrintAnswer(answer, "")
	}
	var r rotated
	if err := answer.Decode(&r); err != nil {
		return err
	}
	a.Warn(answer)
	return a.Print(answer.Data, func() error {
		rows := []session.Row{{"path", session.PrintableLine(r.Path)}, {"step", r.Step}, {"since", session.Dash(r.Since)}, {"strategy", r.Strategy},
			{"version", fmt.Sprintf("%d (%s)", r.Version, session.PrintableLine(r.Account))}}
		add := func(name, value string) {
			if value != "" {
				rows = append(rows, session.Row{name, session.PrintableLine(value)})
			}
		}
		if r.Outgoing != 0 {
			add("outgoing version", fmt.Sprintf("%d (%s)", r.Outgoing, r.From))
		}
		if r.GivenUp {
			add("given up", "back to the password before")
		}
		if r.Aborting {
			add("given up", "asked for, and begins at once")
		}
		if r.Step == "wait" {
			add("holders behind", fmt.Sprint(r.Behind))
			add("no use seen since", session.Dash(r.QuietSince))
			add("evidence after", session.Seconds(r.Quiet))
			add("next look", r.NextLook)
			add("deadline", session.Dash(r.Deadline))
		}
		add("wait over", r.WaitOver)
		add("next rotation", session.Dash(r.Due))
		add("cause", r.Cause)
		add("last error", r.LastError)
		add("next attempt", r.NextTry)
		if err := a.Pairs(rows); err != nil {
			return err
		}
		if err := printUsers(a, "Not moved yet:", r.Holders, "", ""); err != nil {
			return err
		}
		if r.Step == "wait" && len(r.Sessions) > 0 {
			var seen []usedBy
			for _, s := range r.Sessions {
				seen = append(seen, usedBy{sessions: s})
			}
			if err := printUsers(a, "Sessions of the old account, last seen "+r.Seen+":", seen, "", ""); err != nil {
				return err
			}
		}
		if err := printUsers(a, "Had not moved when the wait ended last:", r.Stragglers, "", ""); err != nil {
			return err
		}
		if r.Unnamed > 0 {
			return a.Say("and %d more", r.Unnamed)
		}
		return nil
	})
}

// printUsers prints who uses a secret under a title; moves and breaks are the headings of two more columns, or empty.
func printUsers(a *session.Session, title string, users []usedBy, moves, breaks string) error {
	if len(users) == 0 {
		return nil
	}
	headings := session.Row{"Holder", "Instance", "Owner", "May Use", "Last Read", "Lapsed"}
	if moves != "" {
		headings = append(headings, moves, breaks)
	}
	var rows []session.Row
	for _, u := range users {
		var row session.Row
		if u.Count > 0 {
			row = session.Row{"unknown: " + fmt.Sprint(u.Count) + " sessions", session.Dash(session.PrintableLine(u.Client)),
				session.Dash(session.PrintableLine(u.Application)), "-", session.Dash(cmp.Or(u.Seen, u.Since)), "-"}
		} else {
			who := (&record{Name: u.Name, Alias: u.Alias, Entity: u.Entity}).identity()
			row = session.Row{session.PrintableLine(who), session.Dash(session.PrintableLine(u.Instance)), session.Dash(session.PrintableLine(u.Owner)),
				versions(u.Oldest, u.Newest), session.Dash(u.Last), session.Dash(u.Lapsed)}
		}
		if moves != "" {
			row = append(row, u.Moves, session.Dash(u.Breaks))
		}
		rows = append(rows, row)
	}
	if err := a.Say("\n%s", title); err != nil {
		return err
	}
	return a.Table(headings, rows)
}

func rotationPlan(a *session.Session) *cobra.Command {
	return a.CompleteArgument(a.Remote("plan PATH", "Show what the next rotation of a secret will do to whom; touches nothing", `
  lessor rotation plan database/static-creds/app`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			answer, err := c.Read(cmd.Context(), rotations+"plan/"+session.CleanPath(args[0]), nil)
			if err != nil {
				return err
			}
			if answer.WrapInfo != nil {
				return a.PrintAnswer(answer, "")
			}
			var p struct {
				rotated
				Accounts []string `json:"accounts"`
				Period   int64    `json:"rotation_period"`
				Schedule string   `json:"rotation_schedule"`
				Window   int64    `json:"rotation_window"`
				Jitter   int64    `json:"rotation_jitter"`
				Grace    int64    `json:"rotation_grace"`
				Evidence int64    `json:"rotation_quiet"`
				CheckOut bool     `json:"rotation_on_lease_end"`
			}
			if err := answer.Decode(&p); err != nil {
				return err
			}
			a.Warn(answer)
			return a.Print(answer.Data, func() error {
				when := "on request only"
				switch {
				case p.Schedule != "":
					when = p.Schedule
				case p.Period > 0:
					when = "each " + session.Seconds(p.Period)
				}
				if p.CheckOut {
					when += ", and when a lease on it ends"
				}
				rows := []session.Row{{"path", session.PrintableLine(p.Path)}, {"strategy", p.Strategy}, {"accounts", session.PrintableLine(strings.Join(p.Accounts, ", "))},
					{"in force", session.PrintableLine(p.Account)}, {"version", fmt.Sprint(p.Version)}, {"step", p.Step}, {"schedule", when}, {"next rotation", session.Dash(p.Due)}}
				if p.Strategy == "alternating" {
					grace := "none: holders are waited for without end"
					if p.Grace > 0 {
						grace = session.Seconds(p.Grace)
					}
					rows = append(rows, session.Row{"grace", grace}, session.Row{"evidence after", session.Seconds(p.Evidence)})
				}
				if err := a.Pairs(rows); err != nil {
					return err
				}
				return printUsers(a, "Holders:", p.Holders, "Known to Have Moved", "Breaks At")
			})
		}), 0, session.CompletePath)
}

func rotationAbort(a *session.Session) *cobra.Command {
	return a.CompleteArgument(a.Remote("abort PATH", "Give up a rotation that is under way", `
Before readers are shown the new password, it is withdrawn. While holders of the old one are waited for, readers are shown the old one
again, and those who had moved are waited for instead. Once the old account is being retired there is no way back.`,
		1, 1, func(cmd *cobra.Command, args []string) error { return steer(a, cmd, "abort", args[0]) }), 0, session.CompletePath)
}

func rotationRetire(a *session.Session) *cobra.Command {
	return a.CompleteArgument(a.Remote("retire PATH", "Wait no longer for those who hold the old password", `
The old account gets a password that nobody is told, and its sessions are ended. Who had not moved is named, here and in the audit
trail.`,
		1, 1, func(cmd *cobra.Command, args []string) error { return steer(a, cmd, "retire", args[0]) }), 0, session.CompletePath)
}

// steer does something to a rotation, and shows how it stands then.
func steer(a *session.Session, cmd *cobra.Command, what, path string) error {
	c, err := a.Connect()
	if err != nil {
		return err
	}
	answer, err := c.Write(cmd.Context(), rotations+what+"/"+session.CleanPath(path), nil)
	if err != nil {
		return err
	}
	return printRotation(a, answer)
}
