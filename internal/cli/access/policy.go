package access

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/internal/cli/session"
)

const acl = "sys/policies/acl/"

// Policy is the group policy.
func Policy(a *session.Session) *cobra.Command {
	return session.Group("policy", "Read and write policies, which say who may do what", "",
		policyList(a), policyRead(a), policyWrite(a), policyDelete(a), policyFormat(a))
}

func policyList(a *session.Session) *cobra.Command {
	return a.Remote("list", "List policies", "", 0, 0, func(cmd *cobra.Command, _ []string) error {
		c, err := a.Connect()
		if err != nil {
			return err
		}
		answer, err := c.List(cmd.Context(), acl)
		if err = session.ExplainMissing(err, acl, ""); err != nil {
			return err
		}
		if answer.WrapInfo != nil {
			return a.PrintAnswer(answer, "")
		}
		names := answer.Keys()
		return a.Print(names, func() error {
			for _, name := range names {
				if _, err := fmt.Fprintln(a.Out, session.PrintableLine(name)); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func policyRead(a *session.Session) *cobra.Command {
	return a.CompleteArgument(a.Remote("read NAME", "Print a policy", "", 1, 1, func(cmd *cobra.Command, args []string) error {
		c, err := a.Connect()
		if err != nil {
			return err
		}
		answer, err := c.Read(cmd.Context(), acl+session.CleanPath(args[0]), nil)
		if err = session.ExplainMissing(err, acl+args[0], "What there is: lessor policy list"); err != nil {
			return err
		}
		if answer.WrapInfo != nil {
			return a.PrintAnswer(answer, "")
		}
		text, ok := answer.Data["policy"].(string)
		if !ok {
			return errors.New("the server's answer holds no policy")
		}
		a.Warn(answer)
		return a.Print(answer.Data, func() error {
			_, err := fmt.Fprintln(a.Out, strings.TrimSpace(text))
			return err
		})
	}), 0, session.CompleteUnder(acl))
}

func policyWrite(a *session.Session) *cobra.Command {
	return a.CompleteArgument(a.Remote("write NAME FILE", "Write a policy from a file, or from standard input (-)", `
  lessor policy write app app.hcl
  generate | lessor policy write app -`,
		2, 2, func(cmd *cobra.Command, args []string) error {
			text, err := a.FileOrStdin(args[1])
			if err != nil {
				return err
			}
			c, err := a.Connect()
			if err != nil {
				return err
			}
			answer, err := c.Write(cmd.Context(), acl+session.CleanPath(args[0]), map[string]any{"policy": text})
			if err != nil {
				return err
			}
			a.Warn(answer)
			name := strings.ToLower(strings.TrimSpace(args[0]))
			if name != args[0] {
				a.Complain("The policy's name is lower case: %s", session.PrintableLine(name))
			}
			return a.Say("Success! Uploaded policy: %s", name)
		}), 0, session.CompleteUnder(acl))
}

func policyDelete(a *session.Session) *cobra.Command {
	return a.CompleteArgument(a.Remote("delete NAME", "Delete a policy", `
Tokens that name it keep the name and lose what it granted.`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			answer, err := c.Delete(cmd.Context(), acl+session.CleanPath(args[0]), nil)
			if err != nil {
				return err
			}
			a.Warn(answer)
			return a.Say("Success! Deleted policy: %s", args[0])
		}), 0, session.CompleteUnder(acl))
}

func policyFormat(a *session.Session) *cobra.Command {
	command := &cobra.Command{
		Use:   "fmt FILE",
		Short: "Format a policy file in place, or from standard input (-) to standard output",
		Long:  session.Describe("Format a policy file in place, or from standard input (-) to standard output", "It needs no server. A file that is not well-formed is left as it is."),
		Args:  session.Arguments(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			text, err := a.FileOrStdin(args[0])
			if err != nil {
				return err
			}
			formatted, err := formatPolicy(text)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if args[0] == "-" {
				_, err := io.WriteString(a.Out, formatted)
				return err
			}
			if formatted != text {
				if err := session.ReplaceFile(args[0], formatted); err != nil {
					return err
				}
			}
			return a.Say("Success! Formatted policy: %s", args[0])
		},
	}
	return command
}

// formatPolicy formats HCL, and says where it is not well-formed.
func formatPolicy(text string) (string, error) {
	if _, diagnostics := hclsyntax.ParseConfig([]byte(text), "", hcl.InitialPos); diagnostics.HasErrors() {
		first := diagnostics[0]
		line := 1
		if first.Subject != nil {
			line = first.Subject.Start.Line
		}
		return "", fmt.Errorf("line %d: %s: %s", line, first.Summary, first.Detail)
	}
	return string(hclwrite.Format([]byte(text))), nil
}
