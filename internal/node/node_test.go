package node

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
)

// place is where a test's node keeps things.
type place struct {
	*testing.T
	dir string
	log *logged
	o   Options

	conf string // configuration file that says what unseals; empty: a key file does
}

func newPlace(t *testing.T) *place {
	log := &logged{}
	return &place{T: t, dir: t.TempDir(), log: log, o: Options{
		Version: "test", Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}}
}

// logged collects a log.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (p *place) data() string { return filepath.Join(p.dir, "data") }
func (p *place) key() string  { return filepath.Join(p.dir, "keys", "seal.key") }

// args are the flags of a server on the place.
func (p *place) args(more ...string) []string {
	if p.conf != "" {
		return append([]string{"-config", p.conf, "-data", p.data(), "-listen", "127.0.0.1:0"}, more...)
	}
	return append([]string{"-data", p.data(), "-key-file", p.key(), "-listen", "127.0.0.1:0"}, more...)
}

func (p *place) config(more ...string) config.Config {
	p.Helper()
	c, err := config.Flags(p.args(more...))
	if err != nil {
		p.Fatal(err)
	}
	return c
}

func (p *place) try() (*running, error) {
	p.Helper()
	n, err := Start(p.Context(), p.config(), p.o)
	if err != nil {
		return nil, err
	}
	r := &running{p, n, n.Root.Reveal(), http.DefaultClient}
	p.Cleanup(r.stop)
	return r, nil
}

func (p *place) start() *running {
	p.Helper()
	r, err := p.try()
	if err != nil {
		p.Fatal(err)
	}
	return r
}

// running is a node and somebody who asks it.
type running struct {
	*place
	*Node
	token  string
	client *http.Client
}

func (r *running) stop() {
	if err := r.Stop(context.Background()); err != nil {
		r.Errorf("stopping: %v", err)
	}
}

// ask sends a request and returns status and decoded answer.
func (r *running) ask(method, path, body string) (int, map[string]any) {
	r.Helper()
	status, answer, err := r.tryAsk(method, path, body)
	if err != nil {
		r.Fatal(err)
	}
	return status, answer
}

