package core_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/event"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// cloudEvent is an event as clients read it.
type cloudEvent struct {
	ID     string    `json:"id"`
	Type   string    `json:"type"`
	Source string    `json:"source"`
	Spec   string    `json:"specversion"`
	Time   time.Time `json:"time"`
	Cursor string    `json:"lessorcursor"`
	Data   struct {
		Type  string `json:"event_type"`
		Event struct {
			ID       string            `json:"id"`
			Metadata map[string]string `json:"metadata"`
		} `json:"event"`
		Plugin map[string]string `json:"plugin_info"`
	} `json:"data"`
}

func (e cloudEvent) String() string { return e.Data.Type + " " + e.Data.Event.Metadata["path"] }

// poll asks for events once.
func (g *gate) poll(token lessor.Secret, kind, data string) (events []cloudEvent, cursor string) {
	g.Helper()
	a := g.do(token, lessor.Read, "sys/lessor/events/"+kind, data)
	for _, raw := range a.Data["events"].([]any) {
		var e cloudEvent
		if err := json.Unmarshal(raw.(json.RawMessage), &e); err != nil {
			g.Fatal(err)
		}
		events = append(events, e)
	}
	return events, a.Data["cursor"].(string)
}

// hear waits until some n events came behind a cursor.
func (g *gate) hear(token lessor.Secret, kind, cursor string, n int) (events []cloudEvent, next string) {
	g.Helper()
	for deadline := time.Now().Add(time.Minute); len(events) < n && time.Now().Before(deadline); {
		var more []cloudEvent
		more, cursor = g.poll(token, kind, fmt.Sprintf(`{"after":%q,"wait":"10s"}`, cursor))
		events = append(events, more...)
	}
	if len(events) != n {
		g.Fatalf("%d events came, not %d: %v", len(events), n, events)
	}
	return events, cursor
}

func names(events []cloudEvent) (all []string) {
	for _, e := range events {
		all = append(all, e.String())
	}
	return all
}

