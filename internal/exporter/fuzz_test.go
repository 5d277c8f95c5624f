package exporter

import (
	"path/filepath"
	"testing"
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
