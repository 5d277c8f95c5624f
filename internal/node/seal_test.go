package node

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
)

// under makes a place whose server's configuration has these seal stanzas. KEYS is the folder for keys.
func under(t *testing.T, seals string) *place {
	p := newPlace(t)
	p.seals(seals)
	return p
}

func (p *place) seals(text string) {
	p.Helper()
	p.conf = filepath.Join(p.dir, "lessor.hcl")
	text = strings.ReplaceAll(text, "KEYS", filepath.Dir(p.key()))
	p.do(os.WriteFile(p.conf, []byte(text), 0o600))
}

const (
	byShares = "seal \"shamir\" {\n anchor = \"KEYS/seal.key.anchor\"\n}\n"
	byFile   = "seal \"keyfile\" {\n path = \"KEYS/seal.key\"\n}\n"
)

// initialise asks for shares, and takes the root token.
func (r *running) initialise(shares, threshold int) (keys []string) {
	r.Helper()
	answer := r.must(200, "PUT", "sys/init", fmt.Sprintf(`{"secret_shares":%d,"secret_threshold":%d}`, shares, threshold))
	r.token = answer["root_token"].(string)
	return texts(answer["keys_base64"])
}

func texts(list any) (all []string) {
	for _, v := range list.([]any) {
		all = append(all, v.(string))
	}
	return all
}

// give unseals with keys; the node is unsealed after the last.
func (r *running) give(keys ...string) {
	r.Helper()
	for i, key := range keys {
		answer := r.must(200, "PUT", "sys/unseal", `{"key":"`+key+`"}`)
		if sealed := answer["sealed"]; sealed != (i < len(keys)-1) {
			r.Fatalf("after key %d: sealed is %v: %v", i+1, sealed, answer)
		}
	}
}

func (r *running) fails(status int, text, method, path, body string) {
	r.Helper()
	if answer := r.must(status, method, path, body); !strings.Contains(fmt.Sprint(answer["errors"]), text) {
		r.Errorf("%s %s: %v, want %q", method, path, answer, text)
	}
}

// A store under shares: waits to be initialised, is sealed then, unseals by any of its shares, seals when told to, and
// all of it is on record.
func TestShamirLifecycle(t *testing.T) {
	p := under(t, byShares)
	r := p.start()
	r.must(501, "GET", "sys/health", "")
	r.fails(503, "Vault is sealed", "GET", "secret/data/app", "")
	r.fails(400, "not initialized", "PUT", "sys/unseal", `{"key":"AAAA"}`)
	r.fails(503, "Vault is sealed", "GET", "sys/generate-root/attempt", "")
	for body, text := range map[string]string{
		`{}`: "shares must be at least one", `{"secret_shares":1}`: "threshold must be at least one",
		`{"secret_shares":3,"secret_threshold":1}`:                     "threshold must be greater than one for multiple shares",
		`{"secret_shares":3,"secret_threshold":4}`:                     "invalid seal configuration: threshold cannot be larger than shares",
		`{"secret_shares":300,"secret_threshold":4}`:                   "shares must be less than 256",
		`{"secret_shares":3,"secret_threshold":2,"recovery_shares":1}`: "parameters recovery_shares not applicable to seal type shamir",
		`{"secret_shares":1,"secret_threshold":1,"pgp_keys":["!"]}`:    "PGP key",
	} {
		r.fails(400, text, "PUT", "sys/init", body)
	}
	keys := r.initialise(5, 3)
	r.fails(400, "Vault is already initialized", "PUT", "sys/init", `{"secret_shares":1,"secret_threshold":1}`)
	r.must(503, "GET", "sys/health", "")

	other := under(t, byShares).start()
	foreign := other.initialise(5, 3)
	status := r.must(200, "PUT", "sys/unseal", `{"key":"`+keys[4]+`"}`)
	nonce := status["nonce"]
	if status["progress"] != 1.0 || status["t"] != 3.0 || status["n"] != 5.0 || status["type"] != "shamir" || nonce == "" {
		t.Errorf("status: %v", status)
	}
	r.fails(400, "this unseal key does not belong to this store", "PUT", "sys/unseal", `{"key":"`+foreign[0]+`"}`)
	r.fails(400, "there is a slip in this unseal key", "PUT", "sys/unseal", `{"key":"`+swapped(keys[0])+`"}`)
	r.fails(400, "'key' must be a valid hex or base64 string", "PUT", "sys/unseal", `{"key":"!"}`)
	if status = r.must(200, "PUT", "sys/unseal", `{"key":"`+keys[4]+`"}`); status["progress"] != 1.0 || status["nonce"] != nonce {
		t.Errorf("a key that was given twice: %v", status)
	}
	if status = r.must(200, "PUT", "sys/unseal", `{"reset":true}`); status["progress"] != 0.0 || status["nonce"] != "" {
		t.Errorf("after a reset: %v", status)
	}
	asHex := func(key string) string {
		b, err := base64.StdEncoding.DecodeString(key)
		p.do(err)
		return hex.EncodeToString(b)
	}
	r.must(200, "PUT", "sys/unseal", `{"Key":"`+keys[4]+`"}`) // as older clients write it
	r.give(asHex(keys[0]), keys[2])
	r.give(keys[1]) // no harm, as with Vault
	r.fails(400, "vault is unsealed", "PUT", "sys/unseal", `{"reset":true}`)
	r.fails(400, "valid hex or base64", "PUT", "sys/unseal", `{"key":"!"}`)
	r.fill()
	self := r.must(200, "GET", "auth/token/lookup-self", "")["data"].(map[string]any)
	if ttl := self["ttl"].(float64); ttl < 86000 || ttl > 86400 {
		t.Errorf("the root token lives for %v s", ttl)
	}

	// What happened while it was sealed is on record: one key three times wrong, and the rest.
	trail := r.must(200, "GET", "sys/lessor/audit/records?path=sys/unseal", "")["data"].(map[string]any)["records"].([]any)
	var notes []string
	for _, rec := range trail {
		notes = append(notes, fmt.Sprint(rec.(map[string]any)["note"]))
		if client := rec.(map[string]any)["client_address"]; client != "127.0.0.1" {
			t.Errorf("a record names no client: %v", rec)
		}
	}
	for _, want := range []string{"unseal key taken", "unseal key given before", "an unseal key that does not belong to this store", "no unseal key", "progress dropped", "unsealed by shamir"} {
		if !slices.Contains(notes, want) {
			t.Errorf("no record says %q: %q", want, notes)
		}
	}

	r.must(204, "PUT", "sys/seal", "")
	r.must(503, "GET", "sys/health", "")
	r.fails(503, "Vault is sealed", "GET", "secret/data/app", "")
	r.give(keys[3], keys[1], keys[0])
	r.checkFilled()
	r.stop()

	again := p.start()
	again.token = r.token
	again.must(503, "GET", "sys/health", "")
	again.give(keys[:3]...)
	again.checkFilled()
	again.stop()
	for i, key := range append(keys, r.token) {
		if strings.Contains(p.log.String(), key) {
			t.Errorf("the log holds secret %d", i)
		}
	}

	// The data is gone: nobody makes another store over it unawares.
	p.remove(p.data())
	if _, err := p.try(); err == nil || !strings.Contains(err.Error(), "the anchor "+p.key()+config.AnchorSuffix+" belongs to a store that is not here") {
		t.Errorf("without its data: %v", err)
	}
}