func (r *running) tryAsk(method, path, body string) (int, map[string]any, error) {
	request, err := http.NewRequest(method, r.Address()+"/v1/"+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("X-Vault-Token", r.token)
	answer, err := r.client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	if err != nil || len(text) == 0 {
		return answer.StatusCode, nil, err
	}
	var object map[string]any
	return answer.StatusCode, object, json.Unmarshal(text, &object)
}

func (r *running) must(status int, method, path, body string) map[string]any {
	r.Helper()
	got, answer := r.ask(method, path, body)
	if got != status {
		r.Fatalf("%s %s: %d %v, want %d", method, path, got, answer, status)
	}
	return answer
}

const secretValue = "correct horse battery staple"

// fill mounts a KV engine and puts a secret there.
func (r *running) fill() {
	r.Helper()
	r.must(204, "POST", "sys/mounts/secret", `{"type":"kv","options":{"version":"2"}}`)
	r.must(200, "POST", "secret/data/app", `{"data":{"password":"`+secretValue+`"}}`)
}

func (r *running) checkFilled() {
	r.Helper()
	answer := r.must(200, "GET", "secret/data/app", "")
	data := answer["data"].(map[string]any)["data"].(map[string]any)
	if data["password"] != secretValue {
		r.Fatalf("the secret is %v", data)
	}
}

func mode(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestStartsByItselfAndKeepsWhatItHas(t *testing.T) {
	p := newPlace(t)
	r := p.start()
	r.fill()
	r.checkFilled()
	for path, want := range map[string]os.FileMode{p.data(): 0o700, p.key(): 0o600, r.TokenFile: 0o600, filepath.Dir(p.key()): 0o700} {
		if got := mode(t, path); got != want {
			t.Errorf("%s has mode %04o, want %04o", path, got, want)
		}
	}
	text, err := os.ReadFile(r.TokenFile)
	if err != nil || string(text) != r.token+"\n" || !strings.HasPrefix(r.token, "hvs.") {
		t.Errorf("the token file does not hold the token: %v", err)
	}
	self := r.must(200, "GET", "auth/token/lookup-self", "")["data"].(map[string]any)
	if ttl := self["ttl"].(float64); ttl < 86000 || ttl > 86400 {
		t.Errorf("the bootstrap token lives for %v s", ttl)
	}
	if text := r.banner(); strings.Contains(text, r.token) || !strings.Contains(text, "\nBootstrap Token File: "+r.TokenFile+"\n") ||
		!strings.Contains(text, "\nListener Address: "+r.Address()+"\n") {
		t.Errorf("banner:\n%s", text)
	}
	id := r.must(200, "GET", "sys/health", "")["cluster_id"]
	if _, err := os.Stat(p.key() + newSuffix); err == nil {
		t.Error("the new key file was left behind")
	}
	token := r.token
	r.stop()

	again := p.start()
	if again.token != "" || again.TokenFile != "" {
		t.Error("a later start made another token")
	}
	again.token = token
	again.checkFilled()
	if got := again.must(200, "GET", "sys/health", "")["cluster_id"]; got != id || id == "" {
		t.Errorf("the cluster was %v and is %v", id, got)
	}
	again.stop()
	for _, secret := range []string{token, secretValue} {
		if strings.Contains(p.log.String(), secret) {
			t.Errorf("the log holds a secret:\n%s", p.log)
		}
	}
}

func TestRefusesToStart(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(*place)
		want string
	}{
		{"the data is gone", func(p *place) { p.remove(p.data()) }, "refusing to start: key file KEY belongs to a store that is not here: the data (DATA) is empty."},
		{"an empty folder in its place", func(p *place) { p.remove(p.data()); p.do(os.Mkdir(p.data(), 0o700)) }, "belongs to a store that is not here"},
		{"the key file is gone", func(p *place) { p.remove(p.key()) }, "refusing to start: the key file KEY is missing"},
		{"the key file is another store's", func(p *place) {
			p.remove(p.key())
			_, err := seal.CreateKeyFile(p.key(), constant{})
			p.do(err)
		}, "wrong key"},
		{"the key file is readable by others", func(p *place) { p.do(os.Chmod(p.key(), 0o644)) }, "chmod 600"},
		{"the data was put back", func(p *place) { p.remove(p.data()); p.do(os.CopyFS(p.data(), os.DirFS(p.dir+"/old"))) }, "it was put back to an earlier state"},
		{"a newer lessor wrote the store", func(p *place) {
			r := p.start()
			_, err := r.db.Commit(t.Context(), store.Txn{
				Puts:  []store.Put{{Key: store.Key{Table: store.Meta, Name: "schema"}, Value: []byte("2")}},
				Audit: []audit.Record{bootstrapRecord(r.db.Now(), "upgrade", "sys/seal")},
			})
			p.do(err)
			r.stop()
		}, "refusing to start: the store was written by a newer lessor (schema 2, this one knows 1): upgrade lessor (the store is DATA)"},
		{"a newer lessor wrote the folder", func(p *place) {
			marker, err := filepath.Glob(p.data() + "/marker.format-version.*")
			p.do(err)
			for _, m := range marker {
				p.do(os.Rename(m, m[:strings.LastIndexByte(m, '.')]+".999"))
			}
		}, "pebble: opening DATA: pebble: database \"DATA\" written in unknown format major version 999"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlace(t)
			r := p.start()
			r.stop()
			p.do(os.CopyFS(p.dir+"/old", os.DirFS(p.data())))
			r2 := p.start()
			r2.token = r.token
			r2.fill()
			r2.stop()
			c.harm(p)
			before := listing(t, p.dir)
			_, err := p.try()
			want := strings.NewReplacer("KEY", p.key(), "DATA", p.data()).Replace(c.want)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Fatalf("got %v\nwant %s", err, want)
			}
			if after := listing(t, p.dir); strings.Contains(c.want, "not here") && after != before {
				t.Errorf("the refusal left files behind:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

func (p *place) remove(path string) { p.do(os.RemoveAll(path)) }

func (p *place) do(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

type constant struct{}

func (constant) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 7
	}
	return len(b), nil
}

func listing(t *testing.T, dir string) string {
	var all []string
	if err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error { all = append(all, path); return err }); err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n")
}

func TestOneProcessAtATime(t *testing.T) {
	p := newPlace(t)
	p.start()
	if _, err := p.try(); err == nil || !strings.Contains(err.Error(), "the data folder "+p.data()+" is in use by another lessor") {
		t.Errorf("got %v", err)
	}
}

func TestTakenPortCostsNothing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	p := newPlace(t)
	c := p.config()
	c.Listeners[0].Address = l.Addr().String()
	if _, err := Start(t.Context(), c, p.o); err == nil || !strings.Contains(err.Error(), "cannot listen on "+l.Addr().String()) {
		t.Errorf("got %v", err)
	}
	if got := listing(t, p.dir); got != p.dir {
		t.Errorf("files were made:\n%s", got)
	}
}

// A first start may die at any moment; the next one finishes it.
func TestFirstStartDiesMidway(t *testing.T) {
	t.Run("after the key was made", func(t *testing.T) {
		p := newPlace(t)
		if _, err := seal.CreateKeyFile(p.key()+newSuffix, constant{}); err != nil {
			t.Fatal(err)
		}
		r := p.start()
		r.fill()
		if !exists(p.key()) || exists(p.key()+newSuffix) {
			t.Error("the key did not get its name")
		}
	})
	t.Run("after the first commit", func(t *testing.T) {
		p := newPlace(t)
		r := p.start()
		r.fill()
		r.stop()
		p.do(os.Rename(p.key(), p.key()+newSuffix))
		again := p.start()
		again.token = r.token
		again.checkFilled()
		if !exists(p.key()) || exists(p.key()+newSuffix) {
			t.Error("the key did not get its name")
		}
	})
}

func TestRecoveryFile(t *testing.T) {
	p := newPlace(t)
	p.o.Recovery.Passphrase = lessor.NewSecret("five random words or more")
	r := p.start()
	r.fill()
	if r.Recovered != filepath.Join(p.dir, "keys", "recovery.key") || mode(t, r.Recovered) != 0o600 {
		t.Errorf("the recovery file is %q", r.Recovered)
	}
	r.stop()

	p.remove(p.key())
	p.o.Recovery.Passphrase = lessor.NewSecret("some other passphrase")
	if _, err := p.try(); err == nil || !strings.Contains(err.Error(), "does not open the recovery file") {
		t.Fatalf("with the wrong passphrase: %v", err)
	}
	p.o.Recovery.Passphrase = lessor.NewSecret("five random words or more")
	mended := p.start()
	mended.token = r.token
	mended.checkFilled()
	mended.stop()

	p.o.Recovery = Recovery{}
	again := p.start() // by the new key file
	again.token = r.token
	again.checkFilled()
}

func TestDrain(t *testing.T) {
	p := newPlace(t)
	r := p.start()
	r.fill()
	address := r.listeners[0].Addr().String()
	begin := func(request string) (net.Conn, *bufio.Reader) {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		return c, bufio.NewReader(c)
	}
	health, early := begin("GET /v1/sys/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")

	// A request that waits for its body.
	const body = `{"data":{"x":"y"}}`
	write, answers := begin(fmt.Sprintf("PUT /v1/secret/data/late HTTP/1.1\r\nHost: x\r\nX-Vault-Token: %s\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", r.token, len(body)))
	if line, err := answers.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") {
		t.Fatalf("the request is not under way: %q %v", line, err)
	}
	_, _ = answers.ReadString('\n')
	stopped := make(chan error, 1)
	go func() { stopped <- r.Stop(context.Background()) }()
	for deadline := time.Now().Add(DrainTime); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err != nil {
			break
		}
		_ = c.Close()
		if time.Now().After(deadline) {
			t.Fatal("new connections are accepted while draining")
		}
	}
	if _, err := io.WriteString(health, "\r\n"); err != nil {
		t.Fatal(err)
	}
	if text, _ := io.ReadAll(early); !bytes.HasPrefix(text, []byte("HTTP/1.1 503 ")) {
		t.Errorf("health while draining: %s", text)
	}
	if _, err := io.WriteString(write, body); err != nil {
		t.Fatal(err)
	}
	if line, err := answers.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 200 ") {
		t.Errorf("the request under way: %q %v", line, err)
	}
	began := time.Now()
	if err := <-stopped; err != nil {
		t.Errorf("stopping: %v", err)
	}
	if took := time.Since(began); took > DrainTime/2 {
		t.Errorf("draining took %s once nothing was under way", took)
	}
	p.start().stop() // the store was closed in order
}

