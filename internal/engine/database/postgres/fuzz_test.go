package postgres

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/target"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// FuzzConnection: a connection that is taken leads where its URL says and to no forbidden address, with no parameter beyond those
// that are allowed and the password that lessor has; a refusal does not repeat what may be a password.
func FuzzConnection(f *testing.F) {
	for _, s := range []string{
		"postgresql://{{username}}:{{password}}@db.example.com:5432/app?sslmode=verify-full", "postgres://u@h1,h2:5433/x?sslmode=disable",
		"postgresql:///x?host=/run/postgresql", "postgresql://h/x?options=-c%20role%3Dpostgres", "postgresql://169.254.169.254/x", "postgresql://[fe80::1%25eth0]/x",
		"postgresql://[::ffff:169.254.169.254]/x", "postgresql://h/x?passfile=/etc/passwd", "postgresql://u:correct-horse@h/x", "postgresql://h/x?host=a&host=b",
		"host=h user=u", "postgresql://[[169.254.169.254]]/", "postgresql://:5432/",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, url string) {
		put, err := settings(&database.Connection{URL: url, Username: "lessor"}, database.Secrets{Password: lessor.NewSecret("pw")})
		if err != nil {
			if _, rest, ok := strings.Cut(url, ":correct-horse@"); ok && rest != "" && strings.Contains(err.Error(), "correct-horse") {
				t.Fatalf("%q: %v", url, err)
			}
			return
		}
		cfg, err := pgx.ParseConfig(baseline)
		if err != nil {
			t.Fatal(err)
		}
		put(cfg)
		if cfg.Password != "pw" || cfg.User == "" || cfg.DialFunc == nil {
			t.Fatalf("%q: user %q", url, cfg.User)
		}
		for p := range cfg.RuntimeParams {
			if !slices.Contains([]string{"application_name", "standard_conforming_strings", "search_path"}, p) {
				t.Fatalf("%q sets %s", url, p)
			}
		}
		hosts := []string{cfg.Host}
		for _, b := range cfg.Fallbacks {
			hosts = append(hosts, b.Host)
		}
		for _, h := range hosts {
			if ip, err := netip.ParseAddr(h); h == "" || err == nil && target.Forbidden(ip) != nil {
				t.Fatalf("%q leads to %q", url, h)
			}
		}
	})
}
