package seal

import (
	"bytes"
	"crypto/rand"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/store"
)

func keyFile(t *testing.T, name string) (*KeyFile, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	k, err := CreateKeyFile(path, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k, path
}

// A key file whose public half the root key was wrapped to unseals the store, under whatever name, as does its key given by hand, and no
// other does.
func TestWrappedToAPublicHalf(t *testing.T) {
	first, _ := keyFile(t, "first")
	second, path := keyFile(t, "second")
	stranger, _ := keyFile(t, "stranger")
	keys, puts, err := Init(rand.Reader, time.Now(), first)
	if err != nil {
		t.Fatal(err)
	}
	public, err := second.Public()
	if err != nil || public.Check() != nil {
		t.Fatal(err, public.Check())
	}
	put, err := keys.WrapRootTo(KeyFileOf("node-2"), public)
	if err != nil {
		t.Fatal(err)
	}
	again, err := OpenKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	locks := NewLocks(append(puts, put)...)
	for _, k := range []*KeyFile{first, second, again} {
		if err := locks.Try(k); err != nil {
			t.Error(err)
		}
		if err := keys.Prove(locks, k); err != nil {
			t.Error(err)
		}
	}
	if got := locks.NameOf(again); got != "keyfile/node-2" {
		t.Errorf("the second is known as %q", got)
	}
	if err := locks.Try(stranger); !errors.Is(err, ErrWrongKey) {
		t.Errorf("a stranger's key: %v", err)
	}
	if err := NewLocks(append(puts[:2:2], put)...).Try(first); !errors.Is(err, ErrMissing) {
		t.Errorf("a key that was removed: %v", err)
	}
	var q Quorum
	kek, _, err := q.Add(locks, second.Text())
	if err != nil || kek.Name() != "keyfile/node-2" || locks.Try(kek) != nil {
		t.Errorf("the key by hand: %v", err)
	}
	if !Opened(store.Row{Value: put.Value}, public) || Opened(store.Row{Value: puts[2].Value}, public) {
		t.Error("it is not known whom a row was made for")
	}
	for at := range put.Value {
		altered := put
		altered.Value = bytes.Clone(put.Value)
		altered.Value[at] ^= 1
		if at%37 == 0 || at < 12 {
			if err := NewLocks(append(puts[:2:2], altered)...).Try(second); err == nil {
				t.Errorf("a row that was altered at %d unseals", at)
			}
		}
	}
}

func TestSealedForAKeyFile(t *testing.T) {
	k, _ := keyFile(t, "k")
	other, _ := keyFile(t, "other")
	public, err := k.Public()
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := public.Seal("a label", []byte("some words"))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := k.Open("a label", sealed); err != nil || string(plain) != "some words" {
		t.Errorf("%q, %v", plain, err)
	}
	for what, try := range map[string]func() ([]byte, error){
		"another label": func() ([]byte, error) { return k.Open("another", sealed) },
		"another key":   func() ([]byte, error) { return other.Open("a label", sealed) },
		"cut short":     func() ([]byte, error) { return k.Open("a label", sealed[:40]) },
	} {
		if _, err := try(); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, bad := range []Public{nil, public[:10], append(bytes.Clone(public), 0)} {
		if err := bad.Check(); !errors.Is(err, ErrNoKey) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
}
