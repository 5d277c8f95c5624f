package secret

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/internal/agent"
	"github.com/lessor-dev/lessor/internal/cli/session"
	"github.com/lessor-dev/lessor/internal/run"
)

// Agent is the command agent, and what belongs to it.
func Agent(a *session.Session) *cobra.Command {
	var files []string
	var once bool
	command := a.Local("agent", "Keep files of secrets for programs that know nothing of lessor", `
It logs in, stays logged in, and writes files from templates, anew whenever a secret in them changes; then it runs the template's command. Once that
has succeeded, an old password is no longer waited for here. Its sockets lead programs that speak Vault's protocol to the server.

  lessor agent -config=/etc/lessor/agent.hcl

Configurations of Vault Agent's work; what of them is not here is refused by name. Where the configuration says nothing of the server, the environment
does (LESSOR_ADDR and so on). SIGHUP has templates read anew, SIGTERM ends the agent and its leases.`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return session.Usage(cmd, "it needs -config=FILE")
			}
			read := func() (agent.Config, error) {
				c, err := agent.Parse(a.Env, files...)
				c.ExitAfterAuth = c.ExitAfterAuth || once
				return c, err
			}
			config, err := read()
			if err != nil {
				return err
			}
			if err := run.Harden(); err != nil {
				a.Complain("Warning: core dumps may show secrets: %v", err)
			}
			log := slog.New(slog.NewTextHandler(a.Err, nil))
			for _, note := range config.Notes {
				log.Warn(note)
			}
			hangup := make(chan os.Signal, 1)
			signal.Notify(hangup, syscall.SIGHUP)
			defer signal.Stop(hangup)
			reload := make(chan struct{})
			go func() {
				for {
					select {
					case <-cmd.Context().Done():
						return
					case <-hangup:
					}
					select {
					case <-cmd.Context().Done():
						return
					case reload <- struct{}{}:
					}
				}
			}()
			return agent.Run(cmd.Context(), config, agent.Options{Log: log, Reload: reload, Read: read})
		})
	f := command.Flags()
	f.StringArrayVar(&files, "config", nil, "configuration `file`, HCL or JSON, or a folder of them; may be repeated")
	f.BoolVar(&once, "exit-after-auth", false, "end once it has logged in and written all files, and leave them their leases")
	command.AddCommand(agentStatus(a))
	return command
}

func agentStatus(a *session.Session) *cobra.Command {
	var files []string
	var socket string
	command := a.Local("status", "Show how an agent, its templates and its secrets stand", `
The agent is the one with this configuration, or with this socket (status_socket). Exit codes: 0 all is current, 2 something is not, 1 an error, or no agent.`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			if socket == "" && len(files) > 0 {
				config, err := agent.Parse(a.Env, files...)
				if err != nil {
					return err
				}
				socket = config.StatusSocket
			}
			if socket == "" {
				return session.Usage(cmd, "it needs -socket=FILE, or -config=FILE with a status_socket")
			}
			status, err := agent.ReadStatus(cmd.Context(), socket)
			if err != nil {
				return errors.New("no agent answers at " + socket)
			}
			if err := a.Print(status, func() error { return printAgent(a, status) }); err != nil {
				return err
			}
			if !status.Current() {
				return session.ExitCode(session.ExitRemote)
			}
			return nil
		})
	f := command.Flags()
	f.StringArrayVar(&files, "config", nil, "the agent's configuration `file`; may be repeated")
	f.StringVar(&socket, "socket", "", "the agent's status socket, a `file`")
	return command
}

func printAgent(a *session.Session, s agent.Status) error {
	rows := []session.Row{
		{"Started", session.Moment(s.Started)}, {"Logged in", strconv.FormatBool(s.LoggedIn)}, {"Instance", session.Dash(session.Printable(s.Instance))},
	}
	if s.Error != "" {
		rows = append(rows, session.Row{"Error", session.Printable(s.Error)})
	}
	if err := a.Pairs(rows); err != nil {
		return err
	}
	var templates, secrets []session.Row
	for _, t := range s.Templates {
		templates = append(templates, session.Row{session.Printable(t.Destination), t.State, session.Moment(t.Rendered), session.Dash(session.Printable(t.Error))})
	}
	for _, one := range s.Secrets {
		secrets = append(secrets, session.Row{session.Printable(one.Path), fmt.Sprint(one.Version), fmt.Sprint(one.Settled), session.Dash(session.Printable(one.Error))})
	}
	for _, table := range []struct {
		headings session.Row
		rows     []session.Row
	}{{session.Row{"Template", "State", "Written", "Error"}, templates}, {session.Row{"Secret", "Version", "Settled", "Error"}, secrets}} {
		if len(table.rows) == 0 {
			continue
		}
		if _, err := fmt.Fprintln(a.Out); err != nil {
			return err
		}
		if err := a.Table(table.headings, table.rows); err != nil {
			return err
		}
	}
	return nil
}
