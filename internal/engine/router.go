package engine

import (
	"cmp"
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// Router finds the route of a path within a mount. It is immutable after NewRouter.
type Router struct{ routes []compiled }

type compiled struct {
	*Route
	segments []string // "{x}" is any one segment
	rest     string   // name of the "{x...}" at the end; empty if none
	tail     string   // what is literal behind it: "/tune"
}

// NewRouter compiles a method table. Routes are tried from the most literal to the least; a table in which two routes match
// the same paths equally well is a defect that tests of the backend find.
func NewRouter(routes []Route) *Router {
	rt := &Router{}
	for i := range routes {
		c := compiled{Route: &routes[i]}
		c.segments = strings.Split(c.Pattern, "/")
		if i := slices.IndexFunc(c.segments, func(s string) bool { return strings.HasSuffix(s, "...}") }); i >= 0 {
			c.rest = c.segments[i][1 : len(c.segments[i])-4]
			for _, s := range c.segments[i+1:] {
				c.tail += "/" + s
			}
			c.segments = c.segments[:i]
		}
		rt.routes = append(rt.routes, c)
	}
	slices.SortStableFunc(rt.routes, func(a, b compiled) int {
		for i := range min(len(a.segments), len(b.segments)) {
			if d := cmp.Compare(wild(a.segments[i]), wild(b.segments[i])); d != 0 {
				return d
			}
		}
		if (a.rest == "") != (b.rest == "") {
			return cmp.Compare(len(a.rest), len(b.rest)) // the one without a rest first
		}
		return cmp.Or(cmp.Compare(len(b.segments), len(a.segments)), cmp.Compare(len(b.tail), len(a.tail)))
	})
	return rt
}

func wild(segment string) int {
	if strings.HasPrefix(segment, "{") {
		return 1
	}
	return 0
}

// Match finds the route that serves path (relative to the mount, no leading slash). A trailing slash is ignored.
// It prefers routes that allow verb, so that a List on "roles" and a Read on "roles/{name}" do not hide each other; if none
// allows it, it returns a route that matches the path, whose Ops lack the verb. nil: no such path.
func (rt *Router) Match(verb lessor.Verb, path string) (*Route, map[string]string) {
	path = strings.TrimSuffix(path, "/")
	var other *compiled
	for i := range rt.routes {
		c := &rt.routes[i]
		if !c.matches(path) {
			continue
		}
		if c.Handler(verb) != nil {
			return c.Route, c.params(path)
		}
		if other == nil {
			other = c
		}
	}
	if other == nil {
		return nil, nil
	}
	return other.Route, other.params(path)
}

// Handler is the route's handler for verb, nil if the operation is not supported.
func (r *Route) Handler(verb lessor.Verb) Handler {
	h := r.Ops[verb]
	if h == nil && verb == lessor.Create {
		h = r.Ops[lessor.Update]
	}
	if h == nil && verb == lessor.Update {
		h = r.Ops[lessor.Create]
	}
	return h
}

func (c *compiled) matches(path string) bool {
	path, ok := strings.CutSuffix(path, c.tail)
	if !ok {
		return false
	}
	for i, s := range c.segments {
		head, tail, more := strings.Cut(path, "/")
		if head == "" && s != "" || s != head && wild(s) == 0 {
			return false
		}
		path = tail
		if last := i == len(c.segments)-1; last && !more {
			return c.rest == "" || c.Ops[lessor.List] != nil
		} else if !more {
			return false
		}
	}
	return c.rest != "" && (path != "" || c.Ops[lessor.List] != nil)
}

func (c *compiled) params(path string) map[string]string {
	if c.rest == "" && !strings.Contains(c.Pattern, "{") {
		return nil
	}
	m := make(map[string]string, 2)
	path = strings.TrimSuffix(path, c.tail)
	for _, s := range c.segments {
		var head string
		head, path, _ = strings.Cut(path, "/")
		if wild(s) == 1 {
			m[s[1:len(s)-1]] = head
		}
	}
	if c.rest != "" {
		m[c.rest] = path
	}
	return m
}
