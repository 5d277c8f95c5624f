package seal

import (
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

var update = flag.Bool("update", false, "write testdata/format.txt anew: breaks every store there is")

// What stores, key files and tokens in the field look like must stay readable. testdata/format.txt holds some, sealed
// with random nonces at one time; this test opens them with nothing but the key file and the passphrase.
func TestFormat(t *testing.T) {
	const file = "testdata/format.txt"
	key := store.Key{Table: store.Secrets, Name: store.MountKey(1, uuid(1), "db/password")}
	const version = 5<<blockBits + 77
	dir := t.TempDir()
	path := filepath.Join(dir, "seal.key")
	recovery := filepath.Join(dir, "recovery.key")
	passphrase := lessor.NewSecret("correct horse battery staple")

	if *update {
		kek, err := CreateKeyFile(path, chance(1))
		if err != nil {
			t.Fatal(err)
		}
		rec, err := CreateRecovery(recovery, passphrase, chance(2))
		if err != nil {
			t.Fatal(err)
		}
		k, meta := newKeyring(t, kek, rec)
		put, err := k.Rotate(chance(3), epoch, 1<<16)
		if err != nil {
			t.Fatal(err)
		}
		sealedFirst := k.Cipher().Seal(nil, key, version, []byte("first"))
		if err := k.Adopt(put.Value); err != nil {
			t.Fatal(err)
		}
		lines := []string{
			"keyfile " + hexFile(t, path), "recovery " + hexFile(t, recovery), "schema " + hex.EncodeToString(meta["schema"]),
			"kek/keyfile " + hex.EncodeToString(meta["kek/keyfile"]), "kek/recovery " + hex.EncodeToString(meta["kek/recovery"]),
			"keyring " + hex.EncodeToString(put.Value), "first " + hex.EncodeToString(sealedFirst),
			"second " + hex.EncodeToString(k.Cipher().Seal(nil, key, version, []byte("second"))),
			"token " + hex.EncodeToString([]byte(k.SealToken([]byte("payload")))),
			"hashes " + hex.EncodeToString([]byte(hashes(k))),
		}
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(recovery); err != nil {
			t.Fatal(err)
		}
	}

	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	golden := map[string][]byte{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		golden[name] = unhex(t, value)
	}
	if err := os.WriteFile(path, golden["keyfile"], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(recovery, golden["recovery"], 0o600); err != nil {
		t.Fatal(err)
	}
	kek, err := OpenKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := OpenRecovery(recovery, passphrase)
	if err != nil {
		t.Fatal(err)
	}
	for _, kek := range []KEK{kek, rec} {
		k, err := unseal(golden, kek)
		if err != nil {
			t.Fatalf("%s: %v", kek.Name(), err)
		}
		for _, want := range []string{"first", "second"} {
			if v, err := k.open(nil, key, version, golden[want]); err != nil || string(v) != want {
				t.Errorf("%s: got %q, %v", want, v, err)
			}
		}
		if p, err := k.OpenToken(string(golden["token"])); err != nil || string(p) != "payload" {
			t.Errorf("token: got %q, %v", p, err)
		}
		if got := hashes(k); got != string(golden["hashes"]) {
			t.Errorf("hashes changed:\n%s\nwere\n%s", got, golden["hashes"])
		}
		fresh := k.Cipher().Seal(nil, key, version, []byte("12345"))
		if want := 1 + 1 + 12 + 5 + 16; len(fresh) != want || fresh[0] != 1 || fresh[1] != 2 {
			t.Errorf("a fresh row is %x; want %d bytes that begin with format 1, term 2", fresh, want)
		}
	}
}

// hashes is every keyed hash of something.
func hashes(k *Keyring) string {
	return fmt.Sprintf("mac %x\nelement %x\nmask %x\ntoken %x\nfingerprint %x\n", k.MAC([]byte("header")), k.Element(9, "name", 77),
		k.Mask(1, 2, "batch", 1), k.TokenHash("hvs.token"), k.Fingerprint("mount", "path", []byte("value")))
}

func hexFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(b)
}
