package cli

import (
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
)

func (a *app) lease() *cobra.Command {
	return group("lease", "Look at, renew and revoke leases", "",
		a.leaseList(), a.leaseLookup(), a.leaseRenew(), a.leaseRevoke(), a.leaseOutlived())
}

func (a *app) leaseList() *cobra.Command {
	return a.completeArgument(a.remote("list [PREFIX]", "List leases under a prefix", `
  lessor lease list database/creds/app`,
		0, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			path := "sys/leases/lookup/"
			if len(args) == 1 && cleanPath(args[0]) != "" {
				path += cleanPath(args[0]) + "/"
			}
			answer, err := c.List(cmd.Context(), path)
			if err = explainMissing(err, cleanPath(path), ""); err != nil {
				return a.printNoKeys(err)
			}
			return a.printKeys(answer, a.detailed())
		}), 0, completeUnder("sys/leases/lookup/"))
}

func (a *app) leaseLookup() *cobra.Command {
	var field string
	command := a.remote("lookup LEASE_ID", "Show a lease: its times, and whether it can be renewed", "",
		1, 1, func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, "sys/leases/lookup", map[string]any{"lease_id": cleanPath(args[0])}, "", field)
		})
	fieldFlag(command, &field)
	return a.completeArgument(command, 0, completeUnder("sys/leases/lookup/"))
}

func (a *app) leaseRenew() *cobra.Command {
	var increment duration
	var field string
	command := a.remote("renew LEASE_ID [INCREMENT]", "Renew a lease", `
The lease is extended from now, at most up to its maximum.`,
		1, 2, func(cmd *cobra.Command, args []string) error {
			body := map[string]any{"lease_id": cleanPath(args[0])}
			if len(args) == 2 && increment == "" { // as Vault's users used to write it
				if err := increment.Set(args[1]); err != nil {
					return usage(cmd, "INCREMENT: %s", err)
				}
			}
			if increment != "" {
				body["increment"] = string(increment)
			}
			return a.call(cmd, "sys/leases/renew", body, "Lease renewed.", field)
		})
	command.Flags().VarP(&increment, "increment", "i", "how long to extend it, from now, as a `duration` (default the lease's own)")
	fieldFlag(command, &field)
	return a.completeArgument(command, 0, completeUnder("sys/leases/lookup/"))
}

func (a *app) leaseRevoke() *cobra.Command {
	var prefix, force, sync bool
	command := a.remote("revoke LEASE_ID", "Revoke a lease, or all under a prefix", `
A revoked lease is void at once; its credential is taken back at its target right away (-sync) or in the background.
-force with -prefix forgets leases whose target cannot be reached: their credentials may live on.

  lessor lease revoke database/creds/app/2f6a614c
  lessor lease revoke -prefix database/creds/app`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			id := cleanPath(args[0])
			c, err := a.connect()
			if err != nil {
				return err
			}
			var answer *client.Response
			switch {
			case force && !prefix:
				return usage(cmd, "-force needs -prefix")
			case force:
				answer, err = c.Write(cmd.Context(), "sys/leases/revoke-force/"+id, nil)
			case prefix:
				answer, err = c.Write(cmd.Context(), "sys/leases/revoke-prefix/"+id, map[string]any{"sync": sync})
			default:
				answer, err = c.Write(cmd.Context(), "sys/leases/revoke", map[string]any{"lease_id": id, "sync": sync})
			}
			if err != nil {
				return err
			}
			done := "Revoked lease: " + id
			switch {
			case force:
				done = "Force revoked any leases with prefix: " + id
			case prefix:
				done = "Revoked any leases with prefix: " + id
			}
			return a.revoked(answer, done)
		})
	f := command.Flags()
	f.BoolVar(&prefix, "prefix", false, "revoke all leases under this prefix")
	f.BoolVarP(&force, "force", "f", false, "with -prefix: forget leases whose target fails")
	f.BoolVar(&sync, "sync", false, "wait until the credentials are gone")
	return a.completeArgument(command, 0, completeUnder("sys/leases/lookup/"))
}

// revoked tells how far a revocation has come.
func (a *app) revoked(answer *client.Response, done string) error {
	a.warn(answer)
	if answer.Status == http.StatusAccepted {
		if err := a.say("All revocation operations queued successfully!"); err != nil {
			return err
		}
		return a.say("They are in force now; what is left at targets is being taken back (lessor lease outlived).")
	}
	return a.say("Success! %s", done)
}

func (a *app) leaseOutlived() *cobra.Command {
	return a.remote("outlived", "List credentials that outlived their lease, because their target failed", `
lessor never gives up on them; this tells what stands in the way.`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			answer, err := c.Read(cmd.Context(), "sys/lessor/outlived", nil)
			if err != nil {
				return err
			}
			if answer.WrapInfo != nil {
				return a.printAnswer(answer, "")
			}
			var found struct {
				Credentials []struct {
					Lease    string    `json:"lease_id"`
					Target   string    `json:"target"`
					Owner    string    `json:"owner"`
					Holder   string    `json:"holder"`
					Expired  time.Time `json:"expired_at"`
					Overdue  float64   `json:"overdue_seconds"`
					Attempts int64     `json:"attempts"`
					Error    string    `json:"last_error"`
					Next     string    `json:"next_attempt"`
				} `json:"credentials"`
			}
			if err := answer.Decode(&found); err != nil {
				return err
			}
			a.warn(answer)
			return a.print(answer.Data["credentials"], func() error {
				if len(found.Credentials) == 0 {
					return a.say("None: every expired credential is gone.")
				}
				var rows []row
				for _, o := range found.Credentials {
					rows = append(rows, row{
						o.Lease, o.Target, dash(o.Owner), dash(o.Holder), seconds(int64(o.Overdue)),
						fmt.Sprint(o.Attempts), dash(o.Next), dash(printableLine(o.Error)),
					})
				}
				return a.table(row{"Lease", "Target", "Owner", "Holder", "Overdue", "Attempts", "Next Attempt", "Last Error"}, rows)
			})
		})
}

// dash stands for nothing in a table.
func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// call writes body to path and prints the answer; an empty one as done.
func (a *app) call(cmd *cobra.Command, path string, body map[string]any, done, field string) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	answer, err := c.Write(cmd.Context(), path, body)
	if err != nil {
		return err
	}
	if answer.Empty() && field == "" {
		a.warn(answer)
		return a.say("Success! %s", done)
	}
	return a.printAnswer(answer, field)
}
