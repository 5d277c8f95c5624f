package agent_test

import (
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/internal/agent"
)

func TestFunctions(t *testing.T) {
	t.Setenv("COLOUR", "blue")
	for text, want := range map[string]string{
		`{{ "a b" | base64Encode }} {{ "YSBi" | base64Decode }} {{ base64URLEncode "??>" }}`:                        "YSBi a b Pz8-",
		`{{ "A" | toLower }}{{ "a" | toUpper }}{{ trimSpace " x " }}{{ "xay" | trimPrefix "x" | trimSuffix "y" }}`:  "aAxa",
		`{{ "a,b,c" | split "," | join "-" }}`:                                                                      "a-b-c",
		`{{ "a.b" | replaceAll "." "_" }} {{ "a1" | regexMatch "[0-9]" }} {{ "a1" | regexReplaceAll "[0-9]" "x" }}`: "a_b true ax",
		`{{ "a\nb" | indent 2 }}`:                               "  a\n  b",
		`{{ env "COLOUR" }} {{ envOrDefault "NO_SUCH" "red" }}`: "blue red",
		`{{ $l := split "," "a,b" }}{{ if $l | contains "a" }}yes{{ end }} {{ containsAny (split "," "x,b") $l }} {{ containsAll (split "," "x,b") $l }} {{ containsNone (split "," "x") $l }} {{ in $l "b" }}`: "yes true false true true",
		`{{ with parseJSON "{\"a\": [1, 2]}" }}{{ .a | toJSON }} {{ . | toYAML }}{{ end }}`:                                                                                                                     "[1,2] a:\n    - 1\n    - 2",
		`{{ (parseYAML "a: b").a }} {{ add 1 2 }} {{ 7 | subtract 2 }} {{ 7 | divide 2 }} {{ 7 | modulo 2 }} {{ parseInt "3" | multiply 2 }}`:                                                                   "b 3 5 3 1 6",
		`{{ range loop 3 }}{{ . }}{{ end }}{{ range loop 5 7 }}{{ . }}{{ end }}`:                                                                                                                                "01256",
		`{{ sha256Hex "a" }}`: "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
		`{{ define "x" }}<{{ . }}>{{ end }}{{ executeTemplate "x" "y" | toUpper }}`: "<Y>",
		`{{ "<a>" | toJSON }} {{ "<a>" | toUnescapedJSON }}`:                        `"\u003ca\u003e" "<a>"`,
	} {
		if got, err := agent.Render(text); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", text, got, err, want)
		}
	}
	// What fails does not say what it was given.
	for _, text := range []string{
		`{{ parseInt . }}`, `{{ parseBool . }}`, `{{ parseFloat . }}`, `{{ parseJSON . }}`, `{{ parseYAML (print . ": [") }}`, `{{ base64Decode (print . "!") }}`, `{{ range . }}{{ end }}`,
		`{{ regexMatch (print . "(") "x" }}`, `{{ pkiCert . }}`, `{{ plugin . }}`, `{{ mustEnv "NO_SUCH" }}`, `{{ divide 0 1 }}`, `{{ loop 1000000000 }}`, `{{ indent 100000 . }}`, `{{ secret "a" . }}`,
		`{{ file "/no/such/file" }}`, `{{ add . 1 }}`, `{{ join "," . }}`, `{{ .field }}`, `{{ index . "x" }}`, `{{ slice . 1 100 }}`, `{{ len 1 }}{{ . }}`, `{{ call . }}`, `{{ eq . 1 }}`,
	} {
		got, err := agent.Render(`{{ with "sesame" }}` + text + `{{ end }}`)
		if err == nil || strings.Contains(err.Error(), "sesame") {
			t.Errorf("%s is %q, %v", text, got, err)
		}
	}
}
