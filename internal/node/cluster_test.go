package node

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
)

// on starts a node of the place on a database, under a name and with a key file of that name's.
func (p *place) on(url, name string) (*running, error) {
	p.Helper()
	c := p.config("-key-file", p.keyAt(name), "-node-name", name)
	c.Storage = config.Storage{Type: config.PostgreSQL, ConnectionURL: lessor.NewSecret(url)}
	c.DrainDelay = 0
	n, err := Start(p.Context(), c, p.o)
	if err != nil {
		return nil, err
	}
	r := &running{p, n, n.Root.Reveal(), &http.Client{Timeout: time.Minute}}
	p.Cleanup(r.stop)
	return r, nil
}

func (p *place) keyAt(name string) string { return filepath.Join(p.dir, name, "seal.key") }

// eventually waits until ok, half a minute at most.
func (p *place) eventually(what string, ok func() bool) {
	p.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.Fatalf("%s: not within half a minute; the log:\n%s", what, p.log)
		}
	}
}

func (r *running) health() int {
	r.Helper()
	status, _, err := r.tryAsk("GET", "sys/health", "")
	if err != nil {
		r.Fatal(err)
	}
	return status
}

// A node outlives the death of its database: it says so while that is away, refuses what it cannot do at once or within bounds, and
// serves again by itself when the database is back, also where the outcome of a commit had stayed unknown.
func TestTheDatabaseComesBack(t *testing.T) {
	t.Parallel()
	server := pgtest.Own(t, pgtest.Fsync())
	p := newPlace(t)
	r, err := p.on(server.URL(pgtest.Superuser, server.Password(), server.Database(t)), "one")
	p.do(err)
	r.fill()
	before := r.db.Self()

	// Streams of writes, so that one is under way when the database dies.
	stop := make(chan struct{})
	var writers sync.WaitGroup
	var counts sync.Map // by status
	count := func(status int) *atomic.Int64 {
		n, _ := counts.LoadOrStore(status, new(atomic.Int64))
		return n.(*atomic.Int64)
	}
	for w := range 8 {
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				began := time.Now()
				status, answer, err := r.tryAsk("POST", fmt.Sprintf("secret/data/n%d/%d", w, i), `{"data":{"x":"y"}}`)
				if err != nil {
					t.Errorf("a write: %v", err)
					return
				}
				if took := time.Since(began); took > 30*time.Second {
					t.Errorf("a write took %s", took)
				}
				if count(status).Add(1); status == 500 && !strings.Contains(fmt.Sprint(answer), "unknown") {
					t.Errorf("a write: %v", answer)
				}
				if status != 200 {
					time.Sleep(50 * time.Millisecond)
				}
			}
		})
	}
	p.eventually("writing", func() bool { status, _ := r.ask("GET", "secret/data/n3/9", ""); return status == 200 })
	p.do(server.Kill())
	p.eventually("the health check fails", func() bool { return r.health() == 503 })
	p.eventually("writes are refused", func() bool { return count(503).Load() > 0 || count(500).Load() > 0 })
	if r.Fault() != nil {
		t.Fatalf("the process would end: %v", r.Fault())
	}
	p.do(server.Up())
	p.eventually("the node serves again", func() bool {
		status, _ := r.ask("POST", "secret/data/after", `{"data":{"x":"y"}}`)
		return status == 200 && r.health() == 200
	})
	close(stop)
	writers.Wait()
	r.checkFilled()
	if again := r.db.Self() != before; count(500).Load() > 0 && !again {
		t.Error("the store was not opened anew, though an outcome was unknown")
	} else if text := r.metrics(); again && !strings.Contains(text, "\nlessor_store_revivals_total 1\n") {
		t.Errorf("the metrics do not tell of the revival:\n%s", text)
	}
}
