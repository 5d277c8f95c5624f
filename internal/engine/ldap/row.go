package ldap

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// Rows of a mount: "config" in Engine and, with its secrets, in Secrets; "role/NAME", "static/NAME" and "library/NAME" in Engine, and there
// "account/USERNAME" and "account/DN" with the name of the row that manages that account, "lent/USERNAME" with the id of the lease that an account of a
// library was lent under last, and "used", without a value. Those of package rotation go by "static/NAME" and "root".
const (
	configRow     = "config"
	rolePrefix    = "role/"
	staticPrefix  = "static/"
	setPrefix     = "library/"
	accountPrefix = "account/"
	lentPrefix    = "lent/"
	usedRow       = "used"

	rootAccount = "root"
)

// staticCred begins the paths at which passwords of static roles are read.
const staticCred = "static-cred/"

// names are those of roles and sets: lower case, with folders.
var names = regexp.MustCompile(`^\w(([\w./-]+)?\w)?$`)

func key(m *mount.Entry, parts ...string) string {
	return store.MountKey(m.Namespace, m.UUID, parts...)
}

func rowKey(m *mount.Entry, parts ...string) store.Key {
	return store.Key{Table: store.Engine, Name: key(m, parts...)}
}

// accountKey names the row that says who manages an account, which is known by its username, its DN, or both. Directories take names without regard
// to case.
func accountKey(m *mount.Entry, name string) store.Key {
	return rowKey(m, accountPrefix, strings.ToLower(name))
}

// use records that something begins to need the configuration. It is put whatever it was, so that nobody waits for anybody else; who deletes
// the configuration requires that it is as it was when it looked for what needs it.
func use(txn *store.Txn, m *mount.Entry) { txn.Put(store.Engine, key(m, usedRow), nil) }

// load reads the row prefix+name into v. A row that is not there leaves v as it is.
func load(view store.View, m *mount.Entry, prefix, name string, v any) (store.Row, error) {
	row, err := view.Get(rowKey(m, prefix, name))
	if err != nil || !row.Exists() {
		return row, err
	}
	return row, decode(row, v)
}

func decode(row store.Row, v any) error {
	if err := cbor.Unmarshal(row.Value, v); err != nil {
		return fmt.Errorf("ldap: %s is damaged: %w", row.Key, err)
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

// list lists a folder of rows.
func (e *Engine) list(prefix string) engine.Handler {
	return func(_ context.Context, r *engine.Request) (*engine.Reply, error) {
		folder := strings.ToLower(r.Param("name"))
		if folder != "" {
			folder += "/"
		}
		found, err := engine.List(r.View, store.Engine, key(r.Mount, prefix, folder))
		if err != nil {
			return nil, err
		}
		return engine.Keys(found)
	}
}

func (e *Engine) exists(prefix string) func(*engine.Request) (bool, error) {
	return func(r *engine.Request) (bool, error) {
		row, err := r.View.Get(rowKey(r.Mount, prefix, strings.ToLower(r.Param("name"))))
		return row.Exists(), err
	}
}

// nameOf is the pattern's name.
func nameOf(r *engine.Request) string { return strings.ToLower(r.Param("name")) }

// named is the pattern's name, checked.
func named(r *engine.Request) (string, error) {
	name := nameOf(r)
	if len(name) > 255 || !names.MatchString(name) || engine.CheckPath(name) != nil {
		return "", api.Errorf(api.Invalid, "%q is no name: letters, digits and _, with ., - and / in between, 255 at most", name)
	}
	return name, nil
}
