// Package template compiles the templates that administrators write in Vault's language: text/template with the functions below, and
// nothing that loops, so that each ends soon. A template is pure: its time is given, and its chance is drawn from a seed, such as a
// lease's id, so that for one lease it always makes the same.
package template

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"
	"time"
)

// Limits of a template: any string on the way, what it may ask of chance.
const (
	longestValue  = 4096
	longestRandom = 100
)

// Language is what templates of one kind can say.
type Language struct {
	Name      string              // of the kind, for errors: "usernames"
	Longest   int                 // text of a template, in bytes
	Fields    []string            // of the subject
	Functions template.FuncMap    // besides those that all have
	Escape    func(string) string // what actions put out goes through it; nil: it stays as it is
}

// Template is a checked template. Safe for concurrent use.
type Template struct{ parsed *template.Template }

// escape is what Language.Escape is called; no template can name it.
const escape = "_escape"

// known are the functions that all templates have.
var known = functions("", time.Time{})

// Compile checks a template's text. Errors are for whoever wrote it.
func (l *Language) Compile(text string) (*Template, error) {
	if len(text) > l.Longest {
		return nil, fmt.Errorf("longer than %d bytes", l.Longest)
	}
	p, err := template.New("template").Option("missingkey=error").Funcs(known).Funcs(l.Functions).Parse(text)
	if err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "template: "))
	}
	if p.Tree == nil || p.Tree.Root == nil {
		return nil, errors.New("it is empty")
	}
	if len(p.Templates()) > 1 {
		return nil, errors.New("it must not define templates")
	}
	if err := l.restricted(p.Tree.Root); err != nil {
		return nil, err
	}
	if l.Escape != nil {
		p.Funcs(template.FuncMap{escape: func(v any) string { return l.Escape(fmt.Sprint(v)) }})
		escaped(p.Tree.Root)
	}
	return &Template{p}, nil
}

// Execute makes what the template says of a subject. The same seed and time make the same.
func (t *Template) Execute(seed string, at time.Time, subject any) (string, error) {
	p, err := t.parsed.Clone()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	if err := p.Funcs(functions(seed, at.UTC())).Execute(&b, subject); err != nil {
		if inner := (template.ExecError{}); errors.As(err, &inner) {
			err = errors.Unwrap(inner)
		}
		return "", err
	}
	return b.String(), nil
}

// functions are Vault's, and trim.
func functions(seed string, at time.Time) template.FuncMap {
	drawn := &stream{seed: []byte(seed)}
	return template.FuncMap{
		"random": func(n int) (string, error) {
			if n < 1 || n > longestRandom {
				return "", fmt.Errorf("random takes from 1 to %d", longestRandom)
			}
			return drawn.text(n), nil
		},
		"uuid": drawn.uuid,
		"truncate": func(n int, s string) (string, error) {
			if n <= 0 {
				return "", errors.New("truncate takes a length above 0")
			}
			return s[:min(n, len(s))], nil
		},
		"truncate_sha256": func(n int, s string) (string, error) {
			if n <= 8 {
				return "", errors.New("truncate_sha256 takes a length above 8")
			}
			if len(s) <= n {
				return s, nil
			}
			h := sha256.Sum256([]byte(s[n-8:]))
			return s[:n-8] + hex.EncodeToString(h[:])[:8], nil
		},
		"uppercase": bounded(strings.ToUpper),
		"lowercase": bounded(strings.ToLower),
		"replace": func(find, with, s string) (string, error) {
			return bounded(func(s string) string { return strings.ReplaceAll(s, find, with) })(s)
		},
		"sha256": func(s string) string { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]) },
		"base64": bounded(func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }),
		// trim takes separators off both ends: a name that was truncated in the middle of one.
		"trim":             func(s string) string { return strings.Trim(s, "-_.") },
		"unix_time":        func() string { return strconv.FormatInt(at.Unix(), 10) },
		"unix_time_millis": func() string { return strconv.FormatInt(at.UnixMilli(), 10) },
		"timestamp":        func(layout string) (string, error) { return bounded(at.Format)(layout) },
		"printf": func(format string, args ...any) (string, error) {
			if strings.ContainsAny(strings.ReplaceAll(format, "%%", ""), "*123456789") && widths(format) {
				return "", errors.New("printf takes no widths")
			}
			return bounded(func(f string) string { return fmt.Sprintf(f, args...) })(format)
		},
	}
}

