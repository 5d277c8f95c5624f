// Package drill rotates passwords again and again, under services that never stop using them, by the Go client, under lessor run and behind the agent, and with a
// lessor that is killed in each step of a rotation: no query fails. It is a test, TestDrill, longer with LESSOR_DRILL.
package drill

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/rotation"
)

const secret = "database/static-creds/turn"

// A moment is one in a rotation at which lessor is killed.
type moment struct {
	name string
	step rotation.Phase
	at   func(t *target, incoming, outgoing string) (text string, done bool) // what lessor has to say for it; nil: it shows otherwise
}

// moments are in the order of a rotation's steps.
var moments = []moment{
	{beginning, rotation.Idle, nil},
	{"before the new password is set", rotation.Setting, func(t *target, in, _ string) (string, bool) { return t.sets(in), false }},
	{"after it was set, before lessor heard", rotation.Setting, func(t *target, in, _ string) (string, bool) { return t.sets(in), true }},
	{"before it is tried", rotation.Setting, func(t *target, in, _ string) (string, bool) { return t.enters(in), false }},
	{"while it is tried", rotation.Setting, func(t *target, in, _ string) (string, bool) { return t.enters(in), true }},
	{waiting, rotation.Waiting, nil},
	{"before the old account is retired", rotation.Retiring, func(t *target, _, out string) (string, bool) { return t.sets(out), false }},
	{"after it was retired, before lessor heard", rotation.Retiring, func(t *target, _, out string) (string, bool) { return t.sets(out), true }},
	{"before the old passwords are tried", rotation.Proving, func(t *target, _, out string) (string, bool) { return t.enters(out), false }},
	{"while they are tried", rotation.Proving, func(t *target, _, out string) (string, bool) { return t.enters(out), true }},
}

const (
	beginning = "before the rotation begins"
	waiting   = "while holders are waited for"
)

// plan are the moments of the rotations at a target, one each. In the short form there is every other moment, which ones differs from target to target, and those
// that need no waiting.
func plan(t *testing.T, target string) (all []moment) {
	n, err := strconv.Atoi(os.Getenv("LESSOR_DRILL"))
	if full() {
		if err != nil || n < len(moments) {
			t.Fatalf("LESSOR_DRILL is a number of rotations, %d or more, so that each moment has one", len(moments))
		}
		for i := range n {
			all = append(all, moments[i%len(moments)])
		}
		return all
	}
	for i, m := range moments {
		if m.at == nil || i%2 == len(target)%2 {
			all = append(all, m)
		}
	}
	return all
}

// drill is a lessor, a target, and who uses the password that lessor rotates there.
type drill struct {
	*server
	*target
	wire    *wire
	road    *pgtest.Relay  // that those who use the password have to lessor
	slow    *client.Secret // of a holder that moves when it is told to
	ever    []login        // that were in force
	version uint64
	deaths  map[string]int // of lessor, by the step that it was in
}

func newDrill(t *testing.T, at *target) *drill {
	d := &drill{server: newServer(t), target: at, wire: newWire(t, at.address), deaths: map[string]int{}}
	d.road = pgtest.RelayTo(t, d.server.address)
	d.write("sys/mounts/database", map[string]any{"type": "database"})
	connection := at.connection(d.wire.Address())
	connection["allowed_roles"] = "*"
	d.write("database/config/target", connection)
	d.write("database/static-roles/turn", map[string]any{"db_name": "target", "usernames": accounts[0] + "," + accounts[1], "rotation_period": "10000h"})
	d.slow = d.openAs("slow")
	d.took(d.slow.Value())
	return d
}

// way is lessor's address for those who use the password.
func (d *drill) way() string { return d.road.URL("http://" + d.server.address) }

// open is the secret as one more program has it.
func (d *drill) open() *client.Secret { d.Helper(); return d.openAs("consumer") }

func (d *drill) openAs(name string) *client.Secret {
	d.Helper()
	session, err := client.Open(context.Background(), d.through(d.way(), d.tokenOf(name, secret)), nil)
	if err != nil {
		d.Fatal(err)
	}
	s, err := session.Secret(context.Background(), secret)
	if err != nil {
		d.Fatal(err)
	}
	d.Cleanup(func() { _ = session.Close(context.Background()) })
	return s
}

