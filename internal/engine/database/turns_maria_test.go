package database_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mariatest"
	"github.com/lessor-dev/lessor/internal/rotation"
)

// Two accounts take turns at MariaDB, too: its process list shows who uses the old one, each password that it had is refused in the end, and a deadline sends
// away who had not moved.
func TestMariaPair(t *testing.T) {
	w := newMariaWorld(t, mariatest.Start(t))
	p := &pair{w.world, [2]string{w.human(), w.human()}}
	w.do(lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"db_name":"m","usernames":[%q,%q],"rotation_period":"1000h"}`, p.users[0], p.users[1]))
	for n := range 3 {
		old := p.read("one")
		p.acknowledge("one", old)
		c, err := w.server.Login(t.Context(), old.username, old.password, "")
		w.must(err)
		w.do(lessor.Update, "db/rotate-role/app", "")
		next := p.read("one")
		if next.username == old.username || !w.logsIn(next.username, next.password) || !w.logsIn(old.username, old.password) {
			t.Fatalf("rotation %d: who moved is locked out, or who did not", n)
		}
		p.acknowledge("one", next)
		p.until("the session is seen", func() bool { p.clock.advance(time.Second); return len(p.status()["sessions"].([]any)) == 1 })
		if seen := p.status()["sessions"].([]any)[0].(map[string]any); seen["client"] == "" || p.phase() != rotation.Waiting {
			t.Errorf("rotation %d: seen is %v, in phase %s", n, seen, p.phase())
		}
		if n == 0 { // somebody does not wait, else it is closed
			w.do(lessor.Update, "sys/lessor/rotation/retire/db/static-creds/app", "")
		} else {
			w.must(c.Close())
		}
		p.reaches(rotation.Idle, time.Second)
		if w.logsIn(old.username, old.password) || !w.logsIn(next.username, next.password) {
			t.Errorf("rotation %d: the old password is not dead", n)
		}
		if n == 0 && c.PingContext(t.Context()) == nil {
			t.Error("who had not moved is connected still")
		}
		_ = c.Close()
	}
}
