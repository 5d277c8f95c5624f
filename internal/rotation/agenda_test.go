package rotation

import (
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/store"
)

// Whatever is touched and however time passes: what a look at the agenda finds due is what a look at everything would, but for what was found due before and was
// not touched since; and it comes back in time for what is due next.
func TestAgenda(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		queues := map[target][]time.Time{}
		first := func(q target) (time.Time, bool) {
			if len(queues[q]) == 0 {
				return time.Time{}, false
			}
			return slices.MinFunc(queues[q], time.Time.Compare), true
		}
		a, now := agenda{whole: true}, t0
		found := map[target]bool{} // to be due, and not touched since
		for range 200 {
			for range r.IntN(5) {
				q := target{name: fmt.Sprint(r.IntN(8))}
				if places := queues[q]; len(places) > 0 && r.IntN(2) == 0 {
					i := r.IntN(len(places))
					queues[q] = slices.Delete(places, i, i+1)
				} else {
					queues[q] = append(places, now.Add(time.Duration(r.IntN(20)-5)*time.Second))
				}
				a.touch(q)
				delete(found, q)
			}
			if r.IntN(20) == 0 {
				a.whole = true
				clear(found)
			}
			now = now.Add(time.Duration(r.IntN(4)) * time.Second)
			whole, some := a.take(now)
			if whole {
				some = slices.Collect(maps.Keys(queues))
			}
			for _, q := range some {
				if at, ok := first(q); !ok {
					continue
				} else if at.After(now) {
					a.put(q, at)
				} else {
					found[q] = true
				}
			}
			next := time.Hour
			for q := range queues {
				at, ok := first(q)
				switch {
				case ok && at.After(now):
					next = min(next, at.Sub(now))
				case ok && !found[q]:
					t.Fatalf("what is due at %s is not found", q.name)
				}
			}
			if got := a.next(now, time.Hour); got != next {
				t.Fatalf("it comes back in %s, and not in %s", got, next)
			}
		}
	}
}

// counted is a Store whose scans are counted.
type counted struct {
	Store
	scans *atomic.Int64
}

type countedView struct {
	store.View
	scans *atomic.Int64
}

func (c counted) View() (store.View, error) {
	v, err := c.Store.View()
	return countedView{v, c.scans}, err
}

func (c countedView) Scan(t store.Table, from, to string) iter.Seq2[store.Row, error] {
	c.scans.Add(1)
	return c.View.Scan(t, from, to)
}

// A commit that touches one queue has that one looked at, and none of a thousand others; so has what becomes due. What nobody was told of is found all the same.
func TestLooksAreAtWhatChanged(t *testing.T) {
	b := newBench(t)
	var scans atomic.Int64
	b.Store = counted{b.db, &scans}
	const targets = 1000
	due := func(target string, after time.Duration) {
		_, err := b.db.Update(b.Context(), func(v store.View, txn *store.Txn) error {
			a, row, err := Load(v, 0, uuid, target)
			if err != nil {
				return err
			}
			a.Target, a.Due = target, b.db.Now().Add(after)
			return Save(txn, row, a)
		})
		b.must(err)
	}
	for i := range targets {
		due(fmt.Sprint("pg", i), time.Hour)
	}
	if b.work(); scans.Load() < targets {
		t.Fatalf("a look at everything took %d scans", scans.Load())
	}
	b.heard = b.db.Head().Seq
	look := func() (turns []string) {
		b.hear()
		b.clock.advance(time.Millisecond)
		scans.Store(0)
		_, err := b.round(b.Context())
		b.must(err)
		b.all.Wait()
		turns, b.turns = b.turns, nil
		return turns
	}
	due("pg7", 0)
	if turns := look(); !slices.Equal(turns, []string{"pg7"}) || scans.Load() > 10 {
		t.Errorf("turns %s, %d scans", turns, scans.Load())
	}
	due("pg8", time.Minute)
	if turns := look(); len(turns) > 0 || scans.Load() > 10 {
		t.Errorf("turns %s before their time, %d scans", turns, scans.Load())
	}
	b.clock.advance(time.Minute)
	b.add("elsewhere", "unrelated")
	if turns := look(); !slices.Contains(turns, "pg8") || !slices.Contains(turns, "unrelated") || scans.Load() > 20 {
		t.Errorf("turns %s, %d scans", turns, scans.Load())
	}
	due("pg9", 0)
	b.heard = b.db.Head().Seq
	b.add("elsewhere", "another")
	if turns := look(); slices.Contains(turns, "pg9") {
		t.Errorf("turns %s of what nobody told", turns)
	}
	b.everything()
	b.add("elsewhere", "yet another")
	if turns := look(); !slices.Contains(turns, "pg9") {
		t.Errorf("turns %s of a look at everything", turns)
	}
}
