package database

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// Rows of a mount: "config/NAME" in Engine and, with its secrets, in Secrets; "role/NAME" and "static/NAME" in Engine, and there
// "account/CONNECTION\x00USERNAME" with the name of the static role that manages that account, and "used/CONNECTION", without a value. Those of
// package rotation go by "static/NAME" and "root/CONNECTION".
const (
	connectionPrefix = "config/"
	rolePrefix       = "role/"
	staticPrefix     = "static/"
	rootPrefix       = "root/"
	accountPrefix    = "account/"
	usedPrefix       = "used/"
)

// staticCreds begins the paths at which passwords of static roles are read.
const staticCreds = "static-creds/"

// names are those that Vault takes for connections and roles.
var names = regexp.MustCompile(`^\w(([\w.-]+)?\w)?$`)

func key(m *mount.Entry, parts ...string) string {
	return store.MountKey(m.Namespace, m.UUID, parts...)
}

// accountKey names the row that says which static role manages an account.
func accountKey(m *mount.Entry, connection, username string) store.Key {
	return store.Key{Table: store.Engine, Name: key(m, accountPrefix, connection, "\x00", username)}
}

// use records that something begins to need a connection. It is put whatever it was, so that nobody waits for anybody else; who deletes the
// connection requires that it is as it was when it looked for what needs it.
func use(txn *store.Txn, m *mount.Entry, connection string) {
	k := usedKey(m, connection)
	txn.Put(k.Table, k.Name, nil)
}

func usedKey(m *mount.Entry, connection string) store.Key {
	return store.Key{Table: store.Engine, Name: key(m, usedPrefix, connection)}
}

// load reads the row prefix+name into v. A row that is not there leaves v as it is.
func load(view store.View, m *mount.Entry, prefix, name string, v any) (store.Row, error) {
	row, err := view.Get(store.Key{Table: store.Engine, Name: key(m, prefix, name)})
	if err != nil || !row.Exists() {
		return row, err
	}
	return row, decode(row, v)
}

func decode(row store.Row, v any) error {
	if err := cbor.Unmarshal(row.Value, v); err != nil {
		return fmt.Errorf("database: %s is damaged: %w", row.Key, err)
	}
	return nil
}

// save puts v in row's place, provided that the row is as it was read.
func save(txn *store.Txn, row store.Row, v any) error {
	b, err := cbor.Marshal(v)
	if err != nil {
		return err
	}
	txn.Require(row)
	txn.Put(row.Table, row.Name, b)
	return nil
}

func (e *Engine) list(prefix string) engine.Handler {
	return func(_ context.Context, r *engine.Request) (*engine.Reply, error) {
		from := key(r.Mount, prefix)
		found := []string{}
		for row, err := range r.View.Scan(store.Engine, from, store.PrefixEnd(from)) {
			if err != nil {
				return nil, err
			}
			found = append(found, strings.TrimPrefix(row.Name, from))
		}
		if len(found) == 0 {
			return nil, &api.Error{Kind: api.NotFound}
		}
		return &engine.Reply{Data: map[string]any{"keys": found}}, nil
	}
}

func (e *Engine) exists(prefix string) func(*engine.Request) (bool, error) {
	return func(r *engine.Request) (bool, error) {
		row, err := r.View.Get(store.Key{Table: store.Engine, Name: key(r.Mount, prefix, r.Param("name"))})
		return row.Exists(), err
	}
}

// named is the pattern's name, checked.
func named(r *engine.Request) (string, error) {
	name := r.Param("name")
	if len(name) > 128 || !names.MatchString(name) {
		return "", api.Errorf(api.Invalid, "%q is no name: letters, digits and _, with . and - in between, 128 at most", name)
	}
	return name, nil
}

// Plugins are the names of the drivers, sorted, as clients know them.
func (e *Engine) Plugins() []string { return e.plugins() }

func (e *Engine) plugins() []string { return slices.Sorted(maps.Keys(e.drivers)) }

// count is n as an answer has it.
func count(n int64) json.Number { return json.Number(fmt.Sprint(n)) }

// nonNil is the list as JSON is to have it: [], never null.
func nonNil(l []string) []string {
	if l == nil {
		return []string{}
	}
	return l
}
