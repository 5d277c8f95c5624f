package language_test

import (
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/internal/agent/language"
)

// render is what a template makes.
func render(text string) (string, error) {
	t, err := language.Parse("test", text, language.Options{})
	if err != nil {
		return "", err
	}
	made, err := t.Execute()
	return string(made), err
}

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
		`{{ "A b" | sprig_lower }}{{ "a" | sprig_upper }} {{ sprig_trimSuffix ".x" "a.x" }} {{ "a.b" | sprig_replace "." "_" }} {{ sprig_trunc 2 "abc" }}{{ sprig_trunc -2 "abc" }} {{ sprig_substr 1 2 "abc" }}`:                                                             "a bA a a_b abbc b",
		`{{ sprig_quote "a\"b" }} {{ sprig_squote "a" 1 }} {{ "a\nb" | sprig_nindent 2 }} {{ sprig_cat "a" 1 nil "b" }} {{ sprig_repeat 2 "ab" }}`:                                                                                                                            "\"a\\\"b\" 'a' '1' \n  a\n  b a 1 b abab",
		`{{ "" | sprig_default "x" }} {{ "y" | sprig_default "x" }} {{ sprig_coalesce "" 0 "z" }} {{ sprig_ternary "yes" "no" true }} {{ sprig_empty (sprig_list) }}`:                                                                                                         "x y z yes true",
		`{{ $l := sprig_list "b" "a" "b" }}{{ sprig_first $l }}{{ sprig_last $l }} {{ sprig_uniq $l }} {{ sprig_without $l "a" }} {{ sprig_has "a" $l }} {{ $l | sprig_sortAlpha | sprig_join "," }} {{ sprig_rest $l }}{{ sprig_initial $l }}{{ sprig_first (sprig_list) }}`: "bb [b a] [b b] true a,b,b [a b][b a]<no value>",
		`{{ $d := sprig_dict "a" 1 "b" 2 }}{{ sprig_get $d "a" }} {{ sprig_hasKey $d "c" }} {{ sprig_keys $d }} {{ sprig_values $d }} {{ sprig_pick $d "a" | sprig_toJson }}{{ sprig_omit $d "a" | sprig_toJson }}`:                                                           `1 false [a b] [1 2] {"a":1}{"b":2}`,
		`{{ "a" | sprig_b64enc | sprig_b64dec }} {{ sprig_sha256sum "a" }} {{ (sprig_fromJson "{\"a\": [1]}").a }} {{ sprig_add 1 "2" 3 }} {{ sprig_sub 5 2 }} {{ sprig_div 7 2 }} {{ sprig_mod 7 2 }} {{ sprig_max 1 3 2 }} {{ sprig_int "08" }}`:                            "a ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb [1] 6 3 3 1 3 8",
		`{{ sprig_base "/a/b.c" }} {{ sprig_dir "/a/b.c" }} {{ sprig_ext "b.c" }} {{ sprig_regexReplaceAll "a(.)" "ab" "$1" }} {{ sprig_regexFind "[0-9]+" "a12" }} {{ sprig_regexSplit "," "a,b" -1 }} {{ range sprig_until 2 }}{{ . }}{{ end }} {{ sprig_env "COLOUR" }}`:   "b.c /a .c b 12 [a b] 01 blue",
	} {
		if got, err := render(text); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", text, got, err, want)
		}
	}
	// What fails does not say what it was given.
	for _, text := range []string{
		`{{ parseInt . }}`, `{{ parseBool . }}`, `{{ parseFloat . }}`, `{{ parseJSON . }}`, `{{ parseYAML (print . ": [") }}`, `{{ base64Decode (print . "!") }}`, `{{ range . }}{{ end }}`,
		`{{ regexMatch (print . "(") "x" }}`, `{{ pkiCert . }}`, `{{ plugin . }}`, `{{ mustEnv "NO_SUCH" }}`, `{{ divide 0 1 }}`, `{{ loop 1000000000 }}`, `{{ indent 100000 . }}`,
		`{{ file "/no/such/file" }}`, `{{ add . 1 }}`, `{{ join "," . }}`, `{{ .field }}`, `{{ index . "x" }}`, `{{ slice . 1 100 }}`, `{{ len 1 }}{{ . }}`, `{{ call . }}`, `{{ eq . 1 }}`,
		`{{ sprig_fail . }}`, `{{ sprig_b64dec (print . "!") }}`, `{{ sprig_fromJson . }}`, `{{ sprig_add . 1 }}`, `{{ sprig_regexFind (print . "(") "x" }}`, `{{ sprig_join "," . }}`, `{{ sprig_first . }}`,
		`{{ sprig_get . "a" }}`, `{{ sprig_repeat 100000000 . }}`, `{{ sprig_int . }}`, `{{ sprig_nindent -1 . }}`, `{{ sprig_uuidv4 }}`,
		`{{ eq (sprig_list .) (sprig_list .) }}`, `{{ eq . (sprig_list .) }}`, `{{ range $i, $s := sprig_b64enc . | len }}{{ end }}`,
		`{{ loop -9223372036854775808 9223372036854775807 }}`,
	} {
		got, err := render(`{{ with "sesame" }}` + text + `{{ end }}`)
		if err == nil || strings.Contains(err.Error(), "sesame") {
			t.Errorf("%s is %q, %v", text, got, err)
		}
	}
}

// A number is as secret as a text is.
func TestNumbersAreNotRepeated(t *testing.T) {
	for _, text := range []string{`{{ range $i, $n := 271828 }}{{ end }}`, `{{ range $n := 2.71828 }}{{ end }}`, `{{ eq (sprig_list 271828) (sprig_list 271828) }}`} {
		if got, err := render(text); err == nil || strings.Contains(strings.SplitN(err.Error(), ">: ", 2)[1], "71828") {
			t.Errorf("%s is %q, %v", text, got, err)
		}
	}
}

// A template without end fails, as others do: it neither uses up the stack, which would end the agent, nor memory.
func TestTemplatesWithoutEnd(t *testing.T) {
	for _, text := range []string{
		`{{ define "x" }}{{ executeTemplate "x" }}{{ end }}{{ executeTemplate "x" }}`,
		`{{ define "x" }}{{ executeTemplate "y" . }}{{ end }}{{ define "y" }}{{ executeTemplate "x" . }}{{ end }}{{ executeTemplate "x" . }}`,
	} {
		if _, err := render(text); err == nil || !strings.Contains(err.Error(), "deep") {
			t.Errorf("%s: %.200v", text, err)
		}
	}
	if got, err := render(`{{ define "x" }}.{{ end }}{{ range loop 1000 }}{{ executeTemplate "x" }}{{ end }}`); err != nil || len(got) != 1000 {
		t.Errorf("one after the other: %d bytes, %v", len(got), err)
	}
}

// A function of Sprig's that is not here is refused with where to look.
func TestSprigsOthers(t *testing.T) {
	if _, err := render(`{{ sprig_genPrivateKey "rsa" }}`); err == nil || !strings.Contains(err.Error(), "the documents list") {
		t.Errorf("%v", err)
	}
}