// fixed is a pool that logs in so for ever.
func (d *drill) fixed(l login) pool {
	d.Helper()
	p, err := open(d.url(l.username, l.password))
	if err != nil {
		d.Fatal(err)
	}
	return p
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

// step is which step lessor says that the rotation is in. It may be called while lessor waits for the target.
func (d *drill) step() string {
	answer, err := d.client.Read(context.Background(), "sys/lessor/rotation/status/"+secret, nil)
	if err != nil {
		return err.Error()
	}
	return answer.Data["step"].(string)
}

// die kills lessor, and keeps in which step.
func (d *drill) die() {
	step := d.step()
	d.kill()
	d.deaths[step]++
}

// rotate is one rotation, in which lessor is killed at a moment. meanwhile is called when the other account is in force, and the former waited for.
func (d *drill) rotate(m moment, meanwhile func(incoming string)) {
	d.Helper()
	outgoing := d.ever[len(d.ever)-1].username
	incoming := accounts[0]
	if incoming == outgoing {
		incoming = accounts[1]
	}
	killed := make(chan struct{})
	if m.at != nil {
		text, done := m.at(d.target, incoming, outgoing)
		d.wire.when(text, func() bool { return d.step() == m.step.String() }, done, func() {
			d.die()
			close(killed)
		})
	} else if m.name == beginning {
		d.die()
		close(killed)
		d.up()
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
		d.die()
		close(killed)
		if step, _ := d.status(); step != "wait" {
			d.Errorf("killed while it waited, it goes on with %q", step)
		}
	}
	meanwhile(incoming)
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
	select {
	case <-killed:
	default:
		d.Errorf("lessor was not killed %s: it has not come to that", m.name)
	}
}

// finish looks at what is left: one password that is right, all others dead, nothing else at the target, nothing to do, and all of it on record. accounts are
// those that there were; used are the URLs that consumers have logged in with.
func (d *drill) finish(rotations int, accounts string, used map[string]bool) {
	d.Helper()
	d.status() // starts lessor
	current := d.ever[len(d.ever)-1]
	for i, l := range d.ever {
		delete(used, d.url(l.username, l.password))
		switch err := d.login(d.Context(), l); {
		case l == current && err != nil:
			d.Errorf("the password in force is refused: %v", err)
		case l != current && err == nil:
			d.Errorf("password %d of %d logs in still", i+1, len(d.ever))
		}
	}
	if len(used) > 0 {
		d.Errorf("consumers have used %d credentials that nobody else was shown", len(used))
	}
	if now := d.accounts(); now != accounts {
		d.Errorf("accounts at the target: %s. Before: %s", now, accounts)
	}
	d.idle()
	d.recorded(rotations)
	for _, p := range rotation.Phases() {
		if d.deaths[p.String()] == 0 {
			d.Errorf("lessor was never killed in step %s", p)
		}
	}
	d.kill()
	out, err := exec.Command(d.bin, "operator", "verify", "-config", d.dir+"/lessor.hcl").CombinedOutput()
	if err != nil {
		d.Errorf("the store does not verify: %v\n%s", err, out)
	}
}

// idle looks whether anything is left to be done with any account that is rotated.
func (d *drill) idle() {
	d.Helper()
	answer, err := d.client.Read(d.Context(), "sys/lessor/rotation/status", url.Values{"all": {"true"}})
	if err != nil {
		d.Fatal(err)
	}
	all := answer.Data["rotations"].([]any)
	if len(all) == 0 {
		d.Error("no account is rotated")
	}
	for _, one := range all {
		one := one.(map[string]any)
		if one["step"] != "idle" || one["overdue"] != false || one["last_error"] != "" {
			d.Errorf("%v is not done: %v", one["path"], one)
		}
	}
}

// steps are what the audit trail tells of a rotation after its password came into force.
var steps = []string{
	"nobody is waited for any more", retired, "the passwords of the outgoing account are proven dead", "older versions are proven dead",
}

const retired = "the outgoing account is retired"

// recorded looks whether the audit trail tells of each rotation that its version came into force, and then each step, before the next did.
func (d *drill) recorded(rotations int) {
	d.Helper()
	all := append(d.records("database/rotate-role/turn"), d.records("database/static-roles/turn")...)
	slices.SortStableFunc(all, func(a, b record) int { return cmp.Or(cmp.Compare(a.seq, b.seq), cmp.Compare(a.index, b.index)) })
	version, begun := int64(0), false // of the retirement
	done := map[string]bool{}
	for _, r := range all {
		switch {
		case r.version > version:
			version, begun = r.version, false
			done[fmt.Sprint(version)] = true
		case r.phase == "begun":
			begun = begun || r.note == retired
		case r.note == "rotation resumed" && begun: // after a crash
			done[fmt.Sprint(version, retired)] = true
		default:
			done[fmt.Sprint(version, r.note)] = true
		}
	}
	for v := int64(2); v < int64(rotations)+2; v++ {
		for _, step := range append([]string{""}, steps...) {
			if !done[fmt.Sprint(v, step)] {
				d.Errorf("it is not on record of version %d: %s", v, cmp.Or(step, "that it is in force"))
			}
		}
	}
}

// record is what matters here of an audit record.
type record struct {
	seq, index, version int64 // version: of the password that came into force; 0: none did
	phase, note         string
}

// records are what is on record about a path, but for what failed.
func (d *drill) records(path string) (all []record) {
	d.Helper()
	number := func(n any) int64 {
		i, err := n.(json.Number).Int64()
		if err != nil {
			d.Fatal(err)
		}
		return i
	}
	for query := (url.Values{"path": {path}, "limit": {"1000"}}); ; {
		answer, err := d.client.Read(d.Context(), "sys/lessor/audit/records", query)
		if err != nil {
			d.Fatal(err)
		}
		for _, one := range answer.Data["records"].([]any) {
			one := one.(map[string]any)
			if one["outcome"] != "granted" {
				continue
			}
			r := record{seq: number(one["seq"]), index: number(one["index"]), phase: one["phase"].(string)}
			r.note, _ = one["note"].(string)
			r.note, _, _ = strings.Cut(r.note, ":") // why
			if shown, _ := one["secrets"].([]any); r.phase == "outcome" && len(shown) > 0 {
				r.version = number(shown[0].(map[string]any)["version"])
			}
			all = append(all, r)
		}
		next, _ := answer.Data["next"].(string)
		if next == "" {
			return all
		}
		query.Set("after", next)
	}
}

// TestDrill: at each target, services with 50 connections each, by the Go client, under lessor run and behind the agent, all at a time, never see a rotation.
// The agent is killed, too.
func TestDrill(t *testing.T) {
	t.Parallel()
	for name, start := range targets {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDrill(t, start(t))
			there := d.accounts()
			service, command, agent := serve(d.pool(t, d.open())), d.command(), d.agent()
			calm := d.calm(service)
			stranger := d.stranger()
			plan := plan(t, name)
			for i, m := range plan {
				begun := time.Now()
				switch i {
				case 0:
					d.rotate(m, func(string) { d.alone() })
				case len(plan) / 2:
					agent.agent.kill()
					d.rotate(m, func(incoming string) { d.without(agent, incoming) })
				case len(plan) - 1:
					d.rotate(m, func(incoming string) {
						d.until("the agent has the new password", func() bool { return agent.written(incoming) })
						agent.agent.kill() // while its program moves
						agent.start(d)
					})
				default:
					d.rotate(m, func(string) {})
				}
				t.Logf("rotation %d, lessor killed %s: %v from %v", i+1, m.name, time.Since(begun).Round(time.Millisecond), begun.Format(time.TimeOnly))
			}
			used := map[string]bool{}
			for name, r := range map[string]result{"Go client": service.end(), "lessor run": command.end(), "agent": agent.end()} {
				t.Logf("%s: %d queries of %d starts, %d of them failed, median %v, 99.9%% within %v, longest %v until %v",
					name, r.Done, r.Starts, r.Failed, r.Took.quantile(0.5), r.Took.quantile(0.999), r.Took.Worst, r.Took.At.Format(time.TimeOnly))
				if r.Failed > 0 || r.Done < int64(len(plan)*connections) {
					t.Errorf("%s: %d of %d queries failed: %s", name, r.Failed, r.Done, r.Failure)
				}
				if name == "lessor run" && r.Starts != len(plan)+1 {
					t.Errorf("the command was started %d times", r.Starts)
				}
				for _, url := range r.Used {
					used[url] = true
				}
			}
			took := stranger()
			t.Logf("who logs in as somebody that no rotation is about: median %v, 99.9%% within %v, longest %v until %v",
				took.quantile(0.5), took.quantile(0.999), took.Worst, took.At.Format(time.TimeOnly))
			t.Logf("before the first rotation the median was %v; lessor was killed in these steps: %v", calm, d.deaths)
			d.finish(len(plan), there, used)
		})
	}
}

