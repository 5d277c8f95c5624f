package kv

import (
	"cmp"
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// V2 is the engine "kv" of version 2: numbered versions. Rows: Engine, "m/" + path → metadata and "c" → config; Secrets,
// "v/" + path + NUL + number → the version's JSON.
//
// Every write rests on the metadata row that it read, and on the configuration: of two writers at the same time one
// is told to look again.
//
// What a rotator rotates has a row more, "r/" + path, and those of package rotation, by its path.
type V2 struct {
	Rotators Rotators // nil: nothing is rotated
}

var (
	numbers  = []engine.Field{{Name: "versions", Type: engine.Strings, Help: "numbers of the versions"}}
	settings = []engine.Field{
		{Name: "max_versions", Type: engine.Int, Help: "versions to keep; the larger of the mount's and the secret's counts, 10 if neither says"},
		{Name: "cas_required", Type: engine.Bool, Help: "writes must name the version that they replace"},
		{Name: "delete_version_after", Type: engine.Any, Help: "how long a version lives; 0s: for ever. For a mount, a negative duration switches it off everywhere"},
	}
	custom = engine.Field{Name: "custom_metadata", Type: engine.Map, Help: "keys and values of your own: at most 64, of at most 128 and 512 bytes"}
	stage  = engine.Field{Name: "stage", Type: engine.String, Help: "of a secret with a rotation, instead of version: current, previous, or pending, which takes update on rotation/PATH"}
	which  = engine.Field{Name: "version", Type: engine.Int, Help: "the version to read; 0: the newest"}
)

// Routes is the method table.
func (e V2) Routes() []engine.Route {
	routes := []engine.Route{
		{
			Pattern: "data/{path...}", Help: "Read, write, patch and delete the newest version of a secret, or read an older one.",
			Fields: []engine.Field{
				which, stage,
				{Name: "data", Type: engine.Map, Help: "the value: an object"},
				{Name: "options", Type: engine.Map, Help: `"cas": the version that this write replaces; 0: there is none yet`},
			},
			Exists: exists,
			Ops:    ops{lessor.Read: read, lessor.Update: write, lessor.Patch: patch, lessor.Delete: deleteNewest},
		},
		{Pattern: "delete/{path...}", Help: "Delete versions; undelete brings them back.", Fields: numbers, Ops: ops{lessor.Update: deleteVersions}},
		{Pattern: "undelete/{path...}", Help: "Bring deleted versions back.", Fields: numbers, Ops: ops{lessor.Update: undelete}},
		{Pattern: "destroy/{path...}", Help: "Remove the values of versions for good.", Fields: numbers, Ops: ops{lessor.Update: destroy}},
		{
			Pattern: "metadata/{path...}", Owned: true, Help: "Settings and history of a secret; list secrets; delete all of one.",
			Fields: append([]engine.Field{custom}, settings...), Exists: exists,
			Ops: ops{
				lessor.Read: readMetadata, lessor.List: list, lessor.Update: writeMetadata, lessor.Patch: patchMetadata,
				lessor.Delete: deleteAll,
			},
		},
		{
			Pattern: "subkeys/{path...}", Help: "The keys of a secret, without values.",
			Fields: []engine.Field{which, {Name: "depth", Type: engine.Int, Help: "how deep to look into objects; 0: all the way"}},
			Ops:    ops{lessor.Read: subkeys},
		},
		{Pattern: "config", Help: "Settings of the mount.", Fields: settings, Ops: ops{lessor.Read: readConfig, lessor.Update: writeConfig}},
	}
	return append(routes, e.rotationRoutes()...)
}

// Astray tells those who take version 2 for version 1. Commands of the name kv know the difference.
func (V2) Astray(m *mount.Entry, verb lessor.Verb, path string) string {
	switch path {
	case "metadata", "data", "delete", "undelete", "destroy":
		if verb != lessor.List {
			return "Non-listing operations on the root of a K/V v2 mount are not supported."
		}
	}
	command := map[lessor.Verb]string{lessor.Read: "get", lessor.List: "list", lessor.Patch: "patch", lessor.Delete: "delete"}[verb]
	if command == "" {
		command = "put"
	}
	return "Invalid path for a versioned K/V secrets engine. See the API docs for the appropriate API endpoints to use. If using the CLI, use 'kv " +
		command + "' for this operation. Secrets are at " + m.Path + "data/PATH."
}

func exists(r *engine.Request) (bool, error) {
	row, err := r.View.Get(metadataKey(r, r.Param("path")))
	return row.Exists(), err
}

// found is one version that a read is about.
type found struct {
	path   string
	meta   *metadata
	row    store.Row // of meta
	number uint64
	pinned bool // its number was asked for
}

// find resolves a read's path and version. What does not exist is a 404.
func find(r *engine.Request) (found, error) {
	path, err := location(r)
	if err != nil {
		return found{}, err
	}
	m, row, err := load(r, path)
	if err != nil {
		return found{}, err
	}
	if m == nil {
		return found{}, missing()
	}
	f := found{path: path, meta: m, row: row, number: m.Current}
	if n := r.Int("version"); n > 0 {
		f.number, f.pinned = uint64(n), true
	}
	if m.version(f.number) == nil {
		return found{}, missing()
	}
	return f, nil
}

// value opens the version's value.
func (f *found) value(r *engine.Request) (lessor.SecretJSON, error) {
	row, err := r.View.Get(valueKey(r, f.path, f.number))
	if err != nil {
		return lessor.SecretJSON{}, err
	}
	if !row.Exists() {
		return lessor.SecretJSON{}, api.Errorf(api.Internal, "kv: %s has lost version %d", metadataKey(r, f.path), f.number)
	}
	return open(r, row)
}

func read(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	f, err := find(r)
	if err != nil {
		return nil, err
	}
	if r.Has("stage") {
		if reply, err := f.staged(r); reply != nil || err != nil {
			return reply, err
		}
	}
	reply := &engine.Reply{Data: map[string]any{"data": nil, "metadata": f.meta.versionData(f.number)}}
	if f.meta.version(f.number).gone(r.Now) {
		reply.Status = 404
		return reply, nil
	}
	value, err := f.value(r)
	if err != nil {
		return nil, err
	}
	reply.Data["data"] = value
	reply.Shown = shown(r, f.path, f.number, value, "shown")
	reply.Static = &engine.Static{Path: f.path, Version: f.number, Born: f.meta.Born, Current: f.meta.Current, Pinned: f.pinned, Rotatable: f.meta.Rotated}
	if f.meta.Rotated { // who is shown a value holds it by the same commit: once another is in force nobody comes to hold this one who is not known
		reply.Txn.Require(f.row)
		t, _, err := loadTerms(r, f.path)
		if err != nil {
			return nil, err
		}
		reply.Static.CheckOut = t != nil && t.CheckOut
	}
	return reply, nil
}

func subkeys(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	f, err := find(r)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{Data: map[string]any{"subkeys": nil, "metadata": f.meta.versionData(f.number)}}
	if f.meta.version(f.number).gone(r.Now) {
		reply.Status = 404
		return reply, nil
	}
	value, err := f.value(r)
	if err != nil {
		return nil, err
	}
	data, err := object(value)
	if err != nil {
		return nil, err
	}
	reply.Data["subkeys"] = keysOf(data, r.Int("depth"), 1)
	return reply, nil
}

// keysOf is an object without its values: null stands for each, and for objects deeper than depth (0: none is).
func keysOf(data map[string]any, depth, level int64) map[string]any {
	keys := make(map[string]any, len(data))
	for k, v := range data {
		keys[k] = nil
		if inner, ok := v.(map[string]any); ok && len(inner) > 0 && (depth == 0 || level < depth) {
			keys[k] = keysOf(inner, depth, level+1)
		}
	}
	return keys
}

// revision is a write under way: the secret as it is and the transaction that will change it.
type revision struct {
	path   string
	meta   *metadata // nil: there is no such secret
	row    store.Row
	config config
	reply  *engine.Reply
}

// revise begins a write. It rests on the configuration as it is.
func revise(r *engine.Request) (*revision, error) {
	path, err := location(r)
	if err != nil {
		return nil, err
	}
	w := &revision{path: path, reply: &engine.Reply{}}
	var row store.Row
	if w.config, row, err = loadConfig(r); err != nil {
		return nil, err
	}
	w.reply.Txn.Require(row)
	w.meta, w.row, err = load(r, path)
	return w, err
}

// create begins a secret where none is. That none was is a condition of the write, so that its position names this secret only.
func create(r *engine.Request) *metadata { return &metadata{Born: r.View.Position() + 1} }

// checkAndSet compares options.cas with the version that would be replaced.
func (w *revision) checkAndSet(r *engine.Request, current uint64) error {
	raw, given := r.Map("options")["cas"]
	if !given {
		if w.config.CASRequired || w.meta != nil && w.meta.CASRequired {
			return api.Errorf(api.Invalid, "check-and-set parameter required for this call")
		}
		return nil
	}
	cas, ok := number(raw)
	if !ok {
		return api.Errorf(api.Invalid, "error parsing check-and-set parameter")
	}
	if cas < 0 || uint64(cas) != current {
		return api.Errorf(api.Mismatch, "check-and-set parameter did not match the current version")
	}
	return nil
}

// number reads an integer as weakly as clients write it; null is 0.
func number(raw any) (int64, bool) {
	switch v := raw.(type) {
	case nil:
		return 0, true
	case json.Number:
		return integer(v.String())
	case string:
		return integer(v)
	}
	return 0, false
}

func integer(s string) (int64, bool) {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	return n, err == nil
}

// append writes value as the next version.
func (w *revision) append(r *engine.Request, value lessor.SecretJSON) *engine.Reply {
	from, to := w.meta.add(w.config, r.Now)
	w.meta.save(&w.reply.Txn, w.row)
	key := valueKey(r, w.path, w.meta.Current)
	w.reply.Txn.Put(key.Table, key.Name, []byte(value.Reveal()))
	switch to - from {
	case 0:
	case 1:
		old := valueKey(r, w.path, from)
		w.reply.Txn.Delete(old.Table, old.Name)
	default:
		w.reply.Txn.Ranges = append(w.reply.Txn.Ranges, store.Range{
			Table: store.Secrets, From: valueKey(r, w.path, from).Name, To: valueKey(r, w.path, to).Name,
		})
	}
	w.reply.Data = w.meta.versionData(w.meta.Current)
	w.reply.Shown = shown(r, w.path, w.meta.Current, value, "written")
	return w.reply
}

func write(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	w, err := revise(r)
	if err != nil {
		return nil, err
	}
	if _, given := r.Op.Data["data"]; !given { // null is a value, too
		return nil, api.Errorf(api.Invalid, "no data provided")
	}
	if w.meta == nil {
		w.meta = create(r)
	}
	if err := w.checkAndSet(r, w.meta.Current); err != nil {
		return nil, err
	}
	value := lessor.SecretJSON{Secret: lessor.NewSecret(lessor.AppendJSON(nil, r.Map("data")))}
	return w.append(r, value), w.adopt(r, value)
}

func patch(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	w, err := revise(r)
	if err != nil {
		return nil, err
	}
	switch {
	case !r.Has("data"):
		return nil, api.Errorf(api.Invalid, "no data provided")
	case w.meta == nil:
		return nil, missing()
	}
	if err := w.checkAndSet(r, w.meta.Current); err != nil {
		return nil, err
	}
	newest := w.meta.version(w.meta.Current)
	switch {
	case newest == nil:
		return nil, missing()
	case newest.gone(r.Now):
		return &engine.Reply{Status: 404, Data: w.meta.versionData(w.meta.Current)}, nil
	}
	f := found{path: w.path, meta: w.meta, number: w.meta.Current}
	value, err := f.value(r)
	if err != nil {
		return nil, err
	}
	data, err := object(value)
	if err != nil {
		return nil, err
	}
	merged := lessor.SecretJSON{Secret: lessor.NewSecret(lessor.AppendJSON(nil, merge(data, r.Map("data"))))}
	return w.append(r, merged), w.adopt(r, merged)
}

// change does something to versions of a secret that exists, and saves what came of it. Elsewhere it does nothing.
func change(r *engine.Request, do func(w *revision) (changed bool)) (*engine.Reply, error) {
	w, err := revise(r)
	if err != nil {
		return nil, err
	}
	if w.meta == nil || !do(w) {
		return &engine.Reply{}, nil
	}
	w.meta.save(&w.reply.Txn, w.row)
	return w.reply, nil
}

func deleteNewest(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	return change(r, func(w *revision) bool { return w.meta.version(w.meta.Current).hide(r.Now) })
}

// each is change for every version that the client names and the secret has.
func each(r *engine.Request, do func(w *revision, v *version, n uint64) bool) (*engine.Reply, error) {
	if len(r.List("versions")) == 0 {
		return nil, api.Errorf(api.Invalid, "No version number provided")
	}
	var named []uint64
	for _, s := range r.List("versions") {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return nil, api.Errorf(api.Invalid, `field "versions" is not a list of version numbers`)
		}
		named = append(named, n)
	}
	return change(r, func(w *revision) (changed bool) {
		for _, n := range named {
			if v := w.meta.version(n); v != nil && do(w, v, n) {
				changed = true
			}
		}
		return changed
	})
}

