package engine

import (
	"context"
	"testing"

	"github.com/lessor-dev/lessor/internal/lessor"
)

func TestRouterPrefersLiteralAndAllowedVerbs(t *testing.T) {
	h := func(context.Context, *Request) (*Reply, error) { return nil, nil }
	ops := func(vs ...lessor.Verb) map[lessor.Verb]Handler {
		m := map[lessor.Verb]Handler{}
		for _, v := range vs {
			m[v] = h
		}
		return m
	}
	rt := NewRouter([]Route{
		{Pattern: "data/{path...}", Ops: ops(lessor.Read, lessor.Update)},
		{Pattern: "metadata/{path...}", Ops: ops(lessor.Read, lessor.List)},
		{Pattern: "config", Ops: ops(lessor.Read)},
		{Pattern: "{name}/x", Ops: ops(lessor.Read)},
		{Pattern: "roles", Ops: ops(lessor.List)},
		{Pattern: "roles/{name}", Ops: ops(lessor.Read)},
		{Pattern: "roles/{name}/secret-id", Ops: ops(lessor.Update, lessor.List)},
		{Pattern: "{path...}", Ops: ops(lessor.Delete, lessor.List)},
	})
	for _, c := range []struct {
		verb         lessor.Verb
		path, want   string
		param, value string
	}{
		{lessor.Read, "data/a/b", "data/{path...}", "path", "a/b"},
		{lessor.Read, "data", "{path...}", "path", "data"},
		{lessor.List, "metadata/", "metadata/{path...}", "path", ""},
		{lessor.List, "metadata/a/", "metadata/{path...}", "path", "a"},
		{lessor.Read, "config", "config", "", ""},
		{lessor.Delete, "config", "{path...}", "path", "config"},
		{lessor.List, "roles/", "roles", "", ""},
		{lessor.Read, "roles/r", "roles/{name}", "name", "r"},
		{lessor.List, "roles/r/secret-id/", "roles/{name}/secret-id", "name", "r"},
		{lessor.Read, "q/x", "{name}/x", "name", "q"},
		{lessor.List, "", "{path...}", "path", ""},
	} {
		r, p := rt.Match(c.verb, c.path)
		if r == nil || r.Pattern != c.want || p[c.param] != c.value {
			t.Errorf("%s %q: got %+v %v, want %s with %s=%q", c.verb, c.path, r, p, c.want, c.param, c.value)
		}
	}
	if r, _ := NewRouter([]Route{{Pattern: "a", Ops: ops(lessor.Read)}}).Match(lessor.Read, "b"); r != nil {
		t.Error("an unknown path was routed")
	}
}
