package kv_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/engine/kv"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// secret is the model: every version ever written, and what became of it.
type secret struct {
	values  []int // of version i+1
	deleted map[int]bool
	gone    map[int]bool // destroyed
	pruned  map[int]bool // no longer kept
	limit   int          // max_versions of the secret
}

// TestModel holds version 2 to a model that keeps everything and thinks nothing.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := enginetest.New(t, kv.V2{}, nil)
		paths := []string{"a", "a/b", "a/c/d", "b"}
		model := map[string]*secret{}
		limit := 0 // of the mount
		next := 0

		body := func(n int) string { return fmt.Sprintf(`{"data":{"n":%d}}`, n) }
		path := rapid.SampledFrom(paths)
		number := rapid.IntRange(1, 14)
		do := func(verb lessor.Verb, path, body string) *engine.Reply {
			r, err := b.Try(verb, path, body)
			if err != nil {
				rt.Fatalf("%s %s %s: %v", verb, path, body, err)
			}
			return r
		}
		written := func(p string, n int) {
			s := model[p]
			if s == nil {
				s = &secret{deleted: map[int]bool{}, gone: map[int]bool{}, pruned: map[int]bool{}}
				model[p] = s
			}
			s.values = append(s.values, n)
			keep := max(limit, s.limit)
			if keep == 0 {
				keep = 10
			}
			for v := 1; v <= len(s.values)-keep; v++ {
				s.pruned[v] = true
			}
		}
		// pick some versions, and apply to those that the secret has.
		versions := func(rt *rapid.T, verb, p string, apply func(s *secret, v int)) {
			vs := rapid.SliceOfN(number, 1, 3).Draw(rt, "versions")
			do(put, verb+"/"+p, `{"versions":`+strings.ReplaceAll(fmt.Sprint(vs), " ", ",")+`}`)
			if s := model[p]; s != nil {
				for _, v := range vs {
					if v <= len(s.values) && !s.gone[v] && !s.pruned[v] {
						apply(s, v)
					}
				}
			}
		}

		rt.Repeat(map[string]func(*rapid.T){
			"write": func(rt *rapid.T) {
				p := path.Draw(rt, "path")
				next++
				r := do(put, "data/"+p, body(next))
				written(p, next)
				if r.Data["version"] != uint64(len(model[p].values)) {
					rt.Fatalf("version %v, want %d", r.Data["version"], len(model[p].values))
				}
			},
			"cas": func(rt *rapid.T) {
				p, cas := path.Draw(rt, "path"), rapid.IntRange(0, 4).Draw(rt, "cas")
				next++
				_, err := b.Try(put, "data/"+p, fmt.Sprintf(`{"data":{"n":%d},"options":{"cas":%d}}`, next, cas))
				current := 0
				if model[p] != nil {
					current = len(model[p].values)
				}
				if (err == nil) != (cas == current) {
					rt.Fatalf("cas %d of version %d: %v", cas, current, err)
				}
				if err == nil {
					written(p, next)
				}
			},
			"patch": func(rt *rapid.T) {
				p := path.Draw(rt, "path")
				next++
				r, err := b.Try(edit, "data/"+p, body(next))
				s := model[p]
				switch v := versionsOf(s); {
				case v == 0:
					if api.KindOf(err) != api.NotFound {
						rt.Fatalf("a patch of nothing: %v", err)
					}
				case s.gone[v] || s.deleted[v]:
					if err != nil || r.Status != 404 {
						rt.Fatalf("a patch of what is deleted: %v", err)
					}
				case err != nil:
					rt.Fatal(err)
				default:
					written(p, next)
				}
			},
			"delete": func(rt *rapid.T) {
				versions(rt, "delete", path.Draw(rt, "path"), func(s *secret, v int) { s.deleted[v] = true })
			},
			"undelete": func(rt *rapid.T) {
				versions(rt, "undelete", path.Draw(rt, "path"), func(s *secret, v int) { delete(s.deleted, v) })
			},
			"destroy": func(rt *rapid.T) {
				versions(rt, "destroy", path.Draw(rt, "path"), func(s *secret, v int) { s.gone[v] = true })
			},
			"delete newest": func(rt *rapid.T) {
				p := path.Draw(rt, "path")
				do(del, "data/"+p, "")
				if v := versionsOf(model[p]); v > 0 && !model[p].gone[v] {
					model[p].deleted[v] = true
				}
			},
			"delete all": func(rt *rapid.T) {
				p := path.Draw(rt, "path")
				do(del, "metadata/"+p, "")
				delete(model, p)
			},
			"limits": func(rt *rapid.T) {
				n := rapid.IntRange(0, 6).Draw(rt, "max_versions")
				if rapid.Bool().Draw(rt, "of the mount") {
					limit = n
					do(put, "config", fmt.Sprintf(`{"max_versions":%d}`, n))
				} else if p := path.Draw(rt, "path"); model[p] != nil {
					model[p].limit = n
					do(put, "metadata/"+p, fmt.Sprintf(`{"max_versions":%d}`, n))
				}
			},
			"time": func(*rapid.T) { b.Clock.Advance(time.Minute) },
			"": func(rt *rapid.T) {
				rows := 0
				for _, p := range paths {
					rows += agree(rt, b, p, model[p])
				}
				if n := b.Count(store.Secrets); n != rows {
					rt.Fatalf("%d values are kept, want %d", n, rows)
				}
				listed(rt, b, model)
			},
		})
	})
}

