package lessortest_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/lessortest"
)

func TestServer(t *testing.T) {
	begun := time.Now()
	s := lessortest.Start(t)
	t.Logf("started in %v", time.Since(begun))
	s.Policy("app", `path "secret/data/app" { capabilities = ["read"] }`)
	s.Write("secret/data/app", map[string]any{"data": map[string]any{"password": "sesame"}})
	app := s.As("app")
	answer, err := app.Read(t.Context(), "secret/data/app", nil)
	if err != nil {
		t.Fatal(err)
	}
	if data, _ := answer.Data["data"].(map[string]any); data["password"] != "sesame" {
		t.Errorf("%v", data)
	}
	if _, err := app.Read(t.Context(), "secret/data/other", nil); !client.IsStatus(err, http.StatusForbidden) {
		t.Errorf("what no policy permits: %v", err)
	}
	s.Delete("secret/metadata/app")
	if _, err := app.Read(t.Context(), "secret/data/app", nil); !client.IsStatus(err, http.StatusNotFound) {
		t.Errorf("what was deleted: %v", err)
	}
}

// Servers are each their own.
func TestServersAreApart(t *testing.T) {
	var log bytes.Buffer
	t.Run("pair", func(t *testing.T) {
		one, two := lessortest.Start(t, lessortest.Log(&log), lessortest.TokenID("root-of-one")), lessortest.Start(t)
		if one.Root.Reveal() != "root-of-one" {
			t.Errorf("the root token is another")
		}
		if _, err := two.Client().WithToken(one.Root).Read(t.Context(), "auth/token/lookup-self", nil); !client.IsStatus(err, http.StatusForbidden) {
			t.Errorf("the other server's token: %v", err)
		}
		one.Read("auth/token/lookup-self")
	})
	if text := log.String(); !strings.Contains(text, "stopped") || strings.Contains(text, "root-of-one") {
		t.Errorf("the log:\n%s", text)
	}
}