// calm is the median of a service's queries while nothing happens.
func (d *drill) calm(s *service) time.Duration {
	d.Helper()
	d.until("all services work", func() bool { return s.done.Load() > 4*connections })
	if full() {
		time.Sleep(10 * time.Second)
	}
	took := s.took.shown()
	return took.quantile(0.5)
}

// alone looks whether a rotation waits for a holder of which the target shows nothing, when everybody else has moved.
func (d *drill) alone() {
	d.Helper()
	looks := map[any]bool{}
	d.until("only one is waited for", func() bool {
		s := d.tells("status")
		if s["step"] != "wait" {
			d.Fatalf("a holder has not moved, and the rotation goes on: %v", s["wait_over"])
		}
		if holders, _ := named(s["holders"]); len(holders) == 1 && holders["token-slow"] != nil && s["quiet_since"] != nil {
			looks[s["last_look"]] = true
		}
		return len(looks) > 1
	})
}

// without looks whether a rotation waits for an agent that is dead, when nobody else is waited for any longer, and starts it again.
func (d *drill) without(a *agent, incoming string) {
	d.Helper()
	looks := map[any]bool{}
	d.until("the agent is waited for", func() bool {
		s := d.tells("status")
		holders, _ := named(s["holders"])
		if delete(holders, "token-slow"); s["step"] == "wait" && len(holders) == 1 && holders["token-agent"] != nil {
			looks[s["last_look"]] = true
		}
		return len(looks) > 2
	})
	if a.written(incoming) {
		d.Error("the file of an agent that is dead has changed")
	}
	a.start(d)
}

