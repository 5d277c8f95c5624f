package browsertest_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/lessor-dev/lessor/internal/browsertest"
)

// The browser shows pages, and does what a person does with them.
func TestForm(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = fmt.Fprintf(w, `<p>Hello %s</p><form method="post"><input name="who"><button>Go</button></form>`, r.PostFormValue("who"))
	}))
	defer s.Close()
	b := browsertest.Start(t)
	b.Open(s.URL + "/page")
	b.Type("input", "Ann")
	b.Click("button")
	b.Await("Hello Ann")
	if at := b.URL(); at != s.URL+"/page" {
		t.Errorf("at %s", at)
	}
}
