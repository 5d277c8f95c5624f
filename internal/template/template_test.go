package template_test

import (
	"strings"
	"testing"
	texttemplate "text/template"
	"time"

	"github.com/lessor-dev/lessor/internal/template"
)

var issued = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// A language has its fields, its functions, and escapes what actions put out, within conditions too; text stays.
func TestLanguage(t *testing.T) {
	l := template.Language{
		Name: "tests", Longest: 200, Fields: []string{"Name", "N"}, Functions: texttemplate.FuncMap{"twice": func(s string) string { return s + s }},
		Escape: func(s string) string { return "<" + s + ">" },
	}
	about := struct {
		Name string
		N    int
	}{"a", 1}
	for text, want := range map[string]string{
		`x{{.Name}}y{{.N}}`: "x<a>y<1>",
		`{{.Name | twice | uppercase}}{{if eq .N 1}}-{{.Name}}{{else}}{{.N}}{{end}}`: "<AA>-<a>",
		`{{if ne .N 1}}{{.Name}}{{else}}{{.N}}{{end}}{{printf "%s" "z"}}`:            "<1><z>",
	} {
		c, err := l.Compile(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, err := c.Execute("seed", issued, about); err != nil || got != want {
			t.Errorf("%s: got %q, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		`{{.Other}}`:             "there is no .Other; only .Name, .N",
		`{{_escape .Name}}`:      `function "_escape" not defined`,
		`{{html .Name}}`:         `the function "html" is not for tests`,
		`{{$x := .Name}}`:        "variables are not for tests",
		`{{range .Name}}{{end}}`: "is not for tests",
		strings.Repeat("x", 201): "longer than 200 bytes",
	} {
		if _, err := l.Compile(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// Chance is drawn from the seed, and begins anew with each execution.
func TestChanceIsTheSeeds(t *testing.T) {
	l := template.Language{Name: "tests", Longest: 100}
	c, err := l.Compile(`{{random 10}}{{random 10}}{{unix_time}}`)
	if err != nil {
		t.Fatal(err)
	}
	make := func(seed string) string {
		s, err := c.Execute(seed, issued, nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if a := make("a"); a != make("a") || a == make("b") || a[:10] == a[10:20] || !strings.HasSuffix(a, "1767323045") {
		t.Errorf("made %q", a)
	}
}
