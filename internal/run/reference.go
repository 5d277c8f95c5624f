package run

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/lessor-dev/lessor/client"
)

const scheme = "lessor://"

// Form is what of a secret's field the command is given.
type Form string

// Forms.
const (
	Text    Form = "text"
	File    Form = "file"    // the name of a private file that holds the text
	Escaped Form = "escaped" // the text as a part of a URL (percent-encoded)
)

// Reference names a field of a secret: lessor://PATH[?version=N][&as=FORM][#FIELD]. PATH is as "lessor read" takes it.
type Reference struct {
	Path    string
	Version uint64 // 0: the latest, whatever it is by now
	Field   string // or, with a slash before it, a JSON pointer to what is in one (RFC 6901); empty: the only field
	As      Form
}

// ParseReference reads a reference. Errors do not repeat it: what looks like one may be a secret that was put there by mistake.
func ParseReference(text string) (Reference, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "lessor" || u.User != nil || u.Opaque != "" {
		return Reference{}, errors.New("a reference is written as lessor://PATH#FIELD")
	}
	r := Reference{Path: strings.Trim(u.Host+u.Path, "/"), Field: u.Fragment, As: Text}
	if r.Path == "" || u.Host == "" {
		return Reference{}, errors.New("a reference names a path: lessor://secret/data/app#password, say")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Reference{}, errors.New("what follows ? in a reference is written as name=value&name=value")
	}
	for name, values := range query {
		value := values[len(values)-1]
		switch name {
		case "version":
			if r.Version, err = strconv.ParseUint(value, 10, 64); err != nil || r.Version == 0 {
				return Reference{}, errors.New("the version in a reference is a number, 1 or more")
			}
		case "as":
			if r.As = Form(value); !slices.Contains([]Form{Text, File, Escaped}, r.As) {
				return Reference{}, errors.New("a reference may be given as=text, as=file or as=escaped")
			}
		default:
			return Reference{}, errors.New("a reference takes version and as after its ?")
		}
	}
	return r, nil
}

// secret tells which secrets are one.
func (r Reference) secret() secretKey { return secretKey{r.Path, r.Version} }

type secretKey struct {
	path    string
	version uint64
}

// text is the field that is referred to.
func (r Reference) text(v client.Value) (string, error) {
	name, fields := r.Field, v.Fields()
	if name == "" {
		if len(fields) != 1 {
			return "", fmt.Errorf("%s has the fields %s: say which one (lessor://%s#%s)", r.Path, strings.Join(fields, ", "), r.Path, append(fields, "FIELD")[0])
		}
		name = fields[0]
	}
	if text, ok := v.Field(name); ok {
		return text, nil
	}
	if strings.HasPrefix(name, "/") {
		if text, ok := within(v.Data(), name[1:]); ok {
			return text, nil
		}
	}
	return "", fmt.Errorf("%s has no field %s; it has %s", r.Path, name, strings.Join(fields, ", "))
}

// within is what a JSON pointer leads to, its first slash left out, as text: what is no text is JSON.
func within(at any, pointer string) (text string, ok bool) {
	for step := range strings.SplitSeq(pointer, "/") {
		step = strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
		switch v := at.(type) {
		case map[string]any:
			if at, ok = v[step]; !ok {
				return "", false
			}
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i < 0 || i >= len(v) || strconv.Itoa(i) != step {
				return "", false
			}
			at = v[i]
		default:
			return "", false
		}
	}
	if text, ok := at.(string); ok {
		return text, true
	}
	b, err := json.Marshal(at)
	return string(b), err == nil
}

// Variable is one of the command's environment: text with references in it.
type Variable struct {
	Name  string
	parts []part
}

// part is text, or else a reference.
type part struct {
	text string
	ref  *Reference
}

// ParseVariable reads a variable's value: a reference, or text with references in it, each as ${lessor://…}; $${ is a ${ that is none.
func ParseVariable(name, value string) (Variable, error) {
	v := Variable{Name: name}
	if strings.HasPrefix(value, scheme) {
		r, err := ParseReference(value)
		if err != nil {
			return v, fmt.Errorf("%s: %w", name, err)
		}
		v.parts = []part{{ref: &r}}
		return v, nil
	}
	if len(value) >= len(scheme) && strings.EqualFold(value[:len(scheme)], scheme) {
		return v, fmt.Errorf("%s: a reference begins with %s, in small letters", name, scheme)
	}
	text := ""
	for {
		before, rest, found := strings.Cut(value, "${"+scheme)
		text += before
		if !found {
			break
		}
		if strings.HasSuffix(text, "$") {
			text, value = text+"{"+scheme, rest
			continue
		}
		inner, after, closed := strings.Cut(rest, "}")
		if !closed {
			return v, fmt.Errorf("%s: a reference that begins with ${ has no }", name)
		}
		r, err := ParseReference(scheme + inner)
		if err != nil {
			return v, fmt.Errorf("%s: %w", name, err)
		}
		v.parts = append(v.parts, part{text: text}, part{ref: &r})
		text, value = "", after
	}
	v.parts = append(v.parts, part{text: text})
	return v, nil
}

// References are those in the variable.
func (v Variable) References() []Reference {
	var all []Reference
	for _, p := range v.parts {
		if p.ref != nil {
			all = append(all, *p.ref)
		}
	}
	return all
}

// render puts what references stand for in their place.
func (v Variable) render(of func(Reference) (string, error)) (string, error) {
	var b strings.Builder
	for _, p := range v.parts {
		text := p.text
		if p.ref != nil {
			var err error
			if text, err = of(*p.ref); err != nil {
				return "", fmt.Errorf("%s: %w", v.Name, err)
			}
		}
		b.WriteString(text)
	}
	if strings.ContainsRune(b.String(), 0) {
		return "", fmt.Errorf("%s: a variable cannot hold a zero byte: write as=file", v.Name)
	}
	return b.String(), nil
}
