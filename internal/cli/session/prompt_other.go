//go:build !linux

package session

// hush does nothing: what is typed before it is read may be shown.
func hush(int) error { return nil }
