package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/lessor-dev/lessor/api"
)

const (
	maxDepth  = 300     // nesting of objects and arrays
	maxValues = 250_000 // values in one body: keeps a small body from becoming a large one in memory
)

// parseObject reads a body that is one JSON object (empty and null are no data). It loses nothing and guesses nothing:
// numbers keep their spelling (json.Number); an object with a key twice, text that is not UTF-8, half a surrogate
// pair, or anything behind the object is an error. Errors tell where, never what.
func parseObject(body []byte) (map[string]any, error) {
	p := parser{b: body}
	p.space()
	switch {
	case p.i == len(p.b):
		return nil, nil
	case p.b[p.i] != '{' && !bytes.HasPrefix(p.b[p.i:], []byte("null")):
		return nil, p.errorf("the body must be a JSON object")
	}
	v, err := p.value(0)
	if err != nil {
		return nil, err
	}
	if p.space(); p.i < len(p.b) {
		return nil, p.errorf("there is something behind the JSON object")
	}
	object, _ := v.(map[string]any)
	return object, nil
}

type parser struct {
	b      []byte
	i      int
	values int
}

func (p *parser) errorf(format string, args ...any) error {
	return &api.Error{Kind: api.Invalid, Text: fmt.Sprintf("error parsing JSON: "+format+" (byte %d)", append(args, p.i)...)}
}

var errTooMany = &api.Error{Kind: api.TooLarge, Text: fmt.Sprintf("the body holds more than %d values", maxValues)}

func (p *parser) space() {
	for p.i < len(p.b) {
		switch p.b[p.i] {
		case ' ', '\t', '\r', '\n':
			p.i++
		default:
			return
		}
	}
}

// next skips white space and returns the byte there, 0 at the end.
func (p *parser) next() byte {
	p.space()
	if p.i < len(p.b) {
		return p.b[p.i]
	}
	return 0
}

func (p *parser) value(depth int) (any, error) {
	if p.values++; p.values > maxValues {
		return nil, errTooMany
	}
	if depth > maxDepth {
		return nil, p.errorf("it is nested more than %d deep", maxDepth)
	}
	switch c := p.next(); {
	case c == '{':
		return p.object(depth)
	case c == '[':
		return p.array(depth)
	case c == '"':
		return p.string()
	case c == '-' || c >= '0' && c <= '9':
		return p.number()
	case p.literal("true"):
		return true, nil
	case p.literal("false"):
		return false, nil
	case p.literal("null"):
		return nil, nil
	}
	return nil, p.errorf("a value is expected")
}

func (p *parser) literal(word string) bool {
	if !bytes.HasPrefix(p.b[p.i:], []byte(word)) {
		return false
	}
	p.i += len(word)
	return true
}

func (p *parser) object(depth int) (any, error) {
	object := map[string]any{}
	p.i++
	if p.next() == '}' {
		p.i++
		return object, nil
	}
	for {
		if p.next() != '"' {
			return nil, p.errorf("a key is expected")
		}
		key, err := p.string()
		if err != nil {
			return nil, err
		}
		if _, twice := object[key]; twice {
			return nil, p.errorf("an object has the same key twice")
		}
		if p.next() != ':' {
			return nil, p.errorf("a colon is expected")
		}
		p.i++
		if object[key], err = p.value(depth + 1); err != nil {
			return nil, err
		}
		switch p.next() {
		case ',':
			p.i++
		case '}':
			p.i++
			return object, nil
		default:
			return nil, p.errorf("a comma or the end of an object is expected")
		}
	}
}

func (p *parser) array(depth int) (any, error) {
	array := []any{}
	p.i++
	if p.next() == ']' {
		p.i++
		return array, nil
	}
	for {
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		array = append(array, v)
		switch p.next() {
		case ',':
			p.i++
		case ']':
			p.i++
			return array, nil
		default:
			return nil, p.errorf("a comma or the end of a list is expected")
		}
	}
}

