package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Secret is a secret that stays fresh by itself until it is closed: its lease is renewed, and it is read again when the server tells that it
// changed. A dynamic credential is replaced before it ends. While the server is away the last value stays; Status tells.
//
// Reading is not adopting. Who has moved to the current value says so by Adopt; with uses of older values that are counted by Acquire
// still under way, the server hears of it when the last of these is released. Only then an old password is taken out of service, where lessor rotates
// it, or, if it is a dynamic credential, revoked by this client.
//
// Its methods are safe for concurrent use.
type Secret struct {
	session *Session
	client  *Client // as the session's, with an instance
	jitter  float64 // in [0, 1]: spreads what many secrets do at once
	path    string
	query   url.Values
	body    map[string]any // that is written to get the secret; nil: it is read
	sealer  Sealer         // nil: values lie in memory as they are
	later   bool           // not even the first value is adopted unsaid
	owned   bool           // the session is for this secret alone
	fresh   bool           // no server knows the instance as a holder of the path

	nudge  chan struct{} // holds one
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}

	reading chan struct{} // held by whoever reads; holds one

	mu        sync.Mutex
	value     Value
	changed   chan struct{} // closed when value is succeeded
	tenure    tenure
	confirmed time.Time // when the server said last that value is current
	last      time.Time // when it was last asked for, successfully or not
	failure   error
	adopted   uint64            // serial of the value that everybody uses, but for who holds an older one
	settled   uint64            // serial that the server was told to be adopted
	held      map[uint64]int    // uses of values, by serial
	spent     map[uint64]string // leases of older credentials, by serial, that end when nobody uses them
}

// Status is how a Secret stands.
type Status struct {
	Confirmed time.Time // when the value was known last to be current; now, while it is Followed
	Followed  bool      // changes are told as they happen: otherwise they show when the lease is renewed
	Expires   time.Time // end of a dynamic credential's lease; zero: there is none
	Err       error     // why the value may not be current; nil: it is
}

// SecretOption changes what is read.
type SecretOption func(*Secret)

// PinVersion asks for one version of a secret of the key-value engine, version 2: it never changes.
func PinVersion(n uint64) SecretOption {
	return func(s *Secret) { s.query = url.Values{"version": {strconv.FormatUint(n, 10)}} }
}

// AdoptLater has the first value count as one in use only once it is adopted, as later ones do: what an earlier process of the same instance has
// read may be in use until then.
func AdoptLater() SecretOption { return func(s *Secret) { s.later = true } }

// Sealed has values lie in memory as by seals them: only Field, Data, Decode and the like open them, each time.
func Sealed(by Sealer) SecretOption { return func(s *Secret) { s.sealer = by } }

// Write has the secret asked for by writing data to its path, as what is checked out of a library is. Where the answer has neither a lease nor a ttl it is written once: what it gave
// stays until the Secret is closed.
func Write(data map[string]any) SecretOption { return func(s *Secret) { s.body = data } }

// Secret reads a path ("secret/data/app", "database/creds/app", "database/static-creds/app") and keeps what was read fresh, with the client's
// own token, which is renewed. What is wrong now is an error; what goes wrong later is in Status. See Session for more than one secret.
func (c *Client) Secret(ctx context.Context, path string, opts ...SecretOption) (*Secret, error) {
	session, err := Open(ctx, c, nil)
	if err != nil {
		return nil, err
	}
	s, err := session.Secret(ctx, path, opts...)
	if err != nil {
		return nil, errors.Join(err, session.Close(ctx))
	}
	s.owned = true
	return s, nil
}

// Path is where the secret is.
func (s *Secret) Path() string { return s.path }

// Value is the secret's current value, as far as this client knows.
func (s *Secret) Value() Value {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.value
}

// Changed returns a channel that is closed when v is not the current value any more: at once, if it is not now. It is never closed once the
// Secret is.
func (s *Secret) Changed(v Value) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.Serial != s.value.Serial {
		closed := make(chan struct{})
		close(closed)
		return closed
	}
	return s.changed
}

