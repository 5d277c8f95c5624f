package exporter

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// entry is a record as a line tells it, read back: what Vault's audit entries have, as far as lessor has the fact, and in "lessor" the rest.
// There is one entry for an act, of type "response"; an act on a target has a "request" before it is touched, and a
// "response" once it answered.
type entry struct {
	Time     string    `json:"time"`
	Type     string    `json:"type"`
	Auth     *auth     `json:"auth,omitempty"`
	Request  request   `json:"request"`
	Response *response `json:"response,omitempty"`
	Error    string    `json:"error,omitempty"`
	Lessor   extra     `json:"lessor"`
}

type auth struct {
	Accessor    string   `json:"accessor,omitempty"`
	DisplayName string   `json:"display_name,omitempty"`
	EntityID    string   `json:"entity_id,omitempty"`
	Results     *results `json:"policy_results,omitempty"`
}

type results struct {
	Allowed  bool       `json:"allowed"`
	Granting []granting `json:"granting_policies,omitempty"`
}

type granting struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace_id"`
	Type      string `json:"type"`
}

type request struct {
	ID            string              `json:"id,omitempty"`
	Operation     string              `json:"operation"`
	Path          string              `json:"path,omitempty"`
	Namespace     namespace           `json:"namespace"`
	MountPoint    string              `json:"mount_point,omitempty"`
	MountType     string              `json:"mount_type,omitempty"`
	MountAccessor string              `json:"mount_accessor,omitempty"`
	MountClass    string              `json:"mount_class,omitempty"`
	Accessor      string              `json:"client_token_accessor,omitempty"`
	RemoteAddress string              `json:"remote_address,omitempty"`
	Headers       map[string][]string `json:"headers,omitempty"`
}

type namespace struct {
	ID string `json:"id"`
}

type response struct {
	MountPoint    string  `json:"mount_point,omitempty"`
	MountType     string  `json:"mount_type,omitempty"`
	MountAccessor string  `json:"mount_accessor,omitempty"`
	MountClass    string  `json:"mount_class,omitempty"`
	Secret        *leased `json:"secret,omitempty"`
}

type leased struct {
	ID string `json:"lease_id"`
}

// extra is what only lessor tells: first of all where the record is in the chain, and the hash of its commit's header, by which a
// copy is checked against the chain.
type extra struct {
	Device        string   `json:"device"`
	Incarnation   uint64   `json:"incarnation"`
	Sequence      uint64   `json:"sequence"`
	Index         uint32   `json:"index"`
	Count         uint32   `json:"count"` // records of the commit
	Header        string   `json:"header"`
	Committed     string   `json:"committed"`
	Node          string   `json:"node,omitempty"`
	Phase         string   `json:"phase"`
	Allowed       bool     `json:"allowed"`
	Rule          string   `json:"rule,omitempty"`
	Policy        string   `json:"policy,omitempty"`
	PolicyVersion uint64   `json:"policy_version,omitempty"`
	ErrorKind     string   `json:"error_kind,omitempty"`
	Alias         string   `json:"alias,omitempty"`
	Role          string   `json:"role,omitempty"`
	Groups        []string `json:"groups,omitempty"`
	Instance      string   `json:"instance,omitempty"`
	System        string   `json:"system,omitempty"`
	Cause         string   `json:"cause,omitempty"`
	Approvals     []string `json:"approvals,omitempty"`
	Lease         string   `json:"lease_id,omitempty"`
	Owner         string   `json:"owner,omitempty"`
	Note          string   `json:"note,omitempty"`
	Acts          uint64   `json:"acts,omitempty"`
	Tombstone     string   `json:"tombstone,omitempty"`
	Secrets       []shown  `json:"secrets,omitempty"`
	Cut           bool     `json:"cut,omitempty"` // the line was too long for its datagram: ask the trail for the rest
}

type shown struct {
	Path        string `json:"path"`
	Version     uint64 `json:"version,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"`
	How         string `json:"how"`
}

// place is where a record is in the chain. A restore counts the incarnation up and the sequence back.
type place struct {
	incarnation, sequence uint64
	index                 uint32
}

// after reports whether p comes after q.
func (p place) after(q place) bool {
	switch {
	case p.incarnation != q.incarnation:
		return p.incarnation > q.incarnation
	case p.sequence != q.sequence:
		return p.sequence > q.sequence
	}
	return p.index > q.index
}

// writer writes the lines of one device. It is for one goroutine at a time.
type writer struct {
	device *Device
	set    *settings
	keys   Keys
	mounts *mount.Table // for what was mounted where; may be nil
	hashes map[string]string
}

// mostHashes bounds what a writer remembers.
const mostHashes = 4096

