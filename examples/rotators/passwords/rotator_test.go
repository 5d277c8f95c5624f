package passwords_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/examples/rotators/rotatortest"
)

func TestMain(m *testing.M) { rotatortest.Main(m) }

// program is one of Python's that listens somewhere, and can be killed and started again.
type program struct {
	*testing.T
	address string
	args    []string
	cmd     *exec.Cmd
}

func start(t *testing.T, address string, args ...string) *program {
	t.Helper()
	if _, err := os.ReadFile(args[0]); err != nil { // by that go test knows that its result depends on it
		t.Fatal(err)
	}
	p := &program{T: t, address: address, args: args}
	p.start()
	t.Cleanup(p.kill)
	return p
}

func (p *program) start() {
	p.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		p.Fatalf("%v; -short skips these tests", err)
	}
	p.cmd = exec.Command(python, p.args...)
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	p.cmd.Stderr = p.Output()
	if err := p.cmd.Start(); err != nil {
		p.Fatal(err)
	}
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", p.address)
		if err == nil {
			c.Close()
			return
		}
		if time.Since(began) > time.Minute {
			p.Fatalf("%v never listens: %v", p.args, err)
		}
	}
}

// strike kills it at once, on any goroutine.
func (p *program) strike() { _ = p.cmd.Process.Kill() }

func (p *program) kill() {
	p.strike()
	_ = p.cmd.Wait()
}

// target is the service, and what counts the calls to it.
type target struct {
	url string

	mu     sync.Mutex
	calls  int           // since arm
	at     int           // 0: never
	before bool          // or after it is done
	strike func()        // at call at
	struck chan struct{} // closed when that has happened
}

func newTarget(t *testing.T, dir string) *target {
	t.Helper()
	write(t, dir+"/accounts.json", `{"app-a": {}, "app-b": {}}`)
	write(t, dir+"/administrator", "administrator's token")
	address := rotatortest.Free(t)
	start(t, address, "service.py", address, dir+"/accounts.json", dir+"/administrator")
	to := &target{}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: address})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Test") == "" {
			defer to.count()()
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	to.url = server.URL
	return to
}

// count strikes at one of the calls, before it or, by what it returns, after it.
func (to *target) count() (done func()) {
	to.mu.Lock()
	defer to.mu.Unlock()
	to.calls++
	if to.at == 0 || to.calls != to.at {
		return func() {}
	}
	strike, struck := to.strike, to.struck
	if to.before {
		strike()
		close(struck)
		return func() {}
	}
	return func() {
		strike()
		close(struck)
	}
}

func (to *target) arm(n int, before bool, strike func()) <-chan struct{} {
	to.mu.Lock()
	defer to.mu.Unlock()
	to.calls, to.at, to.before, to.strike, to.struck = 0, n, before, strike, make(chan struct{})
	return to.struck
}

