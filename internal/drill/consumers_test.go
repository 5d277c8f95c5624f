package drill

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"
)

// waits has a rotation begin, and waits until the other account is in force.
func (d *drill) waits() {
	d.Helper()
	d.write("database/rotate-role/turn", map[string]any{})
	d.until("the other account is in force", func() bool {
		step, version := d.status()
		return version == d.version+1 && step == "wait"
	})
}

// over waits until the rotation is.
func (d *drill) over() {
	d.Helper()
	d.until("the rotation is over", func() bool {
		step, _ := d.status()
		return step == "idle"
	})
}

// tells reads what is told of the rotation: "status" or "plan".
func (d *drill) tells(what string) map[string]any {
	d.Helper()
	answer, err := d.client.Read(d.Context(), "sys/lessor/rotation/"+what+"/"+secret, nil)
	if err != nil {
		d.Fatal(err)
	}
	return answer.Data
}

// named are those of a list of holders, by their tokens' names, and how many sessions it has besides, of which nobody knows whose they are.
func named(list any) (holders map[string]map[string]any, sessions int64) {
	holders = map[string]map[string]any{}
	for _, one := range list.([]any) {
		one := one.(map[string]any)
		if name, ok := one["display_name"].(string); ok {
			holders[name] = one
		} else {
			n, _ := one["count"].(json.Number).Int64()
			sessions += n
		}
	}
	return holders, sessions
}

// A consumer that never moves: the rotation waits for it, and for nobody else, and says so; its password works for as long as no policy says otherwise.
// Once the role has a grace that is over the rotation goes on without it, and names it. Whoever moved notices nothing of all that.
func TestSlowConsumer(t *testing.T) {
	t.Parallel()
	d := newDrill(t, postgresql(t))
	slow := d.ever[0] // d.slow has read it, and adopts no other
	slowly, briskly := serve(d.fixed(slow)), serve(d.pool(t, d.open()))
	d.waits()
	d.until("only the one that does not move is waited for, and its sessions are seen", func() bool {
		s := d.tells("status")
		holders, _ := named(s["holders"])
		_, found := holders["token-slow"]
		return found && len(holders) == 1 && len(s["sessions"].([]any)) > 0
	})
	before, looks := slowly.done.Load(), map[any]bool{}
	d.until("it goes on with what it has, however often lessor looks", func() bool {
		looks[d.tells("status")["last_look"]] = true
		return slowly.done.Load() > before+connections && len(looks) > 3
	})
	if step, _ := d.status(); step != "wait" || slowly.failed.Load() > 0 || d.login(t.Context(), slow) != nil {
		t.Fatalf("no deadline, and yet in step %q %d of its queries failed", step, slowly.failed.Load())
	}

	d.write("database/static-roles/turn", map[string]any{"rotation_grace": "1s"})
	d.over()
	if holders, sessions := named(d.tells("status")["stragglers"]); len(holders) != 1 || holders["token-slow"] == nil || sessions == 0 {
		t.Errorf("named are %v, and %d sessions", holders, sessions)
	}
	if d.login(t.Context(), slow) == nil {
		t.Error("the old password works after the deadline")
	}
	d.until("it is locked out", func() bool { return slowly.failed.Load() > 0 })
	slowly.end()
	if r := briskly.end(); r.Failed > 0 || r.Done == 0 {
		t.Errorf("of who moved, %d of %d queries failed: %s", r.Failed, r.Done, r.Failure)
	}
}

// A program that reads once, when it starts, as Vault's clients do, with no word of lessor's: it works for as long as its role's grace has been declared to be,
// over sessions that it opens anew all the time. The plan names it before, with the moment, and so does the record after.
func TestBootReader(t *testing.T) {
	const grace = 4 * time.Second
	t.Parallel()
	d := newDrill(t, postgresql(t))
	d.write("database/static-roles/turn", map[string]any{"rotation_grace": grace.String()})
	read := d.readOnce()
	program := serve(d.fixed(read))
	d.until("it works", func() bool { return program.done.Load() > connections })

	planned, _ := named(d.tells("plan")["holders"])
	if h := planned["token-boot"]; h == nil || h["breaks_at"] == nil || h["moves"] == "it acknowledges" {
		t.Errorf("it is planned as %v, of %v", h, planned)
	}
	before, begun := d.slow.Value(), time.Now()
	d.write("database/rotate-role/turn", map[string]any{})
	d.until("the other account is in force", func() bool { _, version := d.status(); return version == d.version+1 })
	<-d.slow.Changed(before)
	d.slow.Adopt(d.slow.Value()) // whatever the other holder does, this one is waited for
	d.until("it is locked out", func() bool { return program.failed.Load() > 0 })
	d.over()
	if broke := time.Unix(0, program.broke.Load()); broke.Before(begun.Add(grace)) {
		t.Errorf("it was broken %v after the rotation began, within its grace", broke.Sub(begun))
	}
	holders, sessions := named(d.tells("status")["stragglers"])
	if len(holders) != 1 || holders["token-boot"] == nil || sessions == 0 {
		t.Errorf("named are %v, and %d sessions", holders, sessions)
	}
	program.end()
}

// readOnce reads the secret with nothing but a token in the request.
func (d *drill) readOnce() login {
	d.Helper()
	r, err := http.NewRequestWithContext(d.Context(), http.MethodGet, "http://"+d.server.address+"/v1/"+secret, nil)
	if err != nil {
		d.Fatal(err)
	}
	r.Header.Set("X-Vault-Token", d.tokenOf("boot", secret))
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		d.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		d.Fatal(fmt.Errorf("%s %w", answer.Status, err))
	}
	var value struct {
		Data struct{ Username, Password string }
	}
	if err := json.Unmarshal(text, &value); err != nil {
		d.Fatal(err)
	}
	return login{value.Data.Username, value.Data.Password}
}