// accessor is what the device says of an accessor.
func (w *writer) accessor(s string) string {
	if s == "" || !w.set.accessors {
		return s
	}
	h, ok := w.hashes[s]
	if !ok {
		if len(w.hashes) >= mostHashes || w.hashes == nil {
			w.hashes = map[string]string{}
		}
		h = w.device.Hash(w.keys, s)
		w.hashes[s] = h
	}
	return h
}

// append appends the line of a record of a commit. It writes what entry reads.
func (w *writer) append(b []byte, c *store.Commit, r *audit.At) []byte {
	start := len(b)
	b = append(b, w.set.prefix...)
	l := line{append(b, '{')}
	begun := r.Phase == audit.Begun
	kind := "response"
	if begun {
		kind = "request"
	}
	l.moment("time", r.Time)
	l.text("type", kind)
	accessor := w.accessor(r.Accessor)
	if r.Accessor != "" || r.Name != "" || r.Entity != "" {
		l.open("auth")
		l.text("accessor", accessor)
		l.text("display_name", r.Name)
		l.text("entity_id", r.Entity)
		l.open("policy_results")
		l.truth("allowed", r.Granted)
		if r.Granted && r.Policy != "" {
			l.name("granting_policies")
			l.b = append(l.b, "[{"...)
			l.text("name", r.Policy)
			l.text("namespace_id", rootNamespace)
			l.text("type", "acl")
			l.b = append(l.b, "}]"...)
		}
		l.close()
		l.close()
	}
	var at *mount.Entry
	if w.mounts != nil {
		if at, _ = w.mounts.Route(r.Path); at != nil && at.Created.After(r.Time) {
			at = nil
		}
	}
	l.open("request")
	l.text("id", r.Request)
	l.name("operation")
	l.b = lessor.AppendString(l.b, r.Operation)
	l.text("path", r.Path)
	l.open("namespace")
	l.text("id", rootNamespace)
	l.close()
	l.mount(at)
	l.text("client_token_accessor", accessor)
	l.text("remote_address", r.Client)
	w.headers(&l, r.Headers)
	l.close()
	if !begun {
		l.open("response")
		l.mount(at)
		if r.Lease != "" {
			l.open("secret")
			l.text("lease_id", r.Lease)
			l.close()
		}
		l.close()
	}
	l.text("error", failure(r.ErrorKind))
	w.own(&l, c, r)
	l.b = append(l.b, "}\n"...)
	return harmless(l.b, start+len(w.set.prefix))
}

// rootNamespace is the id of the root namespace, as Vault has it.
const rootNamespace = "root"

// headers adds the request's headers.
func (w *writer) headers(l *line, all []audit.Heading) {
	if len(all) == 0 {
		return
	}
	l.open("headers")
	for _, h := range all {
		value := h.Value
		if h.Digest != nil {
			value = w.device.rehash(w.keys, h.Digest)
		}
		if l.b[len(l.b)-1] != '{' {
			l.b = append(l.b, ',')
		}
		l.b = append(lessor.AppendString(l.b, h.Name), ":["...) // the one name that a client chose
		l.b = append(lessor.AppendString(l.b, value), ']')
	}
	l.close()
}

// own adds what only lessor tells.
func (w *writer) own(l *line, c *store.Commit, r *audit.At) {
	l.open("lessor")
	l.text("device", w.device.UUID)
	l.number("incarnation", c.Incarnation)
	l.number("sequence", r.Seq)
	l.number("index", uint64(r.Index))
	l.number("count", uint64(c.Count))
	l.hex("header", c.Hash[:])
	l.moment("committed", r.Commit)
	l.text("node", r.Node)
	l.text("phase", string(r.Phase))
	l.truth("allowed", r.Granted)
	l.text("rule", r.Rule)
	l.text("policy", r.Policy)
	l.count("policy_version", r.PolicyVersion)
	l.text("error_kind", r.ErrorKind)
	l.text("alias", r.Alias)
	l.text("role", r.Role)
	l.texts("groups", r.Groups)
	l.text("instance", r.Instance)
	l.text("system", r.System)
	l.text("cause", r.Cause)
	l.texts("approvals", r.Approvals)
	l.text("lease_id", r.Lease)
	l.text("owner", r.Owner)
	l.text("note", r.Note)
	l.count("acts", r.Count)
	l.text("tombstone", r.Tombstone)
	if len(r.Secrets) > 0 {
		l.name("secrets")
		l.b = append(l.b, '[')
		for i, s := range r.Secrets {
			if i > 0 {
				l.b = append(l.b, ',')
			}
			l.b = append(l.b, '{')
			l.text("path", s.Path)
			l.count("version", s.Version)
			l.hex("fingerprint", s.Fingerprint)
			l.text("how", s.How)
			l.b = append(l.b, '}')
		}
		l.b = append(l.b, ']')
	}
	l.close()
}

