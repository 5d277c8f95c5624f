package run

// Inherit has this process collect what others have started and left to it, as the first one of a container does, until what it returns is called.
func Inherit() (restore func()) {
	inherits = true
	return func() { inherits = false }
}
