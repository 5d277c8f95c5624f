package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

// JoinOptions ask that this machine becomes a server of a cluster.
type JoinOptions struct {
	Config, KeyFile   string // to be made; empty: as for lessor server
	Node              string // empty: the machine's name
	Listen            string // host:port; empty: loopback
	CertFile, CertKey string // of the listener
	APIAddr           string
	ConnectionURLFile string // empty: the cluster tells the database's URL

	// Ask sends the request with the join secret, and returns the answer's "welcome", which only this machine can open.
	Ask func(ctx context.Context, request map[string]any) (welcome string, err error)
}

// Joined is what joining made.
type Joined struct {
	Node    string `json:"node"`
	Config  string `json:"config"`
	KeyFile string `json:"key_file"`
}

const joinSecrets = "sys/lessor/join-secrets"

func operatorJoinSecret(a *session.Session) *cobra.Command {
	var ttl, node, out string
	command := a.Remote("join-secret", "Make a join secret, which lets one machine join the cluster, once", `
On the machine that is to join: lessor operator join. Whoever has the secret meanwhile can join instead, and then has the store's key:
let it be short-lived, name the node, and hand it over as you would a key. It ends with the token that made it.

  lessor operator join-secret -node=node2 -out=node2.secret`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			body := map[string]any{}
			if ttl != "" {
				d, err := client.ParseDuration(ttl)
				if err != nil {
					return session.Usage(cmd, "-ttl: %s", err.Error())
				}
				body["ttl"] = int64(d / time.Second)
			}
			if node != "" {
				body["node"] = node
			}
			if out != "" {
				if _, err := os.Lstat(out); err == nil {
					return fmt.Errorf("%s exists already: name another file", out)
				}
			}
			c, err := a.Connect()
			if err != nil {
				return err
			}
			answer, err := c.Write(cmd.Context(), joinSecrets, body)
			if err != nil {
				return err
			}
			if out == "" || answer.WrapInfo != nil {
				return a.PrintAnswer(answer, "")
			}
			secret, _ := answer.Data["join_secret"].(string)
			if err := session.WriteFile(out, 0o600, func(w io.Writer) error { _, err := io.WriteString(w, secret+"\n"); return err }); err != nil {
				return err
			}
			delete(answer.Data, "join_secret")
			answer.Data["file"] = out
			return a.PrintAnswer(answer, "")
		})
	f := command.Flags()
	f.StringVar(&ttl, "ttl", "", "how long it is good for, as a `duration`: 24h at most (default 15m)")
	f.StringVar(&node, "node", "", "`name` of the node that it is for (default any)")
	f.StringVar(&out, "out", "", "write it to a new `file` that only you can read, instead of printing it")
	return command
}

func operatorJoin(a *session.Session, commands Commands) *cobra.Command {
	var o JoinOptions
	var secretFile string
	command := a.Remote("join", "Let this machine join a cluster: make its key and its configuration", `
Asks a server of the cluster, whose certificate it verifies, with a join secret of lessor operator join-secret. The machine makes a key
of its own, which never leaves it, and writes a complete configuration; afterwards lessor server -config=FILE serves. If the
command is cut off, run it again with another join secret, or start the server if the configuration is there.

  lessor operator join -address=https://node1.example.org:8200 -secret-file=node2.secret -node-name=node2`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			if secretFile == "" {
				return session.Usage(cmd, "-secret-file is missing: the file with the join secret, or - for standard input")
			}
			text, err := a.FileOrStdin(secretFile)
			if err != nil {
				return err
			}
			secret := client.NewToken(strings.TrimSpace(text))
			if secret.Empty() {
				return errors.New("there is no join secret in " + secretFile)
			}
			a.Tokenless = true
			c, err := a.Unwrapped()
			if err != nil {
				return err
			}
			if !c.Authentic() {
				return fmt.Errorf("%s may be anybody, who would join with the secret instead: use https, and trust its certificate with -ca-cert", c.Address())
			}
			c = c.WithToken(secret)
			o.Ask = func(ctx context.Context, request map[string]any) (string, error) {
				answer, err := c.Write(ctx, "sys/lessor/join", request)
				if refused, ok := errors.AsType[*client.Error](err); ok && refused.Status == http.StatusForbidden {
					return "", fmt.Errorf("%s: the join secret was used, revoked, has expired, or is for another node: make another with lessor operator join-secret", c.Address())
				}
				if err != nil {
					return "", err
				}
				a.Warn(answer)
				welcome, _ := answer.Data["welcome"].(string)
				return welcome, nil
			}
			made, err := commands.Join(cmd.Context(), o)
			if err != nil {
				return err
			}
			return a.Print(made, func() error {
				return a.Say("Success! %s is a node of the cluster. Start it with: lessor server -config=%s\nIts key: %s", made.Node, made.Config, made.KeyFile)
			})
		})
	f := command.Flags()
	f.StringVar(&secretFile, "secret-file", "", "`file` with the join secret, or - for standard input")
	f.StringVar(&o.Config, "config", "", "configuration `file` to write (default lessor.hcl where the key file is by default)")
	f.StringVar(&o.KeyFile, "key-file", "", "key `file` to make (default seal.key beside the configuration)")
	f.StringVar(&o.Node, "node-name", "", "`name` of the new node (LESSOR_NODE_NAME; default the machine's)")
	f.StringVar(&o.Listen, "listen", "", "`host:port` that the new node listens on (default 127.0.0.1:8200)")
	f.StringVar(&o.CertFile, "tls-cert-file", "", "PEM `file` of the new node's certificate")
	f.StringVar(&o.CertKey, "tls-key-file", "", "PEM `file` of its key")
	f.StringVar(&o.APIAddr, "api-addr", "", "`URL` at which clients reach the new node (LESSOR_API_ADDR)")
	f.StringVar(&o.ConnectionURLFile, "connection-url-file", "", "`file` with the database's URL, instead of the one that the cluster would tell")
	return command
}
