// Package access has the commands about who may do what: logins, tokens, policies.
package access

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

// Login is the command login.
func Login(a *session.Session) *cobra.Command {
	var method, path, field string
	var noStore, noPrint, tokenOnly bool
	command := a.Remote("login [TOKEN | key=value...]", "Log in, and keep the token for later commands", `
With a token, or with a method and what it needs. What is missing is asked for without showing it; - reads a token from
standard input, key=- and key=@file a value.

  lessor login
  lessor login -method=userpass username=alice
  lessor login -method=approle role_id=app secret_id=@secret-id
  lessor login -method=jwt role=ci jwt=@token
  lessor login -method=oidc role=staff
  lessor login -method=cert -client-cert=web.crt -client-key=web.key

The token is kept in ~/.lessor-token (mode 0600); ~/.vault-token is read when that is missing. Or a program of yours keeps
it: token_helper = "/path/to/it" in ~/.lessor or ~/.vault. LESSOR_TOKEN and VAULT_TOKEN come before what is kept.`,
		0, -1, func(cmd *cobra.Command, args []string) error {
			if tokenOnly {
				field, noStore = "token", true
			}
			if noStore && noPrint {
				return session.Usage(cmd, "-no-store and -no-print exclude each other: nobody would have the token")
			}
			a.Tokenless = true
			c, err := a.Connect()
			if err != nil {
				return err
			}
			stored := c.Token()
			// A stale token must not come along: it has no part in this.
			c = c.WithToken(client.Token{})
			a.Token = client.Token{}
			method = session.CleanPath(method)
			var answer *client.Response
			if method == "" || method == "token" {
				answer, err = loginByToken(a, cmd, c, args)
			} else {
				answer, err = loginByMethod(a, cmd, c, method, path, args)
			}
			if err != nil {
				return err
			}
			if answer.WrapInfo != nil {
				if noStore {
					if tokenOnly {
						field = "wrapping_token"
					}
					return a.PrintAnswer(answer, field)
				}
				// What is to be kept is the token, not its wrapping.
				wrapping := client.NewToken(answer.WrapInfo.Token)
				if answer, err = c.WithToken(wrapping).WithWrapTTL(0).Write(cmd.Context(), "sys/wrapping/unwrap", nil); err != nil {
					return err
				}
			}
			if answer.Auth != nil && answer.Auth.MFARequirement != nil {
				a.Complain("The login needs a second factor: write the answer's mfa_request_id and the factor to sys/mfa/validate.\n")
				return a.PrintAnswer(answer, field)
			}
			if answer.Auth == nil || answer.Auth.ClientToken == "" {
				return errors.New("the server's answer holds no token")
			}
			if noStore {
				if !tokenOnly {
					a.Complain("The token was not stored: set LESSOR_TOKEN to it to use it.\n")
				}
			} else if err := keep(a, client.NewToken(answer.Auth.ClientToken), !stored.Empty(), noPrint || field != ""); err != nil {
				a.Complain("The login succeeded, but the token could not be kept; here it is:\n")
				if err := a.PrintAnswer(answer, field); err != nil {
					return err
				}
				return err
			}
			if noPrint {
				return nil
			}
			return a.PrintAnswer(answer, field)
		})
	f := command.Flags()
	f.StringVar(&method, "method", "token", "login `method`: token, userpass, approle, jwt, oidc, cert, …")
	f.StringVar(&path, "path", "", "`path` where the method is enabled (default its name)")
	f.BoolVar(&noStore, "no-store", false, "do not keep the token")
	f.BoolVar(&noPrint, "no-print", false, "do not print the token")
	f.BoolVar(&tokenOnly, "token-only", false, "print only the token, and do not keep it")
	session.FieldFlag(command, &field)
	a.CompleteFlag(command, "path", session.Logins.Complete)
	_ = command.RegisterFlagCompletionFunc("method", cobra.FixedCompletions([]string{"token", "userpass", "approle", "jwt", "oidc", "cert"}, cobra.ShellCompDirectiveNoFileComp))
	return command
}

// keep stores the token of a login, and says so unless the output is for a program.
func keep(a *session.Session, token client.Token, hadOne, silent bool) error {
	store, err := a.TokenStore()
	if err != nil {
		return err
	}
	if err := store.Store(token); err != nil {
		return err
	}
	if !silent {
		if err := a.Say("Success! You are now authenticated. Later commands use the token, kept in %s.\n", store.Place()); err != nil {
			return err
		}
	}
	if a.Env.Setting("TOKEN") != "" && hadOne {
		a.Complain("WARNING! LESSOR_TOKEN or VAULT_TOKEN is set and comes before the stored token: unset it to use this login.\n")
	}
	return nil
}

