package session

import (
	"net/http"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
)

// Revoked tells how far a revocation has come.
func (a *Session) Revoked(answer *client.Response, done string) error {
	a.Warn(answer)
	if answer.Status == http.StatusAccepted {
		if err := a.Say("All revocation operations queued successfully!"); err != nil {
			return err
		}
		return a.Say("They are in force now; what is left at targets is being taken back (lessor lease outlived).")
	}
	return a.Say("Success! %s", done)
}

// Call writes body to path and prints the answer; an empty one as done.
func (a *Session) Call(cmd *cobra.Command, path string, body map[string]any, done, field string) error {
	c, err := a.Connect()
	if err != nil {
		return err
	}
	answer, err := c.Write(cmd.Context(), path, body)
	if err != nil {
		return err
	}
	if answer.Empty() && field == "" {
		a.Warn(answer)
		return a.Say("Success! %s", done)
	}
	return a.PrintAnswer(answer, field)
}

// FieldFlag adds -field.
func FieldFlag(command *cobra.Command, field *string) {
	command.Flags().StringVar(field, "field", "", "print only the field of this `name`, and no newline unless on a terminal")
}
