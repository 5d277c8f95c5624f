package database

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

// pools are the open databases, one for each connection that was used, as of its newest version that was seen.
type pools struct {
	mu sync.Mutex
	m  map[place]*pool
}

type place struct{ mount, connection string }

type pool struct {
	version uint64 // of the rows it was opened by
	turned  uint64 // of the row of passwords that it uses, once its own account's was rotated
	Database
}

// database is the open database of a connection, opened or opened anew if need be.
func (e *Engine) database(a engine.Access, name string) (*pool, error) {
	var c Connection
	row, err := load(a.View, a.Mount, connectionPrefix, name, &c)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, api.Errorf(api.Upstream, "there is no connection %q any more: configure it again", name)
	}
	secrets, err := a.View.Get(store.Key{Table: store.Secrets, Name: row.Name})
	if err != nil {
		return nil, err
	}
	version := max(row.Version, secrets.Version)
	s, err := open(a.Opener.Open, a.Grant, secrets)
	if err != nil {
		return nil, err
	}
	logins, turned, err := turn.Candidates(a, rootPrefix+name, s.Password)
	if err != nil {
		return nil, err
	}

	e.open.mu.Lock()
	defer e.open.mu.Unlock()
	at := place{a.Mount.UUID, name}
	known := e.open.m[at]
	if known != nil && known.version >= version {
		if turned > known.turned {
			known.turned = turned
			known.Use(logins)
		}
		return known, nil
	}
	d, err := e.driver(c.Plugin)
	if err != nil {
		return nil, err
	}
	db, err := d.Open(&c, s)
	if err != nil {
		return nil, api.Errorf(api.Upstream, "connection %q: %v", name, err)
	}
	if known != nil {
		known.Close()
	}
	if e.open.m == nil {
		e.open.m = map[place]*pool{}
	}
	db.Use(logins)
	p := &pool{version: version, turned: turned, Database: db}
	e.open.m[at] = p
	return p, nil
}

// close ends the sessions of a connection; of all of the mount's if connection is "", of all mounts if mount is, too.
func (p *pools) close(mount, connection string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at, db := range p.m {
		if (mount == "" || at.mount == mount) && (connection == "" || at.connection == connection) {
			db.Close()
			delete(p.m, at)
		}
	}
}

// Heard ends the sessions of connections that another node deleted, with their mount or by themselves. One that was made anew
// since stays: its rows are later.
func (e *Engine) Heard(h *audit.Header) {
	for i := range h.Touched {
		if t := &h.Touched[i]; t.Deleted && store.Table(t.Table) == store.Engine {
			e.open.deleted(t, h.Seq)
		}
	}
}

func (p *pools) deleted(t *audit.Touch, seq uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at, db := range p.m {
		name := store.MountKey(lessor.RootNamespace, at.mount, connectionPrefix, at.connection)
		if hit := name == t.Name || t.Range && name >= t.Name && (t.To == "" || name < t.To); hit && db.version < seq {
			db.Close()
			delete(p.m, at)
		}
	}
}

// open opens the row of a connection's secrets; one that is not there holds none.
func open(opener func(policy.Grant, store.Row) (lessor.Secret, error), g policy.Grant, row store.Row) (Secrets, error) {
	if !row.Exists() {
		return Secrets{}, nil
	}
	value, err := opener(g, row)
	if err != nil {
		return Secrets{}, err
	}
	var m map[int]string
	if err := cbor.Unmarshal([]byte(value.Reveal()), &m); err != nil {
		return Secrets{}, api.Errorf(api.Internal, "database: the secrets of a connection are damaged")
	}
	return Secrets{Password: lessor.NewSecret(m[1]), PrivateKey: lessor.NewSecret(m[2])}, nil
}
