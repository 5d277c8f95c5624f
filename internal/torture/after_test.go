package torture

import (
	"fmt"
	"slices"
	"time"

	"github.com/lessor-dev/lessor/internal/engine/database"
)

// span is a time in which something was wrong, recovery included.
type span struct {
	From, To time.Duration
	Faults   episode
}

// deadline is when a credential whose lease ended at end must be dead: by after that, or by after the end of whatever kept all nodes from it then.
func deadline(end time.Duration, wrong []span, by time.Duration) time.Duration {
	d := end + by
	for _, w := range wrong { // in order
		if w.Faults.halts() && w.From <= d && w.To > end {
			d = max(d, w.To+by)
		}
	}
	return d
}

// outlived returns the accounts that were alive too long after their lease, or may be.
func outlived(accounts []account, grants map[string]*grant, wrong []span) (late []string) {
	byUser := map[string]*grant{}
	for _, g := range grants {
		byUser[g.User] = g
	}
	for _, a := range accounts {
		end, why := a.Until-database.Skew, "as the target knows it"
		if g := byUser[a.Name]; g != nil {
			end, why = g.end(), "as its holder knows it"
			if most := g.Latest + database.Skew + 2*clockError; a.Until > most {
				late = append(late, fmt.Sprintf("%s may log in until %.1f s; its lease %s ends at %.1f s at the latest", a.Name, a.Until.Seconds(), g.Lease, g.Latest.Seconds()))
			}
		}
		if d := deadline(end, wrong, lateBy); a.Alive > d {
			late = append(late, fmt.Sprintf("%s was alive at %.1f s; its lease ended at %.1f s, %s, so that it had to be dead by %.1f s", a.Name, a.Alive.Seconds(), end.Seconds(), why, d.Seconds()))
		}
	}
	return late
}

// trail is what the audit trail says.
type trail struct {
	Requests map[string]bool // that have a record of their outcome
	Acts     map[string]int  // how often an operation on a path was granted and succeeded, by act
	Marks    map[string]bool // of leases that have a record
	Records  int
	Last     place
	Gaps     []string
}

// place is where a record is: its commit, and its index in it.
type place struct{ Seq, Index uint64 }

func newTrail() *trail {
	return &trail{Requests: map[string]bool{}, Acts: map[string]int{}, Marks: map[string]bool{}}
}

// follows takes down the place of the next record. Records of one commit have no gap between them.
func (t *trail) follows(p place) {
	t.Records++
	if p.Seq == t.Last.Seq && p.Index == t.Last.Index+1 || p.Seq > t.Last.Seq && p.Index == 0 {
		t.Last = p
		return
	}
	t.Gaps = append(t.Gaps, fmt.Sprintf("after record %d of commit %d comes record %d of commit %d", t.Last.Index, t.Last.Seq, p.Index, p.Seq))
	t.Last = p
}

// operations by method, as audit records name them.
var verbs = map[string]string{"GET": "read", "POST": "update", "PUT": "update", "DELETE": "delete"}

func act(method, path string) string { return verbs[method] + " " + path }

// unrecorded returns what had an effect and has no record: requests that were acknowledged, accounts that were seen.
func unrecorded(ops []op, accounts []account, t *trail) (missing []string) {
	acts := map[string]int{}
	for _, o := range ops {
		switch {
		case o.Outcome != done || o.Path == "":
		case o.Request == "": // the answer was empty
			acts[act(o.Method, o.Path)]++
		case !t.Requests[o.Request]:
			missing = append(missing, fmt.Sprintf("request %s (%s %s, at %.3f s by node %d) was acknowledged, and is not on record", o.Request, o.Method, o.Path, o.Return.Seconds(), o.Node))
		}
	}
	for a, n := range acts {
		if t.Acts[a] < n {
			missing = append(missing, fmt.Sprintf("%s was acknowledged %d times, and is on record %d times", a, n, t.Acts[a]))
		}
	}
	for _, a := range accounts {
		if !t.Marks[a.Mark] {
			missing = append(missing, fmt.Sprintf("account %s (%q, first seen at %.3f s) is not on record", a.Name, a.Mark, a.First.Seconds()))
		}
	}
	return missing
}

// silences are the longest times without any acknowledgement, by kind of the faults meanwhile.
func silences(ops []op, wrong []span) map[string]time.Duration {
	var acks []time.Duration
	for _, o := range ops {
		if o.Outcome == done {
			acks = append(acks, o.Return)
		}
	}
	slices.Sort(acks)
	longest := map[string]time.Duration{}
	for i := 1; i < len(acks); i++ {
		for _, w := range wrong {
			if acks[i-1] >= w.To || acks[i] <= w.From {
				continue
			}
			for _, f := range w.Faults {
				longest[f.Kind] = max(longest[f.Kind], acks[i]-acks[i-1])
			}
		}
	}
	return longest
}
