package database

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"
	"time"
)

// Usernames are made from a template in Vault's language: text/template with the functions below. A template is pure: its
// time is the lease's, and its chance is drawn from the lease's id, so that one lease always gets the same name and two
// never do. It cannot loop, and what it makes is within an allowlist of characters, so that no name needs quoting.

// usernameTemplate is a checked template.
type usernameTemplate struct {
	parsed  *template.Template
	longest int
}

// subject is what a template is about.
type subject struct {
	DisplayName string // of who asks; characters that usernames cannot have are "-"
	RoleName    string
}

// Limits of a template: its text, any string on the way, what it may ask of chance.
const (
	longestTemplate = 1024
	longestValue    = 4096
	longestRandom   = 100
)

// usernames compiles a template; "" is the Driver's own. It is refused if it does not parse, or may make one name for two leases.
func usernames(d Driver, text string) (*usernameTemplate, error) {
	own, longest := d.Usernames()
	if text == "" {
		text = own
	}
	if len(text) > longestTemplate {
		return nil, fmt.Errorf("longer than %d bytes", longestTemplate)
	}
	p, err := template.New("username").Option("missingkey=error").Funcs(functions("", time.Time{})).Parse(text)
	if err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "template: "))
	}
	t := &usernameTemplate{p, longest}
	if p.Tree == nil || p.Tree.Root == nil {
		return nil, errors.New("it is empty")
	}
	if len(p.Templates()) > 1 {
		return nil, errors.New("it must not define templates")
	}
	if err := restricted(p.Tree.Root); err != nil {
		return nil, err
	}
	made := map[string]bool{}
	for i := range 8 {
		name, err := t.name("lease "+strconv.Itoa(i), time.Unix(1700000000, 0), "approle-billing-service", "reporting-readonly")
		if err != nil {
			return nil, err
		}
		made[name] = true
	}
	if len(made) < 8 {
		return nil, errors.New("it makes the same name for different leases: add {{random 20}} or {{uuid}}, and see that nothing truncates it")
	}
	return t, nil
}

// name is the username of a lease.
func (t *usernameTemplate) name(lease string, issued time.Time, display, role string) (string, error) {
	p, err := t.parsed.Clone()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	if err := p.Funcs(functions(lease, issued.UTC())).Execute(&b, subject{clean(display), clean(role)}); err != nil {
		if inner := (template.ExecError{}); errors.As(err, &inner) {
			err = errors.Unwrap(inner)
		}
		return "", err
	}
	name := b.String()
	if len(name) == 0 || len(name) > t.longest {
		return "", fmt.Errorf("it makes a name of %d bytes; from 1 to %d are possible: truncate it", len(name), t.longest)
	}
	if clean(name) != name {
		return "", errors.New("it makes a name with characters other than letters, digits, \"_\", \".\" and \"-\"")
	}
	return name, nil
}

// functions are Vault's, and trim.
func functions(lease string, issued time.Time) template.FuncMap {
	drawn := &stream{seed: []byte(lease)}
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
		"unix_time":        func() string { return strconv.FormatInt(issued.Unix(), 10) },
		"unix_time_millis": func() string { return strconv.FormatInt(issued.UnixMilli(), 10) },
		"timestamp":        func(layout string) (string, error) { return bounded(issued.Format)(layout) },
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

// restricted refuses all of the template language but text, conditions, and pipelines of the functions above on the
// subject's fields and constants: what is left ends, soon.
func restricted(n parse.Node) error {
	var each func(parse.Node) error
	list := func(l *parse.ListNode) error {
		if l == nil {
			return nil
		}
		for _, n := range l.Nodes {
			if err := each(n); err != nil {
				return err
			}
		}
		return nil
	}
	known := functions("", time.Time{})
	each = func(n parse.Node) error {
		switch n := n.(type) {
		case *parse.ListNode:
			return list(n)
		case *parse.TextNode, *parse.StringNode, *parse.NumberNode, *parse.CommentNode, *parse.DotNode:
			return nil
		case *parse.FieldNode:
			if len(n.Ident) == 1 && (n.Ident[0] == "DisplayName" || n.Ident[0] == "RoleName") {
				return nil
			}
			return fmt.Errorf("there is no %s; only .DisplayName and .RoleName", n)
		case *parse.IdentifierNode:
			switch n.Ident {
			case "eq", "ne", "not", "and", "or":
				return nil
			}
			if known[n.Ident] == nil {
				return fmt.Errorf("the function %q is not for usernames", n.Ident)
			}
			return nil
		case *parse.ActionNode:
			return each(n.Pipe)
		case *parse.IfNode:
			return errors.Join(each(n.Pipe), list(n.List), list(n.ElseList))
		case *parse.PipeNode:
			if len(n.Decl) > 0 {
				return errors.New("variables are not for usernames")
			}
			for _, c := range n.Cmds {
				if err := each(c); err != nil {
					return err
				}
			}
			return nil
		case *parse.CommandNode:
			for _, a := range n.Args {
				if err := each(a); err != nil {
					return err
				}
			}
			return nil
		}
		return fmt.Errorf("%q is not for usernames", n)
	}
	return each(n)
}

// clean puts "-" for every character that a username cannot have.
func clean(s string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '-' {
			return c
		}
		return '-'
	}, s)
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
