package servertest

import (
	"io"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
)

// watch is a shell that waits for its standard input to end, which it does when the test process ends in whatever way, or by end. It then ends all
// processes that work in a folder, whoever their parent is by then, and removes the folder with what is mounted there.
type watch struct{ end func() }

// watching is the shell's program: $0 is the folder, $1 the signal that ends the server as a crash does. A process that this one was about to
// start when it was killed may come late, to a folder that is gone.
const watching = `
read -r told
sweep() {
	signal=$1 times=0
	while working=$(find /proc/[0-9]*/cwd -maxdepth 0 \( -lname "$0" -o -lname "$0[ /]*" \) 2>/dev/null | cut -d / -f 3) && [ -n "$working" ] && [ $times -lt 600 ]; do
		kill -CONT $working 2>/dev/null
		kill "-$signal" $working 2>/dev/null
		times=$((times + 1))
		[ $times -lt 40 ] || signal=9
		sleep 0.05
	done
}
sweep "$1"
while read -r _ at _; do
	case $at in "$0"/*) umount -l "$at" ;; esac
done </proc/mounts
rm -rf "$0"
[ -n "$told" ] || for _ in 1 2 3 4 5; do
	sleep 0.1
	sweep 9
	rm -rf "$0"
done`

func watchOver(dir string, kill syscall.Signal) (*watch, error) {
	cmd := exec.Command("/bin/sh", "-c", watching, dir, strconv.Itoa(int(kill)))
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &watch{sync.OnceFunc(func() {
		_, _ = io.WriteString(in, "end\n")
		_ = in.Close()
		_ = cmd.Wait()
	})}, nil
}