// swapped is a key with two of its characters in each other's place.
func swapped(key string) string {
	b := []byte(key)
	for i := 20; ; i++ {
		if b[i] != b[i+1] {
			b[i], b[i+1] = b[i+1], b[i]
			return string(b)
		}
	}
}

// Rites take no token, so that anybody may begin, cancel, and show wrong keys for as long as he likes. That is on record, but it
// does not fill the disk.
func TestFloodOfRites(t *testing.T) {
	r := under(t, byShares).start()
	r.give(r.initialise(3, 2)[:2]...)
	r.fill()
	for name, steps := range map[string][][3]string{
		"begin and cancel a root token": {{"PUT", "sys/generate-root/attempt", `{}`}, {"DELETE", "sys/generate-root/attempt", ""}},
		"begin and cancel a rekey":      {{"PUT", "sys/rekey/init", `{"secret_shares":3,"secret_threshold":2}`}, {"DELETE", "sys/rekey/init", `{"nonce":"%s"}`}},
		"keys for no root token":        {{"PUT", "sys/generate-root/update", `{"key":"AAAA","nonce":"x"}`}},
		"keys for no rekey":             {{"PUT", "sys/rekey/update", `{"key":"AAAA","nonce":"x"}`}},
		"no keys":                       {{"PUT", "sys/unseal", `{"key":"!"}`}},
		"another store":                 {{"PUT", "sys/init", `{"secret_shares":3,"secret_threshold":2}`}},
	} {
		t.Run(name, func(t *testing.T) {
			const n = 100
			before, began := r.db.Head().Seq, time.Now()
			for range n {
				nonce := ""
				for _, s := range steps {
					_, answer := r.ask(s[0], s[1], strings.ReplaceAll(s[2], "%s", nonce))
					nonce, _ = answer["nonce"].(string)
				}
			}
			most, want := 17*len(steps)*(int(time.Since(began)/time.Second)+2), float64(n*len(steps))
			if made := int(r.db.Head().Seq - before); made > most || made == 0 {
				t.Errorf("%v requests made %d commits", want, made)
			}
			told := 0.0
			for end := time.Now().Add(time.Minute); told < want && time.Now().Before(end); {
				time.Sleep(100 * time.Millisecond)
				told = 0
				for _, rec := range r.must(200, "GET", "sys/lessor/audit/records?limit=1000&newest=true", "")["data"].(map[string]any)["records"].([]any) {
					rec := rec.(map[string]any)
					count, many := rec["count"].(float64)
					switch {
					case rec["seq"].(float64) <= float64(before) || rec["system"] != "seal":
					case many:
						told += count
					default:
						told++
					}
				}
			}
			if told != want {
				t.Errorf("%v of %v are on record", told, want)
			}
		})
	}
	r.checkFilled()
}

// Nobody but the store's people seals it, and who has no sudo is none of them.
func TestSealNeedsSudo(t *testing.T) {
	p := newPlace(t)
	r := p.start()
	r.must(204, "PUT", "sys/policies/acl/weak", `{"policy":"path \"sys/*\" { capabilities = [\"create\",\"read\",\"update\",\"delete\"] }"}`)
	root := r.token
	r.token = r.must(200, "POST", "auth/token/create", `{"policies":["weak"]}`)["auth"].(map[string]any)["client_token"].(string)
	for _, c := range [][2]string{{"PUT", "sys/seal"}, {"PUT", "sys/rotate"}, {"GET", "sys/lessor/seal"}, {"POST", "sys/lessor/seal/shamir"}, {"DELETE", "sys/lessor/seal/keyfile"}} {
		r.must(403, c[0], c[1], "")
	}
	r.token = ""
	r.must(403, "PUT", "sys/seal", "")
	r.token = root
	r.must(200, "GET", "sys/key-status", "")
}

