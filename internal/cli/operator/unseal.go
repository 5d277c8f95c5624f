package operator

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

// Numbers of shares that Vault's users expect where they name none.
const (
	defaultShares    = 5
	defaultThreshold = 3
)

func operatorInit(a *session.Session) *cobra.Command {
	var status bool
	var shares, threshold, recoveryShares, recoveryThreshold int
	var keys, recoveryKeys pgpKeys
	var rootKey pgpKeys
	command := a.Remote("init", "Make a new store, and split its key among people", `
For servers whose seal is kept by people (Shamir's shares). It prints the shares and a root token, once and never again: hand
each share to somebody else. With -pgp-keys nobody but its owner can read a share, not even who runs this.

  lessor operator init
  lessor operator init -key-shares=3 -key-threshold=2 -pgp-keys=a.asc,b.asc,c.asc

Exit codes with -status: 0 initialized, 2 not, 1 an error.`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			c, err := a.Unwrapped()
			if err != nil {
				return err
			}
			if status {
				return initStatus(a, cmd.Context(), c)
			}
			seal, err := c.WithPreview(nil).Read(cmd.Context(), "sys/seal-status", nil)
			if err != nil {
				return err
			}
			if recovery, _ := seal.Data["recovery_seal"].(bool); recovery {
				recoveryShares, recoveryThreshold = orElse(recoveryShares, defaultShares), orElse(recoveryThreshold, defaultThreshold)
			} else {
				shares, threshold = orElse(shares, defaultShares), orElse(threshold, defaultThreshold)
			}
			body := map[string]any{
				"secret_shares": shares, "secret_threshold": threshold, "recovery_shares": recoveryShares, "recovery_threshold": recoveryThreshold,
			}
			for name, list := range map[string]pgpKeys{"pgp_keys": keys, "recovery_pgp_keys": recoveryKeys} {
				if len(list) > 0 {
					body[name] = list
				}
			}
			if len(rootKey) > 0 {
				body["root_token_pgp_key"] = rootKey[0]
			}
			a.Progress.Begin("initializing")
			answer, err := c.WithTimeout(0).Write(cmd.Context(), "sys/init", body)
			if err != nil {
				return err
			}
			var made initialized
			if err := answer.Decode(&made); err != nil {
				return err
			}
			return printInitialized(a, made, shares, threshold, recoveryShares, recoveryThreshold)
		})
	f := command.Flags()
	f.BoolVar(&status, "status", false, "tell whether the server is initialized, and change nothing")
	f.IntVarP(&shares, "key-shares", "n", 0, "`number` of shares to split the key into (default 5)")
	f.IntVarP(&threshold, "key-threshold", "t", 0, "`number` of shares that it takes to unseal (default 3)")
	f.Var(&keys, "pgp-keys", "`files` of public PGP keys, with commas between them, one for each share, to encrypt it with")
	f.Var(&rootKey, "root-token-pgp-key", "`file` of a public PGP key to encrypt the root token with")
	f.IntVar(&recoveryShares, "recovery-shares", 0, "`number` of recovery shares, for servers that unseal themselves")
	f.IntVar(&recoveryThreshold, "recovery-threshold", 0, "`number` of recovery shares that it takes")
	f.Var(&recoveryKeys, "recovery-pgp-keys", "as -pgp-keys, for the recovery shares")
	f.Int("stored-shares", -1, "accepted for Vault's users")
	_ = f.MarkHidden("stored-shares")
	return command
}

func orElse(n, standard int) int {
	if n == 0 {
		return standard
	}
	return n
}

// initStatus ends the program with Vault's codes: 2 stands for "not initialized", so an error is 1.
func initStatus(a *session.Session, ctx context.Context, c *client.Client) error {
	answer, err := c.Read(ctx, "sys/init", nil)
	if _, shown := errors.AsType[session.Preview](err); shown {
		return err
	}
	if err != nil {
		a.Progress.End()
		a.Complain("%s", session.Sentence(err))
		if advice := a.Advice(err); advice != "" {
			a.Complain("%s", advice)
		}
		return session.ExitCode(session.ExitLocal)
	}
	done, _ := answer.Data["initialized"].(bool)
	err = a.Print(map[string]any{"initialized": done}, func() error {
		if done {
			return a.Say("The server is initialized")
		}
		return a.Say("The server is not initialized")
	})
	if err == nil && !done {
		return session.ExitCode(session.ExitRemote)
	}
	return err
}

