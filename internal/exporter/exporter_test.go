package exporter

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/claim"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
)

// world is a store with exporters over it.
type world struct {
	*testing.T
	disk *mem.Disk
	db   *store.DB
	keys *seal.Keyring
	o    Options
	x    *Exporters
	end  func()
	acts int
}

func begin(t *testing.T) *world {
	t.Helper()
	t.Parallel()
	disk := new(mem.Disk)
	db, err := store.Open(disk.Open(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	kek, err := seal.CreateKeyFile(t.TempDir()+"/seal.key", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, rows, err := seal.Init(rand.Reader, db.Now(), kek)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Unseal(keys.Cipher()); err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, disk: disk, db: db, keys: keys, end: func() {}}
	w.o = Options{Store: db, Keys: keys, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	w.commit(store.Txn{Puts: rows})
	w.run()
	t.Cleanup(func() {
		w.end()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// run starts the exporters, as a start of the server does.
func (w *world) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	w.x = New(w.o)
	go func() { defer close(done); w.x.Run(ctx) }()
	w.end = func() { cancel(); <-done }
}

// crash ends the exporters and starts them anew, with the cursor where it was before: what was told since, lessor does not know.
func (w *world) crash(d *Device, before uint64) {
	w.Helper()
	w.end()
	w.forget(d, before)
	w.run()
}

func (w *world) forget(d *Device, before uint64) {
	w.Helper()
	b, err := encoding.Marshal(cursor{Seq: before})
	if err != nil {
		w.Fatal(err)
	}
	w.commit(store.Txn{Puts: []store.Put{{Key: d.cursor(), Value: b}}})
}

func (w *world) commit(txn store.Txn) uint64 {
	w.Helper()
	r, err := w.db.Commit(w.Context(), txn)
	if err != nil {
		w.Fatal(err)
	}
	return r.Seq
}

// act commits n acts, one a commit.
func (w *world) act(n int) {
	w.Helper()
	for range n {
		w.acts++
		w.commit(store.Txn{Audit: []audit.Record{{
			Time: w.db.Now(), Request: fmt.Sprint("r", w.acts), Operation: "read", Path: fmt.Sprint("secret/data/", w.acts), Phase: audit.Done, Granted: true,
			Entity: "e", Name: "userpass-ann", Accessor: "accessor-1", Policy: "p", Rule: "path \"secret/*\"", Client: "10.0.0.1",
		}}})
	}
}

// enable commits a device and waits for it.
func (w *world) enable(path, kind string, options map[string]string) (*Device, error) {
	w.Helper()
	d := &Device{Path: path, Type: kind, Options: options}
	_, err := w.db.Update(w.Context(), func(v store.View, txn *store.Txn) error {
		d.From = v.Position() + 1
		return Enable(v, txn, d, rand.Reader)
	})
	if err != nil {
		return nil, err
	}
	return d, w.x.Enabled(w.Context(), d)
}

func (w *world) enabled(path, kind string, options map[string]string) *Device {
	w.Helper()
	d, err := w.enable(path, kind, options)
	if err != nil {
		w.Fatal(err)
	}
	return d
}

func (w *world) disable(d *Device) {
	w.Helper()
	txn := store.Txn{Audit: []audit.Record{{Operation: "delete", Path: "sys/audit/" + d.Name(), Phase: audit.Done, Request: "disabled"}}}
	Disable(&txn, d)
	w.commit(txn)
	if err := w.x.Disabled(w.Context(), d); err != nil {
		w.Fatal(err)
	}
}

// until waits for a condition.
func (w *world) until(what string, f func() bool) {
	w.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatalf("waited in vain until %s", what)
		}
	}
}

// caughtUp waits until the device was told everything.
func (w *world) caughtUp(d *Device) {
	w.Helper()
	w.until(d.Path+" has caught up", func() bool { s := w.x.Status(d); return s.State == "following" && s.Lag == 0 && s.Behind == 0 })
}

// saved waits until the cursor says so, too.
func (w *world) saved(d *Device) uint64 {
	w.Helper()
	v, err := w.db.View()
	if err != nil {
		w.Fatal(err)
	}
	defer v.Close()
	c, err := remembered(v, d)
	if err != nil {
		w.Fatal(err)
	}
	return c.Seq
}

func (w *world) wants(request int, lines []entry) {
	w.Helper()
	if len(lines) != w.acts-request+1 {
		w.Fatalf("%d lines, want %d", len(lines), w.acts-request+1)
	}
	for i, l := range lines {
		if l.Request.ID != fmt.Sprint("r", request+i) {
			w.Fatalf("line %d tells %s, want r%d", i, l.Request.ID, request+i)
		}
	}
}

func parseAll(t *testing.T, text []byte) (all []entry) {
	t.Helper()
	for line := range bytes.Lines(text) {
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, e)
	}
	return all
}

func (w *world) lines(path string) []entry {
	w.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		w.Fatal(err)
	}
	return parseAll(w.T, b)
}

func TestFile(t *testing.T) {
	w := begin(t)
	w.act(3)
	path := t.TempDir() + "/logs/audit.log"
	d := w.enabled("file", File, map[string]string{"file_path": path})
	first := w.acts + 1
	w.act(50)
	w.caughtUp(d)
	lines := w.lines(path)
	w.wants(first, lines)
	l := lines[0]
	if l.Type != "response" || l.Auth.Accessor != d.Hash(w.keys, "accessor-1") || l.Auth.DisplayName != "userpass-ann" || !l.Auth.Results.Allowed ||
		l.Auth.Results.Granting[0].Name != "p" || l.Request.RemoteAddress != "10.0.0.1" || l.Request.Operation != "read" || l.Request.Path != "secret/data/4" {
		t.Errorf("the line says %+v", l)
	}
	if _, hash, err := w.db.Header(l.Lessor.Sequence); err != nil || l.Lessor.Header != fmt.Sprintf("%x", hash) {
		t.Errorf("the line names the header %s of commit %d, want %x, %v", l.Lessor.Header, l.Lessor.Sequence, hash, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("the file's mode: %v, %v", info.Mode(), err)
	}
	w.disable(d)
	w.act(1)
	lines = w.lines(path)
	if last := lines[len(lines)-1]; last.Request.ID != "disabled" {
		t.Errorf("the last line is not that of disabling the device: %+v", last)
	}
	if s := w.x.Status(d); s.State != "stopped" {
		t.Errorf("disabled: %+v", s)
	}
	v, err := w.db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if row, err := v.Get(d.cursor()); err != nil || row.Exists() {
		t.Errorf("a disabled device has a cursor: %v, %v", row.Exists(), err)
	}
}

// TestCursor: an idle device writes nothing more, and its cursor moves no other device's.
func TestCursor(t *testing.T) {
	w := begin(t)
	dir := t.TempDir()
	a := w.enabled("a", File, map[string]string{"file_path": dir + "/a"})
	b := w.enabled("b", File, map[string]string{"file_path": dir + "/b"})
	w.act(10)
	w.caughtUp(a)
	w.caughtUp(b)
	before := w.db.Head().Seq
	w.x.Reload() // saves, before its time
	began := time.Now()
	w.until("the cursors are saved", func() bool { return w.saved(a) >= before && w.saved(b) >= before })
	if took := time.Since(began); took > saveEvery {
		t.Errorf("the cursors were saved after %v", took)
	}
	settled := w.db.Head().Seq
	if settled > before+4 {
		t.Errorf("two cursors took %d commits", settled-before)
	}
	w.x.Reload()
	time.Sleep(200 * time.Millisecond)
	if now := w.db.Head().Seq; now > settled+1 {
		t.Errorf("exporters made %d commits although nothing happened", now-settled)
	}
}

// TestRestart: whatever the moment at which lessor ends, a file has each record once and in order.
func TestRestart(t *testing.T) {
	w := begin(t)
	path := t.TempDir() + "/audit.log"
	d := w.enabled("file", File, map[string]string{"file_path": path})
	for i := range 8 {
		before := w.saved(d)
		w.act(7)
		switch i % 4 {
		case 0:
			w.caughtUp(d)
		case 1:
			time.Sleep(time.Millisecond)
		}
		w.end()
		w.forget(d, before)
		if i%2 == 1 { // the machine went down in the middle of a line
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, int64(len(b)-1-37*i)); err != nil {
				t.Fatal(err)
			}
		}
		w.run()
	}
	w.until("the device runs", func() bool { return w.x.Status(d).State != "stopped" })
	w.caughtUp(d)
	w.wants(1, w.lines(path))
}

func TestFromTheBeginning(t *testing.T) {
	w := begin(t)
	w.act(2000)
	path := t.TempDir() + "/audit.log"
	d := &Device{Path: "f", Type: File, Options: map[string]string{"file_path": path}, From: 1}
	_, err := w.db.Update(t.Context(), func(v store.View, txn *store.Txn) error { return Enable(v, txn, d, rand.Reader) })
	if err != nil {
		t.Fatal(err)
	}
	if err := w.x.Enabled(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	w.caughtUp(d)
	w.wants(1, w.lines(path))
}

// TestRotation: SIGHUP after a rename; and a rename that nobody told of.
func TestRotation(t *testing.T) {
	w := begin(t)
	path := t.TempDir() + "/audit.log"
	d := w.enabled("file", File, map[string]string{"file_path": path})
	w.act(5)
	w.caughtUp(d)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	w.x.Reload()
	w.until("there is a new file", func() bool { _, err := os.Stat(path); return err == nil })
	w.act(5)
	w.caughtUp(d)
	w.wants(1, append(w.lines(path+".1"), w.lines(path)...))
	if n := len(w.lines(path)); n != 5 {
		t.Errorf("the new file has %d lines", n)
	}
	if err := os.Rename(path, path+".2"); err != nil {
		t.Fatal(err)
	}
	w.act(1)
	w.until("the new file is noticed", func() bool { _, err := os.Stat(path); return err == nil })
	w.act(1)
	w.caughtUp(d)
	w.wants(1, append(append(w.lines(path+".1"), w.lines(path+".2")...), w.lines(path)...))
}

// TestUnsafeFiles: whoever may enable devices cannot make the server write where it should not.
func TestUnsafeFiles(t *testing.T) {
	w := begin(t)
	dir := t.TempDir()
	data := dir + "/data"
	for _, d := range []string{data, dir + "/logs"} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string, mode os.FileMode) string {
		if err := os.WriteFile(name, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return name
	}
	link := func(to, name string) string {
		if err := os.Symlink(to, name); err != nil {
			t.Fatal(err)
		}
		return name
	}
	key := write(dir+"/seal.key", "", 0o600)
	w.end()
	w.o.Private = []string{data, key}
	w.run()
	fifo := dir + "/fifo"
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(key, dir+"/logs/innocent"); err != nil {
		t.Fatal(err)
	}
	link(data, dir+"/shortcut")
	for name, path := range map[string]string{
		"data folder":           data + "/audit.log",
		"new folder in it":      data + "/a/b/audit.log",
		"data folder by detour": dir + "/logs/../data/x",
		"linked folder":         dir + "/shortcut/new/x",
		"key file":              key,
		"hard link to the key":  dir + "/logs/innocent",
		"symbolic link":         link(key, dir+"/logs/link"),
		"dangling link":         link(dir+"/nothing", dir+"/logs/dangling"),
		"folder":                dir + "/logs",
		"pipe":                  fifo,
		"device":                "/dev/tty",
		"kernel setting":        "/proc/self/comm",
		"program":               write(dir+"/program", "", 0o700),
		"shell profile":         write(dir+"/profile", "export A=1\n", 0o600),
		"text without an end":   write(dir+"/text", "ssh-ed25519 AAAA", 0o600),
		"other json":            write(dir+"/json", `{"a":1}`+"\n", 0o600),
	} {
		var before []byte
		if name != "pipe" && name != "device" {
			before, _ = os.ReadFile(path)
		}
		_, err := w.enable("evil", File, map[string]string{"file_path": path})
		if err == nil || !strings.Contains(err.Error(), errUnsafe.Error()) {
			t.Errorf("%s: %v", name, err)
		}
		v, err := w.db.View()
		if err != nil {
			t.Fatal(err)
		}
		if left, err := Find(v, "evil"); err != nil || left != nil {
			t.Errorf("%s: the device is still there: %+v, %v", name, left, err)
		}
		v.Close()
		if name == "pipe" || name == "device" || name == "kernel setting" {
			continue
		}
		if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
			t.Errorf("%s was written to", name)
		}
	}
	for name, path := range map[string]string{
		"Vault's log":   write(dir+"/vault.log", `{"time":"2024","type":"response","auth":{},"request":{"id":"x"},"response":{}}`+"\n", 0o600),
		"an empty file": write(dir+"/empty.log", "", 0o600),
	} {
		d, err := w.enable("good", File, map[string]string{"file_path": path})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		w.disable(d)
	}
}

// TestDiverged: a file that knows more than the store tells that the store was put back.
func TestDiverged(t *testing.T) {
	w := begin(t)
	path := t.TempDir() + "/audit.log"
	d := w.enabled("file", File, map[string]string{"file_path": path})
	w.act(5)
	w.caughtUp(d)
	w.end()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all := w.lines(path)
	for name, change := range map[string]func(*entry){
		"a later commit": func(e *entry) { e.Lessor.Sequence += 1000 },
		"another hash":   func(e *entry) { e.Lessor.Header = strings.Repeat("0", 64) },
	} {
		last := all[len(all)-1]
		change(&last)
		line, _ := json.Marshal(last)
		if err := os.WriteFile(path, append(bytes.Clone(b), append(line, '\n')...), 0o600); err != nil {
			t.Fatal(err)
		}
		w.run()
		w.until(name+" is noticed", func() bool { return w.x.Status(d).Kind == "diverged" })
		w.end()
	}
}

// collector is a real listener that keeps what it is sent.
type collector struct {
	mu   sync.Mutex
	text bytes.Buffer
	last net.Conn
	hold chan struct{} // while open, nothing is read
}

func (c *collector) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		c.last = conn
		hold := c.hold
		c.mu.Unlock()
		go func() {
			if hold != nil {
				<-hold
			}
			lines := bufio.NewReader(conn)
			for {
				line, err := lines.ReadBytes('\n')
				if err != nil {
					return // a line that was cut off is told again
				}
				c.mu.Lock()
				c.text.Write(line)
				c.mu.Unlock()
			}
		}()
	}
}

