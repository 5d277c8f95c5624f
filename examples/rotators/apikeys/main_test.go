package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// api is an HTTP API that issues keys, as many for an account as are asked for.
type api struct {
	*httptest.Server
	token string // that manages keys

	mu     sync.Mutex
	ill    bool           // no key can be tried
	keys   map[string]key // by id
	made   map[string]key // by request
	calls  int            // since arm
	at     int            // 0: never
	before bool           // or after it is done
	strike func()         // kills lessor at call at
	struck chan struct{}  // closed when that has happened
}

func newAPI(t *testing.T) *api {
	a := &api{token: rand.Text(), keys: map[string]key{}, made: map[string]key{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /keys", a.managed(func(w http.ResponseWriter, r *http.Request) {
		var asked struct{ Account, Request string }
		if json.NewDecoder(r.Body).Decode(&asked) != nil || asked.Account == "" || asked.Request == "" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		k, ok := a.made[asked.Request]
		if !ok {
			k = key{ID: "k" + strconv.Itoa(len(a.made)+1), Key: rand.Text()}
			a.made[asked.Request], a.keys[k.ID] = k, k
		}
		_ = json.NewEncoder(w).Encode(k)
	}))
	mux.HandleFunc("DELETE /keys/{id}", a.managed(func(w http.ResponseWriter, r *http.Request) {
		delete(a.keys, r.PathValue("id"))
		w.WriteHeader(http.StatusNoContent)
	}))
	mux.HandleFunc("GET /self", a.counted(func(w http.ResponseWriter, r *http.Request) {
		if a.ill {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		for _, k := range a.keys {
			if r.Header.Get("Authorization") == "Bearer "+k.Key {
				return
			}
		}
		w.WriteHeader(http.StatusUnauthorized)
	}))
	a.Server = httptest.NewServer(mux)
	t.Cleanup(a.Close)
	return a
}

// counted has lessor killed at one of the calls.
func (a *api) counted(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.calls++
		now := a.at != 0 && a.calls == a.at
		if now && a.before {
			a.strike()
		}
		h(w, r)
		if now && !a.before {
			a.strike()
		}
		if now {
			close(a.struck)
		}
	}
}

func (a *api) managed(h http.HandlerFunc) http.HandlerFunc {
	return a.counted(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+a.token {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		h(w, r)
	})
}

// arm has lessor killed at call n from now on.
func (a *api) arm(n int, before bool, strike func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls, a.at, a.before, a.strike, a.struck = 0, n, before, strike, make(chan struct{})
}

// live are the ids of the keys that the API takes.
func (a *api) live() (ids []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id := range a.keys {
		ids = append(ids, id)
	}
	return ids
}

// known has the API take a key that it has not made.
func (a *api) known(k key) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keys[k.ID] = k
}

func (a *api) takes(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.keys[id]
	return ok
}

// sicken has the API not say of any key whether it takes it, or recover.
func (a *api) sicken(ill bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ill = ill
}

// server is the path of the program that is tested, built once.
var server = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "lessor")
	if err != nil {
		return "", err
	}
	built = dir
	return filepath.Join(dir, "lessor"), build(filepath.Join(dir, "lessor"), "github.com/lessor-dev/lessor/cmd/lessor")
})

var built string // the folder of server; empty: it is not built

func build(to, from string, flags ...string) error {
	b := exec.Command("go", append(append([]string{"build", "-o", to}, flags...), from)...)
	b.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := b.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	os.Exit(code)
}

