package rabbittest

import (
	"errors"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/servertest"
)

func TestServerLives(t *testing.T) {
	s := Start(t)
	s.Do(t, http.MethodPut, User("somebody"), map[string]string{"password": "word", "tags": ""})
	s.Do(t, http.MethodPut, "permissions/%2F/somebody", map[string]string{"configure": "", "write": "", "read": ""})
	c, err := s.Dial("somebody", "word", "/")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := s.Dial("somebody", "wrong", "/"); !errors.Is(err, ErrRefused) {
		t.Errorf("with a wrong password: %v", err)
	}
	s.Do(t, http.MethodDelete, User("somebody"), nil)
	if !c.Ended(30 * time.Second) {
		t.Error("a connection outlived its user")
	}
	if s.Do(t, http.MethodGet, User("somebody"), nil) != nil {
		t.Error("the user is still there")
	}
	s.Discard()
	if _, err := os.Stat(s.Dir); err == nil {
		t.Error("the folder was left behind")
	}
	if _, _, err := s.Call(Admin, password, http.MethodGet, "overview", nil); err == nil {
		t.Error("the server outlived its test")
	}
}

// A test process that is killed leaves neither a server nor a folder.
func TestServerEndsWithItsProcess(t *testing.T) {
	servertest.EndsWithItsProcess(t, func(t testing.TB) *servertest.Daemon { return Start(t).Daemon })
}
