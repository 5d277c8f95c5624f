package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/spf13/cobra"
)

const acl = "sys/policies/acl/"

func (a *app) policy() *cobra.Command {
	return group("policy", "Read and write policies, which say who may do what", "",
		a.policyList(), a.policyRead(), a.policyWrite(), a.policyDelete(), a.policyFormat())
}

func (a *app) policyList() *cobra.Command {
	return a.remote("list", "List policies", "", 0, 0, func(cmd *cobra.Command, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		answer, err := c.List(cmd.Context(), acl)
		if err = explainMissing(err, acl, ""); err != nil {
			return err
		}
		if answer.WrapInfo != nil {
			return a.printAnswer(answer, "")
		}
		names := answer.Keys()
		return a.print(names, func() error {
			for _, name := range names {
				if _, err := fmt.Fprintln(a.out, printableLine(name)); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func (a *app) policyRead() *cobra.Command {
	return a.completeArgument(a.remote("read NAME", "Print a policy", "", 1, 1, func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		answer, err := c.Read(cmd.Context(), acl+cleanPath(args[0]), nil)
		if err = explainMissing(err, acl+args[0], "What there is: lessor policy list"); err != nil {
			return err
		}
		if answer.WrapInfo != nil {
			return a.printAnswer(answer, "")
		}
		text, ok := answer.Data["policy"].(string)
		if !ok {
			return errors.New("the server's answer holds no policy")
		}
		a.warn(answer)
		return a.print(answer.Data, func() error {
			_, err := fmt.Fprintln(a.out, strings.TrimSpace(text))
			return err
		})
	}), 0, completeUnder(acl))
}

func (a *app) policyWrite() *cobra.Command {
	return a.completeArgument(a.remote("write NAME FILE", "Write a policy from a file, or from standard input (-)", `
  lessor policy write app app.hcl
  generate | lessor policy write app -`,
		2, 2, func(cmd *cobra.Command, args []string) error {
			text, err := a.fileOrStdin(args[1])
			if err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			answer, err := c.Write(cmd.Context(), acl+cleanPath(args[0]), map[string]any{"policy": text})
			if err != nil {
				return err
			}
			a.warn(answer)
			name := strings.ToLower(strings.TrimSpace(args[0]))
			if name != args[0] {
				a.complain("The policy's name is lower case: %s", printableLine(name))
			}
			return a.say("Success! Uploaded policy: %s", name)
		}), 0, completeUnder(acl))
}

func (a *app) policyDelete() *cobra.Command {
	return a.completeArgument(a.remote("delete NAME", "Delete a policy", `
Tokens that name it keep the name and lose what it granted.`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			answer, err := c.Delete(cmd.Context(), acl+cleanPath(args[0]), nil)
			if err != nil {
				return err
			}
			a.warn(answer)
			return a.say("Success! Deleted policy: %s", args[0])
		}), 0, completeUnder(acl))
}

func (a *app) policyFormat() *cobra.Command {
	command := &cobra.Command{
		Use:   "fmt FILE",
		Short: "Format a policy file in place, or from standard input (-) to standard output",
		Long:  describe("Format a policy file in place, or from standard input (-) to standard output", "It needs no server. A file that is not well-formed is left as it is."),
		Args:  arguments(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			text, err := a.fileOrStdin(args[0])
			if err != nil {
				return err
			}
			formatted, err := formatPolicy(text)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if args[0] == "-" {
				_, err := io.WriteString(a.out, formatted)
				return err
			}
			if formatted != text {
				if err := replaceFile(args[0], formatted); err != nil {
					return err
				}
			}
			return a.say("Success! Formatted policy: %s", args[0])
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

// fileOrStdin reads a file, or standard input for "-".
func (a *app) fileOrStdin(name string) (string, error) {
	if name == "-" {
		return a.input.all()
	}
	text, err := os.ReadFile(name)
	return string(text), err
}

// replaceFile writes text in a file's place at once, with the file's mode.
func replaceFile(name, text string) error {
	name, err := filepath.EvalSymlinks(name)
	if err != nil {
		return err
	}
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	return writeFile(name, info.Mode().Perm(), func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	})
}

// writeFile lets fill write a new file beside name, and puts it in name's place once it is complete and durable.
func writeFile(name string, mode os.FileMode, fill func(io.Writer) error) (err error) {
	if info, err := os.Lstat(name); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a plain file, and cannot be replaced", name)
	}
	file, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(file.Name())
		}
	}()
	err = fill(file)
	if err == nil {
		err = file.Chmod(mode)
	}
	if err == nil {
		err = file.Sync()
	}
	if closing := file.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(file.Name(), name)
	}
	return err
}