func (c *collector) entries(t *testing.T) []entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return parseAll(t, bytes.Clone(c.text.Bytes()))
}

// distinct drops repeats, as consumers do, and reports what comes out of order among the rest.
func distinct(t *testing.T, all []entry) (once []entry) {
	seen := map[place]bool{}
	var last place
	for _, e := range all {
		p := place{e.Lessor.Incarnation, e.Lessor.Sequence, e.Lessor.Index}
		if seen[p] {
			continue
		}
		if !p.after(last) {
			t.Errorf("record %v comes after %v", p, last)
		}
		seen[p], last, once = true, p, append(once, e)
	}
	return once
}

func TestStreams(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			w := begin(t)
			address := "127.0.0.1:0"
			if network == "unix" {
				address = t.TempDir() + "/socket"
			}
			l, err := net.Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			c := &collector{}
			go c.serve(l)
			d := w.enabled("s", Socket, map[string]string{"address": l.Addr().String(), "socket_type": network, "write_timeout": "200ms"})
			w.act(20)
			w.caughtUp(d)
			w.until("all arrived", func() bool { return len(c.entries(t)) == 20 })
			w.wants(1, c.entries(t))

			// The collector breaks down and comes back; what it may have missed is told again.
			address = l.Addr().String()
			l.Close()
			c.mu.Lock()
			c.last.Close()
			c.mu.Unlock()
			w.act(20)
			w.until("the device fails", func() bool { return w.x.Status(d).State == "failing" })
			if s := w.x.Status(d); s.Lag == 0 || s.Kind == "" {
				t.Errorf("failing: %+v", s)
			}
			w.crash(d, w.saved(d)) // meanwhile lessor is restarted, too
			w.act(5)
			if l, err = net.Listen(network, address); err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go c.serve(l)
			w.until("all arrived", func() bool { return len(distinct(t, c.entries(t))) >= w.acts })
			w.wants(1, distinct(t, c.entries(t)))
		})
	}
}