func TestCertificateReload(t *testing.T) {
	p := newPlace(t)
	dir := filepath.Join(p.dir, "tls")
	files := config.Listener{Address: "127.0.0.1:0", TLS: true, MinVersion: tls.VersionTLS12, CertFile: filepath.Join(dir, certFile), KeyFile: filepath.Join(dir, keyFile)}
	p.do(makeCertificates(dir, time.Now(), "one.example"))
	c := p.config()
	c.Listeners = []config.Listener{files}
	n, err := Start(t.Context(), c, p.o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { p.do(n.Stop(context.Background())) }()

	shown := func() string {
		conn, err := tls.Dial("tcp", n.listeners[0].Addr().String(), &tls.Config{InsecureSkipVerify: true}) // looked at, not trusted
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		return strings.Join(conn.ConnectionState().PeerCertificates[0].DNSNames, " ")
	}
	if got := shown(); !strings.Contains(got, "one.example") {
		t.Fatalf("the certificate is for %s", got)
	}
	p.do(makeCertificates(dir, time.Now(), "two.example"))
	if got := shown(); !strings.Contains(got, "one.example") {
		t.Errorf("before the reload the certificate is for %s", got)
	}
	p.do(n.Reload())
	if got := shown(); !strings.Contains(got, "two.example") {
		t.Errorf("after the reload the certificate is for %s", got)
	}
	p.do(os.WriteFile(files.CertFile, []byte("nonsense"), 0o600))
	if err := n.Reload(); err == nil {
		t.Error("nonsense was loaded")
	}
	if got := shown(); !strings.Contains(got, "two.example") {
		t.Errorf("after a failed reload the certificate is for %s", got)
	}
	if _, err := http.Get(strings.Replace(n.Address(), "https", "http", 1)); err != nil {
		t.Errorf("plain HTTP to the TLS port: %v, want an answer that says so", err)
	}
}

func TestRestore(t *testing.T) {
	p := newPlace(t)
	r := p.start()
	r.fill()
	r.must(200, "GET", "sys/lessor/audit/verify", "")
	request, _ := http.NewRequest("GET", r.Address()+"/v1/sys/lessor/backup", nil)
	request.Header.Set("X-Vault-Token", r.token)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	backup, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != 200 || answer.Header.Get("Content-Type") != "application/octet-stream" {
		t.Fatalf("backup: %v %v", answer.Status, err)
	}
	if bytes.Contains(backup, []byte(secretValue)) {
		t.Error("the backup holds the secret in clear")
	}
	r.stop()

	if _, err := Restore(t.Context(), p.config(), p.o, bytes.NewReader(backup)); err == nil || !strings.Contains(err.Error(), "empty store") {
		t.Errorf("restoring over a store: %v", err)
	}
	p.remove(p.data())
	if _, err := Restore(t.Context(), p.config(), p.o, bytes.NewReader(backup[:len(backup)-1])); err == nil {
		t.Error("a backup that was cut short was restored")
	}
	made, err := Restore(t.Context(), p.config(), p.o, bytes.NewReader(backup))
	if err != nil {
		t.Fatal(err)
	}
	found, err := Verify(t.Context(), p.config(), p.o, nil)
	if err != nil || found.Broken != nil || found.Head != made.Head.Seq {
		t.Fatalf("verifying: %+v %v", found, err)
	}

	again := p.start()
	again.token = r.token
	again.must(403, "GET", "secret/data/app", "")
	text, err := os.ReadFile(made.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	again.token = strings.TrimSpace(string(text))
	again.checkFilled()
	if health := again.must(200, "GET", "sys/health", ""); health["fenced"] != true {
		t.Errorf("the restored store is not fenced: %v", health)
	}
	again.must(204, "DELETE", "sys/lessor/fence", "")
	if health := again.must(200, "GET", "sys/health", ""); health["fenced"] != false {
		t.Errorf("the fence was not lifted: %v", health)
	}
}

func TestVerifyNamesWhatIsBroken(t *testing.T) {
	p := newPlace(t)
	r := p.start()
	r.fill()
	r.stop()
	old := p.dir + "/old"
	p.do(os.CopyFS(old, os.DirFS(p.data())))
	r2 := p.start()
	r2.token = r.token
	r2.checkFilled()
	r2.stop()
	if found, err := Verify(t.Context(), p.config(), p.o, nil); err != nil || found.Broken != nil || found.Records == 0 || len(found.HeadHash) != 64 {
		t.Fatalf("a sound store: %+v %v", found, err)
	}
	p.remove(p.data())
	p.do(os.CopyFS(p.data(), os.DirFS(old)))
	if found, err := Verify(t.Context(), p.config(), p.o, nil); err != nil || found.Broken == nil || !strings.Contains(found.Broken.Error(), "it was put back to an earlier state") {
		t.Errorf("a store that was put back: %+v %v", found, err)
	}
}

// A server that was killed leaves an anchor behind its store.
func TestVerifyBringsTheAnchorUpToDate(t *testing.T) {
	p := newPlace(t)
	r := p.start()
	r.stop()
	anchor, err := os.ReadFile(p.key() + config.AnchorSuffix)
	p.do(err)
	again := p.start()
	again.token = r.token
	again.fill()
	again.stop()
	p.do(os.WriteFile(p.key()+config.AnchorSuffix, anchor, 0o600))
	if found, err := Verify(t.Context(), p.config(), p.o, nil); err != nil || found.Broken != nil {
		t.Fatalf("a sound store: %+v %v", found, err)
	}
	if now, err := os.ReadFile(p.key() + config.AnchorSuffix); err != nil || bytes.Equal(now, anchor) {
		t.Errorf("the anchor is where it was (%v)", err)
	}
}

func TestVerifyNamesTheDamagedFile(t *testing.T) {
	p := newPlace(t)
	for range 2 { // what a start finds in the log, it moves into a table
		r := p.start()
		r.stop()
	}
	tables, err := filepath.Glob(p.data() + "/*.sst")
	if err != nil || len(tables) == 0 {
		t.Fatalf("tables: %v %v", tables, err)
	}
	for _, table := range tables {
		data, err := os.ReadFile(table)
		p.do(err)
		data[len(data)/3] ^= 0x55
		p.do(os.WriteFile(table, data, 0o600))
	}
	found, err := Verify(t.Context(), p.config(), p.o, nil)
	if err != nil || found.Broken == nil || !strings.Contains(found.Broken.Error(), ".sst is damaged") {
		t.Errorf("a damaged table: %+v %v", found, err)
	}
}

func TestAdmit(t *testing.T) {
	p := newPlace(t)
	if _, err := Admit(t.Context(), p.config(), p.o); err == nil {
		t.Error("an empty folder was given a token")
	}
	p.remove(p.data())
	r := p.start()
	r.fill()
	r.must(204, "POST", "auth/token/revoke-self", "")
	if _, err := Admit(t.Context(), p.config(), p.o); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("beside a server: %v", err)
	}
	r.stop()
	file, err := Admit(t.Context(), p.config(), p.o)
	if err != nil || mode(t, file) != 0o600 {
		t.Fatalf("%s: %v", file, err)
	}
	text, err := os.ReadFile(file)
	p.do(err)
	again := p.start()
	again.token = strings.TrimSpace(string(text))
	again.checkFilled()
	self := again.must(200, "GET", "auth/token/lookup-self", "")["data"].(map[string]any)
	if ttl, _ := self["ttl"].(float64); ttl < 86000 || ttl > 86400 {
		t.Errorf("the token lives for %v s", ttl)
	}
	trail := again.must(200, "GET", "sys/lessor/audit/timeline?path=auth/token/root", "")
	if text := fmt.Sprint(trail); !strings.Contains(text, "system:bootstrap") {
		t.Errorf("it is not on record: %s", text)
	}
}

func TestKeysRotate(t *testing.T) {
	p := newPlace(t)
	r := p.start()
	r.fill()
	p.do(r.state.Load().life.rotate(t.Context()))
	if term := r.keys.Term().ID; term != 2 {
		t.Errorf("the keys are in term %d", term)
	}
	r.must(200, "POST", "secret/data/later", `{"data":{"x":"y"}}`)
	r.checkFilled()
	r.stop()
	again := p.start()
	again.token = r.token
	again.checkFilled()
	again.must(200, "GET", "secret/data/later", "")
}

// Two nodes on one database, each with its copy of the key: what one writes, the other reads.
func TestTwoNodesOnPostgreSQL(t *testing.T) {
	server := pgtest.Start(t, pgtest.Fsync())
	url := server.URL(pgtest.Superuser, server.Password(), server.Database(t))
	p := newPlace(t)
	start := func(key string) *running {
		c := p.config("-key-file", key)
		c.Storage = config.Storage{Type: config.PostgreSQL, ConnectionURL: lessor.NewSecret(url)}
		n, err := Start(t.Context(), c, p.o)
		if err != nil {
			t.Fatal(err)
		}
		r := &running{p, n, n.Root.Reveal(), http.DefaultClient}
		t.Cleanup(r.stop)
		return r
	}
	one := start(p.key())
	one.fill()
	other := filepath.Join(p.dir, "other", "seal.key")
	p.do(os.Mkdir(filepath.Dir(other), 0o700))
	key, err := os.ReadFile(p.key())
	p.do(err)
	p.do(os.WriteFile(other, key, 0o600))
	two := start(other)
	two.token = one.token
	two.checkFilled()
	two.must(200, "POST", "secret/data/two", `{"data":{"x":"y"}}`)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if status, _ := one.ask("GET", "secret/data/two", ""); status == 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the first node never saw what the second wrote")
		}
	}
	if strings.Contains(p.log.String(), server.Password()) {
		t.Error("the log holds the database's password")
	}
}

