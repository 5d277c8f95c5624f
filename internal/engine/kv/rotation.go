package kv

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/rotator"
	"github.com/lessor-dev/lessor/internal/store"
)

// Rotators make values and bring them into force where lessor itself cannot; *rotator.Caller is one. Safe for concurrent use.
type Rotators interface {
	// Ready says why a rotator could not be called on this server.
	Ready(r *rotator.Rotator) error
	// Call asks the named one, registered as v has it, for a step, and waits for its answer until ctx ends at the latest. Errors are free of secrets.
	Call(ctx context.Context, v store.View, name string, c rotator.Call) (rotator.Answer, error)
}

// terms are those on which a secret is rotated: a row of store.Engine, "r/" + path. CBOR keys are on disk: never renumber, only append.
type terms struct {
	Rotator string            `cbor:"1,keyasint"`
	Options map[string]string `cbor:"2,keyasint,omitempty"` // for the rotator
	Period  time.Duration     `cbor:"3,keyasint,omitempty"`
	Cron    string            `cbor:"4,keyasint,omitempty"`
	Window  time.Duration     `cbor:"5,keyasint,omitempty"`
	Jitter  time.Duration     `cbor:"6,keyasint,omitempty"`
	Single  bool              `cbor:"7,keyasint,omitempty"` // the target knows one value at a time
	Grace   time.Duration     `cbor:"8,keyasint,omitempty"` // how long holders of the old value are waited for; 0: for ever

	CheckOut bool `cbor:"9,keyasint,omitempty"` // it is rotated when a lease on it ends
}

func (t *terms) schedule() rotation.Schedule {
	return rotation.Schedule{Period: t.Period, Cron: t.Cron, Window: t.Window, Jitter: t.Jitter}
}

// What people call the ways in which a secret is rotated.
const (
	overlap = "overlap"
	single  = "single"
)

func (t *terms) strategy() string {
	if t.Single {
		return single
	}
	return overlap
}

func termsKey(r *engine.Request, path string) store.Key {
	return store.Key{Table: store.Engine, Name: store.MountKey(r.Mount.Namespace, r.Mount.UUID, "r/", path)}
}

// loadTerms reads the terms of a secret's rotation; nil: it has none.
func loadTerms(r *engine.Request, path string) (*terms, store.Row, error) {
	row, err := r.View.Get(termsKey(r, path))
	if err != nil || !row.Exists() {
		return nil, row, err
	}
	t := &terms{}
	if err := decoding.Unmarshal(row.Value, t); err != nil {
		return nil, row, fmt.Errorf("kv: a damaged rotation: %w", err)
	}
	return t, row, nil
}

// paths begin those of a secret at which its rotation is looked for, besides its own.
var paths = []string{"data/", "rotation/", "rotate/"}

func (e V2) rotationRoutes() []engine.Route {
	return []engine.Route{
		{
			Pattern: "rotation/{path...}", Help: "How a secret is rotated: by which rotator, when, and how its holders are waited for.",
			Fields: []engine.Field{
				{Name: "rotator", Type: engine.String, Help: "name of a rotator, registered at sys/lessor/rotators"},
				{Name: "options", Type: engine.Pairs, Help: "what the rotator is told besides; no secrets"},
				{Name: "strategy", Type: engine.String, Help: "overlap, the default: the target takes the old value beside the new one until its holders have moved; single: it knows one at a time"},
				{Name: "rotation_period", Type: engine.Duration, Help: "time from one rotation to the next; 5 seconds or more. Excludes rotation_schedule."},
				{Name: "rotation_schedule", Type: engine.String, Help: "times of rotations as cron has them, in UTC"},
				{Name: "rotation_window", Type: engine.Duration, Help: "with rotation_schedule: how long after such a time a rotation may begin; an hour or more"},
				{Name: "rotation_jitter", Type: engine.Duration, Help: "up to so much later than its time each rotation is due; default 0"},
				{Name: "rotation_grace", Type: engine.Duration, Help: "with overlap: how long holders of the old value are waited for; 0, the default: for ever"},
				{Name: "rotation_on_lease_end", Type: engine.Bool, Help: "rotate, too, when a lease on the value in force ends: given back, lapsed or revoked; with single, when the last one does. Counts for leases that begin from then on"},
			},
			Exists: func(r *engine.Request) (bool, error) {
				row, err := r.View.Get(termsKey(r, r.Param("path")))
				return row.Exists(), err
			},
			Ops: ops{lessor.Read: readRotation, lessor.Update: e.writeRotation, lessor.Delete: deleteRotation},
		},
		{Pattern: "rotate/{path...}", Help: "Rotate a secret now: in the background, at once.", Ops: ops{lessor.Update: rotateNow}},
	}
}

