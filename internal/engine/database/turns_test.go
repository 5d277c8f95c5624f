package database_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rotation"
)

// A program that lessor knows nothing of has a connection to RabbitMQ: it is named, and waited for, until the grace is over. Then its connection ends.
func TestRabbitMQConnectionIsWaitedFor(t *testing.T) {
	w := newBrokerWorld(t)
	users := [2]string{w.own + "_a", w.own + "_b"}
	for _, user := range users {
		w.human(user)
	}
	w.do(lessor.Update, "mq/static-roles/app", fmt.Sprintf(`{"usernames":[%q,%q],"rotation_period":"1000h","rotation_grace":"2h"}`, users[0], users[1]))
	read := func() (username, password string) {
		a := w.do(lessor.Read, "mq/static-creds/app", "")
		return a.Data["username"].(string), a.Data["password"].(lessor.Secret).Reveal()
	}
	name, first := read()
	c, err := w.server.Dial(name, first, "/")
	w.must(err)
	defer c.Close()
	w.do(lessor.Update, "mq/rotate-role/app", "")
	if other, second := read(); other == name || !w.logsIn(other, second) || !w.logsIn(name, first) {
		t.Fatalf("after the rotation: %s", other)
	}
	w.until("the connection is named", func() bool {
		w.clock.advance(time.Second)
		status, err := json.Marshal(w.do(lessor.Read, "sys/lessor/rotation/status/mq/static-creds/app", "").Data)
		return err == nil && strings.Contains(string(status), `"rabbittest"`)
	})
	if w.state("static/app").Phase() == rotation.Idle || !w.logsIn(name, first) {
		t.Error("it was not waited for")
	}
	w.clock.advance(2 * time.Hour)
	w.until("the rotation is done", func() bool {
		w.clock.advance(time.Second)
		return w.state("static/app").Phase() == rotation.Idle
	})
	if w.logsIn(name, first) || !c.Ended(30*time.Second) {
		t.Error("the old password, or what was opened by it, lives on")
	}
}