func deleteVersions(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	return each(r, func(_ *revision, v *version, _ uint64) bool { return v.hide(r.Now) })
}

func undelete(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	return each(r, func(w *revision, v *version, _ uint64) bool {
		if v.Destroyed {
			return false
		}
		before := v.Deleted
		v.Deleted = w.meta.deletion(w.config, r.Now)
		return v.Deleted != before
	})
}

func destroy(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	var kept error
	reply, err := each(r, func(w *revision, v *version, n uint64) bool {
		if v.Destroyed {
			return false
		}
		if w.meta.Rotated && n == w.meta.Current {
			kept = api.Errorf(api.Invalid, "version %d is the one in force, and the secret's rotation works with it: delete the rotation first (rotation/%s)", n, w.path)
			return false
		}
		v.Destroyed = true
		key := valueKey(r, w.path, n)
		w.reply.Txn.Delete(key.Table, key.Name)
		w.reply.Shown = append(w.reply.Shown, audit.Shown{Path: w.path, Version: n, How: "destroyed"})
		return true
	})
	return reply, cmp.Or(err, kept)
}

func readMetadata(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	path, err := location(r)
	if err != nil {
		return nil, err
	}
	m, _, err := load(r, path)
	if err != nil {
		return nil, err
	}
	if m == nil {
		return nil, missing()
	}
	data := m.data()
	if m.Rotated {
		if data["stages"], err = stages(r, path); err != nil {
			return nil, err
		}
	}
	return &engine.Reply{Data: data}, nil
}