func readRotation(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t, err := turnOf(r, r.Param("path"))
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, missing()
	}
	data := map[string]any{
		"rotator": t.terms.Rotator, "options": t.terms.Options, "strategy": t.terms.strategy(), "rotation_grace": seconds(t.terms.Grace),
		"rotation_jitter": seconds(t.terms.Jitter), "last_rotation": nil, "next_rotation": nil, "step": t.Phase().String(),
	}
	if t.terms.CheckOut {
		data["rotation_on_lease_end"] = true
	}
	if t.terms.Cron == "" {
		data["rotation_period"] = seconds(t.terms.Period)
	} else {
		data["rotation_schedule"], data["rotation_window"] = t.terms.Cron, seconds(t.terms.Window)
	}
	if !t.Rotated.IsZero() {
		data["last_rotation"] = t.Rotated
	}
	if !t.Due.IsZero() {
		data["next_rotation"] = t.Due
	}
	reply := &engine.Reply{Data: data}
	if t.Attempts > 0 {
		reply.Warnings = []string{"the last step failed and is tried again: " + t.LastError}
	}
	reply.Warnings = append(reply.Warnings, rotation.NoLeaseEnds(t.terms.CheckOut, r.Mount)...)
	return reply, nil
}

func seconds(d time.Duration) int64 { return int64(math.Round(d.Seconds())) }

// writeRotation has a secret rotated, or changes how; what is not sent stays as it was. A secret that has no value yet gets one by that.
func (e V2) writeRotation(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	w, err := revise(r)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(paths, func(p string) bool { return strings.HasPrefix(w.path, p) }) {
		return nil, api.Errorf(api.Invalid, "secrets whose path begins with %s cannot be rotated", strings.Join(paths, " or "))
	}
	is, row, err := loadTerms(r, w.path)
	if err != nil {
		return nil, err
	}
	is, before := new(terms), is
	if before != nil {
		*is = *before
	}
	if err := is.amend(r, before == nil); err != nil {
		return nil, err
	}
	registered, its, err := rotator.Load(r.View, is.Rotator)
	switch {
	case err != nil:
		return nil, err
	case registered == nil:
		return nil, api.Errorf(api.Invalid, "there is no rotator %q: register it at sys/lessor/rotators/%s", is.Rotator, is.Rotator)
	case e.Rotators == nil:
		return nil, api.Errorf(api.Invalid, "this server calls no rotators")
	}
	if err := registered.May(r.Mount.Path + w.path); err != nil {
		return nil, err
	}
	if err := e.Rotators.Ready(registered); err != nil {
		return nil, err
	}
	txn := &w.reply.Txn
	txn.Require(its)
	if w.meta == nil {
		w.meta = create(r)
		w.meta.Created, w.meta.Updated = r.Now.UnixNano(), r.Now.UnixNano()
	}
	w.meta.Rotated = true
	w.meta.save(txn, w.row)
	t := &turn{Request: r, path: w.path, terms: is, termsRow: row, revision: w}
	if err := t.complete(); err != nil {
		return nil, err
	}
	schedule := is.schedule().Drawn(rotation.Chance(r.Random))
	switch {
	case before == nil:
		if err := t.begin(schedule); err != nil {
			return nil, err
		}
	case before.Single != is.Single && t.Phase() != rotation.Idle:
		return nil, api.Errorf(api.Invalid, "a rotation of this secret is under way: wait until it is done before you change its strategy")
	case before.schedule() != is.schedule() && t.Version != 0:
		t.Reschedule(schedule, r.Now)
	}
	if before != nil && before.Single != is.Single {
		t.regard()
	}
	t.Retry = time.Time{} // what failed may be tried again
	txn.Require(row)
	txn.Put(row.Table, row.Name, encode(is))
	if is.Single {
		w.reply.Warnings = append(w.reply.Warnings, "with the strategy single whoever uses the value is locked out by each rotation until it reads the new one; with overlap nobody is, if the target takes two values at a time")
	}
	w.reply.Warnings = append(w.reply.Warnings, rotation.NoLeaseEnds(is.CheckOut, r.Mount)...)
	return w.reply, t.save(txn)
}

