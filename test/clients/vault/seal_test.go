package vault

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/lessor-dev/lessor/test/clients/server"
)

// sealed is a server under shares, and what a person keeps of it.
type sealed struct {
	*testing.T
	*server.Server
	dir  string
	keys []string
	root string
}

func newSealed(t *testing.T) *sealed {
	os.Unsetenv("VAULT_TOKEN")
	s := &sealed{T: t, dir: t.TempDir()}
	s.configure(`seal "shamir" { anchor = "` + s.dir + `/keys/anchor" }`)
	return s
}

func (s *sealed) configure(seals string) {
	check(s.T, os.WriteFile(filepath.Join(s.dir, "lessor.hcl"), []byte(seals+"\n"), 0o600))
}

// start starts the server, and returns a client of it.
func (s *sealed) start() *api.Client {
	s.Helper()
	s.Server = server.Run(s.T, "-config", s.dir+"/lessor.hcl", "-data", s.dir+"/data", "-listen", "127.0.0.1:0", "-log-level", "error")
	return s.client()
}

func (s *sealed) client() *api.Client {
	s.Helper()
	cfg := api.DefaultConfig()
	cfg.Address, cfg.MaxRetries = s.Address, 0
	c, err := api.NewClient(cfg)
	check(s.T, err)
	c.SetToken(s.root)
	return c
}

func (s *sealed) unseal(c *api.Client, keys ...string) {
	s.Helper()
	for i, key := range keys {
		status := must[*api.SealStatusResponse](s.T)(c.Sys().Unseal(key))
		if status.Sealed != (i < len(keys)-1) {
			s.Fatalf("after key %d: %+v", i+1, status)
		}
	}
}

func (s *sealed) init(shares, threshold int) *api.Client {
	s.Helper()
	c := s.start()
	made := must[*api.InitResponse](s.T)(c.Sys().Init(&api.InitRequest{SecretShares: shares, SecretThreshold: threshold}))
	s.keys, s.root = made.KeysB64, made.RootToken
	c.SetToken(s.root)
	s.unseal(c, s.keys[:threshold]...)
	return c
}

