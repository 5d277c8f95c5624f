package seal

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/internal/lessor"
)

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "etc", "lessor", "seal.key")
	if _, err := OpenKeyFile(path); !errors.Is(err, ErrMissing) ||
		!strings.HasPrefix(err.Error(), "refusing to start: the key file "+path+" is missing; restore it from where you keep it, or use the recovery file") {
		t.Fatalf("missing: %v", err)
	}
	made, err := CreateKeyFile(path, chance(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, filepath.Dir(path)} {
		info, err := os.Stat(p)
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", p, info.Mode(), err)
		}
	}
	read, err := OpenKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if read.key != made.key || read.key == [keySize]byte{} {
		t.Error("another key was read than written")
	}
	before, _ := os.ReadFile(path)
	if _, err := CreateKeyFile(path, chance(2)); err == nil || !strings.Contains(err.Error(), "check the data folder") {
		t.Errorf("overwriting: %v", err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the key file was changed")
	}
	made.Forget()
	if made.key != [keySize]byte{} {
		t.Error("the key is still there")
	}
}

func TestKeyFileRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "seal.key")
	k, err := CreateKeyFile(path, chance(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o620, 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenKeyFile(path); err == nil || !strings.Contains(err.Error(), "chmod 600 "+path) {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	good := keyFileText(&k.key)
	other := keyFileText(&[keySize]byte{1})
	keyLine := good[strings.Index(good, "key:"):]
	for what, c := range map[string]struct {
		text string
		want error
	}{
		"empty":       {"", ErrDamaged},
		"noise":       {"\x00\xff\n", ErrDamaged},
		"newer":       {strings.Replace(good, "version 1", "version 2", 1), ErrNewer},
		"no key":      {strings.Replace(good, keyLine, "", 1), ErrDamaged},
		"two keys":    {good + keyLine, ErrDamaged},
		"short key":   {strings.Replace(good, "=", "", 1), ErrDamaged},
		"another key": {strings.Replace(good, keyLine, other[strings.Index(other, "key:"):], 1), ErrDamaged},
		"more":        {good + "more: x\n", ErrDamaged},
		"far too big": {good + strings.Repeat("#\n", maxKeyFile), ErrDamaged},
	} {
		if err := errors.Join(os.WriteFile(path, []byte(c.text), 0o600), os.Chmod(path, 0o600)); err != nil {
			t.Fatal(err)
		}
		_, err := OpenKeyFile(path)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want %v", what, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), keyLine[5:20]) {
			t.Errorf("%s: the error shows the key", what)
		}
	}
	if _, err := OpenKeyFile(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a folder: %v", err)
	}
	// What an editor or another system does to line ends does no harm.
	if key, err := parseKeyFile(strings.ReplaceAll(good, "\n", "\r\n")); err != nil || key != k.key {
		t.Errorf("CRLF: %v", err)
	}
}

// A cheap cost for tests; the real one is what TestFormat opens.
func cheap(t testing.TB) {
	was := recoveryCost
	recoveryCost = cost{time: 1, memory: 8 << 10, threads: 1}
	t.Cleanup(func() { recoveryCost = was })
}

func TestRecovery(t *testing.T) {
	cheap(t)
	path := filepath.Join(t.TempDir(), "recovery.key")
	passphrase := lessor.NewSecret("correct horse battery staple")
	if _, err := CreateRecovery(path, lessor.NewSecret("short"), chance(1)); err == nil {
		t.Error("a short passphrase was taken")
	}
	made, err := CreateRecovery(path, passphrase, chance(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CreateRecovery(path, passphrase, chance(2)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("overwriting: %v", err)
	}
	read, err := OpenRecovery(path, passphrase)
	if err != nil || read.key != made.key {
		t.Fatalf("another key, %v", err)
	}
	if _, err := OpenRecovery(path, lessor.NewSecret("correct horse battery staplf")); !errors.Is(err, ErrWrongKey) {
		t.Errorf("wrong passphrase: %v", err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(text, []byte("time=1"), []byte("time=2"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenRecovery(path, passphrase); !errors.Is(err, ErrWrongKey) {
		t.Errorf("altered cost: %v", err)
	}
	for _, kdf := range []string{"time=999", "time=0", "time=01"} {
		if _, _, err := parseRecovery(strings.Replace(string(text), "time=1", kdf, 1)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", kdf, err)
		}
	}
	if _, err := OpenRecovery(path+"x", passphrase); !errors.Is(err, ErrMissing) {
		t.Errorf("missing: %v", err)
	}
}

func FuzzKeyFile(f *testing.F) {
	key := [keySize]byte{1, 2, 3}
	f.Add(keyFileText(&key))
	f.Add(keyFileVersion + "1\nkey: x\nid: y\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		key, err := parseKeyFile(text)
		if err != nil {
			return
		}
		again, err := parseKeyFile(keyFileText(&key))
		if err != nil || again != key {
			t.Fatalf("%q: %v", text, err)
		}
	})
}

func FuzzRecoveryFile(f *testing.F) {
	cheap(f)
	key := [keySize]byte{1, 2, 3}
	f.Add(recoveryText(&key, recoveryCost, lessor.NewSecret("passphrase")))
	f.Add(recoveryVersion + "1\nkdf: argon2id time=1 memory=8192 threads=1 salt=00\nid: x\nkey: y\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, sealed, err := parseRecovery(text)
		if err == nil && (c.memory > 4<<20 || c.time > 64 || len(sealed) != wrapSize+keySize) {
			t.Fatalf("accepted %q", text)
		}
	})
}
