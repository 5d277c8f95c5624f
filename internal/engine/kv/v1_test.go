package kv_test

import (
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/engine/kv"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

func TestV1(t *testing.T) {
	enginetest.New(t, kv.V1{}, nil).Run(steps{
		{Verb: get, Path: "app/db", Fails: true, Kind: api.NotFound},
		{Verb: put, Path: "app/db", Kind: api.Invalid, Err: "missing data fields"},
		{Verb: put, Path: "app/db", Body: `{"user":"u","n":1.0,"deep":{"b":[1,null],"a":"é\u0000"},"path":"mine","versions":1}`},
		{Verb: get, Path: "app/db", Want: `{"user":"u","n":1.0,"deep":{"b":[1,null],"a":"é\u0000"},"path":"mine","versions":1}`},
		{Verb: put, Path: "app/db", Body: `{"x":null}`},
		{Verb: get, Path: "app/db", Want: `{"x":null}`},
		{Verb: put, Path: "app", Body: `{"x":1}`},
		{Verb: put, Path: "b", Body: `{"x":1}`},
		{Verb: ls, Path: "", Want: `{"keys":["app","app/","b"]}`},
		{Verb: ls, Path: "app/", Want: `{"keys":["db"]}`},
		{Verb: ls, Path: "nothing/", Fails: true, Kind: api.NotFound},
		{Verb: del, Path: "app/db"},
		{Verb: del, Path: "app/db"},
		{Verb: get, Path: "app/db", Fails: true, Kind: api.NotFound},
		{Verb: ls, Path: "app/", Fails: true, Kind: api.NotFound},
		{Verb: put, Path: "a/../b", Body: `{"x":1}`, Kind: api.Invalid, Err: "relative paths not supported"},
		{Verb: edit, Path: "b", Body: `{"x":1}`, Kind: api.Unsupported, Err: "unsupported operation"},
	}...)
}

func TestV1Duration(t *testing.T) {
	b := enginetest.New(t, kv.V1{}, nil)
	for body, want := range map[string]time.Duration{
		`{"x":1}`: 0, `{"ttl":"30s"}`: 30 * time.Second, `{"lease":"1h"}`: time.Hour, `{"ttl":90,"lease":"1h"}`: 90 * time.Second,
		`{"ttl":"soon"}`: 0, `{"ttl":{}}`: 0, `{"ttl":"-3s"}`: 0, `{"ttl":"2d"}`: 48 * time.Hour,
	} {
		b.Do(put, "a/b", body)
		r := b.Do(get, "a/b", "")
		s := r.Static
		if s == nil || s.Duration != want || s.Path != "a/b" || s.Version == 0 || s.Version != s.Current || s.Pinned {
			t.Errorf("%s: lease %+v, want %s", body, s, want)
		}
	}
	before := b.Do(get, "a/b", "").Static.Version
	b.Do(put, "a/b", `{"x":2}`)
	if after := b.Do(get, "a/b", "").Static.Version; after <= before {
		t.Errorf("version %d follows %d", after, before)
	}
	if b.Reads != 1 {
		t.Errorf("a read took %d point reads", b.Reads)
	}
}

// Who may only create does not overwrite, not even in a race, and who may only update does not create.
func TestV1GrantedVerb(t *testing.T) {
	b := enginetest.New(t, kv.V1{}, nil)
	late, err := b.Begin(put, "a", `{"x":1}`)
	if err != nil {
		t.Fatal(err)
	}
	b.Do(put, "a", `{"x":2}`)
	enginetest.Unwritten(t, late)
	if late, err = b.Begin(put, "a", `{"x":3}`); err != nil {
		t.Fatal(err)
	}
	b.Do(del, "a", "")
	enginetest.Unwritten(t, late)
	if n := b.Count(store.Secrets); n != 0 {
		t.Errorf("%d rows", n)
	}
	for _, want := range []lessor.Verb{lessor.Create, lessor.Update} {
		if got := b.Verb(put, "v", ""); got != want {
			t.Errorf("a write is %s, want %s", got, want)
		}
		b.Do(put, "v", `{"x":1}`)
	}
}