// A node with a key file stays sealed once it was told to, until it gets the key, or is started anew.
func TestSealedKeyFile(t *testing.T) {
	p := newPlace(t)
	r := p.start()
	r.fill()
	r.must(204, "PUT", "sys/seal", "")
	r.must(503, "GET", "sys/health", "")
	key := p.keyOf(p.key())
	r.fails(400, "does not belong to this store", "PUT", "sys/unseal", `{"key":"`+base64.StdEncoding.EncodeToString(make([]byte, 32))+`"}`)
	r.give(key)
	r.checkFilled()
	r.must(204, "PUT", "sys/seal", "")
	r.stop()
	again := p.start()
	again.token = r.token
	again.checkFilled()
}

// keyOf is the key in a key file.
func (p *place) keyOf(path string) string {
	p.Helper()
	text, err := os.ReadFile(path)
	p.do(err)
	_, key, _ := strings.Cut(string(text), "\nkey: ")
	return strings.TrimSpace(key)
}

// What a development server holds outlasts its being sealed.
func TestDevServerSeals(t *testing.T) {
	c, err := config.Flags([]string{"-dev", "-dev-listen-address=127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	p := newPlace(t)
	n, err := Start(t.Context(), c, p.o)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{p, n, n.Root.Reveal(), http.DefaultClient}
	t.Cleanup(r.stop)
	r.must(200, "POST", "secret/data/app", `{"data":{"password":"`+secretValue+`"}}`)
	r.must(204, "PUT", "sys/seal", "")
	r.fails(503, "Vault is sealed", "GET", "secret/data/app", "")
	r.give(n.UnsealKey.Reveal())
	r.checkFilled()
	r.fails(400, "this store is in memory", "POST", "sys/lessor/seal/keyfile", `{"path":"/nowhere/key"}`)
}

// Requests under way end before the keys are forgotten; what comes meanwhile is told that the node is sealed.
func TestSealEndsRequestsInOrder(t *testing.T) {
	p := newPlace(t)
	r := p.start()
	r.fill()
	var failed, after atomic.Int64
	var sealing atomic.Bool
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := 0; ; j++ {
				late := sealing.Load()
				status, answer, err := r.tryAsk("POST", fmt.Sprintf("secret/data/x%d", i), `{"data":{"j":"1"}}`)
				switch {
				case err != nil || status != 200 && status != 503 || status == 503 && fmt.Sprint(answer["errors"]) != "[Vault is sealed]":
					failed.Add(1)
					t.Errorf("%d %v %v", status, answer, err)
					return
				case status == 503:
					return
				case late:
					after.Add(1)
				}
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	r.must(204, "PUT", "sys/seal", "")
	sealing.Store(true)
	all.Wait()
	if after.Load() > 0 {
		t.Errorf("%d requests were answered by a sealed node", after.Load())
	}
	r.give(p.keyOf(p.key()))
	r.checkFilled()
}

func (r *running) rekey(body string) (nonce string) {
	r.Helper()
	return r.must(200, "PUT", "sys/rekey/init", body)["nonce"].(string)
}

func gives(nonce, key string) string { return `{"nonce":"` + nonce + `","key":"` + key + `"}` }

func TestRekey(t *testing.T) {
	p := under(t, byShares)
	r := p.start()
	keys := r.initialise(3, 2)
	r.fails(503, "Vault is sealed", "GET", "sys/rekey/init", "")
	r.give(keys[:2]...)
	r.fill()
	if status := r.must(200, "GET", "sys/rekey/init", ""); status["started"] != false || status["required"] != 2.0 || status["nonce"] != "" {
		t.Errorf("before: %v", status)
	}
	r.fails(400, "no barrier rekey in progress", "PUT", "sys/rekey/update", gives("x", keys[0]))
	r.fails(400, "recovery rekeying not supported", "GET", "sys/rekey-recovery-key/init", "")
	nonce := r.rekey(`{"secret_shares":4,"secret_threshold":3}`)
	r.fails(400, "rekey already in progress", "PUT", "sys/rekey/init", `{"secret_shares":1,"secret_threshold":1}`)
	r.fails(400, `incorrect nonce supplied; nonce for this rekey operation is "`, "PUT", "sys/rekey/update", gives("x", keys[0]))
	if status := r.must(200, "PUT", "sys/rekey/update", gives(nonce, keys[0])); status["progress"] != 1.0 || status["t"] != 3.0 || status["n"] != 4.0 {
		t.Errorf("after one key: %v", status)
	}
	r.fails(400, "given key has already been provided", "PUT", "sys/rekey/update", gives(nonce, keys[0]))
	done := r.must(200, "PUT", "sys/rekey/update", gives(nonce, keys[2]))
	fresh := texts(done["keys_base64"])
	if done["complete"] != true || done["nonce"] != nonce || len(fresh) != 4 {
		t.Fatalf("complete: %v", done)
	}
	r.must(204, "PUT", "sys/seal", "")
	r.fails(400, "of an earlier set", "PUT", "sys/unseal", `{"key":"`+keys[0]+`"}`)
	r.give(fresh[3], fresh[0], fresh[1])
	r.checkFilled()

	// Cancelling needs the nonce.
	nonce = r.rekey(`{"secret_shares":1,"secret_threshold":1}`)
	r.fails(400, "invalid request", "DELETE", "sys/rekey/init", "")
	r.must(204, "DELETE", "sys/rekey/init", `{"nonce":"`+nonce+`"}`)
	if status := r.must(200, "GET", "sys/rekey/init", ""); status["started"] != false {
		t.Errorf("cancelled: %v", status)
	}
	trail := fmt.Sprint(r.must(200, "GET", "sys/lessor/audit/records?path=sys/rekey/update", ""))
	for _, want := range []string{"new unseal keys are in force", "wrong nonce", "unseal key taken for a rekey"} {
		if !strings.Contains(trail, want) {
			t.Errorf("no record says %q", want)
		}
	}
}

// New shares that must be verified count only then: until the last of them is shown, and if the server dies, the old
// ones do.
func TestRekeyWithVerification(t *testing.T) {
	p := under(t, byShares)
	r := p.start()
	old := r.initialise(3, 2)
	r.give(old[:2]...)
	r.fill()
	begin := func() (fresh []string, nonce string) {
		nonce = r.rekey(`{"secret_shares":3,"secret_threshold":2,"require_verification":true}`)
		r.fails(400, "no rekey verification in progress", "PUT", "sys/rekey/verify", gives(nonce, old[0]))
		r.must(200, "PUT", "sys/rekey/update", gives(nonce, old[0]))
		done := r.must(200, "PUT", "sys/rekey/update", gives(nonce, old[1]))
		if done["complete"] != true || done["verification_required"] != true {
			t.Fatalf("complete: %v", done)
		}
		r.fails(400, "verification must be performed", "PUT", "sys/rekey/update", gives(nonce, old[2]))
		return texts(done["keys_base64"]), done["verification_nonce"].(string)
	}
	lost, nonce := begin()
	r.must(200, "PUT", "sys/rekey/verify", gives(nonce, lost[0]))
	r.stop() // midway
	token := r.token
	r = p.start()
	r.token = token
	r.fails(400, "of an earlier set", "PUT", "sys/unseal", `{"key":"`+lost[0]+`"}`)
	r.give(old[1], old[2])

	fresh, nonce := begin()
	r.must(200, "PUT", "sys/rekey/verify", gives(nonce, fresh[0]))
	r.fails(400, "does not belong", "PUT", "sys/rekey/verify", gives(nonce, lost[1]))
	restarted := r.must(200, "DELETE", "sys/rekey/verify", "")
	if restarted["progress"] != 0.0 || restarted["nonce"] == nonce || restarted["started"] != true {
		t.Errorf("begun anew: %v", restarted)
	}
	r.fails(400, "incorrect nonce supplied; nonce for this verify operation is", "PUT", "sys/rekey/verify", gives(nonce, fresh[0]))
	nonce = restarted["nonce"].(string)
	if status := r.must(200, "PUT", "sys/rekey/verify", gives(nonce, fresh[2])); status["progress"] != 1.0 || status["t"] != 2.0 {
		t.Errorf("after one: %v", status)
	}
	if done := r.must(200, "PUT", "sys/rekey/verify", gives(nonce, fresh[0])); done["complete"] != true || done["nonce"] != nonce {
		t.Errorf("done: %v", done)
	}
	r.must(204, "PUT", "sys/seal", "")
	r.fails(400, "of an earlier set", "PUT", "sys/unseal", `{"key":"`+old[0]+`"}`)
	r.give(fresh[1], fresh[2])
	r.checkFilled()
}

func TestPGP(t *testing.T) {
	var entities []*openpgp.Entity
	var public []string
	for i := range 3 {
		e, err := openpgp.NewEntity(fmt.Sprintf("person %d", i), "", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := e.Serialize(&b); err != nil {
			t.Fatal(err)
		}
		entities, public = append(entities, e), append(public, base64.StdEncoding.EncodeToString(b.Bytes()))
	}
	open := func(i int, sealed []byte) string {
		message, err := openpgp.ReadMessage(bytes.NewReader(sealed), openpgp.EntityList{entities[i]}, nil, &packet.Config{})
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if _, err := b.ReadFrom(message.UnverifiedBody); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	decoded := func(text string) []byte {
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	list, _ := json.Marshal(public)

	p := under(t, byShares)
	r := p.start()
	answer := r.must(200, "PUT", "sys/init", `{"secret_shares":3,"secret_threshold":2,"pgp_keys":`+string(list)+`,"root_token_pgp_key":"`+public[1]+`"}`)
	sealed := texts(answer["keys_base64"])
	if texts(answer["keys"])[0] != hex.EncodeToString(decoded(sealed[0])) {
		t.Error("keys and keys_base64 differ")
	}
	r.token = open(1, decoded(answer["root_token"].(string)))
	keys := []string{open(0, decoded(sealed[0])), open(1, decoded(sealed[1])), open(2, decoded(sealed[2]))}
	r.give(keys[0], keys[2])
	r.fill()

	r.fails(400, "no backed-up keys found", "GET", "sys/rekey/backup", "")
	r.fails(400, "cannot request a backup", "PUT", "sys/rekey/init", `{"secret_shares":3,"secret_threshold":2,"backup":true}`)
	begun := r.must(200, "PUT", "sys/rekey/init", `{"secret_shares":3,"secret_threshold":2,"backup":true,"pgp_keys":`+string(list)+`}`)
	name := hex.EncodeToString(entities[2].PrimaryKey.Fingerprint)
	if texts(begun["pgp_fingerprints"])[2] != name || begun["backup"] != true {
		t.Errorf("begun: %v", begun)
	}
	nonce := begun["nonce"].(string)
	r.must(200, "PUT", "sys/rekey/update", gives(nonce, keys[0]))
	done := r.must(200, "PUT", "sys/rekey/update", gives(nonce, keys[1]))
	fresh := texts(done["keys"])
	backup := r.must(200, "GET", "sys/rekey/backup", "")["data"].(map[string]any)
	if got := texts(backup["keys"].(map[string]any)[name]); got[0] != fresh[2] || backup["nonce"] != nonce {
		t.Errorf("the backup is %v", backup)
	}
	r.must(204, "DELETE", "sys/rekey/backup", "")
	r.fails(400, "no backed-up keys found", "GET", "sys/rekey/backup", "")

	var shares []string
	for i, text := range fresh {
		b, err := hex.DecodeString(text)
		p.do(err)
		shares = append(shares, open(i, b))
	}
	// Shares that are added beside a key file go to the same people.
	other := newPlace(t).start()
	other.fails(400, "count mismatch", "POST", "sys/lessor/seal/shamir", `{"secret_shares":2,"secret_threshold":2,"pgp_keys":`+string(list)+`}`)
	added := other.must(200, "POST", "sys/lessor/seal/shamir", `{"secret_shares":3,"secret_threshold":2,"pgp_keys":`+string(list)+`}`)["data"].(map[string]any)
	theirs := texts(added["keys_base64"])
	other.must(204, "PUT", "sys/seal", "")
	other.give(open(0, decoded(theirs[0])), open(1, decoded(theirs[1])))

	begun = r.must(200, "PUT", "sys/generate-root/attempt", `{"pgp_key":"`+public[0]+`"}`)
	nonce = begun["nonce"].(string)
	if begun["otp"] != "" || begun["pgp_fingerprint"] != hex.EncodeToString(entities[0].PrimaryKey.Fingerprint) {
		t.Errorf("begun: %v", begun)
	}
	r.must(200, "PUT", "sys/generate-root/update", gives(nonce, shares[0]))
	done = r.must(200, "PUT", "sys/generate-root/update", gives(nonce, shares[2]))
	r.token = open(0, decoded(done["encoded_token"].(string)))
	r.checkFilled()
}

// unpad takes the pad off a token, as clients do.
func unpad(t *testing.T, encoded, pad any) string {
	t.Helper()
	b, err := base64.RawStdEncoding.DecodeString(encoded.(string))
	if err != nil || len(b) != len(pad.(string)) {
		t.Fatalf("%q: %v", encoded, err)
	}
	for i := range b {
		b[i] ^= pad.(string)[i]
	}
	return string(b)
}

// A root token is made for whoever shows the key file's key, or enough shares; the way to it leaves records.
func TestGenerateRoot(t *testing.T) {
	p := newPlace(t)
	r := p.start()
	r.fill()
	r.must(204, "POST", "auth/token/revoke-self", "")
	r.token = ""
	if status := r.must(200, "GET", "sys/generate-root/attempt", ""); status["started"] != false || status["required"] != 1.0 || status["otp_length"] != float64(padSize) {
		t.Errorf("before: %v", status)
	}
	r.fails(400, "OTP string is wrong length", "PUT", "sys/generate-root/attempt", `{"otp":"short"}`)
	r.fails(400, "no root generation in progress", "PUT", "sys/generate-root/update", gives("x", "AAAA"))
	begun := r.must(200, "PUT", "sys/generate-root/attempt", "{}")
	nonce := begun["nonce"].(string)
	r.fails(400, "root generation already in progress", "PUT", "sys/generate-root/attempt", "{}")
	if status := r.must(200, "GET", "sys/generate-root/attempt", ""); status["otp"] != "" || status["nonce"] != nonce || status["started"] != true {
		t.Errorf("the pad is told again: %v", status)
	}
	key := p.keyOf(p.key())
	r.fails(400, `incorrect nonce supplied; nonce for this root generation operation is "`+nonce, "PUT", "sys/generate-root/update", gives("x", key))
	wrong := base64.StdEncoding.EncodeToString(make([]byte, 32))
	r.fails(400, "does not belong to this store", "PUT", "sys/generate-root/update", gives(nonce, wrong))
	done := r.must(200, "PUT", "sys/generate-root/update", gives(nonce, key))
	if done["complete"] != true || done["progress"] != 1.0 || done["encoded_root_token"] != done["encoded_token"] {
		t.Errorf("done: %v", done)
	}
	r.token = unpad(t, done["encoded_token"], begun["otp"])
	r.checkFilled()
	decoded := r.must(200, "PUT", "sys/decode-token", fmt.Sprintf(`{"encoded_token":%q,"otp":%q}`, done["encoded_token"], begun["otp"]))
	if decoded["data"].(map[string]any)["token"] != r.token {
		t.Error("sys/decode-token decodes something else")
	}
	r.fails(400, "another length", "PUT", "sys/decode-token", `{"encoded_token":"AAAA","otp":"x"}`)
	self := r.must(200, "GET", "auth/token/lookup-self", "")["data"].(map[string]any)
	if ttl := self["ttl"].(float64); ttl < 86000 || ttl > 86400 {
		t.Errorf("the token lives for %v s", ttl)
	}
	records := r.must(200, "GET", "sys/lessor/audit/records?path=sys/generate-root/update", "")["data"].(map[string]any)["records"].([]any)
	last := records[len(records)-1].(map[string]any)
	if last["note"] != "root token generated" || last["accessor"] != self["accessor"] || last["outcome"] != "granted" {
		t.Errorf("its record: %v", last)
	}
	if text := fmt.Sprint(records); !strings.Contains(text, "wrong nonce") || !strings.Contains(text, "does not belong to this store") {
		t.Errorf("failures are not on record: %s", text)
	}

	// Beside shares both ways go.
	keys := texts(r.must(200, "POST", "sys/lessor/seal/shamir", `{"secret_shares":3,"secret_threshold":2}`)["data"].(map[string]any)["keys"])
	pad := strings.Repeat("x", padSize)
	begun = r.must(200, "PUT", "sys/generate-root/attempt", `{"otp":"`+pad+`"}`)
	r.must(200, "PUT", "sys/generate-root/update", gives(begun["nonce"].(string), keys[1]))
	r.must(204, "DELETE", "sys/generate-root/attempt", "")
	begun = r.must(200, "PUT", "sys/generate-root/attempt", `{"otp":"`+pad+`"}`)
	if begun["required"] != 2.0 || begun["progress"] != 0.0 || begun["otp"] != "" {
		t.Errorf("begun: %v", begun)
	}
	r.must(200, "PUT", "sys/generate-root/update", gives(begun["nonce"].(string), keys[1]))
	done = r.must(200, "PUT", "sys/generate-root/update", gives(begun["nonce"].(string), keys[2]))
	r.token = unpad(t, done["encoded_token"], pad)
	r.checkFilled()
}

// Each of two seals unseals alone; what is missing beside one that works is a warning, without any that works a refusal.
func TestTwoSealsEachAlone(t *testing.T) {
	const byBoth = byFile + "seal \"recovery\" {\n path = \"KEYS/recovery.key\"\n passphrase_file = \"KEYS/unused\"\n}\n"
	p := under(t, byBoth+byShares[:len("seal \"shamir\" {")]+"}\n")
	p.o.Recovery.Passphrase = lessor.NewSecret("five random words or more")
	r := p.start()
	r.fill()
	keys := texts(r.must(200, "POST", "sys/lessor/seal/shamir", "")["data"].(map[string]any)["keys"])
	var names []string
	for _, l := range r.must(200, "GET", "sys/lessor/seal", "")["data"].(map[string]any)["locks"].([]any) {
		l := l.(map[string]any)
		names = append(names, fmt.Sprint(l["name"], l["threshold"], l["shares"], l["configured"]))
		if at, err := time.Parse(time.RFC3339Nano, l["added"].(string)); err != nil || time.Since(at) > time.Minute || len(l["id"].(string)) != 16 {
			t.Errorf("%v: %v", l, err)
		}
	}
	if want := "[keyfile1 1 true recovery1 1 true shamir3 5 true]"; fmt.Sprint(names) != want {
		t.Errorf("locks %v, want %s", names, want)
	}
	token := r.token
	r.stop()
	restart := func() *running {
		r := p.start()
		r.token = token
		return r
	}
	p.do(os.Rename(p.key(), p.key()+".away"))
	p.do(os.Rename(filepath.Join(p.dir, "keys", "recovery.key"), p.dir+"/recovery"))
	r = restart() // by people
	r.must(503, "GET", "sys/health", "")
	r.give(keys[0], keys[4], keys[2])
	r.checkFilled()
	r.stop()
	p.do(os.Rename(p.key()+".away", p.key()))
	p.log.b.Reset()
	r = restart() // by the key file
	r.checkFilled()
	r.stop()
	if text := p.log.String(); !strings.Contains(text, "this would not have unsealed the store") || !strings.Contains(text, "recovery.key is missing") {
		t.Errorf("no warning of the recovery file: %s", text)
	}
	p.do(os.Rename(p.dir+"/recovery", filepath.Join(p.dir, "keys", "recovery.key")))
	p.remove(p.key())
	_, err := seal.CreateKeyFile(p.key(), constant{}) // somebody else's
	p.do(err)
	r = restart() // by the recovery file
	r.checkFilled()
	r.stop()
	if mode(t, p.key()) != 0o600 || p.keyOf(p.key()) != base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32)) {
		t.Error("somebody else's key file was touched")
	}
	p.seals(byBoth)
	p.o.Recovery.Passphrase = lessor.NewSecret("some other passphrase")
	if _, err := p.try(); err == nil || !strings.Contains(err.Error(), p.key()+" holds key") || !strings.Contains(err.Error(), "does not open the recovery file") ||
		!strings.Contains(err.Error(), `seal "shamir" {}`) {
		t.Errorf("nothing works: %v", err)
	}
}

// A store moves from a key file to shares and back while it serves: not one request fails.
func TestMigrationsUnderLoad(t *testing.T) {
	p := newPlace(t)
	r := p.start()
	r.fill()
	stop := make(chan struct{})
	var served atomic.Int64
	var all sync.WaitGroup
	for i := range 3 {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if status, answer, err := r.tryAsk("POST", fmt.Sprintf("secret/data/load%d", i), `{"data":{"x":"y"}}`); err != nil || status != 200 {
					t.Errorf("under load: %d %v %v", status, answer, err)
					return
				}
				served.Add(1)
			}
		})
	}
	r.fails(400, "nothing else unseals the store", "DELETE", "sys/lessor/seal/keyfile", "")
	keys := texts(r.must(200, "POST", "sys/lessor/seal/shamir", `{"secret_shares":3,"secret_threshold":2}`)["data"].(map[string]any)["keys_base64"])
	r.fails(400, "make new ones by a rekey", "POST", "sys/lessor/seal/shamir", "")
	if answer := r.must(200, "DELETE", "sys/lessor/seal/keyfile", ""); !strings.Contains(fmt.Sprint(answer["warnings"]), "change it before the next start") {
		t.Errorf("no warning: %v", answer)
	}
	r.fails(404, "not unsealed by", "DELETE", "sys/lessor/seal/keyfile", "")
	close(stop)
	all.Wait()
	if served.Load() == 0 {
		t.Error("nothing was served")
	}
	token := r.token
	r.stop()
	if _, err := p.try(); err == nil || !strings.Contains(err.Error(), `the store cannot be unsealed by "keyfile"`) {
		t.Errorf("the key file still works: %v", err)
	}
	p.seals(byShares)
	r = p.start()
	r.token = token
	r.give(keys[0], keys[2])
	r.checkFilled()

	// And back, with another key.
	r.fails(400, "there is a file at that path already", "POST", "sys/lessor/seal/keyfile", `{"path":"`+p.key()+`"}`)
	r.fails(400, "inside the data folder", "POST", "sys/lessor/seal/keyfile", `{"path":"`+p.data()+`/key"}`)
	r.fails(400, "must be absolute", "POST", "sys/lessor/seal/keyfile", `{"path":"key"}`)
	r.fails(400, "names none", "POST", "sys/lessor/seal/keyfile", "")
	p.remove(p.key())
	answer := r.must(200, "POST", "sys/lessor/seal/keyfile", `{"path":"`+p.key()+`"}`)
	if answer["data"].(map[string]any)["path"] != p.key() || mode(t, p.key()) != 0o600 || exists(p.key()+newSuffix) {
		t.Errorf("the new key file: %v", answer)
	}
	r.must(200, "DELETE", "sys/lessor/seal/shamir", "")
	r.stop()
	p.conf = ""
	r = p.start()
	r.token = token
	r.checkFilled()
}

// Adding a key file may die at any moment: the store unseals by what it had, and the next start or call ends what was begun.
func TestAddingAKeyFileDiesMidway(t *testing.T) {
	for name, dies := range map[string]func(*place, *running) (*running, []string){
		"after the file was made": func(p *place, r *running) (*running, []string) {
			_, err := seal.CreateKeyFile(p.key()+newSuffix, constant{})
			p.do(err)
			return r, nil
		},
		"after the commit": func(p *place, r *running) (*running, []string) {
			r.must(200, "POST", "sys/lessor/seal/keyfile", "")
			p.do(os.Rename(p.key(), p.key()+newSuffix))
			return r, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := under(t, byShares)
			r := p.start()
			keys := r.initialise(1, 1)
			token := r.token
			r.stop()
			p.seals(byShares + strings.Replace(byFile, "seal.key\"", "seal.key\"", 1))
			restart := func() *running {
				r := p.start()
				r.token = token
				return r
			}
			r = restart()
			r.give(keys...)
			r.fill()
			dies(p, r)
			r.stop()
			r = restart()
			if name == "after the file was made" { // the store knows nothing of it
				r.give(keys...)
				r.must(200, "POST", "sys/lessor/seal/keyfile", "")
			}
			r.checkFilled()
			if !exists(p.key()) || exists(p.key()+newSuffix) {
				t.Error("the key file did not get its name")
			}
			r.stop()
			restart().checkFilled()
		})
	}
}

