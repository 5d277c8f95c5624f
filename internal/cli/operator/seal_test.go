package operator

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/internal/cli/session"
)

func write(t *testing.T, name, text string) string {
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadKeyFile(t *testing.T) {
	key, err := readKeyFile(write(t, "seal.key", "lessor key file, version 1\n# Whoever holds this\nid:  00ff\nkey: AAECAw==\n"))
	if err != nil || key.Reveal() != "AAECAw==" {
		t.Errorf("%q, %v", key.Reveal(), err)
	}
	for _, text := range []string{"", "key: AAECAw==\n", "lessor recovery file, version 1\nkey: AAECAw==\n", "lessor key file, version 1\n"} {
		if key, err := readKeyFile(write(t, "other", text)); err == nil {
			t.Errorf("%q: %q", text, key.Reveal())
		}
	}
}

func TestPublicKeys(t *testing.T) {
	const armored = "-----BEGIN PGP PUBLIC KEY BLOCK-----\nVersion: 1\n\nmDMEZQ\nAAAA==\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n"
	for text, want := range map[string]string{
		armored: "mDMEZQAAAA==",
		strings.ReplaceAll(armored, "\n", "\r\n"): "mDMEZQAAAA==",
		"mDMEZQAA\nAA==\n":                        "mDMEZQAAAA==",
		"\x98\x33\x04":                            "mDME",
		"":                                        "",
		armored + armored:                         "",
		"-----BEGIN PGP PUBLIC KEY BLOCK-----\n":  "",
		"-----BEGIN PGP PRIVATE KEY BLOCK-----":   "",
		strings.Replace(armored, "AAAA", "!", 1):  "",
	} {
		got, err := publicKey(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	var keys pgpKeys
	one, two := write(t, "1", armored), write(t, "2", "mDME")
	if err := keys.Set(one + ", @" + two); err != nil || strings.Join(keys, " ") != "mDMEZQAAAA== mDME" {
		t.Errorf("%v, %v", keys, err)
	}
	if keys.Set(one) == nil {
		t.Error("keys were given twice")
	}
	if err := new(pgpKeys).Set("keybase:someone"); err == nil || !strings.Contains(err.Error(), "save someone's") {
		t.Errorf("%v", err)
	}
}

// The token is what XOR with the one-time password gives, as Vault encodes it.
func TestDecodeRoot(t *testing.T) {
	const otp, encoded, token = "0123456789", "WEdBHVVTUFJdXA", "hvs.affeee"
	for _, try := range []struct {
		encoded, otp, stdin, want string
	}{
		{encoded, otp, "", token}, {encoded + "==", otp, "", token}, {"-", otp, encoded + "\n", token},
		{encoded, "@" + write(t, "otp", otp+"\n"), "", token},
		{encoded, "short", "", ""}, {"!", otp, "", ""}, {encoded, "", "", ""},
	} {
		var out strings.Builder
		a := session.New(session.System{In: strings.NewReader(try.stdin), Out: &out, Err: new(strings.Builder), Env: func(string) (string, bool) { return "", false }})
		command := operatorGenerateRoot(a)
		if err := decodeRoot(a, command, try.encoded, try.otp); (err == nil) != (try.want != "") || out.String() != try.want {
			t.Errorf("%v: %q, %v", try, &out, err)
		}
	}
}
