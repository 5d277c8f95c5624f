package agent

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// lockedPage is memory outside of the collector's that stays in memory and out of dumps, and that children do not inherit. It is never given back. The error says what of that it lacks.
func lockedPage(size int) ([]byte, error) {
	page, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return make([]byte, size), fmt.Errorf("there is no page to lock: %w", err)
	}
	err = errors.Join(unix.Madvise(page, unix.MADV_DONTDUMP), unix.Madvise(page, unix.MADV_WIPEONFORK))
	if failed := unix.Mlock(page); failed != nil {
		err = errors.Join(err, fmt.Errorf("the page cannot be locked (ulimit -l, LimitMEMLOCK=): %w", failed))
	}
	return page, err
}
