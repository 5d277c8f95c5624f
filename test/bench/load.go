package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// client is one keep-alive connection. It speaks as much HTTP/1.1 as lessor's and the limit's answers need, and allocates nothing
// for a request, since it shares the machine with what it measures.
type client struct {
	conn  net.Conn
	in    []byte // what was read and not yet used
	out   []byte // the request being built
	n     int    // which of the clients it is
	seq   int    // requests so far
	done  atomic.Uint64
	times []time.Duration // how long requests took, if the slice was made: as many as it has room for
	_     [64]byte        // keeps counters of different clients apart
}

// shot builds the client's next request in c.out.
type shot func(c *client)

// request puts a whole request into c.out.
func (c *client) request(method, path, token, body string) {
	c.begin(method, path, token)
	c.finish(body)
}

func (c *client) begin(method, path, token string) {
	b := append(c.out[:0], method...)
	b = append(b, " /v1/"...)
	b = append(b, path...)
	b = append(b, " HTTP/1.1\r\nHost: bench\r\n"...)
	if token != "" {
		b = append(b, "X-Vault-Token: "...)
		b = append(b, token...)
		b = append(b, "\r\n"...)
	}
	c.out = b
}

func (c *client) header(name, value string) {
	c.out = append(append(append(append(c.out, name...), ": "...), value...), "\r\n"...)
}

func (c *client) finish(body string) {
	if body != "" {
		c.out = append(c.out, "Content-Length: "...)
		c.out = strconv.AppendInt(c.out, int64(len(body)), 10)
		c.out = append(c.out, "\r\n"...)
	}
	c.out = append(append(c.out, "\r\n"...), body...)
}

// exchange sends c.out and returns the answer's status and body, which is valid until the next call.
func (c *client) exchange() (int, []byte, error) {
	if _, err := c.conn.Write(c.out); err != nil {
		return 0, nil, err
	}
	c.in = c.in[:0]
	head := -1
	for head < 0 {
		if err := c.read(); err != nil {
			return 0, nil, err
		}
		head = bytes.Index(c.in, []byte("\r\n\r\n"))
	}
	status, length, err := parseHead(c.in[:head+2])
	if err != nil {
		return 0, nil, err
	}
	for len(c.in) < head+4+length {
		if err := c.read(); err != nil {
			return 0, nil, err
		}
	}
	return status, c.in[head+4 : head+4+length], nil
}

func (c *client) read() error {
	if cap(c.in)-len(c.in) < 2048 {
		c.in = slices.Grow(c.in, 4096)
	}
	n, err := c.conn.Read(c.in[len(c.in):cap(c.in)])
	c.in = c.in[:len(c.in)+n]
	return err
}

var contentLength = []byte("\r\nContent-Length: ")

func parseHead(head []byte) (status, length int, err error) {
	if len(head) < 12 || !bytes.HasPrefix(head, []byte("HTTP/1.1 ")) {
		return 0, 0, fmt.Errorf("no HTTP/1.1 answer: %q", head)
	}
	for _, d := range head[9:12] {
		status = status*10 + int(d-'0')
	}
	at := bytes.Index(head, contentLength)
	if at < 0 {
		if status == 204 {
			return status, 0, nil
		}
		return 0, 0, fmt.Errorf("an answer without Content-Length: %q", head)
	}
	for _, d := range head[at+len(contentLength):] {
		if d < '0' || d > '9' {
			break
		}
		length = length*10 + int(d-'0')
	}
	return status, length, nil
}

// must sends c.out and fails unless the answer is a success.
func (c *client) must() ([]byte, error) {
	status, body, err := c.exchange()
	if err == nil && (status < 200 || status > 299) {
		line, _, _ := bytes.Cut(c.out, []byte(" HTTP/1.1\r\n"))
		err = fmt.Errorf("%s: status %d: %s", line, status, body)
	}
	c.seq++
	return body, err
}

// dial opens n clients.
func dial(addr string, n int) ([]*client, error) {
	all := make([]*client, n)
	for i := range all {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return nil, err
		}
		all[i] = &client{conn: conn, n: i, in: make([]byte, 0, 4096), out: make([]byte, 0, 1024)}
	}
	return all, nil
}

func hangUp(all []*client) {
	for _, c := range all {
		_ = c.conn.Close()
	}
}

// closed has every client send its next request as soon as it has the answer to the last, and returns how many were answered a second
// in d, after warm.
func closed(all []*client, fire shot, warm, d time.Duration) (float64, error) {
	var stop atomic.Bool
	var wg sync.WaitGroup
	errs := make([]error, len(all))
	for i, c := range all {
		wg.Go(func() {
			for !stop.Load() {
				fire(c)
				var began time.Time
				if c.times != nil {
					began = time.Now()
				}
				if _, err := c.must(); err != nil {
					errs[i] = err
					stop.Store(true)
					return
				}
				c.done.Add(1)
				if len(c.times) < cap(c.times) {
					c.times = append(c.times, time.Since(began))
				}
			}
		})
	}
	wait := func(d time.Duration) {
		for end := time.Now().Add(d); !stop.Load() && time.Now().Before(end); {
			time.Sleep(min(50*time.Millisecond, max(0, time.Until(end))))
		}
	}
	wait(warm)
	before, began := requestsOf(all), time.Now()
	wait(d)
	n, took := requestsOf(all)-before, time.Since(began)
	stop.Store(true)
	wg.Wait()
	return float64(n) / took.Seconds(), errors.Join(errs...)
}

// sample is one request of an open loop.
type sample struct {
	at   time.Time     // when it was to be sent
	took time.Duration // from then to its answer
}

// open sends rate requests a second, each at its time whatever became of those before, until stop is closed.
func open(all []*client, fire shot, rate int, stop <-chan struct{}) ([]sample, error) {
	times := make(chan time.Time, 1<<16) // so that a stall delays nobody's start on paper
	taken := make([][]sample, len(all))
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, c := range all {
		wg.Go(func() {
			for at := range times {
				if errs[i] != nil {
					continue
				}
				fire(c)
				_, errs[i] = c.must()
				taken[i] = append(taken[i], sample{at, time.Since(at)})
			}
		})
	}
	metronome(rate, times, stop)
	wg.Wait()
	return slices.Concat(taken...), errors.Join(errs...)
}

// metronome sends the times at which requests are due. It sleeps on a thread of its own, since the runtime's timers may be a
// millisecond late.
func metronome(rate int, times chan<- time.Time, stop <-chan struct{}) {
	defer close(times)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	step := time.Second / time.Duration(rate)
	for at := time.Now(); ; at = at.Add(step) {
		select {
		case <-stop:
			return
		default:
		}
		if d := time.Until(at); d > 0 {
			t := syscall.NsecToTimespec(int64(d))
			_ = syscall.Nanosleep(&t, nil)
		}
		times <- at
	}
}

// percentile is that of how long samples took.
func percentile(samples []sample, p float64) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	took := make([]time.Duration, len(samples))
	for i, s := range samples {
		took[i] = s.took
	}
	slices.Sort(took)
	return took[min(len(took)-1, int(float64(len(took))*p))]
}
