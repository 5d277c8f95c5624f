package lease

import (
	"encoding/binary"
	"errors"
	"strings"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// A Demand is that a version of a secret which lessor rotates is succeeded by another, if it is the one in force, since it is exposed or a lease on it ended that
// had it checked out. It is a row of the same commit as the Exposure, or the lease's end, so no crash comes between them, and it is there until somebody has seen to it (Met).
type Demand struct {
	Secret  string `cbor:"-"` // path within the mount
	Version uint64 `cbor:"-"`
	Lease   string `cbor:"-"` // that was on the version
	Born    uint64 `cbor:"1,keyasint,omitempty"`
	Cause   string `cbor:"2,keyasint"`           // of the Exposure, or how the lease ended
	Ended   bool   `cbor:"3,keyasint,omitempty"` // nothing is exposed: the lease ended by itself, or by its holder's word
}

// demandRows begins the demands of a mount. A demand is named as its exposure is.
func demandRows(namespace uint32, mount string) string {
	return store.MountKey(namespace, mount, "d/")
}

func demandName(namespace uint32, mount, path string, version uint64, lease string) string {
	return demandRows(namespace, mount) + path + "\x00" + store.Uint64Key(version) + lease
}

// demand puts what is to be done about the exposure of l, or its end.
func demand(txn *store.Txn, l *Lease, cause string, ended bool) {
	txn.Put(store.LeaseIdx, demandName(l.Namespace, l.Mount, l.Secret, l.Version, l.ID), encode(&Demand{Born: l.Born, Cause: cause, Ended: ended}))
}

// Demands lists the demands on a mount's secrets that nobody has seen to, by path and version: limit at most, from where the last call left off
// ("" at first). It says where to go on; "" means that it came to the end. At a row that is damaged it stops with a *store.Damage, and goes on behind it.
func Demands(v store.View, e *mount.Entry, from string, limit int) (all []Demand, next string, err error) {
	prefix := demandRows(e.Namespace, e.UUID)
	if from == "" {
		from = prefix
	}
	for row, err := range v.Scan(store.LeaseIdx, from, store.PrefixEnd(prefix)) {
		if len(all) == limit && err == nil {
			return all, row.Name, nil
		}
		var d Demand
		if err == nil {
			d, err = parseDemand(row, len(prefix))
		}
		if damage, ok := errors.AsType[*store.Damage](err); ok && damage.Key.Table == store.LeaseIdx && damage.Key.Name >= from {
			return all, damage.Key.Name + "\x00", err
		}
		if err != nil {
			return nil, "", err
		}
		all = append(all, d)
	}
	return all, "", nil
}

// parseDemand reads a row, whose name is a Demand's behind base.
func parseDemand(row store.Row, base int) (d Demand, err error) {
	path, rest, ok := strings.Cut(row.Name[base:], "\x00")
	if !ok || len(rest) < 8 {
		return d, &store.Damage{Key: row.Key, Why: "it is no demand"}
	}
	d = Demand{Secret: path, Version: binary.BigEndian.Uint64([]byte(rest)), Lease: rest[8:]}
	if err := decoding.Unmarshal(row.Value, &d); err != nil {
		return d, &store.Damage{Key: row.Key, Why: err.Error()}
	}
	return d, nil
}

// Met deletes a demand: it was seen to, or there is nothing to do about it.
func Met(txn *store.Txn, e *mount.Entry, d Demand) {
	txn.Delete(store.LeaseIdx, demandName(e.Namespace, e.UUID, d.Secret, d.Version, d.Lease))
}

// Demanding reports whether a commit made a demand.
func Demanding(h *audit.Header) bool {
	for i := range h.Touched {
		t := &h.Touched[i]
		if store.Table(t.Table) != store.LeaseIdx || t.Deleted {
			continue
		}
		if _, _, rest := store.SplitMountKey(t.Name); strings.HasPrefix(rest, "d/") {
			return true
		}
	}
	return false
}
