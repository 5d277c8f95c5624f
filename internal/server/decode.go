package server

import (
	"errors"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
)

const (
	maxBody     = 32 << 20 // bytes of a request's body
	maxPath     = 4096     // bytes of a path
	maxInstance = 128      // bytes of X-Lessor-Instance

	bodyPatience = 30 * time.Second // for a body of any size to arrive
	bodyRate     = 128 << 10        // bytes a second beyond that
)

// decode turns the request into an Op. help tells that the path is to be described instead. What is large takes a seat, which is
// the caller's to leave.
func (h *Handler) decode(w http.ResponseWriter, r *http.Request, id, path string, now time.Time, s *seat) (op *lessor.Op, help bool, err error) {
	if err := checkNamespace(r.Header["X-Vault-Namespace"]); err != nil {
		return nil, false, err
	}
	op = &lessor.Op{ID: id, Namespace: lessor.RootNamespace, Time: now, Token: token(r.Header)}
	if op.Client, err = h.client(r); err != nil {
		return nil, false, err
	}
	op.Private = r.TLS != nil || local(r)
	if r.TLS != nil {
		op.Certificates = r.TLS.PeerCertificates
	}
	if err := readHeader(op, r.Header); err != nil {
		return nil, false, err
	}
	h.keepHeaders(op, r.Header)
	switch r.Method {
	case http.MethodGet:
		op.Verb = lessor.Read
	case "LIST":
		op.Verb = lessor.List
	case http.MethodPost, http.MethodPut:
		op.Verb = lessor.Update
	case http.MethodPatch:
		op.Verb = lessor.Patch
	case http.MethodDelete:
		op.Verb = lessor.Delete
	default:
		w.Header().Set("Allow", "GET, LIST, POST, PUT, PATCH, DELETE")
		return nil, false, &api.Error{Kind: api.Unsupported, Text: "method not allowed"}
	}
	body := op.Verb == lessor.Update || op.Verb == lessor.Patch
	if op.Verb == lessor.Delete && r.ContentLength > 0 && strings.HasPrefix(path, "sys/rekey") {
		body = true // clients that cancel a rekey send its nonce so
	}
	if !body {
		if help, err = readQuery(op, r.URL.RawQuery); err != nil {
			return nil, false, err
		}
	}
	if op.Path, err = checkPath(path, op.Verb); err != nil {
		return nil, false, err
	}
	again, err := h.admit(w, op, false) // before anything is read
	if err == nil && body {
		op.Data, err = readData(w, r, op.Verb, s)
		op.Time = h.clock.Now() // a token may have ended while the body came
	}
	if err == nil && again {
		_, err = h.admit(w, op, true)
	}
	return op, help, err
}

func checkNamespace(header []string) error {
	if len(header) == 0 {
		return nil
	}
	switch header[0] {
	case "", "/", "root", "root/":
		return nil
	}
	return &api.Error{Kind: api.NotFound, Text: "namespace not found: the root namespace is the only one there is"}
}

func token(header http.Header) lessor.Secret {
	if t := first(header, "X-Vault-Token"); t != "" {
		return lessor.NewSecret(t)
	}
	const bearer = "bearer "
	if a := first(header, "Authorization"); len(a) > len(bearer) && strings.EqualFold(a[:len(bearer)], bearer) {
		return lessor.NewSecret(strings.TrimSpace(a[len(bearer):]))
	}
	return lessor.Secret{}
}

