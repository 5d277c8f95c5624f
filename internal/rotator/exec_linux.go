package rotator

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lessor-dev/lessor/api"
)

const (
	largestProgram = 256 << 20 // bytes
	lastBreath     = 2 * time.Second
)

// limits are what a program may use; they are set before it is told anything.
var limits = map[int]uint64{
	unix.RLIMIT_NOFILE: 256, unix.RLIMIT_FSIZE: 16 << 20, unix.RLIMIT_CPU: uint64(LongestTimeout / time.Second),
	unix.RLIMIT_NPROC: 512, // of all that its user runs, so only where that is its own
}

// limit sets them for a process that was started, as far as lessor may: to limit another user's process takes CAP_SYS_RESOURCE. That it leaves no image
// of its memory behind is certain, though: lessor's own limit, which the server sets, is the program's from its start.
func limit(pid int, ownUser bool) error {
	set := func(what int, most uint64) error {
		var own unix.Rlimit
		if err := unix.Getrlimit(what, &own); err != nil || own.Max <= most {
			return err
		}
		return unix.Prlimit(pid, what, &unix.Rlimit{Cur: most, Max: most}, nil)
	}
	for what, most := range limits {
		if what == unix.RLIMIT_NPROC && !ownUser {
			continue
		}
		if err := set(what, most); err != nil && !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	return set(unix.RLIMIT_CORE, 0)
}

// identity is as whom a program runs; nil: as lessor.
func (k *Caller) identity(r *Rotator) (*syscall.Credential, error) {
	own := os.Geteuid()
	if r.User == "" {
		return nil, k.asSelf(own)
	}
	u, err := user.Lookup(r.User)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "this machine has no user %q for the rotator", r.User)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	switch {
	case err != nil:
		return nil, err
	case uid == 0 || gid == 0:
		return nil, api.Errorf(api.Invalid, "the rotator's user must not be root, nor of root's group")
	case int(uid) == own:
		return nil, k.asSelf(own)
	case own != 0:
		return nil, api.Errorf(api.Invalid, "lessor does not run as root, and so cannot run a rotator as %q: leave out user, and allow rotators to run as lessor does (rotator_same_user in the server's configuration)", r.User)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil // no supplementary groups
}

// asSelf says why a program may not run as lessor does.
func (k *Caller) asSelf(own int) error {
	switch {
	case own == 0:
		return api.Errorf(api.Invalid, "lessor runs as root: give the rotator a user of its own")
	case !k.SameUser:
		return api.Errorf(api.Invalid, "a rotator that runs as lessor does can read what lessor can: give it a user of its own, which takes a lessor that runs as root, or allow it with rotator_same_user in the server's configuration")
	}
	return nil
}

// run runs the program once, and returns what it wrote.
func (k *Caller) run(ctx context.Context, r *Rotator, c *Call, in []byte) ([]byte, error) {
	credential, err := k.identity(r)
	if err != nil {
		return nil, err
	}
	image, err := load(r)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	out, noise := &bounded{most: largestAnswer}, &bounded{}
	out.Grow(largestAnswer) // so that no copies are left of what it grew from
	stdin, give, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer give.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/fd/3")
	cmd.Args = []string{filepath.Base(r.Path)}
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8"}
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = stdin, out, noise, []*os.File{image}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: credential} // a group that its leader cannot leave, and no terminal
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = lastBreath
	err = cmd.Start()
	stdin.Close()
	if err != nil {
		return nil, &api.Error{Kind: api.Upstream, Cause: ErrUnreachable, Text: "the rotator cannot be started: " + reason(err)}
	}
	written := make(chan struct{})
	if err = limit(cmd.Process.Pid, credential != nil); err == nil {
		go func() {
			defer close(written)
			_, _ = give.Write(in) // who reads no further is told by its exit code
			give.Close()
		}()
	} else {
		close(written)
		_ = cmd.Cancel()
	}
	ended(cmd.Process.Pid)
	_ = cmd.Cancel() // what it left behind, while its number is nobody else's
	done := cmd.Wait()
	give.Close()
	<-written // in is its caller's again
	switch {
	case err != nil && !errors.Is(err, unix.ESRCH):
		return nil, &api.Error{Kind: api.Upstream, Cause: ErrUnreachable, Text: "the rotator's limits cannot be set: " + reason(err)}
	case ctx.Err() != nil:
		return nil, &api.Error{Kind: api.Upstream, Cause: ErrUnreachable, Text: fmt.Sprintf("the rotator did not end the step %q in time, and was killed", c.Step)}
	case errors.Is(done, exec.ErrWaitDelay):
		return nil, c.failed("something that it has started goes on, and keeps its output open")
	case done != nil:
		return nil, c.failed(fmt.Sprintf("it ended with exit code %d; it wrote %d bytes to standard error, which are not kept", cmd.ProcessState.ExitCode(), noise.n))
	case out.n > largestAnswer:
		return nil, c.failed(fmt.Sprintf("it answered with more than %d bytes", largestAnswer))
	}
	return out.Bytes(), nil
}

// ended waits until a child has ended, and leaves it to be waited for.
func ended(pid int) {
	for {
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// load copies the program into memory that nobody can change any more, provided that it is the one that was registered.
func load(r *Rotator) (image *os.File, err error) {
	f, err := os.OpenFile(r.Path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &api.Error{Kind: api.Upstream, Cause: ErrUnreachable, Text: "the rotator's program cannot be opened: " + reason(err)}
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() > largestProgram {
		return nil, api.Errorf(api.Upstream, "the rotator's program is no file of %d MiB at most", largestProgram>>20)
	}
	syscall.ForkLock.RLock() // a program that is started meanwhile would have it open for writing, too, and what is cannot be run
	defer syscall.ForkLock.RUnlock()
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("rotator", flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3, where all of it can be run
		fd, err = unix.MemfdCreate("rotator", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("rotator: memory for a program: %w", err)
	}
	image = os.NewFile(uintptr(fd), "rotator")
	defer func() {
		if err != nil {
			image.Close()
		}
	}()
	sum := sha256.New()
	if _, err = io.Copy(io.MultiWriter(image, sum), io.LimitReader(f, largestProgram)); err != nil {
		return nil, fmt.Errorf("rotator: reading a program: %w", err)
	}
	if subtle.ConstantTimeCompare(sum.Sum(nil), r.Sum) != 1 {
		return nil, api.Errorf(api.Upstream, "the rotator's program is not the one that was registered: its SHA-256 is another; register it anew if that is right")
	}
	if err = unix.Fchmod(fd, 0o555); err != nil {
		return nil, err
	}
	const all = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err = unix.FcntlInt(image.Fd(), unix.F_ADD_SEALS, all); err != nil {
		return nil, fmt.Errorf("rotator: sealing a program: %w", err)
	}
	again, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	image.Close()
	return again, err
}

// reason is the system's word, without paths.
func reason(err error) string {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e.Error()
	}
	return "the system does not let lessor"
}

// bounded keeps as much as it may of what is written, and counts the rest.
type bounded struct {
	bytes.Buffer
	most, n int
}

func (b *bounded) Write(p []byte) (int, error) {
	if room := b.most - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	b.n += len(p)
	return len(p), nil
}

// ReadFrom would go past Write.
func (b *bounded) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{b}, r)
}
