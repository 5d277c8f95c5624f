package access

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

// Print is Vault's "print token".
func Print(a *session.Session) *cobra.Command {
	return session.Group("print", "Print what later commands would use", "", a.Remote("token", "Print the current token",
		"The one that LESSOR_TOKEN, VAULT_TOKEN or the stored login gives. Everybody who sees it can use it.", 0, 0,
		func(*cobra.Command, []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.Out, c.Token().Reveal())
			return err
		}))
}

// Tokens is the group token.
func Tokens(a *session.Session) *cobra.Command {
	return session.Group("token", "Make, look at, renew and revoke tokens", `
Where a TOKEN is asked for, - reads it from standard input.`,
		tokenCreate(a), tokenLookup(a), tokenRenew(a), tokenRevoke(a), tokenCapabilities(a))
}

func tokenCreate(a *session.Session) *cobra.Command {
	var (
		field, id, role, displayName, entityAlias, kind string
		ttl, maxTTL, period                             session.Duration
		orphan, noDefault, renewable                    bool
		uses                                            int
		policies                                        []string
		metadata                                        = session.Pairs{}
	)
	command := a.Remote("create", "Make a token", `
The new token is a child of the current one, and goes when that one goes (-orphan: it does not). Its policies are those
of the current token, or fewer.

  lessor token create -policy=app -ttl=1h
  lessor token create -type=batch -policy=job -ttl=15m -field=token`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			body := map[string]any{}
			set := func(flag, name string, value any) {
				if cmd.Flags().Changed(flag) {
					body[name] = value
				}
			}
			if id != "" {
				token, err := a.Input.SecretArgument(id)
				if err != nil {
					return fmt.Errorf("-id: %w", err)
				}
				body["id"] = token.Reveal()
			}
			set("policy", "policies", policies)
			set("ttl", "ttl", string(ttl))
			set("explicit-max-ttl", "explicit_max_ttl", string(maxTTL))
			set("period", "period", string(period))
			set("renewable", "renewable", renewable)
			set("no-default-policy", "no_default_policy", noDefault)
			set("display-name", "display_name", displayName)
			set("entity-alias", "entity_alias", entityAlias)
			set("use-limit", "num_uses", uses)
			set("type", "type", kind)
			set("metadata", "meta", metadata)
			path := "auth/token/create"
			switch {
			case role != "" && orphan:
				return session.Usage(cmd, "-role and -orphan exclude each other: a role says itself whether its tokens are orphans")
			case role != "":
				path += "/" + session.CleanPath(role)
			case orphan:
				path += "-orphan"
			}
			return a.Call(cmd, path, body, "", field)
		})
	f := command.Flags()
	f.StringArrayVar(&policies, "policy", nil, "`name` of a policy of the token; may be repeated (default those of the current token)")
	f.Var(&ttl, "ttl", "how long it lives unless renewed, as a `duration`")
	f.Var(&maxTTL, "explicit-max-ttl", "how long it lives at most, renewed or not, as a `duration`")
	f.Var(&period, "period", "each renewal extends it by this `duration`, without end")
	f.BoolVar(&renewable, "renewable", true, "it may be renewed")
	f.BoolVar(&orphan, "orphan", false, "it has no parent")
	f.BoolVar(&noDefault, "no-default-policy", false, "without the policy \"default\"")
	f.IntVar(&uses, "use-limit", 0, "`number` of times it can be used; 0: any")
	f.StringVar(&displayName, "display-name", "", "`name` to show in audit records")
	f.StringVar(&kind, "type", "", "`kind` of token: service (stored, renewable) or batch (neither)")
	f.Var(metadata, "metadata", "note about the token, as `key=value`; may be repeated")
	f.StringVar(&role, "role", "", "`name` of the token role to make it by")
	f.StringVar(&entityAlias, "entity-alias", "", "`name` of the entity alias it acts for; needs -role")
	f.StringVar(&id, "id", "", "the `token` itself, - for standard input (default made by the server, which is safer)")
	session.FieldFlag(command, &field)
	a.CompleteFlag(command, "policy", session.CompleteUnder(acl))
	return command
}

func tokenLookup(a *session.Session) *cobra.Command {
	var byAccessor bool
	var field string
	command := a.Remote("lookup [TOKEN | ACCESSOR]", "Show a token's policies, times and origin (default the current one)", "",
		0, 1, func(cmd *cobra.Command, args []string) error {
			switch {
			case byAccessor && len(args) == 0:
				return session.Usage(cmd, "-accessor needs an ACCESSOR")
			case byAccessor:
				return a.Call(cmd, "auth/token/lookup-accessor", map[string]any{"accessor": args[0]}, "", field)
			case len(args) == 1:
				token, err := a.Input.SecretArgument(args[0])
				if err != nil {
					return fmt.Errorf("token: %w", err)
				}
				return a.Call(cmd, "auth/token/lookup", map[string]any{"token": token.Reveal()}, "", field)
			}
			c, err := a.Connect()
			if err != nil {
				return err
			}
			answer, err := c.Read(cmd.Context(), "auth/token/lookup-self", nil)
			if err != nil {
				return err
			}
			return a.PrintAnswer(answer, field)
		})
	accessorFlag(command, &byAccessor)
	session.FieldFlag(command, &field)
	return command
}

func accessorFlag(command *cobra.Command, byAccessor *bool) {
	command.Flags().BoolVar(byAccessor, "accessor", false, "the argument is the token's accessor")
}