// TestSeal drives a store's seal from its first day on.
func TestSeal(t *testing.T) {
	s := newSealed(t)
	c := s.start()
	if must[bool](t)(c.Sys().InitStatus()) {
		t.Fatal("a new store is initialised")
	}
	if h := must[*api.HealthResponse](t)(c.Sys().Health()); h.Initialized || !h.Sealed {
		t.Errorf("health: %+v", h)
	}
	made := must[*api.InitResponse](t)(c.Sys().Init(&api.InitRequest{SecretShares: 5, SecretThreshold: 3}))
	if len(made.Keys) != 5 || len(made.KeysB64) != 5 || made.RootToken == "" || len(made.RecoveryKeys) != 0 {
		t.Fatalf("init: %d keys", len(made.Keys))
	}
	s.keys, s.root = made.KeysB64, made.RootToken
	c.SetToken(s.root)
	if _, err := c.Sys().Init(&api.InitRequest{SecretShares: 1, SecretThreshold: 1}); status(err) != 400 || !strings.Contains(err.Error(), "Vault is already initialized") {
		t.Errorf("init again: %v", err)
	}
	if _, err := c.Logical().Read("secret/x"); status(err) != 503 || !strings.Contains(err.Error(), "Vault is sealed") {
		t.Errorf("a read of a sealed server: %v", err)
	}
	if st := must[*api.SealStatusResponse](t)(c.Sys().SealStatus()); !st.Sealed || !st.Initialized || st.T != 3 || st.N != 5 || st.Type != "shamir" {
		t.Errorf("status: %+v", st)
	}
	for _, key := range []string{made.Keys[0], s.keys[3]} {
		must[*api.SealStatusResponse](t)(c.Sys().Unseal(key))
	}
	if st := must[*api.SealStatusResponse](t)(c.Sys().ResetUnsealProcess()); st.Progress != 0 {
		t.Errorf("reset: %+v", st)
	}
	st := must[*api.SealStatusResponse](t)(c.Sys().UnsealWithOptions(&api.UnsealOpts{Key: s.keys[4], Migrate: true}))
	if st.Progress != 1 || st.Nonce == "" {
		t.Errorf("one key: %+v", st)
	}
	s.unseal(c, s.keys[0], s.keys[2])
	check(t, c.Sys().Mount("kv", &api.MountInput{Type: "kv"}))
	must[*api.Secret](t)(c.Logical().Write("kv/a", map[string]any{"x": "y"}))

	before := must[*api.KeyStatus](t)(c.Sys().KeyStatus())
	check(t, c.Sys().Rotate())
	if now := must[*api.KeyStatus](t)(c.Sys().KeyStatus()); now.Term != before.Term+1 || time.Since(now.InstallTime) > time.Minute {
		t.Errorf("rotated: %+v", now)
	}

	check(t, c.Sys().Seal())
	check(t, c.Sys().Seal()) // it is
	if h := must[*api.HealthResponse](t)(c.Sys().Health()); !h.Initialized || !h.Sealed {
		t.Errorf("health: %+v", h)
	}
	s.unseal(c, s.keys[1:4]...)
	if got := must[*api.Secret](t)(c.Logical().Read("kv/a")); got.Data["x"] != "y" {
		t.Errorf("read %v", got.Data)
	}

	// A rekey with verification, and a root token from the new keys.
	begun := must[*api.RekeyStatusResponse](t)(c.Sys().RekeyInit(&api.RekeyInitRequest{SecretShares: 2, SecretThreshold: 2, RequireVerification: true}))
	var done *api.RekeyUpdateResponse
	for _, key := range s.keys[:3] {
		done = must[*api.RekeyUpdateResponse](t)(c.Sys().RekeyUpdate(key, begun.Nonce))
	}
	if !done.Complete || !done.VerificationRequired || len(done.KeysB64) != 2 {
		t.Fatalf("rekey: %+v", done)
	}
	must[*api.RekeyVerificationUpdateResponse](t)(c.Sys().RekeyVerificationUpdate(done.KeysB64[1], done.VerificationNonce))
	if at := must[*api.RekeyVerificationStatusResponse](t)(c.Sys().RekeyVerificationStatus()); at.Progress != 1 || at.T != 2 {
		t.Errorf("verifying: %+v", at)
	}
	if v := must[*api.RekeyVerificationUpdateResponse](t)(c.Sys().RekeyVerificationUpdate(done.KeysB64[0], done.VerificationNonce)); !v.Complete {
		t.Errorf("verified: %+v", v)
	}
	c.SetToken("")
	root := must[*api.GenerateRootStatusResponse](t)(c.Sys().GenerateRootInit("", ""))
	if root.OTP == "" || root.OTPLength != len(root.OTP) || root.Required != 2 {
		t.Errorf("generate-root: %+v", root)
	}
	must[*api.GenerateRootStatusResponse](t)(c.Sys().GenerateRootUpdate(done.KeysB64[0], root.Nonce))
	end := must[*api.GenerateRootStatusResponse](t)(c.Sys().GenerateRootUpdate(done.KeysB64[1], root.Nonce))
	token := must[[]byte](t)(base64.RawStdEncoding.DecodeString(end.EncodedToken))
	for i := range token {
		token[i] ^= root.OTP[i]
	}
	c.SetToken(string(token))
	if self := must[*api.Secret](t)(c.Auth().Token().LookupSelf()); !end.Complete || fmt.Sprint(self.Data["policies"]) != "[root]" {
		t.Errorf("the token is %v", self.Data)
	}

	// Cancelling, as clients do it.
	begun = must[*api.RekeyStatusResponse](t)(c.Sys().RekeyInit(&api.RekeyInitRequest{SecretShares: 1, SecretThreshold: 1}))
	check(t, c.Sys().RekeyCancelWithNonce(begun.Nonce))
	must[*api.GenerateRootStatusResponse](t)(c.Sys().GenerateRootInit("", ""))
	check(t, c.Sys().GenerateRootCancel())
	if now := must[*api.RekeyStatusResponse](t)(c.Sys().RekeyStatus()); now.Started {
		t.Errorf("cancelled: %+v", now)
	}
}

