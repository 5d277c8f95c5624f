// Package account has the commands that account for secrets: leases, who holds what, who owns what, what was done, and
// taking all of it back.
package account

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

// Lease is the group lease.
func Lease(a *session.Session) *cobra.Command {
	return session.Group("lease", "Look at, renew and revoke leases", "",
		leaseList(a), leaseLookup(a), leaseRenew(a), leaseRevoke(a), leaseOutlived(a))
}

func leaseList(a *session.Session) *cobra.Command {
	return a.CompleteArgument(a.Remote("list [PREFIX]", "List leases under a prefix", `
  lessor lease list database/creds/app`,
		0, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			path := "sys/leases/lookup/"
			if len(args) == 1 && session.CleanPath(args[0]) != "" {
				path += session.CleanPath(args[0]) + "/"
			}
			answer, err := c.List(cmd.Context(), path)
			if err = session.ExplainMissing(err, session.CleanPath(path), ""); err != nil {
				return a.PrintNoKeys(err)
			}
			return a.PrintKeys(answer, a.Detailed())
		}), 0, session.CompleteUnder("sys/leases/lookup/"))
}

func leaseLookup(a *session.Session) *cobra.Command {
	var field string
	command := a.Remote("lookup LEASE_ID", "Show a lease: its times, and whether it can be renewed", "",
		1, 1, func(cmd *cobra.Command, args []string) error {
			return a.Call(cmd, "sys/leases/lookup", map[string]any{"lease_id": session.CleanPath(args[0])}, "", field)
		})
	session.FieldFlag(command, &field)
	return a.CompleteArgument(command, 0, session.CompleteUnder("sys/leases/lookup/"))
}

func leaseRenew(a *session.Session) *cobra.Command {
	var increment session.Duration
	var field string
	command := a.Remote("renew LEASE_ID [INCREMENT]", "Renew a lease", `
The lease is extended from now, at most up to its maximum.`,
		1, 2, func(cmd *cobra.Command, args []string) error {
			body := map[string]any{"lease_id": session.CleanPath(args[0])}
			if len(args) == 2 && increment == "" { // as Vault's users used to write it
				if err := increment.Set(args[1]); err != nil {
					return session.Usage(cmd, "INCREMENT: %s", err)
				}
			}
			if increment != "" {
				body["increment"] = string(increment)
			}
			return a.Call(cmd, "sys/leases/renew", body, "Lease renewed.", field)
		})
	command.Flags().VarP(&increment, "increment", "i", "how long to extend it, from now, as a `duration` (default the lease's own)")
	session.FieldFlag(command, &field)
	return a.CompleteArgument(command, 0, session.CompleteUnder("sys/leases/lookup/"))
}

func leaseRevoke(a *session.Session) *cobra.Command {
	var prefix, force, sync bool
	command := a.Remote("revoke LEASE_ID", "Revoke a lease, or all under a prefix", `
A revoked lease is void at once; its credential is taken back at its target right away (-sync) or in the background.
-force with -prefix forgets leases whose target cannot be reached: their credentials may live on.

  lessor lease revoke database/creds/app/2f6a614c
  lessor lease revoke -prefix database/creds/app`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			id := session.CleanPath(args[0])
			c, err := a.Connect()
			if err != nil {
				return err
			}
			var answer *client.Response
			switch {
			case force && !prefix:
				return session.Usage(cmd, "-force needs -prefix")
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
			return a.Revoked(answer, done)
		})
	f := command.Flags()
	f.BoolVar(&prefix, "prefix", false, "revoke all leases under this prefix")
	f.BoolVarP(&force, "force", "f", false, "with -prefix: forget leases whose target fails")
	f.BoolVar(&sync, "sync", false, "wait until the credentials are gone")
	return a.CompleteArgument(command, 0, session.CompleteUnder("sys/leases/lookup/"))
}

func leaseOutlived(a *session.Session) *cobra.Command {
	return a.Remote("outlived", "List credentials that outlived their lease, because their target failed", `
lessor never gives up on them; this tells what stands in the way.`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			answer, err := c.Read(cmd.Context(), "sys/lessor/outlived", nil)
			if err != nil {
				return err
			}
			if answer.WrapInfo != nil {
				return a.PrintAnswer(answer, "")
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
			a.Warn(answer)
			return a.Print(answer.Data["credentials"], func() error {
				if len(found.Credentials) == 0 {
					return a.Say("None: every expired credential is gone.")
				}
				var rows []session.Row
				for _, o := range found.Credentials {
					rows = append(rows, session.Row{
						o.Lease, o.Target, session.Dash(o.Owner), session.Dash(o.Holder), session.Seconds(int64(o.Overdue)),
						fmt.Sprint(o.Attempts), session.Dash(o.Next), session.Dash(session.PrintableLine(o.Error)),
					})
				}
				return a.Table(session.Row{"Lease", "Target", "Owner", "Holder", "Overdue", "Attempts", "Next Attempt", "Last Error"}, rows)
			})
		})
}
