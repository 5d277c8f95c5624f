package exporter

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// entry is a record as a line tells it: what Vault's audit entries have, as far as lessor has the fact, and in "lessor" the rest.
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

// entry makes the entry of a record of a commit.
func (w *writer) entry(c *store.Commit, r *audit.At) *entry {
	e := &entry{
		Time: r.Time.UTC().Format(time.RFC3339Nano), Type: "response",
		Request: request{
			ID: r.Request, Operation: r.Operation, Path: r.Path, Namespace: namespace{"root"}, Accessor: w.accessor(r.Accessor), RemoteAddress: r.Client,
		},
		Error: failure(r.ErrorKind),
		Lessor: extra{
			Device: w.device.UUID, Incarnation: c.Incarnation, Sequence: r.Seq, Index: r.Index, Count: c.Count, Header: hex.EncodeToString(c.Hash[:]),
			Committed: r.Commit.UTC().Format(time.RFC3339Nano), Node: r.Node, Phase: string(r.Phase), Allowed: r.Granted, Rule: r.Rule, Policy: r.Policy,
			PolicyVersion: r.PolicyVersion, ErrorKind: r.ErrorKind, Alias: r.Alias, Role: r.Role, Groups: r.Groups, Instance: r.Instance, System: r.System,
			Cause: r.Cause, Approvals: r.Approvals, Lease: r.Lease, Owner: r.Owner, Note: r.Note, Acts: r.Count, Tombstone: r.Tombstone,
		},
	}
	for _, s := range r.Secrets {
		e.Lessor.Secrets = append(e.Lessor.Secrets, shown{s.Path, s.Version, hex.EncodeToString(s.Fingerprint), s.How})
	}
	for _, h := range r.Headers {
		if e.Request.Headers == nil {
			e.Request.Headers = map[string][]string{}
		}
		value := h.Value
		if h.Digest != nil {
			value = w.device.rehash(w.keys, h.Digest)
		}
		e.Request.Headers[h.Name] = []string{value}
	}
	if r.Accessor != "" || r.Name != "" || r.Entity != "" {
		e.Auth = &auth{Accessor: e.Request.Accessor, DisplayName: r.Name, EntityID: r.Entity, Results: &results{Allowed: r.Granted}}
		if r.Granted && r.Policy != "" {
			e.Auth.Results.Granting = []granting{{r.Policy, "root", "acl"}}
		}
	}
	w.place(e, r)
	return e
}

// place adds what was mounted at the entry's path, and tells a request from a response.
func (w *writer) place(e *entry, r *audit.At) {
	q := &e.Request
	if w.mounts != nil {
		if m, _ := w.mounts.Route(r.Path); m != nil && !m.Created.After(r.Time) {
			q.MountPoint, q.MountType, q.MountAccessor, q.MountClass = m.Path, m.Type, m.Accessor, string(m.Class)
		}
	}
	if r.Phase == audit.Begun {
		e.Type = "request"
		return
	}
	e.Response = &response{MountPoint: q.MountPoint, MountType: q.MountType, MountAccessor: q.MountAccessor, MountClass: q.MountClass}
	if r.Lease != "" {
		e.Response.Secret = &leased{r.Lease}
	}
}

// failure is the text for a kind of error.
func failure(kind string) string {
	switch kind {
	case "denied", "unauthenticated":
		return "permission denied"
	}
	return strings.ReplaceAll(kind, "_", " ")
}

// append appends the entry's line.
func (w *writer) append(b []byte, e *entry) []byte {
	j, err := json.Marshal(e)
	if err != nil {
		panic("exporter: an entry cannot be said in JSON: " + err.Error()) // there is no such entry
	}
	b = append(b, w.set.prefix...)
	if bytes.ContainsAny(j, "$`") {
		// Within JSON both stand in strings only. A line that lands where a shell reads it must not make the shell do anything.
		j = bytes.ReplaceAll(bytes.ReplaceAll(j, []byte("$"), []byte(`\u0024`)), []byte("`"), []byte(`\u0060`))
	}
	return append(append(b, j...), '\n')
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
	return bytes.TrimSuffix(w.append(nil, e), []byte("\n"))
}

// parse reads a line that append wrote.
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
