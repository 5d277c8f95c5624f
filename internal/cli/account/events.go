package account

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

// Events is the group events.
func Events(a *session.Session) *cobra.Command {
	return session.Group("events", "Hear of changes as they happen", "", eventsSubscribe(a))
}

func eventsSubscribe(a *session.Session) *cobra.Command {
	var after, filter string
	var paths []string
	var timeout session.Duration
	var limit int
	command := a.Remote("subscribe TYPE", "Show events of a type as they happen, one JSON object a line", `
A * in TYPE stands for any characters. Shown is what happens to what the token may read. It goes on until it is interrupted,
through restarts of the server. lessor/rotated tells of each new version of a static secret, whatever keeps it.

  lessor events subscribe 'kv-v2/*'
  lessor events subscribe -path='secret/data/app*' lessor/rotated
  lessor events subscribe -filter='operation == "data-delete"' 'kv*'`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			s := c.SubscribeAfter(after, args[0])
			if after == "" {
				if s, err = c.Subscribe(cmd.Context(), args[0]); err != nil {
					return err
				}
			}
			s.Filter = filter
			for _, p := range paths {
				s.Paths = append(s.Paths, strings.Trim(p, "/"))
			}
			ctx := cmd.Context()
			if timeout != "" {
				d, err := client.ParseDuration(string(timeout))
				if err != nil {
					return err
				}
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, d)
				defer cancel()
			}
			for shown := 0; ; {
				events, err := s.Next(ctx)
				switch {
				case ctx.Err() != nil:
					return nil // the usual end
				case errors.Is(err, client.ErrLostPlace):
					a.Complain("Some events are not shown, since they were too long ago, or the server's store was put back to an earlier state.")
					continue
				case err != nil:
					return err
				}
				a.Progress.End()
				for _, e := range events {
					if _, err := fmt.Fprintln(a.Out, string(e.Raw)); err != nil {
						return err
					}
					if shown++; shown == limit {
						return nil
					}
				}
			}
		})
	f := command.Flags()
	f.StringVar(&after, "after", "", "go on behind this `cursor`, an event's lessorcursor (default what comes next)")
	f.StringVar(&filter, "filter", "", "only what this `expression` is true of: comparisons with ==, != and contains, joined by and, or, not")
	f.StringArrayVar(&paths, "path", nil, "only what is read by this `path`, which may end in *; may be repeated")
	f.Var(&timeout, "timeout", "end after this `duration`")
	f.IntVar(&limit, "limit", 0, "end after this `number` of events")
	return command
}