// Status tells how the secret stands.
func (s *Secret) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := Status{Confirmed: s.confirmed, Followed: s.tenure.followed, Expires: s.tenure.expires(), Err: s.failure}
	if status.Followed && !s.tenure.told {
		status.Confirmed = time.Now()
	}
	return status
}

// Use is one use of a value, until it is released.
type Use struct {
	Value
	release func()
}

// Release ends the use. Further calls do nothing.
func (u *Use) Release() { u.release() }

// Acquire begins a use of the current value: as long as it is not released nobody is told that this value is out of use.
func (s *Secret) Acquire() *Use {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.value
	s.held[v.Serial]++
	return &Use{Value: v, release: sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.held[v.Serial]--; s.held[v.Serial] == 0 {
			delete(s.held, v.Serial)
		}
		s.wake()
	})}
}

// Adopt says that from now on v is used, or later values, and older ones only by who acquired them and has not released them. The server
// is told as soon as nobody does, in the background, and again until it heard.
func (s *Secret) Adopt(v Value) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.adopted = max(s.adopted, v.Serial)
	s.wake()
}

// Settled reports whether nothing older than the current value is in use here, and the server knows.
func (s *Secret) Settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settled == s.value.Serial && len(s.spent) == 0
}

// Refresh reads the secret again if v is still the current value, and returns what is current then: who was refused with v asks so whether
// it was rotated a moment ago. A dynamic credential is replaced, if it is not quite new. Many calls at once are one, and there is one a second at most.
func (s *Secret) Refresh(ctx context.Context, v Value) (Value, error) {
	asked := time.Now()
	select {
	case s.reading <- struct{}{}:
	case <-ctx.Done():
		return s.Value(), ctx.Err()
	}
	defer func() { <-s.reading }()
	s.mu.Lock()
	now, last, dynamic := s.value, s.last, s.tenure.kind == dynamic
	s.mu.Unlock()
	if now.Serial != v.Serial || last.After(asked) || dynamic && asked.Sub(now.Read) < replaceAfter {
		return now, nil
	}
	select {
	case <-time.After(time.Until(last.Add(shortest))):
	case <-ctx.Done():
		return now, ctx.Err()
	}
	err := s.read(ctx)
	return s.Value(), err
}

// replaceAfter is how old a dynamic credential must be that somebody wants replaced: if another one of just now is refused as well, that is not for its age.
const replaceAfter = 10 * time.Second

// Close ends the secret: its lease is given back, as far as the server lets its holder do so, or else left to end. Values that were handed
// out, and their uses, must be over.
func (s *Secret) Close(ctx context.Context) error {
	s.cancel()
	<-s.done
	err := s.leave(ctx)
	s.session.forget(s)
	if s.owned {
		err = errors.Join(err, s.session.Close(ctx))
	}
	return err
}

// begin reads the secret for the first time.
func (s *Secret) begin(ctx context.Context) error {
	s.reading <- struct{}{}
	defer func() { <-s.reading }()
	if err := s.read(ctx); err != nil {
		return err
	}
	// Nothing older is in use. That is worth a word only if the holder was known before.
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.later {
		return nil
	}
	s.adopted = s.value.Serial
	if s.fresh {
		s.settled = s.value.Serial
	}
	return nil
}

// tell says that the value may be another by now.
func (s *Secret) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tenure.kind != dynamic && !s.fixed() {
		s.tenure.told = true
	}
	s.wake()
}

// follow says whether changes are told as they happen.
func (s *Secret) follow(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.tenure.followed && !yes {
		s.confirmed = now
	}
	s.tenure.follow(yes || s.fixed(), now)
	s.wake()
}

func (s *Secret) wake() {
	select {
	case s.nudge <- struct{}{}:
	default:
	}
}

