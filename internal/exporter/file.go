package exporter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// errUnsafe is the error of a file that lines must not go to.
var errUnsafe = errors.New("this file is not for audit lines")

func unsafe(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errUnsafe, fmt.Sprintf(format, args...))
}

const (
	window   = 64 << 10 // how far from its end a file is searched for a last line, at first
	farthest = 8 << 20  // and at most
)

// file is a sink.
type file struct {
	*os.File
	path string
}

// end is what is at the end of a file, and the header's hash that its last line names.
type end struct {
	tail
	header string
}

// openFile opens, or makes, the file that a device is told in, after looking whether it is one that lines may go to, and tells what is at its
// end. Whoever may enable audit devices names a file that the server writes to: so it writes neither to what is lessor's own nor
// to what is anything else than an audit log.
func openFile(s *settings, w *writer, private []string) (*file, end, error) {
	path, err := resolve(s.file)
	if err != nil {
		return nil, end{}, err
	}
	if err := vet(path, private); err != nil {
		return nil, end{}, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, end{}, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, s.mode)
	if errors.Is(err, syscall.ELOOP) {
		err = unsafe("%s is a symbolic link", path)
	}
	if err != nil {
		return nil, end{}, err
	}
	out := &file{f, path}
	e, err := out.begin(s, w, private)
	if err != nil {
		_ = f.Close()
		return nil, end{}, err
	}
	return out, e, nil
}

// begin looks at the file once it is open.
func (f *file) begin(s *settings, w *writer, private []string) (end, error) {
	info, err := f.Stat()
	if err != nil {
		return end{}, err
	}
	if err := ordinary(f.path, info); err != nil {
		return end{}, err
	}
	for _, p := range private {
		if own, err := os.Stat(p); err == nil && os.SameFile(own, info) {
			return end{}, unsafe("%s is lessor's own", f.path)
		}
	}
	e, err := f.end(w, info.Size())
	if err != nil {
		return end{}, err
	}
	if !s.keepMode && info.Mode().Perm() != s.mode {
		if err := f.Chmod(s.mode); err != nil {
			return end{}, err
		}
	}
	return e, nil
}

// ordinary refuses what is no plain file.
func ordinary(path string, info fs.FileInfo) error {
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return unsafe("%s is a symbolic link", path)
	case !info.Mode().IsRegular():
		return unsafe("%s is no regular file", path)
	case info.Mode().Perm()&0o111 != 0:
		return unsafe("%s is executable", path)
	}
	return nil
}

// resolve takes symbolic links out of the folders of a path, as far as they exist.
func resolve(path string) (string, error) {
	dir, rest := filepath.Dir(path), filepath.Base(path)
	for {
		real, err := filepath.EvalSymlinks(dir)
		if err == nil {
			return filepath.Join(real, rest), nil
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return "", err
		}
		if info, err := os.Lstat(dir); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			return "", unsafe("%s is a symbolic link to nowhere", dir)
		}
		dir, rest = filepath.Dir(dir), filepath.Join(filepath.Base(dir), rest)
	}
}

// vet refuses a path by where it is, and by what is there already.
func vet(path string, private []string) error {
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if within(path, dir) {
			return unsafe("%s is no place for files", dir)
		}
	}
	for _, p := range private {
		own, err := filepath.Abs(p)
		if err != nil {
			return err
		}
		if own, err = resolve(own); err != nil {
			continue
		}
		if real, err := filepath.EvalSymlinks(own); err == nil {
			own = real
		}
		if within(path, own) {
			return unsafe("%s is lessor's own", path)
		}
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return ordinary(path, info)
}

// within says whether path is dir or lies in it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

// Vet refuses, with an error of kind Invalid, a device whose file lines must not go to, as far as that can be seen without touching it.
func (x *Exporters) Vet(d *Device) error {
	s, err := parse(d.Type, d.Options)
	if err != nil || !s.real() {
		return err
	}
	path, err := resolve(s.file)
	if err == nil {
		err = vet(path, x.o.Private)
	}
	if errors.Is(err, errUnsafe) {
		return wrong("%v", err)
	}
	return nil // what else is wrong shows when it is opened
}

// end reads what is at the end of the file. A file that ends in anything else than audit lines is refused.
func (f *file) end(w *writer, size int64) (end, error) {
	if size == 0 {
		return end{}, nil
	}
	var text []byte
	start := int64(-1) // of the last whole line in text
	for n := int64(window); start < 0; n *= 8 {
		n = min(n, size)
		text = make([]byte, n)
		if _, err := f.ReadAt(text, size-n); err != nil {
			return end{}, err
		}
		if last := bytes.LastIndexByte(text, '\n'); last >= 0 {
			start = int64(bytes.LastIndexByte(text[:last], '\n'))
			if start >= 0 || n == size {
				text = text[start+1:]
				break
			}
		} else if n == size {
			break
		}
		if n >= farthest {
			return end{}, unsafe("%s exists and does not end in audit lines", f.path)
		}
	}
	line, torn, whole := bytes.Cut(text, []byte("\n"))
	if !whole {
		line, torn = nil, text
	}
	var e end
	if len(torn) > 0 {
		e.torn = torn
		if begin := append([]byte(w.set.prefix), "{\""...); line == nil && !bytes.HasPrefix(torn, begin[:min(len(begin), len(torn))]) {
			return end{}, unsafe("%s exists and is no audit log", f.path)
		}
	}
	if line == nil {
		return e, nil
	}
	if !w.looksAudited(line) {
		return end{}, unsafe("%s exists and does not end in audit lines", f.path)
	}
	if l, err := w.parse(line); err == nil && l.Lessor.Device == w.device.UUID {
		e.place, e.header = place{l.Lessor.Incarnation, l.Lessor.Sequence, l.Lessor.Index}, l.Lessor.Header
	}
	return e, nil
}

// Write appends lines. What was written of them before an error stays: the next session continues behind it.
func (f *file) Write(_ context.Context, lines []byte, _ func(error)) error {
	_, err := f.File.Write(lines)
	return err
}

// Sync makes the lines durable.
func (f *file) Sync(context.Context) error { return f.File.Sync() }

// moved reports whether something else, or nothing, is where the file was.
func (f *file) moved() bool {
	there, err := os.Lstat(f.path)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	here, err := f.Stat()
	return err == nil && !os.SameFile(there, here)
}