// TestKilledRekeys kills the server at any moment of rekeys with verification: afterwards either the old keys unseal it or the new
// ones, both of which are known by then, and nothing that was written is lost.
func TestKilledRekeys(t *testing.T) {
	s := newSealed(t)
	c := s.init(3, 2)
	check(t, c.Sys().Mount("kv", &api.MountInput{Type: "kv"}))
	old := s.keys
	taken := 0
	for round := range 8 {
		must[*api.Secret](t)(c.Logical().Write("kv/a", map[string]any{"round": fmt.Sprint(round)}))
		begun := must[*api.RekeyStatusResponse](t)(c.Sys().RekeyInit(&api.RekeyInitRequest{SecretShares: 3, SecretThreshold: 2, RequireVerification: true}))
		must[*api.RekeyUpdateResponse](t)(c.Sys().RekeyUpdate(old[0], begun.Nonce))
		fresh := must[*api.RekeyUpdateResponse](t)(c.Sys().RekeyUpdate(old[2], begun.Nonce))
		must[*api.RekeyVerificationUpdateResponse](t)(c.Sys().RekeyVerificationUpdate(fresh.KeysB64[0], fresh.VerificationNonce))
		go func() { _, _ = c.Sys().RekeyVerificationUpdate(fresh.KeysB64[1], fresh.VerificationNonce) }() // in force with this one
		time.Sleep(time.Duration(rand.IntN(700)) * time.Microsecond)
		s.Kill()

		c = s.start()
		works := func(keys []string) bool { _, err := c.Sys().Unseal(keys[0]); return err == nil }
		was, is := works(old), works(fresh.KeysB64)
		if was == is {
			t.Fatalf("round %d: the old keys work: %v, the new ones: %v", round, was, is)
		}
		if is {
			old = fresh.KeysB64
			taken++
		}
		s.unseal(c, old[2])
		if got := must[*api.Secret](t)(c.Logical().Read("kv/a")); got.Data["round"] != fmt.Sprint(round) {
			t.Fatalf("round %d: read %v", round, got.Data)
		}
	}
	t.Logf("%d of 8 rekeys were in force when the server was killed", taken)
}

// TestKilledMigrations kills the server at any moment of a move from shares to a key file: it starts again with both in its configuration,
// and the move can be made again.
func TestKilledMigrations(t *testing.T) {
	s := newSealed(t)
	c := s.init(1, 1)
	check(t, c.Sys().Mount("kv", &api.MountInput{Type: "kv"}))
	must[*api.Secret](t)(c.Logical().Write("kv/a", map[string]any{"x": "y"}))
	key := s.dir + "/keys/seal.key"
	s.Stop()
	s.configure("seal \"keyfile\" {\n path = \"" + key + "\"\n}\nseal \"shamir\" { anchor = \"" + s.dir + "/keys/anchor\" }")
	c = s.start()
	s.unseal(c, s.keys...)
	moved := 0
	for round := range 8 {
		go func() { _, _ = c.Logical().Write("sys/lessor/seal/keyfile", nil) }()
		time.Sleep(time.Duration(rand.IntN(8000)) * time.Microsecond)
		s.Kill()
		c = s.start()
		st := must[*api.SealStatusResponse](t)(c.Sys().SealStatus())
		if st.Sealed {
			s.unseal(c, s.keys...)
		} else {
			moved++
		}
		if got := must[*api.Secret](t)(c.Logical().Read("kv/a")); got.Data["x"] != "y" {
			t.Fatalf("round %d: read %v", round, got.Data)
		}
		locks := must[*api.Secret](t)(c.Logical().Read("sys/lessor/seal")).Data["locks"].([]any)
		named := slices.ContainsFunc(locks, func(l any) bool { return l.(map[string]any)["name"] == "keyfile" })
		if named == st.Sealed {
			t.Fatalf("round %d: sealed %v with %v", round, st.Sealed, locks)
		}
		if named { // back, for another round
			must[*api.Secret](t)(c.Logical().Delete("sys/lessor/seal/keyfile"))
			check(t, os.Remove(key))
		}
	}
	t.Logf("%d of 8 moves were made when the server was killed", moved)
	must[*api.Secret](t)(c.Logical().Write("sys/lessor/seal/keyfile", nil))
	must[*api.Secret](t)(c.Logical().Delete("sys/lessor/seal/shamir"))
	s.Stop()
	c = s.start()
	must[*api.Secret](t)(c.Logical().Read("kv/a"))
}
