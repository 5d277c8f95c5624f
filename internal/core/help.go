package core

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/openapi"
	"github.com/lessor-dev/lessor/internal/store"
)

// Help describes the path of op from the method table (?help=1). It shows nothing that is kept, and takes a live token.
func (c *Core) Help(ctx context.Context, op *lessor.Op) (*lessor.Answer, error) {
	if err := c.Store.Fresh(ctx); err != nil {
		return nil, outcome(err)
	}
	view, err := c.Store.View()
	if err != nil {
		return nil, outcome(err)
	}
	defer view.Close()
	w := &walk{Core: c, op: op, view: view}
	if w.who, err = c.caller(view, op); err != nil {
		w.who = &caller{}
		return nil, outcome(w.refuse(ctx, err))
	}
	if w.who.Anonymous() {
		return nil, outcome(w.refuse(ctx, errMissingToken))
	}
	if err := w.find(); err != nil {
		return nil, outcome(w.refuse(ctx, err))
	}
	if w.mount == nil || !w.describes() {
		return nil, outcome(w.refuse(ctx, w.lost()))
	}
	rec := w.record(audit.Done)
	rec.Operation, rec.Granted, rec.Rule = "help", true, "help"
	if err := w.commit(ctx, &store.Txn{}, rec); err != nil {
		return nil, outcome(err)
	}
	return &lessor.Answer{Bare: true, Data: map[string]any{"help": w.help(), "see_also": nil, "openapi": w.described()}}, nil
}

// routes are all that there is to describe in the mount.
func (w *walk) routes() []engine.Route { return engine.Described(w.Backends[w.mount.Backend()]) }

// describes finds the most literal route that the path names, whatever may be done there. The mount itself is described by all of its routes.
func (w *walk) describes() bool {
	w.route, _ = engine.NewRouter(w.routes()).Match(0, w.request.Path)
	return w.route != nil || w.request.Path == ""
}

// described is the same as an OpenAPI document, of paths within the mount.
func (w *walk) described() map[string]any {
	m := openapi.Mount{Type: w.mount.Backend(), Routes: w.routes()}
	if w.route != nil {
		m.Routes = slices.DeleteFunc(slices.Clone(m.Routes), func(r engine.Route) bool { return r.Pattern != w.route.Pattern })
	}
	return openapi.Document(openapi.Options{Version: w.Reported}, []openapi.Mount{m})
}

// help is the text: of the route that serves the path, or of all routes of the mount.
func (w *walk) help() string {
	var b strings.Builder
	if w.route != nil {
		fmt.Fprintf(&b, "Request:        %s\nMatching Route: %s\n\n%s\n", w.request.Path, w.route.Pattern, w.route.Help)
		if len(w.route.Fields) > 0 {
			b.WriteString("\n## PARAMETERS\n")
		}
		for _, f := range w.route.Fields {
			fmt.Fprintf(&b, "\n    %s (%s)\n        %s\n", f.Name, f.Type, f.Help)
		}
		return b.String()
	}
	fmt.Fprintf(&b, "## PATHS of the %s engine at %s\n\n", w.mount.Type, w.mount.Path)
	for _, r := range w.routes() {
		var verbs []string
		for v := range r.Ops {
			verbs = append(verbs, v.String())
		}
		slices.Sort(verbs)
		fmt.Fprintf(&b, "    %s\n        %s (%s)\n\n", r.Pattern, r.Help, strings.Join(verbs, ", "))
	}
	return b.String()
}