// initialized is what sys/init answers.
type initialized struct {
	Keys               []string `json:"keys"`
	KeysBase64         []string `json:"keys_base64"`
	RecoveryKeys       []string `json:"recovery_keys"`
	RecoveryKeysBase64 []string `json:"recovery_keys_base64"`
	RootToken          string   `json:"root_token"`
}

func printInitialized(a *session.Session, made initialized, shares, threshold, recoveryShares, recoveryThreshold int) error {
	some := func(list []string) []string {
		if list == nil {
			return []string{}
		}
		return list
	}
	machine := struct {
		KeysBase64         []string `json:"unseal_keys_b64"`
		KeysHex            []string `json:"unseal_keys_hex"`
		Shares             int      `json:"unseal_shares"`
		Threshold          int      `json:"unseal_threshold"`
		RecoveryKeysBase64 []string `json:"recovery_keys_b64"`
		RecoveryKeysHex    []string `json:"recovery_keys_hex"`
		RecoveryShares     int      `json:"recovery_keys_shares"`
		RecoveryThreshold  int      `json:"recovery_keys_threshold"`
		RootToken          string   `json:"root_token"`
	}{
		some(made.KeysBase64), some(made.Keys), shares, threshold,
		some(made.RecoveryKeysBase64), some(made.RecoveryKeys), recoveryShares, recoveryThreshold, made.RootToken,
	}
	if len(made.Keys) == 0 { // the server keeps its key itself
		machine.Shares, machine.Threshold = 1, 1
	}
	return a.Print(machine, func() error {
		var b strings.Builder
		for i, key := range better(made.KeysBase64, made.Keys) {
			fmt.Fprintf(&b, "Unseal Key %d: %s\n", i+1, key)
		}
		for i, key := range better(made.RecoveryKeysBase64, made.RecoveryKeys) {
			fmt.Fprintf(&b, "Recovery Key %d: %s\n", i+1, key)
		}
		fmt.Fprintf(&b, "\nInitial Root Token: %s\n\n", made.RootToken)
		if len(made.Keys) == 0 {
			b.WriteString("Success! The server is initialized\n")
		} else {
			fmt.Fprintf(&b, "The key is split into %d shares, of which %d unseal the server. Hand each to somebody else, safely. It starts\n"+
				"sealed: after each start, %d of them are needed (lessor operator unseal).\n\n"+
				"The key itself is kept nowhere. With fewer than %d shares left, what the server holds is lost for ever.\n"+
				"New shares can be made while there are enough of the old ones (lessor operator rekey).\n",
				shares, threshold, threshold, threshold)
		}
		if len(made.RecoveryKeys) > 0 {
			fmt.Fprintf(&b, "\nThe recovery key is split into %d shares, of which %d are needed. Hand each to somebody else, safely.\n", recoveryShares, recoveryThreshold)
		}
		_, err := a.Out.Write([]byte(b.String()))
		return err
	})
}

// better is the form of keys to show: base64, unless the server gave hex only.
func better(base64, hex []string) []string {
	if len(base64) == len(hex) {
		return base64
	}
	return hex
}

// keySource is where a share comes from.
type keySource struct {
	file string // a key file, whose key is its only share
}

func (k *keySource) flag(command *cobra.Command) {
	command.Flags().StringVar(&k.file, "key-file", "", "key `file` of lessor whose key is given as the share")
}

