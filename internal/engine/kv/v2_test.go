package kv_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/engine/kv"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

func TestConform(t *testing.T) {
	t.Run("v1", func(t *testing.T) { enginetest.Conform(t, kv.V1{}, nil) })
	t.Run("v2", func(t *testing.T) { enginetest.Conform(t, kv.V2{}, map[string]string{"version": "2"}) })
}

const t0 = "2026-01-02T03:04:05Z"

// version is a version's metadata as reads and writes answer it.
func version(n int, created, deleted string, destroyed bool) string {
	return fmt.Sprintf(`{"version":%d,"created_time":%q,"deletion_time":%q,"destroyed":%v,"custom_metadata":null}`, n, created, deleted, destroyed)
}

func at(d time.Duration) string { return enginetest.Epoch.Add(d).Format(time.RFC3339Nano) }

const (
	put  = lessor.Update
	get  = lessor.Read
	ls   = lessor.List
	del  = lessor.Delete
	edit = lessor.Patch
)

type steps = []enginetest.Step

func TestV2(t *testing.T) {
	live := version(1, t0, "", false)
	for name, s := range map[string]steps{
		"write and read": {
			{Verb: get, Path: "data/app", Fails: true, Kind: api.NotFound},
			{Verb: put, Path: "data/app", Body: `{"data":{"password":"s3cret","n":1.50,"big":12345678901234567890}}`, Want: live},
			{Verb: get, Path: "data/app", Want: `{"data":{"password":"s3cret","n":1.50,"big":12345678901234567890},"metadata":` + live + `}`},
			{Verb: put, Path: "data/app", After: time.Nanosecond, Body: `{"data":{}}`, Want: version(2, at(1), "", false)},
			{Verb: get, Path: "data/app", Want: `{"data":{},"metadata":` + version(2, at(1), "", false) + `}`},
			{Verb: get, Path: "data/app", Body: `{"version":"1"}`, Want: `{"data":"*","metadata":` + live + `}`},
			{Verb: get, Path: "data/app", Body: `{"version":3}`, Fails: true, Kind: api.NotFound},
			{Verb: get, Path: "data/app", Body: `{"version":-1}`, Want: `{"data":{},"metadata":"*"}`},
		},
		"bad writes": {
			{Verb: put, Path: "data/app", Body: `{}`, Err: "no data provided"},
			{Verb: put, Path: "data/null", Body: `{"data":null}`, Want: version(1, t0, "", false)},
			{Verb: get, Path: "data/null", Want: `{"data":null,"metadata":` + version(1, t0, "", false) + `}`},
			{Verb: get, Path: "subkeys/null", Want: `{"subkeys":{},"metadata":` + version(1, t0, "", false) + `}`},
			{Verb: put, Path: "data/app", Body: `{"data":[1]}`, Err: `field "data" is not an object`},
			{Verb: put, Path: "data/a/../b", Body: `{"data":{}}`, Err: "relative paths not supported"},
			{Verb: put, Path: "data/a//b", Body: `{"data":{}}`, Err: "empty segments in paths are not supported"},
			{Verb: put, Path: "data/a\x00b", Body: `{"data":{}}`, Err: "paths hold no control characters and are valid UTF-8"},
			{Verb: put, Path: "data/a\xffb", Body: `{"data":{}}`, Err: "paths hold no control characters and are valid UTF-8"},
			{Verb: put, Path: "metadata/", Body: `{"max_versions":1}`, Err: "missing path"},
			{Verb: put, Path: "data/app", Body: `{"data":{"a":1},"dta":{}}`, Want: live, Warn: "Endpoint ignored these unrecognized parameters: [dta]"},
		},
		"check and set": {
			{Verb: put, Path: "data/a", Body: `{"data":{},"options":{"cas":1}}`, Kind: api.Mismatch, Err: "check-and-set parameter did not match the current version"},
			{Verb: put, Path: "data/a", Body: `{"data":{},"options":{"cas":0}}`, Want: live},
			{Verb: put, Path: "data/a", Body: `{"data":{},"options":{"cas":0}}`, Kind: api.Mismatch, Err: "check-and-set parameter did not match the current version"},
			{Verb: put, Path: "data/a", Body: `{"data":{},"options":{"cas":"1"}}`, Want: version(2, t0, "", false)},
			{Verb: put, Path: "data/a", Body: `{"data":{},"options":{"cas":"x"}}`, Kind: api.Invalid, Err: "error parsing check-and-set parameter"},
			{Verb: put, Path: "data/a", Body: `{"data":{},"options":{"cas":-1}}`, Kind: api.Mismatch, Err: "check-and-set parameter did not match the current version"},
			{Verb: put, Path: "metadata/a", Body: `{"cas_required":true}`},
			{Verb: put, Path: "data/a", Body: `{"data":{}}`, Kind: api.Invalid, Err: "check-and-set parameter required for this call"},
			{Verb: edit, Path: "data/a", Body: `{"data":{}}`, Kind: api.Invalid, Err: "check-and-set parameter required for this call"},
			{Verb: edit, Path: "data/a", Body: `{"data":{},"options":{"cas":1}}`, Kind: api.Mismatch, Err: "check-and-set parameter did not match the current version"},
			{Verb: edit, Path: "data/a", Body: `{"data":{},"options":{"cas":2}}`, Want: version(3, t0, "", false)},
			{Verb: put, Path: "data/b", Body: `{"data":{}}`, Want: live},
			{Verb: put, Path: "config", Body: `{"cas_required":true}`},
			{Verb: put, Path: "data/b", Body: `{"data":{}}`, Kind: api.Invalid, Err: "check-and-set parameter required for this call"},
			{Verb: put, Path: "metadata/b", Body: `{"cas_required":false}`, Warn: `"cas_required" set to false, but is mandated by backend config. This value will be ignored.`},
			{Verb: put, Path: "data/new", Body: `{"data":{},"options":{"cas":0}}`, Want: live},
		},
		"patch": {
			{Verb: edit, Path: "data/a", Body: `{"data":{"x":1}}`, Fails: true, Kind: api.NotFound},
			{Verb: put, Path: "metadata/a", Body: `{"max_versions":5}`},
			{Verb: edit, Path: "data/a", Body: `{"data":{"x":1}}`, Fails: true, Kind: api.NotFound},
			{Verb: put, Path: "data/a", Body: `{"data":{"x":1,"y":{"a":1.0,"b":2},"z":"z"}}`, Want: live},
			{Verb: edit, Path: "data/a", Body: `{}`, Err: "no data provided"},
			{Verb: edit, Path: "data/a", Body: `{"data":{"x":null,"y":{"b":null,"c":{"d":null,"e":3}},"w":[null]}}`, Want: version(2, t0, "", false)},
			{Verb: get, Path: "data/a", Want: `{"data":{"y":{"a":1.0,"c":{"e":3}},"z":"z","w":[null]},"metadata":"*"}`},
			{Verb: del, Path: "data/a"},
			{Verb: edit, Path: "data/a", Body: `{"data":{"x":1}}`, Status: 404, Want: version(2, t0, t0, false)},
		},
		"delete, undelete, destroy": {
			{Verb: put, Path: "data/a", Body: `{"data":{"v":1}}`, Want: live},
			{Verb: put, Path: "data/a", Body: `{"data":{"v":2}}`, Want: version(2, t0, "", false)},
			{Verb: del, Path: "data/a", After: time.Second},
			{Verb: get, Path: "data/a", Status: 404, Want: `{"data":null,"metadata":` + version(2, t0, at(time.Second), false) + `}`},
			{Verb: del, Path: "data/a", After: time.Second},
			{Verb: get, Path: "data/a", Status: 404, Want: `{"data":null,"metadata":` + version(2, t0, at(time.Second), false) + `}`},
			{Verb: get, Path: "data/a", Body: `{"version":1}`, Want: `{"data":{"v":1},"metadata":` + live + `}`},
			{Verb: put, Path: "undelete/a", Body: `{"versions":[2]}`},
			{Verb: get, Path: "data/a", Want: `{"data":{"v":2},"metadata":` + version(2, t0, "", false) + `}`},
			{Verb: put, Path: "delete/a", Body: `{"versions":"1,2,9"}`},
			{Verb: get, Path: "data/a", Body: `{"version":1}`, Status: 404, Want: `{"data":null,"metadata":` + version(1, t0, at(2*time.Second), false) + `}`},
			{Verb: put, Path: "undelete/a", Body: `{"versions":[1,2]}`},
			{Verb: put, Path: "destroy/a", Body: `{"versions":[1]}`},
			{Verb: get, Path: "data/a", Body: `{"version":1}`, Status: 404, Want: `{"data":null,"metadata":` + version(1, t0, "", true) + `}`},
			{Verb: put, Path: "undelete/a", Body: `{"versions":[1]}`},
			{Verb: get, Path: "subkeys/a", Body: `{"version":1}`, Status: 404, Want: `{"subkeys":null,"metadata":` + version(1, t0, "", true) + `}`},
			{Verb: get, Path: "data/a", Want: `{"data":{"v":2},"metadata":` + version(2, t0, "", false) + `}`},
			{Verb: put, Path: "delete/a", Body: `{}`, Err: "No version number provided"},
			{Verb: put, Path: "undelete/a", Body: `{"versions":[]}`, Err: "No version number provided"},
			{Verb: put, Path: "destroy/a", Body: `{"versions":["x"]}`, Err: `field "versions" is not a list of version numbers`},
			{Verb: put, Path: "destroy/nothing", Body: `{"versions":[1]}`},
			{Verb: del, Path: "data/nothing"},
			{Verb: del, Path: "metadata/nothing"},
			{Verb: del, Path: "metadata/a"},
			{Verb: get, Path: "data/a", Fails: true, Kind: api.NotFound},
			{Verb: get, Path: "metadata/a", Fails: true, Kind: api.NotFound},
			{Verb: put, Path: "data/a", Body: `{"data":{"v":3}}`, Want: version(1, at(2*time.Second), "", false)},
		},
		"metadata": {
			{Verb: put, Path: "metadata/a", Body: `{}`},
			{Verb: get, Path: "metadata/a", Fails: true, Kind: api.NotFound},
			{Verb: put, Path: "metadata/a", Body: `{"max_versions":"3","delete_version_after":"3h25m19s","custom_metadata":{"team":"billing","n":7}}`},
			{Verb: get, Path: "metadata/a", Want: `{"versions":{},"current_version":0,"oldest_version":0,"created_time":"` + t0 + `","updated_time":"` + t0 +
				`","max_versions":3,"cas_required":false,"delete_version_after":"3h25m19s","custom_metadata":{"team":"billing","n":"7"}}`},
			{Verb: get, Path: "data/a", Fails: true, Kind: api.NotFound},
			{Verb: put, Path: "metadata/a", Body: `{"delete_version_after":0}`},
			{Verb: put, Path: "data/a", After: time.Hour, Body: `{"data":{}}`, Want: `{"version":1,"created_time":"2026-01-02T04:04:05Z","deletion_time":"","destroyed":false,"custom_metadata":{"team":"billing","n":"7"}}`},
			{Verb: get, Path: "metadata/a", Want: `{"versions":{"1":{"created_time":"2026-01-02T04:04:05Z","deletion_time":"","destroyed":false}},
				"current_version":1,"oldest_version":0,"created_time":"` + t0 + `","updated_time":"2026-01-02T04:04:05Z",
				"max_versions":3,"cas_required":false,"delete_version_after":"0s","custom_metadata":{"team":"billing","n":"7"}}`},
			{Verb: edit, Path: "metadata/a", Body: `{"custom_metadata":{"n":null,"x":"y"},"max_versions":null,"cas_required":true}`},
			{Verb: get, Path: "metadata/a", Want: `{"versions":"*","current_version":1,"oldest_version":0,"created_time":"*","updated_time":"*",
				"max_versions":0,"cas_required":true,"delete_version_after":"0s","custom_metadata":{"team":"billing","x":"y"}}`},
			{Verb: edit, Path: "metadata/a", Body: `{"custom_metadata":null}`},
			{Verb: get, Path: "metadata/a", Want: `{"versions":"*","current_version":1,"oldest_version":0,"created_time":"*","updated_time":"*",
				"max_versions":0,"cas_required":true,"delete_version_after":"0s","custom_metadata":null}`},
			{Verb: edit, Path: "metadata/none", Body: `{"max_versions":1}`, Fails: true, Kind: api.NotFound},
			{Verb: put, Path: "metadata/a", Body: `{"max_versions":-1}`, Err: "max_versions must be between 0 and 1048576"},
			{Verb: put, Path: "metadata/a", Body: `{"delete_version_after":"-1s"}`, Err: `field "delete_version_after" is not a duration, or is negative`},
			{Verb: put, Path: "metadata/a", Body: `{"custom_metadata":{"k":""}}`, Err: `custom_metadata validation failed: length of value for key "k" is 0 but must be 0 < len(value) <= 512`},
			{Verb: put, Path: "metadata/a", Body: `{"custom_metadata":{"":"v"}}`, Err: `custom_metadata validation failed: length of key "" is 0 but must be 0 < len(key) <= 128`},
			{Verb: put, Path: "metadata/a", Body: `{"custom_metadata":{"k":"\u0007"}}`, Err: `custom_metadata validation failed: value for key "k" contains unprintable characters`},
			{Verb: put, Path: "metadata/a", Body: `{"custom_metadata":{"k":{}}}`, Err: `custom_metadata validation failed: value for key "k" is not a string`},
			{Verb: put, Path: "metadata/a", Body: many(65), Err: "custom_metadata validation failed: payload must contain at most 64 keys, provided 65"},
			{Verb: put, Path: "metadata/a", Body: many(64)},
		},
		"list": {
			{Verb: ls, Path: "metadata/", Fails: true, Kind: api.NotFound},
			{Verb: put, Path: "data/a", Body: `{"data":{}}`, Want: live},
			{Verb: put, Path: "data/a-b", Body: `{"data":{}}`, Want: live},
			{Verb: put, Path: "data/a/b/c", Body: `{"data":{}}`, Want: live},
			{Verb: put, Path: "data/a/b/d", Body: `{"data":{}}`, Want: live},
			{Verb: put, Path: "data/z", Body: `{"data":{}}`, Want: live},
			{Verb: ls, Path: "metadata/", Want: `{"keys":["a","a-b","a/","z"]}`},
			{Verb: ls, Path: "metadata/a/", Want: `{"keys":["b/"]}`},
			{Verb: ls, Path: "metadata/a/b/", Want: `{"keys":["c","d"]}`},
			{Verb: ls, Path: "metadata/a/b/c/", Fails: true, Kind: api.NotFound},
			{Verb: del, Path: "metadata/a/b/c"},
			{Verb: del, Path: "metadata/a/b/d"},
			{Verb: ls, Path: "metadata/", Want: `{"keys":["a","a-b","z"]}`},
		},
		"config": {
			{Verb: get, Path: "config", Want: `{"max_versions":0,"cas_required":false,"delete_version_after":"0s"}`},
			{Verb: put, Path: "config", Body: `{"max_versions":4,"delete_version_after":"1h"}`},
			{Verb: get, Path: "config", Want: `{"max_versions":4,"cas_required":false,"delete_version_after":"1h0m0s"}`},
			{Verb: put, Path: "config", Body: `{"delete_version_after":"-5m"}`},
			{Verb: get, Path: "config", Want: `{"max_versions":4,"cas_required":false,"delete_version_after":"-1s"}`},
			{Verb: put, Path: "config", Body: `{"delete_version_after":-7}`},
			{Verb: get, Path: "config", Want: `{"max_versions":4,"cas_required":false,"delete_version_after":"-1s"}`},
			{Verb: put, Path: "config", Body: `{"delete_version_after":"soon"}`, Err: `field "delete_version_after" is not a duration`},
			{Verb: put, Path: "config", Body: `{"max_versions":"many"}`, Err: `field "max_versions" is not an integer`},
			{Verb: put, Path: "config", Body: `{"delete_version_after":0}`},
			{Verb: get, Path: "config", Want: `{"max_versions":4,"cas_required":false,"delete_version_after":"0s"}`},
		},
		"delete_version_after": {
			{Verb: put, Path: "config", Body: `{"delete_version_after":"1h"}`},
			{Verb: put, Path: "data/a", Body: `{"data":{}}`, Want: version(1, t0, at(time.Hour), false)},
			{Verb: get, Path: "data/a", After: time.Hour - 1, Want: `{"data":{},"metadata":` + version(1, t0, at(time.Hour), false) + `}`},
			{Verb: get, Path: "data/a", After: 1, Status: 404, Want: `{"data":null,"metadata":` + version(1, t0, at(time.Hour), false) + `}`},
			{Name: "a new life of an hour", Verb: put, Path: "undelete/a", Body: `{"versions":1}`},
			{Verb: get, Path: "data/a", Want: `{"data":{},"metadata":` + version(1, t0, at(2*time.Hour), false) + `}`},
			{Name: "the shorter counts", Verb: put, Path: "metadata/a", Body: `{"delete_version_after":"30m"}`},
			{Verb: put, Path: "data/a", Body: `{"data":{}}`, Want: version(2, at(time.Hour), at(90*time.Minute), false)},
			{Verb: put, Path: "metadata/a", Body: `{"delete_version_after":"5h"}`},
			{Verb: put, Path: "data/a", Body: `{"data":{}}`, Want: version(3, at(time.Hour), at(2*time.Hour), false)},
			{Name: "a deletion before the planned one", Verb: del, Path: "data/a"},
			{Verb: get, Path: "data/a", Status: 404, Want: `{"data":null,"metadata":` + version(3, at(time.Hour), at(time.Hour), false) + `}`},
			{Name: "off everywhere", Verb: put, Path: "config", Body: `{"delete_version_after":-1}`},
			{Verb: put, Path: "data/a", Body: `{"data":{}}`, Want: version(4, at(time.Hour), "", false)},
		},
		"subkeys": {
			{Verb: get, Path: "subkeys/a", Fails: true, Kind: api.NotFound},
			{Verb: put, Path: "data/a", Body: `{"data":{"x":1,"y":{"a":{"b":2},"c":{}},"z":[{"k":1}]}}`, Want: live},
			{Verb: get, Path: "subkeys/a", Want: `{"subkeys":{"x":null,"y":{"a":{"b":null},"c":null},"z":null},"metadata":` + live + `}`},
			{Verb: get, Path: "subkeys/a", Body: `{"depth":"2"}`, Want: `{"subkeys":{"x":null,"y":{"a":null,"c":null},"z":null},"metadata":` + live + `}`},
			{Verb: get, Path: "subkeys/a", Body: `{"depth":1}`, Want: `{"subkeys":{"x":null,"y":null,"z":null},"metadata":` + live + `}`},
			{Verb: del, Path: "data/a"},
			{Verb: get, Path: "subkeys/a", Status: 404, Want: `{"subkeys":null,"metadata":` + version(1, t0, t0, false) + `}`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for i := range s {
				if s[i].Err != "" && s[i].Kind == 0 {
					s[i].Kind = api.Invalid
				}
			}
			enginetest.New(t, kv.V2{}, nil).Run(s...)
		})
	}
}

