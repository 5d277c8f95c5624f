package exporter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/store"
)

// Report is what Check found. Numbers count lines, but for Missing.
type Report struct {
	Lines       uint64 // of this device
	Foreign     uint64 // of other devices, or none: not compared
	Pruned      uint64 // whose records retention has removed: compared with their commit's header only
	Repeated    uint64 // told again after a crash
	Missing     uint64 // records between the first line and the last that have none
	First, Last uint64 // sequences
	Line        uint64 // the first line that does not fit, from 1
	Broken      string // why; empty: all fit
}

// longestLine bounds a line that is read.
const longestLine = 4 << 20

// Check compares the file of a device, as it is now, with the chain: each line must be what the device would be told of its record today,
// and name the header of its commit. So it finds lines that were altered, made up, or taken out from between others. Names of mounts,
// which are those of when the line was written, are not compared.
func (x *Exporters) Check(ctx context.Context, d *Device) (Report, error) {
	s, err := parse(d.Type, d.Options)
	if err != nil {
		return Report{}, err
	}
	if !s.real() {
		return Report{}, api.Errorf(api.Invalid, "the audit device %q is no file that could be read back", d.Path)
	}
	f, err := os.Open(s.file)
	if err != nil {
		return Report{}, api.Errorf(api.Invalid, "the file of the audit device %q cannot be read", d.Path)
	}
	defer func() { _ = f.Close() }()
	c := &checker{ctx: ctx, w: &writer{device: d, set: s, keys: x.o.Keys}, db: x.o.Store}
	lines := bufio.NewScanner(f)
	lines.Buffer(make([]byte, 64<<10), longestLine)
	for n := uint64(1); lines.Scan(); n++ {
		if err := ctx.Err(); err != nil {
			return Report{}, err
		}
		if err := c.line(lines.Bytes()); err != nil {
			var m mismatch
			if !errors.As(err, &m) {
				return Report{}, err
			}
			c.report.Line, c.report.Broken = n, string(m)
			return c.report, nil
		}
	}
	return c.report, lines.Err()
}

// mismatch is a line that does not fit.
type mismatch string

func (m mismatch) Error() string { return string(m) }

func mismatched(format string, args ...any) error { return mismatch(fmt.Sprintf(format, args...)) }

// checker goes through a file.
type checker struct {
	ctx     context.Context
	w       *writer
	db      *store.DB
	report  Report
	last    place
	commits []store.Commit // that were read last, and the lines to come are likely of
}

func (c *checker) line(line []byte) error {
	e, err := c.w.parse(line)
	if err != nil || e.Lessor.Device == "" {
		if c.w.looksAudited(line) {
			c.report.Foreign++
			return nil
		}
		return mismatched("it is no audit line: it was cut off, or altered")
	}
	l := &e.Lessor
	if l.Device != c.w.device.UUID {
		c.report.Foreign++
		return nil
	}
	c.report.Lines++
	at := place{l.Incarnation, l.Sequence, l.Index}
	commit, err := c.commit(at.sequence)
	switch {
	case err != nil:
		return err
	case commit == nil:
		return mismatched("commit %d is not in the chain", at.sequence)
	case l.Header != fmt.Sprintf("%x", commit.Hash) || l.Incarnation != commit.Incarnation:
		return mismatched("commit %d of the chain is another one", at.sequence)
	}
	if !at.after(c.last) {
		c.report.Repeated++
	} else if err := c.between(at); err != nil {
		return err
	} else {
		c.last = at
	}
	if c.report.First == 0 {
		c.report.First = at.sequence
	}
	c.report.Last = max(c.report.Last, at.sequence)
	if commit.Gone() {
		c.report.Pruned++
		return nil
	}
	if int(at.index) >= len(commit.Records) {
		return mismatched("commit %d has no record %d", at.sequence, at.index)
	}
	told, err := c.w.parse(c.w.append(nil, commit, &commit.Records[at.index]))
	if err != nil {
		return err
	}
	if !same(e, told) {
		return mismatched("it is not what record %d of commit %d says", at.index, at.sequence)
	}
	return nil
}

// between counts the records that lie between the last line and one at a place.
func (c *checker) between(at place) error {
	if c.last == (place{}) {
		return nil
	}
	if at.sequence == c.last.sequence {
		c.report.Missing += uint64(at.index - c.last.index - 1)
		return nil
	}
	for seq := c.last.sequence; seq <= at.sequence; seq++ {
		commit, err := c.commit(seq)
		if err != nil {
			return err
		}
		switch {
		case commit == nil:
		case seq == c.last.sequence:
			c.report.Missing += uint64(commit.Count - c.last.index - 1)
		case seq == at.sequence:
			c.report.Missing += uint64(at.index)
		default:
			c.report.Missing += uint64(commit.Count)
		}
	}
	return nil
}

// commit reads one; nil: there is none.
func (c *checker) commit(seq uint64) (*store.Commit, error) {
	if n := len(c.commits); n == 0 || seq < c.commits[0].Seq || seq > c.commits[n-1].Seq {
		var err error
		if seq == 0 {
			return nil, nil
		}
		if c.commits, err = c.db.Commits(seq, chunk); err == nil && len(c.commits) == 0 { // another node may have told of it before this one heard
			if err = c.db.Fresh(c.ctx); err == nil {
				c.commits, err = c.db.Commits(seq, chunk)
			}
		}
		if err != nil || len(c.commits) == 0 {
			return nil, err
		}
	}
	return &c.commits[seq-c.commits[0].Seq], nil
}

// same compares two entries, but for where things were mounted.
func same(a, b *entry) bool {
	return reflect.DeepEqual(unmounted(a), unmounted(b))
}

func unmounted(e *entry) *entry {
	u := *e
	u.Request.MountPoint, u.Request.MountType, u.Request.MountAccessor, u.Request.MountClass = "", "", "", ""
	if u.Response != nil {
		u.Response = &response{Secret: u.Response.Secret}
	}
	return &u
}
