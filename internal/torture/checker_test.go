package torture

import (
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/engine/database"
)

// The checks must be able to fail. Each test plants one defect in a history, or in what is seen afterwards, that is whole without it.

const s = time.Second

func TestModelsFindWhatIsWrong(t *testing.T) {
	kv := func(do string, cas int, value string, version int, call, ret time.Duration, o outcome) op {
		return op{Model: "kv", Object: "a", Do: do, CAS: cas, Value: value, Version: version, Call: call, Return: ret, Outcome: o}
	}
	register := func(do, value string, call, ret time.Duration, o outcome) op {
		return op{Model: "register", Object: "a", Do: do, Value: value, Call: call, Return: ret, Outcome: o}
	}
	uses := func(do string, item, n int, call, ret time.Duration, o outcome) op {
		return op{Model: "uses", Object: "a", Do: do, Item: item, Uses: n, Call: call, Return: ret, Outcome: o}
	}
	lease := func(do string, item int, call, ret time.Duration, o outcome) op {
		return op{Model: "leases", Object: "a", Do: do, Item: item, Call: call, Return: ret, Outcome: o}
	}
	for _, test := range []struct {
		name  string
		ops   []op
		whole bool
	}{
		{"kv in order", []op{kv("read", 0, "", 0, 0, s, refused), kv("write", 0, "x", 1, 2*s, 3*s, done), kv("write", 0, "y", 0, 4*s, 5*s, refused), kv("read", 0, "x", 1, 6*s, 7*s, done)}, true},
		{"a lost write", []op{kv("write", -1, "x", 1, 0, s, done), kv("write", 1, "y", 2, 2*s, 3*s, done), kv("read", 0, "x", 1, 4*s, 5*s, done)}, false},
		{"a lost first write", []op{kv("write", -1, "x", 1, 0, s, done), kv("read", 0, "", 0, 4*s, 5*s, refused)}, false},
		{"two writes with one check", []op{kv("write", 0, "x", 1, 0, s, done), kv("write", 0, "y", 2, 0, s, done)}, false},
		{"a check that held was refused", []op{kv("write", -1, "x", 1, 0, s, done), kv("write", 1, "y", 0, 2*s, 3*s, refused)}, false},
		{"a write that was said not to be done", []op{kv("write", -1, "x", 0, 0, s, void), kv("read", 0, "x", 1, 2*s, 3*s, done)}, false},
		{"an unknown write that was done", []op{kv("write", -1, "x", 0, 0, s, unknown), kv("read", 0, "x", 1, 9*s, 10*s, done)}, true},
		{"an unknown write that was not", []op{kv("write", -1, "x", 0, 0, s, unknown), kv("read", 0, "", 0, 9*s, 10*s, refused)}, true},
		{"an unknown write that comes and goes", []op{kv("write", -1, "x", 0, 0, s, unknown), kv("read", 0, "x", 1, 2*s, 3*s, done), kv("read", 0, "", 0, 4*s, 5*s, refused)}, false},
		{"a policy in order", []op{register("set", "0", 0, s, done), register("set", "1", 2*s, 4*s, done), register("probe", "0", 3*s, 3*s, done), register("probe", "0", 5*s, 6*s, refused), register("probe", "1", 5*s, 6*s, done)}, true},
		{"a stale read of a policy", []op{register("set", "0", 0, s, done), register("set", "1", 2*s, 3*s, done), register("probe", "0", 4*s, 5*s, done)}, false},
		{"a stale denial by a policy", []op{register("set", "0", 0, s, done), register("set", "1", 2*s, 3*s, done), register("probe", "1", 4*s, 5*s, refused)}, false},
		{"a policy that flickers", []op{register("set", "0", 0, s, done), register("set", "1", 2*s, 9*s, done), register("probe", "1", 3*s, 4*s, done), register("probe", "0", 5*s, 6*s, done)}, false},
		{"a token in order", []op{uses("create", 0, 2, 0, s, done), uses("use", 0, 0, 2*s, 4*s, done), uses("use", 0, 0, 3*s, 4*s, done), uses("use", 0, 0, 5*s, 6*s, refused)}, true},
		{"a double use", []op{uses("create", 0, 1, 0, s, done), uses("use", 0, 0, 2*s, 4*s, done), uses("use", 0, 0, 3*s, 4*s, done)}, false},
		{"a use that was lost", []op{uses("create", 0, 1, 0, s, done), uses("use", 0, 0, 2*s, 4*s, refused)}, false},
		{"a token after its revocation", []op{uses("create", 0, -1, 0, s, done), uses("revoke", 0, 0, 2*s, 3*s, done), uses("use", 0, 0, 4*s, 5*s, done)}, false},
		{"a child after its parent's revocation", []op{uses("create", 0, -1, 0, s, done), uses("create", 1, -1, s, 2*s, done), uses("revoke", 0, 0, 2*s, 3*s, done), uses("use", 1, 0, 4*s, 5*s, done)}, false},
		{"a child of the dead", []op{uses("create", 0, -1, 0, s, done), uses("revoke", 0, 0, 2*s, 3*s, done), uses("create", 1, -1, 4*s, 5*s, done)}, false},
		{"a parent after its child's revocation", []op{uses("create", 0, -1, 0, s, done), uses("create", 1, -1, s, 2*s, done), uses("revoke", 1, 0, 2*s, 3*s, done), uses("use", 0, 0, 4*s, 5*s, done), uses("use", 1, 0, 4*s, 5*s, refused)}, true},
		{"leases in order", []op{lease("issue", 0, 0, s, done), lease("renew", 0, 2*s, 3*s, done), lease("revoke", 0, 4*s, 5*s, done), lease("renew", 0, 6*s, 7*s, refused)}, true},
		{"a revoked lease renewed", []op{lease("issue", 0, 0, s, done), lease("revoke", 0, 2*s, 3*s, done), lease("renew", 0, 4*s, 5*s, done)}, false},
		{"a lease that a prefix spared", []op{lease("issue", 0, 0, s, done), lease("issue", 1, 0, s, done), lease("revoke all", 0, 2*s, 3*s, done), lease("look up", 1, 4*s, 5*s, done)}, false},
		{"a live lease denied", []op{lease("issue", 0, 0, s, done), lease("look up", 0, 4*s, 5*s, refused)}, false},
	} {
		objects, wrong := linearizable(test.ops, checkPatience)
		if (len(wrong) == 0) != test.whole || objects != 1 {
			t.Errorf("%s: %d objects, %q", test.name, objects, wrong)
		}
	}
}

