package run_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/run"
	"github.com/lessor-dev/lessor/internal/site"
)

// A command that knows nothing of lessor logs in again and again while its password is rotated: it is started anew with the new one before the old one
// is retired. When it ends, no rotation waits for it.
func TestCommandMovesThroughRotations(t *testing.T) {
	s := site.New(t)
	path := s.Static("blue", "green")
	s.Policy("app", `path "`+path+`" { capabilities = ["read"] }`)
	session, err := client.Open(t.Context(), s.As("app"), nil)
	if err != nil {
		t.Fatal(err)
	}
	stop := filepath.Join(t.TempDir(), "stop")
	e := &run.Environment{}
	for name, value := range map[string]string{
		"PATH": os.Getenv("PATH"), "STOP": stop, "PGPASSWORD": "lessor://" + path + "#password",
		"URL": fmt.Sprintf("postgres://${lessor://%s#username}@%s:%d/%s?sslmode=disable", path, s.PG.Host, s.PG.Port, s.Database),
	} {
		if err := e.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	var out buffer
	exit := make(chan run.Exit, 1)
	go func() {
		code, err := run.Run(context.Background(), session, run.Command{
			Args:        []string{"sh", "-c", `while :; do psql "$URL" -qAtc "SELECT current_user" || exit 9; test -e "$STOP" && exit 0; done`},
			Environment: e, In: strings.NewReader(""), Out: &out, Err: &out, OnChange: run.Change{Restart: true}, Grace: patience,
			Tell: func(format string, args ...any) { _, _ = fmt.Fprintf(io.Discard, format, args...) },
		})
		if err != nil {
			t.Errorf("running the command: %v", err)
		}
		exit <- code
	}()
	s.Eventually("it logs in", func() bool { return strings.Contains(out.String(), "blue") })
	s.Rotate()
	s.Eventually("it logs in as the other one", func() bool { return strings.Contains(out.String(), "green") })
	if err := os.WriteFile(stop, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := <-exit; code != 0 || strings.Contains(out.String(), "FATAL") {
		t.Errorf("exit code %d: %s", code, &out)
	}
	s.Rotate()
}
