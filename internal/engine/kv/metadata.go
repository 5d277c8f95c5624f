package kv

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/store"
)

// metadata is what version 2 knows of a secret: a row of store.Engine. CBOR keys are on disk: never renumber, only append.
type metadata struct {
	Current     uint64            `cbor:"1,keyasint,omitempty"`  // number of the newest version; 0: none was written yet
	Oldest      uint64            `cbor:"2,keyasint,omitempty"`  // number of the oldest version that is kept; 0: nothing went yet
	Created     int64             `cbor:"3,keyasint"`            // Unix time in nanoseconds, as all times here
	Updated     int64             `cbor:"4,keyasint"`            // when the newest version was written
	MaxVersions uint32            `cbor:"5,keyasint,omitempty"`  //
	CASRequired bool              `cbor:"6,keyasint,omitempty"`  //
	DeleteAfter time.Duration     `cbor:"7,keyasint,omitempty"`  // delete_version_after
	Custom      map[string]string `cbor:"8,keyasint,omitempty"`  //
	Versions    []version         `cbor:"9,keyasint,omitempty"`  // max(Oldest, 1) to Current, without gaps
	Born        uint64            `cbor:"10,keyasint,omitempty"` // tells this secret from one that was at its path before: versions begin anew
	Rotated     bool              `cbor:"11,keyasint,omitempty"` // it has a rotation
}

// version is one value that a secret had.
type version struct {
	Created   int64 `cbor:"1,keyasint"`
	Deleted   int64 `cbor:"2,keyasint,omitempty"` // from when on it is hidden, perhaps in the future; 0: never
	Destroyed bool  `cbor:"3,keyasint,omitempty"`
}

// config is that of a mount: a row of store.Engine. CBOR keys are on disk: never renumber, only append.
type config struct {
	MaxVersions uint32        `cbor:"1,keyasint,omitempty"`
	CASRequired bool          `cbor:"2,keyasint,omitempty"`
	DeleteAfter time.Duration `cbor:"3,keyasint,omitempty"` // negative: delete_version_after counts nowhere in this mount
}

const defaultVersions = 10 // max_versions where neither the secret nor the mount says

// decoding allows as many versions as max_versions does, and strings of any bytes.
var decoding = func() cbor.DecMode {
	d, err := cbor.DecOptions{MaxArrayElements: math.MaxInt32, UTF8: cbor.UTF8DecodeInvalid}.DecMode()
	if err != nil {
		panic(err)
	}
	return d
}()

func encode(v any) []byte {
	b, err := cbor.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("kv: %v", err)) // plain data: a defect if it fails
	}
	return b
}

func metadataKey(r *engine.Request, path string) store.Key {
	return store.Key{Table: store.Engine, Name: store.MountKey(r.Mount.Namespace, r.Mount.UUID, "m/", path)}
}

// valueKey is where a version's value is: a row of store.Secrets.
func valueKey(r *engine.Request, path string, n uint64) store.Key {
	return store.Key{Table: store.Secrets, Name: store.MountKey(r.Mount.Namespace, r.Mount.UUID, "v/", path, "\x00", store.Uint64Key(n))}
}

// load reads a secret's metadata; nil if there is no such secret.
func load(r *engine.Request, path string) (*metadata, store.Row, error) {
	row, err := r.View.Get(metadataKey(r, path))
	if err != nil || !row.Exists() {
		return nil, row, err
	}
	m := &metadata{}
	if err := decoding.Unmarshal(row.Value, m); err != nil {
		return nil, row, fmt.Errorf("kv: damaged metadata: %w", err)
	}
	return m, row, nil
}

// save writes changed metadata, on the condition that it still is what row was.
func (m *metadata) save(txn *store.Txn, row store.Row) {
	txn.Require(row)
	txn.Put(row.Table, row.Name, encode(m))
}

// loadConfig reads the mount's configuration.
func loadConfig(r *engine.Request) (config, store.Row, error) {
	var c config
	row, err := r.View.Get(store.Key{Table: store.Engine, Name: store.MountKey(r.Mount.Namespace, r.Mount.UUID, "c")})
	if err != nil || !row.Exists() {
		return c, row, err
	}
	if err := decoding.Unmarshal(row.Value, &c); err != nil {
		return c, row, fmt.Errorf("kv: damaged configuration: %w", err)
	}
	return c, row, nil
}

// version finds version n; nil if it never was, or is no longer kept.
func (m *metadata) version(n uint64) *version {
	first := max(m.Oldest, 1)
	if n < first || n > m.Current {
		return nil
	}
	return &m.Versions[n-first]
}

