package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/store"
)

// A server that acknowledges before it has written is refused, whoever set it so, at each new connection.
func TestSynchronousCommit(t *testing.T) {
	s := pgtest.Start(t, pgtest.Fsync())
	name := s.Database(t)
	url, admin := s.URL(pgtest.Superuser, s.Password(), name), s.Connect(t, name)
	set := func(to string) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), `ALTER DATABASE `+name+` SET synchronous_commit = `+to); err != nil {
			t.Fatal(err)
		}
	}
	var log buffer
	open := func() (*Backend, error) {
		return Open(t.Context(), lessor.NewSecret(url), Options{Connections: 8, Log: slog.New(slog.NewTextHandler(&log, nil))})
	}
	set("off")
	if b, err := open(); !errors.Is(err, errUnsafe) || !strings.Contains(err.Error(), "synchronous_commit is off") {
		t.Errorf("synchronous_commit = off: %v", err)
		if err == nil {
			b.Close()
		}
	}
	set("remote_write")
	b, err := open()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var have string
	if err := b.readers.QueryRow(t.Context(), `SHOW synchronous_commit`).Scan(&have); err != nil || have != "on" {
		t.Errorf("lessor's sessions have synchronous_commit %s, %v", have, err)
	}
	if n := strings.Count(log.String(), "synchronous_commit is remote_write"); n != 1 {
		t.Errorf("it was said %d times: %s", n, log.String())
	}
	set("off")
	_, err = admin.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	if err != nil {
		t.Fatal(err)
	}
	if w, err := b.Begin(); !errors.Is(err, errUnsafe) {
		t.Errorf("a write to what may lose it: %v", err)
		if err == nil {
			w.Abort()
		}
	}
	set("on")
}

