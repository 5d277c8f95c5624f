package node

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/seal"
)

// joinSecret makes a join secret.
func (r *running) joinSecret(body string) (secret, accessor string) {
	r.Helper()
	data := r.must(200, "POST", "sys/lessor/join-secrets", body)["data"].(map[string]any)
	return data["join_secret"].(string), data["accessor"].(string)
}

// joining is a machine that is to be the node of that name, and asks r with a secret.
func (r *running) joining(name, secret string) Joining {
	dir := filepath.Join(r.dir, "machine-"+name)
	return Joining{Config: filepath.Join(dir, "lessor.hcl"), Node: name, Listen: "127.0.0.1:0", Ask: func(_ context.Context, request map[string]any) (string, error) {
		return r.admit(secret, request)
	}}
}

type refused struct {
	status int
	text   string
}

func (e refused) Error() string { return fmt.Sprint(e.status, " ", e.text) }

func (r *running) admit(secret string, request map[string]any) (string, error) {
	as := *r
	as.token = secret
	status, answer, err := as.tryAsk("POST", "sys/lessor/join", fmt.Sprintf(`{"node":%q,"public":%q,"connection_url":%v}`, request["node"], request["public"], request["connection_url"]))
	if err != nil {
		return "", err
	}
	if status != 200 {
		return "", refused{status, fmt.Sprint(answer["errors"])}
	}
	return answer["data"].(map[string]any)["welcome"].(string), nil
}

// public is the public half of some key.
func (r *running) public() string {
	r.Helper()
	file := filepath.Join(r.TempDir(), "key")
	key, err := seal.CreateKeyFile(file, rand.Reader)
	r.do(err)
	defer key.Forget()
	public, err := key.Public()
	r.do(err)
	return base64.StdEncoding.EncodeToString(public)
}

// serve starts what a machine's configuration says.
func (c *nodes) serve(file string) (*running, error) {
	conf, err := config.Flags([]string{"-config", file})
	c.do(err)
	n, err := Start(c.Context(), conf, Options{Version: "test", Log: c.o.Log})
	if err != nil {
		return nil, err
	}
	r := &running{c.place, n, c.token, http.DefaultClient}
	return r, nil
}

func joinable(t *testing.T) (*nodes, *running) {
	c := startNodes(t, 1)
	return c, c.nodes[0]
}

// A machine joins, starts with nothing but what it wrote, and serves; its key taken away, it does not start, and others do.
func TestJoin(t *testing.T) {
	c, one := joinable(t)
	one.fill()
	secret, accessor := one.joinSecret(`{"node":"two","ttl":"5m"}`)
	if listed := one.must(200, "LIST", "sys/lessor/join-secrets", "")["data"].(map[string]any); fmt.Sprint(listed["keys"]) != "["+accessor+"]" {
		t.Errorf("listed: %v", listed)
	}
	if info := one.must(200, "GET", "sys/lessor/join-secrets/"+accessor, "")["data"].(map[string]any); info["node"] != "two" || info["made_by"] != "root" || strings.Contains(fmt.Sprint(info), secret) {
		t.Errorf("told: %v", info)
	}
	from := one.db.Head().Seq
	var answer string
	j := one.joining("two", secret)
	ask := j.Ask
	j.Ask = func(ctx context.Context, request map[string]any) (string, error) {
		var err error
		answer, err = ask(ctx, request)
		return answer, err
	}
	made, err := Program{}.Join(t.Context(), j)
	c.do(err)
	sealed, err := base64.StdEncoding.DecodeString(answer)
	c.do(err)
	for _, clear := range []string{c.server.Password(), c.url, "connection_url"} {
		if strings.Contains(string(sealed), clear) || strings.Contains(c.log.String(), secret) {
			t.Errorf("in clear: %q", clear)
		}
	}
	for _, path := range []string{made.Config, made.KeyFile} {
		if mode(t, path) != 0o600 || exists(path+newSuffix) {
			t.Errorf("%s: mode %v, or a file beside it", path, mode(t, path))
		}
	}
	one.must(404, "LIST", "sys/lessor/join-secrets", "")
	found := 0
	for _, rec := range one.records(from) {
		if rec.Path == "sys/lessor/join" && rec.Granted && rec.Accessor == accessor && strings.Contains(rec.Note, "two") {
			found++
		}
	}
	if found != 1 {
		t.Errorf("%d records of the join", found)
	}
	if _, err := (Program{}).Join(t.Context(), j); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("joined twice: %v", err)
	}
	two, err := c.serve(made.Config)
	c.do(err)
	two.checkFilled()
	two.must(204, "POST", "sys/policies/acl/from-two", `{"policy":"path \"a\" { capabilities = [\"read\"] }"}`)
	one.must(200, "GET", "sys/policies/acl/from-two", "")
	one.must(204, "DELETE", "sys/lessor/seal/keyfile/two", "")
	two.stop()
	if again, err := c.serve(made.Config); err == nil {
		again.stop()
		t.Error("it starts with a key that was taken away")
	}
	c.join(Options{}).checkFilled()
}

