package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/examples/rotators/rotatortest"
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

func TestMain(m *testing.M) { rotatortest.Main(m) }

// world is a lessor, and what it takes to rotate keys of an API.
type world struct {
	*rotatortest.World
	api *api
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{rotatortest.New(t, "rotator_directory = \"DIR/rotators\"\nrotator_same_user = true"), newAPI(t)}
	w.Must(os.Mkdir(w.Dir+"/rotators", 0o755))
	w.Must(rotatortest.Build(w.Dir+"/rotators/apikeys", ".", "-ldflags", "-X main.configuration="+w.Dir+"/apikeys.json"))
	settings, err := json.Marshal(issuer{URL: w.api.URL, Token: w.api.token})
	w.Must(err)
	w.Must(os.WriteFile(w.Dir+"/apikeys.json", settings, 0o600))
	as := ""
	if os.Geteuid() == 0 {
		u, err := user.Lookup("nobody")
		w.Must(err)
		uid, err := strconv.Atoi(u.Uid)
		w.Must(err)
		w.Must(os.Chown(w.Dir+"/apikeys.json", uid, -1))
		as = u.Username
	}
	w.register(as)
	return w
}

// register tells lessor of the rotator.
func (w *world) register(as string) {
	w.Helper()
	b, err := os.ReadFile(w.Dir + "/rotators/apikeys")
	w.Must(err)
	sum := sha256.Sum256(b)
	w.Do("POST", "sys/lessor/rotators/apikeys", map[string]any{"path": w.Dir + "/rotators/apikeys", "sha256": hex.EncodeToString(sum[:]), "user": as, "paths": "secret/app"})
}

// read is what a consumer gets, and the lease on it.
func (w *world) read() (key, int, string) {
	w.Helper()
	value, version, lease := w.Read()
	return key{value["id"].(string), value["key"].(string)}, version, lease
}

// rotated configures the rotation, and waits for the first value.
func (w *world) rotated() {
	w.Helper()
	w.Do("POST", "secret/rotation/app", map[string]any{"rotator": "apikeys", "options": map[string]any{"account": "billing"}, "rotation_period": "24h"})
	w.Until("there is a first value", func() bool { return w.Version() == 1 && w.Step() == "idle" })
}

