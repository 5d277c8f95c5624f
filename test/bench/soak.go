package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lessor-dev/lessor/internal/store"
)

// A soak lets leases come and go at half of what the machine can do, for an hour, and looks whether anything grows that should
// not: memory, goroutines, open files, rows of the store. The disk grows by what is audited and by nothing else. What is read stays at its
// version: a reader of a new version keeps its lease on the old one for a day, since reading is not adopting.
const (
	soakWorkers = 32
	soakSecrets = 64               // that are read; as many others are written
	soakTTL     = 30 * time.Second // of tokens and credentials
	soakEvery   = 15 * time.Second // between two looks
)

// soaking is one soak under way.
type soaking struct {
	*lessorServer
	p        *postgres
	roleID   string
	secrets  []string      // secret ids, one for each worker
	sessions atomic.Uint64 // that are through
	failed   atomic.Uint64
	lost     atomic.Value // the last failure's text
}

// look is what one look at the server saw.
type look struct {
	at                                       time.Duration
	sessions                                 uint64
	rss, heap, goroutines, files, disk, seen float64
}

func (b *bench) soak(d time.Duration) error {
	p, err := b.startPostgres()
	if err != nil {
		return err
	}
	s := &soaking{p: p}
	if s.lessorServer, err = newServer(b.binary, b.dir+"/soak"); err != nil {
		return err
	}
	b.later(func() { s.end(syscall.SIGKILL) })
	if err := s.furnishSoak(); err != nil {
		return err
	}
	http.DefaultTransport.(*http.Transport).MaxIdleConnsPerHost = 2 * soakWorkers

	// How fast can it go? This also fills what fills once: versions of secrets, holders, caches.
	began := time.Now()
	if _, err := s.run(min(d/4, 45*time.Second), 0, nil); err != nil {
		return err
	}
	full := float64(s.sessions.Load()) / time.Since(began).Seconds()
	rate := full / 2
	fmt.Printf("sessions at full load: %.1f/s; half of it for %v\n", full, d)
	before, err := s.rows()
	if err != nil {
		return err
	}

	var looks []look
	fmt.Println("| minute | sessions | resident MB | heap MB | goroutines | files | disk MB | audited |")
	fmt.Println("|---:|---:|---:|---:|---:|---:|---:|---:|")
	if looks, err = s.run(d, rate, func(l look) {
		fmt.Printf("| %.1f | %d | %.0f | %.0f | %.0f | %.0f | %.0f | %.0f |\n",
			l.at.Minutes(), l.sessions, l.rss/1e6, l.heap/1e6, l.goroutines, l.files, l.disk/1e6, l.seen)
	}); err != nil {
		return err
	}
	after, err := s.rows()
	if err != nil {
		return err
	}
	return s.judge(looks, before, after)
}