// number reads what RFC 8259 calls a number, and keeps its spelling.
func (p *parser) number() (any, error) {
	start := p.i
	if p.b[p.i] == '-' {
		p.i++
	}
	if p.i < len(p.b) && p.b[p.i] == '0' {
		p.i++
	} else if !p.digits() {
		return nil, p.errorf("a digit is expected")
	}
	if p.i < len(p.b) && p.b[p.i] == '.' {
		p.i++
		if !p.digits() {
			return nil, p.errorf("a digit is expected")
		}
	}
	if p.i < len(p.b) && p.b[p.i]|0x20 == 'e' {
		p.i++
		if p.i < len(p.b) && (p.b[p.i] == '+' || p.b[p.i] == '-') {
			p.i++
		}
		if !p.digits() {
			return nil, p.errorf("a digit is expected")
		}
	}
	return json.Number(p.b[start:p.i]), nil
}

func (p *parser) digits() bool {
	start := p.i
	for p.i < len(p.b) && p.b[p.i] >= '0' && p.b[p.i] <= '9' {
		p.i++
	}
	return p.i > start
}

// string reads a string; the quote that opens it is at p.i.
func (p *parser) string() (string, error) {
	p.i++
	for i := p.i; i < len(p.b); i++ {
		switch c := p.b[i]; {
		case c == '"':
			s := string(p.b[p.i:i])
			p.i = i + 1
			return s, nil
		case c == '\\' || c < 0x20 || c >= utf8.RuneSelf:
			return p.stringFrom(i)
		}
	}
	return "", p.errorf("a string does not end")
}

// stringFrom goes on where a string stops being plain ASCII.
func (p *parser) stringFrom(i int) (string, error) {
	s := append(make([]byte, 0, 2*(i-p.i)+32), p.b[p.i:i]...)
	for p.i = i; p.i < len(p.b); {
		c := p.b[p.i]
		switch {
		case c == '"':
			p.i++
			return string(s), nil
		case c == '\\':
			var err error
			if s, err = p.escape(s); err != nil {
				return "", err
			}
		case c < 0x20:
			return "", p.errorf("a string has a control character in it, which must be escaped")
		case c < utf8.RuneSelf:
			s = append(s, c)
			p.i++
		default:
			r, n := utf8.DecodeRune(p.b[p.i:])
			if r == utf8.RuneError && n == 1 {
				return "", p.errorf("a string is not valid UTF-8: encode binary values, as base64 for example")
			}
			s = append(s, p.b[p.i:p.i+n]...)
			p.i += n
		}
	}
	return "", p.errorf("a string does not end")
}

// escape reads one escape sequence; the backslash is at p.i.
func (p *parser) escape(s []byte) ([]byte, error) {
	if p.i+1 >= len(p.b) {
		return nil, p.errorf("a string does not end")
	}
	const plain, meaning = `"\/bfnrt`, "\"\\/\b\f\n\r\t"
	if k := bytes.IndexByte([]byte(plain), p.b[p.i+1]); k >= 0 {
		p.i += 2
		return append(s, meaning[k]), nil
	}
	r, ok := p.hex(p.i)
	if !ok {
		return nil, p.errorf("a string has an unknown escape sequence")
	}
	if utf16.IsSurrogate(r) {
		low, _ := p.hex(p.i + 6)
		if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
			return nil, p.errorf("a string has half a surrogate pair")
		}
		p.i += 6
	}
	p.i += 6
	return utf8.AppendRune(s, r), nil
}

// hex reads \uXXXX at i.
func (p *parser) hex(i int) (r rune, ok bool) {
	if i+6 > len(p.b) || p.b[i] != '\\' || p.b[i+1] != 'u' {
		return 0, false
	}
	for _, c := range p.b[i+2 : i+6] {
		r <<= 4
		switch {
		case c >= '0' && c <= '9':
			r |= rune(c - '0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			r |= rune(c|0x20-'a') + 10
		default:
			return 0, false
		}
	}
	return r, true
}
