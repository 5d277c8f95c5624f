package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/internal/pgtest"
)

// before is the version before this one, as git knows it.
func before(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("testdata/before")
	if err != nil {
		t.Fatal(err)
	}
	name := ""
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			name = line
		}
	}
	if out, err := exec.Command("git", "rev-parse", "--verify", "--quiet", "--end-of-options", name+"^{commit}").CombinedOutput(); err != nil {
		text := fmt.Sprintf("the version before, %s (testdata/before), is not in this copy of the repository, so nothing shows that it runs beside this one: "+
			"use a clone with its history (%v %s)", name, err, out)
		if os.Getenv("CI") == "true" {
			t.Fatal(text)
		}
		t.Skip(text)
	}
	return name
}

// program is a lessor that was built.
type program struct {
	path    string
	version string // that it says it is
}

// build builds the lessor of the module in dir.
func build(dir, path, version string) (program, error) {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-X github.com/lessor-dev/lessor/internal/version.Version="+version, "-o", path, "github.com/lessor-dev/lessor/cmd/lessor")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return program{}, fmt.Errorf("building %s: %w\n%s", version, err, out)
	}
	return program{path, version}, nil
}

// extract puts the files of a commit into dir, without touching the working tree.
func extract(commit, dir string) error {
	top, err := exec.Command("git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		return err
	}
	archive, err := exec.Command("git", "-C", strings.TrimSpace(string(top)), "archive", "--format=tar", commit).Output()
	if err != nil {
		return err
	}
	tar := exec.Command("tar", "-x", "-f", "-", "-C", dir)
	tar.Stdin = bytes.NewReader(archive)
	if out, err := tar.CombinedOutput(); err != nil {
		return fmt.Errorf("tar: %w\n%s", err, out)
	}
	return nil
}

// bothVersions builds the version before and this one.
func bothVersions(t *testing.T) (old, now program) {
	t.Helper()
	commit := before(t)
	dir, source := t.TempDir(), t.TempDir()
	if err := extract(commit, source); err != nil {
		t.Fatal(err)
	}
	old, err := build(source, filepath.Join(dir, "before"), "0-before")
	if err == nil {
		now, err = build(".", filepath.Join(dir, "now"), "0-now")
	}
	if err != nil {
		t.Fatal(err)
	}
	return old, now
}

// fleet are servers, processes of two versions, over one PostgreSQL and behind one load balancer.
type fleet struct {
	*place
	*balancer
	pg      *pgtest.Server
	conn    *pgx.Conn // to lessor's database
	secret  string    // lessor's password there
	token   string
	servers map[string]*daemon
}

// daemon is a server that is a process.
type daemon struct {
	program
	name    string
	cmd     *exec.Cmd
	address string        // host:port
	told    atomic.Bool   // to end
	ended   chan struct{} // closed when it has
}

func newFleet(t *testing.T) *fleet {
	f := &fleet{place: newPlace(t), balancer: balance(t), servers: map[string]*daemon{}, secret: "lessor's-password"}
	f.pg = pgtest.Own(t, pgtest.Fsync(), pgtest.Setting("max_connections", "150"))
	admin := f.pg.Connect(t, "")
	for _, sql := range []string{"CREATE ROLE lessor LOGIN PASSWORD '" + strings.ReplaceAll(f.secret, "'", "''") + "'", "CREATE DATABASE lessor OWNER lessor"} {
		_, err := admin.Exec(t.Context(), sql)
		f.do(err)
	}
	f.conn = f.pg.Connect(t, "lessor")
	return f
}

// drain is the line of a configuration that has servers drain for ten health checks, and a request of each client.
const drain = "drain_delay = \"2s\"\n"

func (f *fleet) configOf(name string) string { return filepath.Join(f.dir, name, "lessor.hcl") }

