package rabbittest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// Connection is a client's, open in a virtual host: as much of AMQP 0-9-1 as logging in takes.
type Connection struct{ net.Conn }

// ErrRefused is the error of a login that the server refuses.
var ErrRefused = errors.New("rabbittest: the login was refused")

// Dial logs in as a client does, and opens a virtual host. The caller closes it.
func (s *Server) Dial(username, password, vhost string) (*Connection, error) {
	conn, err := net.DialTimeout("tcp", s.AMQP, 30*time.Second)
	if err != nil {
		return nil, err
	}
	c := &Connection{conn}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if err := c.login(username, password, vhost); err != nil {
		c.Close()
		return nil, err
	}
	_ = c.SetDeadline(time.Time{})
	return c, nil
}

// Methods of the class connection.
const (
	startMethod  = 10
	startOk      = 11
	tuneMethod   = 30
	tuneOk       = 31
	openMethod   = 40
	openOkMethod = 41
)

func (c *Connection) login(username, password, vhost string) error {
	if _, err := c.Write([]byte("AMQP\x00\x00\x09\x01")); err != nil {
		return err
	}
	if _, err := c.expect(startMethod); err != nil {
		return err
	}
	properties := field("connection_name", "S", long("rabbittest"))
	capabilities := field("authentication_failure_close", "t", []byte{1})
	properties = append(properties, field("capabilities", "F", long(string(capabilities)))...)
	args := append(long(string(properties)), brief("PLAIN")...)
	args = append(args, long("\x00"+username+"\x00"+password)...)
	if err := c.send(startOk, append(args, brief("en_US")...)); err != nil {
		return err
	}
	tune, err := c.expect(tuneMethod)
	if err != nil {
		return err
	}
	if err := c.send(tuneOk, append(tune[:6:6], 0, 0)); err != nil { // no heartbeats
		return err
	}
	if err := c.send(openMethod, append(brief(vhost), 0, 0)); err != nil {
		return err
	}
	_, err = c.expect(openOkMethod)
	return err
}

// Ended waits until the server has ended the connection: it says so (connection.close), or cuts it. Without heartbeats it says nothing else.
func (c *Connection) Ended(patience time.Duration) bool {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	_, err := c.Read(make([]byte, 1))
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

func brief(s string) []byte { return append([]byte{byte(len(s))}, s...) }

func long(s string) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...) }

func field(name, kind string, value []byte) []byte {
	return append(append(brief(name), kind...), value...)
}

func (c *Connection) send(method uint16, args []byte) error {
	payload := append([]byte{0, 10, byte(method >> 8), byte(method)}, args...)
	frame := append([]byte{1, 0, 0}, binary.BigEndian.AppendUint32(nil, uint32(len(payload)))...)
	_, err := c.Write(append(append(frame, payload...), 0xCE))
	return err
}

// expect reads the next method, which must be this one, and returns its arguments.
func (c *Connection) expect(method uint16) ([]byte, error) {
	head := make([]byte, 7)
	if _, err := io.ReadFull(c, head); err != nil {
		return nil, err
	}
	payload := make([]byte, binary.BigEndian.Uint32(head[3:])+1)
	if _, err := io.ReadFull(c, payload); err != nil {
		return nil, err
	}
	if got := binary.BigEndian.Uint16(payload[2:]); got != method {
		return nil, fmt.Errorf("%w: %q", ErrRefused, payload[4:]) // connection.close, with why
	}
	return payload[4 : len(payload)-1], nil
}