// loginByToken looks the token up, which proves that it works, and answers as a login would.
func loginByToken(a *session.Session, cmd *cobra.Command, c *client.Client, args []string) (*client.Response, error) {
	lookup := true
	var texts []string
	for _, arg := range args {
		if text, ok := strings.CutPrefix(arg, "lookup="); ok {
			on, err := strconv.ParseBool(text)
			if err != nil {
				return nil, session.Usage(cmd, "lookup must be true or false")
			}
			lookup = on
			continue
		}
		texts = append(texts, strings.TrimPrefix(arg, "token="))
	}
	if len(texts) > 1 {
		return nil, session.Usage(cmd, "the token method takes one token")
	}
	var token client.Token
	if len(texts) == 1 {
		text, err := a.Input.Value(texts[0])
		if err != nil {
			return nil, fmt.Errorf("token: %w", err)
		}
		if token = client.NewToken(text); token.Empty() {
			return nil, errors.New("token: the value is empty")
		}
	} else {
		text, err := a.Prompt(cmd.Context(), "Token")
		if err != nil {
			return nil, err
		}
		if token = client.NewToken(text); token.Empty() {
			return nil, errors.New("no token was given")
		}
	}
	if !lookup {
		return &client.Response{Auth: &client.Auth{ClientToken: token.Reveal()}}, nil
	}
	a.Token = token
	answer, err := c.WithToken(token).WithWrapTTL(0).Read(cmd.Context(), "auth/token/lookup-self", nil)
	if err != nil {
		return nil, err
	}
	var found struct {
		Accessor         string         `json:"accessor"`
		Policies         []string       `json:"policies"`
		IdentityPolicies []string       `json:"identity_policies"`
		Metadata         map[string]any `json:"meta"`
		TTL              int64          `json:"ttl"`
		Renewable        bool           `json:"renewable"`
		EntityID         string         `json:"entity_id"`
		Type             string         `json:"type"`
		Orphan           bool           `json:"orphan"`
		NumUses          int64          `json:"num_uses"`
	}
	if err := answer.Decode(&found); err != nil {
		return nil, err
	}
	return &client.Response{
		RequestID: answer.RequestID, Warnings: answer.Warnings,
		Auth: &client.Auth{
			ClientToken: token.Reveal(), Accessor: found.Accessor, Policies: append(found.Policies, found.IdentityPolicies...),
			TokenPolicies: found.Policies, IdentityPolicies: found.IdentityPolicies, Metadata: found.Metadata,
			LeaseDuration: found.TTL, Renewable: found.Renewable, EntityID: found.EntityID, TokenType: found.Type,
			Orphan: found.Orphan, NumUses: found.NumUses,
		},
	}, nil
}

// loginByMethod sends what the user gave, and what was asked for, to the method's login.
func loginByMethod(a *session.Session, cmd *cobra.Command, c *client.Client, method, path string, args []string) (*client.Response, error) {
	data, err := a.Input.Data(args)
	if err != nil {
		return nil, err
	}
	if mount, ok := data["mount"].(string); ok && path == "" {
		path = mount
	}
	delete(data, "mount")
	if path == "" {
		path = method
	}
	if a.CanAsk() && a.ForPeople() && typed(args, "password", "secret_id", "jwt") {
		a.Complain("What is typed here can be seen by others and stays in your shell's history: leave it out to be asked for it, or give key=- or key=@file.")
	}
	target := "auth/" + session.CleanPath(path) + "/login"
	switch method {
	case "userpass", "ldap", "radius", "okta":
		name, _ := data["username"].(string)
		if name == "" {
			return nil, session.Usage(cmd, "say who logs in: username=NAME")
		}
		delete(data, "username")
		target += "/" + name
		if err := a.Ask(cmd.Context(), data, "password", "Password"); err != nil {
			return nil, err
		}
	case "approle":
		if data["role_id"] == nil {
			return nil, session.Usage(cmd, "say which role logs in: role_id=ID")
		}
		// A role may do without a secret id: only a person is asked for one.
		if data["secret_id"] == nil && a.CanAsk() {
			if err := a.Ask(cmd.Context(), data, "secret_id", "Secret ID"); err != nil {
				return nil, err
			}
		}
	case "jwt":
		if err := a.Ask(cmd.Context(), data, "jwt", "Token (JWT)"); err != nil {
			return nil, err
		}
	case "oidc":
		return loginInBrowser(a, cmd, c, session.CleanPath(path), data)
	}
	return c.Write(cmd.Context(), target, data)
}

// typed reports whether one of keys has its value in args themselves.
func typed(args []string, keys ...string) bool {
	return slices.ContainsFunc(args, func(arg string) bool {
		key, value, _ := strings.Cut(arg, "=")
		return slices.Contains(keys, key) && value != "-" && !strings.HasPrefix(value, "@")
	})
}