func TestAddRecovery(t *testing.T) {
	p := newPlace(t)
	r := p.start()
	r.fill()
	r.fails(400, "missing passphrase", "POST", "sys/lessor/seal/recovery", "")
	r.fails(400, "at least 12 characters", "POST", "sys/lessor/seal/recovery", `{"passphrase":"short"}`)
	r.fails(400, "at least 12 characters", "POST", "sys/lessor/seal/recovery", `{"passphrase":"11 or fewer\n\r\n"}`)
	const phrase = "five random words or more"
	// As passphrase=@file gives it. Years later the server reads that file, or another one without the line break.
	made := r.must(200, "POST", "sys/lessor/seal/recovery", `{"passphrase":"`+phrase+`\n"}`)["data"].(map[string]any)["path"].(string)
	if made != filepath.Join(p.dir, "keys", "recovery.key") || mode(t, made) != 0o600 {
		t.Errorf("the recovery file is %q", made)
	}
	token := r.token
	r.stop()
	p.remove(p.key())
	p.o.Recovery.Passphrase = lessor.NewSecret(phrase)
	r = p.start()
	r.token = token
	r.checkFilled()
}

func TestRotation(t *testing.T) {
	p := newPlace(t)
	r := p.start()
	r.fill()
	status := r.must(200, "GET", "sys/key-status", "")
	if status["term"] != 1.0 || status["encryptions"].(float64) < 2 || status["data"].(map[string]any)["term"] != 1.0 {
		t.Errorf("status: %v", status)
	}
	if at, err := time.Parse(time.RFC3339Nano, status["install_time"].(string)); err != nil || time.Since(at) > time.Minute {
		t.Errorf("installed %v", status["install_time"])
	}
	r.must(204, "PUT", "sys/rotate", "")
	if got := r.must(200, "GET", "sys/key-status", ""); got["term"] != 2.0 {
		t.Errorf("after rotating: %v", got)
	}
	r.checkFilled()
	conf := r.must(200, "GET", "sys/rotate/config", "")["data"].(map[string]any)
	if conf["enabled"] != true || conf["max_operations"] != float64(seal.MaxCommits) || conf["interval"] != "2160h0m0s" {
		t.Errorf("config: %v", conf)
	}
	r.fails(400, "max_operations must be in the range [1000000,3865470566]", "PUT", "sys/rotate/config", `{"max_operations":5}`)
	r.fails(400, "interval must be greater or equal to 24h0m0s", "PUT", "sys/rotate/config", `{"interval":"1h"}`)
	r.must(204, "PUT", "sys/rotate/config", `{"enabled":false,"max_operations":1000000,"interval":"48h"}`)
	conf = r.must(200, "GET", "sys/rotate/config", "")["data"].(map[string]any)
	if conf["enabled"] != false || conf["max_operations"] != 1e6 || conf["interval"] != "48h0m0s" {
		t.Errorf("config: %v", conf)
	}
	r.must(204, "PUT", "sys/rotate/config", `{"interval":0}`)
	if conf = r.must(200, "GET", "sys/rotate/config", "")["data"].(map[string]any); conf["interval"] != 0.0 || conf["enabled"] != false {
		t.Errorf("config: %v", conf)
	}
}