// A search that does not end in time is a failure.
func TestUnfinishedSearchFails(t *testing.T) {
	var ops []op
	for i := range 28 { // all at once, and nothing tells their order
		ops = append(ops, op{Model: "kv", Object: "a", Do: "write", CAS: -1, Value: string(rune('a' + i)), Call: 0, Return: s, Outcome: unknown})
	}
	ops = append(ops, op{Model: "kv", Object: "a", Do: "read", Value: "never", Version: 28, Call: 2 * s, Return: 3 * s, Outcome: done})
	if _, wrong := linearizable(ops, 50*time.Millisecond); len(wrong) != 1 || !strings.Contains(wrong[0], "not found out") {
		t.Errorf("%q", wrong)
	}
}

func TestAccountsThatOutliveTheirLeases(t *testing.T) {
	at := func(alive, until time.Duration) account { return account{Name: "v-a", Alive: alive, Until: until} }
	away := episode{{Kind: "kill node"}, {Kind: "cut target"}}
	live := grant{Lease: "l", User: "v-a", Latest: 10 * s, Most: 20 * s}
	revoked := live
	revoked.Latest, revoked.Most, revoked.Revoked = 3600*s, 7200*s, 5*s
	for _, test := range []struct {
		name  string
		a     account
		g     *grant
		wrong []span
		late  bool
	}{
		{"in time", at(10*s+lateBy, 70*s), &live, nil, false},
		{"too late", at(11*s+lateBy, 70*s), &live, nil, true},
		{"too late, but the target was away", at(11*s+lateBy, 70*s), &live, []span{{12 * s, 15 * s, away}}, false},
		{"too late, though the target was back", at(16*s+lateBy, 70*s), &live, []span{{12 * s, 15 * s, away}}, true},
		{"what was wrong was over before", at(11*s+lateBy, 70*s), &live, []span{{5 * s, 9 * s, away}}, true},
		{"too late, though two nodes were well", at(11*s+lateBy, 70*s), &live, []span{{12 * s, 15 * s, episode{{Kind: "pause node"}}}}, true},
		{"revoked", at(5*s+lateBy, 3660*s), &revoked, nil, false},
		{"alive after its revocation", at(6*s+lateBy, 3660*s), &revoked, nil, true},
		{"the target thinks that it lives on", at(10*s, 100*s), &live, nil, true},
		{"nobody knows its lease", at(10*s+lateBy, 10*s+database.Skew), nil, nil, false},
		{"nobody knows its lease, and it is too old", at(11*s+lateBy, 10*s+database.Skew), nil, nil, true},
	} {
		grants := map[string]*grant{}
		if test.g != nil {
			grants["l"] = test.g
		}
		if got := outlived([]account{test.a}, grants, test.wrong); (len(got) > 0) != test.late {
			t.Errorf("%s: %q", test.name, got)
		}
	}
}

