package postgres

import (
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/engine/database"
)

const every = "name username password expiration"

func TestCheck(t *testing.T) {
	for sql, want := range map[string]string{
		`CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{{name}}";`: "",
		`CREATE ROLE "{{username}}" -- {{name}} and it's fine` + "\n" + `PASSWORD '{{password}}' /* "{{x}} /* ' */ */`:                                  "",
		`DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{{name}}') THEN CREATE ROLE "{{name}}"; END IF; END $$`:                       "",
		`DO $do$ BEGIN EXECUTE 'CREATE ROLE "{{name}}" PASSWORD ''{{password}}'''; END $do$; SELECT $1, a$b$c FROM x`:                                   "",
		`CREATE ROLE "{{name}}" PASSWORD E'\'{{password}}'`:                                                                                             "",
		`CREATE ROLE {{name}} PASSWORD '{{password}}'`:                                                                                                  "{{name}} must be in quotes",
		`CREATE ROLE "{{name}}" PASSWORD {{password}}`:                                                                                                  "{{password}} must be in quotes",
		`CREATE ROLE "{{name}}" PASSWORD "{{password}}"`:                                                                                                "must be in single quotes",
		`CREATE ROLE "{{name}}" PASSWORD $${{password}}$$`:                                                                                              "must be in quotes",
		`CREATE ROLE "{{name}}" PASSWORD $q$ '{{password}} $q$`:                                                                                         "must be in quotes",
		`DO $$ BEGIN CREATE ROLE {{name}}; END $$`:                                                                                                      "must be in quotes",
		`CREATE ROLE "{{rolename}}"`:                                                                                                                    "{{rolename}} is not known",
		`CREATE ROLE "{{ name }}"`:                                                                                                                      "{{ name }} is not known",
		`CREATE ROLE "{{name}}`:                                                                                                                         "never closed",
		`SELECT 'it''s`:                                                                                                                                 "never closed",
		`SELECT $$ '{{name}}'`:                                                                                                                          "never closed",
		`SELECT 1 /* /* */`:                                                                                                                             "never closed",
		`CREATE ROLE "{{name}}"; commit; SELECT 1`:                                                                                                      "COMMIT is not allowed",
		`begin; SELECT 1`:        "BEGIN is not allowed",
		`/* x */ ROLLBACK`:       "ROLLBACK is not allowed",
		`CASE WHEN 1 THEN 2 END`: "",
		``:                       "",
	} {
		err := check(sql, every)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", sql, err, want)
		}
	}
	if err := (Driver{}).CheckRole(&database.Statements{Creation: []string{`CREATE ROLE "{{name}}"`}, Revocation: []string{`DROP ROLE "{{name}}"; SELECT '{{password}}'`}}); err == nil || !strings.Contains(err.Error(), "revocation_statements") {
		t.Errorf("a password on revocation: %v", err)
	}
}

func TestValues(t *testing.T) {
	until := time.Date(2026, 1, 2, 3, 4, 5, 1, time.FixedZone("", 3600))
	v, err := newValues("v-a.b_C", "SCRAM$1{{name}}", until)
	if err != nil {
		t.Fatal(err)
	}
	got := v.script([]string{`A "{{name}}" '{{password}}' ; `, `B '{{expiration}}' "{{username}}" -- c`})
	if want := "A \"v-a.b_C\" 'SCRAM$1{{name}}'\n;B '2026-01-02 02:05:06+0000' \"v-a.b_C\" -- c\n;"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for _, name := range []string{"", `a"b`, "a'b", "a b", "a;b", "ä", `a\`, "a\x00", strings.Repeat("a", 64)} {
		if _, err := newValues(name, "x", until); err == nil {
			t.Errorf("the name %q was taken", name)
		}
	}
	for _, password := range []string{"a'b", `a"b`, `a\b`, "a\nb", "a\x00b", "a$$b"} {
		if _, err := newValues("a", password, until); err == nil {
			t.Errorf("the password %q was taken", password)
		}
	}
}

func TestLeavesTraces(t *testing.T) {
	for sql, want := range map[string]bool{
		"SET ROLE x": true, "CREATE ROLE a; set search_path = x": true, "DO $$ BEGIN SET ROLE x; END $$": true, "RESET ALL": true,
		"SELECT set_config('a.b', 'c', false)": true, "UPDATE t SET a = 1": false, `ALTER ROLE "x" SET search_path = y`: false, `CREATE ROLE "reset"`: false,
	} {
		if leavesTraces.MatchString(sql) != want {
			t.Errorf("%s: not %v", sql, want)
		}
	}
}

// What check lets pass never leads a value out of its quotes: with harmless values or with others, the text outside of
// quotes is the same.
func FuzzCheck(f *testing.F) {
	for _, s := range []string{`CREATE ROLE "{{name}}" PASSWORD '{{password}}'`, `DO $a$ '{{name}}' $a$`, `E'\'{{name}}'`, `e'{{name}}\'' "{{name}}"`, `--{{name}}`, `U&"{{name}}"`, `a'{{name}}'b'''{{name}}'''`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, sql string) {
		if check(sql, every) != nil {
			return
		}
		v, err := newValues("--a-", "/*;{{}}", time.Unix(0, 0))
		if err != nil {
			t.Fatal(err)
		}
		w, err := newValues("b", "c", time.Unix(0, 0))
		if err != nil {
			t.Fatal(err)
		}
		if outside(v.Replace(sql)) != outside(w.Replace(sql)) {
			t.Errorf("%q:\n%q\n%q", sql, outside(v.Replace(sql)), outside(w.Replace(sql)))
		}
	})
}

// outside is sql without comments and without what is in quotes.
func outside(sql string) string {
	var b strings.Builder
	for i := 0; i < len(sql); {
		kind, n := token(sql, i)
		if kind != blank && kind != quote && kind != dollars {
			b.WriteString(sql[i : i+n])
		}
		i += n
	}
	return b.String()
}

func TestStatement(t *testing.T) {
	for sql, want := range map[string]string{
		"a;b": "a;", "a": "a", "": "", "';';b": "';';", `";" /*;*/ --;` + "\n ;b": `";" /*;*/ --;` + "\n ;", "DO $x$;$$;$x$ ; b": "DO $x$;$$;$x$ ;", "'": "'",
	} {
		if got := sql[:statement(sql)]; got != want {
			t.Errorf("%q: got %q, want %q", sql, got, want)
		}
	}
}
