//go:build !linux

package access

// peer is the user of this machine who has a connection from one address to another: nothing says so here.
func peer(_, _ string) (uid int, known bool) { return 0, false }
