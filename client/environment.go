package client

import (
	"cmp"
	"fmt"
	"net/http"
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
// overridden by LESSOR_name: ADDR (or AGENT_ADDR, which comes before it), TOKEN, NAMESPACE, WRAP_TTL, CACERT,
// CACERT_BYTES, CAPATH, CLIENT_CERT, CLIENT_KEY, TLS_SERVER_NAME, SKIP_VERIFY, CLIENT_TIMEOUT, MAX_RETRIES, MFA (with
// commas between several), DISABLE_REDIRECTS, PROXY_ADDR (or HTTP_PROXY), INSTANCE. It reads no file: see TokenStore
// for stored tokens.
func FromEnvironment(env Lookup) (Config, error) {
	config := Config{
		Address:   cmp.Or(env.Setting("AGENT_ADDR"), env.Setting("ADDR")),
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
		Proxy:      cmp.Or(env.Setting("PROXY_ADDR"), env.Setting("HTTP_PROXY")),
	}
	if factors := env.Setting("MFA"); factors != "" {
		config.MFA = strings.Split(factors, ",")
	}
	for name, setting := range map[string]*bool{"SKIP_VERIFY": &config.TLS.SkipVerify, "DISABLE_REDIRECTS": &config.NoRedirects} {
		if text := env.Setting(name); text != "" {
			value, err := strconv.ParseBool(text)
			if err != nil {
				return Config{}, fmt.Errorf("%s must be true or false", env.source(name))
			}
			*setting = value
		}
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