// join makes the files of a new server, by a program, as an operator does who asks another server to let it in.
func (f *fleet) join(name string, p program, at string) {
	f.Helper()
	address, secret := f.servers[at].address, filepath.Join(f.dir, name+".secret")
	f.run(p, address, "operator", "join-secret", "-node="+name, "-out="+secret)
	f.run(p, "", "operator", "join", "-address=http://"+address, "-secret-file="+secret, "-node-name="+name, "-listen=127.0.0.1:0", "-config="+f.configOf(name))
	text, err := os.ReadFile(f.configOf(name))
	f.do(err)
	f.do(os.WriteFile(f.configOf(name), append(text, drain...), 0o600))
}

// start starts a server; the first one makes the store, and the others get its key. The load balancer is told.
func (f *fleet) start(name string, p program) {
	f.Helper()
	if _, err := os.Stat(f.keyAt(name)); err != nil && f.token != "" {
		key, err := os.ReadFile(f.keyAt("one"))
		f.do(err)
		f.do(os.MkdirAll(filepath.Dir(f.keyAt(name)), 0o700))
		f.do(os.WriteFile(f.keyAt(name), key, 0o600))
	}
	config := f.configOf(name)
	if _, err := os.Stat(config); err != nil {
		f.do(os.MkdirAll(filepath.Dir(config), 0o700))
		f.do(os.WriteFile(config, fmt.Appendf(nil, `storage "postgresql" { connection_url = %q }
seal "keyfile" { path = %q }
listener "tcp" {
  address     = "127.0.0.1:0"
  tls_disable = true
}
node_name = %q
%s`, f.pg.URL("lessor", f.secret, "lessor"), f.keyAt(name), name, drain), 0o600))
	}
	d := &daemon{program: p, name: name, cmd: exec.Command(p.path, "server", "-config="+config), ended: make(chan struct{})}
	d.cmd.Env = []string{"HOME=" + f.dir, "PATH=" + os.Getenv("PATH")}
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	d.cmd.Stderr = f.log
	out, err := d.cmd.StdoutPipe()
	f.do(err)
	f.do(d.cmd.Start())
	f.Cleanup(func() { d.told.Store(true); _ = d.cmd.Process.Kill(); <-d.ended })

	hangs := time.AfterFunc(time.Minute, func() { _ = d.cmd.Process.Kill() })
	var banner strings.Builder
	for b := make([]byte, 4096); !strings.Contains(banner.String(), "server started!"); {
		n, err := out.Read(b)
		if banner.Write(b[:n]); err != nil {
			d.told.Store(true)
			break
		}
	}
	hangs.Stop()
	go func() {
		defer close(d.ended)
		if err := d.cmd.Wait(); !d.told.Load() {
			f.Errorf("%s (%s) ended by itself: %v", name, p.version, err)
		}
	}()
	for line := range strings.Lines(banner.String()) {
		if address, ok := strings.CutPrefix(line, "Listener Address: http://"); ok {
			d.address = strings.TrimSpace(address)
		}
		if file, ok := strings.CutPrefix(line, "Bootstrap Token File: "); ok {
			token, err := os.ReadFile(strings.TrimSpace(file))
			f.do(err)
			f.token = strings.TrimSpace(string(token))
		}
	}
	if d.told.Load() || d.address == "" {
		f.Fatalf("%s (%s) did not start: %s\n%s", name, p.version, &banner, f.log)
	}
	f.servers[name] = d
	f.route()
	f.eventually(name+" is well", func() bool { return f.healthy() == len(f.servers) })
}

// route tells the load balancer where servers are.
func (f *fleet) route() {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(f.servers)) {
		all = append(all, f.servers[name].address)
	}
	f.set(all...)
}

