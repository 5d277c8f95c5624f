package node

import (
	"testing"
	"time"
)

// TestMetricsAsJSON: who does not ask for Prometheus's format is told the same in the shape of Vault's.
func TestMetricsAsJSON(t *testing.T) {
	r := newPlace(t).start()
	answer := r.must(200, "GET", "sys/metrics", "")
	if at, err := time.Parse("2006-01-02 15:04:05 -0700 MST", answer["Timestamp"].(string)); err != nil || time.Since(at).Abs() > time.Minute {
		t.Errorf("timestamp %v: %v", answer["Timestamp"], err)
	}
	named := func(list, name string) map[string]any {
		for _, v := range answer[list].([]any) {
			if m := v.(map[string]any); m["Name"] == name {
				return m
			}
		}
		return nil
	}
	if g := named("Gauges", "go_goroutines"); g == nil || g["Value"].(float64) < 2 || g["Labels"] == nil {
		t.Errorf("a gauge: %v", g)
	}
	r.must(200, "GET", "sys/mounts", "")
	answer = r.must(200, "GET", "sys/metrics", "")
	if c := named("Counters", "lessor_requests_granted_total"); c == nil || c["Count"].(float64) < 2 || c["Sum"] != c["Count"] || c["Mean"] != 1.0 {
		t.Errorf("a counter: %v", c)
	}
	if s := named("Samples", "go_gc_duration_seconds"); s == nil || s["Count"] == nil || s["Sum"] == nil {
		t.Errorf("a sample: %v", s)
	}
	if points, ok := answer["Points"].([]any); !ok || len(points) > 0 {
		t.Errorf("points: %v", answer["Points"])
	}
}
