package rotation

import "strings"

// Named is the account whose row of store.Engine has a name within the mount.
func Named(row string) (account string, ok bool) { return strings.CutPrefix(row, accountRows) }
