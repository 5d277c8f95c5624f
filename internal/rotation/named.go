package rotation

import (
	"strings"

	"github.com/lessor-dev/lessor/internal/mount"
)

// Named is the account whose row of store.Engine has a name within the mount.
func Named(row string) (account string, ok bool) { return strings.CutPrefix(row, accountRows) }

// NoLeaseEnds warns of a credential that is to be rotated when a lease on it ends, at a mount where there are none.
func NoLeaseEnds(checkedOut bool, m *mount.Entry) []string {
	if !checkedOut || m.Leases() {
		return nil
	}
	return []string{"rotation_on_lease_end does nothing: the mount keeps no leases of who reads (lease=off); have it keep them, shown or not: lessor secrets tune -options=lease=quiet " + m.Path}
}