func list(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	path, err := location(r)
	if err != nil {
		return nil, err
	}
	names, err := engine.List(r.View, store.Engine, metadataKey(r, folder(path)).Name)
	if err != nil {
		return nil, err
	}
	return engine.Keys(names)
}

func writeMetadata(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	w, err := revise(r)
	if err != nil {
		return nil, err
	}
	if !r.Has("max_versions") && !r.Has("cas_required") && !r.Has("delete_version_after") && !r.Has("custom_metadata") {
		return &engine.Reply{}, nil
	}
	if w.meta == nil {
		w.meta = create(r)
		w.meta.Created, w.meta.Updated = r.Now.UnixNano(), r.Now.UnixNano()
	}
	return w.set(r, func(name string) bool { return r.Has(name) }, func(custom map[string]any) map[string]any { return custom })
}

// patchMetadata is writeMetadata with the meaning of a merge patch: null puts a setting back, and takes a key of
// custom_metadata away.
func patchMetadata(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	w, err := revise(r)
	if err != nil {
		return nil, err
	}
	if w.meta == nil {
		return nil, missing()
	}
	given := func(name string) bool { _, ok := r.Op.Data[name]; return ok }
	return w.set(r, given, func(custom map[string]any) map[string]any {
		if custom == nil {
			return nil
		}
		before := make(map[string]any, len(w.meta.Custom))
		for k, v := range w.meta.Custom {
			before[k] = v
		}
		return merge(before, custom)
	})
}