// Whatever is wrong with a secret, the words are the same. What is wrong with the request does not use it up.
func TestJoinSecretsThatAreNoGood(t *testing.T) {
	_, one := joinable(t)
	public := one.public()
	ask := func(secret, node, public string) (int, string) {
		_, err := one.admit(secret, map[string]any{"node": node, "public": public, "connection_url": true})
		if refusal, ok := errors.AsType[refused](err); ok {
			return refusal.status, refusal.text
		}
		one.do(err)
		return 200, ""
	}
	used, _ := one.joinSecret(`{}`)
	if status, text := ask(used, "a", public); status != 200 {
		t.Fatalf("%d %s", status, text)
	}
	revoked, accessor := one.joinSecret(`{}`)
	one.must(204, "DELETE", "sys/lessor/join-secrets/"+accessor, "")
	one.must(404, "DELETE", "sys/lessor/join-secrets/"+accessor, "")
	expired, accessor := one.joinSecret(`{"ttl":"1s"}`)
	orphaned := func() string { // ends with what made it
		maker := *one
		maker.token = one.must(200, "POST", "auth/token/create", `{"policies":["root"],"ttl":"1h"}`)["auth"].(map[string]any)["client_token"].(string)
		secret, _ := maker.joinSecret(`{}`)
		one.must(204, "POST", "auth/token/revoke", `{"token":"`+maker.token+`"}`)
		return secret
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if status, _ := one.ask("GET", "sys/lessor/join-secrets/"+accessor, ""); status == 404 {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("it does not expire")
		}
	}
	_, want := ask("hvs.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "b", public)
	for what, secret := range map[string]string{"used": used, "revoked": revoked, "expired": expired, "of a revoked token": orphaned} {
		if status, text := ask(secret, "b", public); status != 403 || text != want {
			t.Errorf("%s: %d %s, want %s", what, status, text, want)
		}
	}

	secret, _ := one.joinSecret(`{"node":"mine"}`)
	for what, try := range map[string][2]string{
		"another name": {"yours", public}, "no name": {"", public}, "a bad name": {"../x", public}, "no key": {"mine", ""}, "a short key": {"mine", "AAAA"},
	} {
		if status, _ := ask(secret, try[0], try[1]); status != 400 && status != 403 {
			t.Errorf("%s: %d", what, status)
		}
	}
	if status, _ := ask(one.token, "mine", public); status != 400 {
		t.Errorf("with another token: %d", status)
	}
	as := *one
	as.token = secret
	for _, path := range []string{"auth/token/lookup-self", "sys/lessor/join-secrets", "cubbyhole/a", "sys/internal/ui/mounts"} {
		if status, _ := as.ask("GET", path, ""); status != 403 && status != 404 && status != 405 {
			t.Errorf("a join secret at %s: %d", path, status)
		}
	}
	if _, err := one.Handle(t.Context(), &lessor.Op{
		ID: "x", Verb: lessor.Update, Namespace: lessor.RootNamespace, Path: "sys/lessor/join", Token: lessor.NewSecret(secret), Time: one.Now(),
		Data: map[string]any{"node": "mine", "public": public},
	}); err == nil || !strings.Contains(err.Error(), "plain HTTP") {
		t.Errorf("over plain HTTP: %v", err)
	}
	taken, _ := one.joinSecret(`{"node":"a"}`)
	if status, text := ask(taken, "a", one.public()); status != 400 || !strings.Contains(text, "already") {
		t.Errorf("a name that is taken: %d %s", status, text)
	}
	if status, text := ask(taken, "a", public); status != 200 { // a machine that tries again
		t.Errorf("the same machine: %d %s", status, text)
	}
	if status, text := ask(secret, "mine", public); status != 200 {
		t.Errorf("in the end: %d %s", status, text)
	}
	for _, body := range []string{`{"ttl":"25h"}`, `{"ttl":"0s"}`, `{"node":"a b"}`} {
		one.must(400, "POST", "sys/lessor/join-secrets", body)
	}
	one.must(400, "POST", "auth/token/create", `{"policies":["lessor-join"]}`)
	one.must(400, "POST", "sys/policies/acl/lessor-join", `{"policy":"path \"*\" { capabilities = [\"read\"] }"}`)
	one.must(400, "POST", "identity/group", `{"name":"g","policies":["lessor-join"]}`)
}

// Of many machines with one secret, at two nodes at once, one joins.
func TestOneJoinsWithOneSecret(t *testing.T) {
	c := startNodes(t, 2)
	one := c.nodes[0]
	for round := range 3 {
		secret, _ := one.joinSecret(`{}`)
		publics := make([]string, 8)
		for i := range publics {
			publics[i] = one.public()
		}
		var at atomic.Int64
		if yes := c.rush(len(publics), func(r *running) bool {
			i := at.Add(1) - 1
			return r.asks(secret, "POST", "sys/lessor/join", fmt.Sprintf(`{"node":"r%d-%d","public":%q}`, round, i, publics[i]))
		}); yes != 1 {
			t.Errorf("%d joined", yes)
		}
	}
	locks := one.must(200, "GET", "sys/lessor/seal", "")["data"].(map[string]any)["locks"].([]any)
	if len(locks) != 1+3 {
		t.Errorf("locks: %v", locks)
	}
}

// A machine that dies after the cluster let it in joins with another secret, and the same key.
func TestJoinThatIsCutOff(t *testing.T) {
	c, one := joinable(t)
	first, _ := one.joinSecret(`{}`)
	j := one.joining("late", first)
	ask := j.Ask
	j.Ask = func(ctx context.Context, request map[string]any) (string, error) {
		_, err := ask(ctx, request)
		c.do(err)
		return "", errors.New("the answer is lost")
	}
	if _, err := (Program{}).Join(t.Context(), j); err == nil {
		t.Fatal("joined")
	}
	if exists(j.Config) || !exists(filepath.Join(filepath.Dir(j.Config), "seal.key.new")) {
		t.Errorf("left:\n%s", listing(t, filepath.Dir(j.Config)))
	}
	j.Ask = ask
	if _, err := (Program{}).Join(t.Context(), j); err == nil || !strings.Contains(err.Error(), "403") {
		t.Fatalf("the same secret: %v", err)
	}
	second, _ := one.joinSecret(`{}`)
	j = one.joining("late", second)
	made, err := Program{}.Join(t.Context(), j)
	c.do(err)
	// Cut off before the key has its name: the start gives it that.
	c.do(os.Rename(made.KeyFile, made.KeyFile+newSuffix))
	r, err := c.serve(made.Config)
	c.do(err)
	r.stop()
	if !exists(made.KeyFile) {
		t.Error("the key has no name")
	}
}

// The database's URL need not be told; then the machine brings it.
func TestJoinWithAnURLOfItsOwn(t *testing.T) {
	c, one := joinable(t)
	file := filepath.Join(c.dir, "url")
	c.do(os.WriteFile(file, []byte(c.url+"\n"), 0o600))
	secret, _ := one.joinSecret(`{}`)
	j := one.joining("own", secret)
	j.ConnectionURLFile = file
	ask := j.Ask
	j.Ask = func(ctx context.Context, request map[string]any) (string, error) {
		if request["connection_url"] != false {
			t.Error("it asks for the URL")
		}
		return ask(ctx, request)
	}
	made, err := Program{}.Join(t.Context(), j)
	c.do(err)
	r, err := c.serve(made.Config)
	c.do(err)
	r.stop()
}

// An embedded store has one node.
func TestNothingToJoin(t *testing.T) {
	r := newPlace(t).start()
	status, answer := r.ask("POST", "sys/lessor/join-secrets", `{}`)
	if status != 400 || !strings.Contains(fmt.Sprint(answer), "postgresql") {
		t.Errorf("%d %v", status, answer)
	}
}

// What a takeover, or a restore, makes void: join secrets, too.
func TestTakeoverVoidsJoinSecrets(t *testing.T) {
	t.Parallel()
	m := newAftermath(t)
	r := m.node("one")
	other := m.node("two")
	m.do(m.store.BaseBackup())
	secret, _ := r.joinSecret(`{"ttl":"1h"}`)
	at := m.note()
	r.must(204, "POST", "sys/policies/acl/later", `{"policy":"path \"a\" { capabilities = [\"read\"] }"}`)
	r.stop()
	other.stop()
	_, file := m.back(at)
	again := m.node("one")
	again.token = m.read(file)
	again.must(404, "LIST", "sys/lessor/join-secrets", "")
	_, err := again.admit(secret, map[string]any{"node": "x", "public": again.public(), "connection_url": true})
	if refusal, ok := errors.AsType[refused](err); !ok || refusal.status != 403 {
		t.Errorf("after a takeover: %v", err)
	}
}
