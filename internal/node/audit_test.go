package node

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/config"
)

// entries reads the lines of a device's file.
func (p *place) entries(path string) (all []map[string]any) {
	p.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		p.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			p.Fatalf("%q: %v", line, err)
		}
		all = append(all, e)
	}
	return all
}

// awaits waits until a file has a line about a request at a path.
func (p *place) awaits(file, path string) map[string]any {
	p.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if exists(file) {
			for _, e := range p.entries(file) {
				if e["request"].(map[string]any)["path"] == path {
					return e
				}
			}
		}
	}
	p.Fatalf("%s has no line about %s", file, path)
	return nil
}

// TestAuditDevices: as Vault's clients enable, list and disable them, over rotation and restart.
func TestAuditDevices(t *testing.T) {
	p := newPlace(t)
	r := p.start()
	r.fill()
	file := filepath.Join(p.dir, "logs", "audit.log")
	r.must(204, "PUT", "sys/audit/file", `{"type":"file","description":"for tests","options":{"file_path":"`+file+`"}}`)
	r.must(204, "POST", "sys/config/auditing/request-headers/X-Ticket", `{"hmac":false}`)
	r.must(204, "POST", "sys/config/auditing/request-headers/X-Private", ``)
	request, _ := http.NewRequest("GET", r.Address()+"/v1/secret/data/app", nil)
	request.Header = http.Header{"X-Vault-Token": {r.token}, "X-Ticket": {"T-17"}, "X-Private": {"hush"}, "X-Other": {"other"}}
	answer, err := r.client.Do(request)
	if err != nil || answer.StatusCode != 200 {
		t.Fatalf("%v, %v", answer, err)
	}
	_ = answer.Body.Close()

	e := p.awaits(file, "secret/data/app")
	hash := func(s string) string {
		return r.must(200, "PUT", "sys/audit-hash/file", `{"input":"`+s+`"}`)["hash"].(string)
	}
	q := e["request"].(map[string]any)
	headers := q["headers"].(map[string]any)
	if headers["x-ticket"].([]any)[0] != "T-17" || headers["x-private"].([]any)[0] != hash("hush") || headers["x-other"] != nil {
		t.Errorf("headers: %v", headers)
	}
	accessor := r.must(200, "GET", "auth/token/lookup-self", "")["data"].(map[string]any)["accessor"].(string)
	if a := e["auth"].(map[string]any); a["accessor"] != hash(accessor) || q["mount_type"] != "kv" || q["mount_point"] != "secret/" || e["type"] != "response" {
		t.Errorf("line: %v", e)
	}

	// What Vault's clients read.
	list := r.must(200, "GET", "sys/audit", "")
	device := list["data"].(map[string]any)["file/"].(map[string]any)
	if device["type"] != "file" || device["path"] != "file/" || device["description"] != "for tests" || device["local"] != false ||
		device["options"].(map[string]any)["file_path"] != file || list["file/"] == nil {
		t.Errorf("list: %v", list)
	}
	for _, c := range []struct {
		status             int
		method, path, body string
		want               string
	}{
		{400, "PUT", "sys/audit/file", `{"type":"file","options":{"file_path":"/tmp/x"}}`, "path already in use: invalid configuration"},
		{400, "PUT", "sys/audit/other", `{"type":"file","options":{"file_path":"` + file + `"}}`, "file_path already in use"},
		{400, "PUT", "sys/audit/other", `{"type":"file","options":{"file_path":"` + p.data() + `/x"}}`, "lessor's own"},
		{400, "PUT", "sys/audit/other", `{"type":"file","options":{"file_path":"` + p.key() + config.AnchorSuffix + `"}}`, "lessor's own"},
		{400, "PUT", "sys/audit/other", `{"type":"file","options":{"file_path":"` + r.TokenFile + `"}}`, "lessor's own"},
		{400, "PUT", "sys/audit/other", `{"type":"file","options":{"file_path":"/tmp/x","prefix":"x"}}`, "audit prefixing is not enabled in configuration"},
		{400, "PUT", "sys/audit/other", `{"type":"socket","options":{"address":"` + p.dir + `/none","socket_type":"unix"}}`, "audit backend failed test message"},
		{400, "PUT", "sys/audit-hash/none", `{"input":"x"}`, `unknown audit backend \"none/\"`},
		{400, "PUT", "sys/audit-hash/file", `{}`, `the \"input\" parameter is empty`},
		{204, "DELETE", "sys/audit/none", "", ""},
		{200, "GET", "sys/config/auditing/request-headers", "", `"x-ticket":{"hmac":false}`},
		{200, "GET", "sys/config/auditing/request-headers/X-Private", "", `"X-Private":{"hmac":true}`},
		{400, "GET", "sys/config/auditing/request-headers/none", "", "Could not find header in config"},
		{400, "POST", "sys/config/auditing/request-headers/Authorization", `{"hmac":false}`, "credentials"},
		{204, "DELETE", "sys/config/auditing/request-headers/X-Ticket", "", ""},
	} {
		status, answer := r.ask(c.method, c.path, c.body)
		if text, _ := json.Marshal(answer); status != c.status || !strings.Contains(string(text), c.want) {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, status, text)
		}
	}
	if all := r.must(200, "GET", "sys/audit", "")["data"].(map[string]any); len(all) != 1 {
		t.Errorf("what could not be enabled is still there: %v", all)
	}
	if text := r.metrics(); !strings.Contains(text, `lessor_exporter_lag_records{device="file"}`) {
		t.Error("no metrics of the device")
	}

	// Rotation, then a restart.
	if err := os.Rename(file, file+".1"); err != nil {
		t.Fatal(err)
	}
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	r.must(404, "GET", "secret/data/rotated", "")
	p.awaits(file, "secret/data/rotated")
	token := r.token
	r.stop()
	stopped := len(p.entries(file))
	r = p.start()
	r.token = token
	r.must(404, "GET", "secret/data/restarted", "")
	p.awaits(file, "secret/data/restarted")
	if n := len(p.entries(file)); n != stopped+1 {
		t.Errorf("the file had %d lines, after a restart and one request it has %d", stopped, n)
	}
	check := r.must(200, "GET", "sys/lessor/audit/check/file", "")["data"].(map[string]any)
	if check["ok"] != true || check["missing_records"].(float64) != 0 || check["repeated_lines"].(float64) != 0 {
		t.Errorf("the file does not fit the trail: %v", check)
	}
	var last [2]float64
	for _, e := range append(p.entries(file+".1"), p.entries(file)...) {
		l := e["lessor"].(map[string]any)
		at := [2]float64{l["sequence"].(float64), l["index"].(float64)}
		if at[0] < last[0] || at[0] == last[0] && at[1] <= last[1] {
			t.Errorf("%v comes after %v", at, last)
		}
		last = at
	}

	r.must(204, "DELETE", "sys/audit/file", "")
	all := p.entries(file)
	if l := all[len(all)-1]; l["request"].(map[string]any)["operation"] != "delete" {
		t.Errorf("the last line is not about the end of the device: %v", l)
	}
	for _, f := range []string{file, file + ".1"} {
		text, _ := os.ReadFile(f)
		for _, secret := range []string{token, secretValue, "hush", accessor} {
			if strings.Contains(string(text), secret) {
				t.Errorf("%s holds %q", f, secret)
			}
		}
	}
}

func (r *running) metrics() string {
	request, _ := http.NewRequest("GET", r.Address()+"/v1/sys/metrics?format=prometheus", nil)
	request.Header.Set("X-Vault-Token", r.token)
	answer, err := r.client.Do(request)
	if err != nil {
		r.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	var b strings.Builder
	buffer := make([]byte, 1<<16)
	for {
		n, err := answer.Body.Read(buffer)
		b.Write(buffer[:n])
		if err != nil {
			return b.String()
		}
	}
}
