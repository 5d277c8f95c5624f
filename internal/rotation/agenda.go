package rotation

import "time"

// agenda is what a Worker knows of the queues of targets, so that a look costs what has changed and not what there is: which have been touched since they were
// looked at, and when the first place of each other one is due. What is due already is not on it: it is looked at again once it is touched. It is a shortcut.
// What nobody tells it of is found by a look at everything.
type agenda struct {
	whole   bool // everything is to be looked at
	touched map[target]struct{}
	later   map[target]time.Time
}

// touch has a target looked at.
func (a *agenda) touch(t target) {
	if a.touched == nil {
		a.touched = map[target]struct{}{}
	}
	a.touched[t] = struct{}{}
}

// take says what is to be looked at at now, and takes it from the agenda: everything, or some targets.
func (a *agenda) take(now time.Time) (whole bool, some []target) {
	whole = a.whole
	for t := range a.touched {
		some = append(some, t)
		delete(a.later, t)
	}
	for t, at := range a.later {
		if !at.After(now) {
			some = append(some, t)
			delete(a.later, t)
		}
	}
	a.whole, a.touched = false, nil
	if whole {
		a.later, some = nil, nil
	}
	return whole, some
}

// put notes that nothing is due at a target before a time.
func (a *agenda) put(t target, at time.Time) {
	if a.later == nil {
		a.later = map[target]time.Time{}
	}
	a.later[t] = at
}

// next is how long after now something is due, at most d.
func (a *agenda) next(now time.Time, d time.Duration) time.Duration {
	for _, at := range a.later {
		d = min(d, at.Sub(now))
	}
	return max(d, 0)
}
