// Package exporter tells the audit trail to the world outside: the audit devices of Vault's API, which are files, sockets and
// syslog. The trail itself is the store's chain of commits and always on; a device is a copy, told after the fact.
//
// A device is a row of configuration, and a cursor: the commit up to which it has been told everything. A follower reads the chain
// from there, writes a line for each record, in order, and now and then saves its cursor. So a device that fails, stalls or is full
// holds nobody up and loses nothing: it lags, says so (log, metrics, GET sys/audit) and catches up. After a crash it is told
// the commits since its cursor again; each line names commit and index, by which repeats are known, and a file is looked at
// before it is continued.
//
// A cursor's commit carries no audit record: it changes nothing that anybody could see or use, its header is in the chain like any
// other's, and a record of it would be a line, which moves the cursor, which is a record.
package exporter

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/claim"
	"github.com/lessor-dev/lessor/internal/store"
)

// Options of Exporters. Store and Keys are needed.
type Options struct {
	Store   *store.DB
	Keys    Keys
	Log     *slog.Logger  // nil: none
	Stdout  io.Writer     // what file_path=stdout means; nil: os.Stdout
	Private []string      // files and folders of lessor's own: no device is a file there, or one of them
	Claims  *claim.Claims // which devices this node tells; nil: all
}

const (
	lookEvery    = 500 * time.Millisecond // how often the configuration is looked at unless a Nudge says so
	saveEvery    = 5 * time.Second        // a cursor is saved, while it moves
	grace        = 2 * time.Second        // what a follower may take to tell the rest when it is to end
	probing      = 5 * time.Second        // how long enabling a device waits for it
	stopPatience = grace + time.Second
)

// Exporters run one follower for each device that the store's configuration names. Methods are safe for concurrent use.
type Exporters struct {
	o     Options
	nudge chan struct{}

	mu      sync.Mutex
	running map[string]*follower // by the device's UUID
	looked  uint64               // position of the View that running is true for
	moved   chan struct{}        // closed when looked moves
}

// New makes Exporters; Run runs them.
func New(o Options) *Exporters {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	return &Exporters{o: o, nudge: make(chan struct{}, 1), running: map[string]*follower{}, moved: make(chan struct{})}
}

// Run keeps followers as the configuration has them, until ctx ends; then each may tell the rest, for a moment. While the store
// is a restored copy that nobody has resumed, nothing is told: its devices are production's.
func (x *Exporters) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var seen [2]uint64
	for ctx.Err() == nil {
		if err := x.look(ctx, &seen); err != nil && ctx.Err() == nil {
			x.o.Log.Error("reading the configuration of audit devices failed; it is tried again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-x.nudge:
		}
	}
	x.mu.Lock()
	all := slices.Collect(maps.Values(x.running))
	clear(x.running)
	x.mu.Unlock()
	for _, f := range all {
		f.stop()
	}
	patience := time.After(stopPatience)
	for _, f := range all {
		select {
		case <-f.done:
		case <-patience:
			x.o.Log.Warn("an audit device did not end in time; it is told the rest after the next start", "device", f.device.Path)
			return
		}
	}
}

