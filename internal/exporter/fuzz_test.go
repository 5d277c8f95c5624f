package exporter

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/store"
)

// FuzzOptions: options of an audit device are refused or taken; a file that is taken has a name to write to.
func FuzzOptions(f *testing.F) {
	f.Add("file", "file_path", "/var/log/audit.log", "mode", "0600")
	f.Add("file", "file_path", "stdout", "format", "jsonx")
	f.Add("socket", "address", "127.0.0.1:9", "write_timeout", "1s")
	f.Add("syslog", "facility", "AUTH", "tag", "x")
	f.Fuzz(func(t *testing.T, kind, a, b, c, d string) {
		s, err := parse(kind, map[string]string{a: b, c: d})
		if err != nil {
			if s != nil {
				t.Fatal("settings and an error")
			}
			return
		}
		switch kind {
		case File:
			if s.file == "" || s.file != "stdout" && s.file != "discard" && !filepath.IsAbs(s.file) && filepath.Clean(s.file) == "." {
				t.Fatalf("file %q", s.file)
			}
		case Socket:
			if s.address == "" || s.writeTimeout <= 0 {
				t.Fatalf("%+v", s)
			}
		}
	})
}

// FuzzLine: whatever a record holds, its line is one line that tells it again, harmless to a shell, and what it is cut down to fits a
// datagram. What stands in a file that somebody else may have written is read, or not, without harm.
func FuzzLine(f *testing.F) {
	set, err := parse(File, map[string]string{"file_path": "discard"})
	if err != nil {
		f.Fatal(err)
	}
	w := &writer{device: &Device{UUID: "0a1b2c3d", Path: "d/"}, set: set, keys: fixed{}}
	f.Add("secret/data/app", "approle-billing", "billing", `path "secret/data/*"`, []byte(`{"type":"response","request":{"id":"x"}}`))
	f.Add("a\x00\n\u2028\xff", "$(reboot)`", "\"\\", "</script>", []byte("{}\n"))
	f.Fuzz(func(t *testing.T, path, name, policy, rule string, foreign []byte) {
		r := &audit.At{Seq: 1, Record: audit.Record{Operation: "read", Path: path, Phase: audit.Done, Granted: true, Name: name, Accessor: "a", Policy: policy, Rule: rule}}
		line := w.append(nil, &store.Commit{Header: audit.Header{Incarnation: 1, Count: 1}}, r)
		if n := bytes.IndexByte(line, '\n'); n != len(line)-1 || bytes.ContainsAny(line, "$`\x00") {
			t.Fatalf("line %q", line)
		}
		e, err := w.parse(line)
		if err != nil || !w.looksAudited(line) {
			t.Fatalf("line %q: %v", line, err)
		}
		told := func(s string) string { return strings.ToValidUTF8(s, "\ufffd") }
		if squeeze(e.Request.Path) != squeeze(told(path)) || squeeze(e.Lessor.Rule) != squeeze(told(rule)) || squeeze(e.Lessor.Policy) != squeeze(told(policy)) {
			t.Fatalf("of %q, %q, %q line %q", path, policy, rule, line)
		}
		if short := w.shorten(line); len(short) == 0 || len(short) > 8<<10 {
			t.Fatalf("%d bytes: %q", len(short), short)
		}
		_ = w.looksAudited(foreign)
		_ = w.shorten(foreign)
	})
}

// squeeze makes one replacement character of several in a row: how many bytes one stands for is the encoder's business.
func squeeze(s string) string {
	for strings.Contains(s, "\ufffd\ufffd") {
		s = strings.ReplaceAll(s, "\ufffd\ufffd", "\ufffd")
	}
	return s
}
