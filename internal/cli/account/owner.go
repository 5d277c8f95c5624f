package account

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/internal/cli/session"
)

// Owner is the group owner.
func Owner(a *session.Session) *cobra.Command {
	return session.Group("owner", "See and set who owns mounts, roles and secrets", `
What has no owner of its own has that of the nearest path above it.`,
		ownerGet(a), ownerSet(a), ownerDelete(a), ownerList(a))
}

const owners = "sys/lessor/owners/"

func ownerGet(a *session.Session) *cobra.Command {
	var field string
	command := a.Remote("get PATH", "Show who owns a path, and from where that comes", "",
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			path := session.CleanPath(args[0])
			answer, err := c.Read(cmd.Context(), owners+path, nil)
			if err = session.ExplainMissing(err, path, "Give it an owner: lessor owner set "+path+" OWNER"); err != nil {
				return err
			}
			return a.PrintAnswer(answer, field)
		})
	session.FieldFlag(command, &field)
	return a.CompleteArgument(command, 0, session.CompletePath)
}

func ownerSet(a *session.Session) *cobra.Command {
	return a.Remote("set PATH OWNER", "Make OWNER the owner of a path and of what is below it", `
  lessor owner set secret/billing team-billing`,
		2, 2, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			path := session.CleanPath(args[0])
			answer, err := c.Write(cmd.Context(), owners+path, map[string]any{"owner": args[1]})
			if err != nil {
				return err
			}
			a.Warn(answer)
			return a.Say("Success! %s is owned by: %s", path, args[1])
		})
}

func ownerDelete(a *session.Session) *cobra.Command {
	return a.Remote("delete PATH", "Take a path's own owner away: it has that of the path above it then", "",
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			path := session.CleanPath(args[0])
			answer, err := c.Delete(cmd.Context(), owners+path, nil)
			if err != nil {
				return err
			}
			a.Warn(answer)
			return a.Say("Success! Owner deleted (if there was one) at: %s", path)
		})
}

func ownerList(a *session.Session) *cobra.Command {
	return a.Remote("list", "List the paths that were given an owner", "", 0, 0, func(cmd *cobra.Command, _ []string) error {
		c, err := a.Connect()
		if err != nil {
			return err
		}
		answer, err := c.List(cmd.Context(), session.CleanPath(owners))
		if err = session.ExplainMissing(err, owners, "Give a path an owner: lessor owner set PATH OWNER"); err != nil {
			return err
		}
		if answer.WrapInfo != nil {
			return a.PrintAnswer(answer, "")
		}
		var found struct {
			Info map[string]struct {
				Owner string `json:"owner"`
			} `json:"key_info"`
		}
		if err := answer.Decode(&found); err != nil {
			return err
		}
		a.Warn(answer)
		return a.Print(answer.Data["key_info"], func() error {
			var rows []session.Row
			for _, path := range answer.Keys() {
				rows = append(rows, session.Row{session.PrintableLine(path), session.PrintableLine(found.Info[path].Owner)})
			}
			return a.Table(session.Row{"Path", "Owner"}, rows)
		})
	})
}

// Holders is the command holders.
func Holders(a *session.Session) *cobra.Command {
	return a.CompleteArgument(a.Remote("holders PATH", "List who holds a secret, and which versions each may still use", `
May Use has the versions that a holder may still use: reading a newer one is not adopting it. State tells whether it has acknowledged a version,
saying that it uses nothing older, or whether its hold has lapsed, was revoked, or released by itself: of secrets that lessor rotates, such holders
are kept until what they have read is proven dead.
  lessor holders database/static-creds/app`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			path := session.CleanPath(args[0])
			answer, err := c.Read(cmd.Context(), "sys/lessor/holders/"+path, nil)
			if err = session.ExplainMissing(err, path, ""); err != nil {
				return err
			}
			if answer.WrapInfo != nil {
				return a.PrintAnswer(answer, "")
			}
			var found struct {
				Holders []struct {
					Entity   string    `json:"entity_id"`
					Name     string    `json:"display_name"`
					Alias    string    `json:"alias"`
					Instance string    `json:"instance"`
					Version  uint64    `json:"version"`
					Oldest   uint64    `json:"oldest"`
					Newest   uint64    `json:"newest"`
					Acked    uint64    `json:"acknowledged"`
					Lapsed   time.Time `json:"lapsed"`
					Revoked  bool      `json:"revoked"`
					Released bool      `json:"released"`
					First    time.Time `json:"first_read"`
					Last     time.Time `json:"last_read"`
					Lease    string    `json:"lease_id"`
					Expires  time.Time `json:"expires"`
				} `json:"holders"`
			}
			if err := answer.Decode(&found); err != nil {
				return err
			}
			a.Warn(answer)
			return a.Print(answer.Data["holders"], func() error {
				if len(found.Holders) == 0 {
					return a.Say("Nobody holds %s.", path)
				}
				var rows []session.Row
				for _, h := range found.Holders {
					who := (&record{Name: h.Name, Alias: h.Alias, Entity: h.Entity}).identity()
					state := "reading"
					switch {
					case h.Released:
						state, h.Lease = "released", ""
					case h.Revoked:
						state, h.Lease = "revoked", ""
					case !h.Lapsed.IsZero():
						state, h.Lease = "lapsed", ""
					case h.Acked > 0:
						state = fmt.Sprintf("acknowledged %d", h.Acked)
					}
					rows = append(rows, session.Row{
						session.PrintableLine(who), session.Dash(session.PrintableLine(h.Instance)), fmt.Sprint(h.Version), versions(h.Oldest, h.Newest), state,
						session.Moment(h.First), session.Moment(h.Last), session.Moment(h.Expires), session.Dash(h.Lease),
					})
				}
				return a.Table(session.Row{"Holder", "Instance", "Version", "May Use", "State", "First Read", "Last Read", "Expires", "Lease"}, rows)
			})
		}), 0, session.CompletePath)
}

