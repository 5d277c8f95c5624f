// Package identity knows who stands behind logins: an entity for each someone, an alias of it for each auth mount it
// comes through, and groups of entities. Policies and templates hang off entities and groups, so that what a person or
// workload may do does not depend on the door it came in by.
package identity

import (
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// Entity is someone. CBOR keys are on disk: never renumber, only append.
type Entity struct {
	ID       string            `cbor:"1,keyasint"`
	Name     string            `cbor:"2,keyasint"`
	Metadata map[string]string `cbor:"3,keyasint,omitempty"`
	Policies []string          `cbor:"4,keyasint,omitempty"`
	Disabled bool              `cbor:"5,keyasint,omitempty"`
	Aliases  []Alias           `cbor:"6,keyasint,omitempty"`
	Groups   []string          `cbor:"7,keyasint,omitempty"` // ids of groups that name it as a member
	Created  time.Time         `cbor:"8,keyasint"`
	Updated  time.Time         `cbor:"9,keyasint"`
	Merged   []string          `cbor:"10,keyasint,omitempty"` // ids of entities merged into it
}

// Alias is an entity's identity at one auth mount. CBOR keys are on disk: never renumber, only append.
type Alias struct {
	ID       string            `cbor:"1,keyasint"`
	Name     string            `cbor:"2,keyasint"`
	Mount    string            `cbor:"3,keyasint"`           // accessor of the auth mount
	Metadata map[string]string `cbor:"4,keyasint,omitempty"` // set by the auth method
	Custom   map[string]string `cbor:"5,keyasint,omitempty"` // custom_metadata
	Created  time.Time         `cbor:"6,keyasint"`
	Updated  time.Time         `cbor:"7,keyasint"`
}

// Group is a named set of entities and of groups. CBOR keys are on disk: never renumber, only append.
type Group struct {
	ID       string            `cbor:"1,keyasint"`
	Name     string            `cbor:"2,keyasint"`
	External bool              `cbor:"3,keyasint,omitempty"`
	Metadata map[string]string `cbor:"4,keyasint,omitempty"`
	Policies []string          `cbor:"5,keyasint,omitempty"`
	Entities []string          `cbor:"6,keyasint,omitempty"` // members, ids
	Members  []string          `cbor:"7,keyasint,omitempty"` // member groups, ids
	Parents  []string          `cbor:"8,keyasint,omitempty"` // groups that name it as a member, ids
	Alias    *Alias            `cbor:"9,keyasint,omitempty"` // external groups
	Created  time.Time         `cbor:"10,keyasint"`
	Updated  time.Time         `cbor:"11,keyasint"`
}

var encoding = func() cbor.EncMode {
	o := cbor.CoreDetEncOptions()
	o.Time = cbor.TimeUnixDynamic
	e, err := o.EncMode()
	if err != nil {
		panic(err)
	}
	return e
}()

func encode(v any) []byte {
	b, err := encoding.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("identity: %v", err))
	}
	return b
}

func key(kind, name string) store.Key {
	return store.Key{Table: store.Identity, Name: store.MountKey(lessor.RootNamespace, "", kind, "/", name)}
}

func entityKey(id string) store.Key         { return key("e", id) }
func entityName(name string) store.Key      { return key("n", strings.ToLower(name)) }
func aliasKey(mount, name string) store.Key { return key("a", mount+"/"+name) }
func aliasID(id string) store.Key           { return key("i", id) }
func groupKey(id string) store.Key          { return key("g", id) }
func groupName(name string) store.Key       { return key("q", strings.ToLower(name)) }

// EntityByID finds an entity; nil: there is none.
func EntityByID(v store.View, id string) (*Entity, store.Row, error) {
	row, err := v.Get(entityKey(id))
	if err != nil || !row.Exists() {
		return nil, row, err
	}
	e := &Entity{}
	if err := cbor.Unmarshal(row.Value, e); err != nil {
		return nil, row, fmt.Errorf("identity: damaged row: %w", err)
	}
	return e, row, nil
}

// EntityByAlias finds the entity that has the alias name at the auth mount with the accessor; nil: there is none.
func EntityByAlias(v store.View, accessor, name string) (*Entity, store.Row, error) {
	return entityVia(v, aliasKey(accessor, name))
}

// EntityByAliasID finds the entity that has the alias; nil: there is none.
func EntityByAliasID(v store.View, id string) (*Entity, store.Row, error) {
	return entityVia(v, aliasID(id))
}

// EntityByName finds an entity by its name, whose case does not matter; nil: there is none.
func EntityByName(v store.View, name string) (*Entity, store.Row, error) {
	return entityVia(v, entityName(name))
}

func entityVia(v store.View, k store.Key) (*Entity, store.Row, error) {
	idx, err := v.Get(k)
	if err != nil || !idx.Exists() {
		return nil, idx, err
	}
	return EntityByID(v, string(idx.Value))
}

// GroupByID finds a group; nil: there is none.
func GroupByID(v store.View, id string) (*Group, store.Row, error) {
	row, err := v.Get(groupKey(id))
	if err != nil || !row.Exists() {
		return nil, row, err
	}
	g := &Group{}
	if err := cbor.Unmarshal(row.Value, g); err != nil {
		return nil, row, fmt.Errorf("identity: damaged row: %w", err)
	}
	return g, row, nil
}

// GroupByName finds a group by its name, whose case does not matter; nil: there is none.
func GroupByName(v store.View, name string) (*Group, store.Row, error) {
	idx, err := v.Get(groupName(name))
	if err != nil || !idx.Exists() {
		return nil, idx, err
	}
	return GroupByID(v, string(idx.Value))
}

