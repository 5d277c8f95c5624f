package policy

import (
	"fmt"
	"strings"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// piece is a part of a templated path: a literal, or what finds a value in the principal ("" if there is none).
type piece struct {
	literal string
	find    func(*lessor.Principal) string
}

const known = "{{identity.entity.id}}, .name, .metadata.KEY, .aliases.ACCESSOR.id, .name or .metadata.KEY; " +
	"{{identity.groups.ids.ID.id}} or {{identity.groups.names.NAME.id}}, .name, .metadata.KEY"

// parseTemplate takes a path apart. It returns nil if the path has no template.
func parseTemplate(path string) ([]piece, error) {
	var pieces []piece
	for rest := path; rest != ""; {
		before, after, found := strings.Cut(rest, "{{")
		if strings.Contains(before, "}}") {
			return nil, fmt.Errorf("}} without {{ before it")
		}
		pieces = append(pieces, piece{literal: before})
		if !found {
			break
		}
		selector, after, found := strings.Cut(after, "}}")
		if !found || strings.Contains(selector, "{{") {
			return nil, fmt.Errorf("{{ without }} after it")
		}
		find := parseSelector(strings.TrimSpace(selector))
		if find == nil {
			return nil, fmt.Errorf("the template {{%s}} means nothing; there are %s", selector, known)
		}
		pieces = append(pieces, piece{find: find})
		rest = after
	}
	if len(pieces) < 2 {
		return nil, nil
	}
	return pieces, nil
}

func parseSelector(s string) func(*lessor.Principal) string {
	if rest, ok := strings.CutPrefix(s, "identity.entity."); ok {
		return parseEntity(rest)
	}
	if rest, ok := strings.CutPrefix(s, "identity.groups."); ok {
		return parseGroup(rest)
	}
	return nil
}

func parseEntity(s string) func(*lessor.Principal) string {
	if rest, ok := strings.CutPrefix(s, "aliases."); ok {
		accessor, rest, _ := strings.Cut(rest, ".")
		attribute := parseAttribute(rest)
		if accessor == "" || attribute == nil {
			return nil
		}
		return func(p *lessor.Principal) string {
			for _, a := range p.Aliases {
				if a.MountAccessor == accessor {
					return attribute(a.ID, a.Name, a.Metadata)
				}
			}
			return ""
		}
	}
	attribute := parseAttribute(s)
	if attribute == nil {
		return nil
	}
	return func(p *lessor.Principal) string { return attribute(p.Entity, p.EntityName, p.EntityMeta) }
}

func parseGroup(s string) func(*lessor.Principal) string {
	by, rest, _ := strings.Cut(s, ".")
	key, rest, _ := strings.Cut(rest, ".")
	attribute := parseAttribute(rest)
	if by != "ids" && by != "names" || key == "" || attribute == nil {
		return nil
	}
	return func(p *lessor.Principal) string {
		for _, g := range p.Groups {
			if by == "ids" && g.ID == key || by == "names" && g.Name == key {
				return attribute(g.ID, g.Name, g.Metadata)
			}
		}
		return ""
	}
}

// parseAttribute reads the selector's end, which entities, aliases and groups have in common.
func parseAttribute(s string) func(id, name string, metadata map[string]string) string {
	switch key, isMetadata := strings.CutPrefix(s, "metadata."); {
	case s == "id":
		return func(id, _ string, _ map[string]string) string { return id }
	case s == "name":
		return func(_, name string, _ map[string]string) string { return name }
	case isMetadata && key != "":
		return func(_, _ string, metadata map[string]string) string { return metadata[key] }
	}
	return nil
}

// resolve gives the rule's pattern for a principal. It fails if a template finds no value, or one that would be a
// wildcard. Without a principal nothing is found, and without an entity nothing of it.
func (r *Rule) resolve(p *lessor.Principal) (pattern string, ok bool) {
	if r.template == nil {
		return strings.TrimPrefix(r.Path, "/"), true
	}
	if p == nil || p.Entity == "" {
		return "", false
	}
	var b strings.Builder
	for _, piece := range r.template {
		b.WriteString(piece.literal)
		if piece.find == nil {
			continue
		}
		value := piece.find(p)
		if value == "" || strings.ContainsAny(value, "*+") {
			return "", false
		}
		b.WriteString(value)
	}
	return strings.TrimPrefix(b.String(), "/"), true
}
