// Package server speaks Vault's wire protocol over HTTP. It decodes a request into a lessor.Op, hands it to the Gate
// and writes what the Gate answers; it decides nothing and keeps no state but whether it is draining.
//
// The walk of one request: Handler.ServeHTTP → decode (path, headers, body) → Gate.Handle → answer. Only the four
// questions that have no secret in their answer (sys/health, sys/seal-status, sys/leader, sys/init) are answered here. What
// changes the seal without a token (sys/unseal, sys/rekey, …) is the Gate's like all else.
package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Gate is what stands behind the wire. Calls are concurrent. Errors are *api.Error; others count as Internal.
type Gate interface {
	// Admit says, of an op of which only path, client, token and headers are known yet (data is false), whether rate limits let it
	// through. header goes onto the answer in any case. again asks to be asked once more when the data is there.
	Admit(op *lessor.Op, data bool) (header [][2]string, again bool, err error)
	// Handle executes op. An answer means that its audit record is durable.
	Handle(ctx context.Context, op *lessor.Op) (*lessor.Answer, error)
	// Help describes the path of op (?help=1).
	Help(ctx context.Context, op *lessor.Op) (*lessor.Answer, error)
	// Status is the node's state; it must not block.
	Status() Status
	// Headers names the request headers that go into an Op, in lower case. It is asked for each request.
	Headers() []string
	// CORS is which web pages of other origins may read answers.
	CORS() CORS
}

// Status is what anybody may know about a node.
type Status struct {
	Initialized bool
	Sealed      bool
	Away        bool      // the store cannot be reached, or is being opened anew: the node serves nothing meanwhile
	Shared      bool      // other nodes work on the store, too; all of them are active
	Address     string    // URL of this node
	Since       time.Time // when it became active; zero: it is not
	Fenced      bool      // a restored copy that touches no target yet
	ClusterID   string
	ClusterName string
	Reported    string // the version that Vault's clients compare with, "1.20.0"
	Version     string // lessor's own
	Storage     string // "pebble", "mem", "postgresql"
	Seal        string // "keyfile", "shamir"
	Threshold   int    // keys that unseal
	Shares      int    // keys that were made
	Progress    int    // different keys given so far to a node that is sealed
	Nonce       string // of that attempt
}

// Options are what a Handler works with. Gate is required.
type Options struct {
	Gate    Gate
	Clock   lessor.Clock   // nil: the machine's
	Random  io.Reader      // source of request ids; its reads are concurrent; nil: crypto/rand
	Log     *slog.Logger   // never receives a secret; nil: none
	Proxies []netip.Prefix // peers whose X-Forwarded-For is believed
}

// Handler is the HTTP interface of one listener.
type Handler struct {
	gate     Gate
	clock    lessor.Clock
	random   io.Reader
	log      *slog.Logger
	proxies  []netip.Prefix
	taken    taken
	draining atomic.Bool
	active   atomic.Int64 // requests under way
	flights  flights
	insisted insistence
}

