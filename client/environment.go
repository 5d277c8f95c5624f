package client

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Lookup finds an environment variable, as os.LookupEnv does.
type Lookup func(name string) (value string, found bool)

// Setting finds a setting in the environment: LESSOR_name, else VAULT_name. Empty counts as unset.
func (l Lookup) Setting(name string) string {
	for _, prefix := range []string{"LESSOR_", "VAULT_"} {
		if value, ok := l(prefix + name); ok && value != "" {
			return value
		}
	}
	return ""
}

// source names the variable that Setting would read.
func (l Lookup) source(name string) string {
	if value, ok := l("LESSOR_" + name); ok && value != "" {
		return "LESSOR_" + name
	}
	return "VAULT_" + name
}

// Default addresses: the second one when the environment says nothing of TLS either.
const (
	DefaultAddress      = "https://127.0.0.1:8200"
	DefaultPlainAddress = "http://127.0.0.1:8200"
)

// FromEnvironment reads the configuration that Vault's users know from the environment. Each VAULT_name can be
// overridden by LESSOR_name: ADDR, TOKEN, NAMESPACE, WRAP_TTL, CACERT, CACERT_BYTES, CAPATH, CLIENT_CERT, CLIENT_KEY,
// TLS_SERVER_NAME, SKIP_VERIFY, CLIENT_TIMEOUT, MAX_RETRIES, INSTANCE. It reads no file: see TokenFile for stored
// tokens.
func FromEnvironment(env Lookup) (Config, error) {
	config := Config{
		Address:   env.Setting("ADDR"),
		Token:     NewToken(env.Setting("TOKEN")),
		Namespace: env.Setting("NAMESPACE"),
		Instance:  env.Setting("INSTANCE"),
		TLS: TLS{
			CACert:     env.Setting("CACERT"),
			CACertPEM:  []byte(env.Setting("CACERT_BYTES")),
			CAPath:     env.Setting("CAPATH"),
			ClientCert: env.Setting("CLIENT_CERT"),
			ClientKey:  env.Setting("CLIENT_KEY"),
			ServerName: env.Setting("TLS_SERVER_NAME"),
		},
		Timeout:    time.Minute,
		MaxRetries: 2,
	}
	if text := env.Setting("SKIP_VERIFY"); text != "" {
		skip, err := strconv.ParseBool(text)
		if err != nil {
			return Config{}, fmt.Errorf("%s must be true or false", env.source("SKIP_VERIFY"))
		}
		config.TLS.SkipVerify = skip
	}
	if text := env.Setting("MAX_RETRIES"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return Config{}, fmt.Errorf("%s must be a whole number, 0 or more", env.source("MAX_RETRIES"))
		}
		config.MaxRetries = n
	}
	for name, d := range map[string]*time.Duration{"CLIENT_TIMEOUT": &config.Timeout, "WRAP_TTL": &config.WrapTTL} {
		if text := env.Setting(name); text != "" {
			value, err := ParseDuration(text)
			if err != nil {
				return Config{}, fmt.Errorf("%s: %w", env.source(name), err)
			}
			*d = value
		}
	}
	if config.Address == "" {
		config.Address = DefaultAddress
		if !config.TLS.configured() {
			config.Address = DefaultPlainAddress
		}
	}
	return config, nil
}

func (t TLS) configured() bool {
	return t.CACert != "" || len(t.CACertPEM) > 0 || t.CAPath != "" || t.ClientCert != "" || t.ClientKey != "" ||
		t.ServerName != "" || t.SkipVerify
}

// ParseDuration reads a duration as Vault's users write it: "3600" (seconds), "90s", "1h30m", "5d". It is never
// negative.
func ParseDuration(text string) (time.Duration, error) {
	wrong := fmt.Errorf(`%q is not a duration: write seconds ("3600") or a number with a unit ("90s", "1h30m", "5d")`, text)
	if seconds, err := strconv.ParseInt(text, 10, 64); err == nil {
		if seconds < 0 || seconds > int64(maxDuration/time.Second) {
			return 0, wrong
		}
		return time.Duration(seconds) * time.Second, nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseFloat(days, 64)
		if err != nil || !(n >= 0 && n <= float64(maxDuration/(24*time.Hour))) { // NaN is neither

			return 0, wrong
		}
		return time.Duration(n * float64(24*time.Hour)), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, wrong
	}
	return d, nil
}

const maxDuration = time.Duration(1<<63 - 1)

// ParseHeader reads "name=value" into a header.
func ParseHeader(into http.Header, text string) error {
	name, value, ok := strings.Cut(text, "=")
	name = strings.TrimSpace(name)
	if !ok || name == "" {
		return fmt.Errorf(`a header is written as name=value`)
	}
	if strings.HasPrefix(strings.ToLower(name), "x-vault-") {
		return fmt.Errorf("header %s is set by lessor itself: use the flag or variable for it", name)
	}
	into.Add(name, value)
	return nil
}

// TokenFile keeps the token of the last login in a user's home folder.
type TokenFile struct {
	Home string // the user's home folder
}

// Path is the file that Store writes.
func (f TokenFile) Path() string { return filepath.Join(f.Home, ".lessor-token") }

// Load reads the stored token: lessor's, else the one that Vault's command line stored. No file: an empty token.
func (f TokenFile) Load() (Token, error) {
	if f.Home == "" {
		return Token{}, nil
	}
	for _, path := range []string{f.Path(), filepath.Join(f.Home, ".vault-token")} {
		text, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return Token{}, fmt.Errorf("stored token: %w", err)
		}
		if token := NewToken(string(text)); !token.Empty() {
			return token, nil
		}
	}
	return Token{}, nil
}

// Store replaces the stored token: nobody sees half of it, and nobody but the user can read it (mode 0600). It is
// durable when Store returns.
func (f TokenFile) Store(token Token) (err error) {
	if f.Home == "" {
		return fmt.Errorf("stored token: the user has no home folder: set HOME, or log in with -no-store")
	}
	// CreateTemp creates with mode 0600.
	file, err := os.CreateTemp(f.Home, ".lessor-token.*")
	if err != nil {
		return fmt.Errorf("stored token: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(file.Name())
			err = fmt.Errorf("stored token: %w", err)
		}
	}()
	_, err = file.WriteString(token.Reveal())
	if err == nil {
		err = file.Sync()
	}
	if closing := file.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(file.Name(), f.Path())
	}
	return err
}

// Erase removes lessor's stored token, if there is one.
func (f TokenFile) Erase() error {
	if err := os.Remove(f.Path()); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("stored token: %w", err)
	}
	return nil
}