// first is header.Get for a name that is in canonical form.
func first(header http.Header, name string) string {
	if v := header[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// readHeader reads the headers that say how to answer and whom.
func readHeader(op *lessor.Op, header http.Header) error {
	if text := first(header, "X-Vault-Wrap-Ttl"); text != "" {
		ttl, ok := engine.ParseDuration(text)
		if !ok {
			return &api.Error{Kind: api.Invalid, Text: "X-Vault-Wrap-TTL is not a duration: write seconds, or 90s, 5m, 1h"}
		}
		op.WrapTTL = ttl
	}
	op.Accept = first(header, "Accept")
	if op.Instance = first(header, "X-Lessor-Instance"); len(op.Instance) > maxInstance || !printable(op.Instance) {
		return &api.Error{Kind: api.Invalid, Text: "X-Lessor-Instance must be at most 128 bytes of printable text"}
	}
	switch first(header, "X-Lessor-Lease") {
	case "":
	case "renewable":
		op.Renewable = true
	default:
		return &api.Error{Kind: api.Invalid, Text: `X-Lessor-Lease may only be "renewable"`}
	}
	return nil
}

// keepHeaders takes over the headers that the audit trail keeps.
func (h *Handler) keepHeaders(op *lessor.Op, header http.Header) {
	for _, name := range h.gate.Headers() {
		if values := header.Values(name); len(values) > 0 {
			if op.Headers == nil {
				op.Headers = map[string]string{}
			}
			op.Headers[name] = strings.ToValidUTF8(strings.Join(values, ", "), "\ufffd")
		}
	}
}

// local reports whether r came over a connection from this machine.
func local(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && peer.Addr().Unmap().IsLoopback()
}

// client is the address that asks: the peer's or, if that is a trusted proxy, the last one in X-Forwarded-For that is not.
func (h *Handler) client(r *http.Request) (netip.Addr, error) {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}, nil // no TCP peer
	}
	addr := peer.Addr().Unmap().WithZone("")
	if len(h.proxies) == 0 || !h.trusted(addr) {
		return addr, nil
	}
	lines := r.Header["X-Forwarded-For"]
	for i := len(lines) - 1; i >= 0; i-- {
		for rest := lines[i]; rest != ""; {
			hop := rest
			if comma := strings.LastIndexByte(rest, ','); comma >= 0 {
				rest, hop = rest[:comma], rest[comma+1:]
			} else {
				rest = ""
			}
			a, err := forwarded(strings.TrimSpace(hop))
			if err != nil {
				return netip.Addr{}, &api.Error{Kind: api.Invalid, Text: "X-Forwarded-For, as set by a trusted proxy, is not a list of addresses"}
			}
			if addr = a; !h.trusted(addr) {
				return addr, nil
			}
		}
	}
	return addr, nil
}

func (h *Handler) trusted(a netip.Addr) bool {
	for _, p := range h.proxies {
		if p.Contains(a.WithZone("")) {
			return true
		}
	}
	return false
}

// forwarded reads one entry of X-Forwarded-For; some proxies write a port behind the address.
func forwarded(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil {
		ap, err := netip.ParseAddrPort(text)
		return ap.Addr().Unmap().WithZone(""), err
	}
	return a.Unmap().WithZone(""), nil
}

// checkPath accepts a path that says one thing only: what policy judges is what engines see. A List path ends in one
// slash; elsewhere a slash at the end says nothing and is taken off before anybody judges.
func checkPath(path string, verb lessor.Verb) (string, error) {
	if len(path) > maxPath {
		return "", &api.Error{Kind: api.Invalid, Text: "path is longer than " + strconv.Itoa(maxPath) + " bytes"}
	}
	if !printable(path) {
		return "", &api.Error{Kind: api.Invalid, Text: "path must only contain printable characters"}
	}
	bare := strings.TrimSuffix(path, "/")
	for start := 0; start <= len(bare); {
		end := strings.IndexByte(bare[start:], '/')
		if end < 0 {
			end = len(bare) - start
		}
		switch bare[start : start+end] {
		case "":
			return "", &api.Error{Kind: api.Invalid, Text: "path has an empty segment (//)"}
		case ".", "..":
			return "", &api.Error{Kind: api.Invalid, Text: "path cannot contain . or .. as a segment"}
		}
		start += end + 1
	}
	if verb != lessor.List {
		return bare, nil
	}
	if len(bare) < len(path) {
		return path, nil
	}
	return path + "/", nil
}

// printable reports whether s is valid UTF-8 without control characters and their like.
func printable(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c > 0x7e {
			return printableRunes(s[i:])
		}
	}
	return true
}

