package mysql

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/target"
	"github.com/lessor-dev/lessor/internal/lessor"
)

func TestSettings(t *testing.T) {
	for url, want := range map[string]string{
		"{{username}}:{{password}}@tcp(db:3306)/app":                  "",
		"u@tcp(db)/?tls=skip-verify&timeout=5s":                       "",
		"u@tcp([2001:db8::1]:3307)/app":                               "",
		"u@tcp([2001:db8::1])/app":                                    "",
		"tcp(db)/":                                                    "",
		"u@unix(/run/mysqld/mysqld.sock)/app":                         "",
		"u@tcp(db)/?parseTime=true&multiStatements=true&charset=utf8": "",
		"u@tcp([::1])/":                                               "",
		"mysql://u@db/app":                                            "connection_url must be as",
		"u@db/app":                                                    "connection_url must be as",
		"u@tcp(db)":                                                   "connection_url must be as",
		"u@tcp()/":                                                    "connection_url must be as",
		"/":                                                           "connection_url must be as",
		"u@udp(db)/":                                                  "connection_url must be as",
		"u@unix(mysqld.sock)/":                                        "has a path",
		"u@tcp(db:x)/app":                                             "port",
		"u@tcp(db:99999)/app":                                         "port",
		"u@tcp(a,b:1:2)/app":                                          "host is not well-formed",
		"u@tcp(a%2fb)/app":                                            "host is not well-formed",
		"u@tcp(db)/?allowAllFiles=true":                               `"allowAllFiles" is not allowed`,
		"u@tcp(db)/?allowCleartextPasswords=true":                     `"allowCleartextPasswords" is not allowed`,
		"u@tcp(db)/?allowOldPasswords=true":                           "not allowed",
		"u@tcp(db)/?allowFallbackToPlaintext=true":                    "not allowed",
		"u@tcp(db)/?serverPubKey=x":                                   "not allowed",
		"u@tcp(db)/?sql_mode=ANSI_QUOTES":                             "not allowed",
		"u@tcp(db)/?tls=custom":                                       "tls must be",
		"u@tcp(db)/?tls=true&tls=false":                               "twice",
		"u@tcp(db)/?timeout=0s":                                       "timeout",
		"u@tcp(db)/?timeout=1":                                        "timeout",
		"u@tcp(db)/app%2":                                             "database name",
		"u@tcp(169.254.169.254)/app":                                  "link-local",
		"u@tcp([fe80::1]:3306)/app":                                   "link-local",
		"u@tcp([fe80::1%25eth0]:3306)/app":                            "not well-formed",
		"u@tcp([::ffff:169.254.169.254]:80)/app":                      "link-local",
		"u@tcp(0.0.0.0)/app":                                          "link-local",
		"u@tcp(100.100.100.200)/app":                                  "metadata",
		"u:hush@tcp(db)/app":                                          "password belongs",
		"u:hu/sh@tcp(db)/x":                                           "password belongs",
		"u:hu?sh@tcp(db)/x?a#b":                                       "parameters are not",
	} {
		_, err := settings(&database.Connection{URL: url, Username: "lessor"}, database.Secrets{})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", url, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "hu") {
			t.Errorf("%s: the password is told: %v", url, err)
		}
	}
	for _, c := range []database.Connection{
		{URL: "u@tcp(db)/", CA: "no PEM"}, {URL: "u@tcp(db)/", Certificate: "no PEM"}, {URL: "u@tcp(db)/?tls=true", InsecureTLS: true},
		{URL: "u@tcp(db)/?tls=false", Certificate: "x"}, {URL: "u@tcp(db)/", Authentication: "scram-sha-256"}, {URL: "u@tcp(db)/", ScramIterations: 1}, {URL: "tcp(db)/"},
	} {
		if usual.Check(&c, database.Secrets{}) == nil {
			t.Errorf("%+v was taken", c)
		}
	}
	same := func(a, b string) bool {
		return usual.SameServer(&database.Connection{URL: a}, &database.Connection{URL: b})
	}
	if !same("u@tcp(DB)/x", "v@tcp(db:3306)/") || same("u@tcp(db)/", "u@tcp(db:3307)/") || same("nothing", "nothing") || !same("u@unix(/a)/", "u@unix(/a)/b") {
		t.Error("which servers are the same")
	}
}