// amend takes over what the client sent.
func (t *terms) amend(r *engine.Request, isNew bool) error {
	if r.Has("rotator") {
		t.Rotator = r.Str("rotator")
	}
	if t.Rotator == "" {
		return api.Errorf(api.Invalid, "rotator is needed: the name of one that is registered at sys/lessor/rotators")
	}
	if r.Has("options") {
		t.Options = r.Pairs("options")
	}
	switch s := r.Str("strategy"); {
	case !r.Has("strategy"):
	case s != overlap && s != single:
		return api.Errorf(api.Invalid, "strategy must be overlap or single")
	default:
		t.Single = s == single
	}
	for name, to := range map[string]*time.Duration{"rotation_grace": &t.Grace, "rotation_jitter": &t.Jitter, "rotation_window": &t.Window} {
		if r.Has(name) {
			*to = r.Dur(name)
		}
	}
	if r.Has("rotation_on_lease_end") {
		t.CheckOut = r.Bool("rotation_on_lease_end")
	}
	period, cron := r.Has("rotation_period"), r.Str("rotation_schedule") != ""
	switch {
	case period && cron:
		return api.Errorf(api.Invalid, "rotation_period and rotation_schedule exclude each other")
	case isNew && !period && !cron:
		return api.Errorf(api.Invalid, "rotation_period or rotation_schedule is needed")
	case period:
		t.Period, t.Cron = r.Dur("rotation_period"), ""
		if t.Period < rotation.ShortestPeriod {
			return api.Errorf(api.Invalid, "rotation_period must be %d seconds or more", rotation.ShortestPeriod/time.Second)
		}
	case cron:
		t.Period, t.Cron = 0, r.Str("rotation_schedule")
	}
	if t.Grace != 0 && t.Single {
		return api.Errorf(api.Invalid, "rotation_grace is for the strategy overlap: with single nobody can be waited for")
	}
	if err := t.schedule().Check(r.Now); err != nil {
		return api.Errorf(api.Invalid, "%v", err)
	}
	return nil
}

// begin makes what the secret is now what the rotation begins from.
func (t *turn) begin(s rotation.Schedule) error {
	t.Born, t.Due = t.meta.Born, t.Now
	if t.meta.Current == 0 {
		return nil
	}
	is, err := t.newest()
	if err != nil {
		return err
	}
	t.Adopt(t.values, is.sealed(), t.meta.Current)
	if !is.value.Empty() {
		t.Due = s.Next(t.Now)
	}
	return nil
}

// regard has all values that were in force before regarded as of the slot that is, as the other strategy does: they are proven dead all the same.
func (t *turn) regard() {
	for i := range t.values.Former {
		t.values.Former[i].Slot = t.Slot
	}
}

// deleteRotation leaves the secret as it is.
func deleteRotation(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t, err := turnOf(r, r.Param("path"))
	if err != nil || t == nil {
		return &engine.Reply{}, err
	}
	reply := &engine.Reply{Warnings: []string{"the value in force stays so at its target, and lessor keeps it as any other"}}
	if t.Phase() != rotation.Idle || len(t.values.Former) > 0 {
		reply.Warnings = append(reply.Warnings, "older values were not proven dead yet: their target may take them still")
	}
	t.drop(&reply.Txn)
	if t.meta != nil {
		t.meta.Rotated = false
		t.meta.save(&reply.Txn, t.revision.row)
	}
	return reply, nil
}

