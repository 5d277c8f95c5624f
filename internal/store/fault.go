package store

import "errors"

// Passing reports whether err, a Fault or the error of an attempt to open the store, may be gone when the store is opened anew: what the
// store lies in was away, or an outcome was unknown. Damage stays, and so does a store that is behind what it was.
func Passing(err error) bool {
	var damage *Damage
	return !errors.As(err, &damage) && !errors.Is(err, errElsewhere) && !errors.Is(err, ErrBehind) && !errors.Is(err, errSum)
}