// NewEntity puts a new entity with its aliases.
func NewEntity(txn *store.Txn, e *Entity) {
	n := entityName(e.Name)
	txn.Absent(n.Table, n.Name)
	txn.Put(n.Table, n.Name, []byte(e.ID))
	for i := range e.Aliases {
		AddAlias(txn, e, &e.Aliases[i])
	}
	k := entityKey(e.ID)
	txn.Absent(k.Table, k.Name)
	txn.Put(k.Table, k.Name, encode(e))
}

// AddAlias puts the index rows of an alias that e.Aliases already holds.
func AddAlias(txn *store.Txn, e *Entity, a *Alias) {
	k := aliasKey(a.Mount, a.Name)
	txn.Absent(k.Table, k.Name)
	txn.Put(k.Table, k.Name, []byte(e.ID))
	txn.Put(store.Identity, aliasID(a.ID).Name, []byte(e.ID))
}

// DropAlias deletes the index rows of an alias.
func DropAlias(txn *store.Txn, a *Alias) {
	txn.Delete(store.Identity, aliasKey(a.Mount, a.Name).Name)
	txn.Delete(store.Identity, aliasID(a.ID).Name)
}

// SaveEntity puts a changed entity. from is its name before.
func SaveEntity(txn *store.Txn, row store.Row, e *Entity, from string) {
	txn.Require(row)
	txn.Put(row.Table, row.Name, encode(e))
	if !strings.EqualFold(from, e.Name) {
		n := entityName(e.Name)
		txn.Delete(store.Identity, entityName(from).Name)
		txn.Absent(n.Table, n.Name)
		txn.Put(n.Table, n.Name, []byte(e.ID))
	}
}

// DropEntity deletes an entity with its aliases. Its membership in groups is for the caller.
func DropEntity(txn *store.Txn, row store.Row, e *Entity) {
	txn.Require(row)
	txn.Delete(row.Table, row.Name)
	txn.Delete(store.Identity, entityName(e.Name).Name)
	for i := range e.Aliases {
		DropAlias(txn, &e.Aliases[i])
	}
}

// NewGroup puts a new group.
func NewGroup(txn *store.Txn, g *Group) {
	n, k := groupName(g.Name), groupKey(g.ID)
	txn.Absent(n.Table, n.Name)
	txn.Put(n.Table, n.Name, []byte(g.ID))
	txn.Absent(k.Table, k.Name)
	txn.Put(k.Table, k.Name, encode(g))
}

// SaveGroup puts a changed group. from is its name before.
func SaveGroup(txn *store.Txn, row store.Row, g *Group, from string) {
	txn.Require(row)
	txn.Put(row.Table, row.Name, encode(g))
	if !strings.EqualFold(from, g.Name) {
		n := groupName(g.Name)
		txn.Delete(store.Identity, groupName(from).Name)
		txn.Absent(n.Table, n.Name)
		txn.Put(n.Table, n.Name, []byte(g.ID))
	}
}

// DropGroup deletes a group. References to it are for the caller.
func DropGroup(txn *store.Txn, row store.Row, g *Group) {
	txn.Require(row)
	txn.Delete(row.Table, row.Name)
	txn.Delete(store.Identity, groupName(g.Name).Name)
}

// Standing is what identity adds to a principal: who the entity is, through which groups, with which policies.
// Rows are what it was derived from.
type Standing struct {
	Entity   *Entity
	Aliases  []lessor.Alias
	Groups   []lessor.Group
	Policies []string // sorted
	Rows     []store.Row
}

// Resolve derives the standing of an entity: its own policies, those of its groups and of the groups that contain them.
// nil: there is no such entity.
func Resolve(v store.View, id string) (*Standing, error) {
	e, row, err := EntityByID(v, id)
	if err != nil || e == nil {
		return nil, err
	}
	s := &Standing{Entity: e, Policies: slices.Clone(e.Policies), Rows: []store.Row{row}}
	for _, a := range e.Aliases {
		s.Aliases = append(s.Aliases, a.lessor())
	}
	seen := map[string]bool{}
	for queue := slices.Clone(e.Groups); len(queue) > 0; queue = queue[1:] {
		id := queue[0]
		if seen[id] {
			continue
		}
		seen[id] = true
		g, row, err := GroupByID(v, id)
		if err != nil {
			return nil, err
		}
		if g == nil {
			continue
		}
		s.Rows = append(s.Rows, row)
		s.Groups = append(s.Groups, lessor.Group{ID: g.ID, Name: g.Name, Metadata: g.Metadata})
		s.Policies = append(s.Policies, g.Policies...)
		queue = append(queue, g.Parents...)
	}
	slices.Sort(s.Policies)
	s.Policies = slices.Compact(s.Policies)
	return s, nil
}

func (a *Alias) lessor() lessor.Alias {
	m := a.Metadata
	if len(a.Custom) > 0 {
		m = make(map[string]string, len(a.Metadata)+len(a.Custom))
		for k, v := range a.Metadata {
			m[k] = v
		}
		for k, v := range a.Custom {
			m[k] = v
		}
	}
	return lessor.Alias{ID: a.ID, Name: a.Name, MountAccessor: a.Mount, Metadata: m}
}

// NewID makes a random UUID (RFC 9562, version 4) in text form.
func NewID(random io.Reader) (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", err
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:], nil
}
