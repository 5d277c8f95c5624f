package database_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
)

func TestStaticRole(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	user := w.account("")
	a := w.do(lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"db_name":"pg","username":%q,"rotation_period":"1h"}`, user))
	if len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "usernames") || a.Data != nil {
		t.Errorf("answer of a creation: %+v", a)
	}
	creds := w.do(lessor.Read, "db/static-creds/app", "")
	got := string(lessor.AppendJSON(nil, creds.Data))
	for _, want := range []string{`"username":"` + user + `"`, `"rotation_period":3600`, `"last_vault_rotation":"20`, `"ttl":36`} {
		if !strings.Contains(got, want) {
			t.Errorf("static-creds %s lacks %s", got, want)
		}
	}
	if creds.Lease.ID != "" || creds.Lease.Renewable || creds.Lease.Duration != 0 {
		t.Errorf("lease of a static credential: %+v", creds.Lease)
	}
	first := w.password("app")
	if w.logsIn(user, "first") || !w.logsIn(user, first) {
		t.Error("the password that was imported is not the account's")
	}
	rec := w.records("db/static-creds/app")[0]
	if rec.Lease == "" || len(rec.Secrets) != 1 || rec.Secrets[0].Version != 1 || rec.Secrets[0].How != "shown" {
		t.Errorf("record of a read: %+v", rec.Record)
	}

	w.do(lessor.Update, "db/rotate-role/app", "")
	second := w.password("app")
	if second == first || w.logsIn(user, first) || !w.logsIn(user, second) {
		t.Error("after rotate-role")
	}
	recs := w.records("db/rotate-role/app")
	if len(recs) != 2 || recs[1].Phase != audit.Begun || recs[0].Phase != audit.Outcome || len(recs[0].Secrets) != 1 || recs[0].Secrets[0].Version != 2 {
		t.Errorf("records of a rotation: %+v", recs)
	}
	if w.do(lessor.Read, "db/static-creds/app", ""); w.records("db/static-creds/app")[0].Lease == rec.Lease {
		t.Error("the new version has the lease of the old one")
	}

	// By itself, once it is due; and the proof that the former password is dead, later.
	w.clock.advance(time.Hour)
	w.until("it is rotated when it is due", func() bool { return w.state("static/app").Version == 3 })
	third := w.password("app")
	if third == second || !w.logsIn(user, third) {
		t.Error("after a rotation that was due")
	}
	recs = slices.DeleteFunc(w.records("db/static-roles/app"), func(r audit.At) bool { return r.Note != "rotation" })
	if recs[0].System != "rotation" || recs[0].Operation != "rotate" || recs[0].Phase != audit.Outcome || recs[1].Phase != audit.Begun {
		t.Errorf("records of a rotation that was due: %+v", recs[:2])
	}
	w.clock.advance(3 * time.Minute)
	w.until("what was before is proven dead", func() bool { s := w.state("static/app"); return s.Check.IsZero() })

	read := string(lessor.AppendJSON(nil, w.do(lessor.Read, "db/static-roles/app", "").Data))
	for _, want := range []string{`"credential_type":"password"`, `"db_name":"pg"`, `"rotation_statements":[]`, `"skip_import_rotation":false`, `"rotation_period":3600`} {
		if !strings.Contains(read, want) {
			t.Errorf("static role %s lacks %s", read, want)
		}
	}
	if strings.Contains(read, third) {
		t.Error("the role shows its password")
	}
	if a := w.do(lessor.Delete, "db/static-roles/app", ""); len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "stays") {
		t.Errorf("deletion warns %q", a.Warnings)
	}
	if !w.logsIn(user, third) {
		t.Error("deleting a static role touched its account")
	}
	if w.state("static/app") != nil {
		t.Error("a deleted role left something")
	}
	w.refused(api.Invalid, lessor.Read, "db/static-creds/app", "", "unknown role: app")
	w.refused(api.Invalid, lessor.Update, "db/rotate-role/app", "", "no static role found for role name")
}

