package event

import (
	"strings"
	"unicode"

	"github.com/lessor-dev/lessor/api"
)

// Filter reads an expression in the part of Vault's language (go-bexpr) that lessor knows: comparisons of a field with a value, by ==, != or
// contains, joined by and, or, not and parentheses. Fields are event_type, operation, data_path, source_plugin_mount, and those of the metadata.
func Filter(text string) (func(*Event) bool, error) {
	if len(text) > longestFilter {
		return nil, api.Errorf(api.Invalid, "the filter is longer than %d bytes", longestFilter)
	}
	p := filter{words: words(text)}
	f, err := p.either()
	if err == nil && len(p.words) > 0 {
		err = p.unexpected()
	}
	return f, err
}

const (
	longestFilter = 4096
	deepest       = 64 // parentheses and nots in each other
)

// filter is what is left to read of one.
type filter struct {
	words []string // quoted values begin with "
	depth int
}

// words splits a filter; what is quoted keeps its first quote, as ".
func words(text string) (all []string) {
	for {
		text = strings.TrimLeftFunc(text, unicode.IsSpace)
		if text == "" {
			return all
		}
		n := strings.IndexFunc(text, func(c rune) bool { return unicode.IsSpace(c) || strings.ContainsRune("()=!\"`", c) })
		switch quote := text[0]; {
		case quote == '"' || quote == '`':
			value, rest, _ := strings.Cut(text[1:], text[:1])
			all, text = append(all, `"`+value), rest
			continue
		case n < 0:
			n = len(text)
		case n > 0:
		case strings.HasPrefix(text, "==") || strings.HasPrefix(text, "!="):
			n = 2
		default:
			n = 1
		}
		all, text = append(all, text[:n]), text[n:]
	}
}

// take takes a word if it is next.
func (p *filter) take(word string) bool {
	if len(p.words) == 0 || p.words[0] != word {
		return false
	}
	p.words = p.words[1:]
	return true
}

func (p *filter) unexpected() error {
	at := "its end"
	if len(p.words) > 0 {
		at = "word " + p.words[0]
	}
	return api.Errorf(api.Invalid, `the filter cannot be read at %s: write comparisons such as data_path == "secret/data/app", with ==, != or contains, joined by and, or, not and parentheses`, at)
}

func (p *filter) either() (func(*Event) bool, error) {
	a, err := p.both()
	for err == nil && p.take("or") {
		left, right := a, a
		if right, err = p.both(); err == nil {
			a = func(e *Event) bool { return left(e) || right(e) }
		}
	}
	return a, err
}

func (p *filter) both() (func(*Event) bool, error) {
	a, err := p.one()
	for err == nil && p.take("and") {
		left, right := a, a
		if right, err = p.one(); err == nil {
			a = func(e *Event) bool { return left(e) && right(e) }
		}
	}
	return a, err
}

func (p *filter) one() (f func(*Event) bool, err error) {
	if p.depth++; p.depth > deepest {
		return nil, p.unexpected()
	}
	defer func() { p.depth-- }()
	switch {
	case p.take("not"):
		inner, err := p.one()
		if err != nil {
			return nil, err
		}
		return func(e *Event) bool { return !inner(e) }, nil
	case p.take("("):
		if f, err = p.either(); err == nil && !p.take(")") {
			err = p.unexpected()
		}
		return f, err
	}
	return p.comparison()
}

func (p *filter) comparison() (func(*Event) bool, error) {
	if len(p.words) < 3 || !plain(p.words[0]) {
		return nil, p.unexpected()
	}
	field, operator, value := p.words[0], p.words[1], p.words[2]
	if !plain(value) && value[0] != '"' {
		return nil, p.unexpected()
	}
	value = strings.TrimPrefix(value, `"`)
	var f func(*Event) bool
	switch operator {
	case "==":
		f = func(e *Event) bool { return e.field(field) == value }
	case "!=":
		f = func(e *Event) bool { return e.field(field) != value }
	case "contains":
		f = func(e *Event) bool { return strings.Contains(e.field(field), value) }
	default:
		p.words = p.words[1:]
		return nil, p.unexpected()
	}
	p.words = p.words[3:]
	return f, nil
}

// plain reports whether a word is one without quotes.
func plain(word string) bool { return !strings.ContainsAny(word, "()=!\"`") }

// field is what a filter compares.
func (e *Event) field(name string) string {
	switch name {
	case "event_type":
		return e.Type
	case "source_plugin_mount":
		return e.mount
	}
	return e.Metadata[strings.TrimPrefix(name, "event.metadata.")]
}