// bounded keeps f's results to a length that no chain of calls can make large.
func bounded(f func(string) string) func(string) (string, error) {
	return func(s string) (string, error) {
		if out := f(s); len(s) <= longestValue && len(out) <= longestValue {
			return out, nil
		}
		return "", fmt.Errorf("a value grows beyond %d bytes", longestValue)
	}
}

// widths reports whether a format has a verb with a width or an argument index.
func widths(format string) bool {
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			continue
		}
		if i++; i < len(format) && strings.IndexByte("+-# 0*.[123456789", format[i]) >= 0 {
			return true
		}
	}
	return false
}

// restricted refuses all of the template language but text, conditions, and pipelines of known functions on the subject's fields
// and constants: what is left ends, soon.
func (l *Language) restricted(n parse.Node) error {
	switch n := n.(type) {
	case *parse.ListNode:
		if n == nil {
			return nil
		}
		for _, n := range n.Nodes {
			if err := l.restricted(n); err != nil {
				return err
			}
		}
		return nil
	case *parse.TextNode, *parse.StringNode, *parse.NumberNode, *parse.CommentNode, *parse.DotNode:
		return nil
	case *parse.FieldNode:
		if len(n.Ident) == 1 && slices.Contains(l.Fields, n.Ident[0]) {
			return nil
		}
		return fmt.Errorf("there is no %s; only .%s", n, strings.Join(l.Fields, ", ."))
	case *parse.IdentifierNode:
		switch n.Ident {
		case "eq", "ne", "not", "and", "or":
			return nil
		}
		if known[n.Ident] == nil && l.Functions[n.Ident] == nil {
			return fmt.Errorf("the function %q is not for %s", n.Ident, l.Name)
		}
		return nil
	case *parse.ActionNode:
		return l.restricted(n.Pipe)
	case *parse.IfNode:
		return errors.Join(l.restricted(n.Pipe), l.restricted(n.List), l.restricted(n.ElseList))
	case *parse.PipeNode:
		if len(n.Decl) > 0 {
			return fmt.Errorf("variables are not for %s", l.Name)
		}
		for _, c := range n.Cmds {
			if err := l.restricted(c); err != nil {
				return err
			}
		}
		return nil
	case *parse.CommandNode:
		for _, a := range n.Args {
			if err := l.restricted(a); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("%q is not for %s", n, l.Name)
}

// escaped has what each action of a list puts out go through the function escape.
func escaped(list *parse.ListNode) {
	if list == nil {
		return
	}
	for _, n := range list.Nodes {
		switch n := n.(type) {
		case *parse.ActionNode:
			name := parse.NewIdentifier(escape).SetPos(n.Pos)
			n.Pipe.Cmds = append(n.Pipe.Cmds, &parse.CommandNode{NodeType: parse.NodeCommand, Pos: n.Pos, Args: []parse.Node{name}})
		case *parse.IfNode:
			escaped(n.List)
			escaped(n.ElseList)
		}
	}
}

// stream is chance that follows from a lease's id: nobody needs to guess it, since names are no secrets, but no two leases share it.
type stream struct {
	seed    []byte
	counter uint64
	rest    []byte
}

func (s *stream) next() byte {
	if len(s.rest) == 0 {
		h := hmac.New(sha256.New, []byte("lessor username"))
		h.Write(binary.BigEndian.AppendUint64(nil, s.counter))
		h.Write(s.seed)
		s.counter++
		s.rest = h.Sum(nil)
	}
	c := s.rest[0]
	s.rest = s.rest[1:]
	return c
}

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

func (s *stream) text(n int) string {
	b := make([]byte, 0, n)
	for len(b) < n {
		if c := int(s.next()); c < 4*len(base62) {
			b = append(b, base62[c%len(base62)])
		}
	}
	return string(b)
}

func (s *stream) uuid() string {
	var b [16]byte
	for i := range b {
		b[i] = s.next()
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
