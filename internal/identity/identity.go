// Package identity knows who stands behind logins: an entity for each someone, an alias of it for each auth mount it
// comes through, and groups of entities. Policies and templates hang off entities and groups, so that what a person or
// workload may do does not depend on the door it came in by.
package identity

import (
	"crypto/sha256"
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
	Merged   []string          `cbor:"8,keyasint,omitempty"` // ids of merged entities that it came from
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
	Index    uint64            `cbor:"12,keyasint,omitempty"` // counts its changes
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
func aliasKey(mount, name string) store.Key { return key("a", mount+"/"+bounded(name)) }
func aliasID(id string) store.Key           { return key("i", id) }
func mergedKey(id string) store.Key         { return key("m", id) }
func groupKey(id string) store.Key          { return key("g", id) }
func groupName(name string) store.Key       { return key("q", strings.ToLower(name)) }
func groupAlias(mount, name string) store.Key {
	return key("b", mount+"/"+bounded(name))
}
func groupAliasID(id string) store.Key { return key("j", id) }

// bounded is the name of an alias as keys have it: its case does not matter, and however long the names are that an auth method knows,
// they fit.
func bounded(name string) string {
	name = strings.ToLower(name)
	if len(name) <= longestName {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "\x00" + string(sum[:])
}

// longestName is the number of bytes that a name given by a client may have.
const longestName = 512

// entry is a row of an index: it leads from a key to the id of an entity or group.
type entry struct {
	key store.Key
	id  string
}

// entries are the rows by which the entity is found.
func (e *Entity) entries() []entry {
	all := []entry{{entityName(e.Name), e.ID}}
	for i := range e.Aliases {
		a := &e.Aliases[i]
		all = append(all, entry{aliasKey(a.Mount, a.Name), e.ID}, entry{aliasID(a.ID), e.ID})
	}
	for _, id := range e.Merged {
		all = append(all, entry{mergedKey(id), e.ID})
	}
	return all
}

// entries are the rows by which the group is found.
func (g *Group) entries() []entry {
	all := []entry{{groupName(g.Name), g.ID}}
	if a := g.Alias; a != nil {
		all = append(all, entry{groupAlias(a.Mount, a.Name), g.ID}, entry{groupAliasID(a.ID), g.ID})
	}
	return all
}

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
	exact(&e.Created, &e.Updated)
	for i := range e.Aliases {
		exact(&e.Aliases[i].Created, &e.Aliases[i].Updated)
	}
	return e, row, nil
}

// EntityByAlias finds the entity that has the alias name, whose case does not matter, at the auth mount with the accessor;
// nil: there is none.
func EntityByAlias(v store.View, accessor, name string) (*Entity, store.Row, error) {
	return via(v, aliasKey(accessor, name), EntityByID)
}

// EntityByName finds an entity by its name, whose case does not matter; nil: there is none.
func EntityByName(v store.View, name string) (*Entity, store.Row, error) {
	return via(v, entityName(name), EntityByID)
}

// Survivor finds the entity that an id stands for now: the entity itself, or the one that it was merged into; nil: neither
// exists. rows are what that rests on.
func Survivor(v store.View, id string) (e *Entity, rows []store.Row, err error) {
	e, row, err := EntityByID(v, id)
	if err != nil || e != nil {
		return e, []store.Row{row}, err
	}
	idx, err := v.Get(mergedKey(id))
	if err != nil || !idx.Exists() {
		return nil, nil, err
	}
	e, row, err = EntityByID(v, string(idx.Value))
	return e, []store.Row{idx, row}, err
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
	exact(&g.Created, &g.Updated)
	if g.Alias != nil {
		exact(&g.Alias.Created, &g.Alias.Updated)
	}
	return g, row, nil
}

// via finds what the row of an index leads to.
func via[T any](v store.View, k store.Key, find func(store.View, string) (*T, store.Row, error)) (*T, store.Row, error) {
	idx, err := v.Get(k)
	if err != nil || !idx.Exists() {
		return nil, idx, err
	}
	return find(v, string(idx.Value))
}

// exact makes times what a row can say of them: microseconds.
func exact(times ...*time.Time) {
	for _, t := range times {
		*t = t.Round(time.Microsecond).UTC()
	}
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

// Resolve derives the standing of an entity, or of the one that it was merged into: its own policies, those of its groups and of
// the groups that contain them. nil: there is no such entity.
func Resolve(v store.View, id string) (*Standing, error) {
	e, rows, err := Survivor(v, id)
	if err != nil || e == nil {
		return nil, err
	}
	s, err := standing(e, func(id string) (*Group, store.Row, error) { return GroupByID(v, id) })
	if err == nil {
		s.Rows = append(rows, s.Rows...)
	}
	return s, err
}

// standing derives that of an entity, with groups as find finds them.
func standing(e *Entity, find func(id string) (*Group, store.Row, error)) (*Standing, error) {
	s := &Standing{Entity: e, Policies: slices.Clone(e.Policies)}
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
		g, row, err := find(id)
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

// CountEntities is how many entities there are. It takes time in their number.
func CountEntities(v store.View) (n int, err error) {
	prefix := entityKey("").Name
	for _, err := range v.Scan(store.Identity, prefix, store.PrefixEnd(prefix)) {
		if err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}