// versions says which versions somebody may use who has read the newest and may use the oldest; 0: one that is not known any more.
func versions(oldest, newest uint64) string {
	switch {
	case oldest == 0:
		return fmt.Sprintf("up to %d", newest)
	case oldest > newest:
		return "none in force"
	case oldest == newest:
		return fmt.Sprint(newest)
	}
	return fmt.Sprintf("%d to %d", oldest, newest)
}

// Exposures is the command exposures.
func Exposures(a *session.Session) *cobra.Command {
	return a.CompleteArgument(a.Remote("exposures PATH", "List versions of a secret that somebody may know who should not any more", `
Such a version should be replaced: a lease on it was revoked or lapsed, and nobody can make its holder forget it.`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			path := session.CleanPath(args[0])
			answer, err := c.Read(cmd.Context(), "sys/lessor/exposures/"+path, nil)
			if err = session.ExplainMissing(err, path, ""); err != nil {
				return err
			}
			if answer.WrapInfo != nil {
				return a.PrintAnswer(answer, "")
			}
			var found struct {
				Exposures []struct {
					Path     string    `json:"path"`
					Version  uint64    `json:"version"`
					Time     time.Time `json:"time"`
					Cause    string    `json:"cause"`
					Entity   string    `json:"entity_id"`
					Name     string    `json:"display_name"`
					Instance string    `json:"instance"`
					Owner    string    `json:"owner"`
				} `json:"exposures"`
			}
			if err := answer.Decode(&found); err != nil {
				return err
			}
			a.Warn(answer)
			return a.Print(answer.Data["exposures"], func() error {
				if len(found.Exposures) == 0 {
					return a.Say("No version of %s is exposed.", path)
				}
				var rows []session.Row
				for _, x := range found.Exposures {
					who := (&record{Name: x.Name, Entity: x.Entity}).identity()
					rows = append(rows, session.Row{
						session.PrintableLine(x.Path), fmt.Sprint(x.Version), session.Moment(x.Time), session.PrintableLine(who),
						session.Dash(session.PrintableLine(x.Instance)), session.Dash(session.PrintableLine(x.Owner)), session.Dash(session.PrintableLine(x.Cause)),
					})
				}
				return a.Table(session.Row{"Path", "Version", "Time", "Holder", "Instance", "Owner", "Cause"}, rows)
			})
		}), 0, session.CompletePath)
}

// Revoke is the command revoke.
func Revoke(a *session.Session) *cobra.Command {
	selectors := []struct{ flag, help string }{
		{"lease", "one lease, by its `id`"},
		{"prefix", "all leases under this `prefix`"},
		{"token", "the token with this `accessor`, its children and their leases (by the token itself: lessor token revoke)"},
		{"mount", "all leases of the mount at this `path`"},
		{"holder", "all leases of this `holder`: an entity's id or name"},
		{"owner", "all leases of what this `owner` owns"},
	}
	var force, sync bool
	command := a.Remote("revoke -lease|-prefix|-token|-mount|-holder|-owner=VALUE", "Revoke all leases of a lease, prefix, token, mount, holder or owner", `
What is revoked is void at once; credentials are taken back at their targets in the background, or before the command
ends with -sync.

  lessor revoke -prefix=database/creds/app
  lessor revoke -holder=7d2e3179-f69b-450c-7179-ac8ee8bd8ca9 -sync`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			by, value := "", ""
			for _, selector := range selectors {
				if !cmd.Flags().Changed(selector.flag) {
					continue
				}
				if by != "" {
					return session.Usage(cmd, "-%s and -%s exclude each other", by, selector.flag)
				}
				by = selector.flag
				value, _ = cmd.Flags().GetString(by)
			}
			switch {
			case by == "":
				return session.Usage(cmd, "say what to revoke by: -lease, -prefix, -token, -mount, -holder or -owner")
			case value == "":
				return session.Usage(cmd, "-%s needs a value", by)
			case by == "token" && strings.HasPrefix(value, "hv"):
				return session.Usage(cmd, "-token takes an accessor; to revoke by the token itself: lessor token revoke -")
			}
			c, err := a.Connect()
			if err != nil {
				return err
			}
			answer, err := c.Write(cmd.Context(), "sys/lessor/revoke", map[string]any{"by": by, "value": value, "force": force, "sync": sync})
			if err != nil {
				return err
			}
			if answer.Empty() {
				return a.Revoked(answer, "Revoked by "+by+": "+value)
			}
			return a.PrintAnswer(answer, "")
		})
	for _, selector := range selectors {
		command.Flags().String(selector.flag, "", selector.help)
	}
	command.Flags().BoolVar(&force, "force", false, "forget leases whose target fails: their credentials may live on")
	command.Flags().BoolVar(&sync, "sync", false, "wait until the credentials are gone")
	return command
}
