package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/lessor-dev/lessor/client"
)

func (a *app) login() *cobra.Command {
	var method, path, field string
	var noStore, noPrint, tokenOnly bool
	command := a.remote("login [TOKEN | key=value...]", "Log in, and keep the token for later commands", `
With a token, or with a method and what it needs. What is missing is asked for without showing it; - reads a token from
standard input, key=- and key=@file a value.

  lessor login
  lessor login -method=userpass username=alice
  lessor login -method=approle role_id=app secret_id=@secret-id

The token is kept in ~/.lessor-token (mode 0600). LESSOR_TOKEN and VAULT_TOKEN come before it; ~/.vault-token is used
when it is missing.`,
		0, -1, func(cmd *cobra.Command, args []string) error {
			if tokenOnly {
				field, noStore = "token", true
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			stored := c.Token()
			// A stale token must not come along: it has no part in this.
			c = c.WithToken(client.Token{})
			a.token = client.Token{}
			var answer *client.Response
			if method == "" || method == "token" {
				answer, err = a.loginByToken(cmd, c, args)
			} else {
				answer, err = a.loginByMethod(cmd, c, method, path, args)
			}
			if err != nil {
				return err
			}
			if answer.WrapInfo != nil {
				return a.printAnswer(answer, field)
			}
			if answer.Auth == nil || answer.Auth.ClientToken == "" {
				if answer.Auth != nil && answer.Auth.MFARequirement != nil {
					return errors.New("the login needs a second factor: send the answer's mfa_request_id and the factor to sys/mfa/validate (lessor write)")
				}
				return errors.New("the server's answer holds no token")
			}
			if !noStore {
				if err := a.tokenFile().Store(client.NewToken(answer.Auth.ClientToken)); err != nil {
					return err
				}
				a.complain("Success! You are logged in; later commands use the token, kept in %s.", a.tokenFile().Path())
				if a.env.Setting("TOKEN") != "" && !stored.Empty() {
					a.complain("Warning: LESSOR_TOKEN or VAULT_TOKEN is set and comes before the stored token: unset it to use this login.")
				}
			}
			if noPrint {
				return nil
			}
			return a.printAnswer(answer, field)
		})
	f := command.Flags()
	f.StringVar(&method, "method", "token", "login `method`: token, userpass, approle, …")
	f.StringVar(&path, "path", "", "`path` where the method is enabled (default its name)")
	f.BoolVar(&noStore, "no-store", false, "do not keep the token")
	f.BoolVar(&noPrint, "no-print", false, "do not print the token")
	f.BoolVar(&tokenOnly, "token-only", false, "print only the token, and do not keep it")
	fieldFlag(command, &field)
	_ = command.RegisterFlagCompletionFunc("method", cobra.FixedCompletions([]string{"token", "userpass", "approle"}, cobra.ShellCompDirectiveNoFileComp))
	return command
}

// loginByToken looks the token up, which proves that it works, and answers as a login would.
func (a *app) loginByToken(cmd *cobra.Command, c *client.Client, args []string) (*client.Response, error) {
	if len(args) > 1 {
		return nil, usage(cmd, "the token method takes one token")
	}
	var token client.Token
	if len(args) == 1 {
		text := strings.TrimPrefix(args[0], "token=")
		if strings.HasPrefix(text, "@") {
			content, err := os.ReadFile(text[1:])
			if err != nil {
				return nil, err
			}
			text = string(content)
		}
		var err error
		if token, err = a.input.secretArgument(text); err != nil {
			return nil, fmt.Errorf("token: %w", err)
		}
	} else {
		text, err := a.prompt(cmd.Context(), "Token")
		if err != nil {
			return nil, err
		}
		if token = client.NewToken(text); token.Empty() {
			return nil, errors.New("no token was given")
		}
	}
	a.token = token
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
func (a *app) loginByMethod(cmd *cobra.Command, c *client.Client, method, path string, args []string) (*client.Response, error) {
	data, err := a.input.data(args)
	if err != nil {
		return nil, err
	}
	if path == "" {
		path = method
	}
	target := "auth/" + cleanPath(path) + "/login"
	switch method {
	case "userpass", "ldap", "radius", "okta":
		name, _ := data["username"].(string)
		if name == "" {
			return nil, usage(cmd, "say who logs in: username=NAME")
		}
		delete(data, "username")
		target += "/" + name
		if err := a.ask(cmd.Context(), data, "password", "Password"); err != nil {
			return nil, err
		}
	case "approle":
		if data["role_id"] == nil {
			return nil, usage(cmd, "say which role logs in: role_id=ID")
		}
		// A role may do without a secret id: only a person is asked for one.
		if data["secret_id"] == nil && isTerminal(a.input.stdin) {
			if err := a.ask(cmd.Context(), data, "secret_id", "Secret ID"); err != nil {
				return nil, err
			}
		}
	}
	return c.Write(cmd.Context(), target, data)
}

// ask prompts for data[key] if it is missing.
func (a *app) ask(ctx context.Context, data map[string]any, key, title string) error {
	if data[key] != nil {
		return nil
	}
	text, err := a.prompt(ctx, title)
	if err == nil {
		data[key] = text
	}
	return err
}

// prompt reads a line from the terminal without showing it. Without a terminal it fails and says what to do instead.
func (a *app) prompt(ctx context.Context, title string) (string, error) {
	file, ok := a.input.stdin.(*os.File)
	if !ok || !isTerminal(file) {
		return "", fmt.Errorf("%s: there is no terminal to ask on; give it on standard input (-, or key=-) or from a file (key=@file)", strings.ToLower(title))
	}
	a.progress.end()
	before, err := term.GetState(int(file.Fd()))
	if err != nil {
		return "", fmt.Errorf("terminal: %w", err)
	}
	defer func() { _ = term.Restore(int(file.Fd()), before) }()
	_, _ = io.WriteString(a.err, title+" (will be hidden): ")
	type line struct {
		text []byte
		err  error
	}
	typed := make(chan line, 1)
	go func() {
		text, err := term.ReadPassword(int(file.Fd()))
		typed <- line{text, err}
	}()
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case l := <-typed:
		_, _ = io.WriteString(a.err, "\n")
		if l.err != nil {
			return "", fmt.Errorf("terminal: %w", l.err)
		}
		return string(l.text), nil
	}
}
