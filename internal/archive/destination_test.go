package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

// service is a server that speaks S3, in memory, before which stands what goes wrong.
type service struct {
	*httptest.Server
	fault atomic.Pointer[func(w http.ResponseWriter, r *http.Request, serve http.Handler)]
}

// startService starts one with a bucket and the credentials for it in the environment.
func startService(t *testing.T) *service {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket("backups"); err != nil {
		t.Fatal(err)
	}
	real := gofakes3.New(backend, gofakes3.WithLogger(gofakes3.StdLog(log.New(io.Discard, "", 0)))).Server()
	s := &service{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := s.fault.Load(); f != nil {
			(*f)(w, r, real)
			return
		}
		real.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	t.Setenv("AWS_ACCESS_KEY_ID", "lessor")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "not-to-be-seen-anywhere")
	return s
}

func (s *service) open(t *testing.T) Destination {
	t.Helper()
	d, err := Open("s3://backups/here/and there?region=eu-1&endpoint=" + s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// breaks makes the service do f in its own place, until mended.
func (s *service) breaks(f func(w http.ResponseWriter, r *http.Request, serve http.Handler)) {
	s.fault.Store(&f)
}
func (s *service) mended() { s.fault.Store(nil) }

// places make a destination of each kind.
var places = map[string]func(t *testing.T) Destination{
	"folder": func(t *testing.T) Destination {
		d, err := Open("file://" + filepath.Join(t.TempDir(), "not", "there yet"))
		if err != nil {
			t.Fatal(err)
		}
		return d
	},
	"s3": func(t *testing.T) Destination { return startService(t).open(t) },
}

// TestDestinations holds each kind of destination to what the interface promises.
func TestDestinations(t *testing.T) {
	for kind, open := range places {
		t.Run(kind, func(t *testing.T) {
			d, ctx := open(t), t.Context()
			if found := list(t, d); len(found) != 0 {
				t.Fatalf("a new destination has %v", found)
			}
			if _, err := d.Read(ctx, "set/a"); !errors.Is(err, ErrGone) {
				t.Errorf("reading what is not there: %v", err)
			}
			if err := d.Delete(ctx, "set/a"); err != nil {
				t.Errorf("deleting what is not there: %v", err)
			}
			large := bytes.Repeat([]byte("0123456789abcdef"), 20<<16) // more than other clients put into one part
			contents := map[string][]byte{"set/a": []byte("one"), "set/b": {0}, "other/large": large}
			for range 2 { // the second time, all is there
				for name, content := range contents {
					if err := d.Write(ctx, name, content); err != nil {
						t.Fatalf("%s: %v", name, err)
					}
				}
			}
			for name, content := range contents {
				if got, err := d.Read(ctx, name); err != nil || !bytes.Equal(got, content) {
					t.Errorf("%s: %d bytes, %v", name, len(got), err)
				}
			}
			if got := list(t, d); !slices.Equal(got, []string{fmt.Sprint("other/large ", len(large)), "set/a 3", "set/b 1"}) {
				t.Errorf("list: %v", got)
			}
			ended, cancel := context.WithCancel(ctx)
			cancel()
			if err := d.Write(ended, "set/c", []byte("late")); err == nil {
				t.Error("wrote although nobody waits any more")
			}
			for name := range contents {
				if err := d.Delete(ctx, name); err != nil {
					t.Fatal(err)
				}
			}
			if got := list(t, d); len(got) != 0 {
				t.Errorf("after all was deleted: %v", got)
			}
		})
	}
}

func list(t *testing.T, d Destination) (found []string) {
	t.Helper()
	for o, err := range d.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, fmt.Sprint(o.Name, " ", o.Size))
	}
	slices.Sort(found)
	return found
}

