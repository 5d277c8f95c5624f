package session

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestNormalize(t *testing.T) {
	for in, want := range map[string]string{
		"-format=json":                      "--format=json",
		"-format json":                      "--format json",
		"--format=json":                     "--format=json",
		"server -dev -dev-root-token-id=X":  "server --dev --dev-root-token-id=X",
		"-version":                          "--version",
		"-v -h -f":                          "-v -h -f",
		"write -f auth/approle/role/r":      "write -f auth/approle/role/r",
		"-ns=x -tls-skip-verify":            "--ns=x --tls-skip-verify",
		"kv put s/a k=-":                    "kv put s/a k=-",
		"login -":                           "login -",
		"-5 -1h -=x -":                      "-5 -1h -=x -",
		"write a k=-format=json":            "write a k=-format=json",
		"write a -- -format=json -x":        "write a -- -format=json -x",
		"-policy=a=b -metadata=team=my-own": "--policy=a=b --metadata=team=my-own",
		"-a.b -a/b":                         "-a.b -a/b",
		"-x=1":                              "-x=1",
	} {
		args := strings.Fields(in)
		if got := strings.Join(Normalize(args), " "); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
		if got := strings.Join(args, " "); got != strings.Join(strings.Fields(in), " ") {
			t.Errorf("%s: the arguments themselves were changed: %s", in, got)
		}
	}
}

func FuzzNormalize(f *testing.F) {
	f.Add("-format=json", "k=-")
	f.Add("--", "-x")
	f.Add("-é", "-ab-")
	f.Fuzz(func(t *testing.T, a, b string) {
		once := Normalize([]string{a, b})
		if len(once) != 2 {
			t.Fatalf("%q", once)
		}
		if twice := Normalize(once); !reflect.DeepEqual(once, twice) {
			t.Errorf("%q became %q, then %q", []string{a, b}, once, twice)
		}
	})
}

func TestData(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pem, object, list := file("pem", "line\nline\n"), file("object", `{"n":1.50,"l":[1]}`), file("list", `[1]`)
	for name, try := range map[string]struct {
		args  string
		stdin string
		want  string // JSON; empty: an error
	}{
		"none":              {"", "", `{}`},
		"values":            {"a=1 b=x=y c=", "", `{"a":"1","b":"x=y","c":""}`},
		"a list":            {"a=1 a=2 a=3", "", `{"a":["1","2","3"]}`},
		"file":              {"a=@" + pem, "", `{"a":"line\nline\n"}`},
		"stdin":             {"a=-", "sesame\n", `{"a":"sesame\n"}`},
		"not a file":        {`a=\@handle`, "", `{"a":"@handle"}`},
		"object":            {"@" + object, "", `{"l":[1],"n":1.50}`},
		"object on stdin":   {"- b=2", `{"a":{"b":null}}`, `{"a":{"b":null},"b":"2"}`},
		"dash inside":       {"a=-x", "", `{"a":"-x"}`},
		"stdin twice":       {"a=- b=-", "x", ""},
		"both":              {"- b=-", "{}", ""},
		"no equals sign":    {"sesame", "", ""},
		"no key":            {"=sesame", "", ""},
		"no such file":      {"a=@/nowhere/sesame.txt", "", ""},
		"no such object":    {"@/nowhere", "", ""},
		"a list as object":  {"@" + list, "", ""},
		"text on stdin":     {"-", "sesame", ""},
		"null on stdin":     {"-", "null", ""},
		"two on stdin":      {"-", "{}{}", ""},
		"nothing on stdin":  {"-", "", ""},
		"empty value of it": {"a=-", "", `{"a":""}`},
	} {
		in := input{Stdin: strings.NewReader(try.stdin)}
		data, err := in.Data(strings.Fields(try.args))
		if err != nil {
			if try.want != "" {
				t.Errorf("%s: %v", name, err)
			} else if strings.Contains(err.Error(), "sesame") && !strings.Contains(err.Error(), "sesame.txt") {
				t.Errorf("%s: the error tells the value: %v", name, err)
			}
			continue
		}
		if got, _ := json.Marshal(data); string(got) != try.want {
			t.Errorf("%s: %s, want %s", name, got, try.want)
		}
	}
}

func TestSecretArgument(t *testing.T) {
	for _, try := range []struct{ arg, stdin, want string }{
		{"hvs.x", "", "hvs.x"}, {"-", " hvs.y\n", "hvs.y"}, {"-", "\n", ""}, {"", "", ""},
	} {
		in := input{Stdin: strings.NewReader(try.stdin)}
		token, err := in.SecretArgument(try.arg)
		if token.Reveal() != try.want || (err == nil) != (try.want != "") {
			t.Errorf("%q: %q, %v", try.arg, token.Reveal(), err)
		}
	}
}

func TestFlagValues(t *testing.T) {
	p := Pairs{}
	for text, good := range map[string]bool{"a=1,2=3": true, "b=": true, "c": false, "=d": false} {
		if err := p.Set(text); (err == nil) != good {
			t.Errorf("%s: %v", text, err)
		}
	}
	if !reflect.DeepEqual(p, Pairs{"a": "1,2=3", "b": ""}) {
		t.Errorf("%v", p)
	}
	var d Duration
	if err := d.Set("5d"); err != nil || d != "5d" {
		t.Errorf("%v, %v", d, err)
	}
	if err := d.Set("soon"); err == nil || d != "5d" {
		t.Errorf("%v, %v", d, err)
	}
}

// FuzzData: arguments are data or an error, and the error does not repeat a value.
func FuzzData(f *testing.F) {
	f.Add("key=value", "key=again", "{}")
	f.Add("-", "a=-", `{"a":1}`)
	f.Add("=x", "\\@x", "null")
	f.Fuzz(func(t *testing.T, a, b, stdin string) {
		for _, arg := range []string{a, b} {
			if strings.Contains(arg, "@") {
				return // files are for TestData
			}
		}
		i := input{Stdin: strings.NewReader(stdin)}
		data, err := i.Data([]string{a, b})
		if (data == nil) == (err == nil) {
			t.Fatalf("%q %q: %v, %v", a, b, data, err)
		}
		if key, value, ok := strings.Cut(a, "="); ok && key != "" && err == nil && value != "-" && a != "-" && data[key] == nil {
			t.Fatalf("%q %q: no %s in %v", a, b, key, data)
		}
		if _, value, ok := strings.Cut(a, "="); ok && err != nil && len(value) > 40 && strings.Contains(err.Error(), value) {
			t.Fatalf("%q %q: %v", a, b, err)
		}
	})
}
