//go:build !linux

package access

// peer is the user of this machine who has a connection to it from an address: nothing says so here.
func peer(string) (uid int, known bool) { return 0, false }
