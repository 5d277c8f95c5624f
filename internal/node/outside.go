package node

import (
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// outside describes what the node answers below sys/ without asking the gate: the server, what anybody may know, and rites. The patterns
// are within the mount, as those of its engine.
func (n *Node) outside() []engine.Route {
	asked := map[lessor.Verb]engine.Handler{lessor.Read: nil} // the server answers
	code := func(name, of string) engine.Field {
		return engine.Field{Name: name, Type: engine.Int, Help: "status to answer with where the node is " + of}
	}
	flag := func(name, help string) engine.Field { return engine.Field{Name: name, Type: engine.Bool, Help: help} }
	routes := []engine.Route{
		{Pattern: "health", Help: "whether to send requests here; the status tells", Open: true, Ops: asked, Fields: []engine.Field{
			code("activecode", "active"), code("sealedcode", "sealed"), code("uninitcode", "not initialized"), code("standbycode", "standby: there is none"),
			code("performancestandbycode", "a performance standby: there is none"), code("drsecondarycode", "a DR secondary: there is none"),
			code("haunhealthycode", "a standby that lost its active node: there is none"), code("removedcode", "removed from its cluster: there is none"),
			flag("standbyok", "accepted: there is no standby"), flag("perfstandbyok", "accepted: there is no performance standby"),
		}},
		{Pattern: "seal-status", Help: "whether the node is sealed, and how far unsealing is", Open: true, Ops: asked},
		{Pattern: "seal-backend-status", Help: "whether what unseals can be reached", Open: true, Ops: asked},
		{Pattern: "leader", Help: "which node is active: each one that is unsealed", Open: true, Ops: asked},
	}
	for _, r := range n.rites {
		route := *r
		route.Pattern = strings.TrimPrefix(route.Pattern, "sys/")
		if route.Pattern == "init" {
			route.Ops = map[lessor.Verb]engine.Handler{lessor.Read: nil, lessor.Update: r.Ops[lessor.Update]}
		}
		routes = append(routes, route)
	}
	slices.SortFunc(routes, func(a, b engine.Route) int { return strings.Compare(a.Pattern, b.Pattern) })
	return routes
}
