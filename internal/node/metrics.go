package node

import (
	"encoding/json"
	"io"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

// revived counts how often the store was opened anew.
func (n *Node) revived() prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "lessor_store_revivals_total", Help: "How often the store was opened anew after it had stopped serving.",
	}, func() float64 { return float64(n.revivals.Load()) })
}

// expose writes the metrics in Prometheus's text format.
func expose(from prometheus.Gatherer, w io.Writer) error {
	families, err := from.Gather()
	if err != nil {
		return err
	}
	encoder := expfmt.NewEncoder(w, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range families {
		if err := encoder.Encode(f); err != nil {
			return err
		}
	}
	return nil
}

// A summary is what Vault's sink in memory tells, as far as there is something to tell. Values are those since the start, not of an interval;
// a counter counts in steps of one.
type summary struct {
	Timestamp string
	Gauges    []gauge
	Points    []gauge // always empty
	Counters  []sample
	Samples   []sample
}

type gauge struct {
	Name   string
	Value  float64
	Labels map[string]string
}

type sample struct {
	Name   string
	Count  uint64
	Sum    float64
	Mean   float64
	Labels map[string]string
}

// summarize writes the metrics as JSON.
func summarize(from prometheus.Gatherer, now time.Time, w io.Writer) error {
	families, err := from.Gather()
	if err != nil {
		return err
	}
	s := summary{Timestamp: now.UTC().Format("2006-01-02 15:04:05 -0700 MST"), Gauges: []gauge{}, Points: []gauge{}, Counters: []sample{}, Samples: []sample{}}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			of := func(count uint64, sum float64) sample {
				return sample{Name: f.GetName(), Count: count, Sum: finite(sum), Mean: finite(sum / float64(count)), Labels: labels}
			}
			switch {
			case m.GetGauge() != nil:
				s.Gauges = append(s.Gauges, gauge{f.GetName(), finite(m.GetGauge().GetValue()), labels})
			case m.GetCounter() != nil:
				n := finite(m.GetCounter().GetValue())
				s.Counters = append(s.Counters, of(uint64(n), n))
			case m.GetSummary() != nil:
				s.Samples = append(s.Samples, of(m.GetSummary().GetSampleCount(), m.GetSummary().GetSampleSum()))
			case m.GetHistogram() != nil:
				s.Samples = append(s.Samples, of(m.GetHistogram().GetSampleCount(), m.GetHistogram().GetSampleSum()))
			}
		}
	}
	return json.NewEncoder(w).Encode(s)
}

// finite is f, or 0 where it is nothing that JSON could write.
func finite(f float64) float64 {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return 0
	}
	return f
}
