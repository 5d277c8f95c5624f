package cli

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
)

// rekeying is the API's path of one of the two kinds of keys that can be split anew, and how they are called.
type rekeying struct{ path, backup, name string }

var rekeyings = map[string]rekeying{
	"barrier":  {"sys/rekey", "sys/rekey/backup", "unseal"},
	"recovery": {"sys/rekey-recovery-key", "sys/rekey/recovery-key-backup", "recovery"},
	"hsm":      {"sys/rekey-recovery-key", "sys/rekey/recovery-key-backup", "recovery"},
}

func (a *app) operatorRekey() *cobra.Command {
	var begin, cancel, status, verify, backup, backupDelete, backupRetrieve bool
	var shares, threshold int
	var nonce, target string
	var keys pgpKeys
	var from keySource
	command := a.remote("rekey [KEY]", "Split the key anew: new shares take the place of the old ones", `
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
				return usage(cmd, "-target must be barrier or recovery")
			}
			if cancel && verify && nonce != "" {
				return usage(cmd, "-cancel takes -nonce or -verify, not both")
			}
			c, err := a.unwrapped()
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
				return a.say("Success! Delete stored keys (if they existed)")
			case backupRetrieve:
				answer, err := c.Read(ctx, kind.backup, nil)
				if err != nil {
					return err
				}
				return a.printAnswer(answer, "")
			case cancel:
				request := client.Request{Method: http.MethodDelete, Path: kind.path + part}
				if !verify {
					// A server may ask for the nonce of what is given up.
					if state, err := c.WithPreview(nil).Read(ctx, kind.path+part, nil); err == nil && nonce == "" {
						nonce = orEmpty(state.Data["nonce"])
					}
					request.Body = map[string]any{"nonce": nonce}
				}
				if _, err := c.Do(ctx, request); err != nil {
					return err
				}
				return a.say("Success! Canceled rekeying (if it was started)")
			case begin:
				body := map[string]any{
					"secret_shares": shares, "secret_threshold": threshold, "stored_shares": 0, "pgp_keys": []string(keys),
					"backup": backup, "require_verification": verify,
				}
				answer, err := c.Write(ctx, kind.path+"/init", body)
				if err != nil {
					return err
				}
				a.warnOfRekeying(kind, len(keys) > 0, backup)
				return a.printRekeying(answer)
			case status:
				return a.rekeyStatus(ctx, c, kind, part)
			}
			return a.rekey(ctx, cmd, c, kind, verify, from, args, nonce)
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
func (a *app) warnOfRekeying(kind rekeying, encrypted, backup bool) {
	switch {
	case !a.forPeople():
	case !encrypted:
		a.complain("WARNING! The new %s shares will be printed once, and shown to who gives the last old one. -pgp-keys would encrypt each\n"+
			"for its owner, and -backup would keep them on the server: to have that, -cancel this and begin again.\n", kind.name)
	case !backup:
		a.complain("WARNING! The new %s shares will be printed once, encrypted. If they get lost before their owners have them, they are\n"+
			"gone; -backup would keep them on the server: to have that, -cancel this and begin again.\n", kind.name)
	}
}

// rekey gives one share.
func (a *app) rekey(ctx context.Context, cmd *cobra.Command, c *client.Client, kind rekeying, verify bool, from keySource, args []string, nonce string) error {
	part, give := "/init", "/update"
	if verify {
		part, give = "/verify", "/verify"
	}
	state, err := c.WithPreview(nil).Read(ctx, kind.path+part, nil)
	if err != nil {
		return err
	}
	if started, _ := state.Data["started"].(bool); !started {
		return usage(cmd, "no rekey is in progress: begin one with lessor operator rekey -init")
	}
	current := orEmpty(state.Data["nonce"])
	if len(args) == 0 && from.file == "" && a.canAsk() {
		_, _ = fmt.Fprintf(a.err, "Rekey operation nonce: %s\n", printableLine(current))
	}
	share, asked, err := a.share(ctx, from, args, strings.ToUpper(kind.name[:1])+kind.name[1:]+" Key")
	if err != nil {
		return err
	}
	if asked || from.file != "" && nonce == "" {
		nonce = current
	}
	if nonce == "" {
		return usage(cmd, "give -nonce, which -init printed (or -status): it makes sure that the share goes where you mean it to")
	}
	a.progress.begin("waiting for " + c.Address())
	answer, err := c.Write(ctx, kind.path+give, map[string]any{"key": share.Reveal(), "nonce": nonce})
	if err != nil {
		return err
	}
	if complete, _ := answer.Data["complete"].(bool); !complete {
		return a.rekeyStatus(ctx, c, kind, part)
	}
	if verify {
		return a.say("Rekey verification successful. The rekey operation is complete and the new keys are now active.")
	}
	return a.printRekeyed(ctx, c, kind, state.Data, answer)
}

func (a *app) rekeyStatus(ctx context.Context, c *client.Client, kind rekeying, part string) error {
	answer, err := c.Read(ctx, kind.path+part, nil)
	if err != nil {
		return err
	}
	return a.printRekeying(answer)
}

// printRekeying writes how far a rekeying, or its verification, has come.
func (a *app) printRekeying(answer *client.Response) error {
	a.warn(answer)
	return a.print(answer, func() error {
		s := answer.Data
		rows := []row{}
		add := func(title, format string, values ...any) {
			rows = append(rows, row{title, printableLine(fmt.Sprintf(format, values...))})
		}
		if _, rekeys := s["required"]; !rekeys {
			add("Started", "%v", s["started"])
			add("New Shares", "%v", s["n"])
			add("New Threshold", "%v", s["t"])
			add("Verification Nonce", "%v", cell("", orEmpty(s["nonce"])))
			add("Verification Progress", "%v/%v", s["progress"], s["t"])
			return a.pairs(rows)
		}
		add("Nonce", "%v", cell("", orEmpty(s["nonce"])))
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
			if nonce := orEmpty(s["verification_nonce"]); nonce != "" {
				add("Verification Nonce", "%s", nonce)
			}
		}
		if prints, _ := s["pgp_fingerprints"].([]any); len(prints) > 0 {
			add("PGP Fingerprints", "%v", prints)
			add("Backup", "%v", s["backup"])
		}
		return a.pairs(rows)
	})
}

// printRekeyed writes the new shares. before is the state in which the rekeying was.
func (a *app) printRekeyed(ctx context.Context, c *client.Client, kind rekeying, before map[string]any, answer *client.Response) error {
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
	err := a.print(answer, func() error {
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
		_, err := a.out.Write([]byte(b.String()))
		return err
	})
	if err != nil || !verify || !a.forPeople() {
		return err
	}
	return a.rekeyStatus(ctx, c, kind, "/verify")
}
