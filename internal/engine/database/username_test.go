package database_test

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/database/postgres"
)

var issued = time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.FixedZone("", 3600))

func TestUsername(t *testing.T) {
	for text, want := range map[string]string{
		"":              "v-approle-app-uSMMl8Dv1ytgulPsR5Uf-1767319445",
		`{{random 20}}`: "uSMMl8Dv1ytgulPsR5Uf",
		`{{uuid}}`:      "385ad0d0-e908-4df3-bf7a-f12ab46d19f0",
		`{{.RoleName | uppercase}}_{{random 12}}`:                               "APP_uSMMl8Dv1ytg",
		`{{.DisplayName | replace "-" "_"}}.{{random 8 | lowercase}}`:           "approle_billing.usmml8dv",
		`{{printf "%s-%s" (.DisplayName | truncate_sha256 10) (random 10)}}`:    "apd7c6c30e-uSMMl8Dv1y",
		`{{.DisplayName | sha256 | truncate 6}}-{{random 10}}-{{unix_time}}`:    "d76e60-uSMMl8Dv1y-1767319445",
		`{{random 10}}-{{unix_time_millis}}-{{timestamp "20060102T150405"}}`:    "uSMMl8Dv1y-1767319445678-20260102T020405",
		`{{if eq .RoleName "app"}}a{{else}}b{{end}}-{{/* why */}}{{random 10}}`: "a-uSMMl8Dv1y",
		`{{.RoleName | base64 | replace "=" "" }}-{{random 10}}`:                "YXBw-uSMMl8Dv1y",
	} {
		got, err := database.Username(postgres.Driver{}, text, "database/creds/app/Zk3", issued, "approle-billing", "app")
		if err != nil || got != want {
			t.Errorf("%s:\n got %q, %v\nwant %q", text, got, err, want)
		}
	}
}

func TestUsernameTemplatesRefused(t *testing.T) {
	for text, want := range map[string]string{
		`{{.RoleName}}`:                                      "the same name for different leases",
		`{{.RoleName}}-{{unix_time}}`:                        "the same name for different leases",
		`{{printf "%s%s" "a" (random 20) | truncate 1}}`:     "the same name for different leases",
		`{{random 20 | sha256}}`:                             "name of 64 bytes",
		`{{random 64}}`:                                      "name of 64 bytes",
		`{{random 20}} `:                                     "characters other than",
		`{{random 20}}"; DROP`:                               "characters other than",
		`ü{{random 20}}`:                                     "characters other than",
		`{{random 20 | base64 | printf "%s'"}}`:              "characters other than",
		`{{`:                                                 "unclosed action",
		`{{.Secret}}{{random 20}}`:                           "there is no .Secret",
		`{{.RoleName.X}}{{random 20}}`:                       "there is no .RoleName.X",
		`{{random}}`:                                         "wrong number of args",
		`{{random 0}}`:                                       "random takes",
		`{{random 1000000000}}`:                              "random takes",
		`{{truncate 0 .RoleName}}{{random 20}}`:              "truncate takes",
		`{{truncate_sha256 8 .RoleName}}{{random 20}}`:       "truncate_sha256 takes",
		`{{range 1000000000}}{{end}}{{random 20}}`:           "is not for usernames",
		`{{define "x"}}{{template "x"}}{{end}}{{random 20}}`: "must not define",
		`{{$x := random 20}}{{$x}}`:                          "variables are not for usernames",
		`{{html (random 20)}}`:                               `"html" is not for usernames`,
		`{{call .RoleName}}`:                                 `"call" is not for usernames`,
		`{{with .RoleName}}{{random 20}}{{end}}`:             "is not for usernames",
		`{{printf "%100000000d" 1}}{{random 20}}`:            "takes no widths",
		`{{printf "%*d" 1000000 1}}{{random 20}}`:            "takes no widths",
		`{{random 20 | nothing}}`:                            `"nothing" not defined`,
		`{{/* nothing */}}`:                                  "name of 0 bytes",
		strings.Repeat("x", 1025):                            "longer than 1024",
		`{{random 20 ` + strings.Repeat(`| replace "" "xxxxxxxxxxxxxxxxxxxxxxxx" `, 20) + `}}`: "grows beyond",
	} {
		if got, err := database.Username(postgres.Driver{}, text, "lease", issued, "approle", "app"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %q, %v, want %q", text, got, err, want)
		}
	}
}

var allowed = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,63}$`)

// Whoever asks, under whatever name, for whatever role: the default's names are within the allowlist, the same for the same
// lease, different for different ones.
func TestUsernameOfAnybody(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		display, role, lease := rapid.String().Draw(t, "display"), rapid.String().Draw(t, "role"), rapid.String().Draw(t, "lease")
		name := func(lease string) string {
			n, err := database.Username(postgres.Driver{}, "", lease, issued, display, role)
			if err != nil || !allowed.MatchString(n) {
				t.Fatalf("%q, %v", n, err)
			}
			return n
		}
		if once := name(lease); once != name(lease) || once == name(lease+"x") {
			t.Fatal("a name is its lease's")
		}
	})
}

func FuzzUsername(f *testing.F) {
	f.Add(`v-{{.RoleName | truncate 3}}-{{random 20}}`, "approle", "app")
	f.Add(`{{printf "%s" (uuid)}}`, "'; DROP", `"`)
	f.Fuzz(func(t *testing.T, text, display, role string) {
		start := time.Now()
		name, err := database.Username(postgres.Driver{}, text, "lease", issued, display, role)
		if err == nil && !allowed.MatchString(name) {
			t.Errorf("%q makes %q", text, name)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("%q takes %v", text, d)
		}
	})
}
