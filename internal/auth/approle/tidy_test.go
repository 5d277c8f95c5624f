package approle_test

import (
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/store"
)

// However many there are, a tidy finds all secret ids whose time is over, and no other.
func TestTidyIsComplete(t *testing.T) {
	b := bench(t, "")
	var kept []string
	for i := range 4500 {
		switch i % 3 {
		case 0:
			id, _ := issue(b, `{"ttl":"2h"}`)
			kept = append(kept, id)
		default:
			issue(b, `{"ttl":"1h"}`)
		}
	}
	b.Clock.Advance(time.Hour)
	b.Do(put, "tidy/secret-id", "")
	if s, e := b.Count(store.Secrets), b.Count(store.Engine); s != len(kept) || e != len(kept) {
		t.Errorf("%d secret ids and %d accessors are left of %d", s, e, len(kept))
	}
	for _, i := range []int{0, len(kept) / 2, len(kept) - 1} {
		if _, err := login(b, "app-id", kept[i]); err != nil {
			t.Error(err)
		}
	}
}

// A secret id of somebody's own making can be registered again when its time is over. What is left of the first one does it no harm.
func TestCustomSecretIDAgain(t *testing.T) {
	b := bench(t, "")
	const path, body = "role/app/custom-secret-id", `{"secret_id":"my own secret","ttl":"1h"}`
	first := b.Do(put, path, body).Data["secret_id_accessor"].(string)
	b.Run(enginetest.Step{Verb: put, Path: path, Body: body, Kind: api.Invalid, Err: "SecretID is already registered"})
	b.Clock.Advance(time.Hour)
	refused(t, b, "app-id", "my own secret", invalid)
	second := b.Do(put, path, body).Data["secret_id_accessor"].(string)
	b.Run(
		enginetest.Step{Verb: put, Path: "role/app/secret-id-accessor/destroy", Body: `{"secret_id_accessor":"` + first + `"}`, Kind: api.NotFound,
			Err: `failed to find accessor entry for secret_id_accessor: "` + first + `"`},
		enginetest.Step{Verb: ls, Path: "role/app/secret-id/", Want: `{"keys":["` + second + `"]}`},
	)
	b.Do(put, "tidy/secret-id", "")
	if _, err := login(b, "app-id", "my own secret"); err != nil {
		t.Error(err)
	}
	if s, e := b.Count(store.Secrets), b.Count(store.Engine); s != 1 || e != 1 {
		t.Errorf("%d secret ids and %d accessors", s, e)
	}
}