// line is a JSON object under construction. What is empty is left out, but for truths and numbers; encoding/json would take four times as
// long, and the committer shares the machine.
type line struct{ b []byte }

func (l *line) name(name string) {
	if l.b[len(l.b)-1] != '{' {
		l.b = append(l.b, ',')
	}
	l.b = append(append(append(l.b, '"'), name...), "\":"...)
}

func (l *line) open(name string) { l.name(name); l.b = append(l.b, '{') }
func (l *line) close()           { l.b = append(l.b, '}') }

func (l *line) text(name, s string) {
	if s != "" {
		l.name(name)
		l.b = lessor.AppendString(l.b, s)
	}
}

func (l *line) texts(name string, all []string) {
	if len(all) == 0 {
		return
	}
	l.name(name)
	l.b = append(l.b, '[')
	for i, s := range all {
		if i > 0 {
			l.b = append(l.b, ',')
		}
		l.b = lessor.AppendString(l.b, s)
	}
	l.b = append(l.b, ']')
}

func (l *line) number(name string, n uint64) { l.name(name); l.b = strconv.AppendUint(l.b, n, 10) }
func (l *line) truth(name string, t bool)    { l.name(name); l.b = strconv.AppendBool(l.b, t) }

func (l *line) count(name string, n uint64) {
	if n != 0 {
		l.number(name, n)
	}
}

func (l *line) hex(name string, b []byte) {
	if len(b) > 0 {
		l.name(name)
		l.b = append(hex.AppendEncode(append(l.b, '"'), b), '"')
	}
}

func (l *line) moment(name string, t time.Time) {
	l.name(name)
	l.b = append(t.UTC().AppendFormat(append(l.b, '"'), time.RFC3339Nano), '"')
}

func (l *line) mount(m *mount.Entry) {
	if m != nil {
		l.text("mount_point", m.Path)
		l.text("mount_type", m.Type)
		l.text("mount_accessor", m.Accessor)
		l.text("mount_class", string(m.Class))
	}
}

// harmless escapes, in the JSON from an offset on, what a shell would act upon; it stands in strings only. A line that lands where a shell reads
// it must not make the shell do anything.
func harmless(b []byte, from int) []byte {
	j := b[from:]
	if !bytes.ContainsAny(j, "$`") {
		return b
	}
	j = bytes.ReplaceAll(bytes.ReplaceAll(j, []byte("$"), []byte(`\u0024`)), []byte("`"), []byte(`\u0060`))
	return append(b[:from], j...)
}

// failure is the text for a kind of error.
func failure(kind string) string {
	switch kind {
	case "denied", "unauthenticated":
		return "permission denied"
	}
	return strings.ReplaceAll(kind, "_", " ")
}

// shorten is a line, without its end, in at most some 2 KiB, for where it does not fit as it is.
func (w *writer) shorten(line []byte) []byte {
	e, err := w.parse(line)
	if err != nil {
		return nil
	}
	cut := func(s *string) {
		if len(*s) > 128 {
			*s = strings.ToValidUTF8((*s)[:128], "")
		}
	}
	l := &e.Lessor
	*l = extra{
		Device: l.Device, Incarnation: l.Incarnation, Sequence: l.Sequence, Index: l.Index, Count: l.Count, Header: l.Header, Committed: l.Committed,
		Node: l.Node, Phase: l.Phase, Allowed: l.Allowed, Rule: l.Rule, Policy: l.Policy, PolicyVersion: l.PolicyVersion, ErrorKind: l.ErrorKind, Cut: true,
	}
	e.Request.Headers, e.Response = nil, nil
	for _, s := range []*string{&e.Request.Path, &e.Request.ID, &e.Request.MountPoint, &l.Node, &l.Rule, &l.Policy} {
		cut(s)
	}
	if e.Auth != nil {
		e.Auth.Results = nil
		cut(&e.Auth.DisplayName)
	}
	j, err := json.Marshal(e)
	if err != nil {
		return nil
	}
	return harmless(append([]byte(w.set.prefix), j...), len(w.set.prefix))
}

// parse reads a line that append or shorten wrote.
func (w *writer) parse(line []byte) (*entry, error) {
	e := &entry{}
	err := json.Unmarshal(bytes.TrimPrefix(bytes.TrimRight(line, "\r\n"), []byte(w.set.prefix)), e)
	return e, err
}

// looksAudited reports whether a line is one that an audit device may have written, lessor's or Vault's.
func (w *writer) looksAudited(line []byte) bool {
	var e struct {
		Type    string          `json:"type"`
		Request json.RawMessage `json:"request"`
	}
	err := json.Unmarshal(bytes.TrimPrefix(bytes.TrimRight(line, "\r\n"), []byte(w.set.prefix)), &e)
	return err == nil && e.Type != "" && len(e.Request) > 0
}
