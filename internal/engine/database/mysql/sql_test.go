package mysql

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/engine/database"
)

const every = "name username password expiration"

func TestCheck(t *testing.T) {
	for sql, want := range map[string]string{
		`CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'; GRANT SELECT ON app.* TO "{{username}}"@'%';`:         "",
		"CREATE USER `{{name}}`@'10.%' -- {{name}} and it's fine\nIDENTIFIED BY '{{password}}' # {{x}} '\n/* '{{y}} */": "",
		`INSERT INTO x VALUES ('it''s {{name}}', 'a\'{{expiration}}', "b\"{{name}}", 5--1)`:                             "",
		`SET @a = 'x'; CALL app.make('{{name}}', '{{password}}')`:                                                       "",
		`CREATE USER {{name}} IDENTIFIED BY '{{password}}'`:                                                             "{{name}} must be in quotes",
		`CREATE USER '{{name}}' IDENTIFIED BY {{password}}`:                                                             "{{password}} must be in quotes",
		"CREATE USER '{{name}}' IDENTIFIED BY `{{password}}`":                                                           "must be in single quotes",
		`CREATE USER '{{rolename}}'`:                                                                                    "{{rolename}} is not known",
		`CREATE USER '{{ name }}'`:                                                                                      "{{ name }} is not known",
		`CREATE USER '{{name}}`:                                                                                         "never closed",
		`SELECT 'it''s`:                                                                                                 "never closed",
		`SELECT 'it\'`:                                                                                                  "never closed",
		"SELECT `a\\`; SELECT '{{name}}'":                                                                               "",
		`SELECT 1 /* `:                                                                                                  "never closed",
		`SELECT 1 /*! , '{{name}}' */`:                                                                                  `"/*!" is not allowed`,
		`SELECT 1 /*M!100100 , 2 */`:                                                                                    `"/*M" is not allowed`,
		`CREATE USER '{{name}}'; commit; SELECT 1`:                                                                      "COMMIT is not allowed",
		"DELIMITER //\nCREATE PROCEDURE p() SELECT 1 //":                                                                "DELIMITER is not allowed",
		`begin not atomic select 1; end`:                                                                                "BEGIN is not allowed",
		`/* x */ START TRANSACTION`:                                                                                     "START is not allowed",
		`SELECT $$ ' $$`:                                                                                                "is not allowed",
		`SELECT a$b$c FROM x`:                                                                                           "",
		`SELECT CASE WHEN 1 THEN 2 END`:                                                                                 "",
		``:                                                                                                              "",
	} {
		err := check(sql, every)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", sql, err, want)
		}
	}
	if err := usual.CheckRole(&database.Statements{Creation: []string{"x"}, Revocation: []string{`DROP USER '{{name}}'; SELECT '{{password}}'`}}); err == nil || !strings.Contains(err.Error(), "revocation_statements") {
		t.Errorf("a password on revocation: %v", err)
	}
	if err := usual.CheckRole(&database.Statements{}); err == nil || !strings.Contains(err.Error(), "creation_statements are needed") {
		t.Errorf("no creation_statements: %v", err)
	}
}

func TestSplit(t *testing.T) {
	for sql, want := range map[string][]string{
		"a;b": {"a", "b"}, "a": {"a"}, "": nil, ";;": nil, " ; a ; ": {" a "}, "';';b;": {"';'", "b"}, "`;` /*;*/ -- ;\n ;b": {"`;` /*;*/ -- ;\n ", "b"},
		"/* only */; # this\n": nil, `"\";";b`: {`"\";"`, "b"}, "a;'b'": {"a", "'b'"}, "a; -- b": {"a"}, "a--;b": {"a--", "b"}, "a --": {"a --"},
	} {
		if got := split(sql); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", sql, got, want)
		}
	}
}