// share is the share that args and flags name. It is asked for if they name none; asked tells that.
func share(a *session.Session, ctx context.Context, from keySource, args []string, title string) (share client.Token, asked bool, err error) {
	switch {
	case from.file != "" && len(args) > 0:
		return share, false, errors.New("-key-file and KEY exclude each other")
	case from.file != "":
		share, err = readKeyFile(from.file)
		return share, false, err
	case len(args) > 0 && args[0] != "":
		if name, ok := strings.CutPrefix(args[0], "@"); ok {
			text, err := os.ReadFile(name)
			if err != nil {
				return share, false, err
			}
			args = []string{string(text)}
		}
		if share, err = a.Input.SecretArgument(args[0]); err != nil {
			return share, false, fmt.Errorf("key: %w", err)
		}
		if args[0] != "-" && session.IsTerminal(a.Input.Stdin) && a.ForPeople() {
			a.Complain("A key on the command line can be seen by others and stays in your shell's history: leave it out to be asked for it, or give - or @file.")
		}
		return share, false, nil
	}
	text, err := a.Prompt(ctx, title)
	if err != nil {
		return share, true, err
	}
	if share = client.NewToken(text); share.Empty() {
		return share, true, errors.New("no key was given")
	}
	return share, true, nil
}

// readKeyFile takes the key out of a key file.
func readKeyFile(path string) (client.Token, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return client.Token{}, err
	}
	head, _, _ := strings.Cut(string(text), "\n")
	if strings.HasPrefix(head, "lessor key file, version ") {
		for line := range strings.Lines(string(text)) {
			if key, ok := strings.CutPrefix(line, "key:"); ok {
				return client.NewToken(key), nil
			}
		}
	}
	return client.Token{}, fmt.Errorf("%s is not a key file of lessor", path)
}

func operatorUnseal(a *session.Session) *cobra.Command {
	var reset, migrate bool
	var from keySource
	command := a.Remote("unseal [KEY]", "Give a sealed server a share of its key", `
Without KEY it is asked for and not shown; - reads it from standard input, @file from a file. Once enough shares were given, by
anybody, the server unseals.

  lessor operator unseal
  pass show share | lessor operator unseal -`,
		0, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Unwrapped()
			if err != nil {
				return err
			}
			body := map[string]any{"reset": true}
			if !reset {
				key, _, err := share(a, cmd.Context(), from, args, "Unseal Key")
				if err != nil {
					return err
				}
				body = map[string]any{"key": key.Reveal()}
				if migrate {
					body["migrate"] = true
				}
			}
			a.Progress.Begin("waiting for " + c.Address())
			answer, err := c.Write(cmd.Context(), "sys/unseal", body)
			if err != nil {
				return err
			}
			return printSeal(a, cmd.Context(), c, answer.Data)
		})
	from.flag(command)
	command.Flags().BoolVar(&reset, "reset", false, "forget the shares that were given so far")
	command.Flags().BoolVar(&migrate, "migrate", false, "the share is part of a migration of the seal")
	return command
}

func operatorSeal(a *session.Session) *cobra.Command {
	return a.Remote("seal", "Seal the server: it forgets its keys and answers nothing until it is unsealed", "", 0, 0,
		func(cmd *cobra.Command, _ []string) error {
			c, err := a.Unwrapped()
			if err != nil {
				return err
			}
			if _, err := c.Write(cmd.Context(), "sys/seal", nil); err != nil {
				return err
			}
			return a.Say("Success! The server is sealed.")
		})
}

func operatorKeyStatus(a *session.Session) *cobra.Command {
	return a.Remote("key-status", "Show which key encrypts what is written, and since when", "", 0, 0,
		func(cmd *cobra.Command, _ []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			return printKeyStatus(a, cmd.Context(), c, "")
		})
}

func operatorRotate(a *session.Session) *cobra.Command {
	return a.Remote("rotate", "Encrypt what is written from now on with a new key", `
What was written before stays readable. Nobody notices; no share and no key file changes.`, 0, 0,
		func(cmd *cobra.Command, _ []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			if _, err := c.Write(cmd.Context(), "sys/rotate", nil); err != nil {
				return err
			}
			return printKeyStatus(a, cmd.Context(), c, "Success! Rotated key\n\n")
		})
}

