package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A document is read into a small tree before anything is made of it. The grammar is that of HCL's first version,
// because policies are written in it: `control_group = { factor "ops" { … } }` and quoted keys in blocks are not HCL 2,
// and HCL 2 normalizes strings, whereas a path is its bytes. JSON goes through the same parser: ":" stands for "=".

const (
	maxSource = 1 << 20 // bytes of a document
	maxDepth  = 24      // objects and lists within each other
)

type shape uint8

const (
	aString shape = iota + 1
	aNumber
	aBoolean
	aNull
	aList
	anObject
)

var shapes = [...]string{aString: "a string", aNumber: "a number", aBoolean: "a boolean", aNull: "null", aList: "a list", anObject: "an object"}

// node is a value of the document.
type node struct {
	at     int // byte offset in the source
	shape  shape
	text   string // of a string, unquoted; of a number, as written
	truth  bool
	list   []node
	fields []field
}

// field is `key = value`, `key { … }` or `key "label" { … }`.
type field struct {
	at    int
	keys  []string // the key, then its labels
	value node
}

// fault is what is wrong with a document, and where.
type fault struct {
	at   int
	text string
}

func (f *fault) Error() string { return f.text }

func faultf(at int, format string, args ...any) error {
	return &fault{at, fmt.Sprintf(format, args...)}
}

// locate turns a byte offset into a line and a column, both counted from 1; columns count characters.
func locate(source string, at int) (line, column int) {
	before := source[:min(at, len(source))]
	start := strings.LastIndexByte(before, '\n') + 1
	return strings.Count(before, "\n") + 1, utf8.RuneCountInString(before[start:]) + 1
}

// parseTree reads a whole document.
func parseTree(source string) ([]field, error) {
	if len(source) > maxSource {
		return nil, faultf(0, "the policy has %d bytes, more than the %d that are accepted; split it", len(source), maxSource)
	}
	if !utf8.ValidString(source) {
		return nil, faultf(firstInvalid(source), "the policy is not valid UTF-8; save it as UTF-8")
	}
	p := &parser{src: source}
	if err := p.skip(); err != nil {
		return nil, err
	}
	if p.peek() != '{' {
		return p.fields(0, -1)
	}
	var whole json.RawMessage
	if err := json.Unmarshal([]byte(source[p.at:]), &whole); err != nil {
		at := p.at
		if s, ok := errors.AsType[*json.SyntaxError](err); ok {
			at += max(int(s.Offset)-1, 0)
		}
		return nil, faultf(at, "not valid JSON: %v", err)
	}
	p.json = true
	n, err := p.value()
	return n.fields, err
}

func firstInvalid(s string) int {
	for i, r := range s {
		if r == utf8.RuneError && !strings.HasPrefix(s[i:], string(utf8.RuneError)) {
			return i
		}
	}
	return len(s)
}

type parser struct {
	src   string
	at    int
	depth int
	json  bool
}

// peek is the next byte, 0 at the end.
func (p *parser) peek() byte {
	if p.at < len(p.src) {
		return p.src[p.at]
	}
	return 0
}

// skip moves past white space and comments.
func (p *parser) skip() error {
	for p.at < len(p.src) {
		rest := p.src[p.at:]
		switch {
		case strings.IndexByte(" \t\r\n", rest[0]) >= 0:
			p.at++
		case p.at == 0 && strings.HasPrefix(rest, "\ufeff"):
			p.at += len("\ufeff")
		case !p.json && (rest[0] == '#' || strings.HasPrefix(rest, "//")):
			if n := strings.IndexByte(rest, '\n'); n >= 0 {
				p.at += n
			} else {
				p.at = len(p.src)
			}
		case !p.json && strings.HasPrefix(rest, "/*"):
			n := strings.Index(rest, "*/")
			if n < 0 {
				return faultf(p.at, "this comment is not closed; end it with */")
			}
			p.at += n + len("*/")
		default:
			return nil
		}
	}
	return nil
}

// fields reads fields up to the closing byte, or to the end of the document if that is 0. opened is where the object
// began.
func (p *parser) fields(closing byte, opened int) ([]field, error) {
	var fields []field
	for {
		if err := p.skip(); err != nil {
			return nil, err
		}
		switch c := p.peek(); {
		case p.at == len(p.src) && closing == 0:
			return fields, nil
		case p.at == len(p.src):
			return nil, faultf(opened, "this { is not closed; add a }")
		case c == closing && closing != 0:
			p.at++
			return fields, nil
		case c == ',' && len(fields) > 0:
			p.at++
			continue
		}
		f, err := p.field()
		if err != nil {
			return nil, err
		}
		fields = append(fields, f)
	}
}