// set takes the given settings of a secret over. A setting that is null becomes its default.
func (w *revision) set(r *engine.Request, given func(string) bool, custom func(map[string]any) map[string]any) (*engine.Reply, error) {
	m := w.meta
	if given("max_versions") {
		n, err := maxVersions(r)
		if err != nil {
			return nil, err
		}
		m.MaxVersions = n
	}
	if given("cas_required") {
		m.CASRequired = r.Bool("cas_required")
		if w.config.CASRequired && !m.CASRequired {
			w.reply.Warnings = append(w.reply.Warnings,
				`"cas_required" set to false, but is mandated by backend config. This value will be ignored.`)
		}
	}
	if given("delete_version_after") {
		after, ok := engine.ParseDuration(r.Any("delete_version_after"))
		if !ok && r.Has("delete_version_after") {
			return nil, api.Errorf(api.Invalid, `field "delete_version_after" is not a duration, or is negative`)
		}
		m.DeleteAfter = after
	}
	if given("custom_metadata") {
		texts, err := texts(custom(r.Map("custom_metadata")))
		if err != nil {
			return nil, err
		}
		m.Custom = texts
	}
	m.save(&w.reply.Txn, w.row)
	return w.reply, nil
}

func maxVersions(r *engine.Request) (uint32, error) {
	n := r.Int("max_versions")
	if n < 0 || n > 1<<20 {
		return 0, api.Errorf(api.Invalid, "max_versions must be between 0 and %d", 1<<20)
	}
	return uint32(n), nil
}