// Work without a server takes shares from a file.
func TestOfflineWithShares(t *testing.T) {
	p := under(t, byShares)
	r := p.start()
	keys := r.initialise(3, 2)
	r.give(keys[:2]...)
	r.fill()
	r.stop()
	if _, err := Admit(t.Context(), p.config(), p.o); err == nil || !strings.Contains(err.Error(), "LESSOR_UNSEAL_KEYS_FILE") {
		t.Errorf("without shares: %v", err)
	}
	file := filepath.Join(p.dir, "shares")
	p.do(os.WriteFile(file, []byte(keys[2]+"\n"), 0o600))
	read := func() {
		var err error
		p.o.Recovery.UnsealKeys, err = Program{Env: func(name string) (string, bool) { return file, name == "LESSOR_UNSEAL_KEYS_FILE" }}.unsealKeys()
		p.do(err)
	}
	read()
	if _, err := Verify(t.Context(), p.config(), p.o, nil); err == nil || !strings.Contains(err.Error(), "1 of the 2 unseal keys") {
		t.Errorf("with one share: %v", err)
	}
	p.do(os.WriteFile(file, []byte(keys[2]+"\n"+keys[1]+"\n"), 0o600))
	read()
	if found, err := Verify(t.Context(), p.config(), p.o, nil); err != nil || found.Broken != nil {
		t.Fatalf("verifying: %+v %v", found, err)
	}
	token, err := Admit(t.Context(), p.config(), p.o)
	p.do(err)
	p.o.Recovery.UnsealKeys = nil
	text, err := os.ReadFile(token)
	p.do(err)
	again := p.start()
	again.give(keys[0], keys[2])
	again.token = strings.TrimSpace(string(text))
	again.checkFilled()
}