// rotateNow has a rotation begin at once.
func rotateNow(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t, err := turnOf(r, r.Param("path"))
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, api.Errorf(api.NotFound, "the secret has no rotation: write rotation/%s", r.Param("path"))
	}
	reply := &engine.Reply{}
	if t.Phase() != rotation.Idle {
		reply.Warnings = append(reply.Warnings, fmt.Sprintf("a rotation is under way (%s since %s): see lessor rotation status %s%s", t.Phase(), t.Since.Format(time.RFC3339), r.Mount.Path, t.path))
	}
	if err := t.Room(t.values, r.Now); err != nil {
		return nil, api.Errorf(api.Limited, "%v", err)
	}
	t.Demand(rotation.Asked, r.Now)
	t.Retry = time.Time{}
	reply.Txn.Require(t.termsRow)
	return reply, t.save(&reply.Txn)
}

// adopt takes over, into the same commit, a value that somebody wrote by hand. There is no such write while a rotation is under way: what its writer
// has seen is not what will be.
func (w *revision) adopt(r *engine.Request, value lessor.SecretJSON) error {
	if !w.meta.Rotated {
		return nil
	}
	t, err := turnOf(r, w.path)
	if err != nil || t == nil {
		return err
	}
	if t.Phase() != rotation.Idle {
		return api.Errorf(api.Invalid, "a rotation of this secret is under way (%s): wait until it is done, or give it up first with lessor rotation abort %s%s", t.Phase(), r.Mount.Path, w.path)
	}
	t.take(material{value: value.Secret}, w.meta.Current)
	w.reply.Warnings = append(w.reply.Warnings, "the secret is rotated: the next rotation begins from this value, and the one before it is not retired")
	return t.save(&w.reply.Txn)
}

// take adopts a value, and no longer wants the target to refuse it, should it be one that was in force before.
func (t *turn) take(m material, version uint64) {
	t.values.Former = slices.DeleteFunc(t.values.Former, func(f rotation.Former) bool {
		was, err := materialOf(f.Password)
		return err == nil && was.value.Equal(m.value)
	})
	t.Adopt(t.values, m.sealed(), version)
}

// AccountOf is the account that a path is about: secrets are called by their own, those at which they are read and rotated are known, too.
func (V2) AccountOf(path string) (string, bool) {
	for _, p := range paths {
		if rest, ok := strings.CutPrefix(path, p); ok {
			return rest, rest != ""
		}
	}
	return path, path != ""
}

// Terms are those on which a secret is rotated.
func (V2) Terms(v store.View, m *mount.Entry, account string) (*engine.Terms, error) {
	t, _, err := loadTerms(&engine.Request{View: v, Mount: m}, account)
	if err != nil || t == nil {
		return nil, err
	}
	return &engine.Terms{Path: "rotation/" + account, Reads: account, Accounts: []string{}, Schedule: t.schedule(), Strategy: t.strategy(), CheckOut: t.CheckOut}, nil
}

// material is a value on its way through a rotation, with the rotation's token: the rotator is asked by it again for what it was asked for before.
type material struct {
	token string        // empty: lessor did not have it made
	value lessor.Secret // a JSON object; empty: it is not made yet, or never will be

	retired bool // it stands in the place of an outgoing value that is retired: there is none
}

// sealedMaterial is how material is kept, as a Passwords' one. Names are on disk.
type sealedMaterial struct {
	Token string          `json:"token,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`

	Retired bool `json:"retired,omitempty"`
}

func (m material) sealed() lessor.Secret {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // the value stays as it is, to the byte
	if err := e.Encode(sealedMaterial{m.token, json.RawMessage(m.value.Reveal()), m.retired}); err != nil {
		panic(fmt.Sprintf("kv: %v", err)) // values are JSON
	}
	defer clear(b.Bytes())
	return lessor.NewSecret(b.Bytes())
}

func materialOf(s lessor.Secret) (m material, err error) {
	if s.Empty() {
		return m, nil
	}
	var is sealedMaterial
	if err := json.Unmarshal([]byte(s.Reveal()), &is); err != nil {
		return m, fmt.Errorf("kv: a value of a rotation is damaged")
	}
	return material{is.Token, lessor.NewSecret([]byte(is.Value)), is.Retired}, nil
}