func TestWhatIsNotOnRecord(t *testing.T) {
	tr := newTrail()
	record := func(seq, index int, id, operation, path, lease, phase, outcome string) map[string]any {
		return map[string]any{"seq": json.Number(strconv.Itoa(seq)), "index": json.Number(strconv.Itoa(index)), "request_id": id, "operation": operation, "path": path, "lease_id": lease, "phase": phase, "outcome": outcome}
	}
	tr.add(record(1, 0, "r1", "read", "secret/data/a", "", "done", "granted"))
	tr.add(record(1, 1, "r2", "read", "database/creds/a", "database/creds/a/1", "begun", "granted"))
	tr.add(record(4, 0, "r3", "update", "sys/policies/acl/p", "", "done", "granted"))
	if tr.Gaps != nil || tr.Records != 3 {
		t.Errorf("%+v", tr)
	}
	whole := []op{
		{Outcome: done, Request: "r1", Method: "GET", Path: "secret/data/a"}, {Outcome: unknown, Request: "", Path: "secret/data/b", Method: "GET"},
		{Outcome: done, Method: "PUT", Path: "sys/policies/acl/p"},
	}
	seen := []account{{Name: "v-1", Mark: markOf("database/creds/a/1")}}
	if missing := unrecorded(whole, seen, tr); missing != nil {
		t.Errorf("%q", missing)
	}
	for name, ops := range map[string][]op{
		"a request without a record":      {{Outcome: done, Request: "r9", Method: "GET", Path: "secret/data/a"}},
		"a request that only began":       {{Outcome: done, Request: "r2", Method: "GET", Path: "database/creds/a"}},
		"a second change with one record": {whole[2], whole[2]},
	} {
		if len(unrecorded(ops, nil, tr)) != 1 {
			t.Errorf("%s: not found", name)
		}
	}
	if len(unrecorded(nil, []account{{Name: "v-2", Mark: markOf("database/creds/a/2")}}, tr)) != 1 {
		t.Error("an account without a record: not found")
	}
	tr.follows(place{4, 2})
	tr.follows(place{6, 1})
	tr.follows(place{5, 0})
	if len(tr.Gaps) != 3 {
		t.Errorf("gaps: %q", tr.Gaps)
	}
}

// A seed gives the same faults again, and every kind of them.
func TestPlanFollowsFromTheSeed(t *testing.T) {
	if a, b := plan(7, 60, longestFault, possible(true)), plan(7, 60, longestFault, possible(true)); !reflect.DeepEqual(a, b) {
		t.Error("one seed, two plans")
	}
	if reflect.DeepEqual(plan(7, 60, longestFault, possible(true)), plan(8, 60, longestFault, possible(true))) {
		t.Error("two seeds, one plan")
	}
	met, long := map[string]bool{}, 0
	for _, e := range plan(7, 60, longestFault, possible(true)) {
		for _, f := range e {
			met[f.Kind] = true
			if f.For > 60*s {
				long++
			}
		}
	}
	if len(met) != len(kinds) || long == 0 {
		t.Errorf("%d kinds of %d, %d longer than every timeout", len(met), len(kinds), long)
	}
}
