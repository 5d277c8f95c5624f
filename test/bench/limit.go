package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// The limit is the least that a server can do that answers the same bytes over net/http once a record of the request is
// durable: 300 bytes are appended to a file, those of all requests that wait in one write and one fsync. It runs in a process of
// its own, as lessor does.

const (
	limitVariable = "LESSOR_BENCH_LIMIT" // says where it keeps its records; makes this program the limit
	recordSize    = 300
	answerPath    = "/answer" // sets what is answered from now on
)

// appender appends records, many with one fsync.
type appender struct {
	mu      sync.Mutex
	wake    sync.Cond
	waiting []chan error
	keep    func(n int) error // makes n records durable
}

func (a *appender) append() error {
	done := make(chan error, 1)
	a.mu.Lock()
	a.waiting = append(a.waiting, done)
	a.wake.Signal()
	a.mu.Unlock()
	return <-done
}

func (a *appender) run() {
	var batch []chan error
	for {
		a.mu.Lock()
		for len(a.waiting) == 0 {
			a.wake.Wait()
		}
		batch, a.waiting = a.waiting, batch[:0]
		a.mu.Unlock()
		err := a.keep(len(batch))
		for _, done := range batch {
			done <- err
		}
	}
}

// toFile keeps records in a file: one write and one fsync.
func toFile(path string) (keep func(n int) error, err error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	var buf []byte
	return func(n int) error {
		if need := n * recordSize; len(buf) < need {
			buf = make([]byte, need)
			for i := range buf {
				buf[i] = byte(i)
			}
		}
		if _, err := file.Write(buf[:n*recordSize]); err != nil {
			return err
		}
		return file.Sync()
	}, nil
}

// limit serves until standard input ends. It keeps its records where target says: in a file, or in PostgreSQL (rows.go).
func limit(target string) error {
	open := toFile
	if strings.HasPrefix(target, "postgresql://") {
		open = toRows
	}
	keep, err := open(target)
	if err != nil {
		return err
	}
	a := &appender{keep: keep}
	a.wake.L = &a.mu
	go a.run()
	var answer atomic.Pointer[[]byte]
	answer.Store(new([]byte))
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if r.URL.Path == answerPath {
			answer.Store(&body)
			return
		}
		if err := a.append(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		body = *answer.Load()
		h := w.Header()
		h["Cache-Control"], h["Content-Type"] = []string{"no-store"}, []string{"application/json"}
		h["Content-Length"] = []string{strconv.Itoa(len(body))}
		_, _ = w.Write(body)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	go func() { _ = http.Serve(l, handler) }()
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// limiter is the limit, running.
type limiter struct {
	addr string
	stop func()
}

func startLimit(target string) (*limiter, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), limitVariable+"="+target)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop := func() {
		_ = in.Close()
		_ = cmd.Wait()
	}
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		stop()
		return nil, fmt.Errorf("the limit did not start: %w", err)
	}
	return &limiter{strings.TrimSpace(addr), stop}, nil
}

// answers sets what the limit answers with.
func (l *limiter) answers(body []byte) error {
	all, err := dial(l.addr, 1)
	if err != nil {
		return err
	}
	defer hangUp(all)
	c := all[0]
	c.out = append(c.out, "POST "+answerPath+" HTTP/1.1\r\nHost: bench\r\n"...)
	c.finish(string(body))
	_, err = c.must()
	return err
}
