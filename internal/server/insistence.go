package server

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// A client whose renewal is refused may ask again at once, and for ever: the watcher of Vault's Go client does, hundreds of
// times a second, when a lease was revoked under it. So the same renewal from the same address, refused for the fourth time
// within seconds, is answered late. Nothing else changes: who asks rarely never notices.
const (
	refusalsFree   = 3                // refusals of one renewal that are answered at once
	refusalsWindow = 10 * time.Second // without a refusal for so long, a renewal starts anew
	refusalDelay   = time.Second      // what every further answer waits
	refusalsKnown  = 4096             // renewals that are remembered
	refusalsHeld   = 512              // answers that wait at a time; beyond, they leave at once
)

// insistence remembers which renewals were refused lately. The zero value is ready.
type insistence struct {
	mu   sync.Mutex
	seen map[refusal]refusals
	held int
}

// refusal is a renewal that was refused: what exactly, and to which address.
type refusal struct {
	client netip.Addr
	asked  [32]byte
}

type refusals struct {
	times int
	last  time.Time
}

// renews reports whether an operation asks for more time.
func renews(op *lessor.Op) bool {
	for _, p := range []string{"sys/leases/renew", "sys/renew", "auth/token/renew"} {
		if strings.HasPrefix(op.Path, p) {
			return true
		}
	}
	return false
}

// hold waits, if need be, before a refusal is answered; it returns early when ctx ends.
func (p *insistence) hold(ctx context.Context, op *lessor.Op, err error, now time.Time) {
	switch api.KindOf(err) {
	case api.Invalid, api.Unauthenticated, api.Denied, api.NotFound:
	default:
		return
	}
	if !renews(op) || !p.late(refusal{op.Client, op.Digest()}, now) {
		return
	}
	defer p.release()
	timer := time.NewTimer(refusalDelay)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// late counts a refusal and reports whether its answer should wait; then release must follow.
func (p *insistence) late(r refusal, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.seen[r]
	if now.Sub(was.last) > refusalsWindow {
		was.times = 0
	}
	if len(p.seen) >= refusalsKnown && was.times == 0 {
		for other, o := range p.seen {
			if now.Sub(o.last) > refusalsWindow {
				delete(p.seen, other)
			}
		}
		if len(p.seen) >= refusalsKnown {
			return false
		}
	}
	if p.seen == nil {
		p.seen = map[refusal]refusals{}
	}
	p.seen[r] = refusals{was.times + 1, now}
	if was.times < refusalsFree || p.held >= refusalsHeld {
		return false
	}
	p.held++
	return true
}

func (p *insistence) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held--
}
