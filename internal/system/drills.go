package system

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// A restore drill runs beside the server, where a backup, a key and room for a copy are. Its outcome is reported to the server, which keeps the
// latest ones: so that it is on record, in the metrics, and missed when it does not come. What was restored is named by number and hash of its
// last commit. So a drill counts only if it restored this store, as its chain is now: one of another store's backup, or of a
// history that was given up in a restore, is refused.

// Drill is the outcome of a restore drill. It is on disk as JSON: names stay.
type Drill struct {
	Time     time.Time     `json:"time"`              // when it was reported, in lease time
	By       string        `json:"by,omitempty"`      // display name of who reported it
	Failure  string        `json:"failure,omitempty"` // why nothing was restored, or what is broken; empty: the backup is whole
	Seq      uint64        `json:"seq,omitempty"`     // last commit of the backup; this and what follows only of a backup that is whole
	Made     time.Time     `json:"made,omitzero"`     // when that was committed
	Restore  time.Duration `json:"restore,omitempty"` // how long restoring took
	Verify   time.Duration `json:"verify,omitempty"`  // how long verifying took
	Bytes    int64         `json:"bytes,omitempty"`   // size of the backup
	Rows     int64         `json:"rows,omitempty"`    // that were verified
	Records  int64         `json:"records,omitempty"`
	Recovery bool          `json:"recovery,omitempty"` // it was unsealed by the recovery file alone
}

// Good reports whether the backup could be restored, and is whole.
func (d *Drill) Good() bool { return d.Failure == "" }

// Took is how long it took to have the store back.
func (d *Drill) Took() time.Duration { return d.Restore + d.Verify }

const (
	mostDrills  = 32  // that are kept, besides the last good one
	longestTold = 512 // bytes of a failure
)

var drillRows = store.MountKey(lessor.RootNamespace, "", "drill/")

// drillName is the name of a drill: names are in the order of time, and end with the request by which it was reported.
func drillName(now time.Time, request string) string {
	return now.UTC().Format("20060102T150405.000Z-") + request
}

// reported is a drill, and its row.
type reported struct {
	Drill
	row store.Row
}

func (d *reported) name() string { return d.row.Name[len(drillRows):] }

// loadDrills are the drills that are kept, in the order in which they were reported.
func loadDrills(v store.View) ([]reported, error) {
	var all []reported
	for row, err := range v.Scan(store.Config, drillRows, store.PrefixEnd(drillRows)) {
		if err != nil {
			return nil, err
		}
		d := reported{row: row}
		if err := json.Unmarshal(row.Value, &d.Drill); err != nil {
			return nil, fmt.Errorf("system: damaged row %s: %w", row.Key, err)
		}
		all = append(all, d)
	}
	return all, nil
}

// LastDrills are the drill that was reported last, and the last one that was good; nil where there is none.
func LastDrills(v store.View) (last, good *Drill, err error) {
	all, err := loadDrills(v)
	for i := range all {
		if last = &all[i].Drill; last.Good() {
			good = last
		}
	}
	return last, good, err
}

func (b *Backend) drillRoutes() []engine.Route {
	return []engine.Route{
		{Pattern: "lessor/drills", Help: "what was reported of restore drills; reports one (PUT)", Sudo: true, Fields: []engine.Field{
			{Name: "error", Type: engine.String, Help: "why the backup could not be restored, or is broken; without it, it is whole"},
			{Name: "sequence", Type: engine.Int, Help: "last commit of the backup"},
			{Name: "hash", Type: engine.String, Help: "hash of that commit's header, in hex"},
			{Name: "restore_time", Type: engine.Duration, Help: "how long restoring took"},
			{Name: "verify_time", Type: engine.Duration, Help: "how long verifying took"},
			{Name: "bytes", Type: engine.Int, Help: "size of the backup"},
			{Name: "rows", Type: engine.Int, Help: "rows that were verified"},
			{Name: "records", Type: engine.Int, Help: "audit records that were verified"},
			{Name: "recovery", Type: engine.Bool, Help: "whether the recovery file alone unsealed it"},
		}, Ops: ops{lessor.Read: b.readDrills, lessor.List: b.listDrills, lessor.Update: b.reportDrill}},
	}
}