// gone reports whether the version's value is not to be seen at now.
func (v *version) gone(now time.Time) bool {
	return v.Destroyed || v.Deleted != 0 && v.Deleted <= now.UnixNano()
}

// hide soft-deletes the version and reports whether that changed anything.
func (v *version) hide(now time.Time) bool {
	if v == nil || v.gone(now) {
		return false
	}
	v.Deleted = now.UnixNano()
	return true
}

// add counts a version written at now. It returns the range of versions whose time is over: from <= n < to.
func (m *metadata) add(c config, now time.Time) (from, to uint64) {
	m.Current++
	m.Versions = append(m.Versions, version{Created: now.UnixNano(), Deleted: m.deletion(c, now)})
	m.Updated = now.UnixNano()
	if m.Created == 0 {
		m.Created = m.Updated
	}
	// As in Vault, the larger of both limits counts, and oldest_version is 0 until the limit is reached.
	limit := uint64(max(m.MaxVersions, c.MaxVersions))
	if limit == 0 {
		limit = defaultVersions
	}
	if m.Current-m.Oldest < limit {
		return 0, 0
	}
	from, to = max(m.Oldest, 1), m.Current-limit+1
	m.Versions = slices.Delete(m.Versions, 0, int(to-from))
	m.Oldest = to
	return from, to
}

// deletion is when a version that is live at now is to be hidden; 0: never. The shorter of mount's and secret's wish counts.
func (m *metadata) deletion(c config, now time.Time) int64 {
	after := m.DeleteAfter
	if c.DeleteAfter > 0 && (after == 0 || c.DeleteAfter < after) {
		after = c.DeleteAfter
	}
	if c.DeleteAfter < 0 || after == 0 {
		return 0
	}
	return now.Add(after).UnixNano()
}

// stamp is a time as clients see it; "" for none.
func stamp(ns int64) string {
	if ns == 0 {
		return ""
	}
	return time.Unix(0, ns).UTC().Format(time.RFC3339Nano)
}

func (v *version) data() map[string]any {
	return map[string]any{"created_time": stamp(v.Created), "deletion_time": stamp(v.Deleted), "destroyed": v.Destroyed}
}

// versionData is what clients learn of version n together with its value.
func (m *metadata) versionData(n uint64) map[string]any {
	d := m.version(n).data()
	d["version"], d["custom_metadata"] = n, m.Custom
	return d
}

func (m *metadata) data() map[string]any {
	versions := make(map[string]any, len(m.Versions))
	for i := range m.Versions {
		versions[fmt.Sprint(max(m.Oldest, 1)+uint64(i))] = m.Versions[i].data()
	}
	return map[string]any{
		"versions": versions, "current_version": m.Current, "oldest_version": m.Oldest,
		"created_time": stamp(m.Created), "updated_time": stamp(m.Updated),
		"max_versions": int64(m.MaxVersions), "cas_required": m.CASRequired, "delete_version_after": m.DeleteAfter.String(),
		"custom_metadata": m.Custom,
	}
}

// Limits of custom_metadata.
const (
	maxCustom      = 64
	maxCustomKey   = 128
	maxCustomValue = 512
)

// checkCustom says all that is wrong with custom_metadata.
func checkCustom(custom map[string]string) error {
	const failed = "custom_metadata validation failed"
	if len(custom) > maxCustom {
		return api.Errorf(api.Invalid, "%s: payload must contain at most %d keys, provided %d", failed, maxCustom, len(custom))
	}
	var wrong []string
	add := func(format string, args ...any) { wrong = append(wrong, failed+": "+fmt.Sprintf(format, args...)) }
	for key, value := range custom {
		if len(key) == 0 || len(key) > maxCustomKey {
			add("length of key %q is %d but must be 0 < len(key) <= %d", key, len(key), maxCustomKey)
		}
		if len(value) == 0 || len(value) > maxCustomValue {
			add("length of value for key %q is %d but must be 0 < len(value) <= %d", key, len(value), maxCustomValue)
		}
		if unprintable(key) {
			add("key %q contains unprintable characters", key)
		}
		if unprintable(value) {
			add("value for key %q contains unprintable characters", key)
		}
	}
	if wrong == nil {
		return nil
	}
	slices.Sort(wrong)
	return api.Errorf(api.Invalid, "%s", strings.Join(wrong, "; "))
}

func unprintable(s string) bool {
	return strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) })
}
