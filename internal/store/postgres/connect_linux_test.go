package postgres

import (
	"net"
	"testing"
	"time"
)

// Whether a connection is silent is known at once, also while somebody reads from it and nothing comes: pgx does so in the background after a write that took
// long, and goes on once the connection lies idle.
func TestSilentWhileSomebodyReads(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = client.Read(make([]byte, 1))
	}()
	told := make(chan bool, 1)
	for range 50 { // some of them after the reader has begun
		go func() { told <- silent(line{client}) }()
		select {
		case quiet := <-told:
			if !quiet {
				t.Fatal("not silent, though nothing has come")
			}
		case <-time.After(time.Minute):
			t.Fatal("it waits for who reads")
		}
		time.Sleep(time.Millisecond)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	<-read
	await(t, "the end is seen", func() bool { return !silent(line{client}) })
}
