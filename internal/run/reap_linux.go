package run

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// reap collects what has ended of the processes that others have started and left to this one, so that the system can forget them. The command is not
// among them: it is waited for.
func reap(command int) {
	all, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range all {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		var pid, parent int
		var state string
		_, err = fmt.Sscan(string(text), &pid)
		if err == nil { // the program's name may have anything in it
			_, err = fmt.Sscan(string(text[bytes.LastIndexByte(text, ')')+1:]), &state, &parent)
		}
		if err == nil && state == "Z" && parent == os.Getpid() && pid != command {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
}
