package store

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestBarrier has many ask while looks take their time: each is answered by a look that began after it came, and few looks do.
func TestBarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b barrier
		var mu sync.Mutex
		var began, ended time.Time // of the look that ended last
		looks := 0
		look := func() error {
			start := time.Now()
			time.Sleep(10 * time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			began, ended = start, time.Now()
			looks++
			return nil
		}
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				time.Sleep(time.Duration(i)*time.Millisecond + time.Microsecond)
				came := time.Now()
				if err := b.wait(t.Context(), look); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				if began.Before(came) || ended.After(time.Now()) {
					t.Errorf("who came at %v was answered by a look from %v to %v", came, began, ended)
				}
			})
		}
		all.Wait()
		if looks > 12 {
			t.Errorf("%d looks of 10 ms in 100 ms", looks)
		}
	})
}

// TestBarrierBehindALookThatHangs has somebody come while a look hangs.
func TestBarrierBehindALookThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b barrier
		over := make(chan struct{})
		look := func() error { <-over; return nil }
		var all sync.WaitGroup
		for _, after := range []time.Duration{0, time.Second, 2 * time.Second} {
			all.Go(func() {
				time.Sleep(after)
				came := time.Now()
				if err := b.wait(t.Context(), look); !errors.Is(err, ErrUnreachable) || time.Since(came) != freshPatience {
					t.Errorf("after %v: %v", time.Since(came), err)
				}
			})
		}
		all.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.wait(ctx, look); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		close(over)
		if err := b.wait(t.Context(), look); err != nil {
			t.Error(err)
		}
		synctest.Wait()
	})
}