// A consumer's key works until the consumer has moved to the next one, and is dead then.
func TestRotation(t *testing.T) {
	w := newWorld(t)
	w.rotated()
	first, version, lease := w.read()
	if version != 1 || !w.api.takes(first.ID) {
		t.Fatalf("the first value is version %d, %v", version, w.api.live())
	}
	w.Acknowledge(lease)
	w.Do("POST", "secret/rotate/app", nil)
	w.Until("there is a second value", func() bool { return w.Version() == 2 })
	if _, err := w.Try("POST", "secret/data/app", map[string]any{"data": map[string]any{"id": "x", "key": "y"}}); err == nil || !strings.Contains(err.Error(), "under way") {
		t.Errorf("a value was written by hand in the midst of a rotation: %v", err)
	}
	second, _, lease := w.read()
	if second == first || !w.api.takes(first.ID) || !w.api.takes(second.ID) || w.Step() != "wait" {
		t.Fatalf("in the midst %v are taken, at %q", w.api.live(), w.Step())
	}
	w.Acknowledge(lease)
	w.Until("the first key is dead", func() bool { return !w.api.takes(first.ID) })
	w.Until("the rotation is done", func() bool { return w.Step() == "idle" })
	if all := w.Do("GET", "secret/data/app?stage=AWSPREVIOUS", nil); all["data"].(map[string]any)["data"].(map[string]any)["id"] != first.ID {
		t.Errorf("the stage before is %v", all["data"])
	}
	if _, err := w.Try("GET", "secret/data/app?stage=pending", nil); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a value is pending though nothing is under way: %v", err)
	}
	if all := w.Do("GET", "secret/metadata/app", nil); fmt.Sprint(all["data"].(map[string]any)["stages"]) != "map[current:2 previous:1]" {
		t.Errorf("the stages are %v", all["data"])
	}

	// One that is given up while it waits: readers are shown the value before again, as another version, and what it had brought is retired.
	w.Do("POST", "secret/rotate/app", nil)
	w.Until("there is a third value", func() bool { return w.Version() == 3 })
	third, _, _ := w.read()
	w.Do("POST", "sys/lessor/rotation/abort/secret/app", nil)
	w.Until("it is given up", func() bool { return w.Version() == 4 })
	again, _, lease := w.read()
	if again != second || !w.api.takes(second.ID) {
		t.Fatalf("after it was given up %q is shown, not %q", again.ID, second.ID)
	}
	w.Acknowledge(lease)
	w.Until("what was given up is dead", func() bool { return !w.api.takes(third.ID) && w.Step() == "idle" })

	// What is not tried yet is for those who configure the rotation, and for no reader.
	w.Do("POST", "sys/policies/acl/app", map[string]any{"policy": `path "secret/data/app" { capabilities = ["read"] }`})
	reader := w.Do("POST", "auth/token/create", map[string]any{"policies": []string{"app"}})["auth"].(map[string]any)["client_token"].(string)
	w.api.sicken(true)
	w.Do("POST", "secret/rotate/app", nil)
	w.Until("a value is pending", func() bool {
		all, err := w.Try("GET", "secret/data/app?stage=pending", nil)
		return err == nil && all["data"].(map[string]any)["data"].(map[string]any)["id"] != second.ID
	})
	if all, err := w.Try("GET", "secret/data/app?stage=pending", nil, "X-Vault-Token", reader); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("a reader is shown what is pending: %v, %v", all, err)
	}
	if k, version, _ := w.read(); k != second || version != 4 {
		t.Errorf("readers are shown what was not tried: version %d", version)
	}
	w.Do("POST", "sys/lessor/rotation/abort/secret/app", nil)
	w.api.sicken(false)
	w.Until("what was given up is dead", func() bool { live := w.api.live(); return len(live) == 1 && live[0] == second.ID })

	// A program that is not the one that was registered is not run.
	b, err := os.ReadFile(w.Dir + "/rotators/apikeys")
	w.Must(err)
	w.Must(os.WriteFile(w.Dir+"/rotators/other", append(b, 0), 0o755))
	w.Must(os.Rename(w.Dir+"/rotators/other", w.Dir+"/rotators/apikeys"))
	w.Do("POST", "secret/rotate/app", nil)
	w.Until("it is refused", func() bool {
		status := w.Do("GET", "sys/lessor/rotation/status/secret/app", nil)
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
	w.Do("POST", "secret/data/app", hand)
	w.Do("POST", "secret/rotation/app", map[string]any{"rotator": "apikeys", "options": map[string]any{"account": "billing"}, "rotation_period": "24h"})
	w.Do("POST", "secret/data/app", hand)
	if w.Version() != 2 || w.Step() != "idle" {
		t.Fatalf("version %d, %q", w.Version(), w.Step())
	}
	w.Do("POST", "secret/rotate/app", nil)
	w.Until("there is a value that was made", func() bool { return w.Version() == 3 && w.Step() == "wait" })
	if !w.api.takes("k0") {
		t.Fatal("what was written by hand is dead before anybody said so")
	}
	if _, err := w.Try("DELETE", "secret/metadata/app", nil); err == nil || !strings.Contains(err.Error(), "delete its rotation first") {
		t.Errorf("a secret was deleted under its rotation: %v", err)
	}
	w.Do("POST", "sys/lessor/rotation/retire/secret/app", nil)
	w.Until("what was written by hand is dead", func() bool { return !w.api.takes("k0") && w.Step() == "idle" })

	// Where a target takes one value at a time, nobody is waited for.
	w.Do("POST", "secret/rotation/app", map[string]any{"strategy": "single"})
	before, _, _ := w.read()
	w.Do("POST", "secret/rotate/app", nil)
	w.Until("there is another value", func() bool { return w.Version() == 4 && w.Step() == "idle" })
	if now, _, _ := w.read(); now == before || !w.api.takes(now.ID) {
		t.Errorf("readers are shown %q, and %v are taken", now.ID, w.api.live())
	}
	w.Do("DELETE", "secret/rotation/app", nil)
	w.Do("DELETE", "secret/metadata/app", nil)
}

// What was checked out is dead once it was given back.
func TestCheckedOut(t *testing.T) {
	w := newWorld(t)
	w.rotated()
	w.Do("POST", "secret/rotation/app", map[string]any{"rotation_on_lease_end": true})
	for _, path := range []string{"secret/rotation/app", "sys/lessor/rotation/plan/secret/app"} {
		if on := w.Do("GET", path, nil)["data"].(map[string]any)["rotation_on_lease_end"]; on != true {
			t.Errorf("%s says %v", path, on)
		}
	}
	for option, want := range map[string]int{"off": 1, "quiet": 0} { // where there are no leases none ends
		w.Do("POST", "sys/mounts/secret/tune", map[string]any{"options": map[string]any{"lease": option}})
		for _, method := range []string{"POST", "GET"} {
			if got := strings.Count(fmt.Sprint(w.Do(method, "secret/rotation/app", nil)["warnings"]), "rotation_on_lease_end does nothing"); got != want {
				t.Errorf("with lease=%s, %d warnings of %s", option, got, method)
			}
		}
	}
	w.Do("POST", "sys/mounts/secret/tune", map[string]any{"options": map[string]any{"lease": "shown"}})
	first, _, lease := w.read()
	w.Do("POST", "sys/lessor/leases/release", map[string]any{"lease_id": lease})
	w.Until("what was given back is dead", func() bool { return w.Version() == 2 && !w.api.takes(first.ID) && w.Step() == "idle" })
	w.Do("POST", "secret/rotation/app", map[string]any{"rotation_on_lease_end": false})
	if _, there := w.Do("GET", "secret/rotation/app", nil)["data"].(map[string]any)["rotation_on_lease_end"]; there {
		t.Error("it is not switched off")
	}
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
		w.Acknowledge(lease)
		w.api.arm(p.call, p.before, w.Strike)
		w.Do("POST", "secret/rotate/app", nil)
		if p.call > 2 { // it comes when the consumer has moved
			w.Until("there is another value", func() bool { return w.Version() == version+1 })
			_, _, lease = w.read()
			w.Acknowledge(lease)
		}
		select {
		case <-w.api.struck:
		case <-time.After(60 * time.Second):
			t.Fatalf("call %d of rotation %d never came", p.call, i+1)
		}
		w.Kill()
		w.Start()
		w.Until("there is another value", func() bool { return w.Version() == version+1 })
		now, _, lease := w.read()
		w.Acknowledge(lease)
		w.Until("the rotation is done", func() bool { return w.Step() == "idle" })
		if live := w.api.live(); len(live) != 1 || live[0] != now.ID || now == old {
			t.Fatalf("killed at call %d (before: %v), %v are taken in the end, not %q", p.call, p.before, live, now.ID)
		}
	}
}