func TestValues(t *testing.T) {
	until := time.Date(2026, 1, 2, 3, 4, 5, 1, time.FixedZone("", 3600))
	v, err := newValues("v-a.b_C", "*A{{name}}", until)
	if err != nil {
		t.Fatal(err)
	}
	got := v.statements([]string{`A '{{name}}' '{{password}}' ; `, `B '{{expiration}}' "{{username}}" -- c`})
	if want := []string{`A 'v-a.b_C' '*A{{name}}' `, `B '2026-01-02 02:05:06' "v-a.b_C" -- c`}; !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for _, name := range []string{"", `a"b`, "a'b", "a`b", "a b", "a;b", "ä", `a\`, "a\x00", "a@b", strings.Repeat("a", 81)} {
		if _, err := newValues(name, "x", until); err == nil {
			t.Errorf("the name %q was taken", name)
		}
	}
	for _, password := range []string{"a'b", `a"b`, "a`b", `a\b`, "a\nb", "a\x00b"} {
		if _, err := newValues("a", password, until); err == nil {
			t.Errorf("the password %q was taken", password)
		}
	}
}

func TestHashed(t *testing.T) {
	identified := func(plugin string) string {
		if plugin == "pam" {
			return ""
		}
		return "HASH(" + plugin + ")"
	}
	for sql, want := range map[string]string{
		`CREATE USER '{{name}}' IDENTIFIED BY '{{password}}' WITH MAX_USER_CONNECTIONS 3`:  `CREATE USER '{{name}}' HASH() WITH MAX_USER_CONNECTIONS 3`,
		`create user 'a' identified /* so */ by "{{password}}", 'b' identified by 'fixed'`: `create user 'a' HASH(), 'b' identified by 'fixed'`,
		`IDENTIFIED BY '{{password}}' IDENTIFIED BY '{{password}}'`:                        `HASH() HASH()`,
		`IDENTIFIED BY 'x{{password}}'`:                                                    `IDENTIFIED BY 'x{{password}}'`,
		`IDENTIFIED BY PASSWORD '{{password}}'`:                                            `IDENTIFIED BY PASSWORD '{{password}}'`,
		`IDENTIFIED VIA ed25519 USING PASSWORD('{{password}}') OR unix_socket`:             `HASH(ed25519) OR unix_socket`,
		"IDENTIFIED WITH `mysql_native_password` AS PASSWORD ( '{{password}}' )":           `HASH(mysql_native_password)`,
		`IDENTIFIED VIA pam USING PASSWORD('{{password}}')`:                                `IDENTIFIED VIA pam USING PASSWORD('{{password}}')`,
		`SET PASSWORD FOR '{{name}}' = PASSWORD('{{password}}')`:                           `SET PASSWORD FOR '{{name}}' = PASSWORD('{{password}}')`,
		`SELECT "IDENTIFIED BY '{{password}}'"`:                                            `SELECT "IDENTIFIED BY '{{password}}'"`,
		`IDENTIFIED BY`:                                                                    `IDENTIFIED BY`,
		`IDENTIFIED`:                                                                       `IDENTIFIED`,
	} {
		if got := hashed(sql, identified); got != want {
			t.Errorf("%s:\n got %s\nwant %s", sql, got, want)
		}
	}
}

func TestLeavesTraces(t *testing.T) {
	for sql, want := range map[string]bool{
		"SET ROLE x": true, "CREATE USER a": false, "create or replace user a": false, "USE x": true, "SELECT @a := 1": true, "CALL p()": true, "flush privileges": false,
		" GRANT SELECT ON x.* TO y": false, "UPDATE t SET a = (SELECT @b:=2)": true, "PREPARE x FROM 'y'": true, "CREATE TEMPORARY TABLE x (n INT)": true, "FLUSH TABLES WITH READ LOCK": true,
	} {
		if leavesTraces([]string{"DROP USER x", sql}) != want {
			t.Errorf("%s: not %v", sql, want)
		}
	}
}

// What check lets pass never leads a value out of its quotes: with harmless values or with others, the text outside of quotes is the same, and so are
// the statements that it falls into.
func FuzzCheck(f *testing.F) {
	for _, s := range []string{
		`CREATE USER '{{name}}' IDENTIFIED BY '{{password}}'`, `'\'{{name}}'`, `"{{name}}\"" '{{name}}'`, `--{{name}}`, "`{{name}}\\`", `a'{{name}}'b'''{{name}}'''`,
		`# {{name}}`, `-- '`, `/*{{name}}*/;'{{password}}'`, `IDENTIFIED VIA x USING PASSWORD("{{password}}")`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, sql string) {
		if check(sql, every) != nil {
			return
		}
		v, err := newValues("--a-", "/*;#{{}} -- ", time.Unix(0, 0))
		if err != nil {
			t.Fatal(err)
		}
		w, err := newValues("b", "c", time.Unix(0, 0))
		if err != nil {
			t.Fatal(err)
		}
		one, other := v.statements([]string{sql}), w.statements([]string{sql})
		if len(one) != len(other) {
			t.Fatalf("%q: %q, and %q", sql, one, other)
		}
		for i := range one {
			if outside(one[i]) != outside(other[i]) {
				t.Errorf("%q:\n%q\n%q", sql, outside(one[i]), outside(other[i]))
			}
			if len(split(one[i])) > 1 {
				t.Errorf("%q has a statement of several: %q", sql, one[i])
			}
		}
	})
}

// outside is sql without comments and without what is in quotes.
func outside(sql string) string {
	var b strings.Builder
	for i := 0; i < len(sql); {
		kind, n := token(sql, i)
		if kind != blank && kind != quote {
			b.WriteString(sql[i : i+n])
		}
		i += n
	}
	return b.String()
}
