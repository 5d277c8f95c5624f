package client

import (
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func variables(m map[string]string) Lookup {
	return func(name string) (string, bool) {
		value, ok := m[name]
		return value, ok
	}
}

func TestFromEnvironment(t *testing.T) {
	for name, try := range map[string]struct {
		env   map[string]string
		check func(Config) bool
	}{
		"nothing": {nil, func(c Config) bool {
			return c.Address == "http://127.0.0.1:8200" && c.Token.Empty() && c.MaxRetries == 2
		}},
		"vault":        {map[string]string{"VAULT_ADDR": "https://v", "VAULT_TOKEN": " t\n"}, func(c Config) bool { return c.Address == "https://v" && c.Token.Reveal() == "t" }},
		"override":     {map[string]string{"VAULT_ADDR": "https://v", "LESSOR_ADDR": "https://l"}, func(c Config) bool { return c.Address == "https://l" }},
		"empty":        {map[string]string{"VAULT_ADDR": "https://v", "LESSOR_ADDR": ""}, func(c Config) bool { return c.Address == "https://v" }},
		"only TLS":     {map[string]string{"VAULT_CACERT": "/ca"}, func(c Config) bool { return c.Address == "https://127.0.0.1:8200" && c.TLS.CACert == "/ca" }},
		"skip verify":  {map[string]string{"LESSOR_SKIP_VERIFY": "1"}, func(c Config) bool { return c.TLS.SkipVerify }},
		"no skip":      {map[string]string{"VAULT_SKIP_VERIFY": "true", "LESSOR_SKIP_VERIFY": "false"}, func(c Config) bool { return !c.TLS.SkipVerify }},
		"times":        {map[string]string{"VAULT_CLIENT_TIMEOUT": "5", "VAULT_WRAP_TTL": "2m"}, func(c Config) bool { return c.Timeout == 5*time.Second && c.WrapTTL == 2*time.Minute }},
		"agent":        {map[string]string{"VAULT_ADDR": "https://v", "VAULT_AGENT_ADDR": "http://a"}, func(c Config) bool { return c.Address == "http://a" }},
		"factors":      {map[string]string{"VAULT_MFA": "a:1,b"}, func(c Config) bool { return len(c.MFA) == 2 && c.MFA[1] == "b" }},
		"proxy":        {map[string]string{"VAULT_HTTP_PROXY": "http://p"}, func(c Config) bool { return c.Proxy == "http://p" }},
		"no redirects": {map[string]string{"VAULT_DISABLE_REDIRECTS": "true"}, func(c Config) bool { return c.NoRedirects }},
		"retries":      {map[string]string{"VAULT_MAX_RETRIES": "0"}, func(c Config) bool { return c.MaxRetries == 0 }},
		"who and what": {map[string]string{"VAULT_NAMESPACE": "n", "LESSOR_INSTANCE": "i", "VAULT_TLS_SERVER_NAME": "s"}, func(c Config) bool { return c.Namespace == "n" && c.Instance == "i" && c.TLS.ServerName == "s" }},
	} {
		config, err := FromEnvironment(variables(try.env))
		if err != nil || !try.check(config) {
			t.Errorf("%s: %+v, %v", name, config, err)
		}
	}
	for name, value := range map[string]string{
		"VAULT_SKIP_VERIFY": "perhaps", "LESSOR_DISABLE_REDIRECTS": "2", "LESSOR_MAX_RETRIES": "-1", "VAULT_MAX_RETRIES": "x", "VAULT_CLIENT_TIMEOUT": "soon", "VAULT_WRAP_TTL": "-5s",
	} {
		_, err := FromEnvironment(variables(map[string]string{name: value}))
		if err == nil || err.Error()[:len(name)] != name {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "3600": time.Hour, "90s": 90 * time.Second, "1h30m": 90 * time.Minute, "5d": 120 * time.Hour, "0.5d": 12 * time.Hour,
		"": -1, "x": -1, "-1": -1, "-1h": -1, "-1d": -1, "1w": -1, "99999999999999": -1, "999999999d": -1, "NaNd": -1,
	} {
		got, err := ParseDuration(text)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %v, want %v (%v)", text, got, want, err)
		}
	}
}

func FuzzParseDuration(f *testing.F) {
	for _, text := range []string{"1", "1h", "5d", "-1", "1e9d", "Infd"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if d, err := ParseDuration(text); err == nil && d < 0 {
			t.Errorf("%q is %v", text, d)
		}
	})
}

func TestParseHeader(t *testing.T) {
	header := http.Header{}
	for text, good := range map[string]bool{"A=1": true, "a=2=3": true, "x": false, "=x": false, "X-Vault-Token=t": false} {
		if err := ParseHeader(header, text); (err == nil) != good {
			t.Errorf("%s: %v", text, err)
		}
	}
	if got := header.Values("A"); len(got) != 2 {
		t.Errorf("A is %q", got)
	}
}

func TestTokenFile(t *testing.T) {
	home := t.TempDir()
	file := TokenFile{Home: home}
	expect := func(want string) {
		t.Helper()
		got, err := file.Load()
		if err != nil || got.Reveal() != want {
			t.Errorf("loaded %q, want %q (%v)", got.Reveal(), want, err)
		}
	}
	expect("")
	if err := os.WriteFile(filepath.Join(home, ".vault-token"), []byte("of-vault\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect("of-vault")
	for _, text := range []string{"first", "second"} {
		if err := file.Store(NewToken(text)); err != nil {
			t.Fatal(err)
		}
		expect(text)
	}
	info, err := os.Stat(file.Path())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := file.Erase(); err != nil {
		t.Fatal(err)
	}
	if err := file.Erase(); err != nil {
		t.Errorf("erasing nothing: %v", err)
	}
	expect("of-vault")
	entries, err := os.ReadDir(home)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if err := (TokenFile{}).Store(NewToken("t")); err == nil {
		t.Error("stored without a home")
	}
	if err := (TokenFile{Home: filepath.Join(home, "missing")}).Store(NewToken("t")); err == nil {
		t.Error("stored in a folder that is not there")
	}
}
