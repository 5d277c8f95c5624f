// Command bench measures lessor beside its limits, in one run on one machine, and writes a table (see BENCHMARKS.md).
//
// This process makes the load. Lessor, PostgreSQL and the limit (limit.go: this program, executing itself) are processes of their own,
// all on loopback and in a temporary folder. Slices of a few seconds alternate between a figure and its limit, so that both see
// the same machine; what is reported are medians, and the ratio of each pair of slices.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	if path := os.Getenv(limitVariable); path != "" {
		if err := limit(path); err != nil {
			fmt.Fprintln(os.Stderr, "bench: limit:", err)
			os.Exit(1)
		}
		return
	}
	b := &bench{}
	flag.StringVar(&b.binary, "lessor", "bin/lessor", "the lessor `binary` to measure")
	flag.BoolVar(&b.quick, "quick", false, "short slices and small numbers: a smoke test, whose figures say little")
	flag.StringVar(&b.only, "only", "", "measure only figures whose name contains `text`; print, and write no file")
	flag.StringVar(&b.out, "out", "BENCHMARKS.md", "`file` whose part between the markers is replaced by the table; empty: none")
	flag.BoolVar(&b.cluster, "cluster", false, "measure one node embedded, one and three over PostgreSQL, under the same load")
	flag.BoolVar(&b.rotates, "rotation", false, "measure rotations of very many roles, and one under very many holders")
	flag.IntVar(&b.roles, "roles", 10_000, "with -rotation: how `many` roles")
	flag.BoolVar(&b.scale, "scale", false, "measure how cost grows with leases, secrets, policies and audit records; takes about an hour and 60 GB")
	flag.StringVar(&b.plots, "plots", "docs/scale", "`folder` that plots of -scale go to")
	flag.DurationVar(&b.soaks, "soak", 0, "measure nothing, but let leases come and go for so `long`, and say whether anything grows")
	flag.Parse()
	if err := b.run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	binary, only, out string
	plots             string
	quick             bool
	cluster, scale    bool
	rotates           bool
	roles             int // that are rotated
	soaks             time.Duration

	dir     string
	began   time.Time
	figures []*figure
	cleanup []func()
}

// rounds, warm and slice are how often and how long each figure is measured.
func (b *bench) rounds() int { return pick(b.quick, 2, 5) }

func (b *bench) warm() time.Duration {
	return pick(b.quick, 100*time.Millisecond, 300*time.Millisecond)
}

func (b *bench) slice() time.Duration { return pick(b.quick, 300*time.Millisecond, 2*time.Second) }

func pick[T any](quick bool, small, full T) T {
	if quick {
		return small
	}
	return full
}

// wants reports whether any figure of these names is to be measured.
func (b *bench) wants(names ...string) bool {
	return b.only == "" || slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, b.only) })
}

func (b *bench) run() (err error) {
	if b.binary, err = filepath.Abs(b.binary); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "lessor-bench-"); err != nil {
		return err
	}
	if err := os.Chmod(b.dir, 0o711); err != nil { // PostgreSQL may run as somebody else
		return err
	}
	b.began = time.Now()
	b.later(func() { _ = os.RemoveAll(b.dir) })
	defer b.clean()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM, syscall.SIGPIPE)
	go func() {
		<-interrupted
		b.clean()
		os.Exit(130)
	}()

	if b.soaks > 0 {
		return b.soak(b.soaks)
	}
	name, parts := "bench", []func() error{b.requests, b.credentials, b.million, b.drain}
	switch {
	case b.cluster:
		name, parts = "cluster", []func() error{b.clusters}
	case b.rotates:
		name, parts = "rotation", []func() error{b.rotations, b.holders}
	case b.scale:
		return b.scales()
	}
	for _, part := range parts {
		if err := part(); err != nil {
			return err
		}
	}
	if len(b.figures) == 0 {
		return fmt.Errorf("no figure is called %q", b.only)
	}
	fmt.Println()
	fmt.Print(b.table())
	if b.quick || b.only != "" || b.out == "" {
		return nil
	}
	return b.write(b.out, name, b.table())
}

// later has f done at the end, last first.
func (b *bench) later(f func()) { b.cleanup = append(b.cleanup, f) }

func (b *bench) clean() {
	for i := len(b.cleanup) - 1; i >= 0; i-- {
		b.cleanup[i]()
	}
	b.cleanup = nil
}

// say tells how far the run is.
func (b *bench) say(format string, args ...any) {
	fmt.Printf("%5.0fs  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

// alternate measures a figure and its limit in turns.
func (b *bench) alternate(f *figure, figure, limit func(warm, d time.Duration) (float64, error)) error {
	for i := range b.rounds() {
		var have [2]float64
		var errs [2]error
		both := [2]func(warm, d time.Duration) (float64, error){figure, limit}
		for n := range both {
			which := (n + i) % 2 // each is first as often as the other
			have[which], errs[which] = both[which](b.warm(), b.slice())
		}
		if err := errors.Join(errs[:]...); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		f.rates, f.limits = append(f.rates, have[0]), append(f.limits, have[1])
	}
	b.figures = append(b.figures, f)
	b.say("%s", f)
	return nil
}
