package identity

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestUnitedAliases(t *testing.T) {
	someone := func(id string, aliases ...string) *Entity {
		e := &Entity{ID: id}
		for _, a := range aliases {
			name, mount, _ := strings.Cut(a, "@")
			e.Aliases = append(e.Aliases, Alias{ID: name, Name: name, Mount: mount})
		}
		return e
	}
	from := func(es ...*Entity) []*Entity { return es }
	for _, c := range []struct {
		name string
		to   *Entity
		from []*Entity
		keep []string
		want string // aliases with where they came from, or the error
	}{
		{"apart", someone("t", "a@x"), from(someone("f", "b@y"), someone("g", "c@z")), nil, "a@x b@y<f c@z<g"},
		{"nothing to bring", someone("t", "a@x"), from(someone("f")), nil, "a@x"},
		{"a clash", someone("t", "a@x"), from(someone("f", "b@x")), nil, "error: 2 errors occurred:\n\t* toEntity and at least one fromEntity have aliases with the same mount accessor"},
		{"keep theirs", someone("t", "a@x"), from(someone("f", "b@x", "c@y")), []string{"b"}, "b@x<f c@y<f"},
		{"keep ours", someone("t", "a@x"), from(someone("f", "b@x", "c@y")), []string{"a"}, "a@x c@y<f"},
		{"keep neither", someone("t", "a@x"), from(someone("f", "b@x")), []string{"c"}, "error: conflicting mount accessors"},
		{"two bring one mount", someone("t"), from(someone("f", "b@x"), someone("g", "c@x")), nil, "error: mount accessor x found in multiple fromEntities"},
	} {
		before := slices.Clone(c.to.Aliases)
		all, err := united(c.to, c.from, c.keep)
		var got []string
		for _, a := range all {
			s := a.Name + "@" + a.Mount
			if len(a.Merged) > 0 {
				s += "<" + strings.Join(a.Merged, ",")
			}
			got = append(got, s)
		}
		if err != nil {
			got = []string{"error: " + err.Error()}
		}
		if s := strings.Join(got, " "); s != c.want && (err == nil || !strings.HasPrefix(s, c.want)) {
			t.Errorf("%s: %s, want %s", c.name, s, c.want)
		}
		if fmt.Sprint(before) != fmt.Sprint(c.to.Aliases) {
			t.Errorf("%s: the entity was changed", c.name)
		}
	}
}

func TestChanged(t *testing.T) {
	for _, c := range []struct{ before, after, want string }{
		{"", "", ""}, {"a b", "a b", ""}, {"", "b a", "+a +b"}, {"a b", "", "-a -b"}, {"a b c", "b d", "-a -c +d"},
	} {
		var got []string
		for id, joins := range changed(strings.Fields(c.before), strings.Fields(c.after)) {
			sign := "-"
			if joins {
				sign = "+"
			}
			got = append(got, sign+id)
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%q → %q: %s, want %s", c.before, c.after, s, c.want)
		}
	}
}
