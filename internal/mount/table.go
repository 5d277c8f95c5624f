package mount

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

var encoding = func() cbor.EncMode {
	o := cbor.CoreDetEncOptions()
	o.Time = cbor.TimeUnixDynamic
	e, err := o.EncMode()
	if err != nil {
		panic(err)
	}
	return e
}()

// decoding takes names as they are: UUIDs are raw bytes.
var decoding = func() cbor.DecMode {
	d, err := cbor.DecOptions{UTF8: cbor.UTF8DecodeInvalid}.DecMode()
	if err != nil {
		panic(err)
	}
	return d
}()

// Table is all mounts as of one View; immutable.
type Table struct {
	byPath map[string]*Entry
	byUUID map[string]*Entry
	byAcc  map[string]*Entry
	sorted []*Entry
	rows   map[string]store.Row // by UUID
}

// prefix begins the names of mounts' rows; a second kind of row guards that a path is used once.
var (
	prefix = store.MountKey(lessor.RootNamespace, "", "m/")
	guard  = store.MountKey(lessor.RootNamespace, "", "p/")
)

// Load reads all mounts of a View.
func Load(v store.View) (*Table, error) {
	t := &Table{byPath: map[string]*Entry{}, byUUID: map[string]*Entry{}, byAcc: map[string]*Entry{}, rows: map[string]store.Row{}}
	for row, err := range v.Scan(store.Mounts, prefix, store.PrefixEnd(prefix)) {
		if err != nil {
			return nil, err
		}
		e := &Entry{}
		if err := decoding.Unmarshal(row.Value, e); err != nil {
			return nil, fmt.Errorf("mount: damaged row: %w", err)
		}
		t.byPath[e.Path], t.byUUID[e.UUID], t.byAcc[e.Accessor] = e, e, e
		t.rows[e.UUID] = row
		t.sorted = append(t.sorted, e)
	}
	slices.SortFunc(t.sorted, func(a, b *Entry) int { return cmp.Compare(a.Path, b.Path) })
	return t, nil
}

// Route finds the mount that serves path, and the rest of the path. nil: none does.
func (t *Table) Route(path string) (e *Entry, rest string) {
	for end := len(path); end > 0; {
		i := strings.LastIndexByte(path[:end], '/')
		if i < 0 {
			break
		}
		if e := t.byPath[path[:i+1]]; e != nil && !e.Removing {
			return e, path[i+1:]
		}
		end = i
	}
	if e := t.byPath[path+"/"]; e != nil && !e.Removing {
		return e, ""
	}
	return nil, path
}

// Logical is the name of what a path is about. With KV v2 a secret has several paths (data/x, metadata/x, …) and one name.
func (t *Table) Logical(path string) string {
	e, rest := t.Route(path)
	if e == nil || e.Backend() != "kv-v2" {
		return path
	}
	head, name, _ := strings.Cut(rest, "/")
	switch head {
	case "data", "metadata", "subkeys", "delete", "undelete", "destroy":
		if name != "" {
			return e.Path + name
		}
	}
	return path
}

// ByPath, ByUUID and ByAccessor find one mount; nil if there is none.
func (t *Table) ByPath(path string) *Entry    { return t.byPath[path] }
func (t *Table) ByUUID(uuid string) *Entry    { return t.byUUID[uuid] }
func (t *Table) ByAccessor(acc string) *Entry { return t.byAcc[acc] }

// All lists the mounts by path, those under removal too.
func (t *Table) All() []*Entry { return t.sorted }

// Clash names the mount whose path contains path or is contained in it, nil if path is free.
func (t *Table) Clash(path string) *Entry {
	for _, e := range t.sorted {
		if strings.HasPrefix(e.Path, path) || strings.HasPrefix(path, e.Path) {
			return e
		}
	}
	return nil
}

// Add puts a new mount; two commits that race for one path conflict.
func Add(txn *store.Txn, e *Entry) {
	txn.Absent(store.Mounts, guard+e.Path)
	txn.Put(store.Mounts, guard+e.Path, []byte(e.UUID))
	txn.Put(store.Mounts, prefix+e.UUID, e.encode())
}

// Save puts a changed mount. from is its path before.
func (t *Table) Save(txn *store.Txn, e *Entry, from string) {
	txn.Require(t.rows[e.UUID])
	txn.Put(store.Mounts, prefix+e.UUID, e.encode())
	if from != e.Path {
		txn.Delete(store.Mounts, guard+from)
		txn.Absent(store.Mounts, guard+e.Path)
		txn.Put(store.Mounts, guard+e.Path, []byte(e.UUID))
	}
}

// Remove deletes a mount's rows; what the mount kept is for the caller.
func (t *Table) Remove(txn *store.Txn, e *Entry) {
	txn.Require(t.rows[e.UUID])
	txn.Delete(store.Mounts, prefix+e.UUID)
	txn.Delete(store.Mounts, guard+e.Path)
}

func (e *Entry) encode() []byte {
	b, err := encoding.Marshal(e)
	if err != nil {
		panic(fmt.Sprintf("mount: %v", err))
	}
	return b
}
