//go:build !linux

package agent

import "errors"

func lockedPage(size int) ([]byte, error) {
	return make([]byte, size), errors.New("memory is locked on Linux only")
}
