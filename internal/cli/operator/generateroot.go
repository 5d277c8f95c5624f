package operator

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

const attempt = "sys/generate-root/attempt"

func operatorGenerateRoot(a *session.Session) *cobra.Command {
	var begin, cancel, status, generateOTP, dr, recovery bool
	var decode, otp, nonce string
	var key pgpKeys
	var from keySource
	command := a.Remote("generate-root [KEY]", "Make a root token, by those who hold the server's key", `
For the day when no token is good for anything any more. The new token comes out encrypted, so that who gives the last share
does not see it: under a one-time password, which -init prints, or under a PGP key.

  lessor operator generate-root -init                           begins, and prints a one-time password
  lessor operator generate-root                                 gives one share (until there are enough)
  lessor operator generate-root -key-file=FILE                  gives the key of a key file as the one share
  lessor operator generate-root -decode=TOKEN -otp=PASSWORD     decrypts the token (- reads it from standard input)
  lessor operator generate-root -status | -cancel               tells how far it has come; gives up

KEY is asked for and not shown; - reads it from standard input, @file from a file; both then need -nonce, which -init printed.`,
		0, 1, func(cmd *cobra.Command, args []string) error {
			if dr || recovery {
				return session.Usage(cmd, "lessor has root tokens only: no tokens for disaster recovery or recovery mode")
			}
			ctx := cmd.Context()
			c, err := a.Unwrapped()
			if err != nil {
				return err
			}
			switch {
			case generateOTP:
				return makeOTP(a, ctx, c)
			case decode != "":
				return decodeRoot(a, cmd, decode, otp)
			case cancel:
				if _, err := c.Delete(ctx, attempt, nil); err != nil {
					return err
				}
				return a.Say("Success! Root token generation canceled (if it was started)")
			case begin:
				if otp != "" && len(key) > 0 {
					return session.Usage(cmd, "-otp and -pgp-key exclude each other")
				}
				body := map[string]any{"otp": otp, "pgp_key": ""}
				if len(key) > 0 {
					body["pgp_key"] = key[0]
				}
				answer, err := c.Write(ctx, attempt, body)
				if err != nil {
					return err
				}
				return printAttempt(a, answer)
			case status:
				answer, err := c.Read(ctx, attempt, nil)
				if err != nil {
					return err
				}
				return printAttempt(a, answer)
			}
			return generateRoot(a, ctx, cmd, c, from, args, nonce)
		})
	from.flag(command)
	f := command.Flags()
	f.BoolVar(&begin, "init", false, "begin")
	f.BoolVar(&cancel, "cancel", false, "give up")
	f.BoolVar(&status, "status", false, "tell how far it has come")
	f.StringVar(&decode, "decode", "", "decrypt this `token` with -otp; - reads it from standard input")
	f.BoolVar(&generateOTP, "generate-otp", false, "make a one-time password; -init does so itself")
	f.StringVar(&otp, "otp", "", "one-time `password` of -init or -decode; @file takes it from a file")
	f.Var(&key, "pgp-key", "`file` of a public PGP key to encrypt the token with, at -init")
	f.StringVar(&nonce, "nonce", "", "`nonce` that -init printed")
	f.BoolVar(&dr, "dr-token", false, "")
	f.BoolVar(&recovery, "recovery-token", false, "")
	_, _ = f.MarkHidden("dr-token"), f.MarkHidden("recovery-token")
	return command
}

// generateRoot gives one share.
func generateRoot(a *session.Session, ctx context.Context, cmd *cobra.Command, c *client.Client, from keySource, args []string, nonce string) error {
	state, err := c.WithPreview(nil).Read(ctx, attempt, nil)
	if err != nil {
		return err
	}
	if started, _ := state.Data["started"].(bool); !started {
		return session.Usage(cmd, "no root generation is in progress: begin one with lessor operator generate-root -init")
	}
	current := session.OrEmpty(state.Data["nonce"])
	if len(args) == 0 && from.file == "" && a.CanAsk() {
		_, _ = fmt.Fprintf(a.Err, "Operation nonce: %s\n", session.PrintableLine(current))
	}
	share, asked, err := share(a, ctx, from, args, "Unseal Key")
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
	answer, err := c.Write(ctx, "sys/generate-root/update", map[string]any{"key": share.Reveal(), "nonce": nonce})
	if err != nil {
		return err
	}
	return printAttempt(a, answer)
}

