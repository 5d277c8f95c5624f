package ldap

import (
	"github.com/lessor-dev/lessor/internal/engine/turn"
	"github.com/lessor-dev/lessor/internal/event"
	"github.com/lessor-dev/lessor/internal/store"
)

// Announce makes the Engine an Announcer: of static roles that have a new password in force.
func (e *Engine) Announce(_ store.View, c *event.Commit) ([]*event.Event, error) {
	return turn.Announce(c, staticPrefix, staticCred, nil)
}