// look brings the followers up to the configuration, if that changed.
func (x *Exporters) look(ctx context.Context, seen *[2]uint64) error {
	v, err := x.o.Store.View()
	if err != nil {
		return err
	}
	defer v.Close()
	now := [2]uint64{v.Changed(store.Config), v.Changed(store.Meta)}
	if now != *seen {
		devices, err := Load(v)
		if err != nil {
			return err
		}
		fence, err := v.Get(store.Fenced)
		if err != nil {
			return err
		}
		if fence.Exists() {
			devices = nil
		}
		x.apply(ctx, devices)
		*seen = now
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.looked = v.Position()
	close(x.moved)
	x.moved = make(chan struct{})
	return nil
}

// apply starts the followers of new devices and ends those of devices that are gone, which are told the rest: the commit that disabled
// them, too.
func (x *Exporters) apply(ctx context.Context, devices []*Device) {
	x.mu.Lock()
	defer x.mu.Unlock()
	wanted := map[string]bool{}
	for _, d := range devices {
		wanted[d.UUID] = true
		if x.running[d.UUID] == nil {
			f := newFollower(x.o, d)
			x.running[d.UUID] = f
			go f.run(ctx)
		}
	}
	for id, f := range x.running {
		if !wanted[id] {
			delete(x.running, id)
			f.stop()
		}
	}
}

// Nudge makes Run look at the configuration at once.
func (x *Exporters) Nudge() {
	select {
	case x.nudge <- struct{}{}:
	default:
	}
}

// Reload makes each device open its file, or connection, anew: after logs were rotated.
func (x *Exporters) Reload() {
	for _, f := range x.followers() {
		f.reload()
	}
}

func (x *Exporters) followers() []*follower {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := slices.Collect(maps.Values(x.running))
	slices.SortFunc(all, func(a, b *follower) int { return byPath(a.device, b.device) })
	return all
}

func (x *Exporters) follower(uuid string) *follower {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.running[uuid]
}

// settled waits until the configuration of now was looked at.
func (x *Exporters) settled(ctx context.Context) error {
	head := x.o.Store.Head().Seq
	for {
		x.mu.Lock()
		looked, moved := x.looked, x.moved
		x.mu.Unlock()
		if looked >= head {
			return nil
		}
		x.Nudge()
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Enabled waits until a device that was just committed could be opened. If it cannot be, it is disabled again, on record, and the error,
// of kind Invalid, says why: so enabling a device that does not work fails, as with Vault, and yet nothing outside was
// touched before it was on record.
func (x *Exporters) Enabled(ctx context.Context, d *Device) error {
	waiting, cancel := context.WithTimeout(ctx, probing)
	defer cancel()
	err := x.settled(waiting)
	if f := x.follower(d.UUID); err == nil && f != nil {
		err = f.opening(waiting)
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err() // nobody waits any more; the device stays, and says how it fares
	case errors.Is(err, context.DeadlineExceeded):
		err = errors.New("it could not be opened in time")
	}
	if undo := x.withdraw(context.WithoutCancel(ctx), d); undo != nil {
		return undo
	}
	return api.Errorf(api.Invalid, "audit backend failed test message: %v; skip_test=true enables one that cannot be reached yet", err)
}

// withdraw disables a device that could not be opened.
func (x *Exporters) withdraw(ctx context.Context, d *Device) error {
	_, err := x.o.Store.Update(ctx, func(v store.View, txn *store.Txn) error {
		at, err := Find(v, d.Path)
		if err != nil || at == nil || at.UUID != d.UUID {
			return err
		}
		Disable(txn, at)
		txn.Audit = []audit.Record{{
			Time: x.o.Store.Now(), Operation: "disable", Path: "sys/audit/" + d.Name(), Phase: audit.Done, System: "exporter", Granted: true,
			Rule: "system:exporter", Policy: "system", Cause: "the device could not be opened",
		}}
		return nil
	})
	if err == nil {
		x.Nudge()
	}
	return err
}

// Disabled waits, for a moment, until a device that is no longer configured was told the rest.
func (x *Exporters) Disabled(ctx context.Context, d *Device) error {
	waiting, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	f := x.follower(d.UUID)
	_ = x.settled(waiting)
	if f != nil {
		select {
		case <-f.done:
		case <-waiting.Done():
		}
	}
	return nil
}

// Status tells how the device fares on this node.
func (x *Exporters) Status(d *Device) Status {
	f := x.follower(d.UUID)
	if f == nil {
		return Status{State: "stopped"}
	}
	return f.tell()
}

// What the exporters show to Prometheus.
var (
	lagRecords  = prometheus.NewDesc("lessor_exporter_lag_records", "Audit records that a device has not been told yet.", []string{"device"}, nil)
	lagCommits  = prometheus.NewDesc("lessor_exporter_lag_commits", "Commits that a device is behind.", []string{"device"}, nil)
	toldRecords = prometheus.NewDesc("lessor_exporter_records_total", "Audit records that a device was told since the start.", []string{"device"}, nil)
	lostRecords = prometheus.NewDesc("lessor_exporter_pruned_records_total", "Audit records that retention removed before a device was told them.", []string{"device"}, nil)
	failing     = prometheus.NewDesc("lessor_exporter_failing", "1 while a device fails, by the kind of its last error.", []string{"device", "kind"}, nil)
)

// Describe and Collect make Exporters a prometheus.Collector.
func (x *Exporters) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{lagRecords, lagCommits, toldRecords, lostRecords, failing} {
		ch <- d
	}
}

// Collect tells the values.
func (x *Exporters) Collect(ch chan<- prometheus.Metric) {
	for _, f := range x.followers() {
		s, name := f.tell(), f.device.Name()
		gauge := func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{name}, labels...)...)
		}
		gauge(lagRecords, float64(s.Lag))
		gauge(lagCommits, float64(s.Behind))
		ch <- prometheus.MustNewConstMetric(toldRecords, prometheus.CounterValue, float64(s.Told), name)
		ch <- prometheus.MustNewConstMetric(lostRecords, prometheus.CounterValue, float64(s.Lost), name)
		if s.Kind != "" {
			gauge(failing, 1, s.Kind)
		}
	}
}
