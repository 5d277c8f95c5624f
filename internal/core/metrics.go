package core

import (
	"cmp"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/system"
)

// counters count what passed the gate.
type counters struct {
	logins, issued, renewals, granted, denied, failed atomic.Uint64
}

func (c *counters) count(err error) {
	switch api.KindOf(err) {
	case api.Denied, api.Unauthenticated:
		c.denied.Add(1)
		return
	}
	if err != nil {
		c.failed.Add(1)
		return
	}
	c.granted.Add(1)
}

// metric describes one of the values that a Core exports.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	get  func(*Core) float64
}

func describe(name, help string, kind prometheus.ValueType, get func(*Core) float64) metric {
	return metric{prometheus.NewDesc("lessor_"+name, help, nil, nil), kind, get}
}

var metrics = []metric{
	describe("requests_granted_total", "Operations that policy granted.", prometheus.CounterValue, func(c *Core) float64 { return float64(c.counters.granted.Load()) }),
	describe("requests_denied_total", "Operations that were denied.", prometheus.CounterValue, func(c *Core) float64 { return float64(c.counters.denied.Load()) }),
	describe("requests_failed_total", "Operations that were granted and failed.", prometheus.CounterValue, func(c *Core) float64 { return float64(c.counters.failed.Load()) }),
	describe("logins_total", "Tokens given by auth methods.", prometheus.CounterValue, func(c *Core) float64 { return float64(c.counters.logins.Load()) }),
	describe("credentials_issued_total", "Dynamic credentials handed out.", prometheus.CounterValue, func(c *Core) float64 { return float64(c.counters.issued.Load()) }),
	describe("lease_renewals_total", "Leases renewed.", prometheus.CounterValue, func(c *Core) float64 { return float64(c.counters.renewals.Load()) }),
	describe("commits_total", "Commits of the store.", prometheus.CounterValue, func(c *Core) float64 { return float64(c.Store.Stats().Commits) }),
	describe("commit_conflicts_total", "Transactions that had to walk again.", prometheus.CounterValue, func(c *Core) float64 { return float64(c.Store.Stats().Conflicts) }),
	describe("store_sequence", "Sequence of the last commit.", prometheus.GaugeValue, func(c *Core) float64 { return float64(c.Store.Head().Seq) }),
	describe("store_used_bytes", "Space that the store uses.", prometheus.GaugeValue, func(c *Core) float64 { used, _ := c.Store.Usage(); return float64(used) }),
	describe("store_free_bytes", "Space that is free where the store lives; -1: unbounded.", prometheus.GaugeValue, func(c *Core) float64 { _, free := c.Store.Usage(); return float64(free) }),
	describe("leases_expired_total", "Leases whose time was over.", prometheus.CounterValue, func(c *Core) float64 { return float64(c.reaper.Metrics().Expired) }),
	describe("leases_revoked_total", "Leases ended by wide revocations.", prometheus.CounterValue, func(c *Core) float64 { return float64(c.reaper.Metrics().Revoked) }),
	describe("leases_unconfirmed_total", "Leases whose credential was never confirmed.", prometheus.CounterValue, func(c *Core) float64 { return float64(c.reaper.Metrics().Unconfirmed) }),
	describe("tokens_ended_total", "Tokens ended in the background.", prometheus.CounterValue, func(c *Core) float64 { return float64(c.reaper.Metrics().Tokens) }),
	describe("credentials_reverted_total", "Credentials that their target confirmed gone.", prometheus.CounterValue, func(c *Core) float64 { return float64(c.reaper.Metrics().Reverted) }),
	describe("credential_reverts_failed_total", "Reverts that a target refused or did not answer.", prometheus.CounterValue, func(c *Core) float64 { return float64(c.reaper.Metrics().Failed) }),
	describe("leases_forced_total", "Leases dropped although their target did not confirm.", prometheus.CounterValue, func(c *Core) float64 { return float64(c.reaper.Metrics().Forced) }),
	describe("rotations_total", "Steps of rotations of passwords that were due and succeeded, proofs and looks at who uses one included.", prometheus.CounterValue, func(c *Core) float64 { return float64(c.rotator.Metrics().Done) }),
	describe("rotations_failed_total", "Rotations that were due and failed; they are tried again.", prometheus.CounterValue, func(c *Core) float64 { return float64(c.rotator.Metrics().Failed) }),
	describe("rotations_overdue", "Accounts whose rotation fails or is late.", prometheus.GaugeValue, (*Core).overdue),
	describe("credentials_outlived", "Credentials that outlived their lease.", prometheus.GaugeValue, (*Core).outlived),
	describe("targets_unsearched", "Targets that could not be searched yet for credentials that the store does not know, after it was put back to an earlier state.",
		prometheus.GaugeValue, (*Core).failing),
	describe("event_subscribers", "Who waits for events at this node.", prometheus.GaugeValue, func(c *Core) float64 { return float64(c.feed.Subscribers()) }),
	describe("background_shards", "Parts, of 64, of the background work that this node does; all nodes together do all.", prometheus.GaugeValue, func(c *Core) float64 { return float64(c.Claims.Held()) }),
	describe("fenced", "1 while this is a restored copy that touches no target.", prometheus.GaugeValue, func(c *Core) float64 {
		if c.Fenced() {
			return 1
		}
		return 0
	}),
}