func tokenRenew(a *session.Session) *cobra.Command {
	var byAccessor, strict bool
	var increment session.Duration
	var field string
	command := a.Remote("renew [TOKEN | ACCESSOR]", "Renew a token (default the current one)", "",
		0, 1, func(cmd *cobra.Command, args []string) error {
			body := map[string]any{}
			if increment != "" {
				body["increment"] = string(increment)
			}
			path := "auth/token/renew-self"
			switch {
			case byAccessor && len(args) == 0:
				return session.Usage(cmd, "-accessor needs an ACCESSOR")
			case byAccessor:
				path, body["accessor"] = "auth/token/renew-accessor", args[0]
			case len(args) == 1:
				token, err := a.Input.SecretArgument(args[0])
				if err != nil {
					return fmt.Errorf("token: %w", err)
				}
				path, body["token"] = "auth/token/renew", token.Reveal()
			}
			if !strict {
				return a.Call(cmd, path, body, "Token renewed.", field)
			}
			asked, err := client.ParseDuration(string(increment))
			if err != nil {
				return session.Usage(cmd, "-fail-if-not-fulfilled needs -increment")
			}
			c, err := a.Connect()
			if err != nil {
				return err
			}
			answer, err := c.Write(cmd.Context(), path, body)
			if err != nil {
				return err
			}
			if err := a.PrintAnswer(answer, field); err != nil {
				return err
			}
			if answer.Auth != nil && time.Duration(answer.Auth.LeaseDuration)*time.Second < asked {
				return fmt.Errorf("the token was renewed for %s only: its maximum is near, or its role or mount allows no more", session.Seconds(answer.Auth.LeaseDuration))
			}
			return nil
		})
	accessorFlag(command, &byAccessor)
	command.Flags().BoolVar(&strict, "fail-if-not-fulfilled", false, "fail if it was extended by less than -increment asks for")
	command.Flags().VarP(&increment, "increment", "i", "how long to extend it, from now, as a `duration` (default its own)")
	session.FieldFlag(command, &field)
	return command
}

func tokenRevoke(a *session.Session) *cobra.Command {
	var byAccessor, self bool
	var mode string
	command := a.Remote("revoke [TOKEN | ACCESSOR]", "Revoke a token, with its children and all leases made with them", `
  lessor token revoke -self
  lessor token revoke -accessor 9793c9b3-e04a-46f3-e7b8-748d7da248da`,
		0, 1, func(cmd *cobra.Command, args []string) error {
			switch {
			case self && (len(args) > 0 || byAccessor || mode != ""):
				return session.Usage(cmd, "-self stands alone")
			case self:
				return a.Call(cmd, "auth/token/revoke-self", nil, "Revoked token (if it existed)", "")
			case len(args) == 0:
				return session.Usage(cmd, "say which token: TOKEN, -accessor ACCESSOR, or -self for the current one")
			case byAccessor && mode != "":
				return session.Usage(cmd, "-accessor and -mode exclude each other")
			case byAccessor:
				return a.Call(cmd, "auth/token/revoke-accessor", map[string]any{"accessor": args[0]}, "Revoked token (if it existed)", "")
			}
			switch mode {
			case "path":
				c, err := a.Connect()
				if err != nil {
					return err
				}
				answer, err := c.Write(cmd.Context(), "sys/leases/revoke-prefix/"+session.CleanPath(args[0]), nil)
				if err != nil {
					return err
				}
				return a.Revoked(answer, "Revoked any tokens made under: "+session.CleanPath(args[0]))
			case "", "orphan":
			default:
				return session.Usage(cmd, "-mode must be orphan or path")
			}
			token, err := a.Input.SecretArgument(args[0])
			if err != nil {
				return fmt.Errorf("token: %w", err)
			}
			path := "auth/token/revoke"
			if mode == "orphan" {
				path += "-orphan"
			}
			return a.Call(cmd, path, map[string]any{"token": token.Reveal()}, "Revoked token (if it existed)", "")
		})
	accessorFlag(command, &byAccessor)
	command.Flags().BoolVar(&self, "self", false, "revoke the current token")
	command.Flags().StringVar(&mode, "mode", "", "`which` more: orphan (its children live on) or path (all tokens made under that path)")
	return command
}

func tokenCapabilities(a *session.Session) *cobra.Command {
	var byAccessor bool
	command := a.Remote("capabilities [TOKEN | ACCESSOR] PATH", "Show what a token (default the current one) may do at a path", "",
		1, 2, func(cmd *cobra.Command, args []string) error {
			path := args[len(args)-1]
			body := map[string]any{"paths": []string{path}}
			target := "sys/capabilities-self"
			switch {
			case byAccessor && len(args) == 1:
				return session.Usage(cmd, "-accessor needs an ACCESSOR and a PATH")
			case byAccessor:
				target, body["accessor"] = "sys/capabilities-accessor", args[0]
			case len(args) == 2:
				token, err := a.Input.SecretArgument(args[0])
				if err != nil {
					return fmt.Errorf("token: %w", err)
				}
				target, body["token"] = "sys/capabilities", token.Reveal()
			}
			c, err := a.Connect()
			if err != nil {
				return err
			}
			answer, err := c.Write(cmd.Context(), target, body)
			if err != nil {
				return err
			}
			if answer.WrapInfo != nil {
				return a.PrintAnswer(answer, "")
			}
			capabilities := capabilitiesOf(answer, path)
			a.Warn(answer)
			return a.Print(capabilities, func() error {
				_, err := fmt.Fprintln(a.Out, strings.Join(capabilities, ", "))
				return err
			})
		})
	accessorFlag(command, &byAccessor)
	return a.CompleteArgument(command, 0, session.CompletePath)
}

func capabilitiesOf(answer *client.Response, path string) []string {
	list, ok := answer.Data[path].([]any)
	if !ok {
		list, _ = answer.Data["capabilities"].([]any)
	}
	var capabilities []string
	for _, element := range list {
		if s, ok := element.(string); ok {
			capabilities = append(capabilities, s)
		}
	}
	slices.Sort(capabilities)
	return capabilities
}
