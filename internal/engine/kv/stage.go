package kv

import (
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rotation"
)

// Stages of values on their way through a rotation. AWS's names for them are known, too.
const (
	current  = "current"
	pending  = "pending"
	previous = "previous"
)

// staged makes a read one of a stage: of another version, or, where it is not to be one of the secret's versions yet, a reply of its own.
func (f *found) staged(r *engine.Request) (*engine.Reply, error) {
	name := strings.ToLower(r.Str("stage"))
	if short, ok := strings.CutPrefix(name, "aws"); ok {
		name = short
	}
	if f.pinned {
		return nil, api.Errorf(api.Invalid, "send version or stage, not both")
	}
	t, err := turnOf(r, f.path)
	switch {
	case err != nil:
		return nil, err
	case t == nil:
		return nil, api.Errorf(api.Invalid, "the secret has no rotation, and so no stages")
	}
	switch name {
	case current:
		return nil, nil
	case previous:
		n := t.before()
		if f.meta.version(n) == nil {
			return nil, missing()
		}
		f.number, f.pinned = n, true
		return nil, nil
	case pending:
		return t.showPending(r)
	}
	return nil, api.Errorf(api.Invalid, "stage must be current, previous or pending")
}

// before is the version that was in force before the current one; 0: there was none.
func (t *turn) before() uint64 {
	if t.Outgoing != 0 {
		return t.Outgoing
	}
	return max(t.Version, 1) - 1
}

// showPending shows the value that readers are not shown yet: it is for who configures the rotation. It is no version, and nobody holds it.
func (t *turn) showPending(r *engine.Request) (*engine.Reply, error) {
	may, err := r.System.Capabilities(r.System.Caller(), r.Mount.Path+"rotation/"+t.path)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(may, "update") && !slices.Contains(may, "root") {
		return nil, api.Errorf(api.Denied, "permission denied")
	}
	is, err := materialOf(t.values.Pending)
	if err != nil {
		return nil, err
	}
	if t.Phase() != rotation.Setting || is.value.Empty() {
		return nil, missing()
	}
	value := lessor.SecretJSON{Secret: is.value}
	reply := &engine.Reply{Data: map[string]any{"data": value, "metadata": map[string]any{"version": t.Pending, "stage": pending}}}
	reply.Shown = shown(r, t.path, t.Pending, value, "shown")
	return reply, nil
}

// stages are the versions that have a stage now.
func stages(r *engine.Request, path string) (map[string]any, error) {
	t, err := turnOf(r, path)
	if err != nil || t == nil {
		return nil, err
	}
	all := map[string]any{}
	for name, n := range map[string]uint64{current: t.Version, previous: t.before()} {
		if n != 0 {
			all[name] = n
		}
	}
	if t.Phase() == rotation.Setting {
		all[pending] = t.Pending
	}
	return all, nil
}
