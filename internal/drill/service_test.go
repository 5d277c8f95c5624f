package drill

import (
	"context"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// connections is how many a service has open, and how many queries are under way at a time.
const connections = 50

// full reports whether services ask as much as they can; else they pause, since other tests run beside.
func full() bool { return os.Getenv("LESSOR_DRILL") != "" }

// pause is what each goroutine of a service does between two queries, if it does.
const pause = 250 * time.Millisecond

// lifetime is how old connections become: so that the password counts all the time.
func lifetime() time.Duration {
	if full() {
		return time.Second
	}
	return 2 * time.Second
}

// service queries over a pool, from as many goroutines as it has connections.
type service struct {
	done, failed atomic.Int64
	broke        atomic.Int64 // when a query failed first, in nanoseconds since 1970; 0: none has
	failure      atomic.Pointer[error]
	took         latencies
	onFailure    func() // called once; nil: nothing is
	cancel       context.CancelFunc
	all          sync.WaitGroup
	pool         pool
}

func serve(p pool) *service { return serveTelling(p, nil) }

// serveTelling has onFailure called when a query fails first.
func serveTelling(p pool, onFailure func()) *service {
	ctx, cancel := context.WithCancel(context.Background())
	s := &service{pool: p, cancel: cancel, onFailure: onFailure}
	for range connections {
		s.all.Go(func() {
			for ctx.Err() == nil {
				begun := time.Now()
				err := p.query(context.Background())
				s.took.add(time.Since(begun))
				if err != nil {
					s.fail(err)
				}
				s.done.Add(1)
				if full() {
					continue
				}
				select {
				case <-ctx.Done():
				case <-time.After(pause):
				}
			}
		})
	}
	return s
}

func (s *service) fail(err error) {
	s.failure.Store(&err)
	s.failed.Add(1)
	if s.broke.CompareAndSwap(0, time.Now().UnixNano()) && s.onFailure != nil {
		s.onFailure()
	}
}

// end stops it, and tells how it went.
func (s *service) end() result {
	s.cancel()
	s.all.Wait()
	s.pool.close()
	r := result{Starts: 1, Done: s.done.Load(), Failed: s.failed.Load(), Took: s.took.shown()}
	if err := s.failure.Load(); err != nil {
		r.Failure = (*err).Error()
	}
	return r
}

// result is how a service's queries went, over all its starts.
type result struct {
	Starts       int
	Done, Failed int64
	Failure      string // the last one; empty: none
	Took         shownLatencies
	Used         []string // URLs that it has logged in with, with their passwords
}

func (r *result) add(o result) {
	r.Starts, r.Done, r.Failed = r.Starts+o.Starts, r.Done+o.Done, r.Failed+o.Failed
	if o.Failure != "" {
		r.Failure = o.Failure
	}
	r.Took.add(o.Took)
	r.Used = append(r.Used, o.Used...)
}

// octave is how many steps of latencies there are to a doubling: they are true to nine percent.
const octave = 8

// latencies are how long queries took, counted from a microsecond to an hour. They are safe for concurrent use.
type latencies struct {
	counts [32 * octave]atomic.Int64
	worst  atomic.Int64
	at     atomic.Int64 // when that was over, in nanoseconds since 1970
}

func (l *latencies) add(d time.Duration) {
	i := int(octave * math.Log2(float64(max(d, time.Microsecond))/float64(time.Microsecond)))
	l.counts[min(i, len(l.counts)-1)].Add(1)
	for {
		worst := l.worst.Load()
		if int64(d) <= worst {
			return
		}
		if l.worst.CompareAndSwap(worst, int64(d)) {
			l.at.Store(time.Now().UnixNano())
			return
		}
	}
}

// shown is what they are by now.
func (l *latencies) shown() shownLatencies {
	s := shownLatencies{Worst: time.Duration(l.worst.Load()), At: time.Unix(0, l.at.Load()), Counts: make([]int64, len(l.counts))}
	for i := range l.counts {
		s.Counts[i] = l.counts[i].Load()
	}
	return s
}

// shownLatencies are latencies at some time.
type shownLatencies struct {
	Worst  time.Duration
	At     time.Time // when Worst was over
	Counts []int64
}

func (s *shownLatencies) add(o shownLatencies) {
	if o.Worst > s.Worst {
		s.Worst, s.At = o.Worst, o.At
	}
	if s.Counts == nil {
		s.Counts = make([]int64, len(o.Counts))
	}
	for i, n := range o.Counts {
		s.Counts[i] += n
	}
}

// quantile is what a share of all, in (0, 1], took at most.
func (s *shownLatencies) quantile(share float64) time.Duration {
	all, below := int64(0), int64(0)
	for _, n := range s.Counts {
		all += n
	}
	for i, n := range s.Counts {
		if below += n; float64(below) >= share*float64(all) {
			return time.Duration(math.Exp2(float64(i+1)/octave) * float64(time.Microsecond))
		}
	}
	return s.Worst
}
