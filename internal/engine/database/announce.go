package database

import (
	"slices"
	"strconv"
	"strings"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/event"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// Announce makes the Engine an Announcer: of static roles that have a new password in force. That one has is on record with the commit that
// made it so; once the records are pruned nothing is told.
func (e *Engine) Announce(_ store.View, c *event.Commit) (events []*event.Event, err error) {
	for _, t := range c.Touched {
		account, ok := rotation.Named(t.Name)
		name, static := strings.CutPrefix(account, staticPrefix)
		if !ok || !static || t.Table != store.Engine || t.Deleted {
			continue
		}
		acts, err := c.Acts()
		if err != nil {
			return nil, err
		}
		path := staticCreds + name
		version, ok := written(acts, path)
		if !ok {
			continue
		}
		events = append(events,
			&event.Event{Type: "database/rotate", Path: path, Touch: t.Touch, Metadata: map[string]string{"name": name, "path": "rotate-role/" + name}},
			&event.Event{Type: event.Rotated, Path: path, Touch: t.Touch, Metadata: map[string]string{
				"name": name, "version": strconv.FormatUint(version, 10),
			}})
	}
	return events, nil
}

// written is the version of a credential that is on record as the one in force from now on.
func written(acts []audit.Record, path string) (version uint64, ok bool) {
	for i := range acts {
		shown := acts[i].Secrets
		if at := slices.IndexFunc(shown, func(s audit.Shown) bool { return s.Path == path && s.How == "written" }); at >= 0 {
			return shown[at].Version, true
		}
	}
	return 0, false
}