// world is a real lessor on a real disk, and what it takes to rotate keys of an API.
type world struct {
	*testing.T
	api                     *api
	bin, dir, address, root string
	cmd                     *exec.Cmd
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and starts a server")
	}
	dir, err := os.MkdirTemp("", "apikeys")
	w := &world{T: t, api: newAPI(t), dir: dir}
	w.must(err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	w.must(os.Chmod(dir, 0o755))
	w.must(os.Mkdir(dir+"/rotators", 0o755))
	w.bin, err = server()
	w.must(err)
	w.must(build(dir+"/rotators/apikeys", ".", "-ldflags", "-X main.configuration="+dir+"/apikeys.json"))
	settings, err := json.Marshal(issuer{URL: w.api.URL, Token: w.api.token})
	w.must(err)
	w.must(os.WriteFile(dir+"/apikeys.json", settings, 0o600))
	as := ""
	if os.Geteuid() == 0 {
		u, err := user.Lookup("nobody")
		w.must(err)
		uid, err := strconv.Atoi(u.Uid)
		w.must(err)
		w.must(os.Chown(dir+"/apikeys.json", uid, -1))
		as = u.Username
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	w.address = ln.Addr().String()
	ln.Close()
	w.must(os.WriteFile(dir+"/lessor.hcl", fmt.Appendf(nil,
		"storage \"pebble\" { path = %q }\nseal \"keyfile\" { path = %q }\nlistener \"tcp\" {\n  address = %q\n  tls_disable = true\n}\nrotator_directory = %q\nrotator_same_user = true\n",
		dir+"/data", dir+"/seal.key", w.address, dir+"/rotators"), 0o600))
	w.start()
	t.Cleanup(w.kill)
	token, err := os.ReadFile(dir + "/bootstrap-token")
	w.must(err)
	w.root = strings.TrimSpace(string(token))
	w.do("POST", "sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]any{"version": "2"}})
	w.register(as)
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// register tells lessor of the rotator.
func (w *world) register(as string) {
	w.Helper()
	b, err := os.ReadFile(w.dir + "/rotators/apikeys")
	w.must(err)
	sum := sha256.Sum256(b)
	w.do("POST", "sys/lessor/rotators/apikeys", map[string]any{"path": w.dir + "/rotators/apikeys", "sha256": hex.EncodeToString(sum[:]), "user": as, "paths": "secret/app"})
}

// start starts the server, and returns when it serves.
func (w *world) start() {
	w.Helper()
	w.cmd = exec.Command(w.bin, "server", "-config="+w.dir+"/lessor.hcl")
	log, err := os.OpenFile(w.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	w.must(err)
	defer log.Close()
	w.cmd.Dir, w.cmd.Stdout, w.cmd.Stderr = w.dir, log, log
	w.cmd.Env = []string{"HOME=" + w.dir, "PATH=" + os.Getenv("PATH"), "XDG_DATA_HOME=" + w.dir}
	w.must(w.cmd.Start())
	w.until("the server serves", func() bool {
		answer, err := http.Get("http://" + w.address + "/v1/sys/health")
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode == 200
	})
}

// kill kills the server at once, if it runs.
func (w *world) kill() {
	_ = w.cmd.Process.Signal(syscall.SIGKILL)
	_ = w.cmd.Wait()
}

func (w *world) try(method, path string, body map[string]any, header ...string) (map[string]any, error) {
	b, err := json.Marshal(body)
	w.must(err)
	r, err := http.NewRequest(method, "http://"+w.address+"/v1/"+path, bytes.NewReader(b))
	w.must(err)
	r.Header.Set("X-Vault-Token", w.root)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	all := map[string]any{}
	if answer.StatusCode != http.StatusNoContent {
		err = json.NewDecoder(answer.Body).Decode(&all)
	}
	if answer.StatusCode >= 300 {
		err = fmt.Errorf("status %d: %v", answer.StatusCode, all["errors"])
	}
	return all, err
}

func (w *world) do(method, path string, body map[string]any, header ...string) map[string]any {
	w.Helper()
	all, err := w.try(method, path, body, header...)
	if err != nil {
		w.Fatalf("%s %s: %v", method, path, err)
	}
	return all
}

func (w *world) until(what string, f func() bool) {
	w.Helper()
	for start := time.Now(); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > 60*time.Second {
			log, _ := os.ReadFile(w.dir + "/log")
			status, _ := w.try("GET", "sys/lessor/rotation/status/secret/app", nil)
			w.Fatalf("never: %s\n%v\n%s", what, status["data"], log)
		}
	}
}

// read is what a consumer gets, and the lease on it, by which it says later what it uses.
func (w *world) read() (k key, version int, lease string) {
	w.Helper()
	all := w.do("GET", "secret/data/app", nil, "X-Lessor-Lease", "renewable")
	data := all["data"].(map[string]any)
	value := data["data"].(map[string]any)
	id, _ := all["lease_id"].(string)
	return key{value["id"].(string), value["key"].(string)}, int(data["metadata"].(map[string]any)["version"].(float64)), id
}

// acknowledge says that nothing older is used.
func (w *world) acknowledge(lease string) {
	w.Helper()
	w.do("PUT", "sys/lessor/leases/acknowledge", map[string]any{"lease_id": lease})
}

// version is the newest one; 0: there is none yet, or no answer.
func (w *world) version() int {
	all, err := w.try("GET", "secret/metadata/app", nil)
	if err != nil {
		return 0
	}
	return int(all["data"].(map[string]any)["current_version"].(float64))
}

// step is how far the rotation is.
func (w *world) step() string {
	all, err := w.try("GET", "sys/lessor/rotation/status/secret/app", nil)
	if err != nil {
		return err.Error()
	}
	return all["data"].(map[string]any)["step"].(string)
}

// rotated configures the rotation, and waits for the first value.
func (w *world) rotated() {
	w.Helper()
	w.do("POST", "secret/rotation/app", map[string]any{"rotator": "apikeys", "options": map[string]any{"account": "billing"}, "rotation_period": "24h"})
	w.until("there is a first value", func() bool { return w.version() == 1 && w.step() == "idle" })
}

// A consumer's key works until the consumer has moved to the next one, and is dead then.
func TestRotation(t *testing.T) {
	w := newWorld(t)
	w.rotated()
	first, version, lease := w.read()
	if version != 1 || !w.api.takes(first.ID) {
		t.Fatalf("the first value is version %d, %v", version, w.api.live())
	}
	w.acknowledge(lease)
	w.do("POST", "secret/rotate/app", nil)
	w.until("there is a second value", func() bool { return w.version() == 2 })
	if _, err := w.try("POST", "secret/data/app", map[string]any{"data": map[string]any{"id": "x", "key": "y"}}); err == nil || !strings.Contains(err.Error(), "under way") {
		t.Errorf("a value was written by hand in the midst of a rotation: %v", err)
	}
	second, _, lease := w.read()
	if second == first || !w.api.takes(first.ID) || !w.api.takes(second.ID) || w.step() != "wait" {
		t.Fatalf("in the midst %v are taken, at %q", w.api.live(), w.step())
	}
	w.acknowledge(lease)
	w.until("the first key is dead", func() bool { return !w.api.takes(first.ID) })
	w.until("the rotation is done", func() bool { return w.step() == "idle" })
	if all := w.do("GET", "secret/data/app?stage=AWSPREVIOUS", nil); all["data"].(map[string]any)["data"].(map[string]any)["id"] != first.ID {
		t.Errorf("the stage before is %v", all["data"])
	}
	if _, err := w.try("GET", "secret/data/app?stage=pending", nil); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a value is pending though nothing is under way: %v", err)
	}
	if all := w.do("GET", "secret/metadata/app", nil); fmt.Sprint(all["data"].(map[string]any)["stages"]) != "map[current:2 previous:1]" {
		t.Errorf("the stages are %v", all["data"])
	}

	// One that is given up while it waits: readers are shown the value before again, as another version, and what it had brought is retired.
	w.do("POST", "secret/rotate/app", nil)
	w.until("there is a third value", func() bool { return w.version() == 3 })
	third, _, _ := w.read()
	w.do("POST", "sys/lessor/rotation/abort/secret/app", nil)
	w.until("it is given up", func() bool { return w.version() == 4 })
	again, _, lease := w.read()
	if again != second || !w.api.takes(second.ID) {
		t.Fatalf("after it was given up %q is shown, not %q", again.ID, second.ID)
	}
	w.acknowledge(lease)
	w.until("what was given up is dead", func() bool { return !w.api.takes(third.ID) && w.step() == "idle" })

	// What is not tried yet is for those who configure the rotation, and for no reader.
	w.do("POST", "sys/policies/acl/app", map[string]any{"policy": `path "secret/data/app" { capabilities = ["read"] }`})
	reader := w.do("POST", "auth/token/create", map[string]any{"policies": []string{"app"}})["auth"].(map[string]any)["client_token"].(string)
	w.api.sicken(true)
	w.do("POST", "secret/rotate/app", nil)
	w.until("a value is pending", func() bool {
		all, err := w.try("GET", "secret/data/app?stage=pending", nil)
		return err == nil && all["data"].(map[string]any)["data"].(map[string]any)["id"] != second.ID
	})
	if all, err := w.try("GET", "secret/data/app?stage=pending", nil, "X-Vault-Token", reader); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("a reader is shown what is pending: %v, %v", all, err)
	}
	if k, version, _ := w.read(); k != second || version != 4 {
		t.Errorf("readers are shown what was not tried: version %d", version)
	}
	w.do("POST", "sys/lessor/rotation/abort/secret/app", nil)
	w.api.sicken(false)
	w.until("what was given up is dead", func() bool { live := w.api.live(); return len(live) == 1 && live[0] == second.ID })

	// A program that is not the one that was registered is not run.
	b, err := os.ReadFile(w.dir + "/rotators/apikeys")
	w.must(err)
	w.must(os.WriteFile(w.dir+"/rotators/other", append(b, 0), 0o755))
	w.must(os.Rename(w.dir+"/rotators/other", w.dir+"/rotators/apikeys"))
	w.do("POST", "secret/rotate/app", nil)
	w.until("it is refused", func() bool {
		status := w.do("GET", "sys/lessor/rotation/status/secret/app", nil)
		return strings.Contains(fmt.Sprint(status["data"]), "its SHA-256 is another")
	})
	if live := w.api.live(); len(live) != 1 || live[0] != second.ID {
		t.Errorf("in the end %v are taken, not %q", live, second.ID)
	}
}

// A value that somebody wrote by hand may be known to others than its readers: it is handed over from, and retired when somebody says so.
func TestWrittenByHand(t *testing.T) {
	w := newWorld(t)
	hand := map[string]any{"data": map[string]any{"id": "k0", "key": "by hand"}}
	w.api.known(key{"k0", "by hand"})
	w.do("POST", "secret/data/app", hand)
	w.do("POST", "secret/rotation/app", map[string]any{"rotator": "apikeys", "options": map[string]any{"account": "billing"}, "rotation_period": "24h"})
	w.do("POST", "secret/data/app", hand)
	if w.version() != 2 || w.step() != "idle" {
		t.Fatalf("version %d, %q", w.version(), w.step())
	}
	w.do("POST", "secret/rotate/app", nil)
	w.until("there is a value that was made", func() bool { return w.version() == 3 && w.step() == "wait" })
	if !w.api.takes("k0") {
		t.Fatal("what was written by hand is dead before anybody said so")
	}
	if _, err := w.try("DELETE", "secret/metadata/app", nil); err == nil || !strings.Contains(err.Error(), "delete its rotation first") {
		t.Errorf("a secret was deleted under its rotation: %v", err)
	}
	w.do("POST", "sys/lessor/rotation/retire/secret/app", nil)
	w.until("what was written by hand is dead", func() bool { return !w.api.takes("k0") && w.step() == "idle" })

	// Where a target takes one value at a time, nobody is waited for.
	w.do("POST", "secret/rotation/app", map[string]any{"strategy": "single"})
	before, _, _ := w.read()
	w.do("POST", "secret/rotate/app", nil)
	w.until("there is another value", func() bool { return w.version() == 4 && w.step() == "idle" })
	if now, _, _ := w.read(); now == before || !w.api.takes(now.ID) {
		t.Errorf("readers are shown %q, and %v are taken", now.ID, w.api.live())
	}
	w.do("DELETE", "secret/rotation/app", nil)
	w.do("DELETE", "secret/metadata/app", nil)
}

// lessor is killed at each call to the API, before and after it is done: each time the rotation ends, with one key in force that its readers are shown, and no
// key works that nobody knows. LESSOR_KILLS=all has all of them; else there are the worst.
func TestKilledAtEachStep(t *testing.T) {
	w := newWorld(t)
	w.rotated()
	type point struct {
		call   int
		before bool
	}
	points := []point{{1, false}, {2, true}, {3, false}}
	if os.Getenv("LESSOR_KILLS") == "all" {
		points = nil
		for call := 1; call <= 5; call++ {
			points = append(points, point{call, true}, point{call, false})
		}
	}
	for i, p := range points {
		old, version, lease := w.read()
		w.acknowledge(lease)
		w.api.arm(p.call, p.before, func() { _ = w.cmd.Process.Signal(syscall.SIGKILL) })
		w.do("POST", "secret/rotate/app", nil)
		if p.call > 2 { // it comes when the consumer has moved
			w.until("there is another value", func() bool { return w.version() == version+1 })
			_, _, lease = w.read()
			w.acknowledge(lease)
		}
		select {
		case <-w.api.struck:
		case <-time.After(60 * time.Second):
			t.Fatalf("call %d of rotation %d never came", p.call, i+1)
		}
		w.kill()
		w.start()
		w.until("there is another value", func() bool { return w.version() == version+1 })
		now, _, lease := w.read()
		w.acknowledge(lease)
		w.until("the rotation is done", func() bool { return w.step() == "idle" })
		if live := w.api.live(); len(live) != 1 || live[0] != now.ID || now == old {
			t.Fatalf("killed at call %d (before: %v), %v are taken in the end, not %q", p.call, p.before, live, now.ID)
		}
	}
}