// TestControl: the same services, out of lessor's reach. While they are waited for, none of their queries fails, as in the drill; once they are not waited for
// any longer, those of each of them fail.
func TestControl(t *testing.T) {
	t.Parallel()
	for name, start := range targets {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDrill(t, start(t))
			service, command, agent := serve(d.pool(t, d.open())), d.command(), d.agent()
			d.road.Cut()
			d.waits()
			looks, before := map[any]bool{}, service.done.Load()
			d.until("they are waited for", func() bool {
				looks[d.tells("status")["last_look"]] = true
				return len(looks) > 2 && service.done.Load() > before+4*connections
			})
			if service.failed.Load() > 0 || command.failing() || agent.failing() {
				t.Errorf("while they are waited for, queries fail: %v, %v, %v", service.failed.Load(), command.failing(), agent.failing())
			}
			d.write("sys/lessor/rotation/retire/"+secret, map[string]any{})
			d.over()
			d.until("queries of each fail", func() bool { return service.failed.Load() > 0 && command.failing() && agent.failing() })
			d.road.Mend()
			for name, r := range map[string]result{"Go client": service.end(), "lessor run": command.end(), "agent": agent.end()} {
				if r.Failed == 0 || r.Failed == r.Done {
					t.Errorf("%s: %d of %d queries failed", name, r.Failed, r.Done)
				}
			}
		})
	}
}

// stranger logs in as the administrator, again and again until stop is called, which tells how long that took: as long as the machine and the target keep
// everybody waiting, whatever is rotated.
func (d *drill) stranger() (stop func() shownLatencies) {
	c := d.connection(d.target.address)
	admin := login{c["username"].(string), c["password"].(string)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan shownLatencies)
	go func() {
		var took latencies
		for ctx.Err() == nil {
			begun := time.Now()
			if err := d.login(context.Background(), admin); err != nil {
				d.Errorf("the administrator's login failed: %v", err)
			}
			took.add(time.Since(begun))
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
		ended <- took.shown()
	}()
	return func() shownLatencies {
		cancel()
		return <-ended
	}
}
