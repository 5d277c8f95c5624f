package archive

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// What a Keeper shows to Prometheus.
var (
	age      = prometheus.NewDesc("lessor_backup_age_seconds", "How far back the store would be set by a restore of the last backup.", nil, nil)
	success  = prometheus.NewDesc("lessor_backup_last_success_timestamp_seconds", "When backing up succeeded last, were it that there was nothing to do.", nil, nil)
	lag      = prometheus.NewDesc("lessor_backup_lag_commits", "Commits that are in no backup yet.", nil, nil)
	failing  = prometheus.NewDesc("lessor_backup_failing", "1 while backing up fails.", nil, nil)
	failures = prometheus.NewDesc("lessor_backup_failures_total", "Attempts at backing up that failed, since the start.", nil, nil)
	segments = prometheus.NewDesc("lessor_backup_segments_total", "Segments of backups that were written, since the start.", nil, nil)
	written  = prometheus.NewDesc("lessor_backup_bytes_total", "Bytes of backups that were written, since the start.", nil, nil)
)

// Describe and Collect make a Keeper a prometheus.Collector.
func (k *Keeper) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{age, success, lag, failing, failures, segments, written} {
		ch <- d
	}
}

// Collect tells the values. The age is that since the start of the store's chain, as long as no backup is known.
func (k *Keeper) Collect(ch chan<- prometheus.Metric) {
	s := k.Status()
	tell := func(d *prometheus.Desc, t prometheus.ValueType, v float64) {
		ch <- prometheus.MustNewConstMetric(d, t, v)
	}
	covered := s.Covered
	if covered.IsZero() {
		covered, _ = k.o.Store.Committed(1)
	}
	if s.State != "fenced" && !covered.IsZero() {
		tell(age, prometheus.GaugeValue, max(0, k.o.Store.Now().Sub(covered).Seconds()))
	}
	if !s.Success.IsZero() {
		tell(success, prometheus.GaugeValue, float64(s.Success.UnixMilli())/float64(time.Second/time.Millisecond))
	}
	head := k.o.Store.Head().Seq
	tell(lag, prometheus.GaugeValue, float64(head-min(s.after, head)))
	failed := 0.0
	if s.State == "failing" {
		failed = 1
	}
	tell(failing, prometheus.GaugeValue, failed)
	tell(failures, prometheus.CounterValue, float64(s.Failures))
	tell(segments, prometheus.CounterValue, float64(s.Segments))
	tell(written, prometheus.CounterValue, float64(s.Bytes))
}