// FuzzConnection: a connection that is taken leads where its URL says and to no forbidden address, with no power beyond those that lessor uses; a
// refusal does not repeat what may be a password.
func FuzzConnection(f *testing.F) {
	for _, s := range []string{
		"{{username}}:{{password}}@tcp(db.example.com:3306)/app?tls=true", "u@unix(/run/x)/x", "u@tcp(169.254.169.254)/", "u@tcp([fe80::1%25eth0])/x",
		"u:correct-horse@tcp(h)/x", "u@tcp(h)/?allowAllFiles=1", "u@tcp([[169.254.169.254]])/", "@tcp(:3306)/", "u@tcp(h)/x?loc=a/b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, url string) {
		cfg, err := settings(&database.Connection{URL: url, Username: "lessor"}, database.Secrets{Password: lessor.NewSecret("pw")})
		if err != nil {
			if _, rest, ok := strings.Cut(url, ":correct-horse@"); ok && rest != "" && strings.Contains(err.Error(), "correct-horse") {
				t.Fatalf("%q: %v", url, err)
			}
			return
		}
		if cfg.User == "" || cfg.DialFunc == nil || cfg.AllowAllFiles || cfg.AllowCleartextPasswords || cfg.AllowOldPasswords || len(cfg.Params) > 0 || cfg.Passwd != "" {
			t.Fatalf("%q: %+v", url, cfg)
		}
		at, err := addressOf(&database.Connection{URL: url})
		if err != nil || at.network != cfg.Net || at.text() != cfg.Addr {
			t.Fatalf("%q leads to %q, %v", url, cfg.Addr, err)
		}
		if ip, err := netip.ParseAddr(at.host); at.host == "" || err == nil && target.Forbidden(ip) != nil {
			t.Fatalf("%q leads to %q", url, at.host)
		}
	})
}

func TestErrorsHaveNoSecrets(t *testing.T) {
	d := &server{hide: []string{"root-password"}}
	for _, text := range []string{
		"You have an error in your SQL syntax; check the manual near ''pass-word' x' at line 1", "x root-password y", "near 'IDENTIFIED BY 'pass-wo' at line 2",
		"near ''p' at line 3", "Incorrect value: 'ass-wor'", "near 'BY 'ro' at line 1", "near '*CAFE0123456' at line 7", "near 'pass-word'\nx' at line 1",
	} {
		got := d.fail(&mysql.MySQLError{Number: 1064, Message: text}, "*CAFE0123456789", "pass-word")
		s := fmt.Sprint(got, errors.Unwrap(got))
		for _, part := range []string{"word", "ass-", "root-", "CAFE", "'p'", "'ro'", "pass"} {
			if strings.Contains(s, part) {
				t.Errorf("%s became %s", text, s)
			}
		}
	}
	if got := d.fail(&mysql.MySQLError{Number: 1064, Message: "near 'FOO BAR' at line 1"}, "pass-word").Error(); !strings.Contains(got, "near 'FOO BAR' at line 1 (error 1064)") {
		t.Errorf("got %s", got)
	}
}

// A name leads where its addresses do, when it is connected to, whatever it led to before; and so does a number that some resolvers take for an address.
func TestNamesThatLeadToForbiddenAddresses(t *testing.T) {
	for _, at := range []string{"169.254.169.254:3306", "[fe80::1]:3306", "[::ffff:169.254.169.254]:3306", "[64:ff9b::a9fe:a9fe]:3306", "0.0.0.0:3306"} {
		cfg, err := settings(&database.Connection{URL: "u@tcp(2852039166)/?tls=false"}, database.Secrets{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = cfg.DialFunc(context.Background(), "tcp", at)
		if got := (&server{}).fail(err); !errors.Is(err, target.ErrForbidden) || !strings.Contains(got.Error(), "does not connect to these") {
			t.Errorf("a name that leads to %s: %v", at, got)
		}
	}
}

func TestHosts(t *testing.T) {
	for _, c := range []struct {
		host, client string
		want         bool
	}{
		{"%", "10.0.0.1", true}, {"10.%", "10.0.0.1", true}, {"10.1.%", "10.0.0.1", false}, {"10.0.0.0/255.0.0.0", "10.0.0.1", true}, {"localhost", "10.0.0.1", false},
		{"db_.example.com", "db1.EXAMPLE.com", true}, {"10.0.0.1", "web.example.com", true}, {"%.example.org", "web.example.com", false}, {"", "x", false}, {"::1", "localhost", true}, {"127.0.0.%", "localhost", true}, {"10.0.0.1", "localhost", false},
	} {
		if admits(c.host, c.client) != c.want {
			t.Errorf("%q for a client at %q: not %v", c.host, c.client, c.want)
		}
	}
}