// What becomes of secrets is told in Vault's words, in the order of the commits, to who asks after the fact as to who waits.
func TestEventsAreToldInVaultsWords(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.do(g.root, lessor.Update, "sys/mounts/plain", `{"type":"kv"}`)
	none, cursor := g.poll(g.root, "*", "")
	if len(none) != 0 || cursor == "" {
		t.Fatalf("without a cursor: %v, cursor %q", none, cursor)
	}
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"v"}}`)
	g.do(g.root, lessor.Patch, "secret/data/app", `{"data":{"l":"w"}}`)
	g.do(g.root, lessor.Read, "secret/data/app", "")
	g.do(g.root, lessor.Delete, "secret/data/app", "")
	g.do(g.root, lessor.Update, "secret/undelete/app", `{"versions":[2]}`)
	g.do(g.root, lessor.Update, "secret/delete/app", `{"versions":[1]}`)
	g.do(g.root, lessor.Update, "secret/destroy/app", `{"versions":[1]}`)
	g.do(g.root, lessor.Update, "secret/metadata/app", `{"max_versions":3}`)
	g.do(g.root, lessor.Patch, "secret/metadata/app", `{"max_versions":4}`)
	g.do(g.root, lessor.Update, "secret/config", `{"max_versions":5}`)
	g.do(g.root, lessor.Delete, "secret/metadata/app", "")
	g.do(g.root, lessor.Update, "plain/one", `{"k":"v"}`)
	g.do(g.root, lessor.Delete, "plain/one", "")
	want := []string{
		"kv-v2/data-write secret/data/app", "lessor/rotated secret/data/app", "kv-v2/data-patch secret/data/app", "lessor/rotated secret/data/app",
		"kv-v2/data-delete secret/data/app", "kv-v2/undelete secret/undelete/app", "kv-v2/delete secret/delete/app", "kv-v2/destroy secret/destroy/app",
		"kv-v2/metadata-write secret/metadata/app", "kv-v2/metadata-patch secret/metadata/app", "kv-v2/config-write secret/config",
		"kv-v2/metadata-delete secret/metadata/app", "kv-v1/write plain/one", "lessor/rotated plain/one", "kv-v1/delete plain/one",
	}
	events, end := g.hear(g.root, "*", cursor, len(want))
	if got := names(events); !slices.Equal(got, want) {
		t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	e := events[2]
	if m := e.Data.Event.Metadata; m["current_version"] != "2" || m["data_path"] != "secret/data/app" || m["operation"] != "data-patch" || m["modified"] != "true" {
		t.Errorf("metadata: %v", m)
	}
	if p := e.Data.Plugin; p["mount_path"] != "secret/" || p["plugin"] != "kv" || p["version"] != "2" || p["mount_class"] != "secret" || p["mount_accessor"] == "" {
		t.Errorf("plugin_info: %v", p)
	}
	if e.Type != "*" || e.Spec != "1.0" || e.ID == "" || e.ID != e.Data.Event.ID || e.Source == "" || e.Time.IsZero() {
		t.Errorf("envelope: %+v", e)
	}
	if v := events[7].Data.Event.Metadata["destroyed_versions"]; v != "[1]" {
		t.Errorf("destroyed_versions %q", v)
	}
	if v := events[3].Data.Event.Metadata["version"]; v != "2" {
		t.Errorf("lessor/rotated of version %q", v)
	}
	// From within, from the end, and again: the same events, under the same ids.
	again, _ := g.hear(g.root, "*", events[4].Cursor, len(want)-5)
	for i := range again {
		if again[i].ID != events[i+5].ID {
			t.Errorf("event %d has another id when it is told again", i)
		}
	}
	if more, _ := g.poll(g.root, "*", fmt.Sprintf(`{"after":%q}`, end)); len(more) != 0 {
		t.Errorf("behind the end: %v", more)
	}
	deletes, _ := g.hear(g.root, "kv-v2/*delete", cursor, 4)
	if got := names(deletes); !slices.Equal(got, []string{want[4], want[5], want[6], want[11]}) {
		t.Errorf("kv-v2/*delete: %v", got)
	}
}

// Who may read may hear, as may who has subscribe for the type; nobody else, and a policy is in force at once.
func TestEventsAreToldToWhoMayRead(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.policy("reader", `path "secret/data/mine" { capabilities = ["read"] }`)
	g.policy("subscriber", `path "secret/data/*" { capabilities = ["subscribe"] subscribe_event_types = ["kv-v2/data-w*"] }
