package seal

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// chance is reproducible randomness.
func chance(seed byte) *rand.ChaCha8 { return rand.NewChaCha8([32]byte{seed}) }

func memKEK(name string, seed byte) *keyKEK {
	k := &keyKEK{name: name, where: "the key file /etc/" + name}
	_, _ = chance(seed).Read(k.key[:])
	return k
}

// newKeyring is a new keyring with the rows that Init made for it.
func newKeyring(t testing.TB, keks ...KEK) (*Keyring, map[string][]byte) {
	t.Helper()
	if keks == nil {
		keks = []KEK{memKEK("keyfile", 1)}
	}
	k, puts, err := Init(chance(7), epoch, keks...)
	if err != nil {
		t.Fatal(err)
	}
	meta := map[string][]byte{}
	for _, p := range puts {
		if p.Table != store.Meta {
			t.Fatalf("Init puts %s", p.Key)
		}
		meta[p.Name] = p.Value
	}
	return k, meta
}

func uuid(b byte) string { return strings.Repeat(string([]byte{b}), 16) }

func granted(t testing.TB, mount string) policy.Grant {
	t.Helper()
	d := policy.Decide(nil, &lessor.Principal{System: "test"}, &lessor.Op{Verb: lessor.Read, Path: "x"}, policy.Facts{Mount: mount})
	if !d.Grant.Valid() {
		t.Fatal(d.Denied)
	}
	return d.Grant
}

func TestRoundTrip(t *testing.T) {
	k, _ := newKeyring(t)
	c := k.Cipher()
	for _, size := range []int{0, 1, 300, 70000} {
		value := bytes.Repeat([]byte{0xa5}, size)
		key := store.Key{Table: store.Leases, Name: store.MountKey(1, uuid(1), "lease")}
		sealed := c.Seal([]byte("before"), key, 42, value)
		if !bytes.HasPrefix(sealed, []byte("before")) {
			t.Fatal("Seal does not append")
		}
		sealed = sealed[len("before"):]
		if size > 16 && bytes.Contains(sealed, value[:16]) {
			t.Fatal("the value is in clear")
		}
		got, err := c.Open([]byte("before"), key, 42, sealed)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, append([]byte("before"), value...)) {
			t.Fatalf("size %d: got %d other bytes", size, len(got))
		}
	}
}

func TestSealedTwiceDiffers(t *testing.T) {
	k, _ := newKeyring(t)
	key := store.Key{Table: store.Tokens, Name: store.MountKey(1, "")}
	if c := k.Cipher(); bytes.Equal(c.Seal(nil, key, 1, []byte("v")), c.Seal(nil, key, 1, []byte("v"))) {
		t.Fatal("a nonce was used twice")
	}
}

func TestMovedRefused(t *testing.T) {
	k, _ := newKeyring(t)
	c := k.Cipher()
	key := store.Key{Table: store.Leases, Name: store.MountKey(1, uuid(1), "a")}
	const version = 3<<blockBits + 5
	sealed := c.Seal(nil, key, version, []byte("value"))
	for what, at := range map[string]struct {
		key     store.Key
		version uint64
	}{
		"table":          {store.Key{Table: store.Tokens, Name: key.Name}, version},
		"name":           {store.Key{Table: key.Table, Name: store.MountKey(1, uuid(1), "b")}, version},
		"namespace":      {store.Key{Table: key.Table, Name: store.MountKey(2, uuid(1), "a")}, version},
		"mount":          {store.Key{Table: key.Table, Name: store.MountKey(1, uuid(2), "a")}, version},
		"version":        {key, version + 1},
		"block":          {key, version + 1<<blockBits},
		"longer name":    {store.Key{Table: key.Table, Name: key.Name + "\x00"}, version},
		"version 0":      {key, 0},
		"the same block": {key, 3 << blockBits},
	} {
		if v, err := c.Open(nil, at.key, at.version, sealed); !errors.Is(err, ErrDamaged) {
			t.Errorf("another %s: got %q, %v", what, v, err)
		}
	}
	for i := range sealed {
		altered := bytes.Clone(sealed)
		altered[i] ^= 1
		if v, err := c.Open(nil, key, version, altered); err == nil {
			t.Errorf("byte %d altered: got %q", i, v)
		}
		if v, err := c.Open(nil, key, version, sealed[:i]); err == nil {
			t.Errorf("cut to %d: got %q", i, v)
		}
	}
	other, _, err := Init(chance(8), epoch, memKEK("keyfile", 1))
	if err != nil {
		t.Fatal(err)
	}
	if v, err := other.Cipher().Open(nil, key, version, sealed); err == nil {
		t.Errorf("another keyring: got %q", v)
	}
}