// takes reports whether the service lets somebody log in with a value of the secret.
func (to *target) takes(t *testing.T, value map[string]any) bool {
	t.Helper()
	r, err := http.NewRequest("GET", to.url+"/self", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Test", "1")
	r.SetBasicAuth(value["username"].(string), value["password"].(string))
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != 200 && answer.StatusCode != 401 {
		t.Fatalf("the service says %s", answer.Status)
	}
	return answer.StatusCode == 200
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// certify makes a certificate for 127.0.0.1, which vouches for itself.
func certify(t *testing.T, dir string) (ca string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write(t, dir+"/certificate", ca)
	write(t, dir+"/key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	return ca
}

// listen starts the rotator; what it is to know of signing keys is in dir/signing.
func listen(t *testing.T, dir string, to *target) *program {
	t.Helper()
	address := rotatortest.Free(t)
	b, err := json.Marshal(map[string]any{
		"listen": address, "certificate": dir + "/certificate", "key": dir + "/key", "signing_keys": dir + "/signing", "service": to.url,
		"token": "administrator's token", "passwords": strings.Repeat("x", 32), "accounts": map[string]any{"secret/app": []string{"app-a", "app-b"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/rotator.json", string(b))
	return start(t, address, "rotator.py", dir+"/rotator.json")
}

// world is a lessor, the rotator, and the service.
type world struct {
	*rotatortest.World
	target  *target
	rotator *program
	key     string // that signs
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{World: rotatortest.New(t, `rotator_hosts = ["127.0.0.1"]`)}
	ca := certify(t, w.Dir)
	w.target = newTarget(t, w.Dir)
	w.rotator = listen(t, w.Dir, w.target)
	all := w.Do("POST", "sys/lessor/rotators/passwords", map[string]any{"type": "webhook", "url": "https://" + w.rotator.address + "/", "ca": ca, "paths": "secret/app"})
	w.key = all["data"].(map[string]any)["signing_key"].(string)
	write(t, w.Dir+"/signing", w.key+"\n")
	w.Do("POST", "secret/rotation/app", map[string]any{"rotator": "passwords", "rotation_period": "24h"})
	w.Until("there is a first value", func() bool { return w.Version() == 1 && w.Step() == "idle" })
	return w
}

// fails waits until a step has failed for a reason.
func (w *world) fails(why string) {
	w.Helper()
	w.Until("a step fails: "+why, func() bool { return strings.Contains(fmt.Sprint(w.Status()), why) })
}

// A consumer's account works until the consumer has moved to the other one, and is dead then. Meanwhile the key that lessor signs with is changed, and the
// certificate of the rotator.
func TestRotation(t *testing.T) {
	w := newWorld(t)
	first, version, lease := w.Read()
	if version != 1 || !w.target.takes(t, first) {
		t.Fatalf("the first value is version %d, and does not work", version)
	}
	w.Acknowledge(lease)
	w.Do("POST", "secret/rotate/app", nil)
	w.Until("there is a second value", func() bool { return w.Version() == 2 })
	second, _, lease := w.Read()
	if second["username"] == first["username"] || !w.target.takes(t, first) || !w.target.takes(t, second) {
		t.Fatal("in the midst one of the two accounts does not work")
	}
	next := w.Do("POST", "sys/lessor/rotators/passwords/key", nil)["data"].(map[string]any)["signing_key"].(string)
	w.Acknowledge(lease)
	w.Until("the first account's password is dead", func() bool { return !w.target.takes(t, first) })
	w.Until("the rotation is done", func() bool { return w.Step() == "idle" })

	// The receiver knows the new key only, then lessor does, too.
	write(t, w.Dir+"/signing", next)
	w.Do("POST", "secret/rotate/app", nil)
	w.Until("there is a third value", func() bool { return w.Version() == 3 })
	w.Do("DELETE", "sys/lessor/rotators/passwords/key", nil)
	third, _, lease := w.Read()
	w.Acknowledge(lease)
	w.Until("the second account's password is dead", func() bool { return !w.target.takes(t, second) && w.Step() == "idle" })
	if shown := fmt.Sprint(w.Do("GET", "sys/lessor/rotators/passwords", nil)["data"]); strings.Contains(shown, "whsec") || strings.Contains(shown, next) {
		t.Errorf("the key is shown: %s", shown)
	}

	// One that knows the old key only refuses; readers do not notice.
	write(t, w.Dir+"/signing", w.key)
	w.Do("POST", "secret/rotate/app", nil)
	w.fails("status 401")
	if value, version, _ := w.Read(); version != 3 || fmt.Sprint(value) != fmt.Sprint(third) || !w.target.takes(t, third) {
		t.Errorf("readers have noticed: version %d", version)
	}
	write(t, w.Dir+"/signing", next)
	w.Until("there is a fourth value", func() bool { return w.Version() == 4 })

	// One with another certificate is told nothing.
	w.rotator.kill()
	ca := certify(t, w.Dir)
	w.rotator.start()
	fourth, _, lease := w.Read()
	w.Acknowledge(lease)
	w.fails("certificate is not to be trusted")
	if !w.target.takes(t, third) {
		t.Error("the third value is dead, though nobody was asked to end it")
	}
	w.Do("POST", "sys/lessor/rotators/passwords", map[string]any{"ca": ca})
	w.Until("the third value is dead", func() bool { return !w.target.takes(t, third) && w.target.takes(t, fourth) && w.Step() == "idle" })

	// What it was not registered for it is not asked.
	if _, err := w.Try("POST", "secret/rotation/other", map[string]any{"rotator": "passwords", "rotation_period": "24h"}); err == nil || !strings.Contains(err.Error(), "do not name it") {
		t.Errorf("a rotator is asked about any secret: %v", err)
	}
	w.Do("POST", "sys/lessor/rotators/passwords", map[string]any{"paths": "secret/other"})
	w.Do("POST", "secret/rotate/app", nil)
	w.fails("do not name it")

	// What is not so registered as it was is registered anew, and has a key of its own.
	for path, c := range map[string]struct {
		method, want string
		body         map[string]any
	}{
		"sys/lessor/rotators/passwords":     {"POST", "keeps its type", map[string]any{"type": "exec"}},
		"sys/lessor/rotators/passwords/key": {"DELETE", "signs alone already", nil},
		"sys/lessor/rotators/elsewhere":     {"POST", "do not name it", map[string]any{"type": "webhook", "url": "https://rotators.example.org", "paths": "*"}},
		"sys/lessor/rotators/pathless":      {"POST", "paths must name", map[string]any{"type": "webhook", "url": "https://127.0.0.1"}},
	} {
		if _, err := w.Try(c.method, path, c.body); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v, want %q", c.method, path, err, c.want)
		}
	}
	w.Do("DELETE", "sys/lessor/rotators/passwords", nil)
	anew := w.Do("POST", "sys/lessor/rotators/passwords", map[string]any{"type": "webhook", "url": "https://127.0.0.1", "paths": "*"})["data"].(map[string]any)["signing_key"]
	if keys := w.Do("GET", "sys/lessor/rotators/passwords", nil)["data"].(map[string]any)["signing_keys"].([]any); anew == next || len(keys) != 1 {
		t.Errorf("a rotator that is registered anew has the keys of %v", keys)
	}

	for _, value := range []map[string]any{first, second, third, fourth} {
		if strings.Contains(w.Log(), value["password"].(string)) {
			t.Error("a password is in the log")
		}
	}
	if strings.Contains(w.Log(), "whsec_") {
		t.Error("a signing key is in the log")
	}
}

// lessor or the rotator is killed at a call to the service, before or after it is done: each time the rotation ends, with one password in force that its
// readers are shown, and none of the others works. LESSOR_KILLS=all has all calls; else there are the worst.
func TestKilledAtEachStep(t *testing.T) {
	w := newWorld(t)
	type point struct {
		call    int
		before  bool
		rotator bool
	}
	points := []point{{call: 3}, {call: 3, rotator: true}, {call: 4, before: true, rotator: true}, {call: 7}}
	if os.Getenv("LESSOR_KILLS") == "all" {
		points = nil
		for call := 1; call <= 10; call++ {
			for i := range 4 {
				points = append(points, point{call, i%2 == 0, i < 2})
			}
		}
	}
	var dead []map[string]any
	for _, p := range points {
		old, version, lease := w.Read()
		w.Acknowledge(lease)
		strike := w.Strike
		if p.rotator {
			strike = w.rotator.strike
		}
		struck := w.target.arm(p.call, p.before, strike)
		w.Do("POST", "secret/rotate/app", nil)
		if p.call > 4 { // it comes when the consumer has moved
			w.Until("there is another value", func() bool { return w.Version() == version+1 })
			_, _, lease = w.Read()
			w.Acknowledge(lease)
		}
		select {
		case <-struck:
		case <-time.After(2 * time.Minute):
			t.Fatalf("the call of %+v never came: %v", p, w.Status())
		}
		if p.rotator {
			w.rotator.kill()
			w.rotator.start()
		} else {
			w.Kill()
			w.Start()
		}
		w.Until("there is another value", func() bool { return w.Version() == version+1 })
		now, _, lease := w.Read()
		w.Acknowledge(lease)
		w.Until("the rotation is done", func() bool { return w.Step() == "idle" })
		dead = append(dead, old)
		for _, value := range dead {
			if w.target.takes(t, value) {
				t.Errorf("killed at %+v, an old password of %v works", p, value["username"])
			}
		}
		if !w.target.takes(t, now) {
			t.Fatalf("killed at %+v, the password in force does not work", p)
		}
	}
}

// The rotator answers what is signed, once, and just after it was.
func TestSignatures(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers")
	}
	dir := t.TempDir()
	ca := certify(t, dir)
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	write(t, dir+"/signing", "whsec_"+base64.StdEncoding.EncodeToString(make([]byte, 32))+"\nwhsec_"+base64.StdEncoding.EncodeToString(key))
	rotator := listen(t, dir, newTarget(t, dir))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca))
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
	sign := func(id string, at time.Time, body string) http.Header {
		stamp := strconv.FormatInt(at.Unix(), 10)
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.%s", id, stamp, body)
		signature := "v1," + base64.StdEncoding.EncodeToString(make([]byte, 32)) + " v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
		return http.Header{"Webhook-Id": {id}, "Webhook-Timestamp": {stamp}, "Webhook-Signature": {signature}}
	}
	send := func(h http.Header, body string) (int, string) {
		t.Helper()
		r, err := http.NewRequest("POST", "https://"+rotator.address, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header = h
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		b, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(bytes.TrimSpace(b))
	}
	const create = `{"step":"create","secret":"secret/app","token":"t1","options":{}}`
	// It refuses what was signed before it began, to the second: so it is asked until it answers.
	made := ""
	for began, n := time.Now(), 0; ; n++ {
		status, answer := send(sign(fmt.Sprint("first", n), time.Now(), create), create)
		if status == 200 {
			made = answer
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("%d %s", status, answer)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if !strings.Contains(made, `"username": "app-a"`) {
		t.Fatal(made)
	}
	again := sign("again", time.Now(), create)
	if status, answer := send(again, create); status != 200 || answer != made {
		t.Errorf("asked again with the same token: %d %s, not %s", status, answer, made)
	}
	unsigned := again.Clone()
	unsigned.Del("Webhook-Signature")
	renamed := again.Clone()
	renamed.Set("Webhook-Id", "another")
	dated := sign("dated", time.Now(), create)
	dated.Set("Webhook-Timestamp", dated.Get("Webhook-Timestamp")+"0")
	for name, c := range map[string]struct {
		header http.Header
		body   string
	}{
		"sent before":           {again, create},
		"under another id":      {renamed, create},
		"without a signature":   {unsigned, create},
		"with nothing":          {http.Header{}, create},
		"with another body":     {sign("x", time.Now(), create), strings.Replace(create, "t1", "t2", 1)},
		"of two minutes ago":    {sign("y", time.Now().Add(-2*time.Minute), create), create},
		"of in two minutes":     {sign("z", time.Now().Add(2*time.Minute), create), create},
		"with another time":     {dated, create},
		"with a time of no sum": {sign("", time.Now(), create), create},
	} {
		if status, answer := send(c.header, c.body); status != 401 || answer != "" {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
	conn, err := tls.Dial("tcp", rotator.address, &tls.Config{RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n")
	if line, err := bufio.NewReader(conn).ReadString('\n'); !strings.Contains(line, " 413 ") {
		t.Errorf("to a request of more than a MiB it says %q, %v", line, err)
	}
	for body, want := range map[string]string{
		`{"step":"set","secret":"secret/other","token":"t"}`: "invalid",
		`{"step":"set","secret":"secret/app","token":"t","current":{"username":"app-a","password":"x"},"pending":{"username":"app-a","password":"y"}}`:    "invalid",
		`{"step":"finish","secret":"secret/app","token":"t","current":{"username":"app-a","password":"x"},"previous":{"username":"root","password":"y"}}`: "invalid",
		`[]`: "invalid", `nothing`: "misconfigured",
	} {
		if status, answer := send(sign(rand.Text(), time.Now(), body), body); status != 200 || answer != fmt.Sprintf(`{"failure": %q}`, want) {
			t.Errorf("%s: %d %s", body, status, answer)
		}
	}

	rotator.kill() // it remembers nothing
	rotator.start()
	if status, answer := send(again, create); status != 401 {
		t.Errorf("sent again after a restart: %d %s", status, answer)
	}
}