// A node that was told to stop while it is sealed, or being sealed, stops.
func TestStopWhileSealing(t *testing.T) {
	p := newPlace(t)
	r := p.start()
	r.fill()
	r.must(204, "PUT", "sys/seal", "")
	if err := r.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}

// What is wrong with a store that waits for people is told at the start, if it can be; else it stays sealed, and the log says why.
func TestSharesDoNotOpenWhatIsWrong(t *testing.T) {
	p := under(t, byShares)
	r := p.start()
	keys := r.initialise(3, 2)
	r.give(keys[:2]...)
	r.stop()
	p.do(os.CopyFS(p.dir+"/old", os.DirFS(p.data())))
	again := p.start()
	again.token = r.token
	again.give(keys[:2]...)
	again.fill()
	_, err := again.db.Commit(t.Context(), store.Txn{Puts: []store.Put{{Key: store.Key{Table: store.Meta, Name: "schema"}, Value: []byte("2")}}})
	p.do(err)
	again.stop()
	if _, err := p.try(); err == nil || !strings.Contains(err.Error(), "written by a newer lessor (schema 2") {
		t.Errorf("a newer store: %v", err)
	}
	p.remove(p.data())
	p.do(os.CopyFS(p.data(), os.DirFS(p.dir+"/old")))
	back := p.start()
	back.must(200, "PUT", "sys/unseal", `{"key":"`+keys[0]+`"}`)
	back.fails(500, "internal error", "PUT", "sys/unseal", `{"key":"`+keys[1]+`"}`)
	back.must(503, "GET", "sys/health", "")
	if text := p.log.String(); !strings.Contains(text, "it was put back to an earlier state") {
		t.Errorf("the log does not say why: %s", text)
	}
	p.remove(p.key() + config.AnchorSuffix) // as an operator who knows what was done
	back.give(keys[1], keys[2])
}

