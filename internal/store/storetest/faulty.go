package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/lessor-dev/lessor/internal/store"
)

// ErrFault is the cause of every failure that Faulty makes.
var ErrFault = errors.New("storetest: injected fault")

// Faults are the probabilities, from 0 to 1, of what can go wrong with a commit.
type Faults struct {
	Refused float64 // Begin fails: nothing was done, and that is told
	Lost    float64 // the commit is not done, and an error is told
	Hidden  float64 // the commit is done, and an error is told
	Lied    float64 // the commit is not done, and success is told: a disk that acknowledges what it drops

	At   int  // the commit of this number, counted from 1 since Set, fails as if the power went: an error is told; 0: none
	Done bool // and was done
}

// Faulty is a Backend whose commits fail by chance, from a seed: each of the four combinations of {done?} × {told?}.
type Faulty struct {
	store.Backend

	mu     sync.Mutex
	rng    *rand.Rand
	faults Faults
	count  [4]int
	commit int // number of the last one since Set
}

// NewFaulty wraps b.
func NewFaulty(b store.Backend, seed uint64, f Faults) *Faulty {
	return &Faulty{Backend: b, rng: rand.New(rand.NewPCG(seed, 0)), faults: f}
}

// Set changes the probabilities.
func (f *Faulty) Set(faults Faults) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults, f.commit = faults, 0
}

// String counts what went wrong so far.
func (f *Faulty) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprintf("refused %d, lost %d, hidden %d, lied %d", f.count[0], f.count[1], f.count[2], f.count[3])
}

// draw decides by chance; kind is the index in count.
func (f *Faulty) draw(p float64, kind int) bool {
	if p <= 0 || f.rng.Float64() >= p {
		return false
	}
	f.count[kind]++
	return true
}

// Begin may refuse.
func (f *Faulty) Begin() (store.Write, error) {
	f.mu.Lock()
	refused := f.draw(f.faults.Refused, 0)
	f.mu.Unlock()
	if refused {
		return nil, ErrFault
	}
	w, err := f.Backend.Begin()
	if err != nil {
		return nil, err
	}
	return &faultyWrite{w, f}, nil
}

type faultyWrite struct {
	store.Write
	f *Faulty
}

func (w *faultyWrite) Commit() error {
	f := w.f
	f.mu.Lock()
	lost, hidden, lied := f.draw(f.faults.Lost, 1), f.draw(f.faults.Hidden, 2), f.draw(f.faults.Lied, 3)
	if f.commit++; f.commit == f.faults.At {
		lost, hidden = !f.faults.Done, f.faults.Done
	}
	f.mu.Unlock()
	switch {
	case lost:
		w.Abort()
		return ErrFault
	case lied:
		w.Abort()
		return nil
	}
	err := w.Write.Commit()
	if err == nil && hidden {
		return ErrFault
	}
	return err
}