// TestUnread: what a peer has not taken is not told, whatever the connection said; no cursor moves over it.
func TestUnread(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			w := begin(t)
			address := "127.0.0.1:0"
			if network == "unix" {
				address = t.TempDir() + "/socket"
			}
			l, err := net.Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			accepted := make(chan net.Conn, 1)
			go func() { c, _ := l.Accept(); accepted <- c }()
			d := w.enabled("s", Socket, map[string]string{"address": l.Addr().String(), "socket_type": network, "write_timeout": "50ms"})
			conn := <-accepted
			before := w.saved(d)
			w.act(5)
			w.caughtUp(d) // as far as the connection says
			if network == "unix" {
				w.x.Reload() // saves, if it can
				w.until("it stalls", func() bool { return w.x.Status(d).Kind == "timeout" })
			} else {
				_ = conn.(*net.TCPConn).SetLinger(0) // the peer's process dies
			}
			conn.Close()
			w.x.Reload()
			time.Sleep(50 * time.Millisecond)
			if at := w.saved(d); at != before {
				t.Errorf("the cursor is at %d, although nobody read anything after %d", at, before)
			}
			c := &collector{}
			go c.serve(l)
			w.until("all arrived", func() bool { return len(distinct(t, c.entries(t))) >= w.acts })
			w.wants(1, distinct(t, c.entries(t)))
		})
	}
}

