package core

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Forty want the same again and again: each attempt takes some time, and fails if another was through meanwhile. All get it, and without the line
// some do not.
func TestCrowd(t *testing.T) {
	gaveUp := func(again func(*turn) bool) (n int64) {
		synctest.Test(t, func(t *testing.T) {
			c := newCrowd()
			var version, lost atomic.Int64
			var all sync.WaitGroup
			for who := range uint64(40) {
				all.Go(func() {
					rng := rand.New(rand.NewPCG(1, who))
					for range 20 {
						turn := turn{crowd: &c}
						through := false
						for more := true; more && !through; more = !through && again(&turn) {
							seen := version.Load()
							time.Sleep(time.Millisecond + time.Duration(rng.IntN(1000))*time.Microsecond)
							through = version.CompareAndSwap(seen, seen+1)
						}
						if turn.end(); !through {
							lost.Add(1)
						}
					}
				})
			}
			all.Wait()
			if len(c.head) != 0 {
				t.Error("somebody is at the head of the line still")
			}
			n = lost.Load()
		})
		return n
	}
	if n := gaveUp(func(t *turn) bool { return t.again(context.Background()) }); n != 0 {
		t.Errorf("%d of 800 gave up", n)
	}
	without := gaveUp(func(t *turn) bool { t.lost++; return t.lost < attempts })
	t.Logf("without the line, %d of 800 give up", without)
	if without == 0 {
		t.Error("without the line none gives up: this shows nothing")
	}
}

// Who is at the head of the line and then waits for something else keeps nobody waiting for longer than he may.
func TestHeadOfTheLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd()
		line := func() *turn {
			turn := &turn{crowd: &c}
			for range patient {
				if !turn.again(t.Context()) {
					t.Fatal("it gave up")
				}
			}
			return turn
		}
		first, began := line(), time.Now()
		second := line()
		if waited := time.Since(began); waited != atHead {
			t.Errorf("the second waited for %s", waited)
		}
		first.end() // late, and not for the second
		if len(c.head) != 1 {
			t.Error("the second is not at the head")
		}
		second.end()
		second.end()
		if len(c.head) != 0 {
			t.Error("somebody is at the head still")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		third := line()
		fourth := turn{crowd: &c, lost: patient}
		if began = time.Now(); !fourth.again(ctx) || time.Since(began) != 0 {
			t.Error("who has gone waits in line")
		}
		third.end()
	})
}
