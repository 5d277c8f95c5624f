package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// load reads files into one stanza; of a folder those in it whose names end in .hcl or .json, in the order of their names.
func load(places []string) (*stanza, error) {
	top := newStanza("", "", "configuration", new([]error))
	files, err := filesOf(places)
	if err != nil {
		return nil, fmt.Errorf("cannot read the configuration: %w", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("cannot read the configuration: %w", err)
		}
		top.place = filepath.Base(file)
		if filepath.Ext(file) == ".json" || bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) {
			var all map[string]any
			d := json.NewDecoder(bytes.NewReader(text))
			d.UseNumber()
			if err := d.Decode(&all); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			top.fill(all)
			continue
		}
		parsed, diags := hclsyntax.ParseConfig(text, filepath.Base(file), hcl.InitialPos)
		if diags.HasErrors() {
			return nil, errors.New(strings.Join(slices.Collect(func(yield func(string) bool) {
				for _, d := range diags {
					if !yield(d.Error()) {
						return
					}
				}
			}), "\n"))
		}
		top.read(parsed.Body.(*hclsyntax.Body))
	}
	return top, nil
}

func filesOf(places []string) (files []string, err error) {
	for _, place := range places {
		if info, err := os.Stat(place); err != nil || !info.IsDir() {
			files = append(files, place)
			continue
		}
		inside, err := os.ReadDir(place) // sorted
		if err != nil {
			return nil, err
		}
		before := len(files)
		for _, entry := range inside {
			if ext := filepath.Ext(entry.Name()); !entry.IsDir() && (ext == ".hcl" || ext == ".json") {
				files = append(files, filepath.Join(place, entry.Name()))
			}
		}
		if len(files) == before {
			return nil, fmt.Errorf("nothing in %s is named .hcl or .json", place)
		}
	}
	return files, nil
}

func newStanza(name, label, place string, wrong *[]error) *stanza {
	return &stanza{name: name, label: label, place: place, settings: map[string]any{}, known: map[string]bool{}, wrong: wrong}
}

// nested names the blocks that may be written as values: as JSON has it, and as earlier HCL did.
var nested = []string{
	"vault", "retry", "auto_auth", "method", "config", "sink", "sinks", "cache", "persist", "api_proxy", "listener", "template", "exec", "wait", "template_config",
	"env_template", "telemetry",
}

// read takes over a body of HCL.
func (s *stanza) read(body *hclsyntax.Body) {
	for _, name := range slices.Sorted(maps.Keys(body.Attributes)) {
		a := body.Attributes[name]
		v, diags := a.Expr.Value(nil)
		if diags.HasErrors() || !v.IsWhollyKnown() || v.IsNull() {
			s.complain("%s must be written out: a configuration computes nothing ($${ stands for ${)", name)
			continue
		}
		s.set(name, plain(v))
	}
	for _, b := range body.Blocks {
		place := fmt.Sprintf("%s:%d", b.TypeRange.Filename, b.TypeRange.Start.Line)
		child := newStanza(b.Type, strings.Join(b.Labels, " "), place, s.wrong)
		child.read(b.Body)
		s.blocks = append(s.blocks, child)
	}
}

// plain is a value as JSON would have it: strings, booleans, lists, objects; numbers are strings.
func plain(v cty.Value) any {
	switch t := v.Type(); {
	case t == cty.Bool:
		return v.True()
	case t.IsObjectType() || t.IsMapType():
		all := map[string]any{}
		for name, item := range v.AsValueMap() {
			all[name] = plain(item)
		}
		return all
	case t.IsTupleType() || t.IsListType() || t.IsSetType():
		all := []any{}
		for _, item := range v.AsValueSlice() {
			all = append(all, plain(item))
		}
		return all
	}
	if text, err := convert.Convert(v, cty.String); err == nil && !text.IsNull() {
		return text.AsString()
	}
	return nil
}

// fill takes over an object of JSON.
func (s *stanza) fill(all map[string]any) {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		s.set(name, all[name])
	}
}

// labelled are the blocks that JSON writes with their label as a further level: {"listener": {"unix": {…}}}.
var labelled = []string{"method", "sink", "listener"}

// set takes over a value: a setting, or one block or more.
func (s *stanza) set(name string, v any) {
	if n, ok := v.(json.Number); ok {
		v = n.String()
	}
	object, isObject := v.(map[string]any)
	list, isList := v.([]any)
	switch {
	case !slices.Contains(nested, name) || !isObject && !isList:
		s.settings[name] = v
	case isList:
		for _, item := range list {
			s.set(name, item)
		}
	default:
		label := ""
		if len(object) == 1 && slices.Contains(labelled, name) {
			for key, inner := range object {
				if list, ok := inner.([]any); ok && len(list) == 1 {
					inner = list[0]
				}
				if fields, ok := inner.(map[string]any); ok && key != "config" {
					label, object = key, fields
				}
			}
		}
		child := newStanza(name, label, s.place, s.wrong)
		child.fill(object)
		s.blocks = append(s.blocks, child)
	}
}