// runMain runs the server command until the test ends it.
func runMain(t *testing.T, program Program, args ...string) (out *logged, err *logged, end func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	out, err = &logged{}, &logged{}
	code := make(chan int, 1)
	go func() { code <- program.Main(ctx, args, out, err) }()
	for range 1200 {
		if strings.Contains(out.String(), "lessor server started!") {
			return out, err, func() int { cancel(); return <-code }
		}
		select {
		case c := <-code:
			t.Fatalf("ended with %d: %s", c, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatalf("did not start: %s %s", out, err)
	return nil, nil, nil
}

func TestDevServer(t *testing.T) {
	stored := ""
	program := Program{Version: "1.2.3", StoreToken: func(s lessor.Secret) error { stored = s.Reveal(); return nil }}
	dir := t.TempDir()
	out, log, end := runMain(t, program, "-dev-tls", "-dev-tls-cert-dir", dir, "-dev-root-token-id=root", "-dev-listen-address=127.0.0.1:0", "-log-level=debug", "-log-format=json")
	text := out.String()
	address := regexp.MustCompile(`(?m)^Api Address: (https://\S+)$`).FindStringSubmatch(text)
	if address == nil || !regexp.MustCompile(`(?m)^Unseal Key: [A-Za-z0-9+/]{43}=$`).MatchString(text) || !strings.Contains(text, "\nRoot Token: root\n") ||
		!strings.Contains(text, "export VAULT_ADDR='"+address[1]+"'") || !strings.Contains(text, "export VAULT_CACERT='"+dir+"/vault-ca.pem'") {
		t.Fatalf("banner:\n%s", text)
	}
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(dir + "/vault-ca.pem")
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	client := &http.Client{Transport: transport}
	request, _ := http.NewRequest("PUT", address[1]+"/v1/secret/data/x", strings.NewReader(`{"data":{"a":"`+secretValue+`"}}`))
	request.Header.Set("X-Vault-Token", "root")
	answer, err := client.Do(request)
	if err != nil || answer.StatusCode != 200 || answer.ProtoMajor != 2 {
		t.Fatalf("%v %v", answer, err)
	}
	_ = answer.Body.Close()
	transport.CloseIdleConnections()
	if code := end(); code != 0 {
		t.Errorf("exit code %d: %s", code, log)
	}
	if stored != "root" {
		t.Errorf("the stored token is %q", stored)
	}
	if strings.Contains(log.String(), secretValue) || strings.Contains(log.String(), `"root"`) {
		t.Errorf("the log holds a secret: %s", log)
	}
	for line := range strings.Lines(log.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("the log is not JSON: %s", line)
		}
	}
}

func TestMainRefusals(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-listen", "0.0.0.0:0", "-data", "d", "-key-file", "k"}, "plain HTTP off loopback"},
		{[]string{"-dev", "-dev-listen-address=0.0.0.0:0"}, "loopback"},
		{[]string{"-nonsense"}, "nonsense"},
	} {
		var out, err bytes.Buffer
		if code := (Program{}).Main(t.Context(), c.args, &out, &err); code != 1 || !strings.HasPrefix(err.String(), "Error: ") || !strings.Contains(err.String(), c.want) {
			t.Errorf("%v: %d %s", c.args, code, &err)
		}
	}
	var out, err bytes.Buffer
	if code := (Program{}).Main(t.Context(), []string{"-help"}, &out, &err); code != 0 || !strings.Contains(out.String(), "-dev-root-token-id") {
		t.Errorf("-help: %d %s %s", code, &out, &err)
	}
}

func TestPassphraseComesFromAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "passphrase")
	program := func(text string) Program {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return Program{Env: func(name string) (string, bool) {
			v, ok := map[string]string{"LESSOR_RECOVERY_PASSPHRASE_FILE": file, "LESSOR_RECOVERY_FILE": "/else/where"}[name]
			return v, ok
		}}
	}
	r, err := program("some words\n").recovery(config.Config{})
	if err != nil || r.Passphrase.Reveal() != "some words" || r.File != "/else/where" {
		t.Errorf("got %+v %v", r, err)
	}
	for _, bad := range []string{"", "\n", strings.Repeat("x", maxPassphrase+1)} {
		if _, err := program(bad).recovery(config.Config{}); err == nil {
			t.Errorf("a passphrase of %d bytes was taken", len(bad))
		}
	}
}

