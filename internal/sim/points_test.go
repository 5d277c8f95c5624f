package sim

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// TestEveryCommitPoint kills a node at its first commit, at its second, and so on to the end of its life, each time once as if
// the commit had not reached the disk and once as if it had, while requests of several clients are under way. Who comes
// together in a commit differs from run to run; every day a third of the points, with LESSOR_SIM_LONG all of them, ten times.
func TestEveryCommitPoint(t *testing.T) {
	const most, enough = 32, 20
	step, rounds := 3, 1
	if os.Getenv("LESSOR_SIM_LONG") != "" {
		step, rounds = 1, 10
	}
	var worlds sync.WaitGroup
	var last, died atomic.Int64
	slots := make(chan struct{}, 8)
	for n := range rounds {
		for at := 1 + n%step; at <= most; at += step {
			for _, done := range []bool{false, true} {
				dir := t.TempDir()
				slots <- struct{}{}
				worlds.Go(func() {
					defer func() { <-slots }()
					if diesAt(t, dir, uint64(n*most+at), at, done) {
						died.Add(1)
						for l := last.Load(); l < int64(at) && !last.CompareAndSwap(l, int64(at)); l = last.Load() {
						}
					}
				})
			}
		}
	}
	worlds.Wait()
	if last.Load() < enough {
		t.Errorf("no node died later than at its commit %d: lives are too short for this to say much", last.Load())
	}
	t.Logf("%d nodes died, the latest at its commit %d", died.Load(), last.Load())
}

// diesAt runs a world whose node dies at a commit, and reports whether it lived long enough to.
func diesAt(t *testing.T, dir string, seed uint64, at int, done bool) bool {
	what := fmt.Sprintf("commit %d, done %v, seed %d", at, done, seed)
	w, err := New(seed, dir)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return false
	}
	for _, step := range []func() error{
		func() error { return w.Life(4, 10, storetest.Faults{At: at, Done: done}) },
		w.Settle,
	} {
		if err := step(); err != nil {
			t.Errorf("%s: %v", what, err)
			return false
		}
	}
	for _, b := range w.Broken() {
		t.Errorf("%s: %s", what, b)
	}
	return w.faults.Load() > 0
}