// run keeps the secret fresh until it is closed.
func (s *Secret) run() {
	defer close(s.done)
	for failures := 0; ; {
		again := time.Time{}
		if s.settle() {
			failures = 0
		} else {
			failures++
			again = time.Now().Add(backoff(failures, rand.Float64()))
		}
		s.mu.Lock()
		step, at := s.tenure.next(s.session.epoch(), s.jitter)
		s.mu.Unlock()
		if step == rest || !again.IsZero() && again.Before(at) {
			step, at = rest, again
		}
		var timer <-chan time.Time
		if !at.IsZero() {
			timer = time.After(time.Until(at))
		}
		select {
		case <-s.ctx.Done():
			return
		case <-s.nudge:
			continue
		case <-timer:
		}
		if step == rest {
			continue
		}
		select {
		case <-s.ctx.Done():
			return
		case s.reading <- struct{}{}:
		}
		if step == read {
			_ = s.read(s.ctx) // Status tells
		} else {
			s.renew(s.ctx)
		}
		<-s.reading
	}
}

// read reads the secret again. What was read before counts until then.
func (s *Secret) read(ctx context.Context) error {
	for {
		kept, err := s.readOnce(ctx)
		if kept || err != nil {
			return err
		}
	}
}

// readOnce is read. A credential that was being made while all but what the session knew of was ended may have been ended as well: it is not kept then.
func (s *Secret) readOnce(ctx context.Context) (kept bool, err error) {
	handovers, err := s.session.handovers(ctx)
	s.mu.Lock()
	s.tenure.told = false // what is told from now on may be newer than the answer
	s.last = time.Now()
	s.mu.Unlock()
	c, epoch := s.current()
	var answer *Response
	if err == nil {
		answer, err = s.ask(ctx, c)
	}
	var v Value
	if err == nil {
		v, err = valueOf(s.path, answer, time.Now())
	}
	if err == nil && s.sealer != nil {
		err = v.seal(s.sealer)
	}
	if err != nil {
		s.fail(err, epoch, true)
		return false, err
	}
	next := tenureOf(answer, epoch, v.Read)
	if !s.take(v, next, handovers) {
		_ = end(ctx, c, next.lease) // else it ends by itself
		return false, nil
	}
	return true, nil
}

// take has v count, and reports whether it may: not if it is a credential that was begun to be read before a handover, of which there were so many then.
func (s *Secret) take(v Value, next tenure, handovers uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if next.kind == dynamic && s.session.handed.Load() != handovers { // with s.mu held: from now on a handover finds it
		return false
	}
	before := s.tenure
	s.tenure = next
	s.tenure.followed, s.tenure.lost, s.tenure.told = before.followed, before.lost, before.told
	s.confirmed, s.failure = v.Read, nil
	if s.value.Serial != 0 && s.tenure.kind != dynamic && s.value.same(v) {
		if 0 < s.tenure.ttl && s.tenure.ttl <= shortest { // of a password whose rotation is overdue, say: not again and again
			s.tenure.failures = before.failures
			s.tenure.failed(v.Read, rand.Float64())
		}
		return true
	}
	if before.kind == dynamic && before.lease != "" {
		s.spent[s.value.Serial] = before.lease
	}
	v.Serial = s.value.Serial + 1
	s.value = v
	if s.changed != nil {
		close(s.changed)
	}
	s.changed = make(chan struct{})
	return true
}

func (s *Secret) ask(ctx context.Context, c *Client) (*Response, error) {
	if s.body != nil {
		return c.Write(ctx, s.path, s.body)
	}
	return c.Read(ctx, s.path, s.query)
}

// fixed reports whether what was asked for never changes: it was named by its version, or made by what was written.
func (s *Secret) fixed() bool { return s.query != nil || s.body != nil }

