package ldap_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/event"
	"github.com/lessor-dev/lessor/internal/ldaptest"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Who may read a static role's password hears of each new one, and of nothing else that its rotation writes.
func TestRotationsAreTold(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	v, err := w.db.View()
	w.must(err)
	after, err := w.core.Events().Now(v)
	v.Close()
	w.must(err)
	l, err := w.core.Listen(w.op(w.root, lessor.Read, "sys/lessor/events/*", ""), event.Interest{Types: []string{"*"}}, after)
	w.must(err)
	defer l.Close()
	name, _ := w.person("first")
	w.do(lessor.Update, "ldap/static-role/team/App", fmt.Sprintf(`{"username":%q,"rotation_period":"1h"}`, name))
	w.do(lessor.Update, "ldap/rotate-role/team/app", "")
	w.clock.advance(time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for version := 1; version <= 3; {
		events, err := l.Next(ctx)
		w.must(err)
		for _, e := range events {
			if e.Type != event.Rotated || e.Path != "ldap/static-cred/team/app" || e.Metadata["version"] != fmt.Sprint(version) {
				t.Errorf("%s of %s, version %s; want version %d", e.Type, e.Path, e.Metadata["version"], version)
			}
			version++
		}
	}
}