func printKeyStatus(a *session.Session, ctx context.Context, c *client.Client, before string) error {
	answer, err := c.WithWrapTTL(0).Read(ctx, "sys/key-status", nil)
	if err != nil {
		return err
	}
	var key struct {
		Term        int64     `json:"term"`
		Installed   time.Time `json:"install_time"`
		Encryptions int64     `json:"encryptions"`
	}
	if err := answer.Decode(&key); err != nil {
		return err
	}
	return a.Print(map[string]any{"term": key.Term, "install_time": key.Installed, "encryptions": key.Encryptions}, func() error {
		_, err := fmt.Fprint(a.Out, before, session.Align([]session.Row{
			{"Key Term", fmt.Sprint(key.Term)},
			{"Install Time", key.Installed.UTC().Format(time.RFC822)},
			{"Encryption Count", fmt.Sprint(key.Encryptions)},
		}))
		return err
	})
}

func operatorStepDown(a *session.Session) *cobra.Command {
	return a.Remote("step-down", "Let another server of the cluster take over", "", 0, 0, func(cmd *cobra.Command, _ []string) error {
		c, err := a.Connect()
		if err != nil {
			return err
		}
		if _, err := c.Write(cmd.Context(), "sys/step-down", nil); err != nil {
			return err
		}
		return a.Say("Success! Stepped down: %s", c.Address())
	})
}

func operatorMembers(a *session.Session) *cobra.Command {
	return a.Remote("members", "List the servers of the cluster", `
All of those that are active serve everything. What only one may do, such as ending leases that are over, is divided among them: Claims says how much of
it is whose, Failing at how many databases its part of that fails, so that it only probes them. A server that was not heard of for five seconds is lost, what
it did is taken over, and it is forgotten after a minute. The one that answers is marked with an asterisk.`, 0, 0, func(cmd *cobra.Command, _ []string) error {
		c, err := a.Unwrapped()
		if err != nil {
			return err
		}
		answer, err := c.Read(cmd.Context(), "sys/lessor/members", nil)
		if refused, ok := errors.AsType[*client.Error](err); ok && refused.Status == http.StatusNotFound {
			return vaultMembers(a, cmd.Context(), c) // a server of Vault
		}
		if err != nil {
			return err
		}
		var found struct {
			Members []struct {
				ID      string    `json:"id"`
				Name    string    `json:"name"`
				Address string    `json:"address"`
				Version string    `json:"version"`
				State   string    `json:"state"`
				Started time.Time `json:"started"`
				Seen    time.Time `json:"seen"`
				Alive   bool      `json:"alive"`
				Self    bool      `json:"self"`
				Claims  *int      `json:"claims"` // nil: a server of before does not tell
				Failing int       `json:"failing_targets"`
			} `json:"members"`
			Shards int `json:"shards"`
		}
		if err := answer.Decode(&found); err != nil {
			return err
		}
		a.Warn(answer)
		return a.Print(answer.Data["members"], func() error {
			var rows []session.Row
			for _, m := range found.Members {
				name, state, claims := m.Name, m.State, ""
				if m.Self {
					name += " *"
				}
				if !m.Alive {
					state = "lost"
				}
				if m.Claims != nil {
					claims = fmt.Sprintf("%d of %d", *m.Claims, found.Shards)
				}
				failing := "-"
				if m.Failing > 0 {
					failing = fmt.Sprint(m.Failing)
				}
				rows = append(rows, session.Row{
					session.PrintableLine(session.Dash(name)), session.PrintableLine(session.Dash(m.Address)), state, session.Dash(claims), failing, session.PrintableLine(session.Dash(m.Version)),
					session.Moment(m.Started), session.Moment(m.Seen), session.PrintableLine(m.ID),
				})
			}
			return a.Table(session.Row{"Node", "Address", "State", "Claims", "Failing", "Version", "Started", "Last Seen", "ID"}, rows)
		})
	})
}

