package policy

import (
	"slices"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// Hears reports whether a principal, given the ACL compiled for it, may be told of an event about what is read at a path: who may read it, as
// far as capabilities say, or has the capability subscribe there, for such types of events. It grants nothing. match says whether a
// type is one of those that a pattern of subscribe_event_types stands for.
func Hears(a *ACL, p *lessor.Principal, path, kind string, match func(pattern, kind string) bool) bool {
	switch {
	case a == nil || p == nil:
		return false
	case a.root && p.Root:
		return true
	case a.root:
		return false
	}
	s := a.find(path, false)
	switch {
	case s == nil || s.capabilities.Has(Deny):
		return false
	case s.capabilities.Has(Read) && s.approvals(Read) == nil:
		return true
	}
	return slices.ContainsFunc(s.contributions, func(c contribution) bool {
		return c.Capabilities.Has(Subscribe) && slices.ContainsFunc(c.Events, func(pattern string) bool { return match(pattern, kind) })
	})
}
