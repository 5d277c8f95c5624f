package exporter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// longestStall is how long a peer may take nothing before the connection is given up.
const longestStall = time.Minute

// conn is a sink: a connection to somebody who collects lines.
//
// What a connection took has not arrived. So Sync, without which no cursor moves, waits until the peer's system has all of it and
// the connection still stands; when it breaks, the peer is told again what came after the last Sync.
type conn struct {
	net.Conn
	timeout time.Duration // of one attempt to write, and of Sync
	gone    atomic.Bool   // the peer ended the connection
}

// dial connects a device of type socket. shorten makes a line fit into a datagram.
func dial(ctx context.Context, network, address string, timeout time.Duration, shorten func([]byte) []byte) (sink, error) {
	dialing, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(dialing, network, address)
	if err != nil {
		return nil, err
	}
	out := &conn{Conn: c, timeout: timeout}
	if network == "udp" {
		return &datagrams{conn: out, shorten: shorten}, nil
	}
	go out.listen()
	return out, nil
}

// listen notices when the peer ends the connection. What it says is nobody's business.
func (c *conn) listen() {
	_, _ = io.Copy(io.Discard, c.Conn)
	c.gone.Store(true)
}

var (
	errGone    = fmt.Errorf("the peer ended the connection: %w", syscall.ECONNRESET)
	errStalled = fmt.Errorf("the peer takes nothing: %w", os.ErrDeadlineExceeded)
)

// Write hands all lines to the connection. A peer that does not take them is waited for, as long as the connection seems to be alive.
func (c *conn) Write(ctx context.Context, lines []byte, stalled func(error)) error {
	defer context.AfterFunc(ctx, func() { _ = c.Conn.SetWriteDeadline(time.Unix(1, 0)) })()
	for last := time.Now(); len(lines) > 0; {
		if c.gone.Load() {
			return errGone
		}
		if err := c.Conn.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := c.Conn.Write(lines)
		lines = lines[n:]
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		}
		if n > 0 {
			last = time.Now()
		} else if time.Since(last) > longestStall {
			return errStalled
		} else {
			stalled(errStalled)
		}
	}
	return nil
}

// Sync waits until the peer's system has taken everything.
func (c *conn) Sync(ctx context.Context) error {
	for deadline, pause := time.Now().Add(c.timeout), time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		n, err := unsent(c.Conn)
		switch {
		case err != nil:
			return err
		case n == 0:
			time.Sleep(2 * time.Millisecond) // what ends a connection empties its queue as well, a moment before it is noticed
			if c.gone.Load() {
				return errGone
			}
			return alive(c.Conn)
		case c.gone.Load():
			return errGone
		case time.Now().After(deadline):
			return errStalled
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// datagrams is a sink: one datagram for each line. Nobody knows whether one arrives.
type datagrams struct {
	*conn
	header  func() []byte // before each line; nil: nothing
	shorten func(line []byte) []byte
}

// Write sends the lines. One that is too long for a datagram is sent short; it says so, and where the whole of it is.
func (d *datagrams) Write(ctx context.Context, lines []byte, stalled func(error)) error {
	for line := range bytes.SplitSeq(bytes.TrimSuffix(lines, []byte("\n")), []byte("\n")) {
		err := d.send(ctx, line, stalled)
		if errors.Is(err, syscall.EMSGSIZE) {
			if line = d.shorten(line); line == nil {
				continue
			}
			err = d.send(ctx, line, stalled)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *datagrams) send(ctx context.Context, line []byte, stalled func(error)) error {
	packet := line
	if d.header != nil {
		packet = append(d.header(), line...)
	}
	return d.conn.Write(ctx, packet, stalled)
}

// Sync does nothing: there is nobody to ask.
func (d *datagrams) Sync(context.Context) error { return nil }

// daemons are where the local syslog usually listens.
var daemons = []string{"/dev/log", "/var/run/syslog", "/var/run/log"}

const severity = 6 // informational (RFC 3164, section 4.1.1)

// dialSyslog connects to the local syslog, each line a message in the form that local daemons read: <priority>time tag[pid]: line
// (RFC 3164, without the host).
func dialSyslog(ctx context.Context, s *settings, shorten func([]byte) []byte) (sink, error) {
	places := daemons
	if s.address != "" {
		places = []string{s.address}
	}
	var failed error
	for _, path := range places {
		c, err := dial(ctx, "unixgram", path, s.writeTimeout, nil)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		begin, pid := fmt.Sprintf("<%d>", s.facility<<3|severity), os.Getpid()
		header := func() []byte {
			return fmt.Appendf(nil, "%s%s %s[%d]: ", begin, time.Now().Format(time.Stamp), s.tag, pid)
		}
		return &datagrams{conn: c.(*conn), header: header, shorten: shorten}, nil
	}
	return nil, fmt.Errorf("no local syslog (%s): %w", strings.Join(places, ", "), failed)
}
