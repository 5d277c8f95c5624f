package session

import (
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/client"
)

func TestAdvice(t *testing.T) {
	refused := func(status int, path string) error { return &client.Error{Method: "GET", Path: path, Status: status} }
	for name, try := range map[string]struct {
		err   error
		token string
		want  string
	}{
		"no token":         {refused(403, "secret/a"), "", "lessor login"},
		"not permitted":    {refused(403, "secret/a"), "t", "lessor token capabilities secret/a"},
		"stale":            {refused(403, "auth/token/lookup-self"), "t", "Log in again"},
		"preflight":        {refused(403, "sys/internal/ui/mounts/secret/a"), "t", "Nothing is mounted there"},
		"sealed":           {refused(503, "secret/a"), "t", "lessor status"},
		"TLS is spoken":    {&client.Error{Status: 400, Errors: []string{"Client sent an HTTP request to an HTTPS server."}}, "t", "https://"},
		"no TLS is spoken": {&client.Unreachable{Err: errors.New("http: server gave HTTP response to HTTPS client")}, "t", "http://"},
		"no such host":     {&client.Unreachable{Err: &net.DNSError{}}, "t", "LESSOR_ADDR"},
	} {
		a, _, _ := screen("")
		a.Token = client.NewToken(try.token)
		if got := a.Advice(try.err); !strings.Contains(got, try.want) {
			t.Errorf("%s: %q does not say %q", name, got, try.want)
		}
		if CodeOf(try.err) != ExitRemote {
			t.Errorf("%s: code %d", name, CodeOf(try.err))
		}
	}
}
