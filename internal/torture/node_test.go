package torture

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/node"
)

// nodeEnv names the file that makes the test's binary a node instead. What the node needs to know is in that file.
const nodeEnv = "LESSOR_TORTURE_NODE"

func TestMain(m *testing.M) {
	if file := os.Getenv(nodeEnv); file != "" {
		if err := beNode(file, os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, "node:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// order is what a node process is told at its start.
type order struct {
	Config string        // path of its configuration
	Skew   time.Duration // by which its clock is wrong
}

// skewed is the machine's clock, wrong by what it is told.
type skewed struct{ by atomic.Int64 }

func (c *skewed) Now() time.Time { return time.Now().Add(time.Duration(c.by.Load())) }

// beNode is the process of a node, until its parent is gone. Lines that it is told change its clock.
func beNode(file string, in io.Reader) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var o order
	if err := json.Unmarshal(b, &o); err != nil {
		return err
	}
	c, err := config.Flags([]string{"-config", o.Config})
	if err != nil {
		return err
	}
	var clock skewed
	clock.by.Store(int64(o.Skew))
	n, err := node.Start(context.Background(), c, node.Options{
		Version: "torture", Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Clock: &clock,
	})
	if err != nil {
		return err
	}
	fault := make(chan error, 1)
	go func() {
		for ; ; time.Sleep(200 * time.Millisecond) {
			if err := n.Fault(); err != nil {
				fault <- err
				return
			}
		}
	}()
	end := make(chan struct{})
	go func() {
		defer close(end)
		for lines := bufio.NewScanner(in); lines.Scan(); {
			if by, err := time.ParseDuration(lines.Text()); err == nil {
				clock.by.Store(int64(by))
			}
		}
	}()
	select {
	case err = <-fault:
	case <-end:
	}
	return errors.Join(err, n.Stop(context.Background()))
}

// process keeps a node running, as a service manager does: when it ends by itself it is started again.
type process struct {
	name    string
	dir     string
	listen  string // host:port
	link    *link  // by which clients reach it
	stores  []*link
	stopped chan struct{} // closed when it is to be kept no more

	mu    sync.Mutex
	cmd   *exec.Cmd
	in    io.WriteCloser
	skew  time.Duration
	held  bool          // killed, and not to be started again yet
	ended int           // times it ended by itself
	over  chan struct{} // closed when it is kept no more; nil: it never was
}

// configure writes the node's configuration.
func (p *process) configure(databaseURL string) error {
	text := fmt.Sprintf(`storage "postgresql" { connection_url = %q }
seal "keyfile" { path = %q }
listener "tcp" {
  address = %q
  tls_disable = true
}
user_lockout "all" { disable_lockout = true }
`, databaseURL, filepath.Join(p.dir, "seal.key"), p.listen)
	return os.WriteFile(filepath.Join(p.dir, "lessor.hcl"), []byte(text), 0o600)
}

// start keeps the process running until stop.
func (p *process) start() {
	p.over = make(chan struct{})
	go p.keep()
}

func (p *process) keep() {
	defer close(p.over)
	for {
		select {
		case <-p.stopped:
			return
		default:
		}
		p.mu.Lock()
		held := p.held
		p.mu.Unlock()
		if held {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if err := p.run(); err != nil {
			p.mu.Lock()
			if !p.held {
				p.ended++
			}
			p.mu.Unlock()
			select {
			case <-time.After(500 * time.Millisecond):
			case <-p.stopped:
			}
		}
	}
}

// run is one life of the process.
func (p *process) run() error {
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	p.mu.Lock()
	b, err := json.Marshal(order{filepath.Join(p.dir, "lessor.hcl"), p.skew})
	file := filepath.Join(p.dir, "order.json")
	if err == nil {
		err = os.WriteFile(file, b, 0o600)
	}
	if err != nil || p.held {
		p.mu.Unlock()
		return err
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{nodeEnv + "=" + file, "PATH=" + os.Getenv("PATH"), "HOME=" + p.dir, "GOMAXPROCS=2"}
	cmd.Stderr, cmd.Stdout = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a paused one would not see its input end
	p.in, err = cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	p.cmd = cmd
	p.mu.Unlock()
	if err != nil {
		return err
	}
	return cmd.Wait()
}

// kill ends the process with SIGKILL; it stays away until release.
func (p *process) kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = true
	return p.signalLocked(syscall.SIGKILL)
}

// retire has the process end in order, while it serves for its drain delay; it stays away until release.
func (p *process) retire() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = true
	if p.in == nil {
		return nil
	}
	if err := p.in.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// release lets the process be started again.
func (p *process) release() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = false
	return nil
}

func (p *process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.signalLocked(sig)
}

func (p *process) signalLocked(sig syscall.Signal) error {
	if p.cmd == nil || p.cmd.Process == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// turn makes the node's clock wrong by so much, now and after starts to come.
func (p *process) turn(by time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.skew = by
	if p.in != nil {
		_, _ = io.WriteString(p.in, by.String()+"\n") // one that is gone reads it from its order
	}
	return nil
}

// stop ends the process in order, and returns when it is gone.
func (p *process) stop() {
	close(p.stopped)
	p.mu.Lock()
	if p.in != nil {
		_ = p.in.Close()
	}
	_ = p.signalLocked(syscall.SIGCONT)
	p.mu.Unlock()
	if p.over == nil {
		return
	}
	select {
	case <-p.over:
	case <-time.After(45 * time.Second):
		_ = p.signal(syscall.SIGKILL)
		<-p.over
	}
}

// ready reports whether the node says that it serves.
func (p *process) ready(c *http.Client) bool {
	r, err := c.Get("http://" + p.listen + "/v1/sys/health")
	if err != nil {
		return false
	}
	_, _ = io.Copy(io.Discard, r.Body)
	_ = r.Body.Close()
	return r.StatusCode == http.StatusOK
}

// tail is the end of the node's log.
func (p *process) tail(lines int) string {
	out, _ := exec.Command("tail", "-n", strconv.Itoa(lines), filepath.Join(p.dir, "log")).Output()
	return strings.TrimSpace(string(out))
}
