package client

import (
	"encoding/json"
	"testing"
	"time"
)

func TestTenure(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	after := func(d time.Duration) time.Time { return now.Add(d) }
	lease := func(seconds int64, version uint64) tenure {
		return tenureOf(&Response{LeaseID: "l", Renewable: true, LeaseDuration: seconds, Version: version}, 1, now)
	}
	with := func(t tenure, change func(*tenure)) tenure {
		change(&t)
		return t
	}
	renewed := func(seconds int64, warnings ...string) func(*tenure) {
		return func(t *tenure) {
			t.renewed(&Response{LeaseDuration: seconds, Warnings: warnings}, after(time.Minute))
		}
	}
	bare := tenureOf(&Response{LeaseDuration: 2764800}, 1, now)
	for what, try := range map[string]struct {
		tenure tenure
		step   step
		at     time.Time
	}{
		"a static lease is renewed":                          {lease(300, 7), renew, after(200 * time.Second)},
		"a long one long before a hold lapses":               {lease(30*86400, 7), renew, after(8 * time.Hour)},
		"the shortest after a second":                        {lease(1, 7), renew, after(time.Second)},
		"one that was superseded is read again":              {with(lease(300, 7), renewed(1, "newer")), read, now},
		"one that was not is renewed again":                  {with(lease(300, 7), renewed(300)), renew, after(time.Minute + 200*time.Second)},
		"where changes are told only so that the hold stays": {with(lease(300, 7), func(t *tenure) { t.follow(true, now) }), renew, after(8 * time.Hour)},
		"until they are no more": {with(lease(300, 7), func(t *tenure) {
			t.follow(true, now)
			t.follow(false, after(time.Hour))
		}), renew, after(time.Hour + 200*time.Second)},
		"what may have changed is read":                 {with(lease(300, 7), func(t *tenure) { t.told = true }), read, now},
		"a dynamic lease is renewed":                    {lease(3600, 0), renew, after(40 * time.Minute)},
		"and again":                                     {with(lease(3600, 0), renewed(3600)), renew, after(41 * time.Minute)},
		"and replaced when it was cut short":            {with(lease(3600, 0), renewed(600)), read, after(time.Minute + 400*time.Second)},
		"and if it cannot be renewed":                   {with(lease(3600, 0), func(t *tenure) { t.renewable = false }), read, after(40 * time.Minute)},
		"and if it ends with another token":             {with(lease(3600, 0), func(t *tenure) { t.epoch = 0 }), read, now},
		"but a static one does not":                     {with(lease(300, 7), func(t *tenure) { t.epoch = 0 }), renew, after(200 * time.Second)},
		"a dynamic one for ever stays":                  {lease(0, 0), rest, time.Time{}},
		"without a lease it is read by time":            {bare, read, after(5 * time.Minute)},
		"unless changes are told":                       {with(bare, func(t *tenure) { t.follow(true, now) }), rest, time.Time{}},
		"Vault's static roles say when":                 {tenureOf(&Response{Data: map[string]any{"ttl": json.Number("90")}}, 1, now), read, after(91 * time.Second)},
		"after a failure there is a pause":              {with(lease(3, 7), func(t *tenure) { t.failed(after(time.Minute), 1) }), renew, after(time.Minute + 200*time.Millisecond)},
		"which grows":                                   {with(lease(3, 7), func(t *tenure) { t.failures = 2; t.failed(after(time.Minute), 1) }), renew, after(time.Minute + 800*time.Millisecond)},
		"but does not make anything happen any earlier": {with(lease(3600, 7), func(t *tenure) { t.failed(now, 1) }), renew, after(40 * time.Minute)},
	} {
		if step, at := try.tenure.next(1, 0); step != try.step || !at.Equal(try.at) {
			t.Errorf("%s: %d after %v, want %d after %v", what, step, at.Sub(now), try.step, try.at.Sub(now))
		}
	}
	l := lease(300, 7)
	if _, at := l.next(1, 1); !at.Equal(after(180 * time.Second)) {
		t.Errorf("with jitter after %v", at.Sub(now))
	}
}
