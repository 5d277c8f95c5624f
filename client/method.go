package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
)

// Method is a way for a Session to log in, again and again: *AppRole, JWT, KeptToken, or one of your own. The session ends the tokens
// that it got, but those of KeptToken.
type Method interface {
	// Login logs in with a client that carries no token. A session has one login at a time.
	Login(ctx context.Context, c *Client) (*Auth, error)
}

// Keeper is a Method whose tokens are somebody else's: sessions do not end them.
type Keeper interface {
	Method
	// Keeps does nothing.
	Keeps()
}

// AppRole logs in with a role id and a secret id.
type AppRole struct {
	Mount        string // default "approle"
	RoleID       string
	SecretID     Token  // may be empty, if the role asks for none
	SecretIDFile string // instead of SecretID: read at each login
	Wrapped      bool   // what SecretID or the file holds is a wrapping token: it is opened at the first login, and what was in it kept in memory

	mu        sync.Mutex
	unwrapped Token
}

// Login implements Method.
func (m *AppRole) Login(ctx context.Context, c *Client) (*Auth, error) {
	secret, err := m.secretID(ctx, c)
	if err != nil {
		return nil, err
	}
	body := map[string]any{"role_id": m.RoleID}
	if !secret.Empty() {
		body["secret_id"] = secret.Reveal()
	}
	return login(ctx, c, cmp.Or(m.Mount, "approle"), body)
}

func (m *AppRole) secretID(ctx context.Context, c *Client) (secret Token, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.unwrapped.Empty() {
		return m.unwrapped, nil
	}
	secret = m.SecretID
	if m.SecretIDFile != "" {
		if secret, err = readToken("secret id", m.SecretIDFile); err != nil {
			return Token{}, err
		}
	}
	if !m.Wrapped {
		return secret, nil
	}
	answer, err := c.WithToken(secret).Write(ctx, "sys/wrapping/unwrap", nil)
	if err != nil {
		return Token{}, fmt.Errorf("the secret id could not be unwrapped; if nobody here has done so before, somebody else has: %w", err)
	}
	text, _ := answer.Data["secret_id"].(string)
	if m.unwrapped = NewToken(text); m.unwrapped.Empty() {
		return Token{}, errors.New("what was unwrapped holds no secret_id")
	}
	return m.unwrapped, nil
}

// JWT logs in with a signed token that the platform (Kubernetes, GitHub, GitLab, …) puts into a file, and renews there.
type JWT struct {
	Mount string // default "jwt"
	Role  string // empty: the mount's default
	File  string // read at each login
}

// Login implements Method.
func (m JWT) Login(ctx context.Context, c *Client) (*Auth, error) {
	token, err := readToken("JWT", m.File)
	if err != nil {
		return nil, err
	}
	body := map[string]any{"jwt": token.Reveal()}
	if m.Role != "" {
		body["role"] = m.Role
	}
	return login(ctx, c, cmp.Or(m.Mount, "jwt"), body)
}

// KeptToken takes the token that somebody else keeps in a file, and takes it from there again when it ends.
type KeptToken struct {
	File string
}

// Login implements Method.
func (m KeptToken) Login(ctx context.Context, c *Client) (*Auth, error) {
	token, err := readToken("token", m.File)
	if err != nil {
		return nil, err
	}
	return look(ctx, c.WithToken(token))
}

// Keeps implements Keeper.
func (m KeptToken) Keeps() {}

func login(ctx context.Context, c *Client, mount string, body map[string]any) (*Auth, error) {
	answer, err := c.Write(ctx, "auth/"+strings.Trim(mount, "/")+"/login", body)
	if err != nil {
		return nil, err
	}
	if answer.Auth == nil || answer.Auth.ClientToken == "" {
		return nil, fmt.Errorf("the login at auth/%s gave no token", strings.Trim(mount, "/"))
	}
	return answer.Auth, nil
}

// readToken reads a file that holds a token of some kind.
func readToken(what, file string) (Token, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Token{}, fmt.Errorf("%s: %w", what, err)
	}
	token := NewToken(string(text))
	if token.Empty() {
		return Token{}, fmt.Errorf("%s: %s is empty", what, file)
	}
	return token, nil
}
