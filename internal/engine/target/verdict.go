package target

import (
	"errors"
	"fmt"
)

// Verdict is what a target says of a password. An account has one: when it accepts one, all others are dead.
type Verdict uint8

const (
	Refused  Verdict = iota + 1 // it is wrong
	Accepted                    // it is right, whatever keeps the account from logging in for the moment, or from here
	Unknown                     // it does not say: the account is locked, or is let in from elsewhere only, or not by password
	Barred                      // it is right, but nobody logs in to the account until somebody lets it: it is locked, disabled, or may not log in at all
)

// Right reports whether the password is right, whether or not the account may log in with it.
func (v Verdict) Right() bool { return v == Accepted || v == Barred }

// ErrUnreachable marks errors of a target that cannot be asked at present: down, hanging, busy, out of sessions. Others say that it was asked and refused.
var ErrUnreachable = errors.New("target: unreachable")

// ErrUntouched marks those of them that came before anything was sent: nothing can have happened.
var ErrUntouched = fmt.Errorf("%w: no session", ErrUnreachable)
