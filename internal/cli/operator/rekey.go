package operator

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

// rekeying is the API's path of one of the two kinds of keys that can be split anew, and how they are called.
type rekeying struct{ path, backup, name string }

var rekeyings = map[string]rekeying{
	"barrier":  {"sys/rekey", "sys/rekey/backup", "unseal"},
	"recovery": {"sys/rekey-recovery-key", "sys/rekey/recovery-key-backup", "recovery"},
	"hsm":      {"sys/rekey-recovery-key", "sys/rekey/recovery-key-backup", "recovery"},
}

func operatorRekey(a *session.Session) *cobra.Command {
	var begin, cancel, status, verify, backup, backupDelete, backupRetrieve bool
	var shares, threshold int
	var nonce, target string
	var keys pgpKeys
	var from keySource
	command := a.Remote("rekey [KEY]", "Split the key anew: new shares take the place of the old ones", `
  lessor operator rekey -init -key-shares=5 -key-threshold=3    begins
  lessor operator rekey                                         gives one old share (until there are enough)
  lessor operator rekey -status                                 tells how far it has come
  lessor operator rekey -cancel                                 gives up

With -verify at -init, the new shares come into force when enough of them were given back, with -verify: whoever cannot is noticed
while the old ones still work. KEY is asked for and not shown; - reads it from standard input, @file from a file; both then need
-nonce, which -init printed.`,
		0, 1, func(cmd *cobra.Command, args []string) error {
			kind, ok := rekeyings[strings.ToLower(strings.TrimSpace(target))]
			if !ok {
				return session.Usage(cmd, "-target must be barrier or recovery")
			}
			if cancel && verify && nonce != "" {
				return session.Usage(cmd, "-cancel takes -nonce or -verify, not both")
			}
			c, err := a.Unwrapped()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			part := "/init"
			if verify {
				part = "/verify"
			}
			switch {
			case backupDelete:
				if _, err := c.Delete(ctx, kind.backup, nil); err != nil {
					return err
				}
				return a.Say("Success! Delete stored keys (if they existed)")
			case backupRetrieve:
				answer, err := c.Read(ctx, kind.backup, nil)
				if err != nil {
					return err
				}
				return a.PrintAnswer(answer, "")
			case cancel:
				request := client.Request{Method: http.MethodDelete, Path: kind.path + part}
				if !verify {
					// A server may ask for the nonce of what is given up.
					if state, err := c.WithPreview(nil).Read(ctx, kind.path+part, nil); err == nil && nonce == "" {
						nonce = session.OrEmpty(state.Data["nonce"])
					}
					request.Body = map[string]any{"nonce": nonce}
				}
				if _, err := c.Do(ctx, request); err != nil {
					return err
				}
				return a.Say("Success! Canceled rekeying (if it was started)")
			case begin:
				body := map[string]any{
					"secret_shares": shares, "secret_threshold": threshold, "stored_shares": 0, "pgp_keys": []string(keys),
					"backup": backup, "require_verification": verify,
				}
				answer, err := c.Write(ctx, kind.path+"/init", body)
				if err != nil {
					return err
				}
				warnOfRekeying(a, kind, len(keys) > 0, backup)
				return printRekeying(a, answer)
			case status:
				return rekeyStatus(a, ctx, c, kind, part)
			}
			return rekey(a, ctx, cmd, c, kind, verify, from, args, nonce)
		})
	from.flag(command)
	f := command.Flags()
	f.BoolVar(&begin, "init", false, "begin")
	f.BoolVar(&cancel, "cancel", false, "give up: the old shares stay in force")
	f.BoolVar(&status, "status", false, "tell how far it has come")
	f.BoolVar(&verify, "verify", false, "with -init: ask for the new shares before they come into force; else: this is about giving them")
	f.IntVarP(&shares, "key-shares", "n", defaultShares, "`number` of new shares")
	f.IntVarP(&threshold, "key-threshold", "t", defaultThreshold, "`number` of new shares that it takes")
	f.StringVar(&nonce, "nonce", "", "`nonce` that -init printed")
	f.StringVar(&target, "target", "barrier", "`which` key: barrier, or recovery for servers that unseal themselves")
	f.Var(&keys, "pgp-keys", "`files` of public PGP keys, with commas between them, one for each share, to encrypt it with")
	f.BoolVar(&backup, "backup", false, "let the server keep the encrypted shares, until -backup-delete")
	f.BoolVar(&backupDelete, "backup-delete", false, "let the server forget the encrypted shares that it keeps")
	f.BoolVar(&backupRetrieve, "backup-retrieve", false, "show the encrypted shares that the server keeps")
	return command
}

// warnOfRekeying tells people what can still go wrong.
func warnOfRekeying(a *session.Session, kind rekeying, encrypted, backup bool) {
	switch {
	case !a.ForPeople():
	case !encrypted:
		a.Complain("WARNING! The new %s shares will be printed once, and shown to who gives the last old one. -pgp-keys would encrypt each\n"+
			"for its owner, and -backup would keep them on the server: to have that, -cancel this and begin again.\n", kind.name)
	case !backup:
		a.Complain("WARNING! The new %s shares will be printed once, encrypted. If they get lost before their owners have them, they are\n"+
			"gone; -backup would keep them on the server: to have that, -cancel this and begin again.\n", kind.name)
	}
}