// TestStalledPeer: a peer that takes nothing holds nobody up, and is told everything once it reads.
func TestStalledPeer(t *testing.T) {
	w := begin(t)
	l, err := net.Listen("unix", t.TempDir()+"/socket")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := &collector{hold: make(chan struct{})}
	go c.serve(l)
	d := w.enabled("s", Socket, map[string]string{"address": l.Addr().String(), "socket_type": "unix", "write_timeout": "50ms"})
	alone := time.Now()
	w.act(200)
	usual := time.Since(alone)
	w.until("it stalls", func() bool {
		w.act(100)
		return w.x.Status(d).Kind == "timeout"
	})
	began := time.Now()
	w.act(200)
	if took := time.Since(began); took > 5*usual+5*time.Second { // 200 of its timeouts are ten seconds
		t.Errorf("200 commits took %v beside a stalled peer, and %v before it stalled", took, usual)
	}
	if s := w.x.Status(d); s.Lag == 0 {
		t.Errorf("stalled: %+v", s)
	}
	close(c.hold)
	w.until("all arrived", func() bool { return len(distinct(t, c.entries(t))) >= w.acts })
	w.wants(1, distinct(t, c.entries(t)))
}

// receive collects datagrams.
func receive(t *testing.T, conn net.PacketConn) func() []string {
	var mu sync.Mutex
	var all []string
	go func() {
		b := make([]byte, 1<<17)
		for {
			n, _, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			mu.Lock()
			all = append(all, string(b[:n]))
			mu.Unlock()
		}
	}()
	t.Cleanup(func() { conn.Close() })
	return func() []string { mu.Lock(); defer mu.Unlock(); return append([]string(nil), all...) }
}

