package client

import (
	"encoding/json"
	"time"
)

// tenure is how a Secret stands with the server: what lease its value has, and what went wrong since. What to do next, and when, is
// decided here, purely.
type tenure struct {
	kind      kind
	lease     string        // id; empty: none
	renewable bool          // the lease is
	begun     time.Time     // when the lease was given, or renewed
	ttl       time.Duration // how long it lasts from then on; 0: for ever
	full      time.Duration // ttl that it was given at first
	epoch     uint64        // of the session's token that it was asked for with

	followed bool      // changes are told as they happen
	lost     time.Time // when that ended; zero: never
	told     bool      // the value may be another by now
	failures int       // one after the other
	retry    time.Time
}

// kind tells secrets apart by what a further read of them gives.
type kind uint8

const (
	plain   kind = iota // the secret as it is; nobody knows who holds it
	static              // the same, with a lease that may be renewed and acknowledged
	dynamic             // another credential each time
)

const (
	// renewStatic is the longest wait for a renewal of a static secret's lease: the server counts its reader as a holder for a day.
	renewStatic = 8 * time.Hour
	// rereadPlain is how often a secret is read that has no lease, from a server that does not tell of changes.
	rereadPlain = 5 * time.Minute
	// shortest is the least time between two calls about a secret that nobody asked for.
	shortest = time.Second
)

// tenureOf is how an answer begins.
func tenureOf(answer *Response, epoch uint64, now time.Time) tenure {
	t := tenure{
		lease: answer.LeaseID, renewable: answer.Renewable, begun: now, ttl: time.Duration(answer.LeaseDuration) * time.Second, epoch: epoch,
	}
	switch {
	case answer.Version != 0:
		t.kind = static
	case answer.LeaseID != "":
		t.kind = dynamic
	default:
		// Vault's static roles have no lease, but say how long they stay as they are; its key-value engine says a duration that means nothing.
		t.ttl = 0
		if n, ok := answer.Data["ttl"].(json.Number); ok {
			if seconds, err := n.Int64(); err == nil && seconds > 0 {
				t.ttl = time.Duration(seconds) * time.Second
			}
		}
	}
	t.full = t.ttl
	return t
}

// step is what is to be done about a secret.
type step uint8

const (
	rest step = iota
	renew
	read
)

// next is what is to be done, and when. epoch is the session's now; jitter, in [0, 1], spreads what many do at once.
func (t *tenure) next(epoch uint64, jitter float64) (step, time.Time) {
	s, at := t.due(epoch, jitter)
	if t.failures > 0 && at.Before(t.retry) {
		at = t.retry
	}
	return s, at
}

func (t *tenure) due(epoch uint64, jitter float64) (step, time.Time) {
	part := t.ttl * 2 / 3
	part -= time.Duration(jitter * float64(part/10))
	at := t.begun.Add(max(part, shortest))
	switch {
	case t.told:
		return read, t.begun // at once
	case t.kind == dynamic && epoch != t.epoch:
		return read, t.begun // it ends with the token that it was asked for with
	case t.kind == plain && t.ttl > 0:
		return read, t.begun.Add(t.ttl + shortest)
	case t.kind == plain && t.followed:
		return rest, time.Time{}
	case t.kind == plain:
		return read, t.begun.Add(rereadPlain - time.Duration(jitter*float64(rereadPlain/10)))
	case t.kind == static && !t.renewable:
		return read, at
	case t.kind == static:
		latest := t.begun.Add(renewStatic - time.Duration(jitter*float64(renewStatic/10)))
		if t.followed && t.failures == 0 {
			return renew, latest // what clients see of the lease is for those who hear nothing
		}
		if t.lost.After(t.begun) {
			at = t.lost.Add(max(part, shortest)) // not all at once, when a server goes away
		}
		if at.After(latest) {
			at = latest
		}
		return renew, at
	case t.ttl == 0:
		return rest, time.Time{}
	case !t.renewable || t.ttl < t.full*9/10: // the last renewal gave less than was asked for: there will be no further one
		return read, at
	}
	return renew, at
}

// follow says, at now, whether changes are told as they happen.
func (t *tenure) follow(yes bool, now time.Time) {
	if t.followed && !yes {
		t.lost = now
	}
	t.followed = yes
}

// renewed records what a renewal at now gave. A static lease that ends at once is on a version that was superseded.
func (t *tenure) renewed(answer *Response, now time.Time) {
	t.failures = 0
	ttl := time.Duration(answer.LeaseDuration) * time.Second
	if t.kind == static && ttl <= time.Second && (t.full > time.Second || len(answer.Warnings) > 0) {
		t.told = true
		return
	}
	t.begun, t.ttl = now, ttl
}

// failed records a failure at now; jitter is in [0, 1].
func (t *tenure) failed(now time.Time, jitter float64) {
	t.failures++
	t.retry = now.Add(backoff(t.failures, jitter))
}

// expires is when the value is of no use any more; zero: that is not known, or never.
func (t *tenure) expires() time.Time {
	if t.kind != dynamic || t.ttl == 0 {
		return time.Time{}
	}
	return t.begun.Add(t.ttl)
}
