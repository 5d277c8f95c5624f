// Package version knows which lessor this is.
package version

import "runtime/debug"

// Version is lessor's own version; the build sets it.
var Version = ""

// Reported is the version of Vault whose API lessor speaks: clients read it from health and seal-status, and decide by it
// what they dare to use.
const Reported = "1.20.0"

// String is lessor's version, or what the Go toolchain knows of it.
func String() string {
	if Version != "" {
		return Version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "dev"
}
