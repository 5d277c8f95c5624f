// Package event tells who asks what commits did: which secrets have a new version, were deleted, were rotated. An event has no value
// of a secret. It is derived from a commit's header and from rows, on the node that tells it, whichever node made the commit; so all nodes
// tell the same events, in the order of the chain, under the same ids.
//
// What a commit means is the engines' knowledge (engine.Announcer). A Feed derives the events of each commit once, keeps the last ones,
// and wakes the subscribers whom they may concern. A Cursor is a place in the chain, from which any node goes on.
package event

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Rotated is the type of the event that tells of a new version of a static secret, whatever keeps it. Its metadata has the path by
// which the secret is read, and the version.
const Rotated = "lessor/rotated"

// Event is what a commit did to something that people may follow. After Tell nobody changes it.
type Event struct {
	Type string // "kv-v2/data-write"
	Path string // by which it is read, within the mount until Tell, then full: who may read it may hear of it
	// Metadata is as in Vault's events; a "path" is within the mount until Tell, then full. Tell adds "data_path", "operation" and
	// "modified", which Vault's have, too.
	Metadata map[string]string
	Touch    int // which of the header's Touched tells it

	place Place
	of    [8]byte // digest of the commit's header
	id    string
	mount string // its path
	json  []byte
}

// Place is where an event is on the chain: the commit, and the position among those of the commit, from 1.
type Place struct {
	Seq   uint64
	Index uint32
}

// end is behind all events of a commit.
func end(seq uint64) Place { return Place{seq, ^uint32(0)} }

// Compare orders places.
func (p Place) Compare(q Place) int {
	return cmp.Or(cmp.Compare(p.Seq, q.Seq), cmp.Compare(p.Index, q.Index))
}

// eventsOfTouch bounds how many events one touched row tells, so that an event's place follows from the header alone.
const eventsOfTouch = 4

// Tell completes the events that a commit to a mount told, in the order of what was touched; source names the cluster.
func Tell(c *Commit, events []*Event, source string) {
	for i, n := 0, 0; i < len(events); i++ {
		if n++; i == 0 || events[i-1].Touch != events[i].Touch {
			n = 1
		}
		events[i].told(c, n, source)
	}
}

// told completes the nth event of a touched row.
func (e *Event) told(c *Commit, n int, source string) {
	if n > eventsOfTouch {
		panic("event: a touched row tells too many events")
	}
	e.place, e.of = Place{c.Seq, uint32(e.Touch*eventsOfTouch + n)}, digest(c.Header)
	e.id = e.place.id(c.Header)
	e.mount, e.Path = c.Mount.Path, c.Mount.Path+e.Path
	metadata := map[string]string{"data_path": e.Path, "path": e.Path, "modified": "true", "operation": e.Operation()}
	for k, v := range e.Metadata {
		if k == "path" {
			v = c.Mount.Path + v
		}
		metadata[k] = v
	}
	e.Metadata = metadata
	e.json = e.render(c, source)
}

// Sort puts events of a commit in the order in which they are told.
func Sort(events []*Event) {
	slices.SortFunc(events, func(a, b *Event) int { return a.place.Compare(b.place) })
}

// id is the same wherever and however often the event is derived: a UUID (version 8) of the commit's and the place's.
func (p Place) id(h *audit.Header) string {
	d := digest(h)
	sum := sha256.Sum256([]byte("lessor event " + string(d[:]) + "\x00" + string(p.bytes())))
	u := sum[:16]
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	s := hex.EncodeToString(u)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// render is the event as Vault sends it: CloudEvents in JSON, with the cursor that goes on behind it as an extension.
func (e *Event) render(c *Commit, source string) []byte {
	m := c.Mount
	plugin := map[string]any{
		"mount_class": string(m.Class), "mount_accessor": m.Accessor, "mount_path": m.Path, "plugin": m.Type,
	}
	if v := m.Options["version"]; v != "" {
		plugin["version"] = v
	}
	return lessor.AppendJSON(nil, map[string]any{
		"id": e.id, "source": source, "specversion": "1.0", "type": "*", "datacontentype": "application/cloudevents",
		"time":         c.Time.UTC().Format(time.RFC3339Nano),
		"lessorcursor": Cursor{e.place, e.of}.String(),
		"data": map[string]any{
			"event": map[string]any{"id": e.id, "metadata": e.Metadata}, "event_type": e.Type, "plugin_info": plugin,
		},
	})
}

// ID is the event's, the same on all nodes.
func (e *Event) ID() string { return e.id }

// Place is where the event is on the chain.
func (e *Event) Place() Place { return e.place }

// Raw is JSON, as encoders take it.
func (e *Event) Raw() json.RawMessage { return e.json }

// JSON is the event as it is sent. Callers must not change it.
func (e *Event) JSON() []byte { return e.json }

// Operation is what happened, the last part of the type: "data-write".
func (e *Event) Operation() string {
	return e.Type[strings.LastIndexByte(e.Type, '/')+1:]
}
