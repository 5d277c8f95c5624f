package pebble

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// ballast is a file whose only worth is its size: when the disk is nearly full, or a write finds it full, it goes, so that
// revocations and their audit records still have room.
type ballast struct {
	fs     vfs.FS
	path   string
	size   int64
	log    *slog.Logger
	looked time.Time
	failed bool // to load it, which was said once
}

// tend is told how much is free.
func (b *ballast) tend(free int64) {
	_, err := b.fs.Stat(b.path)
	switch {
	case err == nil && free < b.size/2:
		b.drop()
	case errors.Is(err, fs.ErrNotExist) && free > 4*b.size:
		err := b.load()
		if err != nil && !b.failed {
			b.log.Warn("no ballast could be laid aside", "error", err)
		}
		b.failed = err != nil
	}
}

// drop gives its room to others.
func (b *ballast) drop() {
	err := b.fs.Remove(b.path)
	b.log.Warn("the disk is full: the ballast makes room for revocations", "bytes", b.size, "error", err)
}

// load makes the file. What the filesystem cannot reserve is written.
func (b *ballast) load() error {
	f, err := b.fs.Create(b.path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if err = f.Preallocate(0, b.size); err != nil {
		zeros := make([]byte, 1<<20)
		for n := int64(0); n < b.size; n += int64(len(zeros)) {
			if _, err = f.Write(zeros); err != nil {
				break
			}
		}
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, b.fs.Remove(b.path))
	}
	return nil
}

// logger passes what Pebble has to say to the log.
type logger struct {
	log   *slog.Logger
	fatal func(string)
}

func (l logger) Infof(format string, args ...any) {
	l.log.Debug("pebble: " + fmt.Sprintf(format, args...))
}
func (l logger) Errorf(format string, args ...any) {
	l.log.Error("pebble: " + fmt.Sprintf(format, args...))
}
func (l logger) Fatalf(format string, args ...any) { l.fatal(fmt.Sprintf(format, args...)) }

// listener reports what an operator should know of.
func listener(o *Options) *pebble.EventListener {
	log := o.Log
	return &pebble.EventListener{
		DataCorruption: func(i pebble.DataCorruptionInfo) {
			o.Damaged(fmt.Sprintf("the file %s is damaged: %v", i.Path, i.Details))
		},
		BackgroundError: func(err error) { log.Error("pebble: background work failed; it is tried again", "error", err.Error()) }, // without its stack
		DiskSlow: func(i pebble.DiskSlowInfo) {
			log.Warn("pebble: the disk is slow", "path", i.Path, "duration", i.Duration)
		},
		WriteStallBegin: func(i pebble.WriteStallBeginInfo) {
			log.Warn("pebble: writes wait for compactions", "reason", i.Reason)
		},
		WriteStallEnd: func() { log.Info("pebble: writes go on") },
	}
}
