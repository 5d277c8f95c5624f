// Package drill rotates passwords again and again, under services that never stop using them and with a lessor that is killed in each step of a rotation:
// no query fails. It is a test, TestDrill, longer with LESSOR_DRILL.
package drill

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/client"
)

const secret = "database/static-creds/turn"

// A moment is one in a rotation at which lessor is killed.
type moment struct {
	name string
	at   func(t *target, incoming, outgoing string) (text string, done bool) // what lessor has to say for it; nil: it shows otherwise
}

// moments are in the order of a rotation's steps.
var moments = []moment{
	{"at no time", nil},
	{"before the new password is set", func(t *target, in, _ string) (string, bool) { return t.sets(in), false }},
	{"after it was set, before lessor heard", func(t *target, in, _ string) (string, bool) { return t.sets(in), true }},
	{"before it is tried", func(t *target, in, _ string) (string, bool) { return t.enters(in), false }},
	{"while it is tried", func(t *target, in, _ string) (string, bool) { return t.enters(in), true }},
	{waiting, nil},
	{"before the old account is retired", func(t *target, _, out string) (string, bool) { return t.sets(out), false }},
	{"after it was retired, before lessor heard", func(t *target, _, out string) (string, bool) { return t.sets(out), true }},
	{"before the old passwords are tried", func(t *target, _, out string) (string, bool) { return t.enters(out), false }},
	{"while they are tried", func(t *target, _, out string) (string, bool) { return t.enters(out), true }},
}

const waiting = "while holders are waited for"

// rotations is how many there are at each target.
func rotations(t *testing.T) int {
	n, err := strconv.Atoi(os.Getenv("LESSOR_DRILL"))
	if err != nil {
		return len(moments)
	}
	if n < len(moments) {
		t.Fatalf("LESSOR_DRILL is a number of rotations, %d or more, so that each moment has one", len(moments))
	}
	return n
}

// drill is a lessor, a target, and who uses the password that lessor rotates there.
type drill struct {
	*server
	*target
	wire    *wire
	slow    *client.Secret // of a holder that moves when it is told to
	ever    []login        // that were in force
	version uint64
}

func newDrill(t *testing.T, at *target) *drill {
	d := &drill{server: newServer(t), target: at, wire: newWire(t, at.address)}
	d.write("sys/mounts/database", map[string]any{"type": "database"})
	connection := at.connection(d.wire.listener.Addr().String())
	connection["allowed_roles"] = "*"
	d.write("database/config/target", connection)
	d.write("database/static-roles/turn", map[string]any{"db_name": "target", "usernames": accounts[0] + "," + accounts[1], "rotation_period": "10000h"})
	d.slow = d.openAs("slow")
	d.took(d.slow.Value())
	return d
}

// open is the secret as one more program has it.
func (d *drill) open() *client.Secret { d.Helper(); return d.openAs("consumer") }

func (d *drill) openAs(name string) *client.Secret {
	d.Helper()
	s, err := d.consumer(context.Background(), name, secret).Secret(context.Background(), secret)
	if err != nil {
		d.Fatal(err)
	}
	d.Cleanup(func() { _ = s.Close(context.Background()) })
	return s
}

// took keeps what is in force now.
func (d *drill) took(v client.Value) {
	d.ever, d.version = append(d.ever, loginOf(v)), v.Version
}

// status is how the rotation stands. It starts lessor where it was killed.
func (d *drill) status() (step string, version uint64) {
	d.Helper()
	for {
		d.up()
		answer, err := d.client.Read(d.Context(), "sys/lessor/rotation/status/"+secret, nil)
		if err != nil {
			if d.Context().Err() != nil {
				d.Fatal(err)
			}
			continue // it was killed a moment ago
		}
		version, err := answer.Data["version"].(json.Number).Int64()
		if err != nil {
			d.Fatal(err)
		}
		return answer.Data["step"].(string), uint64(version)
	}
}

// rotate is one rotation, in which lessor is killed at a moment.
func (d *drill) rotate(m moment) {
	d.Helper()
	outgoing := d.ever[len(d.ever)-1].username
	incoming := accounts[0]
	if incoming == outgoing {
		incoming = accounts[1]
	}
	killed := make(chan struct{})
	if m.at != nil {
		text, done := m.at(d.target, incoming, outgoing)
		d.wire.when(text, done, func() {
			d.kill()
			close(killed)
		})
	}
	before := d.slow.Value()
	d.until("a rotation begins", func() bool {
		_, _ = d.client.WithTimeout(20*time.Second).Write(d.Context(), "database/rotate-role/turn", map[string]any{})
		step, version := d.status()
		return version > d.version || step != "idle"
	})
	d.until("the other account is in force", func() bool {
		step, version := d.status()
		return version == d.version+1 && step == "wait"
	})
	if m.name == waiting {
		d.kill()
		close(killed)
		if step, _ := d.status(); step != "wait" {
			d.Errorf("killed while it waited, it goes on with %q", step)
		}
	}
	<-d.slow.Changed(before)
	v := d.slow.Value()
	if l := loginOf(v); l.username != incoming || d.login(d.Context(), l) != nil {
		d.Errorf("%s is shown, and %s is to come; or its password does not log in", l.username, incoming)
	}
	if err := d.login(d.Context(), d.ever[len(d.ever)-1]); err != nil {
		d.Errorf("a holder has not moved, and its password does not log in: %v", err)
	}
	d.took(v)
	d.slow.Adopt(v)
	d.until("the rotation is over", func() bool {
		step, version := d.status()
		return version == d.version && step == "idle"
	})
	if m.at == nil && m.name != waiting {
		return
	}
	select {
	case <-killed:
	default:
		d.Errorf("lessor was not killed %s: it has not come to that", m.name)
	}
}

