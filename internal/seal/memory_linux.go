package seal

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate is n zero bytes that are never swapped out and, where the kernel can, in no core dump. The error says which
// of that could not be had; the bytes are good all the same.
func allocate(n int) ([]byte, error) {
	page := os.Getpagesize()
	b, err := unix.Mmap(-1, 0, (n+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return make([]byte, n), err
	}
	return b[:n], errors.Join(unix.Madvise(b, unix.MADV_DONTDUMP), unix.Mlock(b))
}

// release zeroes what allocate gave and gives it back.
func release(b []byte) {
	clear(b)
	if b != nil {
		_ = unix.Munmap(b[:cap(b)]) // fails for what make gave, which the garbage collector has
	}
}