// stop ends servers as their service managers do, and returns when they have drained and are gone.
func (f *fleet) stop(names ...string) {
	f.Helper()
	for _, name := range names {
		d := f.servers[name]
		d.told.Store(true)
		f.do(d.cmd.Process.Signal(syscall.SIGTERM))
	}
	for _, name := range names {
		d := f.servers[name]
		select {
		case <-d.ended:
		case <-time.After(2 * time.Minute):
			f.Fatalf("%s (%s) does not end:\n%s", name, d.version, f.log)
		}
		if code := d.cmd.ProcessState.ExitCode(); code != 0 {
			f.Errorf("%s (%s) ended with %d", name, d.version, code)
		}
		delete(f.servers, name)
	}
}

// replace restarts a server with another program.
func (f *fleet) replace(name string, p program) {
	f.Helper()
	f.stop(name)
	f.start(name, p)
}

// tables are the version of the tables in the database, and the least that a lessor must know to work on them.
func (f *fleet) tables() (version, least int) {
	f.Helper()
	f.do(f.conn.QueryRow(f.Context(), "SELECT version, least FROM lessor.state").Scan(&version, &least))
	return version, least
}

// metric is one of a server's metrics.
func (f *fleet) metric(name, metric string) (value int) {
	f.Helper()
	text, err := f.caller(f.servers[name].address).text(http.StatusOK, "GET", "sys/metrics?format=prometheus", "")
	f.do(err)
	for line := range strings.Lines(string(text)) {
		if number, ok := strings.CutPrefix(line, "lessor_"+metric+" "); ok {
			var v float64
			_, err := fmt.Sscan(number, &v)
			f.do(err)
			return int(v)
		}
	}
	f.Fatalf("%s does not tell %s", name, metric)
	return 0
}

// run runs a command of a program against a server.
func (f *fleet) run(p program, address string, args ...string) []byte {
	f.Helper()
	cmd := exec.Command(p.path, args...)
	cmd.Env = []string{"HOME=" + f.dir, "PATH=" + os.Getenv("PATH"), "LESSOR_ADDR=http://" + address, "LESSOR_TOKEN=" + f.token}
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			out = append(out, exit.Stderr...)
		}
		f.Fatalf("lessor %s (%s): %v\n%s", strings.Join(args, " "), p.version, err, out)
	}
	return out
}

// known waits until each server, asked by each version's command, lists exactly those that there are, with their versions, and the servers
// have divided the background work.
func (f *fleet) known(programs ...program) {
	f.Helper()
	want := map[string]string{}
	for name, d := range f.servers {
		want[name] = d.version + " active"
	}
	for _, d := range f.servers {
		for _, p := range programs {
			f.eventually(fmt.Sprintf("%s (%s) tells %s that there are %v", d.name, d.version, p.version, want), func() bool {
				var members []struct {
					Name, Version, State string
					Alive                bool
				}
				f.do(json.Unmarshal(f.run(p, d.address, "operator", "members", "-format=json"), &members))
				got := map[string]string{}
				for _, m := range members {
					if m.Alive {
						got[m.Name] = m.Version + " " + m.State
					}
				}
				return maps.Equal(got, want)
			})
		}
	}
	f.eventually("the work is divided", func() bool {
		sum := 0
		for name := range f.servers {
			sum += f.metric(name, "background_shards")
		}
		return sum == 64
	})
}

// told waits until a server says that the audit device was told everything up to a commit, by whichever servers, each record once and in order.
func (f *fleet) told(name string, seq int) {
	f.Helper()
	f.eventually("the audit device was told everything", func() bool {
		text, err := f.caller(f.servers[name].address).text(200, "GET", "sys/lessor/audit/check/file", "")
		f.do(err)
		var found struct {
			Data struct {
				OK      bool
				Broken  any
				Foreign int `json:"foreign_lines"`
				Repeats int `json:"repeated_lines"`
				Missing int `json:"missing_records"`
				Last    int `json:"last_sequence"`
			}
		}
		f.do(json.Unmarshal(text, &found))
		if d := found.Data; !d.OK || d.Foreign+d.Repeats+d.Missing > 0 {
			f.Fatalf("the audit device's file, says %s (%s): %s", name, f.servers[name].version, text)
		}
		return found.Data.Last >= seq
	})
}