// finish looks at what is left: one password that is right, all others dead, nothing else.
func (d *drill) finish(accounts int) {
	d.Helper()
	for i, l := range d.ever {
		err := d.login(d.Context(), l)
		if last := i == len(d.ever)-1; last && err != nil {
			d.Errorf("the password in force is refused: %v", err)
		} else if !last && err == nil {
			d.Errorf("password %d of %d logs in still", i+1, len(d.ever))
		}
	}
	if n := d.others(); n != accounts {
		d.Errorf("%d accounts at the target, %d before", n, accounts)
	}
	d.kill()
	out, err := exec.Command(d.bin, "operator", "verify", "-config", d.dir+"/lessor.hcl").CombinedOutput()
	if err != nil {
		d.Errorf("the store does not verify: %v\n%s", err, out)
	}
}

// service queries over a pool, from as many goroutines as it has connections.
type service struct {
	done, failed atomic.Int64
	broke        atomic.Int64 // when a query failed first, in nanoseconds since 1970; 0: none has
	failure      atomic.Pointer[error]
	cancel       context.CancelFunc
	all          sync.WaitGroup
	pool         pool
}

// pause is what each goroutine does between two queries, in the short form: tests run beside others.
func pause() time.Duration {
	if os.Getenv("LESSOR_DRILL") != "" {
		return 0
	}
	return 20 * time.Millisecond
}

func serve(p pool) *service {
	ctx, cancel := context.WithCancel(context.Background())
	s := &service{pool: p, cancel: cancel}
	for range connections {
		s.all.Go(func() {
			for ctx.Err() == nil {
				if err := p.query(context.Background()); err != nil {
					s.broke.CompareAndSwap(0, time.Now().UnixNano())
					s.failed.Add(1)
					s.failure.Store(&err)
				}
				s.done.Add(1)
				time.Sleep(pause())
			}
		})
	}
	return s
}

// end stops it, and tells how it went.
func (s *service) end() (done, failed int64, failure error) {
	s.cancel()
	s.all.Wait()
	s.pool.close()
	if err := s.failure.Load(); err != nil {
		failure = *err
	}
	return s.done.Load(), s.failed.Load(), failure
}

// TestDrill: a service with 50 connections at each target, and at PostgreSQL a command under lessor run besides, never see a rotation.
func TestDrill(t *testing.T) {
	for name, start := range map[string]func(*testing.T) *target{"postgresql": postgresql, "mariadb": mariadb, "redis": redisServer} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDrill(t, start(t))
			there := d.others()
			service := serve(d.pool(t, d.open()))
			var command *command
			if name == "postgresql" {
				command = d.command()
			}
			n := rotations(t)
			for i := range n {
				m := moments[i%len(moments)]
				begun := time.Now()
				d.rotate(m)
				t.Logf("rotation %d, lessor killed %s: %v", i+1, m.name, time.Since(begun).Round(time.Millisecond))
			}
			if command != nil {
				done, failed := command.end()
				t.Logf("lessor run: %d queries of %d starts", done, command.starts())
				if failed > 0 || done == 0 || command.starts() != n+1 {
					t.Errorf("%d of %d queries failed, of %d starts", failed, done, command.starts())
				}
			}
			done, failed, failure := service.end()
			t.Logf("%d queries", done)
			if failed > 0 || done < int64(n*connections) {
				t.Errorf("%d of %d queries failed: %v", failed, done, failure)
			}
			d.finish(there)
		})
	}
}

// TestControl is a rotation in which nobody is waited for, under a service that does not move: the same queries fail.
func TestControl(t *testing.T) {
	d := newDrill(t, postgresql(t))
	service := serve(d.fixed(d.ever[0]))
	d.write("database/rotate-role/turn", map[string]any{})
	d.until("the other account is in force", func() bool {
		step, version := d.status()
		return version == d.version+1 && step == "wait"
	})
	d.write("sys/lessor/rotation/retire/"+secret, map[string]any{})
	d.until("the rotation is over", func() bool {
		step, _ := d.status()
		return step == "idle"
	})
	d.until("a query fails", func() bool { return service.failed.Load() > 0 })
	if done, failed, _ := service.end(); failed == done {
		t.Errorf("all of %d queries failed: the service never worked", done)
	}
}
