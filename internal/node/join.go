package node

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/system"
)

// welcome is what a machine that joins is told of this node's configuration. nil: no other node can work on the store.
func (l *life) welcome() func(url bool) system.Welcome {
	c := l.n.config
	if !l.n.shared() {
		return nil
	}
	seconds := func(d time.Duration) int64 { return int64(d / time.Second) }
	return func(url bool) system.Welcome {
		w := system.Welcome{
			Connections: c.Storage.Connections, ClusterName: c.ClusterName, ReportedVersion: c.ReportedVersion, RequireOwner: c.RequireOwner, UI: c.UI,
			DefaultLeaseTTL: seconds(c.DefaultLeaseTTL), MaxLeaseTTL: seconds(c.MaxLeaseTTL),
			Retention: seconds(c.Audit.Retention), Patience: seconds(c.Audit.Patience), AllowPrefix: c.Audit.AllowPrefix,
		}
		if url {
			w.ConnectionURL = c.Storage.ConnectionURL.Reveal()
		}
		return w
	}
}

// Joining is what a machine that is to join a cluster says of itself.
type Joining struct {
	Config  string // path of the configuration to write; there must be none. Empty: lessor.hcl where root, or the user, has its configuration
	KeyFile string // path of the key file to make; there must be none. Empty: seal.key beside the configuration

	Node     string // empty: as NODE_NAME says, or as the machine is called
	Listen   string // host:port; empty: port 8200 on loopback
	CertFile string // of the listener; both empty: plain HTTP, on loopback only
	CertKey  string
	APIAddr  string // URL at which clients reach the new node; may be empty

	ConnectionURLFile string // a file with the database's URL; empty: the node that is asked tells its own

	// Ask sends the request to a node, with the join secret, and returns the answer's "welcome".
	Ask func(ctx context.Context, request map[string]any) (welcome string, err error)
}

// Joined is what joining made.
type Joined struct{ Node, Config, KeyFile string }

// Join makes the machine a node of a cluster: afterwards "lessor server" with the configuration that it wrote serves the cluster's store. All
// that can be wrong here is told before the join secret is used up.
//
// The key is called "….new" until the configuration is durable. So if it dies before that, it can be run again, with another join secret
// and the same key; afterwards the server can be started, which gives the key its name.
func (p Program) Join(ctx context.Context, j Joining) (Joined, error) {
	c, err := j.draft()
	if err != nil {
		return Joined{}, err
	}
	made := Joined{Node: c.NodeName, Config: j.Config, KeyFile: c.Seal.KeyFile}
	if made.Config == "" {
		made.Config = filepath.Join(filepath.Dir(c.Seal.KeyFile), "lessor.hcl")
	}
	if made.Config, err = filepath.Abs(made.Config); err != nil {
		return Joined{}, err
	}
	for what, path := range map[string]string{"configuration": made.Config, "key file": c.Seal.KeyFile, "anchor": c.Seal.Anchor} {
		if exists(path) {
			return Joined{}, fmt.Errorf("this machine has a %s already: %s. If it has joined, start lessor server with its configuration; if it is to join another cluster, move the file away", what, path)
		}
	}
	if err := os.MkdirAll(filepath.Dir(c.Seal.KeyFile), 0o700); err != nil {
		return Joined{}, err
	}
	key, err := pendingKey(c.Seal.KeyFile + newSuffix)
	if err != nil {
		return Joined{}, err
	}
	defer key.Forget()
	public, err := key.Public()
	if err != nil {
		return Joined{}, err
	}
	pending := made.Config + newSuffix
	if err := writePrivate(pending, ""); err != nil { // it will be possible
		return Joined{}, err
	}
	defer func() { _ = os.Remove(pending) }()

	answer, err := j.Ask(ctx, map[string]any{
		"node": c.NodeName, "public": base64.StdEncoding.EncodeToString(public), "connection_url": j.ConnectionURLFile == "",
	})
	if err != nil {
		return Joined{}, err
	}
	welcome, err := openWelcome(key, c.NodeName, answer)
	if err == nil {
		err = finish(&c, welcome)
	}
	if err == nil {
		err = writePrivate(pending, string(c.HCL()))
	}
	if err == nil {
		err = promote(made.Config)
	}
	if err != nil {
		return Joined{}, fmt.Errorf("the cluster let this machine in, but it could not take up its place: %w. The join secret is used up: try again with another", err)
	}
	return made, promote(c.Seal.KeyFile)
}