// What Vault's clients rely on in the answers of a real server.
func TestWireShapes(t *testing.T) {
	p := newPlace(t)
	r := p.start()
	r.fill()
	for _, c := range []struct {
		method, path, body string
		status             int
		keys               string
	}{
		{"GET", "secret/data/app", "", 200, "auth data lease_duration lease_id mount_type renewable request_id warnings wrap_info"},
		{"GET", "sys/mounts", "", 200, "auth cubbyhole/ data identity/ lease_duration lease_id mount_type renewable request_id secret/ sys/ warnings wrap_info"},
		{"GET", "secret/data/none", "", 404, "errors"},
		{"GET", "nowhere/x", "", 404, "errors"},
		{"GET", "sys/seal-status", "", 200, "build_date cluster_id cluster_name initialized lessor_version migration n nonce progress recovery_seal sealed storage_type t type version"},
		{"LIST", "secret/metadata", "", 200, "auth data lease_duration lease_id mount_type renewable request_id warnings wrap_info"},
		{"DELETE", "sys/health", "", 405, "errors"},
	} {
		status, answer := r.ask(c.method, c.path, c.body)
		got := map[string]bool{}
		for k := range answer {
			got[k] = true
		}
		for k := range strings.FieldsSeq(c.keys) {
			if !got[k] {
				t.Errorf("%s %s has no %q", c.method, c.path, k)
			}
		}
		if status != c.status || len(got) > len(strings.Fields(c.keys)) {
			t.Errorf("%s %s: %d with %v", c.method, c.path, status, answer)
		}
	}
	r.token = ""
	r.must(403, "GET", "secret/data/app", "")
	metrics, err := http.NewRequest("GET", r.Address()+"/v1/sys/metrics?format=prometheus", nil)
	if err != nil {
		t.Fatal(err)
	}
	metrics.Header.Set("Authorization", "Bearer "+r.Root.Reveal())
	answer, err := http.DefaultClient.Do(metrics)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(answer.Body)
	_ = answer.Body.Close()
	if !strings.Contains(string(text), "\nlessor_requests_granted_total ") || !strings.Contains(string(text), "\ngo_goroutines ") {
		t.Errorf("metrics: %s", text)
	}
	if u, err := url.Parse(r.Address()); err != nil || u.Port() == "0" {
		t.Errorf("address %s", r.Address())
	}
}
