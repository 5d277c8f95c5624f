package node

import (
	"log/slog"
	"net/http"
	"testing"
)

// What the node tells of itself.
func TestAbout(t *testing.T) {
	p := newPlace(t)
	p.o.Level = &slog.LevelVar{}
	r := p.start()
	node := r.must(200, "GET", "sys/ha-status", "")["data"].(map[string]any)["nodes"].([]any)[0].(map[string]any)
	if node["active_node"] != true || node["api_address"] != r.Address() || node["hostname"] == "" {
		t.Errorf("ha-status: %v", node)
	}
	history := r.must(200, "LIST", "sys/version-history", "")["data"].(map[string]any)
	if got := history["key_info"].(map[string]any)["test"].(map[string]any); got["previous_version"] != nil || got["timestamp_installed"] == "" {
		t.Errorf("version-history: %v", history)
	}
	settings := r.must(200, "GET", "sys/config/state/sanitized", "")["data"].(map[string]any)
	if settings["storage"].(map[string]any)["type"] != "pebble" || settings["default_lease_ttl"] != 2764800.0 {
		t.Errorf("settings: %v", settings)
	}
	_, flights := r.ask("GET", "sys/in-flight-req", "")
	if len(flights) != 1 {
		t.Fatalf("in flight: %v", flights)
	}
	for _, f := range flights {
		if f := f.(map[string]any); f["request_path"] != "/v1/sys/in-flight-req" || f["request_method"] != http.MethodGet || f["client_remote_address"] != "127.0.0.1" {
			t.Errorf("in flight: %v", f)
		}
	}
	for _, level := range []string{"trace", "error"} {
		r.must(204, "POST", "sys/loggers", `{"level":"`+level+`"}`)
		if got := r.must(200, "GET", "sys/loggers", "")["data"].(map[string]any)["core"]; got != level {
			t.Errorf("level %v, want %s", got, level)
		}
	}
	r.must(204, "DELETE", "sys/loggers", "")
	if got := p.o.Level.Level(); got != p.config().LogLevel {
		t.Errorf("the level is %v again", got)
	}
	token := r.token
	r.stop()
	p.o.Version = "test-2"
	r = p.start()
	r.token = token
	history = r.must(200, "LIST", "sys/version-history", "")["data"].(map[string]any)
	if got := history["key_info"].(map[string]any)["test-2"].(map[string]any); got["previous_version"] != "test" || len(history["keys"].([]any)) != 2 {
		t.Errorf("version-history after an upgrade: %v", history)
	}
}
