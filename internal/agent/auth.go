package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/instance"
)

// newMethod is how the agent logs in; token is told each token that it gets.
func newMethod(c Auth, server client.Config, b *box, token func(client.Token)) (client.Method, error) {
	switch c.Type {
	case "cert":
		return told{certificate{c, server}, token}, nil
	case "approle":
		return told{&appRole{Auth: c, secretID: proof{box: b, file: c.File, remove: c.Remove}}, token}, nil
	case "jwt", "kubernetes":
		return told{&jwt{Auth: c, proof: proof{box: b, file: c.File, remove: c.Remove}}, token}, nil
	case "token_file":
		return toldKept{told{client.KeptToken{File: c.File}, token}}, nil
	}
	return nil, fmt.Errorf("there is no way to log in by %q", c.Type)
}

// told tells of each token.
type told struct {
	client.Method
	token func(client.Token)
}

func (m told) Login(ctx context.Context, c *client.Client) (*client.Auth, error) {
	auth, err := m.Method.Login(ctx, c)
	if err == nil {
		m.token(client.NewToken(auth.ClientToken))
	}
	return auth, err
}

// toldKept is told for tokens that are somebody else's.
type toldKept struct{ told }

func (toldKept) Keeps() {}

// proof is what is read from a file to log in with. Where the file is to go once it was read, what was in it is kept in memory until there is another.
type proof struct {
	box    *box
	file   string
	remove bool

	mu   sync.Mutex
	last []byte // sealed; nil: none
}

// read returns the proof, and what removes its file once it has served.
func (p *proof) read() (text client.Token, used func() error, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	keep := func() error { return nil }
	b, err := os.ReadFile(p.file)
	if errors.Is(err, os.ErrNotExist) && p.last != nil {
		return client.NewToken(string(p.box.Open(p.last))), keep, nil
	}
	if err != nil {
		return client.Token{}, nil, err
	}
	if text = client.NewToken(string(b)); text.Empty() {
		return client.Token{}, nil, fmt.Errorf("%s is empty", p.file)
	}
	if !p.remove {
		return text, keep, nil
	}
	return text, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.last = p.box.Seal([]byte(text.Reveal()))
		if err := os.Remove(p.file); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}, nil
}

// appRole logs in by a role id and a secret id, both from files.
type appRole struct {
	Auth
	secretID proof
	opened   [sha256.Size]byte // hash of the wrapping token that was used
	inside   []byte            // the secret id that it gave, sealed
}

func (m *appRole) Login(ctx context.Context, c *client.Client) (*client.Auth, error) {
	role := m.RoleID
	if m.RoleIDFile != "" {
		text, err := os.ReadFile(m.RoleIDFile)
		if err != nil {
			return nil, fmt.Errorf("role id: %w", err)
		}
		role = strings.TrimSpace(string(text))
	}
	how := &client.AppRole{Mount: m.Mount, RoleID: role}
	if m.File == "" {
		return how.Login(ctx, c)
	}
	text, used, err := m.secretID.read()
	if err != nil {
		return nil, fmt.Errorf("secret id: %w", err)
	}
	if m.WrappedAt != "" {
		if text, err = m.unwrap(ctx, c, text); err != nil {
			return nil, err
		}
	}
	how.SecretID = text
	auth, err := how.Login(ctx, c)
	if err != nil {
		return nil, err
	}
	return auth, used()
}

// unwrap is the secret id in a wrapping, which can be opened once: what was in the last one is kept.
func (m *appRole) unwrap(ctx context.Context, c *client.Client, token client.Token) (client.Token, error) {
	hash := sha256.Sum256([]byte(token.Reveal()))
	if m.inside != nil && hash == m.opened {
		return client.NewToken(string(m.secretID.box.Open(m.inside))), nil
	}
	if err := m.genuine(ctx, c, token); err != nil {
		return client.Token{}, err
	}
	answer, err := c.WithToken(token).Write(ctx, "sys/wrapping/unwrap", nil)
	if err != nil {
		return client.Token{}, fmt.Errorf("the secret id could not be unwrapped; if nobody here has done so before, somebody else has: %w", err)
	}
	text, _ := answer.Data["secret_id"].(string)
	if text == "" {
		return client.Token{}, errors.New("what was unwrapped holds no secret_id")
	}
	m.opened, m.inside = hash, m.secretID.box.Seal([]byte(text))
	return client.NewToken(text), nil
}

// genuine refuses a wrapping that was not made where the secret id's is.
func (m *appRole) genuine(ctx context.Context, c *client.Client, token client.Token) error {
	answer, err := c.Write(ctx, "sys/wrapping/lookup", map[string]any{"token": token.Reveal()})
	if err != nil {
		return fmt.Errorf("the wrapped secret id: %w", err)
	}
	if path, _ := answer.Data["creation_path"].(string); path != m.WrappedAt {
		return fmt.Errorf("the wrapped secret id was made at %q, not at %q: somebody may have put another in its place", path, m.WrappedAt)
	}
	return nil
}

// jwt logs in by a signed token from a file.
type jwt struct {
	Auth
	proof proof
}

func (m *jwt) Login(ctx context.Context, c *client.Client) (*client.Auth, error) {
	text, used, err := m.proof.read()
	if err != nil {
		return nil, fmt.Errorf("JWT: %w", err)
	}
	body := map[string]any{"jwt": text.Reveal()}
	if m.Role != "" {
		body["role"] = m.Role
	}
	auth, err := loginAt(ctx, c, m.Mount, body)
	if err != nil {
		return nil, err
	}
	return auth, used()
}

// certificate logs in by the certificate of the connection.
type certificate struct {
	Auth
	server client.Config
}

// Login logs in over a connection of its own: one that is open already shows the certificate that was there when it was made.
func (m certificate) Login(ctx context.Context, _ *client.Client) (*client.Auth, error) {
	c, err := client.New(m.server)
	if err != nil {
		return nil, err
	}
	body := map[string]any{}
	if m.Role != "" {
		body["name"] = m.Role
	}
	return loginAt(ctx, c.WithTimeout(headerTimeout), m.Mount, body)
}

// loginAt logs in where a method is enabled.
func loginAt(ctx context.Context, c *client.Client, mount string, body map[string]any) (*client.Auth, error) {
	path := "auth/" + mount + "/login"
	answer, err := c.Write(ctx, path, body)
	if err != nil {
		return nil, err
	}
	if answer.Auth == nil {
		return nil, fmt.Errorf("the login at %s gave no token", path)
	}
	return answer.Auth, nil
}

// settle finds the agent's instance, where its folder keeps it, and sees to it that no other agent takes it for its own.
func (a *agent) settle() (unlock func(), err error) {
	defer func() { a.config.Server.Instance = a.config.Instance }()
	if a.config.StateDir == "" {
		return func() {}, nil
	}
	claim, err := instance.In(a.config.StateDir, "agent", a.config.Instance)
	if err != nil {
		return nil, fmt.Errorf("state_dir: %w", err)
	}
	a.config.Instance = claim.Name
	return claim.Release, nil
}
