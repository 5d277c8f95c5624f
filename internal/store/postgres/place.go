package postgres

import (
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// Place says in words where the database is that url names: its hosts and its name, nothing secret. Of a url that does not
// parse it says nothing.
func Place(url lessor.Secret) string {
	c, err := pgconn.ParseConfig(url.Reveal())
	if err != nil {
		return ""
	}
	hosts := []string{fmt.Sprintf("%s:%d", c.Host, c.Port)}
	for _, f := range c.Fallbacks { // each with and without TLS, perhaps
		if h := fmt.Sprintf("%s:%d", f.Host, f.Port); h != hosts[len(hosts)-1] {
			hosts = append(hosts, h)
		}
	}
	return strings.Join(hosts, ",") + "/" + c.Database
}