// buffer is a bytes.Buffer that many write to.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// A role may log in by its certificate instead of a password.
func TestClientCertificate(t *testing.T) {
	s := pgtest.Start(t, pgtest.Fsync(), pgtest.TLS())
	name := s.Database(t)
	admin := s.Connect(t, name)
	certificate, key, err := s.Certificate("certified")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		`CREATE ROLE ` + pgtest.ByCertificate, `CREATE ROLE certified LOGIN IN ROLE ` + pgtest.ByCertificate, `CREATE SCHEMA lessor AUTHORIZATION certified`,
	} {
		if _, err := admin.Exec(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	file := func(name string, content []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	url := fmt.Sprintf("postgresql://certified@127.0.0.1:%d/%s?sslmode=verify-full&sslrootcert=%s", s.Port, name, file("ca.pem", s.CA))
	if b, err := Open(t.Context(), lessor.NewSecret(url), Options{}); err == nil {
		b.Close()
		t.Error("the role logged in without its certificate")
	}
	url += "&sslcert=" + file("client.pem", certificate) + "&sslkey=" + file("client.key", key)
	if err := connect(t, url).Close(); err != nil {
		t.Error(err)
	}
}

// Of several hosts the one that takes writes is used, wherever it stands in the URL.
func TestSeveralHosts(t *testing.T) {
	s := pgtest.Start(t, pgtest.Fsync())
	standby := pgtest.Start(t, pgtest.Fsync(), pgtest.Setting("default_transaction_read_only", "on"))
	name := s.Database(t)
	url := fmt.Sprintf("postgresql://%s:%s@127.0.0.1:1,127.0.0.1:%d,127.0.0.1:%d/%s?sslmode=disable",
		pgtest.Superuser, strings.ReplaceAll(s.Password(), "'", "%27"), standby.Port, s.Port, name)
	there := standby.Connect(t, "")
	for _, text := range []string{`SET default_transaction_read_only = off`, `CREATE DATABASE ` + name} {
		if _, err := there.Exec(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	b := connect(t, url)
	defer b.Close()
	var port int
	if err := b.readers.QueryRow(t.Context(), `SELECT inet_server_port()`).Scan(&port); err != nil || port != s.Port {
		t.Errorf("port %d is used, not %d: %v", port, s.Port, err)
	}
}

// A server that is stopped in its tracks keeps its connections and answers nobody: calls come back within seconds, and all goes on once it does.
func TestServerSaysNothing(t *testing.T) {
	t.Parallel()
	s := pgtest.Own(t, pgtest.Fsync())
	b := connect(t, s.URL(pgtest.Superuser, s.Password(), s.Database(t)))
	db, err := store.Open(b, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	snapshot := snap(t, b)
	defer snapshot.Close()
	w, err := b.Begin()
	if err != nil {
		t.Fatal(err)
	}
	w.Set(store.Key{Table: store.Engine, Name: "n"}, make([]byte, 8))
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var asked sync.WaitGroup
	asked.Go(func() {
		if err := w.Commit(); err == nil {
			t.Error("a commit was acknowledged by a server that was stopped")
		}
		if took := time.Since(began); took > 30*time.Second { // it could be two minutes
			t.Errorf("a commit hung for %s", took)
		}
	})
	asked.Go(func() {
		if _, err := b.Peers(t.Context()); err == nil || time.Since(began) > 12*time.Second {
			t.Errorf("peers of a server that was stopped: %v after %s", err, time.Since(began))
		}
	})
	asked.Wait()
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	if _, err := snapshot.Get(store.Key{Table: store.Engine, Name: "n"}); err != nil {
		t.Error(err)
	}
	if w, err = b.Begin(); err != nil {
		t.Fatal(err)
	}
	w.Abort()
}

// Whoever asks for less than a verified database elsewhere hears of it.
func TestUnverifiedDatabases(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if pem, err := pgtest.OtherCA(); err != nil || os.WriteFile(ca, pem, 0o600) != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]bool{
		"postgresql://db.example.org/x":                                     true, // sslmode=prefer
		"postgresql://db.example.org/x?sslmode=disable":                     true,
		"postgresql://db.example.org/x?sslmode=require":                     true,
		"postgresql://db.example.org/x?sslmode=verify-full":                 false,
		"postgresql://db.example.org/x?sslmode=verify-ca&sslrootcert=" + ca: false,
		"postgresql://127.0.0.1,[::1],localhost/x?sslmode=disable":          false,
		"postgresql://127.0.0.1,db.example.org/x?sslmode=disable":           true,
		"host=/run/postgresql dbname=x":                                     false,
	} {
		var log buffer
		if _, err := parse(lessor.NewSecret(url), Options{Connections: 20, Log: slog.New(slog.NewTextHandler(&log, nil))}); err != nil {
			t.Fatal(err)
		}
		if said := strings.Contains(log.String(), "verify-full"); said != want {
			t.Errorf("%s: said %t, want %t", url, said, want)
		}
	}
}

// A URL that asks for a standby is refused, before anything is connected to; whatever leads to a server that takes writes is not.
func TestStandbysAreNotAskedFor(t *testing.T) {
	refused := func(url string) bool {
		t.Helper()
		_, err := parse(lessor.NewSecret(url), Options{Connections: 20, Log: slog.New(slog.DiscardHandler)})
		if err != nil && !errors.Is(err, errStandby) {
			t.Fatal(err)
		}
		return err != nil
	}
	for attrs, want := range map[string]bool{
		"any": false, "read-write": false, "primary": false,
		"standby": true, "prefer-standby": true, "read-only": true,
	} {
		if got := refused("postgresql://127.0.0.1,[::1]/x?target_session_attrs=" + attrs); got != want {
			t.Errorf("target_session_attrs=%s: refused %t, want %t", attrs, got, want)
		}
		if got := refused("host=127.0.0.1 dbname=x target_session_attrs=" + attrs); got != want {
			t.Errorf("target_session_attrs=%s, not in a URL: refused %t, want %t", attrs, got, want)
		}
	}
	if refused("postgresql://127.0.0.1/x") {
		t.Error("a URL that asks for nothing was refused")
	}
	t.Setenv("PGTARGETSESSIONATTRS", "standby")
	if !refused("postgresql://127.0.0.1/x") {
		t.Error("an environment that asks for a standby was not refused")
	}
}
