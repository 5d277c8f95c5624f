package run

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestParseReference(t *testing.T) {
	for text, want := range map[string]Reference{
		"lessor://secret/data/app#password":                   {Path: "secret/data/app", Field: "password", As: Text},
		"lessor://secret/data/app":                            {Path: "secret/data/app", As: Text},
		"lessor://secret/data/app/?version=3&as=file#api_key": {Path: "secret/data/app", Version: 3, Field: "api_key", As: File},
		"lessor://database/creds/app?as=escaped#password":     {Path: "database/creds/app", Field: "password", As: Escaped},
		"lessor://secret/data/a%20b#c%23d":                    {Path: "secret/data/a b", Field: "c#d", As: Text},
	} {
		if got, err := ParseReference(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"lessor://", "lessor:///app", "lessor:secret", "vault://secret/app", "lessor://sesame@secret/app", "lessor://secret/app?version=0", "lessor://secret/app?version=sesame",
		"lessor://secret/app?as=sesame", "lessor://secret/app?sesame=1", "lessor://secret/app?version=1;as=file", "lessor://sesame:x/app", "lessor://secret/app\x7f",
	} {
		if got, err := ParseReference(text); err == nil || strings.Contains(err.Error(), "sesame") {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}

func TestVariables(t *testing.T) {
	of := func(r Reference) (string, error) { return "<" + r.Path + " " + r.Field + ">", nil }
	for value, want := range map[string]string{
		"":                    "",
		"plain":               "plain",
		"lessor://a/b#c":      "<a/b c>",
		"${lessor://a/b#c}":   "<a/b c>",
		"x${lessor://a/b#c}y": "x<a/b c>y",
		"postgres://${lessor://a/b#u}:${lessor://a/b?as=escaped#p}@db/app": "postgres://<a/b u>:<a/b p>@db/app",
		"$${lessor://a/b#c} ${HOME}":                                       "${lessor://a/b#c} ${HOME}",
		"see lessor://a/b#c":                                               "see lessor://a/b#c",
	} {
		v, err := ParseVariable("V", value)
		if err != nil {
			t.Errorf("%s: %v", value, err)
			continue
		}
		if got, err := v.render(of); err != nil || got != want {
			t.Errorf("%s is %s, %v, want %s", value, got, err, want)
		}
	}
	for _, value := range []string{"lessor://", "x${lessor://a/b#c", "${lessor://a/b?as=x}", "Lessor://a/b#c"} {
		if _, err := ParseVariable("V", value); err == nil || !strings.HasPrefix(err.Error(), "V: ") {
			t.Errorf("%s: %v", value, err)
		}
	}
	v, _ := ParseVariable("V", "lessor://a/b#c")
	if _, err := v.render(func(Reference) (string, error) { return "a\x00b", nil }); err == nil {
		t.Error("a zero byte")
	}
}

// A pointer leads to what is in a field.
func TestWithin(t *testing.T) {
	data := map[string]any{"db": map[string]any{"password": "sesame", "ports": []any{json.Number("5432"), json.Number("5433")}, "a/b": "slash", "m~n": "tilde"}, "": "empty"}
	for pointer, want := range map[string]string{
		"db/password": "sesame", "db/ports/1": "5433", "db/ports": "[5432,5433]", "db/a~1b": "slash", "db/m~0n": "tilde", "": "empty",
	} {
		if got, ok := within(data, pointer); !ok || got != want {
			t.Errorf("%s: %q, %v", pointer, got, ok)
		}
	}
	for _, pointer := range []string{"db/user", "db/password/x", "db/ports/2", "db/ports/-1", "db/ports/01", "db/ports/x", "db/"} {
		if got, ok := within(data, pointer); ok {
			t.Errorf("%s: %q", pointer, got)
		}
	}
}

func TestEnvironment(t *testing.T) {
	e := &Environment{}
	if err := e.Load("# what it is\n\nA=1\nexport B = 'two words' \nC=\"\"\nD=a=b # c\nE=lessor://a/b#c\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := e.Inherit([]string{"A=2", "LESSOR_TOKEN=sesame", "VAULT_TOKEN=sesame", "=C:=x", "nonsense"}); err != nil {
		t.Fatal(err)
	}
	if err := e.Assign("C=3"); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range e.variables {
		text, err := v.render(func(r Reference) (string, error) { return r.Field, nil })
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, v.Name+"="+text)
	}
	if all := strings.Join(got, "|"); all != "B=two words|D=a=b # c|E=c|=C:=x|A=2|C=3" && all != "B=two words|D=a=b # c|E=c|A=2|=C:=x|C=3" && all != "B=two words|D=a=b # c|E=c|A=2|C=3" {
		t.Errorf("%s", all)
	}
	for _, wrong := range []string{"A", "=sesame", "1A=sesame", "A=1\nA-B=sesame", "A=lessor://"} {
		if err := new(Environment).Load(wrong); err == nil || strings.Contains(err.Error(), "sesame") || !strings.HasPrefix(err.Error(), "line ") {
			t.Errorf("%q: %v", wrong, err)
		}
	}
}

func FuzzVariable(f *testing.F) {
	for _, s := range []string{"a", "lessor://a/b#c", "${lessor://a/b#c}", "$${lessor://", "${lessor://a/b?as=file&version=2#c}x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, err := ParseVariable("V", text)
		if err != nil {
			return
		}
		for _, r := range v.References() {
			if r.Path == "" {
				t.Errorf("%q refers to nothing", text)
			}
		}
		if got, err := v.render(func(Reference) (string, error) { return "", nil }); err == nil && !strings.Contains(text, "lessor://") && got != text {
			t.Errorf("%q became %q", text, got)
		}
	})
}
