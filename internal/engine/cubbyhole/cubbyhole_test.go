package cubbyhole_test

import (
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/cubbyhole"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

func TestConform(t *testing.T) { enginetest.Conform(t, cubbyhole.Backend{}, nil) }

const (
	put = lessor.Update
	get = lessor.Read
	ls  = lessor.List
	del = lessor.Delete
)

// token is a principal with the token of that hash.
func token(hash byte) *lessor.Principal {
	return &lessor.Principal{Root: true, TokenKind: lessor.Service, Token: strings.Repeat(string([]byte{hash}), 20), Accessor: "a"}
}

func TestCubbyhole(t *testing.T) {
	b := enginetest.New(t, cubbyhole.Backend{}, nil)
	b.Run([]enginetest.Step{
		{Verb: get, Path: "a/b", Fails: true, Kind: api.NotFound},
		{Verb: put, Path: "a/b", Kind: api.Invalid, Err: "missing data fields"},
		{Verb: put, Path: "a/b", Body: `{"x":1.0,"y":"z"}`},
		{Verb: get, Path: "a/b", Want: `{"x":1.0,"y":"z"}`},
		{Verb: put, Path: "c", Body: `{"x":"2"}`},
		{Verb: ls, Path: "", Want: `{"keys":["a/","c"]}`},
		{Verb: ls, Path: "a/", Want: `{"keys":["b"]}`},
		{Verb: del, Path: "a/b"},
		{Verb: get, Path: "a/b", Fails: true, Kind: api.NotFound},
		{Verb: put, Path: "a/..", Body: `{"x":1}`, Kind: api.Invalid, Err: "relative paths not supported"},
	}...)
	if r := b.Do(get, "c", ""); r.Static != nil || len(r.Shown) != 1 {
		t.Errorf("lease %+v, shown %+v", r.Static, r.Shown)
	}
}

func TestEachTokenHasItsOwn(t *testing.T) {
	b := enginetest.New(t, cubbyhole.Backend{}, nil)
	hashes := []byte{1, 2, '/', 0xff}
	for i, h := range hashes {
		b.Principal = token(h)
		b.Do(put, "x", `{"mine":`+string(rune('0'+i))+`}`)
		b.Do(put, "y/z", `{"mine":1}`)
	}
	for i, h := range hashes {
		b.Principal = token(h)
		b.Run(enginetest.Step{Verb: get, Path: "x", Want: `{"mine":` + string(rune('0'+i)) + `}`}, enginetest.Step{Verb: ls, Path: "", Want: `{"keys":["x","y/"]}`})
	}
	all := cubbyhole.All(lessor.RootNamespace, enginetest.MountUUID, token(2).Token)
	if _, err := b.DB.Commit(t.Context(), store.Txn{Ranges: []store.Range{all}}); err != nil {
		t.Fatal(err)
	}
	if n := b.Count(store.Secrets); n != 2*len(hashes)-2 {
		t.Errorf("%d rows are left when a token's went", n)
	}
	for _, h := range hashes {
		b.Principal = token(h)
		if _, err := b.Try(get, "x", ""); (api.KindOf(err) == api.NotFound && err != nil) != (h == 2) {
			t.Errorf("token %d: %v", h, err)
		}
	}
}

func TestServiceTokensOnly(t *testing.T) {
	b := enginetest.New(t, cubbyhole.Backend{}, nil)
	const text = `cubbyhole operations are only supported by "service" type tokens`
	for _, p := range []*lessor.Principal{{Root: true, TokenKind: lessor.Batch, Token: "x"}, {Root: true, TokenKind: lessor.Service}} {
		b.Principal = p
		for _, verb := range []lessor.Verb{get, put, ls, del} {
			if _, err := b.Try(verb, "x", `{"a":1}`); err == nil || err.Error() != text || api.KindOf(err) != api.Invalid {
				t.Errorf("%s: %v", verb, err)
			}
		}
	}
}

func TestNoTrace(t *testing.T) {
	b := enginetest.New(t, cubbyhole.Backend{}, nil)
	b.Do(put, "x", `{"a":"hunter2-password"}`)
	b.Do(get, "x", "")
	b.NoTrace("hunter2-password")
}