func printableRunes(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

// readQuery reads the parameters of a request without a body into op.Data. GET ?list=true is List.
func readQuery(op *lessor.Op, raw string) (help bool, err error) {
	if raw == "" {
		return false, nil
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return false, &api.Error{Kind: api.Invalid, Text: "the query cannot be parsed"}
	}
	_, help = values["help"]
	delete(values, "help")
	if list := values.Get("list"); list != "" && op.Verb == lessor.Read {
		yes, err := strconv.ParseBool(list)
		if err != nil {
			return false, &api.Error{Kind: api.Invalid, Text: "the query parameter list must be true or false"}
		}
		if yes {
			op.Verb = lessor.List
		}
	}
	if op.Verb == lessor.Read || op.Verb == lessor.List {
		delete(values, "list")
	}
	op.Data, err = fields(values)
	return help, err
}

// fields makes data of form or query values: a string, or a list where a name is given more than once.
func fields(values url.Values) (map[string]any, error) {
	if len(values) == 0 {
		return nil, nil
	}
	data := make(map[string]any, len(values))
	for name, v := range values {
		if !utf8.ValidString(name) {
			return nil, errNotUTF8
		}
		list := make([]any, len(v))
		for i, s := range v {
			if !utf8.ValidString(s) {
				return nil, errNotUTF8
			}
			list[i] = s
		}
		if len(list) == 1 {
			data[name] = list[0]
		} else {
			data[name] = list
		}
	}
	return data, nil
}

var errNotUTF8 = &api.Error{Kind: api.Invalid, Text: "parameters must be valid UTF-8: encode binary values, as base64 for example"}

// readData reads the body's object: JSON, or a form.
func readData(w http.ResponseWriter, r *http.Request, verb lessor.Verb, s *seat) (map[string]any, error) {
	kind, _, _ := strings.Cut(first(r.Header, "Content-Type"), ";")
	kind = strings.TrimSpace(kind)
	if verb == lessor.Patch && !strings.EqualFold(kind, "application/merge-patch+json") {
		return nil, &api.Error{Kind: api.MediaType, Text: "PATCH requires Content-Type of application/merge-patch+json"}
	}
	if r.ContentLength == 0 {
		return nil, nil
	}
	buffer := bodies.Get().(*[]byte)
	defer release(&bodies, buffer)
	err := readBody(w, r, buffer, s)
	if err != nil {
		return nil, err
	}
	body := *buffer
	if strings.EqualFold(kind, "application/x-www-form-urlencoded") && !looksLikeJSON(body) {
		values, err := url.ParseQuery(string(body))
		if err != nil {
			return nil, &api.Error{Kind: api.Invalid, Text: "the form in the body cannot be parsed"}
		}
		return fields(values)
	}
	return parseObject(body)
}

// looksLikeJSON tells JSON that is announced as a form, as curl -d does, from a form.
func looksLikeJSON(body []byte) bool {
	for _, c := range body {
		switch c {
		case ' ', '\t', '\r', '\n':
		case '{', '[':
			return true
		default:
			return false
		}
	}
	return true
}

// bodies are buffers for requests; they hold secrets and are cleared before they are used again.
var bodies = sync.Pool{New: func() any { b := make([]byte, 0, 4096); return &b }}

const keepBuffer = 64 << 10 // larger buffers are left to the garbage collector

func release(pool *sync.Pool, buffer *[]byte) {
	clear(*buffer)
	if cap(*buffer) <= keepBuffer {
		*buffer = (*buffer)[:0]
		pool.Put(buffer)
	}
}

// hurry gives the body a time by which it must have arrived, whoever reads it: decode, or net/http when it takes the rest of
// a body that nobody wanted off the connection.
func hurry(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(patience(r)))
	}
}

func patience(r *http.Request) time.Duration {
	size := r.ContentLength
	if size < 0 || size > maxBody {
		size = maxBody
	}
	return bodyPatience + time.Duration(size)*time.Second/bodyRate
}

// readBody reads the whole body into buffer. One beyond maxBody is given up.
func readBody(w http.ResponseWriter, r *http.Request, buffer *[]byte, s *seat) error {
	if r.ContentLength > maxBody {
		return errBodyTooLarge
	}
	b := *buffer
	defer func() { *buffer = b }()
	for {
		if len(b) == cap(b) {
			grown := make([]byte, len(b), 2*cap(b))
			copy(grown, b)
			clear(b)
			b = grown
		}
		n, err := r.Body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case len(b) > maxBody:
			return errBodyTooLarge
		case err == io.EOF:
			_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return &api.Error{Kind: api.Invalid, Text: "the body arrived too slowly"}
		case err != nil:
			return &api.Error{Kind: api.Invalid, Text: "the body ended before it was complete"}
		}
		if !s.take(r, len(b)) {
			return &api.Error{Kind: api.Unavailable, Text: "too many large requests at once: try again"}
		}
	}
}

var errBodyTooLarge = &api.Error{Kind: api.TooLarge, Text: "the body is larger than 32 MiB"}
