package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/lessor-dev/lessor/internal/archive"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/store"
)

// Origin names a backup: a file, or a point of a destination.
type Origin struct {
	File        string // of lessor operator backup; empty: Destination
	Destination string // URL, see archive.Open; empty: the configuration's
	Set         string // only of this set, or the point of this name; empty: of all
	At          time.Time
}

// source is a backup that was opened.
type source struct {
	store.Source
	point *archive.Segment // nil: a file
	close func() error
	size  func() (segments int, bytes int64)
}

// open opens the backup; progress is told how far it was read.
func (o Origin) open(ctx context.Context, c config.Backup, progress func(string)) (source, error) {
	if o.File != "" {
		return openFile(o.File, progress)
	}
	d, err := o.destination(c)
	if err != nil {
		return source{}, err
	}
	catalog, err := archive.Read(ctx, d)
	if err != nil {
		return source{}, err
	}
	at := o.At
	if at.IsZero() {
		at = time.Unix(1<<40, 0)
	}
	p, err := catalog.At(at, o.Set)
	if err != nil {
		return source{}, fmt.Errorf("%w in %s", err, d)
	}
	from := archive.NewSource(ctx, d, catalog, p)
	from.Progress = func(done, total int64) { progress(fmt.Sprintf("read %d of %d MiB of the backup", done>>20, total>>20)) }
	return source{from, &p, func() error { return nil }, from.Size}, nil
}

func (o Origin) destination(c config.Backup) (archive.Destination, error) {
	switch {
	case o.Destination != "":
		return archive.Open(o.Destination)
	case c.Destination != "":
		return archive.Open(c.Destination)
	}
	return nil, errors.New("no backup was named: name a file, or a destination, or a configuration that has one")
}

func openFile(name string, progress func(string)) (source, error) {
	f, err := os.Open(name)
	if err != nil {
		return source{}, err
	}
	read := &told{f, 0, progress}
	from, err := store.ReadBackup(read)
	if err != nil {
		return source{}, errors.Join(err, f.Close())
	}
	return source{from, nil, f.Close, func() (int, int64) { return 1, read.n }}, nil
}

// Points tells what a destination has, and what is missing of it, in words.
func Points(ctx context.Context, c config.Config, o Origin) (points []archive.Segment, broken []string, err error) {
	d, err := o.destination(c.Backup)
	if err != nil {
		return nil, nil, err
	}
	catalog, err := archive.Read(ctx, d)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range catalog.Points {
		if o.Set == "" || p.Set == o.Set {
			points = append(points, p)
		}
	}
	return points, catalog.Broken, nil
}

// Drilled is what a drill found.
type Drilled struct {
	Verified
	Point    string // name of the point that was restored; empty: a file
	Seq      uint64 // of its last commit
	Hash     string // of that commit's header, hex: by it a server knows the commit for its own
	Time     time.Time
	Age      time.Duration
	Segments int
	Bytes    int64
	Restore  time.Duration // how long restoring took
	Verify   time.Duration // how long verifying took
}

// DrillOptions say how to drill.
type DrillOptions struct {
	Scratch  string // a folder to restore in a new folder of; empty: the system's temporary one
	Recovery bool   // unseal by the recovery file only: does it work?
	Progress func(string)
}

// Drill restores a backup into a new folder, which goes away again, and verifies it wholly. Nothing of it is ever served, and no target is
// touched. Of c it takes what unseals; the server of c may run meanwhile. An error means that the backup could not be restored; what
// was restored and is broken is in Drilled.
func Drill(ctx context.Context, c config.Config, o Options, from Origin, how DrillOptions) (found Drilled, err error) {
	if err := c.Validate(); err != nil {
		return Drilled{}, err
	}
	original := newNode(c, o)
	dir, err := os.MkdirTemp(how.Scratch, "lessor-drill-")
	if err != nil {
		return Drilled{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	o.Recovery.File = original.recoveryFile()
	c.Storage = config.Storage{Type: config.Pebble, Path: filepath.Join(dir, "data")}
	c.Seal.Anchor = filepath.Join(dir, "anchor")
	if how.Recovery {
		if o.Recovery.Passphrase.Empty() {
			return Drilled{}, errors.New("the recovery file cannot be tried: name a file with its passphrase in LESSOR_RECOVERY_PASSPHRASE_FILE")
		}
		c.Seal.KeyFile, o.Recovery.UnsealKeys = "", nil
	}
	n := newNode(c, o)

	began := time.Now()
	backup, err := from.open(ctx, original.config.Backup, how.Progress)
	if err != nil {
		return Drilled{}, err
	}
	defer func() { err = errors.Join(err, backup.close()) }()
	b, err := openFolder(c.Storage.Path, n.o, nil)
	if err != nil {
		return Drilled{}, err
	}
	void := func(v store.View, txn *store.Txn) error {
		h := n.o.Clock.Now()
		txn.Audit = append(txn.Audit, bootstrapRecord(h, "drill", "sys/lessor/backup"))
		return n.void(v, txn, h)
	}
	head, err := n.restore(ctx, backup, b, void)
	if err != nil {
		return Drilled{}, err
	}
	found.Restore = time.Since(began)
	found.Segments, found.Bytes = backup.size()
	if backup.point != nil {
		found.Point = backup.point.Name()
	}

	began = time.Now()
	if b, err = openFolder(c.Storage.Path, n.o, nil); err != nil {
		return found, err
	}
	if n.db, err = store.Open(b, n.storeOptions()); err != nil {
		return found, errors.Join(err, b.Close())
	}
	found.Verified, err = n.verify(ctx, b, func(done, total uint64) { how.Progress(fmt.Sprintf("verified %d of %d commits", done, total)) })
	if last, hash, lost := n.db.Header(head.Seq - 1); lost == nil { // the one before the restore's own
		found.Seq, found.Hash = last.Seq, hex.EncodeToString(hash[:])
		found.Time, found.Age = last.Time, n.o.Clock.Now().Sub(last.Time)
	}
	found.Verify = time.Since(began)
	return found, errors.Join(err, n.close())
}
