package agent

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/client"
)

// cache has what was read through the agent under a lease. A credential that was made for a reader is the answer to the same question, by the same
// token, for as long as its lease can be renewed, which the cache does: so that who asks again has no second one. All else is asked anew, and answered from here only while the
// server is away, until its lease ends. What it has is encrypted.
type cache struct {
	ctx    context.Context // of the renewals
	server *client.Client
	log    *slog.Logger
	box    *box
	busy   sync.WaitGroup

	room    int // bytes that answers may take, sealed as they are
	mu      sync.Mutex
	entries map[[sha256.Size]byte]*entry
	size    int // bytes that they take
}

// entry is one question, and its answer if there is one, which belongs to the cache's lock.
type entry struct {
	key    [sha256.Size]byte
	asking chan struct{} // held by who asks the server; holds one

	sealed  []byte // nonce and answer, never changed; nil: none
	kind    string // Content-Type
	given   time.Time
	expires time.Time // of the lease
	serves  bool      // it is an answer though the server is there
}

// largest bounds an answer that is kept, most how many are, cacheSize the bytes that they take together if nothing else is configured.
const (
	largest   = 1 << 20
	most      = 10_000
	cacheSize = 64 << 20
)

func newCache(ctx context.Context, server *client.Client, b *box, room int, log *slog.Logger) *cache {
	return &cache{ctx: ctx, server: server, log: log, box: b, room: room, entries: map[[sha256.Size]byte]*entry{}}
}

// question tells questions apart; ok says whether its answer may be kept: it reads, and nothing of the server itself.
func question(r *http.Request) (key [sha256.Size]byte, ok bool) {
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	if r.Method != http.MethodGet || r.Header.Get("X-Vault-Wrap-TTL") != "" || strings.HasPrefix(path, "sys/") || strings.HasPrefix(path, "auth/") {
		return key, false
	}
	h := sha256.New()
	for _, part := range []string{
		r.URL.RequestURI(), r.Header.Get("X-Vault-Token"), r.Header.Get("Authorization"), r.Header.Get("X-Vault-Namespace"), r.Header.Get("X-Lessor-Instance"),
		r.Header.Get("X-Lessor-Lease"),
	} {
		_, _ = h.Write([]byte(strconv.Itoa(len(part)) + ":" + part))
	}
	return [sha256.Size]byte(h.Sum(nil)), true
}

// around answers from the cache, or else by onward. Requests have the token that they are asked with.
func (c *cache) around(onward http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, ok := question(r)
		if !ok {
			c.pass(w, r, onward)
			return
		}
		e := c.entry(key)
		select {
		case e.asking <- struct{}{}: // many who ask at once have one credential
		case <-r.Context().Done():
			return
		}
		release := sync.OnceFunc(func() { <-e.asking }) // before anything is sent: who does not read it holds up nobody
		defer release()
		if kept := c.answer(e, false); kept != nil {
			release()
			kept.copyTo(w)
			return
		}
		got := &recorded{header: http.Header{"X-Cache": {"MISS"}}, status: http.StatusOK, to: w, full: release}
		onward.ServeHTTP(got, r)
		if got.passed {
			return
		}
		if got.status == http.StatusBadGateway || got.status == http.StatusServiceUnavailable {
			if kept := c.answer(e, true); kept != nil {
				got = kept
			}
		} else if got.status == http.StatusOK {
			c.keep(e, got, r)
		}
		release()
		got.copyTo(w)
	})
}

// pass passes on what is no question. What may have ended leases has nothing kept any more; a refusal has ended none, so that who may not end anything takes nothing from others.
func (c *cache) pass(w http.ResponseWriter, r *http.Request, onward http.Handler) {
	if r.Method == http.MethodGet || r.Method == "LIST" || !ends(r.URL.Path) {
		onward.ServeHTTP(w, r)
		return
	}
	noted := &noted{ResponseWriter: w}
	defer func() { // though the answer could not be sent
		if noted.status < 400 || noted.status >= 500 {
			c.clear()
		}
	}()
	onward.ServeHTTP(noted, r)
}

// ends reports whether a write to the path may end leases: what is kept may be over then.
func ends(path string) bool {
	return strings.Contains(path, "revoke") || strings.Contains(path, "release") || strings.Contains(path, "supersede")
}

func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries {
		c.drop(e)
	}
	clear(c.entries)
}

// drop does away with an entry's answer. c.mu is held.
func (c *cache) drop(e *entry) {
	c.size -= len(e.sealed)
	e.sealed, e.serves = nil, false
}

func (c *cache) entry(key [sha256.Size]byte) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[key]
	if e == nil {
		if len(c.entries) >= most {
			for key, old := range c.entries {
				if old.over() {
					c.drop(old)
					delete(c.entries, key)
				}
			}
		}
		e = &entry{key: key, asking: make(chan struct{}, 1)}
		if len(c.entries) < most {
			c.entries[key] = e
		}
	}
	return e
}

// over reports whether there is no answer that is good for anything.
func (e *entry) over() bool { return e.sealed == nil || !time.Now().Before(e.expires) }

