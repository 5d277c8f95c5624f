// Package language is what the agent's templates are written in: text/template with the functions of Vault Agent's templates, and those of Sprig's that templates of
// secrets are written with. A template ends, and fails without saying what it was given: any of it may be a secret.
package language

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"text/template"
)

// Options of a template.
type Options struct {
	Left, Right       string           // delimiters of actions; empty: {{ and }}
	ErrorOnMissingKey bool             // of an object, rather than "<no value>"
	Functions         template.FuncMap // that only the caller has
}

// Template is one that was parsed. It is not safe for concurrent use.
type Template struct {
	parsed *template.Template
	depth  int // of executeTemplate within executeTemplate
}

// Parse reads a template's text. name is what its errors call it.
func Parse(name, text string, o Options) (*Template, error) {
	t := &Template{parsed: template.New(name).Delims(o.Left, o.Right).Option("missingkey=zero")}
	if o.ErrorOnMissingKey {
		t.parsed.Option("missingkey=error")
	}
	t.parsed.Funcs(functions()).Funcs(sprig()).Funcs(template.FuncMap{"executeTemplate": t.execute}).Funcs(o.Functions)
	_, err := t.parsed.Parse(text)
	return t, foreign(err)
}

// Execute makes the text that the template stands for. With an error there is as much of it as there was until then.
func (t *Template) Execute() ([]byte, error) {
	var text bytes.Buffer
	err := discreet(t.parsed.Execute(&text, nil))
	return text.Bytes(), err
}

// mostDepth is how often executeTemplate may lead to itself: a stack that is used up ends the process, whatever its other templates do.
const mostDepth = 100

// execute is executeTemplate: a template that is defined within this one.
func (t *Template) execute(name string, data ...any) (string, error) {
	var with any
	if len(data) > 0 {
		with = data[0]
	}
	if t.depth++; t.depth > mostDepth {
		return "", fmt.Errorf("templates execute each other more than %d deep", mostDepth)
	}
	var text strings.Builder
	err := t.parsed.ExecuteTemplate(&text, name, with)
	t.depth--
	return text.String(), discreet(err)
}

// discreet takes out of a template's error what may be a secret: the value that could not be used.
func discreet(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	for _, revealing := range []string{"range can't iterate over ", "can't use ", "non-comparable types ", "non-comparable type "} {
		if before, _, found := strings.Cut(text, revealing); found {
			return errors.New(before + revealing + "what is there")
		}
	}
	return err
}

// foreign puts into the error of a template that cannot be read what is to be known of a function of Sprig's that is not here.
func foreign(err error) error {
	if err != nil && strings.Contains(err.Error(), `function "sprig_`) {
		return fmt.Errorf("%w here: the documents list which of Sprig's functions are, and what they are for", err)
	}
	return err
}