// printAttempt writes how far a root generation has come.
func printAttempt(a *session.Session, answer *client.Response) error {
	a.Warn(answer)
	s := answer.Data
	if otp := session.OrEmpty(s["otp"]); otp != "" && a.ForPeople() {
		a.Complain("The OTP below is a one-time password, made for you: without it the new root token cannot be decrypted. Keep it to yourself.")
	}
	return a.Print(answer, func() error {
		rows := []session.Row{
			{"Nonce", session.Cell("", session.OrEmpty(s["nonce"]))},
			{"Started", fmt.Sprint(s["started"])},
			{"Progress", fmt.Sprintf("%v/%v", s["progress"], s["required"])},
			{"Complete", fmt.Sprint(s["complete"])},
		}
		add := func(title, key string) bool {
			text := session.OrEmpty(s[key])
			if text != "" {
				rows = append(rows, session.Row{title, text})
			}
			return text != ""
		}
		add("PGP Fingerprint", "pgp_fingerprint")
		if !add("Encoded Token", "encoded_token") {
			add("Encoded Root Token", "encoded_root_token")
		}
		add("OTP", "otp")
		if length, ok := s["otp_length"].(json.Number); ok && length != "0" {
			rows = append(rows, session.Row{"OTP Length", length.String()})
		}
		for i := range rows {
			rows[i][1] = session.PrintableLine(rows[i][1])
		}
		_, err := a.Out.Write([]byte(session.Align(rows)))
		return err
	})
}

// otpLength asks how long a one-time password must be: as long as a token.
func otpLength(ctx context.Context, c *client.Client) (int, error) {
	state, err := c.WithPreview(nil).Read(ctx, attempt, nil)
	if err != nil {
		return 0, err
	}
	number, _ := state.Data["otp_length"].(json.Number)
	n, err := number.Int64()
	if err != nil || n < 1 || n > 1024 {
		return 0, errors.New("the server did not say how long a one-time password is")
	}
	return int(n), nil
}

func makeOTP(a *session.Session, ctx context.Context, c *client.Client) error {
	length, err := otpLength(ctx, c)
	if err != nil {
		return err
	}
	const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	var otp strings.Builder
	for range length {
		n, err := rand.Int(rand.Reader, big.NewInt(int64(len(alphabet))))
		if err != nil {
			return err
		}
		otp.WriteByte(alphabet[n.Int64()])
	}
	return printOne(a, map[string]any{"otp": otp.String(), "otp_length": length}, otp.String())
}

// decodeRoot decrypts a token: it is the one-time password, XORed, in base64 without padding.
func decodeRoot(a *session.Session, cmd *cobra.Command, encoded, otp string) error {
	if otp == "" {
		return session.Usage(cmd, "-decode needs -otp, which -init printed")
	}
	if strings.HasPrefix(otp, "@") {
		text, err := a.Input.Value(otp)
		if err != nil {
			return err
		}
		otp = strings.TrimSpace(text)
	}
	if encoded == "-" {
		text, err := a.Input.All()
		if err != nil {
			return err
		}
		encoded = text
	}
	token, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(encoded), "="))
	if err != nil {
		return errors.New("the encoded token is not base64")
	}
	if len(token) != len(otp) {
		return fmt.Errorf("token and one-time password do not belong together: one is %d, the other %d bytes long", len(token), len(otp))
	}
	for i := range token {
		token[i] ^= otp[i]
	}
	return printOne(a, map[string]any{"token": string(token)}, string(token))
}

// printOne writes text alone, for people with a newline only, or all for programs.
func printOne(a *session.Session, all map[string]any, text string) error {
	return a.Print(all, func() error {
		if a.Terminal {
			text += "\n"
		}
		_, err := a.Out.Write([]byte(session.Printable(text)))
		return err
	})
}