func many(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"k%d":"v"`, i)
	}
	return `{"custom_metadata":{` + b.String()[1:] + `}}`
}

func TestV2Pruning(t *testing.T) {
	b := enginetest.New(t, kv.V2{}, nil)
	kept := func(oldest, current, rows int) {
		t.Helper()
		d := b.Do(get, "metadata/a", "").Data
		if d["oldest_version"] != uint64(oldest) || d["current_version"] != uint64(current) {
			t.Errorf("versions %v to %v, want %d to %d", d["oldest_version"], d["current_version"], oldest, current)
		}
		if n := b.Count(store.Secrets); n != rows || len(d["versions"].(map[string]any)) != rows {
			t.Errorf("%d values and %d versions are kept, want %d", n, len(d["versions"].(map[string]any)), rows)
		}
	}
	write := func(n int) {
		t.Helper()
		for range n {
			b.Do(put, "data/a", `{"data":{"x":1}}`)
		}
	}
	write(9)
	kept(0, 9, 9)
	write(1)
	kept(1, 10, 10)
	write(1)
	kept(2, 11, 10)
	b.Do(put, "config", `{"max_versions":3}`)
	write(1)
	kept(10, 12, 3)
	if _, err := b.Try(get, "data/a", `{"version":9}`); api.KindOf(err) != api.NotFound {
		t.Errorf("version 9 went, but reads as %v", err)
	}
	b.Do(put, "metadata/a", `{"max_versions":5}`)
	write(3)
	kept(11, 15, 5)
	b.Do(del, "metadata/a", "")
	if n := b.Count(store.Secrets) + b.Count(store.Engine); n != 1 { // the configuration
		t.Errorf("%d rows are left after the secret went", n)
	}
}

func TestV2Verbs(t *testing.T) {
	b := enginetest.New(t, kv.V2{}, nil)
	for _, s := range []struct {
		path string
		want lessor.Verb
	}{{"data/a", lessor.Create}, {"data/a", lessor.Update}, {"metadata/a", lessor.Update}, {"metadata/b", lessor.Create}, {"data/b", lessor.Update}} {
		if got := b.Verb(put, s.path, ""); got != s.want {
			t.Errorf("a write to %s is %s, want %s", s.path, got, s.want)
		}
		b.Do(put, s.path, `{"data":{},"max_versions":7}`)
	}
}

func TestV2Leases(t *testing.T) {
	b := enginetest.New(t, kv.V2{}, nil)
	b.Do(put, "data/a/b", `{"data":{"v":1}}`)
	b.Do(put, "data/a/b", `{"data":{"v":2}}`)
	r := b.Do(get, "data/a/b", "")
	if want := (engine.Static{Path: "a/b", Version: 2, Born: 2, Current: 2}); r.Static == nil || *r.Static != want {
		t.Errorf("lease %+v, want %+v", r.Static, want)
	}
	if b.Reads != 2 {
		t.Errorf("a read took %d point reads", b.Reads)
	}
	r = b.Do(get, "data/a/b", `{"version":1}`)
	if want := (engine.Static{Path: "a/b", Version: 1, Born: 2, Current: 2, Pinned: true}); r.Static == nil || *r.Static != want {
		t.Errorf("lease %+v, want %+v", r.Static, want)
	}
	for _, path := range []string{"metadata/a/b", "subkeys/a/b", "config"} {
		if r := b.Do(get, path, ""); r.Static != nil || r.Shown != nil {
			t.Errorf("%s: lease %+v, shown %v", path, r.Static, r.Shown)
		}
	}
	b.Do(del, "data/a/b", "")
	if r := b.Do(get, "data/a/b", ""); r.Static != nil || r.Status != http.StatusNotFound || r.Shown != nil {
		t.Errorf("a deleted version has the lease %+v", r.Static)
	}
	if r := b.Do(ls, "metadata/", ""); r.Static != nil {
		t.Errorf("a list has the lease %+v", r.Static)
	}
}

func TestFingerprints(t *testing.T) {
	for name, b := range map[string]*enginetest.Bench{"v1": enginetest.New(t, kv.V1{}, nil), "v2": enginetest.New(t, kv.V2{}, nil)} {
		path, body := "data/a", `{"data":{"k":"v"}}`
		wrote, read := b.Do(put, path, body).Shown, b.Do(get, path, "").Shown
		other := b.Do(put, "data/b", body).Shown
		if len(wrote) != 1 || len(read) != 1 || wrote[0].How != "written" || read[0].How != "shown" || wrote[0].Path != read[0].Path {
			t.Errorf("%s: written %+v, shown %+v", name, wrote, read)
		}
		if string(wrote[0].Fingerprint) != string(read[0].Fingerprint) {
			t.Errorf("%s: what was written looks different when it is shown", name)
		}
		if string(wrote[0].Fingerprint) == string(other[0].Fingerprint) {
			t.Errorf("%s: equal values in two places look the same", name)
		}
	}
}

func TestNoTrace(t *testing.T) {
	const secret = "hunter2-the-password"
	b := enginetest.New(t, kv.V2{}, nil)
	body := `{"data":{"password":"` + secret + `"}}`
	b.Do(put, "data/a", body)
	b.Do(get, "data/a", "")
	b.Do(edit, "data/a", body)
	b.Do(get, "subkeys/a", "")
	_, _ = b.Try(put, "data/a", `{"data":"`+secret+`"}`)
	_, _ = b.Try(put, "data/a", `{"data":{},"options":{"cas":"`+secret+`"}}`)
	b.NoTrace(secret)

	b = enginetest.New(t, kv.V1{}, nil)
	b.Do(put, "a", `{"password":"`+secret+`","ttl":"`+secret+`"}`)
	b.Do(get, "a", "")
	b.NoTrace(secret)
}

func TestConflicts(t *testing.T) {
	const mismatch = "check-and-set parameter did not match the current version"
	b := enginetest.New(t, kv.V2{}, nil)
	b.Do(put, "data/a", `{"data":{"n":0}}`)
	type write struct {
		verb       lessor.Verb
		path, body string
	}
	for _, s := range []struct {
		name            string
		late, meanwhile write
	}{
		{"write", write{put, "data/a", `{"data":{"n":1},"options":{"cas":1}}`}, write{put, "data/a", `{"data":{"n":2},"options":{"cas":1}}`}},
		{"patch", write{edit, "data/a", `{"data":{"n":1}}`}, write{put, "data/a", `{"data":{"n":3}}`}},
		{"create", write{put, "data/new", `{"data":{"n":1},"options":{"cas":0}}`}, write{put, "data/new", `{"data":{"n":2},"options":{"cas":0}}`}},
		{"configuration", write{put, "data/a", `{"data":{"n":1}}`}, write{put, "config", `{"max_versions":3}`}},
		{"two configurations", write{put, "config", `{"max_versions":4}`}, write{put, "config", `{"cas_required":false,"max_versions":5}`}},
		{"deletion", write{del, "data/a", ""}, write{put, "data/a", `{"data":{"n":4}}`}},
		{"metadata", write{put, "metadata/a", `{"max_versions":2}`}, write{put, "data/a", `{"data":{"n":5}}`}},
		{"deletion of all", write{del, "metadata/a", ""}, write{put, "data/a", `{"data":{"n":6}}`}},
		{"destruction", write{put, "destroy/a", `{"versions":[4]}`}, write{del, "metadata/a", ""}},
	} {
		t.Run(s.name, func(t *testing.T) {
			late, err := b.Begin(s.late.verb, s.late.path, s.late.body)
			if err != nil {
				t.Fatal(err)
			}
			b.Do(s.meanwhile.verb, s.meanwhile.path, s.meanwhile.body)
			enginetest.Unwritten(t, late)
		})
	}
	_, err := b.Try(put, "data/new", `{"data":{"n":3},"options":{"cas":0}}`)
	if api.KindOf(err) != api.Mismatch || err.Error() != mismatch {
		t.Errorf("the loser of a race is told %v", err)
	}
}

// Of writers that name the same version exactly one wins; of those that do not care each gets a version.
func TestWritersAtOnce(t *testing.T) {
	b := enginetest.New(t, kv.V2{}, nil)
	const writers = 16
	for _, c := range []struct {
		options string
		won     int
	}{{`,"options":{"cas":0}`, 1}, {"", writers}} {
		errs := make([]error, writers)
		var wait sync.WaitGroup
		for i := range writers {
			wait.Go(func() { _, errs[i] = b.Try(put, "data/a", fmt.Sprintf(`{"data":{"n":%d}%s}`, i, c.options)) })
		}
		wait.Wait()
		won := 0
		for _, err := range errs {
			switch {
			case err == nil:
				won++
			case api.KindOf(err) != api.Mismatch:
				t.Error(err)
			}
		}
		if won != c.won {
			t.Errorf("%d writers with %q won, want %d", won, c.options, c.won)
		}
	}
	if n := b.Do(get, "metadata/a", "").Data["current_version"]; n != uint64(1+writers) {
		t.Errorf("current version %v after %d writes", n, 1+writers)
	}
}

// A folder is listed at the cost of its own entries.
func TestListSkipsFolders(t *testing.T) {
	b := enginetest.New(t, kv.V2{}, nil)
	var txn store.Txn
	for i := range 2000 {
		txn.Put(store.Engine, store.MountKey(lessor.RootNamespace, enginetest.MountUUID, fmt.Sprintf("m/deep/%05d", i)), []byte{0xa0})
	}
	if _, err := b.DB.Commit(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	b.Do(put, "data/last", `{"data":{}}`)
	b.Run(enginetest.Step{Verb: ls, Path: "metadata/", Want: `{"keys":["deep/","last"]}`})
	if b.Scanned > 4 {
		t.Errorf("listing two entries looked at %d rows", b.Scanned)
	}
}

func TestDamageIsInternal(t *testing.T) {
	b := enginetest.New(t, kv.V2{}, nil)
	b.Do(put, "data/a", `{"data":{}}`)
	var txn store.Txn
	txn.Put(store.Engine, store.MountKey(lessor.RootNamespace, enginetest.MountUUID, "m/a"), []byte("nonsense"))
	if _, err := b.DB.Commit(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []lessor.Verb{get, put, edit, del} {
		_, err := b.Try(verb, "data/a", `{"data":{}}`)
		if err == nil || errors.As(err, new(*api.Error)) && api.KindOf(err) != api.Internal {
			t.Errorf("%s of a damaged secret: %v", verb, err)
		}
	}
}