// renew renews the lease.
func (s *Secret) renew(ctx context.Context) {
	c, epoch := s.current()
	s.mu.Lock()
	body := map[string]any{"lease_id": s.tenure.lease}
	if s.tenure.kind == dynamic {
		body["increment"] = int64(s.tenure.full / time.Second)
	}
	s.mu.Unlock()
	answer, err := c.Write(ctx, "sys/leases/renew", body)
	if err != nil {
		// A lease that the server does not renew any more is over, or about to be.
		s.fail(err, epoch, IsStatus(err, http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tenure.renewed(answer, time.Now())
	s.failure = nil
	if !s.tenure.told {
		s.confirmed = time.Now()
	}
}

// fail records a failure; again says that the secret is to be read.
func (s *Secret) fail(err error, epoch uint64, again bool) {
	if s.ctx.Err() != nil {
		return
	}
	if IsStatus(err, http.StatusForbidden) {
		s.session.doubt(epoch)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure = err
	s.tenure.told = s.tenure.told || again
	s.tenure.failed(time.Now(), rand.Float64())
}

// settle tells the server what is not in use any more. It returns whether that succeeded, or will never.
func (s *Secret) settle() bool {
	done := true
	c, _ := s.current()
	for serial, lease := range s.over() {
		if end(s.ctx, c, lease) != nil {
			done = false
			continue
		}
		s.mu.Lock()
		delete(s.spent, serial)
		s.mu.Unlock()
	}
	serial, lease := s.moved()
	if serial == 0 {
		return done
	}
	if lease != "" {
		_, err := c.Write(s.ctx, "sys/lessor/leases/acknowledge", map[string]any{"lease_id": lease})
		switch {
		case err == nil:
		case IsStatus(err, http.StatusBadRequest): // the lease is over: there is another after the next read
			s.tell()
			return false
		case passing(err):
			return false
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled = max(s.settled, serial)
	return done
}

// over are the leases of older credentials that nobody uses any more, by serial.
func (s *Secret) over() map[uint64]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	over := map[uint64]string{}
	for serial, lease := range s.spent {
		if serial < s.adopted && s.held[serial] == 0 {
			over[serial] = lease
		}
	}
	return over
}

// moved is the serial of the current value and its lease, if it is to be acknowledged: nothing older is in use, and that was not told yet. A serial of 0: no.
// Of a value without a lease that can be acknowledged there is nothing to tell.
func (s *Secret) moved() (serial uint64, lease string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	serial = s.value.Serial
	if s.settled == serial || s.adopted < serial {
		return 0, ""
	}
	for held := range s.held {
		if held < serial {
			return 0, ""
		}
	}
	if s.tenure.kind == static && s.query == nil {
		lease = s.tenure.lease
	}
	return serial, lease
}

// leave gives back the leases that the secret has.
func (s *Secret) leave(ctx context.Context) error {
	s.mu.Lock()
	kind, leases := s.tenure.kind, slices.Collect(maps.Values(s.spent))
	if kind != plain && s.query == nil {
		leases = append(leases, s.tenure.lease)
	}
	s.mu.Unlock()
	c, _ := s.current()
	var failed error
	for _, lease := range leases {
		if kind == static {
			failed = errors.Join(failed, release(ctx, c, lease))
		} else {
			failed = errors.Join(failed, end(ctx, c, lease))
		}
	}
	return failed
}

// release says that what a lease is on is not used here any more. That it cannot be said, to an earlier server, say, is no error: then it lapses.
func release(ctx context.Context, c *Client, lease string) error {
	if _, err := c.Write(ctx, releasePath, map[string]any{"lease_id": lease}); err != nil && passing(err) {
		return fmt.Errorf("a lease could not be given back, and lapses by itself: %w", err)
	}
	return nil
}

// end ends a dynamic credential's lease: as its holder, or, at a server that does not know that, by the right to revoke leases, if there is one. Otherwise it
// ends by itself.
func end(ctx context.Context, c *Client, lease string) error {
	body := map[string]any{"lease_id": lease}
	_, err := c.Write(ctx, releasePath, body)
	if err == nil || IsStatus(err, http.StatusBadRequest) { // or it is over
		return nil
	}
	if !passing(err) {
		_, err = c.Write(ctx, "sys/leases/revoke", body)
	}
	if err != nil && passing(err) {
		return fmt.Errorf("a lease could not be ended, and ends by itself: %w", err)
	}
	return nil
}

const releasePath = "sys/lessor/leases/release"

// current is the client to ask with, and the epoch of its token.
func (s *Secret) current() (*Client, uint64) {
	token, epoch := s.session.token()
	return s.client.WithToken(token), epoch
}

func (s *Secret) String() string             { return "[secret]" }
func (s *Secret) GoString() string           { return "[secret]" }
func (s *Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }
