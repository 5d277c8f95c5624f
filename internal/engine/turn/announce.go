package turn

import (
	"strconv"
	"strings"

	"github.com/lessor-dev/lessor/internal/event"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// Announce tells of static roles that have a new password in force (engine.Announcer): those whose account begins with prefix, and which are read at reads and the
// rest of it. That one has is on record with the commit that made it so; once the records are pruned nothing is told. also, if not nil, is told before.
func Announce(c *event.Commit, prefix, reads string, also func(name string) *event.Event) (events []*event.Event, err error) {
	for _, t := range c.Touched {
		account, ok := rotation.Named(t.Name)
		name, static := strings.CutPrefix(account, prefix)
		if !ok || !static || t.Table != store.Engine || t.Deleted {
			continue
		}
		version, ok, err := c.Written(reads + name)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		all := []*event.Event{{Type: event.Rotated, Metadata: map[string]string{"name": name, "version": strconv.FormatUint(version, 10)}}}
		if also != nil {
			all = append([]*event.Event{also(name)}, all...)
		}
		for _, e := range all {
			e.Path, e.Touch = reads+name, t.Touch
		}
		events = append(events, all...)
	}
	return events, nil
}