// data is a drill as it is told.
func (d *Drill) data() map[string]any {
	told := map[string]any{"time": stamp(d.Time), "reported_by": d.By, "ok": d.Good(), "error": d.Failure}
	if d.Good() {
		told["sequence"], told["backup_time"], told["backup_age_seconds"] = d.Seq, stamp(d.Made), d.Time.Sub(d.Made).Seconds()
		told["restore_seconds"], told["verify_seconds"] = d.Restore.Seconds(), d.Verify.Seconds()
		told["bytes"], told["rows"], told["records"], told["recovery"] = d.Bytes, d.Rows, d.Records, d.Recovery
	}
	return told
}

// readDrills tells of the last drill, and of the last good one.
func (b *Backend) readDrills(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	last, good, err := LastDrills(r.View)
	if err != nil {
		return nil, err
	}
	data := map[string]any{"last": nil, "last_good": nil, "last_good_age_seconds": nil, "last_good_backup_age_seconds": nil}
	if last != nil {
		data["last"] = last.data()
	}
	if good != nil {
		data["last_good"], data["last_good_age_seconds"] = good.data(), r.Now.Sub(good.Time).Seconds()
		data["last_good_backup_age_seconds"] = r.Now.Sub(good.Made).Seconds() // as of now, unlike that of the drill itself
	}
	return &engine.Reply{Data: data}, nil
}

// listDrills tells of those that are kept.
func (b *Backend) listDrills(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	all, err := loadDrills(r.View)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, empty()
	}
	keys, info := []string{}, map[string]any{}
	for i := range all {
		d := &all[i]
		keys, info[d.name()] = append(keys, d.name()), d.data()
	}
	return &engine.Reply{Data: map[string]any{"keys": keys, "key_info": info}}, nil
}

// reportDrill keeps the outcome of a drill.
func (b *Backend) reportDrill(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	d, err := b.drilled(r)
	if err != nil {
		return nil, err
	}
	value, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{Data: d.data(), Note: "a drill restored a backup that is whole"}
	if !d.Good() {
		reply.Note = "a drill failed"
	}
	key := store.Key{Table: store.Config, Name: drillRows + drillName(r.Now, r.Op.ID)}
	reply.Txn.Absent(key.Table, key.Name)
	reply.Txn.Put(key.Table, key.Name, value)
	all, err := loadDrills(r.View)
	if err != nil {
		return nil, err
	}
	for _, old := range surplusDrills(all, d.Good()) {
		reply.Txn.Delete(old.Table, old.Name)
	}
	return reply, nil
}

// surplusDrills are the rows that make place for one more drill. The last good one stays, unless the new one is good.
func surplusDrills(all []reported, good bool) (rows []store.Row) {
	for i := len(all) - 1; i >= 0; i-- {
		first := !good && all[i].Good()
		good = good || all[i].Good()
		if i <= len(all)-mostDrills && !first {
			rows = append(rows, all[i].row)
		}
	}
	return rows
}

// drilled is the drill that a request reports, if it can have been one of this store.
func (b *Backend) drilled(r *engine.Request) (*Drill, error) {
	d := &Drill{
		Time: r.Now, By: r.Principal.DisplayName, Failure: r.Str("error"), Restore: r.Dur("restore_time"), Verify: r.Dur("verify_time"),
		Bytes: r.Int("bytes"), Rows: r.Int("rows"), Records: r.Int("records"), Recovery: r.Bool("recovery"),
	}
	if !d.Good() {
		if len(d.Failure) > longestTold || !utf8.ValidString(d.Failure) || !printable(d.Failure) {
			return nil, api.Errorf(api.Invalid, "error must be a line of text of at most %d bytes", longestTold)
		}
		return &Drill{Time: d.Time, By: d.By, Failure: d.Failure}, nil
	}
	seq := r.Int("sequence")
	hash, err := hex.DecodeString(r.Str("hash"))
	if err != nil || seq <= 0 || len(hash) == 0 {
		return nil, api.Errorf(api.Invalid, "missing sequence and hash of the backup's last commit, or the error that there was")
	}
	if d.Bytes < 0 || d.Rows < 0 || d.Records < 0 {
		return nil, api.Errorf(api.Invalid, "bytes, rows and records cannot be negative")
	}
	if uint64(seq) > r.View.Position() {
		return nil, errOtherHistory
	}
	h, own, err := b.Store.Header(uint64(seq))
	if err != nil {
		return nil, err
	}
	if !slices.Equal(own[:], hash) {
		return nil, errOtherHistory
	}
	d.Seq, d.Made = h.Seq, h.Time
	return d, nil
}

var errOtherHistory = api.Errorf(api.Invalid, "this drill did not restore a backup of this store: its last commit is none of this server's chain. Was it of another server, or of a history that a restore gave up?")

func printable(line string) bool {
	for _, r := range line {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}