// rekey gives one share.
func rekey(a *session.Session, ctx context.Context, cmd *cobra.Command, c *client.Client, kind rekeying, verify bool, from keySource, args []string, nonce string) error {
	part, give := "/init", "/update"
	if verify {
		part, give = "/verify", "/verify"
	}
	state, err := c.WithPreview(nil).Read(ctx, kind.path+part, nil)
	if err != nil {
		return err
	}
	if started, _ := state.Data["started"].(bool); !started {
		return session.Usage(cmd, "no rekey is in progress: begin one with lessor operator rekey -init")
	}
	current := session.OrEmpty(state.Data["nonce"])
	if len(args) == 0 && from.file == "" && a.CanAsk() {
		_, _ = fmt.Fprintf(a.Err, "Rekey operation nonce: %s\n", session.PrintableLine(current))
	}
	share, asked, err := share(a, ctx, from, args, strings.ToUpper(kind.name[:1])+kind.name[1:]+" Key")
	if err != nil {
		return err
	}
	if asked || from.file != "" && nonce == "" {
		nonce = current
	}
	if nonce == "" {
		return session.Usage(cmd, "give -nonce, which -init printed (or -status): it makes sure that the share goes where you mean it to")
	}
	a.Progress.Begin("waiting for " + c.Address())
	answer, err := c.Write(ctx, kind.path+give, map[string]any{"key": share.Reveal(), "nonce": nonce})
	if err != nil {
		return err
	}
	if complete, _ := answer.Data["complete"].(bool); !complete {
		return rekeyStatus(a, ctx, c, kind, part)
	}
	if verify {
		return a.Say("Rekey verification successful. The rekey operation is complete and the new keys are now active.")
	}
	return printRekeyed(a, ctx, c, kind, state.Data, answer)
}

func rekeyStatus(a *session.Session, ctx context.Context, c *client.Client, kind rekeying, part string) error {
	answer, err := c.Read(ctx, kind.path+part, nil)
	if err != nil {
		return err
	}
	return printRekeying(a, answer)
}

// printRekeying writes how far a rekeying, or its verification, has come.
func printRekeying(a *session.Session, answer *client.Response) error {
	a.Warn(answer)
	return a.Print(answer, func() error {
		s := answer.Data
		rows := []session.Row{}
		add := func(title, format string, values ...any) {
			rows = append(rows, session.Row{title, session.PrintableLine(fmt.Sprintf(format, values...))})
		}
		if _, rekeys := s["required"]; !rekeys {
			add("Started", "%v", s["started"])
			add("New Shares", "%v", s["n"])
			add("New Threshold", "%v", s["t"])
			add("Verification Nonce", "%v", session.Cell("", session.OrEmpty(s["nonce"])))
			add("Verification Progress", "%v/%v", s["progress"], s["t"])
			return a.Pairs(rows)
		}
		add("Nonce", "%v", session.Cell("", session.OrEmpty(s["nonce"])))
		add("Started", "%v", s["started"])
		if started, _ := s["started"].(bool); started {
			done := ""
			if s["progress"] == s["required"] {
				done = " (verification in progress)"
			}
			add("Rekey Progress", "%v/%v%s", s["progress"], s["required"], done)
			add("New Shares", "%v", s["n"])
			add("New Threshold", "%v", s["t"])
			add("Verification Required", "%v", s["verification_required"])
			if nonce := session.OrEmpty(s["verification_nonce"]); nonce != "" {
				add("Verification Nonce", "%s", nonce)
			}
		}
		if prints, _ := s["pgp_fingerprints"].([]any); len(prints) > 0 {
			add("PGP Fingerprints", "%v", prints)
			add("Backup", "%v", s["backup"])
		}
		return a.Pairs(rows)
	})
}

// printRekeyed writes the new shares. before is the state in which the rekeying was.
func printRekeyed(a *session.Session, ctx context.Context, c *client.Client, kind rekeying, before map[string]any, answer *client.Response) error {
	var made struct {
		Keys         []string `json:"keys"`
		KeysBase64   []string `json:"keys_base64"`
		Fingerprints []string `json:"pgp_fingerprints"`
		Backup       bool     `json:"backup"`
		Nonce        string   `json:"nonce"`
	}
	if err := answer.Decode(&made); err != nil {
		return err
	}
	verify, _ := before["verification_required"].(bool)
	err := a.Print(answer, func() error {
		var b strings.Builder
		b.WriteString("\n")
		for i, key := range better(made.KeysBase64, made.Keys) {
			if i < len(made.Fingerprints) {
				fmt.Fprintf(&b, "Key %d fingerprint: %s; value: %s\n", i+1, made.Fingerprints[i], key)
			} else {
				fmt.Fprintf(&b, "Key %d: %s\n", i+1, key)
			}
		}
		fmt.Fprintf(&b, "\nOperation nonce: %s\n\n", made.Nonce)
		if made.Backup && len(made.Fingerprints) > 0 {
			b.WriteString("The server keeps these encrypted shares until: lessor operator rekey -backup-delete\n\n")
		}
		if verify {
			fmt.Fprintf(&b, "The %s key has %v new shares, of which %v will be needed. They are NOT in force yet: hand them out, then let their\n"+
				"owners give them (lessor operator rekey -verify). Until then the old shares are what counts; keep them.\n\n", kind.name, before["n"], before["t"])
		} else {
			fmt.Fprintf(&b, "The %s key has %v new shares, of which %v are needed. The old ones are worth nothing any more. Hand each new one to\n"+
				"somebody else, safely.\n", kind.name, before["n"], before["t"])
		}
		_, err := a.Out.Write([]byte(b.String()))
		return err
	})
	if err != nil || !verify || !a.ForPeople() {
		return err
	}
	return rekeyStatus(a, ctx, c, kind, "/verify")
}
