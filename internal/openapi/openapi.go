// Package openapi describes the API of what is mounted as an OpenAPI 3.0.2 document, as Vault's clients ask for it: from the method
// tables of the engines, so that it cannot say anything else than what the router does.
package openapi

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Mount is one mount to describe.
type Mount struct {
	Path   string // "secret/", "auth/userpass/"; "" describes paths within the mount
	Type   string // begins the names of operations: "kv-v2"
	Tag    string // secrets, auth, system or identity; "": none
	Routes []engine.Route
	Param  string // generic documents: name of the path parameter that stands for Path; "": Path itself
}

// Options of a document.
type Options struct {
	Version string // of the API
	Context string // appended to the names of operations; may be empty
}

// Document describes mounts. It is pure, and the same for the same arguments.
func Document(o Options, mounts []Mount) map[string]any {
	d := &document{suffix: o.Context, paths: map[string]any{}, schemas: map[string]any{}, operations: map[string]int{}}
	for _, m := range mounts {
		routes := slices.Clone(m.Routes)
		slices.SortStableFunc(routes, func(a, b engine.Route) int { return strings.Compare(a.Pattern, b.Pattern) })
		for i := range routes {
			d.route(&m, &routes[i])
		}
	}
	return map[string]any{
		"openapi": "3.0.2",
		"info": map[string]any{
			"title": "lessor API", "version": o.Version,
			"description": "HTTP API of lessor, which speaks Vault's. All API routes are prefixed with `/v1/`.",
			"license":     map[string]any{"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
		},
		"paths": d.paths, "components": map[string]any{"schemas": d.schemas},
	}
}

// document is one in the making.
type document struct {
	suffix     string
	paths      map[string]any
	schemas    map[string]any
	operations map[string]int // how often each name was given
}

// methods are the HTTP methods of verbs. Lists have a path of their own, which ends in a slash.
var methods = map[lessor.Verb]string{lessor.Read: "get", lessor.Create: "post", lessor.Update: "post", lessor.Patch: "patch", lessor.Delete: "delete"}

// route adds the paths of one route.
func (d *document) route(m *Mount, r *engine.Route) {
	path, names := template(r.Pattern)
	base := "/" + m.Path
	var params []any
	for _, name := range names {
		params = append(params, parameter(name, "path", describe(r, name), map[string]any{"type": "string"}, true))
	}
	if m.Param != "" {
		base = "/{" + m.Param + "}/"
		if strings.HasPrefix(m.Path, "auth/") {
			base = "/auth" + base
		}
		at := strings.TrimSuffix(strings.TrimPrefix(m.Path, "auth/"), "/")
		params = append(params, parameter(m.Param, "path", "Path that the backend was mounted at", map[string]any{"type": "string", "default": at}, true))
	}
	item := func() map[string]any {
		it := map[string]any{"description": r.Help}
		if len(params) > 0 {
			it["parameters"] = params
		}
		if r.Sudo {
			it["x-vault-sudo"] = true
		}
		if r.Open {
			it["x-vault-unauthenticated"] = true
		}
		return it
	}
	one := item()
	for _, verb := range slices.Sorted(maps.Keys(r.Ops)) {
		switch method := methods[verb]; {
		case verb == lessor.List:
			list := item()
			list["get"] = d.operation(m, r, path, verb, names)
			d.paths[base+strings.TrimSuffix(path, "/")+"/"] = list
		case one[method] == nil:
			one[method] = d.operation(m, r, path, verb, names)
		}
	}
	if r.Exists != nil {
		one["x-vault-createSupported"] = true
	}
	if slices.ContainsFunc(slices.Collect(maps.Values(methods)), func(method string) bool { return one[method] != nil }) {
		d.paths[base+path] = one
	}
}

// template is a pattern as OpenAPI writes it, and the names in it.
func template(pattern string) (path string, names []string) {
	segments := strings.Split(pattern, "/")
	for i, s := range segments {
		if strings.HasPrefix(s, "{") {
			name := strings.TrimSuffix(strings.Trim(s, "{}"), "...")
			segments[i] = "{" + name + "}"
			names = append(names, name)
		}
	}
	return strings.Join(segments, "/"), names
}

// describe is the help of a parameter in the path, which may be told as a field.
func describe(r *engine.Route, name string) string {
	for _, f := range r.Fields {
		if f.Name == name {
			return f.Help
		}
	}
	return ""
}

func parameter(name, in, help string, schema map[string]any, required bool) map[string]any {
	p := map[string]any{"name": name, "in": in, "schema": schema}
	if help != "" {
		p["description"] = help
	}
	if required {
		p["required"] = true
	}
	return p
}

// operation describes what one verb does.
func (d *document) operation(m *Mount, r *engine.Route, path string, verb lessor.Verb, names []string) map[string]any {
	id := d.name(m.Type, verb, path)
	op := map[string]any{"operationId": id, "summary": r.Help}
	if m.Tag != "" {
		op["tags"] = []any{m.Tag}
	}
	ok, done := map[string]any{"description": "OK"}, map[string]any{"description": "empty body"}
	body := map[string]any{}
	var query []any
	for _, f := range r.Fields {
		if slices.Contains(names, f.Name) {
			continue
		}
		body[f.Name] = schema(f)
		if f.Type != engine.Map && f.Type != engine.Pairs && f.Type != engine.Any {
			s := schema(f)
			delete(s, "description")
			query = append(query, parameter(f.Name, "query", f.Help, s, false))
		}
	}
	switch verb {
	case lessor.List:
		d.schemas["StandardListResponse"] = map[string]any{
			"type": "object", "properties": map[string]any{"keys": map[string]any{"type": "array", "items": map[string]any{"type": "string"}}},
		}
		op["parameters"] = []any{parameter("list", "query", "Must be set to `true`", map[string]any{"type": "string", "enum": []any{"true"}}, true)}
		op["responses"] = map[string]any{"200": map[string]any{"description": "OK", "content": content("StandardListResponse")}}
	case lessor.Read:
		if len(query) > 0 && r.Ops[lessor.Update] == nil { // else the fields are those of writes
			op["parameters"] = query
		}
		op["responses"] = map[string]any{"200": ok}
	case lessor.Delete:
		op["responses"] = map[string]any{"204": done}
	default:
		if len(body) > 0 || r.Free {
			name := camel(id) + "Request"
			d.schemas[name] = map[string]any{"type": "object", "properties": body}
			if r.Free {
				d.schemas[name].(map[string]any)["additionalProperties"] = true
			}
			kind := "application/json"
			if verb == lessor.Patch {
				kind = "application/merge-patch+json"
			}
			op["requestBody"] = map[string]any{"required": true, "content": map[string]any{kind: content(name)["application/json"]}}
		}
		op["responses"] = map[string]any{"200": ok, "204": done}
	}
	return op
}

func content(name string) map[string]any {
	return map[string]any{"application/json": map[string]any{"schema": map[string]any{"$ref": "#/components/schemas/" + name}}}
}

// schema is the type of a field.
func schema(f engine.Field) map[string]any {
	s := map[string]any{"description": f.Help}
	switch f.Type {
	case engine.String:
		s["type"] = "string"
	case engine.Int:
		s["type"] = "integer"
	case engine.Bool:
		s["type"] = "boolean"
	case engine.Duration:
		s["type"], s["format"] = "string", "duration"
	case engine.Strings:
		s["type"], s["items"] = "array", map[string]any{"type": "string"}
	case engine.Map:
		s["type"], s["format"] = "object", "map"
	case engine.Pairs:
		s["type"], s["format"] = "object", "kvpairs"
	}
	return s
}

// name is that of an operation, made of type, verb and path. Several mounts of a type make it ambiguous: then it is numbered.
func (d *document) name(kind string, verb lessor.Verb, path string) string {
	what := verb.String()
	if verb == lessor.Update || verb == lessor.Create {
		what = "write"
	}
	words := strings.FieldsFunc(kind+"-"+what+"-"+path, func(c rune) bool { return !unicode.IsLetter(c) && !unicode.IsDigit(c) })
	id := strings.ToLower(strings.Join(words, "-"))
	if d.suffix != "" {
		id += "_" + d.suffix
	}
	if d.operations[id]++; d.operations[id] > 1 {
		return d.unique(id)
	}
	return id
}

func (d *document) unique(id string) string {
	for n := d.operations[id]; ; n++ {
		if numbered := fmt.Sprint(id, n); d.operations[numbered] == 0 {
			d.operations[numbered]++
			return numbered
		}
	}
}

func camel(id string) string {
	var b strings.Builder
	for word := range strings.FieldsFuncSeq(id, func(c rune) bool { return c == '-' || c == '_' }) {
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return b.String()
}