func (p *parser) field() (field, error) {
	f := field{at: p.at}
	for {
		if err := p.skip(); err != nil {
			return f, err
		}
		switch c := p.peek(); {
		case len(f.keys) == 1 && (c == '=' && !p.json || c == ':' && p.json):
			p.at++
			if err := p.skip(); err != nil {
				return f, err
			}
			var err error
			f.value, err = p.value()
			return f, err
		case len(f.keys) > 0 && c == '{':
			var err error
			f.value, err = p.value()
			return f, err
		case c == '"':
			s, err := p.quoted()
			if err != nil {
				return f, err
			}
			f.keys = append(f.keys, s)
		case wordByte(c, true):
			f.keys = append(f.keys, p.word())
		case len(f.keys) == 0:
			return f, faultf(p.at, "%s where a key is expected, such as path %q { … }", p.found(), "secret/*")
		default:
			return f, faultf(p.at, "%s after %q, where = or { is expected", p.found(), strings.Join(f.keys, " "))
		}
	}
}

// found names what stands at the current place.
func (p *parser) found() string {
	if p.at == len(p.src) {
		return "the policy ends"
	}
	r, _ := utf8.DecodeRuneInString(p.src[p.at:])
	return strconv.QuoteRune(r) + " stands"
}

func (p *parser) value() (node, error) {
	if p.depth++; p.depth > maxDepth {
		return node{}, faultf(p.at, "more than %d objects and lists within each other", maxDepth)
	}
	defer func() { p.depth-- }()
	n := node{at: p.at}
	var err error
	switch c := p.peek(); {
	case c == '"':
		n.shape = aString
		n.text, err = p.quoted()
	case c == '{':
		n.shape = anObject
		p.at++
		n.fields, err = p.fields('}', n.at)
	case c == '[':
		n.shape = aList
		p.at++
		n.list, err = p.elements(n.at)
	case c == '-' || c >= '0' && c <= '9':
		n.shape = aNumber
		n.text, err = p.number()
	case wordByte(c, true):
		switch w := p.word(); {
		case w == "true" || w == "false":
			n.shape, n.truth = aBoolean, w == "true"
		case w == "null" && p.json:
			n.shape = aNull
		default:
			err = faultf(n.at, "%s is not a value; write %q if it is a string", w, w)
		}
	case strings.HasPrefix(p.src[p.at:], "<<"):
		err = faultf(p.at, "here-documents have no place in a policy; write a quoted string")
	default:
		err = faultf(p.at, "%s where a value is expected", p.found())
	}
	return n, err
}

// elements reads a list's values after its "[".
func (p *parser) elements(opened int) ([]node, error) {
	nodes := []node{}
	for {
		if err := p.skip(); err != nil {
			return nil, err
		}
		if p.peek() == ']' {
			p.at++
			return nodes, nil
		}
		if p.at == len(p.src) {
			return nil, faultf(opened, "this [ is not closed; add a ]")
		}
		n, err := p.value()
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
		if err := p.skip(); err != nil {
			return nil, err
		}
		switch c := p.peek(); {
		case c == ',':
			p.at++
		case c != ']' && p.at < len(p.src):
			return nil, faultf(p.at, "%s in a list, where a comma or ] is expected", p.found())
		}
	}
}

// quoted reads a string in double quotes.
func (p *parser) quoted() (string, error) {
	start := p.at
	for p.at++; ; p.at++ {
		switch p.peek() {
		case '\\':
			p.at++
			continue
		case '"':
			p.at++
			raw := p.src[start:p.at]
			var s string
			var err error
			if p.json {
				err = json.Unmarshal([]byte(raw), &s)
			} else {
				s, err = strconv.Unquote(raw)
			}
			if err != nil {
				return "", faultf(start, `this string has an escape that means nothing; write \\ for a backslash`)
			}
			if !utf8.ValidString(s) {
				return "", faultf(start, "this string is not valid UTF-8")
			}
			return s, nil
		case '\n':
			return "", faultf(start, "this string is not closed on its line; add a \"")
		}
		if p.at >= len(p.src) {
			return "", faultf(start, "this string is not closed; add a \"")
		}
	}
}

func (p *parser) number() (string, error) {
	start := p.at
	for p.at < len(p.src) && (wordByte(p.src[p.at], false) || p.src[p.at] == '+') {
		p.at++
	}
	s := p.src[start:p.at]
	if !json.Valid([]byte(s)) {
		return "", faultf(start, "%s is not a number; write %q if it is a string", s, s)
	}
	return s, nil
}

func (p *parser) word() string {
	start := p.at
	for p.at < len(p.src) && wordByte(p.src[p.at], p.at == start) {
		p.at++
	}
	return p.src[start:p.at]
}

func wordByte(c byte, first bool) bool {
	switch {
	case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_':
		return true
	case first:
		return false
	}
	return c >= '0' && c <= '9' || c == '-' || c == '.'
}