// New makes a Handler.
func New(o Options) *Handler {
	if o.Clock == nil {
		o.Clock = lessor.SystemClock{}
	}
	if o.Random == nil {
		o.Random = rand.Reader
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Handler{
		gate: o.Gate, clock: o.Clock, random: o.Random, log: o.Log, proxies: o.Proxies,
		taken: newTaken(),
	}
}

// Retire makes the health check fail, and asks the clients on connections that there are to make new ones, elsewhere. What they ask
// is answered all the same.
func (h *Handler) Retire() { h.draining.Store(true) }

// Drain retires the Handler, and returns when no request is under way, or with ctx's error. The caller takes no new connections any
// more, so that each of those that there are brings one more request at most.
func (h *Handler) Drain(ctx context.Context) error {
	h.Retire()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for h.active.Load() > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	hurry(w, r)
	header := w.Header()
	header["Cache-Control"] = noStore
	if ns := r.Header["X-Vault-Namespace"]; ns != nil {
		header["X-Vault-Namespace"] = ns
	}
	path, versioned := strings.CutPrefix(r.URL.Path, "/v1/")
	if !versioned || path == "" {
		h.refuse(w, &api.Error{Kind: api.NotFound, Text: "lessor's API begins at /v1/"})
		return
	}
	h.active.Add(1)
	defer h.active.Add(-1)
	if origin := r.Header["Origin"]; origin != nil && h.cross(w, r, origin[0]) {
		return
	}
	if h.draining.Load() {
		header["Connection"] = closing
	}
	if answer := answerer(r, path); answer != nil {
		if err := h.admitPublic(w, r, path); err != nil {
			h.refuse(w, err)
			return
		}
		answer(h, w, r)
		return
	}

	id := h.requestID()
	start := h.clock.Now()
	defer h.survive(w, r, id)
	seat := seat{taken: &h.taken}
	defer seat.leave()
	op, help, err := h.decode(w, r, id, path, start, &seat)
	if err != nil {
		h.refuse(w, err)
		return
	}
	defer h.flights.begin(op)()
	var answer *lessor.Answer
	if help {
		answer, err = h.gate.Help(r.Context(), op)
	} else {
		answer, err = h.gate.Handle(r.Context(), op)
	}
	switch {
	case err != nil:
		h.insisted.hold(r.Context(), op, err, start)
		h.fail(w, r, op, err)
	case answer.Raw != nil:
		h.stream(w, r, op, answer)
	case answer.Feed != nil:
		h.converse(w, r, op, answer.Feed)
	case op.Path == "sys/unseal" && !help:
		h.sendStatus(w)
	default:
		write(w, answer, id)
	}
	if h.log.Enabled(r.Context(), slog.LevelDebug) {
		h.log.LogAttrs(r.Context(), slog.LevelDebug, "request", slog.String("request_id", id), slog.String("operation", op.Verb.String()),
			slog.Duration("took", h.clock.Now().Sub(start)), slog.String("client", op.Client.String()))
	}
}

// admit asks the rate limits.
func (h *Handler) admit(w http.ResponseWriter, op *lessor.Op, data bool) (again bool, err error) {
	header, again, err := h.gate.Admit(op, data)
	for _, line := range header {
		w.Header()[line[0]] = []string{line[1]}
	}
	return again, err
}

// admitPublic asks the rate limits about a path that the Gate does not see.
func (h *Handler) admitPublic(w http.ResponseWriter, r *http.Request, path string) error {
	client, err := h.client(r)
	if err != nil {
		return err
	}
	_, err = h.admit(w, &lessor.Op{Verb: lessor.Read, Namespace: lessor.RootNamespace, Path: path, Client: client, Time: h.clock.Now()}, false)
	return err
}

// requestID makes a random UUID (version 4).
func (h *Handler) requestID() string {
	var u [16]byte
	if _, err := io.ReadFull(h.random, u[:]); err != nil {
		panic("server: the source of randomness failed")
	}
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	var s [36]byte
	hex.Encode(s[:8], u[:4])
	hex.Encode(s[9:13], u[4:6])
	hex.Encode(s[14:18], u[6:8])
	hex.Encode(s[19:23], u[8:10])
	hex.Encode(s[24:], u[10:])
	s[8], s[13], s[18], s[23] = '-', '-', '-', '-'
	return string(s[:])
}

// survive turns a panic of one request into an Internal error.
func (h *Handler) survive(w http.ResponseWriter, r *http.Request, id string) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler {
		panic(p)
	}
	h.log.ErrorContext(r.Context(), "request panicked", "request_id", id, lessor.Recovered(p))
	h.refuse(w, internal(id))
}

// NewHTTP makes the http.Server of one listener, with limits that keep slow or greedy peers from holding on to it.
// Bodies have their own deadline (see hurry); an answer that is not taken within five minutes is dropped, a stream
// after one minute without progress.
func NewHTTP(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		WriteTimeout:      5 * time.Minute,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 100},
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}