path "secret/data/hidden" { capabilities = ["deny"] }`)
	reader, subscriber, nobody := g.token(`{"policies":["reader"]}`), g.token(`{"policies":["subscriber"]}`), g.token(`{"policies":["default"]}`)
	_, cursor := g.poll(g.root, "*", "")
	for _, name := range []string{"mine", "yours", "hidden"} {
		g.do(g.root, lessor.Update, "secret/data/"+name, `{"data":{"k":"v"}}`)
	}
	g.hear(g.root, "*", cursor, 6)
	if got, _ := g.hear(reader, "*", cursor, 2); got[0].String() != "kv-v2/data-write secret/data/mine" || got[1].String() != "lessor/rotated secret/data/mine" {
		t.Errorf("who may read one secret hears of %v", names(got))
	}
	if got, _ := g.hear(subscriber, "*", cursor, 2); got[0].String() != "kv-v2/data-write secret/data/mine" || got[1].String() != "kv-v2/data-write secret/data/yours" {
		t.Errorf("who may subscribe to some types hears of %v", names(got))
	}
	if got, _ := g.poll(nobody, "*", fmt.Sprintf(`{"after":%q,"wait":"50ms"}`, cursor)); len(got) != 0 {
		t.Errorf("who may read nothing hears of %v", names(got))
	}
	g.policy("reader", `path "secret/data/yours" { capabilities = ["read"] }`)
	if got, _ := g.hear(reader, "*", cursor, 2); got[0].String() != "kv-v2/data-write secret/data/yours" {
		t.Errorf("after the policy changed: %v", names(got))
	}
	g.refused(api.Denied, g.token(`{"policies":["reader"],"no_default_policy":true}`), lessor.Read, "sys/lessor/events/*", "")
	if rec := g.last("sys/lessor/events/*"); len(rec) == 0 || rec[1].Operation != "read" || !rec[1].Granted {
		t.Errorf("a subscription is not on record: %+v", rec)
	}
}

// Cursors of another store, or none at all, are refused in words that say what to do.
func TestCursorsThatLeadNowhere(t *testing.T) {
	g := start(t)
	_, cursor := g.poll(g.root, "*", "")
	b, err := base64.RawURLEncoding.DecodeString(cursor[:strings.IndexByte(cursor, '.')])
	if err != nil {
		t.Fatal(err)
	}
	later, foreign := slices.Clone(b), slices.Clone(b)
	later[3]++
	foreign[len(b)-1]++
	for _, cursor := range []string{"x", "AQ", base64.RawURLEncoding.EncodeToString(later), base64.RawURLEncoding.EncodeToString(foreign)} {
		text := g.refused(api.Invalid, g.root, lessor.Read, "sys/lessor/events/*", fmt.Sprintf(`{"after":%q}`, cursor))
		if !strings.HasPrefix(text, "the cursor") || !strings.Contains(text, "begin anew: read again what you follow") {
			t.Errorf("cursor %q: %s", cursor, text)
		}
	}
	for _, data := range []string{`{"filter":"x ="}`, `{"types":"a,b"}`} {
		g.refused(api.Invalid, g.root, lessor.Read, "sys/lessor/events/kv*", data)
	}
	g.refused(api.Invalid, g.root, lessor.Read, "sys/events/subscribe/*", `{"json":"false"}`)
}

// A subscription is on record when it begins, and each hour, and not with each poll that goes on with it; a cursor proves nothing in other hands.
func TestASubscriptionIsOnRecordOnce(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	other := g.token(`{"policies":["default"]}`)
	recorded := func(path string) int { return len(g.last("sys/lessor/events/" + path)) }
	after := func(cursor string) string { return fmt.Sprintf(`{"after":%q,"wait":"1ms"}`, cursor) }
	_, cursor := g.poll(g.root, "kv*", "")
	for range 5 {
		g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"v"}}`)
		_, cursor = g.hear(g.root, "kv*", cursor, 1)
	}
	if n := recorded("kv*"); n != 1 {
		t.Errorf("a subscription is on record %d times", n)
	}
	g.poll(other, "kv*", after(cursor))
	if n := recorded("kv*"); n != 2 {
		t.Errorf("somebody else's is on record %d times", n-1)
	}
	g.poll(g.root, "*", after(cursor))
	if n := recorded("*"); n != 1 {
		t.Errorf("one to other types is on record %d times", n)
	}
	g.clock.Advance(time.Hour)
	_, cursor = g.poll(g.root, "kv*", after(cursor))
	g.poll(g.root, "kv*", after(cursor))
	if n := recorded("kv*"); n != 3 {
		t.Errorf("an hour later it is on record %d times more", n-2)
	}
}

// A poll that names paths, types or a filter hears of nothing else.
func TestEventsOfInterest(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	_, cursor := g.poll(g.root, "*", "")
	for _, name := range []string{"a", "b", "b/c"} {
		g.do(g.root, lessor.Update, "secret/data/"+name, `{"data":{"k":"v"}}`)
	}
	g.do(g.root, lessor.Delete, "secret/data/a", "")
	for data, want := range map[string][]string{
		`"path":["secret/data/a"]`:                                                             {"kv-v2/data-write secret/data/a", "lessor/rotated secret/data/a", "kv-v2/data-delete secret/data/a"},
		`"path":["secret/data/b*"],"types":["lessor/rotated"]`:                                 {"lessor/rotated secret/data/b", "lessor/rotated secret/data/b/c"},
		`"filter":"operation == data-delete or version == \"1\" and not data_path contains b"`: {"lessor/rotated secret/data/a", "kv-v2/data-delete secret/data/a"},
	} {
		got, _ := g.poll(g.root, "*", fmt.Sprintf(`{"after":%q,"wait":"30s",%s}`, cursor, data))
		if !slices.Equal(names(got), want) {
			t.Errorf("%s: %v, want %v", data, names(got), want)
		}
	}
}