// sealed is the real store, as it is before its keys are known.
func sealed(t *testing.T, disk *mem.Disk) *store.DB {
	t.Helper()
	db, err := store.Open(disk.Open(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// database is a new store under a new keyring.
func database(t *testing.T, disk *mem.Disk, keks ...KEK) (*store.DB, *Keyring) {
	t.Helper()
	db := sealed(t, disk)
	k, puts, err := Init(chance(7), epoch, keks...)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Unseal(k.Cipher()); err != nil {
		t.Fatal(err)
	}
	commit(t, db, puts...)
	return db, k
}

func commit(t *testing.T, db *store.DB, puts ...store.Put) {
	t.Helper()
	if _, err := db.Commit(context.Background(), store.Txn{Puts: puts}); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, db *store.DB, key store.Key) store.Row {
	t.Helper()
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	row, err := v.Get(key)
	if err != nil {
		t.Fatal(err)
	}
	return row
}

func TestOpenForGrant(t *testing.T) {
	db, k := database(t, new(mem.Disk), memKEK("keyfile", 1))
	key := store.Key{Table: store.Secrets, Name: store.MountKey(1, uuid(1), "db/password")}
	open := store.Key{Table: store.Engine, Name: key.Name}
	short := store.Key{Table: store.Secrets, Name: "short"}
	commit(t, db, store.Put{Key: key, Value: []byte("hunter2")}, store.Put{Key: open, Value: []byte("meta")}, store.Put{Key: short, Value: []byte("v")})
	row := get(t, db, key)
	if row.Value != nil {
		t.Fatal("the store opened a secret row")
	}
	s, err := k.Open(granted(t, uuid(1)), row)
	if err != nil || s.Reveal() != "hunter2" {
		t.Fatalf("got %q, %v", s.Reveal(), err)
	}
	if err := k.Check(row); err != nil {
		t.Fatal(err)
	}

	forged := row
	forged.Version++
	missing := store.Key{Table: store.Secrets, Name: store.MountKey(1, uuid(1), "none")}
	for what, c := range map[string]struct {
		grant policy.Grant
		row   store.Row
	}{
		"zero grant":          {policy.Grant{}, row},
		"grant elsewhere":     {granted(t, uuid(2)), row},
		"grant for no mount":  {granted(t, ""), row},
		"row in no mount":     {granted(t, ""), get(t, db, short)},
		"row that is no more": {granted(t, uuid(1)), get(t, db, missing)},
		"open table":          {granted(t, uuid(1)), get(t, db, open)},
		"other version":       {granted(t, uuid(1)), forged},
	} {
		s, err := k.Open(c.grant, c.row)
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Kind != api.Internal || !s.Empty() {
			t.Errorf("%s: got %q, %v", what, s.Reveal(), err)
		}
	}
	if v, err := k.Cipher().Open(nil, key, row.Version, row.Sealed()); err == nil {
		t.Errorf("the store's cipher opened a secret row: %q", v)
	}
	if err := k.Check(forged); err == nil {
		t.Error("Check accepts a row moved to another version")
	}
}

func TestEachKEKAlone(t *testing.T) {
	one, two := memKEK("keyfile", 1), memKEK("recovery", 2)
	disk := new(mem.Disk)
	db, k := database(t, disk, one, two)
	key := store.Key{Table: store.Engine, Name: store.MountKey(1, uuid(1), "x")}
	commit(t, db, store.Put{Key: key, Value: []byte("v")})
	three := memKEK("third", 3)
	put, err := k.WrapRoot(three)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, db, put)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	k.Forget()
	for _, kek := range []KEK{one, two, three} {
		db := sealed(t, disk)
		view, err := db.View()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Unseal(view, kek)
		view.Close()
		if err != nil {
			t.Fatalf("%s: %v", kek.Name(), err)
		}
		if err := db.Unseal(again.Cipher()); err != nil {
			t.Fatalf("%s: %v", kek.Name(), err)
		}
		if row := get(t, db, key); string(row.Value) != "v" {
			t.Fatalf("%s: got %q", kek.Name(), row.Value)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnsealErrors(t *testing.T) {
	kek := memKEK("keyfile", 1)
	_, good := newKeyring(t, kek, memKEK("recovery", 2))
	with := func(row string, value []byte) map[string][]byte {
		m := maps.Clone(good)
		if m[row] = value; value == nil {
			delete(m, row)
		}
		return m
	}
	flip := func(b []byte) []byte { b = bytes.Clone(b); b[len(b)-1] ^= 1; return b }
	other := memKEK("keyfile", 9)
	for what, c := range map[string]struct {
		meta map[string][]byte
		kek  KEK
		want error
		text string
	}{
		"empty store":       {nil, kek, ErrUninitialised, "never initialised"},
		"wrong key file":    {good, other, ErrWrongKey, "the key file /etc/keyfile holds key"},
		"unknown KEK":       {good, memKEK("shamir", 1), ErrMissing, `"keyfile", "recovery"`},
		"damaged KEK row":   {with("kek/keyfile", flip(good["kek/keyfile"])), kek, ErrDamaged, "/etc/keyfile"},
		"short KEK row":     {with("kek/keyfile", []byte{1}), kek, ErrDamaged, "/etc/keyfile"},
		"newer KEK row":     {with("kek/keyfile", append([]byte{9}, good["kek/keyfile"][1:]...)), kek, ErrNewer, "upgrade"},
		"another KEK's row": {with("kek/keyfile", good["kek/recovery"]), kek, ErrWrongKey, "sealed with key"},
		"damaged keyring":   {with("keyring", flip(good["keyring"])), kek, ErrDamaged, "restore it from a backup"},
		"no keyring":        {with("keyring", nil), kek, ErrDamaged, "no keyring"},
		"newer store":       {with("schema", []byte("2")), kek, ErrNewer, "upgrade lessor"},
		"no schema":         {with("schema", nil), kek, ErrDamaged, "schema"},
		"odd schema":        {with("schema", []byte("x")), kek, ErrDamaged, "schema"},
	} {
		k, err := unseal(c.meta, c.kek)
		if k != nil || !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), "refusing to start") {
			t.Errorf("%s: got %v, want %v with %q", what, err, c.want, c.text)
		}
	}
	if _, err := unseal(good, kek); err != nil {
		t.Fatal(err)
	}
}

func TestInitErrors(t *testing.T) {
	kek := memKEK("keyfile", 1)
	for what, f := range map[string]func() error{
		"no KEK":        func() error { _, _, err := Init(chance(1), epoch); return err },
		"same name":     func() error { _, _, err := Init(chance(1), epoch, kek, kek); return err },
		"no randomness": func() error { _, _, err := Init(strings.NewReader("short"), epoch, kek); return err },
	} {
		if f() == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func TestRotate(t *testing.T) {
	kek := memKEK("keyfile", 1)
	k, meta := newKeyring(t, kek)
	other, err := unseal(meta, kek) // another node
	if err != nil {
		t.Fatal(err)
	}
	c := k.Cipher()
	key := store.Key{Table: store.Engine, Name: store.MountKey(1, uuid(1), "x")}
	old := c.Seal(nil, key, 5, []byte("old"))

	if k.Due(DefaultRotation, epoch.Add(89*24*time.Hour), MaxCommits-1) {
		t.Error("due too early")
	}
	if !k.Due(DefaultRotation, epoch.Add(90*24*time.Hour), 5) || !k.Due(DefaultRotation, epoch, MaxCommits) {
		t.Error("not due")
	}
	if k.Due(Rotation{Disabled: true, Commits: 1}, epoch.Add(time.Hour), 5) || k.Due(Rotation{Commits: 10}, epoch.Add(9000*time.Hour), 5) {
		t.Error("due against what was said")
	}
	later := epoch.Add(90 * 24 * time.Hour)
	put, err := k.Rotate(chance(20), later, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if id, _, _ := parseRow(c.Seal(nil, key, 6, nil)); id != 1 {
		t.Fatalf("term %d is in use before it was adopted", id)
	}
	if err := k.Adopt(put.Value); err != nil {
		t.Fatal(err)
	}
	if now := k.Term(); now.ID != 2 || !now.Born.Equal(later) || now.Since != 1000 {
		t.Errorf("term %+v", now)
	}
	if k.Due(DefaultRotation, later, MaxCommits+999) || !k.Due(DefaultRotation, later, MaxCommits+1000) {
		t.Error("due at the wrong position")
	}
	sealed := c.Seal(nil, key, 7, []byte("new"))
	if id, _, _ := parseRow(sealed); id != 2 {
		t.Errorf("sealed in term %d", id)
	}
	if v, err := c.Open(nil, key, 5, old); err != nil || string(v) != "old" {
		t.Errorf("old row: %q, %v", v, err)
	}

	// The other node learns of it when it meets such a row, if it was told where to look.
	if _, err := other.Cipher().Open(nil, key, 7, sealed); !errors.Is(err, errNoTerm) {
		t.Errorf("unknown term: %v", err)
	}
	other.Follow(func() ([]byte, error) { return put.Value, nil })
	if v, err := other.Cipher().Open(nil, key, 7, sealed); err != nil || string(v) != "new" {
		t.Errorf("after Follow: %q, %v", v, err)
	}

	// Back is no way: an older keyring, or one that is no successor.
	if err := k.Adopt(meta["keyring"]); err == nil {
		t.Error("an older keyring was adopted")
	}
	rival, err := unseal(meta, kek)
	if err != nil {
		t.Fatal(err)
	}
	fork, err := rival.Rotate(chance(21), later, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Adopt(fork.Value); err == nil {
		t.Error("a keyring with another key for the same term was adopted")
	}
	if err := k.Adopt([]byte("nonsense")); !errors.Is(err, ErrDamaged) {
		t.Errorf("nonsense: %v", err)
	}
	if v, err := c.Open(nil, key, 7, sealed); err != nil || string(v) != "new" {
		t.Errorf("after refused keyrings: %q, %v", v, err)
	}
	again, err := unseal(map[string][]byte{"schema": meta["schema"], "kek/keyfile": meta["kek/keyfile"], "keyring": put.Value}, kek)
	if err != nil {
		t.Fatal(err)
	}
	for version, want := range map[uint64]string{5: "old", 7: "new"} {
		if v, err := again.Cipher().Open(nil, key, version, map[uint64][]byte{5: old, 7: sealed}[version]); err != nil || string(v) != want {
			t.Errorf("after a restart: %q, %v", v, err)
		}
	}
}

// Sealing, opening, rotating and deriving at once; for the race detector, and for keys half replaced.
func TestConcurrent(t *testing.T) {
	k, _ := newKeyring(t)
	c := k.Cipher()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 300 {
				key := store.Key{Table: store.Leases, Name: store.MountKey(1, uuid(byte(g)), fmt.Sprint(i))}
				version := uint64(i) << (blockBits - 1)
				if v, err := c.Open(nil, key, version, c.Seal(nil, key, version, []byte("v"))); err != nil || string(v) != "v" {
					t.Errorf("got %q, %v", v, err)
				}
				k.Element(1, key.Name, version)
			}
		})
	}
	for i := range 5 {
		put, err := k.Rotate(chance(byte(i)), epoch, uint64(i))
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Adopt(put.Value); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
}

func TestForget(t *testing.T) {
	k, _ := newKeyring(t)
	c := k.Cipher()
	key := store.Key{Table: store.Engine, Name: "x"}
	sealed := c.Seal(nil, key, 1, []byte("v"))
	token := k.SealToken([]byte("p"))
	bytesOfKeys := k.ring.Load().keys
	k.Forget()
	k.Forget()
	func() { // zeroed, or not even mapped any more
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() { _ = recover() }()
		if !bytes.Equal(bytesOfKeys, make([]byte, len(bytesOfKeys))) {
			t.Error("keys are still in memory")
		}
	}()
	if _, err := c.Open(nil, key, 1, sealed); !errors.Is(err, ErrForgotten) {
		t.Errorf("Open: %v", err)
	}
	if _, err := k.OpenToken(token); !errors.Is(err, ErrForgotten) {
		t.Errorf("OpenToken: %v", err)
	}
	if _, err := k.Rotate(chance(1), epoch, 1); !errors.Is(err, ErrForgotten) {
		t.Errorf("Rotate: %v", err)
	}
	for what, f := range map[string]func(){
		"Seal":      func() { c.Seal(nil, key, 1, nil) },
		"MAC":       func() { k.MAC(nil) },
		"TokenHash": func() { k.TokenHash("t") },
		"SealToken": func() { k.SealToken(nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s does without keys", what)
				}
			}()
			f()
		}()
	}
}

func TestHashes(t *testing.T) {
	k, _ := newKeyring(t)
	distinct := map[string]string{}
	note := func(what string, sum []byte) {
		t.Helper()
		if other, ok := distinct[string(sum)]; ok {
			t.Errorf("%s and %s are equal", what, other)
		}
		distinct[string(sum)] = what
	}
	sum := func(b [32]byte) []byte { return b[:] }
	note("mac", sum(k.MAC([]byte("x"))))
	note("mac of other", sum(k.MAC([]byte("y"))))
	note("element", sum(k.Element(1, "n", 1)))
	note("element version", sum(k.Element(1, "n", 2)))
	note("element table", sum(k.Element(2, "n", 1)))
	note("element name", sum(k.Element(1, "m", 1)))
	note("mask", sum(k.Mask(1, 2, "b", 0)))
	note("mask sum", sum(k.Mask(1, 2, "b", 1)))
	note("mask incarnation", sum(k.Mask(2, 2, "b", 0)))
	note("mask seq", sum(k.Mask(1, 3, "b", 0)))
	note("mask batch", sum(k.Mask(1, 2, "c", 0)))
	note("fingerprint", k.Fingerprint("m", "p", []byte("v")))
	note("fingerprint shifted", k.Fingerprint("mp", "", []byte("v")))
	note("fingerprint shifted again", k.Fingerprint("m", "pv", nil))
	note("token", []byte(k.TokenHash("hvs.x")))
	if len(k.TokenHash("x")) != 20 || len(k.Fingerprint("m", "p", nil)) != 16 {
		t.Error("wrong length")
	}
	if distinct[k.TokenHash("hvs.x")] != "token" {
		t.Error("not a function")
	}
}

func TestBatchTokens(t *testing.T) {
	k, meta := newKeyring(t)
	token := k.SealToken([]byte("payload"))
	if !strings.HasPrefix(token, "hvb.") || strings.ContainsAny(token, "+/=") {
		t.Errorf("odd token %q", token)
	}
	again, err := unseal(meta, memKEK("keyfile", 1))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := again.OpenToken(token); err != nil || string(p) != "payload" {
		t.Errorf("got %q, %v", p, err)
	}
	bad := []string{"", "hvb.", "hvs." + token[4:], token + "A", token[:len(token)-1], "hvb.!!!!", strings.ToUpper(token)}
	for i := 4; i < len(token); i++ {
		c := byte('A')
		if token[i] == c {
			c = 'B'
		}
		bad = append(bad, token[:i]+string(c)+token[i+1:])
	}
	for _, token := range bad {
		if p, err := k.OpenToken(token); api.KindOf(err) != api.Unauthenticated {
			t.Errorf("%q: got %q, %v", token, p, err)
		}
	}
}

// The vectors of c2sp.org/XAES-256-GCM.
func TestXAES(t *testing.T) {
	for _, v := range []struct {
		key        byte
		ad, sealed string
	}{
		{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		{3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		nonce := "ABCDEFGHIJKLMNOPQRSTUVWX"
		got, err := unwrap(bytes.Repeat([]byte{v.key}, 32), v.ad, append([]byte(nonce), unhex(t, v.sealed)...))
		if err != nil || string(got) != "XAES-256-GCM" {
			t.Errorf("key %d: got %q, %v", v.key, got, err)
		}
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func FuzzOpen(f *testing.F) {
	k, _ := newKeyring(f)
	key := store.Key{Table: store.Engine, Name: store.MountKey(1, uuid(1), "x")}
	f.Add(k.Cipher().Seal(nil, key, 1, []byte("value")))
	f.Add([]byte{})
	f.Add([]byte{1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80})
	f.Add(bytes.Repeat([]byte{1}, 40))
	f.Fuzz(func(t *testing.T, sealed []byte) {
		if v, err := k.Cipher().Open(nil, key, 2, sealed); err == nil {
			t.Fatalf("opened %x as %q", sealed, v)
		}
		if id, body, err := parseRow(sealed); err == nil && (id == 0 || len(body) < halfSize+tagSize) {
			t.Fatalf("accepted %x", sealed)
		}
	})
}

func FuzzKeyring(f *testing.F) {
	k, _ := newKeyring(f)
	f.Add(bytes.Clone(k.ring.Load().encoded()))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, encoded []byte) {
		if checkRing(encoded) != nil {
			return
		}
		last := lastTerm(encoded)
		if last.id == 0 || termKey(encoded, last.id) == nil {
			t.Fatalf("accepted %x", encoded)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	k, _ := newKeyring(b)
	c, key, value := k.Cipher(), store.Key{Table: store.Leases, Name: store.MountKey(1, uuid(1), "0123456789abcdef")}, make([]byte, 300)
	dst := make([]byte, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		c.Seal(dst, key, 12345, value)
	}
}

func BenchmarkOpen(b *testing.B) {
	k, _ := newKeyring(b)
	c, key, value := k.Cipher(), store.Key{Table: store.Leases, Name: store.MountKey(1, uuid(1), "0123456789abcdef")}, make([]byte, 300)
	sealed := c.Seal(nil, key, 12345, value)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Open(nil, key, 12345, sealed); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDerive(b *testing.B) {
	k, _ := newKeyring(b)
	r := k.live()
	b.ReportAllocs()
	for i := uint64(0); b.Loop(); i++ {
		if _, err := r.aead(1, store.Leases, i<<blockBits); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkElement(b *testing.B) {
	k, _ := newKeyring(b)
	name := store.MountKey(1, uuid(1), "0123456789abcdef")
	b.ReportAllocs()
	for b.Loop() {
		k.Element(3, name, 12345)
	}
}

func BenchmarkTokenHash(b *testing.B) {
	k, _ := newKeyring(b)
	b.ReportAllocs()
	for b.Loop() {
		k.TokenHash("hvs.CAESIJ0123456789abcdef0123456789abcdef0123456789abcdef0123456789")
	}
}

func BenchmarkOpenToken(b *testing.B) {
	k, _ := newKeyring(b)
	token := k.SealToken(make([]byte, 200))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.OpenToken(token); err != nil {
			b.Fatal(err)
		}
	}
}