// TestPages lists more objects than one answer of S3 has.
func TestPages(t *testing.T) {
	d := startService(t).open(t)
	for i := range 1100 {
		if err := d.Write(t.Context(), fmt.Sprintf("set/%04d", i), []byte{1}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(list(t, d)); n != 1100 {
		t.Errorf("listed %d of 1100", n)
	}
}

// TestFolderLeftovers: what a writer that died was writing is not listed, and gone after a day.
func TestFolderLeftovers(t *testing.T) {
	dir := t.TempDir()
	d := Folder(dir)
	if err := d.Write(t.Context(), "set/a", []byte("whole")); err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(dir, "set", ".unfinished-1")
	if err := os.WriteFile(half, []byte("hal"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := list(t, d); !slices.Equal(got, []string{"set/a 5"}) {
		t.Errorf("list: %v", got)
	}
	if _, err := os.Stat(half); err != nil {
		t.Errorf("it may be somebody's at work: %v", err)
	}
	long := time.Now().Add(-25 * time.Hour)
	if err := os.Chtimes(half, long, long); err != nil {
		t.Fatal(err)
	}
	list(t, d)
	if _, err := os.Stat(half); err == nil {
		t.Error("what was abandoned is still there")
	}
	for _, name := range []string{"../a", "/a", "set/../../a"} {
		if err := d.Write(t.Context(), name, nil); err == nil {
			t.Errorf("wrote %q", name)
		}
	}
}

// TestServiceFails: a service that answers 503, cuts connections midway or answers half: errors say so, name no secret, and what is mended works.
func TestServiceFails(t *testing.T) {
	s := startService(t)
	d := s.open(t)
	content := bytes.Repeat([]byte("x"), 1<<20)
	if err := d.Write(t.Context(), "set/there", content); err != nil {
		t.Fatal(err)
	}
	cut := func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		_, _ = io.CopyN(io.Discard, r.Body, 1000)
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_ = conn.Close()
		}
	}
	half := func(w http.ResponseWriter, r *http.Request, serve http.Handler) {
		record := httptest.NewRecorder()
		serve.ServeHTTP(record, r)
		for name, values := range record.Header() {
			w.Header()[name] = values
		}
		w.Header().Set("Content-Length", fmt.Sprint(record.Body.Len()))
		w.WriteHeader(record.Code)
		_, _ = w.Write(record.Body.Bytes()[:record.Body.Len()/2])
	}
	busy := func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	refuses := func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>`)
	}
	for name, fault := range map[string]func(http.ResponseWriter, *http.Request, http.Handler){"busy": busy, "cut": cut, "half": half, "refuses": refuses} {
		t.Run(name, func(t *testing.T) {
			s.breaks(fault)
			defer s.mended()
			if _, err := d.Read(t.Context(), "set/there"); err == nil || errors.Is(err, ErrGone) || strings.Contains(err.Error(), "not-to-be-seen") {
				t.Errorf("read: %v", err)
			}
			if name == "half" {
				return // its writes are done, its lists are cut in the XML
			}
			if err := d.Write(t.Context(), "set/"+name, content); err == nil || strings.Contains(err.Error(), "not-to-be-seen") {
				t.Errorf("write: %v", err)
			}
			for _, err := range d.List(t.Context()) {
				if err == nil {
					t.Error("listed")
				}
			}
			s.mended()
			if got := list(t, d); !slices.Equal(got, []string{"set/there 1048576"}) {
				t.Errorf("a write that failed left %v", got)
			}
			if err := d.Write(t.Context(), "set/"+name, content); err != nil {
				t.Errorf("mended: %v", err)
			}
			if err := d.Delete(t.Context(), "set/"+name); err != nil {
				t.Error(err)
			}
		})
	}
	// One failure in a row nobody notices.
	var once atomic.Bool
	s.breaks(func(w http.ResponseWriter, r *http.Request, serve http.Handler) {
		if once.CompareAndSwap(false, true) {
			busy(w, r, serve)
			return
		}
		serve.ServeHTTP(w, r)
	})
	if err := d.Write(t.Context(), "set/again", content); err != nil {
		t.Errorf("after one 503: %v", err)
	}
}

// TestOpen: what names no destination is refused in words.
func TestOpen(t *testing.T) {
	for address, want := range map[string]string{
		"backups": "unknown destination", "file://host/x": "file:///", "file:backups": "file:///", "ftp://x/y": "unknown destination",
		"s3://": "s3://bucket", "s3://UPPER/x": "s3://bucket", "s3://backups?endpoint=10.0.0.1:9000": "endpoint", "s3://backups?endpoint=http://10.0.0.1:9000": "plain HTTP",
		"s3://backups?secret=x": "unknown parameter", "s3://key:secret@backups/x": "no user", "://": "URL",
	} {
		if _, err := Open(address); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "key:secret") {
			t.Errorf("%s: %v", address, err)
		}
	}
}