// sharing starts a node that people unseal, over a database that it shares.
func sharing(t *testing.T, url string) *running {
	p := under(t, byShares)
	c := p.config()
	c.Storage = config.Storage{Type: config.PostgreSQL, ConnectionURL: lessor.NewSecret(url)}
	n, err := Start(t.Context(), c, p.o)
	p.do(err)
	r := &running{p, n, "", http.DefaultClient}
	t.Cleanup(r.stop)
	return r
}

// Two nodes on one database: what one does to the seal, the other, which is sealed, comes to know.
func TestSharesOfTwoNodes(t *testing.T) {
	db := pgtest.Start(t, pgtest.Fsync())
	url := db.URL(pgtest.Superuser, db.Password(), db.Database(t))
	start := func() *running { return sharing(t, url) }
	one, two := start(), start()
	keys := one.initialise(3, 2)
	for end := time.Now().Add(time.Minute); two.must(200, "GET", "sys/seal-status", "")["initialized"] != true; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the other node never saw that the store is initialised")
		}
	}
	two.fails(400, "already initialized", "PUT", "sys/init", `{"secret_shares":1,"secret_threshold":1}`)
	one.give(keys[:2]...)
	one.fill()
	two.must(200, "PUT", "sys/unseal", `{"key":"`+keys[0]+`"}`)
	nonce := one.rekey(`{"secret_shares":2,"secret_threshold":2}`)
	one.must(200, "PUT", "sys/rekey/update", gives(nonce, keys[0]))
	fresh := texts(one.must(200, "PUT", "sys/rekey/update", gives(nonce, keys[1]))["keys"])
	one.must(204, "PUT", "sys/rotate", "")
	one.must(200, "POST", "secret/data/later", `{"data":{"x":"y"}}`)
	two.fails(400, "of an earlier set", "PUT", "sys/unseal", `{"key":"`+keys[1]+`"}`)
	two.give(fresh...)
	two.token = one.token
	two.checkFilled()
	two.must(200, "GET", "secret/data/later", "")
	one.must(204, "PUT", "sys/seal", "") // and the other goes on
	two.must(200, "POST", "secret/data/later", `{"data":{"x":"z"}}`)
	one.give(fresh...)
	if got := one.must(200, "GET", "secret/data/later", ""); !strings.Contains(fmt.Sprint(got), "x:z") {
		t.Errorf("read %v", got)
	}
}
