package ldap

import (
	"sync"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/turn"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/store"
)

// directories are those that are open, one for each mount that was used, as of the newest version of its configuration that was seen.
type directories struct {
	mu sync.Mutex
	m  map[string]*opened // by the mount's UUID
}

type opened struct {
	version uint64 // of the rows it was opened by
	turned  uint64 // of the row of passwords that it uses, once its own account's was rotated
	Directory
}

// directory is the open directory of a mount, opened or opened anew if need be.
func (e *Engine) directory(a engine.Access) (*opened, error) {
	var c Config
	row, err := load(a.View, a.Mount, configRow, "", &c)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, api.Errorf(api.Upstream, "there is no configuration any more: write it to config")
	}
	secrets, err := a.View.Get(store.Key{Table: store.Secrets, Name: row.Name})
	if err != nil {
		return nil, err
	}
	version := max(row.Version, secrets.Version)
	s, err := open(a.Opener, a.Grant, secrets)
	if err != nil {
		return nil, err
	}
	logins, turned, err := turn.Candidates(a, rootAccount, s.Password)
	if err != nil {
		return nil, err
	}

	e.open.mu.Lock()
	defer e.open.mu.Unlock()
	known := e.open.m[a.Mount.UUID]
	if known != nil && known.version >= version {
		if turned > known.turned {
			known.turned = turned
			known.Use(logins)
		}
		return known, nil
	}
	d, err := e.opener(&c, s)
	if err != nil {
		return nil, api.Errorf(api.Upstream, "the configuration: %v", err)
	}
	if known != nil {
		known.Close()
	}
	if e.open.m == nil {
		e.open.m = map[string]*opened{}
	}
	d.Use(logins)
	o := &opened{version: version, turned: turned, Directory: d}
	e.open.m[a.Mount.UUID] = o
	return o, nil
}

// close ends the connections of a mount; of all mounts if it is "".
func (d *directories) close(mount string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for at, o := range d.m {
		if mount == "" || at == mount {
			o.Close()
			delete(d.m, at)
		}
	}
}

// Heard ends the connections of configurations that another node deleted, with their mount or by themselves. One that was made anew since stays:
// its rows are later.
func (e *Engine) Heard(h *audit.Header) {
	for i := range h.Touched {
		if t := &h.Touched[i]; t.Deleted && store.Table(t.Table) == store.Engine {
			e.open.deleted(t, h.Seq)
		}
	}
}

func (d *directories) deleted(t *audit.Touch, seq uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for at, o := range d.m {
		name := store.MountKey(lessor.RootNamespace, at, configRow)
		if hit := name == t.Name || t.Range && name >= t.Name && (t.To == "" || name < t.To); hit && o.version < seq {
			o.Close()
			delete(d.m, at)
		}
	}
}

// open opens the row of a configuration's secrets; one that is not there holds none.
func open(opener engine.Opener, g policy.Grant, row store.Row) (Secrets, error) {
	if !row.Exists() {
		return Secrets{}, nil
	}
	value, err := opener.Open(g, row)
	if err != nil {
		return Secrets{}, err
	}
	var m map[int]string
	if err := cbor.Unmarshal([]byte(value.Reveal()), &m); err != nil {
		return Secrets{}, api.Errorf(api.Internal, "ldap: the secrets of a configuration are damaged")
	}
	return Secrets{Password: lessor.NewSecret(m[1]), PrivateKey: lessor.NewSecret(m[2])}, nil
}
