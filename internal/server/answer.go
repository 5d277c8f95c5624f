package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Values of headers that are the same for every answer.
var (
	noStore  = []string{"no-store"}
	jsonType = []string{"application/json"}
	closing  = []string{"close"}
)

// answers are buffers for bodies of answers; like those of requests they are cleared before they are used again.
var answers = sync.Pool{New: func() any { b := make([]byte, 0, 4096); return &b }}

// write sends an answer that is ready.
func write(w http.ResponseWriter, a *lessor.Answer, id string) {
	status := a.Status
	if a.Empty() {
		switch {
		case status == 0:
			w.WriteHeader(http.StatusNoContent)
		case status >= 400:
			writeErrors(w, status)
		default:
			w.WriteHeader(status)
		}
		return
	}
	if status == 0 {
		status = http.StatusOK
	}
	if v := a.Lease.Version; v != 0 {
		w.Header()["X-Lessor-Version"] = []string{strconv.FormatUint(v, 10)}
	}
	buffer := answers.Get().(*[]byte)
	*buffer = a.Append(*buffer, id)
	send(w, status, *buffer)
	release(&answers, buffer)
}

// send writes a JSON body. What fails here fails at the client's side.
func send(w http.ResponseWriter, status int, body []byte) {
	header := w.Header()
	header["Content-Type"] = jsonType
	if len(body) >= 2048 { // below, net/http counts
		header["Content-Length"] = []string{strconv.Itoa(len(body))}
	}
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

func writeErrors(w http.ResponseWriter, status int, texts ...string) {
	if texts == nil {
		texts = []string{}
	}
	body := lessor.AppendJSON([]byte(`{"errors":`), texts)
	send(w, status, append(body, '}'))
}

// refuse answers an error whose text is meant for the client.
func (h *Handler) refuse(w http.ResponseWriter, err error) {
	e, ok := errors.AsType[*api.Error](err)
	if !ok {
		e = &api.Error{Kind: api.Internal, Text: "internal error"}
	}
	if e.Text == "" {
		writeErrors(w, e.Kind.Status())
		return
	}
	writeErrors(w, e.Kind.Status(), e.Text)
}

// internal is what a client reads of a fault of lessor's own.
func internal(id string) *api.Error {
	return &api.Error{Kind: api.Internal, Text: "internal error; the server's log tells more under request id " + id}
}

// fail answers the Gate's error. Causes go to the log, never to the client. That a client went away, as each does that ends while it waits for
// events, is no failure.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, op *lessor.Op, err error) {
	kind := api.KindOf(err)
	if r.Context().Err() != nil && (kind == api.Internal || kind == api.Unavailable && errors.Is(cause(err), context.Canceled)) {
		h.refuse(w, &api.Error{Kind: api.Unavailable, Text: "the request was given up by its client"})
		return
	}
	switch kind {
	case api.Internal, api.Uncertain:
		h.log.LogAttrs(r.Context(), slog.LevelError, "request failed", slog.String("request_id", op.ID), slog.String("operation", op.Verb.String()),
			slog.String("kind", kind.String()), slog.Any("cause", cause(err)))
	case api.Upstream, api.Unavailable:
		h.log.LogAttrs(r.Context(), slog.LevelWarn, "request failed", slog.String("request_id", op.ID), slog.String("operation", op.Verb.String()),
			slog.String("kind", kind.String()), slog.Any("cause", cause(err)))
	}
	if kind == api.Internal {
		err = internal(op.ID)
	}
	h.refuse(w, err)
}

// cause is what the log gets of err.
func cause(err error) error {
	if e, ok := errors.AsType[*api.Error](err); ok && e.Cause != nil {
		return e.Cause
	}
	return err
}

// stream sends a body that is made as it goes. A failure before the first byte is an error like any other; after it, the
// connection is broken off, so that the client does not take what it has for the whole.
func (h *Handler) stream(w http.ResponseWriter, r *http.Request, op *lessor.Op, a *lessor.Answer) {
	kind := a.RawType
	if kind == "" {
		kind = "application/octet-stream"
	}
	w.Header()["Content-Type"] = []string{kind}
	s := &stream{w: w, control: http.NewResponseController(w), status: a.Status}
	err := a.Raw(r.Context(), s)
	switch {
	case err == nil:
		s.begin()
	case !s.begun:
		h.fail(w, r, op, err)
	default:
		if r.Context().Err() == nil && !errors.Is(err, errClientGone) {
			h.log.LogAttrs(r.Context(), slog.LevelError, "stream broke off", slog.String("request_id", op.ID), slog.Any("cause", cause(err)))
		}
		panic(http.ErrAbortHandler)
	}
}

const streamPatience = time.Minute // for a client to take what was written

var errClientGone = errors.New("server: the client went away")

type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	status  int
	begun   bool
}

func (s *stream) begin() {
	if s.begun {
		return
	}
	s.begun = true
	if s.status == 0 {
		s.status = http.StatusOK
	}
	s.w.WriteHeader(s.status)
}

func (s *stream) Write(p []byte) (int, error) {
	s.begin()
	_ = s.control.SetWriteDeadline(time.Now().Add(streamPatience))
	n, err := s.w.Write(p)
	if err != nil {
		return n, errClientGone
	}
	return n, nil
}