func TestStaticRoleIsRefused(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	user := w.account("")
	body := func(more string) string { return fmt.Sprintf(`{"db_name":"pg","username":%q%s}`, user, more) }
	for _, c := range []struct{ path, body, text string }{
		{"a", `{"username":"x","rotation_period":60}`, "database name is a required field"},
		{"a", `{"db_name":"pg","rotation_period":60}`, "username is a required field to create a static account"},
		{"a", body(""), "one of rotation_schedule or rotation_period must be provided to create a static account"},
		{"a", body(`,"rotation_period":60,"rotation_schedule":"* * * * *"`), "mutually exclusive fields rotation_period and rotation_schedule were both specified; only one of them can be provided"},
		{"a", body(`,"rotation_period":4`), "rotation_period must be 5 seconds or more"},
		{"a", body(`,"rotation_period":60,"rotation_window":3600`), "rotation_window is invalid with use of rotation_period"},
		{"a", body(`,"rotation_schedule":"* * * *"`), "could not parse rotation_schedule"},
		{"a", body(`,"rotation_schedule":"TZ="`), "could not parse rotation_schedule"},
		{"a", body(`,"rotation_schedule":"0 0 30 2 *"`), "that time never comes"},
		{"a", body(`,"rotation_schedule":"0 0 * * *","rotation_window":60`), "rotation_window must be 3600 seconds or more"},
		{"a", body(`,"rotation_period":60,"credential_type":"rsa_private_key"`), "invalid credential_type"},
		{"a", body(`,"rotation_period":60,"rotation_statements":"ALTER ROLE {{name}}"`), "must be in quotes"},
		{"a", body(`,"rotation_period":60,"rotation_statements":"ALTER ROLE \"{{name}}\" VALID UNTIL '{{expiration}}'"`), "{{expiration}} is not known here"},
		{"a", body(`,"rotation_period":60,"password":"x","self_managed_password":"y"`), "cannot set both"},
		{"a", `{"db_name":"none","username":"x","rotation_period":60}`, `there is no connection "none"`},
		{"a", `{"db_name":"pg","username":"postgres","rotation_period":60}`, `is the account that lessor itself uses`},
		{"a", body(`,"rotation_schedule":""`), "one of rotation_schedule or rotation_period must be provided"},
		{"a", `{"db_name":"pg","username":"a\"b","rotation_period":60}`, "without quotes"},
		{"a", `{"db_name":"pg","username":"a'b","rotation_period":60}`, "without quotes"},
		{"a", `{"db_name":"pg","username":"a\\b","rotation_period":60}`, "without quotes"},
		{"a", `{"db_name":"pg","username":"a$b$","rotation_period":60}`, "without quotes"},
		{"a", `{"db_name":"pg","username":"a\u0000b","rotation_period":60}`, "without quotes"},
		{"a", `{"db_name":"pg","username":"` + strings.Repeat("a", 64) + `","rotation_period":60}`, "without quotes"},
		{"a/b", body(`,"rotation_period":60`), ""},
	} {
		_, err := w.try(lessor.Update, "db/static-roles/"+c.path, c.body)
		if err == nil || !strings.Contains(err.Error(), c.text) || c.text != "" && api.KindOf(err) != api.Invalid {
			t.Errorf("%s: %v", c.body, err)
		}
	}
	// One account, one role; one name, one kind of role.
	w.do(lessor.Update, "db/static-roles/a", body(`,"rotation_period":60,"rotation_schedule":""`)) // as some clients do
	w.refused(api.Invalid, lessor.Update, "db/static-roles/b", body(`,"rotation_period":60`), `is managed by the static role "a" already`)
	w.refused(api.Invalid, lessor.Update, "db/roles/a", `{"db_name":"pg","creation_statements":"x"}`, "Role and Static Role names must be unique")
	w.do(lessor.Update, "db/roles/c", `{"db_name":"pg","creation_statements":"x"}`)
	w.refused(api.Invalid, lessor.Update, "db/static-roles/c", body(`,"rotation_period":60`), "Role and Static Role names must be unique")
	w.refused(api.Invalid, lessor.Update, "db/static-roles/a", `{"username":"other"}`, "cannot update static account username")
	w.refused(api.Invalid, lessor.Update, "db/static-roles/a", `{"password":"x"}`, "updating password not allowed after rotation")
	w.refused(api.Invalid, lessor.Delete, "db/config/pg", "", `needed to rotate the static role "a"`)
	w.refused(api.Invalid, lessor.Update, "db/config/pg", fmt.Sprintf(`{"username":%q}`, user), `is that of the static role "a"`)
	w.do(lessor.Update, "db/config/pg", `{"allowed_roles":"other"}`)
	w.refused(api.Invalid, lessor.Read, "db/static-creds/a", "", `"a" is not an allowed role`)

	// What the database refuses is not made at all.
	w.do(lessor.Update, "db/config/pg", `{"allowed_roles":"*"}`)
	w.refused(api.Upstream, lessor.Update, "db/static-roles/d", `{"db_name":"pg","username":"nobody-here","rotation_period":60}`, `the static role was not made`)
	w.refused(api.NotFound, lessor.Read, "db/static-roles/d", "", "")
	if w.state("static/d") != nil {
		t.Error("a role that was not made left something")
	}
	w.do(lessor.Update, "db/static-roles/a", `{"rotation_schedule":"0 3 * * *","rotation_window":"2h"}`)
	if s := w.state("static/a"); s.Due.Hour() != 3 || s.Due.Minute() != 0 {
		t.Errorf("due %s", s.Due)
	}
	if data := w.do(lessor.Read, "db/static-creds/a", "").Data; fmt.Sprintf("%v%v%v", data["rotation_schedule"], data["rotation_window"], data["rotation_period"]) != "0 3 * * *7200<nil>" {
		t.Errorf("static-creds: %v", data)
	}
}