// probed describes a gauge with a label for each target, which is there as long as it is 1.
var probed = prometheus.NewDesc("lessor_target_failing", "1 for a target whose credentials or passwords this node has to change, and which it only probes, since it fails.",
	[]string{"mount", "target"}, nil)

// Gauges of restore drills. While they cannot be read they are left out: that says nothing about drills.
var (
	drillAge    = gauge("drill_age_seconds", "How long ago the last restore drill was reported that restored a backup which is whole; -1: none was.")
	drillBackup = gauge("drill_backup_age_seconds", "How old the last commit is by now that this drill restored; -1: there was none.")
	drillTook   = gauge("drill_duration_seconds", "How long this drill took to restore and verify; -1: there was none.")
	drillGood   = gauge("drill_success", "1 if the last restore drill that was reported restored a backup which is whole, 0 if it failed; -1: none was reported.")
)

func gauge(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("lessor_"+name, help, nil, nil)
}

// Describe and Collect make a Core a prometheus.Collector.
func (c *Core) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range metrics {
		ch <- m.desc
	}
	for _, d := range []*prometheus.Desc{probed, drillAge, drillBackup, drillTook, drillGood} {
		ch <- d
	}
}

// Collect tells the values.
func (c *Core) Collect(ch chan<- prometheus.Metric) {
	for _, m := range metrics {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.get(c))
	}
	for _, t := range c.Failing() {
		ch <- prometheus.MustNewConstMetric(probed, prometheus.GaugeValue, 1, t.Mount, t.Name)
	}
	c.collectDrills(ch)
}

// collectDrills tells what was reported of restore drills.
func (c *Core) collectDrills(ch chan<- prometheus.Metric) {
	last, good, err := c.drills()
	if err != nil {
		return
	}
	age, backup, took, success := -1.0, -1.0, -1.0, -1.0
	if good != nil {
		now := c.Store.Now()
		age, backup, took = now.Sub(good.Time).Seconds(), now.Sub(good.Made).Seconds(), good.Took().Seconds()
	}
	if last != nil {
		success = 0
		if last.Good() {
			success = 1
		}
	}
	for _, m := range []struct {
		desc  *prometheus.Desc
		value float64
	}{{drillAge, age}, {drillBackup, backup}, {drillTook, took}, {drillGood, success}} {
		ch <- prometheus.MustNewConstMetric(m.desc, prometheus.GaugeValue, m.value)
	}
}

// Target is a target of a mount.
type Target struct {
	Mount string // path
	Name  string
}

// Failing are the targets that this node works at and only probes for now, since they fail; none if the mounts cannot be read. Of several nodes, each knows
// of its own.
func (c *Core) Failing() []Target {
	failing := map[rotation.Target]bool{}
	for _, t := range c.reaper.Metrics().Targets {
		if t.Open {
			failing[rotation.Target{Mount: t.Mount, Name: t.Target}] = true
		}
	}
	for _, t := range c.rotator.Failing() {
		failing[t] = true
	}
	if len(failing) == 0 {
		return nil
	}
	v, err := c.Store.View()
	if err != nil {
		return nil
	}
	defer v.Close()
	table, err := c.table(v)
	if err != nil {
		return nil
	}
	var all []Target
	for t := range failing {
		if m := table.ByUUID(t.Mount); m != nil {
			all = append(all, Target{m.Path, t.Name})
		}
	}
	slices.SortFunc(all, func(a, b Target) int {
		return cmp.Or(strings.Compare(a.Mount, b.Mount), strings.Compare(a.Name, b.Name))
	})
	return slices.Compact(all) // a mount that is being removed may have left its path to another one
}

// outlived counts the credentials that outlived their lease, up to a thousand.
func (c *Core) outlived() float64 {
	v, err := c.Store.View()
	if err != nil {
		return 0
	}
	defer v.Close()
	found, err := lease.Outlived(v, c.Store.Now(), lease.OutlivedGrace, 1000)
	if err != nil {
		return 0
	}
	return float64(len(found))
}

// drills are the last restore drill that was reported, and the last good one; nil: there is none.
func (c *Core) drills() (last, good *system.Drill, err error) {
	v, err := c.Store.View()
	if err != nil {
		return nil, nil, err
	}
	defer v.Close()
	return system.LastDrills(v)
}
