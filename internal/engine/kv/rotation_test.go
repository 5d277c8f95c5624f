package kv_test

import (
	"testing"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/engine/kv"
	"github.com/lessor-dev/lessor/internal/rotator"
)

// What a rotation cannot be told is refused where somebody says it. That secrets are rotated is tested with a real rotator: examples/rotators.
func TestRotationTerms(t *testing.T) {
	enginetest.New(t, kv.V2{Rotators: &rotator.Caller{}}, map[string]string{"version": "2"}).Run(steps{
		{Verb: get, Path: "rotation/app", Fails: true, Kind: api.NotFound},
		{Verb: put, Path: "rotation/app", Body: `{}`, Kind: api.Invalid, Err: "rotator is needed: the name of one that is registered at sys/lessor/rotators"},
		{Verb: put, Path: "rotation/app", Body: `{"rotator":"x"}`, Kind: api.Invalid, Err: "rotation_period or rotation_schedule is needed"},
		{Verb: put, Path: "rotation/app", Body: `{"rotator":"x","rotation_period":1}`, Kind: api.Invalid, Err: "rotation_period must be 5 seconds or more"},
		{Verb: put, Path: "rotation/app", Body: `{"rotator":"x","rotation_period":60,"rotation_schedule":"* * * * *"}`, Kind: api.Invalid, Err: "rotation_period and rotation_schedule exclude each other"},
		{Verb: put, Path: "rotation/app", Body: `{"rotator":"x","rotation_period":60,"strategy":"both"}`, Kind: api.Invalid, Err: "strategy must be overlap or single"},
		{Verb: put, Path: "rotation/app", Body: `{"rotator":"x","rotation_period":60,"strategy":"single","rotation_grace":60}`, Kind: api.Invalid, Err: "rotation_grace is for the strategy overlap: with single nobody can be waited for"},
		{Verb: put, Path: "rotation/app", Body: `{"rotator":"x","rotation_period":60}`, Kind: api.Invalid, Err: `there is no rotator "x": register it at sys/lessor/rotators/x`},
		{Verb: put, Path: "rotation/data/app", Body: `{"rotator":"x","rotation_period":60}`, Kind: api.Invalid, Err: "secrets whose path begins with data/ or rotation/ or rotate/ cannot be rotated"},
		{Verb: put, Path: "rotate/app", Kind: api.NotFound, Err: "the secret has no rotation: write rotation/app"},
		{Verb: get, Path: "metadata/app", Fails: true, Kind: api.NotFound},
	}...)
}