func TestUDP(t *testing.T) {
	w := begin(t)
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := receive(t, conn)
	w.enabled("u", Socket, map[string]string{"address": conn.LocalAddr().String(), "socket_type": "udp", "prefix": "@cee: "})
	w.act(3)
	groups := make([]string, 8000) // more than a datagram takes
	for i := range groups {
		groups[i] = fmt.Sprint("group-", i)
	}
	w.commit(store.Txn{Audit: []audit.Record{{Request: "long", Operation: "read", Path: "x", Phase: audit.Done, Groups: groups}}})
	w.until("all arrived", func() bool { return len(got()) == 4 })
	for i, line := range got() {
		text, ok := strings.CutPrefix(line, "@cee: ")
		e := parseAll(t, []byte(text))[0]
		if want := fmt.Sprint("r", i+1); !ok || i < 3 && e.Request.ID != want || i == 3 && (e.Request.ID != "long" || !e.Lessor.Cut || len(line) > 2048) {
			t.Errorf("datagram %d: %.300s", i, line)
		}
	}
}

func TestSyslog(t *testing.T) {
	w := begin(t)
	path := t.TempDir() + "/log"
	conn, err := net.ListenPacket("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	got := receive(t, conn)
	w.enabled("syslog", Syslog, map[string]string{"socket_path": path, "facility": "local7", "tag": "lessor"})
	w.act(2)
	w.until("all arrived", func() bool { return len(got()) == 2 })
	for i, m := range got() {
		head, text, _ := strings.Cut(m, ": {")
		stamp := strings.TrimSuffix(strings.TrimPrefix(head, "<190>"), fmt.Sprintf(" lessor[%d]", os.Getpid()))
		if _, err := time.Parse(time.Stamp, stamp); err != nil {
			t.Errorf("header of %q: %v", m, err)
		}
		if e := parseAll(t, []byte("{"+text))[0]; e.Request.ID != fmt.Sprint("r", i+1) {
			t.Errorf("message %d: %s", i, m)
		}
	}
}

// pipe is standard output whose reader the test is.
type pipe struct{ *io.PipeWriter }

func TestStdoutThatNobodyReads(t *testing.T) {
	w := begin(t)
	r, out := io.Pipe()
	w.end()
	w.o.Stdout = pipe{out}
	w.run()
	d := w.enabled("stdout", File, map[string]string{"file_path": "STDOUT"})
	w.act(3)
	w.crash(d, 0) // in time, although a write hangs
	var all []entry
	lines := bufio.NewReader(r)
	for len(distinct(t, all)) < 3 {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, parseAll(t, line)...)
	}
	go io.Copy(io.Discard, r)
}