func versionsOf(s *secret) int {
	if s == nil {
		return 0
	}
	return len(s.values)
}

// agree compares all versions of a secret with the model, and counts the values that must be kept.
func agree(rt *rapid.T, b *enginetest.Bench, path string, s *secret) (rows int) {
	for v := 0; v <= versionsOf(s)+1; v++ {
		r, err := b.Try(get, "data/"+path, `{"version":`+strconv.Itoa(v)+`}`)
		is := v
		if v == 0 {
			is = versionsOf(s)
		}
		switch {
		case s == nil || is < 1 || is > len(s.values) || s.pruned[is]:
			if api.KindOf(err) != api.NotFound || err == nil {
				rt.Fatalf("%s version %d: %v, want nothing", path, v, r)
			}
		case err != nil:
			rt.Fatalf("%s version %d: %v", path, v, err)
		case s.gone[is] || s.deleted[is]:
			if r.Status != 404 || r.Data["data"] != nil || r.Data["metadata"].(map[string]any)["destroyed"] != s.gone[is] {
				rt.Fatalf("%s version %d is deleted, but reads as %s", path, v, enginetest.JSON(r.Data))
			}
		default:
			if want := fmt.Sprintf(`{"n":%d}`, s.values[is-1]); r.Data["data"].(lessor.SecretJSON).Reveal() != want {
				rt.Fatalf("%s version %d is not %s", path, v, want)
			}
		}
		if v > 0 && s != nil && v <= len(s.values) && !s.pruned[v] && !s.gone[v] {
			rows++
		}
	}
	return rows
}

// listed compares the root's list with the model.
func listed(rt *rapid.T, b *enginetest.Bench, model map[string]*secret) {
	var want []string
	for p := range model {
		head, _, folder := strings.Cut(p, "/")
		if folder {
			head += "/"
		}
		if !slices.Contains(want, head) {
			want = append(want, head)
		}
	}
	slices.Sort(want)
	r, err := b.Try(ls, "metadata/", "")
	if len(want) == 0 {
		if api.KindOf(err) != api.NotFound {
			rt.Fatalf("a list of nothing: %v", err)
		}
		return
	}
	if err != nil || !slices.Equal(r.Data["keys"].([]string), want) {
		rt.Fatalf("listed %v (%v), want %v", r, err, want)
	}
}
