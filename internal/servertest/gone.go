package servertest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// EndsWithItsProcess tests that a test process that is killed leaves nothing of a server behind: no process, no folder, no port. It runs the test that calls it
// in a process of its own, which start starts a server in.
func EndsWithItsProcess(t *testing.T, start func(testing.TB) *Daemon) {
	t.Helper()
	const told = "LESSOR_SERVERTEST_TELL"
	if tell := os.Getenv(told); tell != "" {
		d := start(t)
		ports := make([]string, len(d.reserved))
		for i, l := range d.reserved {
			ports[i] = l.Addr().String()
		}
		if err := os.WriteFile(tell+".part", []byte(d.Dir+"\n"+strings.Join(ports, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tell+".part", tell); err != nil {
			t.Fatal(err)
		}
		select {} // until it is killed
	}
	tell := filepath.Join(t.TempDir(), "told")
	child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", fmt.Sprintf("-test.short=%t", testing.Short()))
	child.Env = append(os.Environ(), told+"="+tell)
	said := new(strings.Builder)
	child.Stdout, child.Stderr = said, said
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = child.Wait(); close(ended) }()
	var dir string
	var ports []string
	eventually(t, func() bool {
		b, err := os.ReadFile(tell)
		lines := strings.Split(string(b), "\n")
		dir, ports = lines[0], lines[1:]
		select {
		case <-ended:
			if strings.Contains(said.String(), "--- SKIP") {
				t.Skipf("the process started no server:\n%s", said)
			}
			t.Fatalf("the process started no server:\n%s", said)
		default:
		}
		return err == nil
	})
	if len((&Daemon{Dir: dir}).processes()) == 0 {
		t.Error("no process works in the server's folder")
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
	eventually(t, func() bool { _, err := os.Stat(dir); return err != nil })
	if left := (&Daemon{Dir: dir}).processes(); len(left) > 0 {
		t.Errorf("processes %v were left behind", left)
	}
	if len(ports) == 0 {
		t.Error("the server has no port")
	}
	for _, port := range ports {
		l, err := net.Listen("unix", port)
		if err != nil {
			t.Errorf("the reservation %s was left behind: %v", port, err)
			continue
		}
		_ = l.Close()
		if c, err := net.Dial("tcp", "127.0.0.1:"+filepath.Base(port)); err == nil {
			_ = c.Close()
			t.Errorf("something listens at port %s", filepath.Base(port))
		}
	}
}

// eventually waits until a condition holds.
func eventually(t testing.TB, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it has not happened")
		}
	}
}