// TestFullDisk: lines that do not fit are written when there is room again, each once, whole and in order.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount a small file system to fill")
	}
	w := begin(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("no small file system can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	path := dir + "/audit.log"
	d := w.enabled("file", File, map[string]string{"file_path": path})
	if err := os.WriteFile(dir+"/ballast", make([]byte, 4<<20-64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	w.until("it is full", func() bool { w.act(10); return w.x.Status(d).Kind == "full" })
	w.act(20)
	if s := w.x.Status(d); s.Lag < 20 {
		t.Errorf("full: %+v", s)
	}
	if err := os.Remove(dir + "/ballast"); err != nil {
		t.Fatal(err)
	}
	w.caughtUp(d)
	w.wants(1, w.lines(path))
}

func TestFence(t *testing.T) {
	w := begin(t)
	path := t.TempDir() + "/audit.log"
	d := w.enabled("file", File, map[string]string{"file_path": path})
	w.act(1)
	w.caughtUp(d)
	w.end()
	w.commit(store.Txn{Puts: []store.Put{{Key: store.Fenced, Value: []byte("restored")}}}) // as a restore does, before anything runs
	w.run()
	w.until("it stays away", func() bool { return w.x.Status(d).State == "stopped" })
	w.act(3)
	time.Sleep(50 * time.Millisecond)
	if n := len(w.lines(path)); n != 1 {
		t.Errorf("a fenced copy wrote: %d lines", n)
	}
	w.commit(store.Txn{Deletes: []store.Key{store.Fenced}})
	w.until("it goes on", func() bool { return w.x.Status(d).State != "stopped" })
	w.caughtUp(d)
	w.wants(1, w.lines(path))
}

// join starts the exporters of another node over the same store; leave ends them in order.
func (w *world) join() (x *Exporters, leave func()) {
	w.Helper()
	db, err := store.Open(w.disk.Open(), store.Options{})
	if err != nil {
		w.Fatal(err)
	}
	if err := db.Unseal(w.keys.Cipher()); err != nil {
		w.Fatal(err)
	}
	o := w.o
	o.Store, o.Claims = db, claim.New(claim.Options{Store: db, Look: 20 * time.Millisecond})
	x = New(o)
	sharing, yield := context.WithCancel(context.Background())
	telling, stop := context.WithCancel(context.Background())
	var share, tell sync.WaitGroup
	share.Go(func() { o.Claims.Run(sharing) })
	tell.Go(func() { x.Run(telling) })
	leave = sync.OnceFunc(func() {
		stop()
		tell.Wait()
		yield()
		share.Wait()
		if err := db.Close(); err != nil {
			w.Error(err)
		}
	})
	w.Cleanup(leave)
	return x, leave
}

// TestNodes: of several nodes one tells a device; another takes over where it stopped, be it told to or not.
func TestNodes(t *testing.T) {
	w := begin(t)
	w.end()
	one, leave := w.join()
	w.x = one
	path := t.TempDir() + "/audit.log"
	d := w.enabled("file", File, map[string]string{"file_path": path})
	w.act(5)
	w.until("one tells it", func() bool { return one.Status(d).Told == 5 })
	two, leaveTwo := w.join()
	state := func(x *Exporters) string { return x.Status(d).State }
	w.until("one of them has it", func() bool { return (state(one) == "elsewhere") != (state(two) == "elsewhere") })
	w.act(5)
	told := func(n uint64) func() bool {
		return func() bool { return one.Status(d).Told+two.Status(d).Told == n }
	}
	w.until("one of them tells it", told(10))
	first, second := leave, two
	if state(one) == "elsewhere" {
		first, second = leaveTwo, one
	}
	first()
	w.act(5)
	w.until("the other tells it", func() bool { return second.Status(d).State != "elsewhere" && len(w.lines(path)) == 15 })
	w.wants(1, w.lines(path))
}

func TestEnable(t *testing.T) {
	w := begin(t)
	dir := t.TempDir()
	w.enabled("file", File, map[string]string{"file_path": dir + "/a", "elide_list_responses": "true", "log_raw": "false", "format": "json", "mode": "0640"})
	if info, err := os.Stat(dir + "/a"); err != nil || info.Mode() != 0o640 {
		t.Errorf("mode: %v, %v", info, err)
	}
	w.enabled("a/b", File, map[string]string{"file_path": "discard"})
	for _, c := range []struct {
		path, kind string
		options    map[string]string
		want       string
	}{
		{"", File, nil, "backend path must be specified"},
		{"x", "", nil, `unknown backend type: ""`},
		{"x", "carrier pigeon", nil, `unknown backend type: "carrier pigeon"`},
		{"x", File, nil, `"file_path" is required`},
		{"x", File, map[string]string{"file_path": dir + "/x", "mode": "0700"}, "may not be executable"},
		{"x", File, map[string]string{"file_path": dir + "/x", "mode": "9"}, "invalid mode"},
		{"x", File, map[string]string{"file_path": dir + "/x", "log_raw": "true"}, "log_raw"},
		{"x", File, map[string]string{"file_path": dir + "/x", "format": "jsonx"}, "format"},
		{"x", File, map[string]string{"file_path": dir + "/x", "filter": "a == b"}, "filter"},
		{"x", File, map[string]string{"file_path": dir + "/x", "hmac_accessor": "maybe"}, "hmac_accessor"},
		{"x", File, map[string]string{"file_path": dir + "/x", "from": "yesterday"}, "from"},
		{"x", File, map[string]string{"file_path": dir + "/./a"}, "file_path already in use"},
		{"file", File, map[string]string{"file_path": dir + "/x"}, "path already in use"},
		{"a", File, map[string]string{"file_path": dir + "/x"}, "path already in use"},
		{"file/sub", File, map[string]string{"file_path": dir + "/x"}, "path already in use"},
		{"x", Socket, nil, `"address" is required`},
		{"x", Socket, map[string]string{"address": "a:1", "socket_type": "sctp"}, "socket_type"},
		{"x", Socket, map[string]string{"address": dir + "/nobody", "socket_type": "unix"}, "failed test message"},
		{"x", Syslog, map[string]string{"facility": "MOON"}, "facility"},
		{"x", Syslog, map[string]string{"socket_path": dir + "/nobody"}, "failed test message"},
	} {
		if _, err := w.enable(c.path, c.kind, c.options); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q %s %v: %v, want %q", c.path, c.kind, c.options, err, c.want)
		}
	}
	d := &Device{Path: "later", Type: Socket, Options: map[string]string{"address": dir + "/later", "socket_type": "unix", "skip_test": "1"}}
	txn := &store.Txn{}
	v, err := w.db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if err := Enable(v, txn, d, rand.Reader); err != nil || !d.Untested() {
		t.Errorf("skip_test: %v", err)
	}
}

func TestCheck(t *testing.T) {
	w := begin(t)
	path := filepath.Join(t.TempDir(), "audit.log")
	d := w.enabled("file", File, map[string]string{"file_path": path})
	w.act(30)
	w.caughtUp(d)
	r, err := w.x.Check(t.Context(), d)
	if err != nil || r.Broken != "" || r.Lines < 30 || r.Missing != 0 {
		t.Fatalf("a good file: %+v, %v", r, err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(good, []byte("\n"))
	for name, c := range map[string]struct {
		text []byte
		ok   func(Report) bool
	}{
		"altered":   {bytes.Replace(good, []byte("secret/data/7"), []byte("secret/data/8"), 1), func(r Report) bool { return r.Line == 7 }},
		"cut off":   {good[:len(good)-5], func(r Report) bool { return r.Broken != "" }},
		"taken out": {bytes.Join(append(slices.Clone(lines[:4]), lines[6:]...), nil), func(r Report) bool { return r.Missing == 2 && r.Broken == "" }},
	} {
		if err := os.WriteFile(path, c.text, 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := w.x.Check(t.Context(), d); err != nil || !c.ok(r) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

// TestLineGivesAShellNothing: whatever a client puts into a path.
func TestLineGivesAShellNothing(t *testing.T) {
	w := begin(t)
	path := t.TempDir() + "/audit.log"
	d := w.enabled("file", File, map[string]string{"file_path": path})
	const evil = "secret/$(touch /tmp/x)/`id`"
	w.commit(store.Txn{Audit: []audit.Record{{Operation: "read", Path: evil, Phase: audit.Done}}})
	w.caughtUp(d)
	b, err := os.ReadFile(path)
	if err != nil || bytes.ContainsAny(b, "$`") {
		t.Errorf("%s, %v", b, err)
	}
	if e := w.lines(path)[0]; e.Request.Path != evil {
		t.Errorf("path: %s", e.Request.Path)
	}
}

// TestLine: a line tells everything that a record has, in fields that are read back.
func TestLine(t *testing.T) {
	n := 0
	var fill func(v reflect.Value)
	fill = func(v reflect.Value) {
		n++
		switch v.Kind() {
		case reflect.Struct:
			if v.Type() == reflect.TypeFor[time.Time]() {
				v.Set(reflect.ValueOf(time.Unix(int64(n), 5000)))
				return
			}
			for i := range v.NumField() {
				fill(v.Field(i))
			}
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 2, 2))
			for i := range v.Len() {
				fill(v.Index(i))
			}
		case reflect.String:
			v.SetString(fmt.Sprintf("text %d \"$(<\n\x00é\u2028", n))
		case reflect.Bool:
			v.SetBool(true)
		case reflect.Uint8, reflect.Uint32, reflect.Uint64:
			v.SetUint(uint64(n % 256))
		}
	}
	w := begin(t)
	d := &Device{UUID: "0a1b2c3d", Path: "d/", Type: File, Options: map[string]string{"file_path": "discard", "prefix": "p$"}}
	set, err := parse(d.Type, d.Options)
	if err != nil {
		t.Fatal(err)
	}
	wr := &writer{device: d, set: set, keys: w.keys}
	var at audit.At
	fill(reflect.ValueOf(&at).Elem())
	c := &store.Commit{Header: audit.Header{Incarnation: 7, Count: 9}, Hash: audit.Hash{1, 2, 3}}
	text := wr.append([]byte("before\n"), c, &at)
	line, ok := bytes.CutPrefix(text, []byte("before\np$"))
	if !ok || !json.Valid(line) || line[len(line)-1] != '\n' || bytes.Count(line, []byte("\n")) != 1 || bytes.Contains(line, []byte("$")) {
		t.Fatalf("no line: %q", text)
	}
	reader := json.NewDecoder(bytes.NewReader(line))
	reader.DisallowUnknownFields()
	var e entry
	if err := reader.Decode(&e); err != nil {
		t.Fatal(err)
	}
	var set0 func(name string, v reflect.Value)
	set0 = func(name string, v reflect.Value) {
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				set0(name+"."+v.Type().Field(i).Name, v.Field(i))
			}
		case reflect.Pointer:
			if v.IsNil() {
				t.Errorf("%s is not told", name)
				return
			}
			set0(name, v.Elem())
		default:
			if v.IsZero() && !strings.Contains(name, ".Mount") && name != ".Lessor.Cut" {
				t.Errorf("%s is not told", name)
			}
		}
	}
	set0("", reflect.ValueOf(e))
	if e.Lessor.Note != at.Note || e.Request.Path != at.Path || e.Lessor.Index != at.Index || len(e.Request.Headers) != 2 || len(e.Lessor.Secrets) != 2 {
		t.Errorf("told: %+v\nrecord: %+v", e, at)
	}
	if short := wr.shorten(text[len("before\n"):]); !bytes.HasPrefix(short, []byte("p$")) || len(short) > 2048 {
		t.Errorf("short: %s", short)
	}
}

func BenchmarkLine(b *testing.B) {
	set, err := parse(File, map[string]string{"file_path": "discard"})
	if err != nil {
		b.Fatal(err)
	}
	w := &writer{device: &Device{UUID: "0a1b2c3d", Path: "d/"}, set: set, keys: fixed{}}
	at := &audit.At{Seq: 12345, Record: audit.Record{
		Request: "78539e12-a8f5-4f81-ab71-5b610814a41f", Operation: "update", Path: "secret/data/app", Phase: audit.Done, Granted: true, Entity: "entity",
		Name: "approle-billing", Accessor: "accessor", Policy: "billing", Rule: `path "secret/data/*"`, Client: "10.0.0.1",
	}}
	c := &store.Commit{Header: audit.Header{Incarnation: 1, Count: 9}}
	b.ReportAllocs()
	var buf []byte
	for b.Loop() {
		buf = w.append(buf[:0], c, at)
	}
}

type fixed struct{}

func (fixed) Fingerprint(string, string, []byte) []byte { return make([]byte, 16) }

func TestKinds(t *testing.T) {
	for err, want := range map[error]string{
		syscall.ENOSPC: "full", syscall.ECONNREFUSED: "refused", syscall.EACCES: "denied", os.ErrDeadlineExceeded: "timeout", errGone: "io",
		os.ErrNotExist: "missing", unsafe("x"): "unsafe", errors.New("x"): "io",
	} {
		if got := kindOf(fmt.Errorf("wrapped: %w", err)); got != want {
			t.Errorf("%v is %s, want %s", err, got, want)
		}
	}
}