// draft is the new node's configuration as far as it is known before the cluster is asked.
func (j Joining) draft() (config.Config, error) {
	var args []string
	switch {
	case j.KeyFile != "":
		args = []string{"-key-file", j.KeyFile}
	case j.Config != "":
		args = []string{"-key-file", filepath.Join(filepath.Dir(j.Config), "seal.key")}
	}
	c, err := config.Flags(args)
	if err != nil {
		return c, err
	}
	for _, path := range []*string{&c.Seal.KeyFile, &c.Seal.Anchor, &j.CertFile, &j.CertKey} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return c, err
		}
	}
	c.Storage = config.Storage{Type: config.PostgreSQL, ConnectionURL: lessor.NewSecret("to be told")}
	if j.ConnectionURLFile != "" {
		url, err := os.ReadFile(j.ConnectionURLFile)
		if err != nil {
			return c, err
		}
		c.Storage.ConnectionURL = lessor.NewSecret(strings.TrimSpace(string(url)))
	}
	if j.Node != "" {
		c.NodeName = j.Node
	}
	if j.APIAddr != "" {
		c.APIAddr = j.APIAddr
	}
	l := &c.Listeners[0]
	if j.Listen != "" {
		l.Address = j.Listen
	}
	if l.CertFile, l.KeyFile = j.CertFile, j.CertKey; j.CertFile != "" || j.CertKey != "" {
		l.TLS = true
		if _, err := tls.LoadX509KeyPair(j.CertFile, j.CertKey); err != nil {
			return c, fmt.Errorf("the listener's certificate: %w", err)
		}
	}
	return c, c.Validate()
}

// pendingKey makes the machine's key, or takes that of a try before.
func pendingKey(path string) (*seal.KeyFile, error) {
	if exists(path) {
		return seal.OpenKeyFile(path)
	}
	return seal.CreateKeyFile(path, rand.Reader)
}

// openWelcome opens what was sealed for the machine.
func openWelcome(key *seal.KeyFile, node, answer string) (w system.Welcome, err error) {
	sealed, err := base64.StdEncoding.DecodeString(answer)
	if err != nil {
		return w, errors.New("the answer is not what a lessor server answers")
	}
	text, err := key.Open(system.WelcomeLabel(node), sealed)
	if err != nil {
		return w, errors.New("the answer was not made for this machine")
	}
	defer clear(text)
	if json.Unmarshal(text, &w) != nil { // its error could repeat the text
		return w, errors.New("the answer cannot be read: is the cluster of another version?")
	}
	return w, nil
}

// finish adds to a draft what the cluster told.
func finish(c *config.Config, w system.Welcome) error {
	if w.ConnectionURL != "" {
		c.Storage.ConnectionURL = lessor.NewSecret(w.ConnectionURL)
	}
	c.Storage.Connections, c.ClusterName, c.ReportedVersion, c.RequireOwner, c.UI = w.Connections, w.ClusterName, w.ReportedVersion, w.RequireOwner, w.UI
	c.DefaultLeaseTTL, c.MaxLeaseTTL = time.Duration(w.DefaultLeaseTTL)*time.Second, time.Duration(w.MaxLeaseTTL)*time.Second
	c.Audit = config.Audit{
		Retention: time.Duration(w.Retention) * time.Second, Patience: time.Duration(w.Patience) * time.Second, AllowPrefix: w.AllowPrefix,
	}
	return c.Validate()
}
