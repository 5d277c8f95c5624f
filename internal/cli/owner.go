package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) owner() *cobra.Command {
	return group("owner", "See and set who owns mounts, roles and secrets", `
What has no owner of its own has that of the nearest path above it.`,
		a.ownerGet(), a.ownerSet(), a.ownerDelete(), a.ownerList())
}

const owners = "sys/lessor/owners/"

func (a *app) ownerGet() *cobra.Command {
	var field string
	command := a.remote("get PATH", "Show who owns a path, and from where that comes", "",
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			path := cleanPath(args[0])
			answer, err := c.Read(cmd.Context(), owners+path, nil)
			if err = explainMissing(err, path, "Give it an owner: lessor owner set "+path+" OWNER"); err != nil {
				return err
			}
			return a.printAnswer(answer, field)
		})
	fieldFlag(command, &field)
	return a.completeArgument(command, 0, completePath)
}

func (a *app) ownerSet() *cobra.Command {
	return a.remote("set PATH OWNER", "Make OWNER the owner of a path and of what is below it", `
  lessor owner set secret/billing team-billing`,
		2, 2, func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			path := cleanPath(args[0])
			answer, err := c.Write(cmd.Context(), owners+path, map[string]any{"owner": args[1]})
			if err != nil {
				return err
			}
			a.warn(answer)
			return a.say("Success! %s is owned by: %s", path, args[1])
		})
}

func (a *app) ownerDelete() *cobra.Command {
	return a.remote("delete PATH", "Take a path's own owner away: it has that of the path above it then", "",
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			path := cleanPath(args[0])
			answer, err := c.Delete(cmd.Context(), owners+path, nil)
			if err != nil {
				return err
			}
			a.warn(answer)
			return a.say("Success! Owner deleted (if there was one) at: %s", path)
		})
}

func (a *app) ownerList() *cobra.Command {
	return a.remote("list", "List the paths that were given an owner", "", 0, 0, func(cmd *cobra.Command, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		answer, err := c.List(cmd.Context(), cleanPath(owners))
		if err = explainMissing(err, owners, "Give a path an owner: lessor owner set PATH OWNER"); err != nil {
			return err
		}
		if answer.WrapInfo != nil {
			return a.printAnswer(answer, "")
		}
		var found struct {
			Info map[string]struct {
				Owner string `json:"owner"`
			} `json:"key_info"`
		}
		if err := answer.Decode(&found); err != nil {
			return err
		}
		a.warn(answer)
		return a.print(answer.Data["key_info"], func() error {
			var rows []row
			for _, path := range answer.Keys() {
				rows = append(rows, row{printableLine(path), printableLine(found.Info[path].Owner)})
			}
			return a.table(row{"Path", "Owner"}, rows)
		})
	})
}

func (a *app) holders() *cobra.Command {
	return a.completeArgument(a.remote("holders PATH", "List who holds a secret: which version, since when, until when", "",
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			path := cleanPath(args[0])
			answer, err := c.Read(cmd.Context(), "sys/lessor/holders/"+path, nil)
			if err = explainMissing(err, path, ""); err != nil {
				return err
			}
			if answer.WrapInfo != nil {
				return a.printAnswer(answer, "")
			}
			var found struct {
				Holders []struct {
					Entity   string    `json:"entity_id"`
					Name     string    `json:"display_name"`
					Alias    string    `json:"alias"`
					Instance string    `json:"instance"`
					Version  uint64    `json:"version"`
					First    time.Time `json:"first_read"`
					Last     time.Time `json:"last_read"`
					Lease    string    `json:"lease_id"`
					Expires  time.Time `json:"expires"`
				} `json:"holders"`
			}
			if err := answer.Decode(&found); err != nil {
				return err
			}
			a.warn(answer)
			return a.print(answer.Data["holders"], func() error {
				if len(found.Holders) == 0 {
					return a.say("Nobody holds %s.", path)
				}
				var rows []row
				for _, h := range found.Holders {
					who := (&record{Name: h.Name, Alias: h.Alias, Entity: h.Entity}).identity()
					rows = append(rows, row{
						printableLine(who), dash(printableLine(h.Instance)), fmt.Sprint(h.Version),
						moment(h.First), moment(h.Last), moment(h.Expires), dash(h.Lease),
					})
				}
				return a.table(row{"Holder", "Instance", "Version", "First Read", "Last Read", "Expires", "Lease"}, rows)
			})
		}), 0, completePath)
}

func (a *app) exposures() *cobra.Command {
	return a.completeArgument(a.remote("exposures PATH", "List versions of a secret that somebody may know who should not any more", `
Such a version should be replaced: a lease on it was revoked or lapsed, and nobody can make its holder forget it.`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			path := cleanPath(args[0])
			answer, err := c.Read(cmd.Context(), "sys/lessor/exposures/"+path, nil)
			if err = explainMissing(err, path, ""); err != nil {
				return err
			}
			if answer.WrapInfo != nil {
				return a.printAnswer(answer, "")
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
			a.warn(answer)
			return a.print(answer.Data["exposures"], func() error {
				if len(found.Exposures) == 0 {
					return a.say("No version of %s is exposed.", path)
				}
				var rows []row
				for _, x := range found.Exposures {
					who := (&record{Name: x.Name, Entity: x.Entity}).identity()
					rows = append(rows, row{
						printableLine(x.Path), fmt.Sprint(x.Version), moment(x.Time), printableLine(who),
						dash(printableLine(x.Instance)), dash(printableLine(x.Owner)), dash(printableLine(x.Cause)),
					})
				}
				return a.table(row{"Path", "Version", "Time", "Holder", "Instance", "Owner", "Cause"}, rows)
			})
		}), 0, completePath)
}

// moment writes a time to the second; - for none.
func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

func (a *app) revoke() *cobra.Command {
	selectors := []struct{ flag, help string }{
		{"lease", "one lease, by its `id`"},
		{"prefix", "all leases under this `prefix`"},
		{"token", "the token with this `accessor`, its children and their leases (by the token itself: lessor token revoke)"},
		{"mount", "all leases of the mount at this `path`"},
		{"holder", "all leases of this `holder`: an entity's id or name"},
		{"owner", "all leases of what this `owner` owns"},
	}
	var force, sync bool
	command := a.remote("revoke -lease|-prefix|-token|-mount|-holder|-owner=VALUE", "Revoke all leases of a lease, prefix, token, mount, holder or owner", `
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
					return usage(cmd, "-%s and -%s exclude each other", by, selector.flag)
				}
				by = selector.flag
				value, _ = cmd.Flags().GetString(by)
			}
			switch {
			case by == "":
				return usage(cmd, "say what to revoke by: -lease, -prefix, -token, -mount, -holder or -owner")
			case value == "":
				return usage(cmd, "-%s needs a value", by)
			case by == "token" && strings.HasPrefix(value, "hv"):
				return usage(cmd, "-token takes an accessor; to revoke by the token itself: lessor token revoke -")
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			answer, err := c.Write(cmd.Context(), "sys/lessor/revoke", map[string]any{"by": by, "value": value, "force": force, "sync": sync})
			if err != nil {
				return err
			}
			if answer.Empty() {
				return a.revoked(answer, "Revoked by "+by+": "+value)
			}
			return a.printAnswer(answer, "")
		})
	for _, selector := range selectors {
		command.Flags().String(selector.flag, "", selector.help)
	}
	command.Flags().BoolVar(&force, "force", false, "forget leases whose target fails: their credentials may live on")
	command.Flags().BoolVar(&sync, "sync", false, "wait until the credentials are gone")
	return command
}
