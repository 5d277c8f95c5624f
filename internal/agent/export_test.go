package agent

import (
	"context"
	"log/slog"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/client"
)

// Render renders a template that reads nothing of the server.
func Render(text string) (string, error) {
	t := newTemplate(Template{Contents: text, Destination: "test", Left: "{{", Right: "}}"}, slog.New(slog.DiscardHandler))
	p := t.pass(&bench{ctx: context.Background(), sources: map[string]*source{}})
	return string(p.text), p.err
}

// Through is what answers at a listener of an agent that has not logged in.
func Through(server *client.Client, l Listener) http.Handler {
	return (&agent{server: server, log: slog.New(slog.DiscardHandler)}).proxy(l).Handler
}

// RunAndSearch is Run, and tells which of the texts lie in the ended agent's memory: in what lessor's own types lead to.
func RunAndSearch(ctx context.Context, c Config, o Options, texts ...string) (found map[string]bool, err error) {
	a := &agent{config: c, log: o.Log, started: time.Now()}
	err = a.run(ctx, o)
	return Search(a, texts...), err
}

// Search tells which of the texts lie in what v leads to.
func Search(v any, texts ...string) map[string]bool {
	s := search{texts: texts, found: map[string]bool{}, seen: map[uintptr]bool{}}
	s.value(reflect.ValueOf(v))
	return s.found
}

type search struct {
	texts []string
	found map[string]bool
	seen  map[uintptr]bool
}

func (s *search) text(text string) {
	for _, t := range s.texts {
		s.found[t] = s.found[t] || strings.Contains(text, t)
	}
}

func (s *search) value(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		s.text(v.String())
	case reflect.Interface:
		s.value(v.Elem())
	case reflect.Pointer:
		if v.IsNil() || s.seen[v.Pointer()] {
			return
		}
		s.seen[v.Pointer()] = true
		s.value(v.Elem())
	case reflect.Struct:
		if path := v.Type().PkgPath(); path != "" && !strings.HasPrefix(path, "github.com/lessor-dev/lessor/") {
			return
		}
		for i := range v.NumField() {
			s.value(v.Field(i))
		}
	case reflect.Map:
		for all := v.MapRange(); all.Next(); {
			s.value(all.Key())
			s.value(all.Value())
		}
	case reflect.Slice, reflect.Array:
		if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8 {
			s.text(string(v.Bytes()))
			return
		}
		for i := range v.Len() {
			s.value(v.Index(i))
		}
	}
}
