package database

import (
	"strconv"
	"strings"

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
		path := staticCreds + name
		version, ok, err := c.Written(path)
		if err != nil {
			return nil, err
		}
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