// Accounts that administrators have may have any name that ends no quotes.
func TestOddAccounts(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	for i, name := range []string{"a b", "a; DROP ROLE postgres --", "a/*", "ü", "{{password}}", "%s%d", "a@b:c/d?e#f"} {
		w.sql(`CREATE ROLE "` + name + `" LOGIN PASSWORD 'first'`)
		role := fmt.Sprint("odd", i)
		w.do(lessor.Update, "db/static-roles/"+role, fmt.Sprintf(`{"db_name":"pg","username":%q,"rotation_period":"1h"}`, name))
		w.do(lessor.Update, "db/rotate-role/"+role, "")
		if !w.logsIn(name, w.password(role)) || w.logsIn(name, "first") {
			t.Errorf("%q was not rotated", name)
		}
		w.sql(`DROP ROLE "` + name + `"`)
	}
}

// A role of one account is encoded as versions know it that know of no second. At one of two they fail, rather than to lose half of it.
func TestRolesOfTheVersionBefore(t *testing.T) {
	type before struct {
		Connection string `cbor:"1,keyasint"`
		Username   string `cbor:"2,keyasint"`
	}
	for _, names := range [][]string{{"one"}, {"one", "two"}} {
		row, err := cbor.Marshal(&database.StaticRole{Connection: "pg", Usernames: names})
		if err != nil {
			t.Fatal(err)
		}
		var old before
		if err := cbor.Unmarshal(row, &old); (err == nil) != (len(names) == 1) || err == nil && old.Username != "one" {
			t.Errorf("the version before reads %v as %+v, %v", names, old, err)
		}
		var now database.StaticRole
		if err := cbor.Unmarshal(row, &now); err != nil || !slices.Equal(now.Usernames, names) {
			t.Errorf("%v is read as %+v, %v", names, now, err)
		}
	}
	row, err := cbor.Marshal(&before{"pg", "one"})
	if err != nil {
		t.Fatal(err)
	}
	var now database.StaticRole
	if err := cbor.Unmarshal(row, &now); err != nil || len(now.Usernames) != 1 || now.Usernames[0] != "one" {
		t.Errorf("a role of the version before is read as %+v, %v", now, err)
	}
}