// answer is what is kept, if it is good as an answer; nil: it is not.
func (c *cache) answer(e *entry, away bool) *recorded {
	c.mu.Lock()
	if e.over() || !e.serves && !away {
		c.mu.Unlock()
		return nil
	}
	sealed, kind, given := e.sealed, e.kind, e.given
	c.mu.Unlock()
	kept := &recorded{header: http.Header{}, status: http.StatusOK}
	kept.header.Set("Content-Type", kind)
	kept.header.Set("X-Cache", "HIT")
	kept.header.Set("Age", strconv.FormatInt(int64(time.Since(given)/time.Second), 10))
	kept.body = c.box.Open(sealed)
	return kept
}

// makeRoom reports whether there is room for n bytes more, once what is over is gone, and then, if it must be, what serves only while the server is away, the oldest first. A credential makes no room
// for another: whoever asks for it again would have a second one. c.mu is held.
func (c *cache) makeRoom(n int) bool {
	if c.size+n <= c.room {
		return true
	}
	var spare []*entry
	for _, e := range c.entries {
		switch {
		case e.over():
			c.drop(e)
		case !e.serves:
			spare = append(spare, e)
		}
	}
	slices.SortFunc(spare, func(a, b *entry) int { return a.given.Compare(b.given) })
	for _, e := range spare {
		if c.size+n <= c.room {
			break
		}
		c.drop(e)
	}
	return c.size+n <= c.room
}

// keep keeps an answer that has a lease, and renews that of a credential.
func (c *cache) keep(e *entry, got *recorded, r *http.Request) {
	var answer struct {
		Lease     string `json:"lease_id"`
		Duration  int64  `json:"lease_duration"` // seconds
		Renewable bool   `json:"renewable"`
	}
	if json.Unmarshal(got.body, &answer) != nil || answer.Lease == "" || answer.Duration <= 0 {
		return
	}
	ttl := time.Duration(answer.Duration) * time.Second
	dynamic := answer.Renewable && got.header.Get("X-Lessor-Version") == ""
	now := time.Now()
	sealed := c.box.Seal(got.body)
	c.mu.Lock()
	c.drop(e)
	kept := c.entries[e.key] == e && c.makeRoom(len(sealed)) // else nobody would find it, or it is too much
	if kept {
		e.sealed, e.kind, e.given, e.expires, e.serves = sealed, got.header.Get("Content-Type"), now, now.Add(ttl), dynamic
		c.size += len(sealed)
	}
	c.mu.Unlock()
	if kept && dynamic {
		as := c.server.WithToken(client.NewToken(r.Header.Get("X-Vault-Token")))
		if instance := r.Header.Get("X-Lessor-Instance"); instance != "" {
			as = as.WithInstance(instance)
		}
		c.busy.Go(func() { c.renew(e, as, answer.Lease, now, ttl) })
	}
}

// renew renews the lease of a kept credential until it can be renewed no more, or the entry has another: from then on the question is asked anew.
func (c *cache) renew(e *entry, as *client.Client, lease string, given time.Time, full time.Duration) {
	due := given.Add(full * 2 / 3)
	for failures := 0; ; {
		select {
		case <-c.ctx.Done():
			return
		case <-time.After(time.Until(due)):
		}
		c.mu.Lock()
		mine, expires := e.sealed != nil && e.given.Equal(given), e.expires
		c.mu.Unlock()
		if !mine || !time.Now().Before(expires) {
			return
		}
		asked := time.Now()
		answer, err := as.Write(c.ctx, "sys/leases/renew", map[string]any{"lease_id": lease, "increment": int64(full / time.Second)})
		if err != nil && !client.IsStatus(err, http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound) {
			failures++
			due = time.Now().Add(backoff(failures))
			continue
		}
		failures = 0
		c.mu.Lock()
		if e.sealed != nil && e.given.Equal(given) {
			switch {
			case err != nil: // it is over
				c.drop(e)
			default:
				ttl := time.Duration(answer.LeaseDuration) * time.Second
				e.expires, due = asked.Add(ttl), asked.Add(ttl*2/3)
				e.serves = ttl >= full*9/10 // else there is not much more to come
			}
		}
		ended := !e.serves
		c.mu.Unlock()
		if ended {
			return
		}
	}
}

// recorded is an answer that is looked at before it is passed on. One that is too large to be kept is passed on as it comes.
type recorded struct {
	header http.Header
	status int
	body   []byte

	to     http.ResponseWriter // who asks; nil: nothing is passed on, and what is too large is an error
	full   func()              // is called before anything is passed on as it comes
	passed bool                // all that there is so far was
}

var errLarge = errors.New("the answer is larger than is to be looked at")

func (r *recorded) Header() http.Header    { return r.header }
func (r *recorded) WriteHeader(status int) { r.status = status }

func (r *recorded) Write(b []byte) (int, error) {
	if !r.passed && len(r.body)+len(b) > largest {
		if r.to == nil {
			return 0, errLarge
		}
		r.full()
		r.copyTo(r.to)
		r.passed = true
	}
	if r.passed {
		return r.to.Write(b)
	}
	r.body = append(r.body, b...)
	return len(b), nil
}

// copyTo sends the answer, and overwrites what it was.
func (r *recorded) copyTo(w http.ResponseWriter) {
	defer func() { clear(r.body) }()
	for name, values := range r.header {
		w.Header()[name] = values
	}
	w.WriteHeader(r.status)
	_, _ = w.Write(r.body)
}

// noted is an answer whose status is looked at while it is passed on.
type noted struct {
	http.ResponseWriter
	status int
}

func (n *noted) WriteHeader(status int) {
	n.status = status
	n.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (n *noted) Unwrap() http.ResponseWriter { return n.ResponseWriter }