// furnishSoak gives the server what the sessions use.
func (s *soaking) furnishSoak() error {
	if _, err := s.furnish(0); err != nil {
		return err
	}
	if err := s.furnishDatabase(s.p, 4096); err != nil {
		return err
	}
	for _, step := range []struct {
		path string
		body object
	}{
		{"database/roles/scram-4096", object{"db_name": "scram-4096", "creation_statements": creation, "default_ttl": "30s", "max_ttl": "60s"}},
		{"sys/auth/approle", object{"type": "approle"}},
		{"auth/approle/role/soak", object{"token_policies": "bench", "token_ttl": "30s", "token_max_ttl": "60s"}},
	} {
		if _, err := s.call("POST", step.path, step.body); err != nil {
			return err
		}
	}
	m, err := s.call("GET", "auth/approle/role/soak/role-id", nil)
	if err != nil {
		return err
	}
	s.roleID = text(m, "data", "role_id")
	for range soakWorkers {
		m, err := s.call("POST", "auth/approle/role/soak/secret-id", nil)
		if err != nil {
			return err
		}
		s.secrets = append(s.secrets, text(m, "data", "secret_id"))
	}
	for i := range 2 * soakSecrets {
		for range 12 { // more than the versions that are kept
			if _, err := s.call("POST", secretPath(i), object{"data": object{"password": "correct-horse"}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// run has the workers go through sessions for d, so many a second (0: as many as they can), and looks now and then.
func (s *soaking) run(d time.Duration, rate float64, tell func(look)) ([]look, error) {
	begin := make(chan struct{}, soakWorkers)
	stop := make(chan struct{})
	var workers sync.WaitGroup
	for i := range soakWorkers {
		workers.Go(func() {
			for range begin {
				if err := s.session(i); err != nil {
					s.failed.Add(1)
					s.lost.Store(err.Error())
				}
				s.sessions.Add(1)
			}
		})
	}
	go func() {
		defer close(begin)
		for start, n := time.Now(), 0; ; n++ {
			if rate > 0 {
				time.Sleep(time.Until(start.Add(time.Duration(float64(n) / rate * float64(time.Second)))))
			}
			select {
			case begin <- struct{}{}:
			case <-stop:
				return
			}
		}
	}()
	var looks []look
	start := time.Now()
	for end := start.Add(d); time.Now().Before(end); {
		time.Sleep(min(soakEvery, time.Until(end)))
		if tell != nil {
			l, err := s.look(time.Since(start))
			if err != nil {
				return nil, err
			}
			looks = append(looks, l)
			tell(l)
		}
	}
	close(stop)
	workers.Wait()
	if n := s.failed.Load(); n > 0 {
		return nil, fmt.Errorf("%d of %d sessions failed, the last by: %v", n, s.sessions.Load(), s.lost.Load())
	}
	return looks, nil
}

// session is what one run of a small job does: log in, read, write, hand something on, at times lease a database credential;
// then give back what it has, or, as often, just end.
func (s *soaking) session(worker int) error {
	m, err := s.callAs("", "POST", "auth/approle/login", object{"role_id": s.roleID, "secret_id": s.secrets[worker]})
	if err != nil {
		return err
	}
	token := text(m, "auth", "client_token")
	for range 5 {
		if _, err := s.callAs(token, "GET", secretPath(rand.IntN(soakSecrets)), nil); err != nil {
			return err
		}
	}
	if _, err := s.callAs(token, "POST", secretPath(soakSecrets+rand.IntN(soakSecrets)), object{"data": object{"password": "correct-horse"}}); err != nil {
		return err
	}
	if _, err := s.callAs(token, "POST", "auth/token/create", object{"ttl": "20s"}); err != nil {
		return err
	}
	if err := s.handOn(token); err != nil {
		return err
	}
	if rand.IntN(8) == 0 {
		if m, err = s.callAs(token, "GET", "database/creds/scram-4096", nil); err != nil {
			return err
		}
		if _, err := s.callAs(token, "POST", "sys/leases/renew", object{"lease_id": text(m, "lease_id")}); err != nil {
			return err
		}
	}
	if rand.IntN(2) == 0 {
		_, err = s.callAs(token, "POST", "auth/token/revoke-self", nil)
		return err
	}
	return nil
}

// handOn wraps something and unwraps it, as if two jobs did.
func (s *soaking) handOn(token string) error {
	req, err := http.NewRequest("POST", "http://"+s.addr+"/v1/sys/wrapping/wrap", strings.NewReader(`{"of":"the soak"}`))
	if err != nil {
		return err
	}
	req.Header.Set("X-Vault-Token", token)
	req.Header.Set("X-Vault-Wrap-TTL", "30s")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var m object
	if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
		return err
	}
	_, err = s.callAs(text(m, "wrap_info", "token"), "POST", "sys/wrapping/unwrap", nil)
	return err
}

// look measures the server.
func (s *soaking) look(at time.Duration) (look, error) {
	rss, err := s.resident()
	if err != nil {
		return look{}, err
	}
	page, err := s.fetch(s.root, "GET", "sys/metrics?format=prometheus", nil)
	if err != nil {
		return look{}, err
	}
	value := func(name string) float64 {
		for line := range strings.Lines(string(page)) {
			if rest, ok := strings.CutPrefix(line, name+" "); ok {
				v, _ := strconv.ParseFloat(strings.TrimSpace(rest), 64)
				return v
			}
		}
		return -1
	}
	l := look{
		at: at, sessions: s.sessions.Load(), rss: float64(rss), heap: value("go_memstats_heap_inuse_bytes"), goroutines: value("go_goroutines"),
		files: value("process_open_fds"), seen: value("lessor_requests_granted_total") + value("lessor_requests_denied_total") + value("lessor_requests_failed_total"),
	}
	err = filepath.WalkDir(s.data(), func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return ignoreGone(err)
		}
		info, err := e.Info()
		if err == nil {
			l.disk += float64(info.Size())
		}
		return ignoreGone(err)
	})
	return l, err
}

// ignoreGone: the store removes files while they are counted.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// rows waits until all leases have come to their end, and counts the store's rows by table while the server is down.
func (s *soaking) rows() (map[store.Table]int, error) {
	time.Sleep(2*soakTTL + 15*time.Second)
	s.end(os.Interrupt)
	all := map[store.Table]int{}
	err := s.offline(func(db *store.DB) error {
		v, err := db.View()
		if err != nil {
			return err
		}
		defer v.Close()
		for t := store.Mounts; t < store.Batches; t++ {
			for _, err := range v.Scan(t, "", "") {
				if err != nil {
					return err
				}
				all[t]++
			}
		}
		return nil
	})
	return all, errors.Join(err, s.start())
}

// judge compares the second quarter of the soak with its last.
func (s *soaking) judge(looks []look, before, after map[store.Table]int) error {
	quarter := len(looks) / 4
	if quarter == 0 {
		return errors.New("too short a soak to judge")
	}
	var wrong []error
	compare := func(what string, growth, slack float64, of func(look) float64) {
		middle := func(part []look) float64 {
			var all []float64
			for _, l := range part {
				all = append(all, of(l))
			}
			return median(all)
		}
		early, late := middle(looks[quarter:2*quarter]), middle(looks[len(looks)-quarter:])
		fmt.Printf("%s: %.4g in the second quarter, %.4g in the last\n", what, early, late)
		if late > early*(1+growth)+slack {
			wrong = append(wrong, fmt.Errorf("%s grew from %.4g to %.4g", what, early, late))
		}
	}
	compare("resident memory", 0.1, 8e6, func(l look) float64 { return l.rss })
	compare("heap in use", 0.1, 8e6, func(l look) float64 { return l.heap })
	compare("goroutines", 0.1, 4, func(l look) float64 { return l.goroutines })
	compare("open files", 0.1, 8, func(l look) float64 { return l.files })
	first := looks[0]
	compare("disk for each audited request, bytes", 0.1, 0, func(l look) float64 {
		if l.seen == first.seen {
			return 0
		}
		return (l.disk - first.disk) / (l.seen - first.seen)
	})
	for t := store.Mounts; t < store.Batches; t++ {
		if after[t] > before[t]+before[t]/20+8 {
			wrong = append(wrong, fmt.Errorf("table %d has %d rows, before the soak %d", t, after[t], before[t]))
		}
	}
	conn, err := s.p.connect()
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	left, err := s.p.roles(conn, "v-")
	if err != nil {
		return err
	}
	if len(left) > 0 {
		wrong = append(wrong, fmt.Errorf("%d accounts are left at PostgreSQL: %v", len(left), left[:min(5, len(left))]))
	}
	keys := make([]int, 0, len(after))
	for t := range after {
		keys = append(keys, int(t))
	}
	slices.Sort(keys)
	for _, t := range keys {
		fmt.Printf("rows of table %d: %d before, %d after\n", t, before[store.Table(t)], after[store.Table(t)])
	}
	if err := errors.Join(wrong...); err != nil {
		return err
	}
	fmt.Printf("flat: %d sessions, none failed\n", s.sessions.Load())
	return nil
}