// texts is custom_metadata with scalars as text; nil if it is empty.
func texts(custom map[string]any) (map[string]string, error) {
	if len(custom) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(custom))
	for k, v := range custom {
		switch v := v.(type) {
		case nil:
			out[k] = ""
		case string:
			out[k] = v
		case json.Number:
			out[k] = v.String()
		case bool:
			out[k] = strconv.FormatBool(v)
		default:
			return nil, api.Errorf(api.Invalid, "custom_metadata validation failed: value for key %q is not a string", k)
		}
	}
	return out, checkCustom(out)
}

func deleteAll(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	w, err := revise(r)
	if err != nil || w.meta == nil {
		return &engine.Reply{}, err
	}
	if w.meta.Rotated {
		return nil, api.Errorf(api.Invalid, "the secret is rotated: delete its rotation first (rotation/%s)", w.path)
	}
	txn := &w.reply.Txn
	txn.Require(w.row)
	txn.Delete(w.row.Table, w.row.Name)
	if w.meta.Current > 0 {
		first, end := valueKey(r, w.path, max(w.meta.Oldest, 1)), valueKey(r, w.path, w.meta.Current+1)
		txn.Ranges = append(txn.Ranges, store.Range{Table: store.Secrets, From: first.Name, To: end.Name})
		w.reply.Shown = []audit.Shown{{Path: w.path, Version: w.meta.Current, How: "destroyed"}}
	}
	return w.reply, nil
}

func readConfig(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	c, _, err := loadConfig(r)
	if err != nil {
		return nil, err
	}
	return &engine.Reply{Data: map[string]any{
		"max_versions": int64(c.MaxVersions), "cas_required": c.CASRequired, "delete_version_after": c.DeleteAfter.String(),
	}}, nil
}

func writeConfig(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	c, row, err := loadConfig(r)
	if err != nil {
		return nil, err
	}
	before := c
	if r.Has("max_versions") {
		if c.MaxVersions, err = maxVersions(r); err != nil {
			return nil, err
		}
	}
	if r.Has("cas_required") {
		c.CASRequired = r.Bool("cas_required")
	}
	if r.Has("delete_version_after") {
		var ok bool
		if c.DeleteAfter, ok = signed(r.Any("delete_version_after")); !ok {
			return nil, api.Errorf(api.Invalid, `field "delete_version_after" is not a duration`)
		}
	}
	reply := &engine.Reply{}
	if c != before {
		reply.Txn.Require(row)
		reply.Txn.Put(row.Table, row.Name, encode(c))
	}
	return reply, nil
}

// signed reads a duration of which every negative one means the same: switched off.
func signed(raw any) (time.Duration, bool) {
	var text string
	switch v := raw.(type) {
	case json.Number:
		text = v.String()
	case string:
		text = strings.TrimSpace(v)
	}
	if positive, negative := strings.CutPrefix(text, "-"); negative {
		d, ok := engine.ParseDuration(positive)
		if d > 0 {
			d = -time.Second
		}
		return d, ok
	}
	return engine.ParseDuration(raw)
}