// vaultMembers lists the servers as Vault tells of them.
func vaultMembers(a *session.Session, ctx context.Context, c *client.Client) error {
	answer, err := c.Read(ctx, "sys/ha-status", nil)
	if err != nil {
		return err
	}
	var found struct {
		Nodes []map[string]any `json:"nodes"`
	}
	if err := answer.Decode(&found); err != nil {
		return err
	}
	a.Warn(answer)
	return a.Print(answer.Data, func() error {
		var rows []session.Row
		for _, node := range found.Nodes {
			var line session.Row
			for _, key := range []string{"hostname", "api_address", "cluster_address", "active_node", "version", "upgrade_version", "redundancy_zone", "last_echo"} {
				value := node[key]
				if value == nil {
					value = ""
				}
				line = append(line, session.PrintableLine(session.Cell("", value)))
			}
			rows = append(rows, line)
		}
		return a.Table(session.Row{"Host Name", "API Address", "Cluster Address", "Active Node", "Version", "Upgrade Version", "Redundancy Zone", "Last Echo"}, rows)
	})
}

const seals = "sys/lessor/seal"

// operatorMigrateSeal changes what unseals the server, while it runs.
func operatorMigrateSeal(a *session.Session) *cobra.Command {
	show := a.Remote("list", "List what can unseal the server", `
Each alone can. What is configured is what the server uses at its next start.`, 0, 0, func(cmd *cobra.Command, _ []string) error {
		c, err := a.Connect()
		if err != nil {
			return err
		}
		answer, err := c.Read(cmd.Context(), seals, nil)
		if err != nil {
			return err
		}
		if answer.WrapInfo != nil {
			return a.PrintAnswer(answer, "")
		}
		var found struct {
			Locks []struct {
				Name       string    `json:"name"`
				ID         string    `json:"id"`
				Added      time.Time `json:"added"`
				Shares     int       `json:"shares"`
				Threshold  int       `json:"threshold"`
				Configured bool      `json:"configured"`
			} `json:"locks"`
		}
		if err := answer.Decode(&found); err != nil {
			return err
		}
		a.Warn(answer)
		return a.Print(answer.Data["locks"], func() error {
			var rows []session.Row
			for _, l := range found.Locks {
				shares := "-"
				if l.Name == "shamir" {
					shares = fmt.Sprintf("%d of %d", l.Threshold, l.Shares)
				}
				rows = append(rows, session.Row{
					session.PrintableLine(l.Name), session.PrintableLine(session.Dash(l.ID)), shares, session.Moment(l.Added), fmt.Sprint(l.Configured),
				})
			}
			return a.Table(session.Row{"Kind", "Key", "Shares", "Added", "Configured"}, rows)
		})
	})
	kinds := cobra.FixedCompletions([]string{"keyfile", "recovery", "shamir"}, cobra.ShellCompDirectiveNoFileComp)
	var keys pgpKeys
	add := a.Remote("add KIND [key=value...]", "Let something more unseal the server: a key file, a recovery file, or people's shares", session.DataHelp+`

  lessor operator migrate-seal add shamir secret_shares=5 secret_threshold=3
  lessor operator migrate-seal add recovery path=/mnt/stick/recovery.key
  lessor operator migrate-seal add keyfile path=/etc/lessor/seal.key

The passphrase of a recovery file is asked for if it is not given (passphrase=@file or passphrase=-).`,
		1, -1, func(cmd *cobra.Command, args []string) error {
			data, err := a.Input.Data(args[1:])
			if err != nil {
				return err
			}
			if len(keys) > 0 {
				data["pgp_keys"] = keys
			}
			if args[0] == "recovery" {
				if err := a.AskTwice(cmd.Context(), data, "passphrase", "Passphrase"); err != nil {
					return err
				}
			}
			c, err := a.Connect()
			if err != nil {
				return err
			}
			a.Progress.Begin("changing the seal")
			answer, err := c.WithTimeout(0).Write(cmd.Context(), seals+"/"+session.CleanPath(args[0]), data)
			if err != nil {
				return err
			}
			a.Warn(answer)
			if answer.WrapInfo != nil {
				return a.PrintAnswer(answer, "")
			}
			var made initialized
			if err := answer.Decode(&made); err != nil {
				return err
			}
			if answer.Data == nil {
				return a.Say("Success! The server can be unsealed by: %s", args[0])
			}
			return a.Print(answer.Data, func() error {
				for i, key := range better(made.KeysBase64, made.Keys) {
					if _, err := fmt.Fprintf(a.Out, "Unseal Key %d: %s\n", i+1, key); err != nil {
						return err
					}
				}
				if len(made.Keys) == 0 {
					if err := a.Pairs(session.DataRows(answer.Data)); err != nil {
						return err
					}
				}
				return a.Say("\nSuccess! The server can be unsealed by: %s", args[0])
			})
		})
	add.Flags().Var(&keys, "pgp-keys", "`files` of public PGP keys, with commas between them, one for each share, to encrypt it with")
	add.ValidArgsFunction = kinds
	remove := a.Remote("remove KIND", "Take something the power to unseal the server away", `
The last one that is left is kept: without any, the store would be lost. Of several servers each may have a key file of its own,
which is called keyfile/NODE: taking it away leaves the others alone.

  lessor operator migrate-seal remove keyfile/node-3`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			answer, err := c.Delete(cmd.Context(), seals+"/"+session.CleanPath(args[0]), nil)
			if err != nil {
				return err
			}
			a.Warn(answer)
			return a.Say("Success! The server cannot be unsealed any more by: %s", args[0])
		})
	remove.ValidArgsFunction = kinds
	return session.Group("migrate-seal", "Change what unseals the server, without stopping it", `
Each kind unseals alone. To move from one to another: add the new one, try it with a restart, then remove the old one.`, show, add, remove)
}