// A subscription ends with its token, at once though nothing happens that it would hear of.
func TestASubscriptionEndsWithItsToken(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.policy("parent", `path "auth/token/create" { capabilities = ["update"] }`)
	parent := "" // accessor
	for name, end := range map[string]func(token, accessor string){
		"revoked": func(_, accessor string) {
			g.do(g.root, lessor.Update, "auth/token/revoke-accessor", fmt.Sprintf(`{"accessor":%q}`, accessor))
		},
		"revoked with its parent": func(string, string) {
			g.do(g.root, lessor.Update, "auth/token/revoke-accessor", fmt.Sprintf(`{"accessor":%q}`, parent))
		},
		"not permitted any more": func(string, string) { g.policy("may", `path "x" { capabilities = ["read"] }`) },
	} {
		g.policy("may", `path "sys/events/subscribe/*" { capabilities = ["read"] }`)
		above := g.do(g.root, lessor.Update, "auth/token/create", `{"policies":["parent","may"],"no_default_policy":true}`)
		parent = above.Auth.Accessor
		made := g.do(above.Auth.Token, lessor.Update, "auth/token/create", `{"policies":["may"],"no_default_policy":true}`)
		a := g.do(made.Auth.Token, lessor.Read, "sys/events/subscribe/kv*", "")
		if err := a.Feed.Open(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := a.Feed.Next(t.Context())
			ended <- err
		}()
		for g.core.Events().Subscribers() == 0 {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(300 * time.Millisecond) // so that what was before has been looked at: it is the end that is heard of
		end(made.Auth.Token.Reveal(), made.Auth.Accessor)
		select {
		case err := <-ended:
			if kind := api.KindOf(err); kind != api.Unauthenticated && kind != api.Denied {
				t.Errorf("%s: it ended with %v", name, err)
			}
		case <-time.After(30 * time.Second):
			t.Errorf("%s: it did not end", name)
		}
		a.Feed.Close()
	}
}

// A server that stops lets those go who wait: with their cursor, or so that they know why.
func TestSubscriptionsEndWhenTheServerLeaves(t *testing.T) {
	g := start(t)
	_, cursor := g.poll(g.root, "*", "")
	a := g.do(g.root, lessor.Read, "sys/events/subscribe/*", "")
	if err := a.Feed.Open(); err != nil {
		t.Fatal(err)
	}
	defer a.Feed.Close()
	polled, ended := make(chan string, 1), make(chan error, 1)
	go func() {
		answer, err := g.try(g.root, lessor.Read, "sys/lessor/events/*", fmt.Sprintf(`{"after":%q,"wait":"2m"}`, cursor))
		if err != nil {
			polled <- err.Error()
			return
		}
		polled <- answer.Data["cursor"].(string)
	}()
	go func() {
		_, err := a.Feed.Next(context.Background())
		ended <- err
	}()
	for g.core.Events().Subscribers() < 2 {
		time.Sleep(time.Millisecond)
	}
	g.core.Events().Leave()
	answer := <-polled
	if text, _, _ := strings.Cut(answer, "."); !parses(text) {
		t.Errorf("the poll: %s", answer)
	}
	if err := <-ended; !errors.Is(err, event.ErrLeaving) {
		t.Errorf("the subscription ended with %v", err)
	}
}

func parses(cursor string) bool {
	_, err := event.Parse(cursor)
	return err == nil
}
