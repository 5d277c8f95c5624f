package mysql

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mariatest"
	"github.com/lessor-dev/lessor/internal/pgtest"
)

// through is a connection over a relay, by an account of its own, with a session that is open.
func through(b *bench, r *pgtest.Relay) (d *server, username string) {
	b.t.Helper()
	username, least := b.least("PROCESS, CONNECTION ADMIN ON *.*")
	d = connection(b.t, b.Server, least, func(c *database.Connection, _ *database.Secrets) { c.URL = r.URL(c.URL) }).(*server)
	if err := d.Ping(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	return d, username
}

// delivered waits until the server has done what was held back, and ended the sessions that it came by.
func delivered(b *bench, d *server, username string) {
	b.t.Helper()
	_ = d.pool.Close()
	b.until("what was held back has been done", func() bool {
		return ask[int](b, "SELECT COUNT(*) FROM information_schema.processlist WHERE USER="+text(username)) == 0
	})
}

// What a paused process sent, and the network delivers after its successor has removed the account and looked for the last time, makes nothing.
func TestStatementsThatComeTooLate(t *testing.T) {
	b := newBench(t, mariatest.Start(t))
	relay := pgtest.RelayTo(t, b.Address())
	for name, hold := range map[string]string{"before it has the locks": "GET_LOCK", "after": "CREATE USER"} {
		t.Run(name, func(t *testing.T) {
			paused, username := through(b, relay)
			relay.HoldFrom(hold)
			a := account()
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if err := paused.Create(ctx, a); !errors.Is(err, database.ErrUnreachable) {
				t.Fatalf("got %v", err)
			}
			b.remove(a)
			relay.Release()
			delivered(b, paused, username)
			if b.has(a) {
				t.Error("an account that was reverted came back")
			}
		})
	}
}

// What a machine sends after it slept, whose clock did not go on meanwhile, is refused by the server's. So it is where that one was set, and the next
// session asks it.
func TestMachineThatSlept(t *testing.T) {
	b := newBench(t, mariatest.Start(t), func(c *database.Connection, _ *database.Secrets) { c.MaxOpen = 1 })
	a := account()
	if err := b.Database.(*server).session(t.Context(), func(s *session) error {
		s.clock.server -= 3600
		return s.make("CREATE USER " + text(a.Username))
	}); !errors.Is(err, database.ErrUnreachable) {
		t.Errorf("got %v", err)
	}
	if b.has(a) {
		t.Error("the account was made")
	}
	b.remove(b.create(a))
}

// A password that was succeeded does not come into force again, whatever was sent.
func TestPasswordThatComesTooLate(t *testing.T) {
	b := newBench(t, mariatest.Start(t))
	relay := pgtest.RelayTo(t, b.Address())
	paused, username := through(b, relay)
	a := b.create(account())
	change := func(password string) database.Change {
		return database.Change{Name: "static/app", Username: a.Username, Password: lessor.NewSecret(password)}
	}
	relay.HoldFrom("ALTER USER")
	err := error(database.ErrUntouched)
	for patience := 300 * time.Millisecond; errors.Is(err, database.ErrUntouched) && patience < time.Minute; patience *= 2 { // until it is enough to get there
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err = paused.SetPassword(ctx, change("the first"))
		cancel()
	}
	if !errors.Is(err, database.ErrUnreachable) || errors.Is(err, database.ErrUntouched) {
		t.Fatalf("got %v", err)
	}
	if err := b.SetPassword(t.Context(), change("the second")); err != nil {
		t.Fatal(err)
	}
	relay.Release()
	delivered(b, paused, username)
	for password, want := range map[string]database.Verdict{"the first": database.Refused, "the second": database.Accepted} {
		if verdict, err := b.Database.Login(t.Context(), a.Username, lessor.NewSecret(password)); err != nil || verdict != want {
			t.Errorf("%s: %v, %v", password, verdict, err)
		}
	}
	b.remove(a)
}

// Who began to log in before an account was removed, and takes his time, is not let in after it.
func TestLoginUnderWay(t *testing.T) {
	b := newBench(t, mariatest.Start(t))
	a := b.create(account())
	if known, err := b.login(a); err != nil { // MySQL's caching_sha2_password asks for no more than an answer of whom it has seen
		t.Fatal(err)
	} else {
		known.Close()
	}
	c, err := net.Dial("tcp", b.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answer := halfLogin(t, c, a.Username, a.Password.Reveal())
	b.remove(a)
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if err := write(c, 3, answer); err == nil {
		if reply, _, err := read(c); err == nil && len(reply) > 0 && (reply[0] == 0 || reply[0] == 1) {
			query := append([]byte{3}, "SELECT 1"...)
			if err := write(c, 0, query); err == nil {
				if reply, _, err := read(c); err == nil && reply[0] != 0xff {
					t.Error("somebody is logged in to an account that was removed")
				}
			}
		}
	}
	if n := ask[int](b, "SELECT COUNT(*) FROM information_schema.processlist WHERE USER="+text(a.Username)); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}

// MySQL does not say as whom a session that is not logged in yet is to be: such ones do not outlive a removal for long, where MariaDB leaves them alone.
func TestLoginUnderWayAsNobodyKnows(t *testing.T) {
	b := newBench(t, mariatest.Start(t), func(c *database.Connection, _ *database.Secrets) { c.MaxOpen = 1 })
	c, err := net.Dial("tcp", b.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, _, err := read(c); err != nil {
		t.Fatal(err)
	}
	there := func() bool {
		return ask[int](b, "SELECT COUNT(*) FROM information_schema.processlist WHERE USER='"+unauthenticated+"'") == 1
	}
	a := account()
	if !b.MySQL() {
		b.remove(b.create(account()))
		if !there() {
			t.Error("MariaDB's was ended")
		}
		b.create(a)
		if err := b.Database.(*server).session(t.Context(), func(s *session) error { s.maria = false; return nil }); err != nil {
			t.Fatal(err)
		}
	} else {
		b.create(a)
	}
	b.remove(a)
	if there() {
		t.Error("MySQL's was not")
	}
}

// halfLogin logs in up to the last message, which it returns: the server waits for it, the account in its mind.
func halfLogin(t *testing.T, c net.Conn, username, password string) []byte {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, _, err := read(c); err != nil { // its greeting
		t.Fatal(err)
	}
	const capabilities = 1 | 1<<9 | 1<<15 | 1<<19 // protocol 4.1, its way to log in, plugins
	p := binary.LittleEndian.AppendUint32(nil, capabilities)
	p = binary.LittleEndian.AppendUint32(p, 1<<24)
	p = append(p, 33)
	p = append(p, make([]byte, 23)...)
	p = append(append(p, username...), 0)
	p = append(append(p, 0), "mysql_clear_password\x00"...) // another plugin than the account's: the server asks for its own
	if err := write(c, 1, p); err != nil {
		t.Fatal(err)
	}
	request, _, err := read(c)
	if err != nil || request[0] != 0xfe {
		t.Fatalf("the server does not ask for another plugin: %q, %v", request, err)
	}
	challenge := request[len(request)-21 : len(request)-1]
	if bytes.Contains(request, []byte("caching_sha2_password")) {
		once := sha256.Sum256([]byte(password))
		twice := sha256.Sum256(once[:])
		mask := sha256.Sum256(append(twice[:], challenge...))
		for i := range once {
			once[i] ^= mask[i]
		}
		return once[:]
	}
	once := sha1.Sum([]byte(password))
	twice := sha1.Sum(once[:])
	mask := sha1.Sum(append(append([]byte{}, challenge...), twice[:]...))
	for i := range once {
		once[i] ^= mask[i]
	}
	return once[:]
}

func read(c net.Conn) (payload []byte, number byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return nil, 0, err
	}
	payload = make([]byte, int(head[0])|int(head[1])<<8|int(head[2])<<16)
	_, err = io.ReadFull(c, payload)
	return payload, head[3], err
}

func write(c net.Conn, number byte, payload []byte) error {
	n := len(payload)
	_, err := c.Write(append([]byte{byte(n), byte(n >> 8), byte(n >> 16), number}, payload...))
	return err
}