// pgpKeys is a flag of files with public PGP keys. They become what the API takes: each key's bytes in base64.
type pgpKeys []string

func (k *pgpKeys) String() string { return "" }

func (k *pgpKeys) Type() string { return "files" }

func (k *pgpKeys) Set(text string) error {
	if len(*k) > 0 {
		return errors.New("give all files at once, with commas between them")
	}
	for name := range strings.SplitSeq(text, ",") {
		name = strings.TrimPrefix(strings.TrimSpace(name), "@")
		if user, ok := strings.CutPrefix(name, "keybase:"); ok {
			return fmt.Errorf("keys are not fetched from elsewhere: save %s's public key to a file and name that", user)
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		key, err := publicKey(string(content))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		*k = append(*k, key)
	}
	return nil
}

// publicKey reads a public key: armored (RFC 9580, section 6.2), in base64, or its bytes. Whether it is a good one the
// server finds out.
func publicKey(text string) (string, error) {
	const begin, end = "-----BEGIN PGP PUBLIC KEY BLOCK-----", "-----END PGP PUBLIC KEY BLOCK-----"
	if _, armored, ok := strings.Cut(text, begin); ok {
		body, after, closed := strings.Cut(armored, end)
		if !closed || strings.Contains(after, begin) {
			return "", errors.New("it must hold one public key")
		}
		_, body, ok = strings.Cut(strings.ReplaceAll(body, "\r", ""), "\n\n") // past the headers
		if !ok {
			return "", errors.New("the key's armor is damaged")
		}
		var b strings.Builder
		for line := range strings.Lines(body) {
			if line = strings.TrimSpace(line); !strings.HasPrefix(line, "=") { // the checksum
				b.WriteString(line)
			}
		}
		text = b.String()
		if _, err := base64.StdEncoding.DecodeString(text); err != nil {
			return "", errors.New("the key's armor is damaged")
		}
		return text, nil
	}
	if strings.Contains(text, "-----BEGIN PGP") {
		return "", errors.New("it holds no public key")
	}
	if plain := strings.Join(strings.Fields(text), ""); plain != "" {
		if _, err := base64.StdEncoding.DecodeString(plain); err == nil {
			return plain, nil
		}
	}
	if text == "" {
		return "", errors.New("it is empty")
	}
	return base64.StdEncoding.EncodeToString([]byte(text)), nil
}
