package drill

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Variables that make this test's program one of those that know nothing of lessor.
const (
	commandURL    = "LESSOR_DRILL_URL"    // it is run by lessor run: of the database, with its password
	programFile   = "LESSOR_DRILL_FILE"   // it has the agent's file: where such a URL is
	programSocket = "LESSOR_DRILL_SOCKET" // where it is told that the file is another
	reloads       = "LESSOR_DRILL_RELOAD" // it is the agent's command, and tells the program at this socket
	resultFile    = "LESSOR_DRILL_RESULT" // file that each start of a program adds a line to, when it ends: its result
)

// What the names of files end with, beside resultFile.
const (
	works  = ".works"  // the program has begun to query
	failed = ".failed" // a query has failed
)

func TestMain(m *testing.M) {
	var err error
	switch result := os.Getenv(resultFile); {
	case os.Getenv(reloads) != "":
		err = reload(os.Getenv(reloads))
	case os.Getenv(programFile) != "":
		err = attend(os.Getenv(programFile), os.Getenv(programSocket), result)
	case os.Getenv(commandURL) != "":
		err = work(os.Getenv(commandURL), result)
	default:
		flag.Parse()
		_ = flag.Set("test.parallel", "16") // they wait most of the time
		code := m.Run()
		if built != "" {
			_ = os.RemoveAll(built)
		}
		os.Exit(code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// work queries until it is told to end, as a program does that reads its environment once.
func work(url, result string) error {
	p, err := open(url)
	if err != nil {
		return err
	}
	return until(p, result, func() []string { return []string{url} })
}

// until queries over a pool until SIGTERM, or until who started it is killed. used are the URLs that it has logged in with by then.
func until(p pool, name string, used func() []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		for parent := os.Getppid(); os.Getppid() == parent; time.Sleep(time.Second) {
		}
		os.Exit(1)
	}()
	if err := p.query(ctx); err != nil {
		return err
	}
	if err := os.WriteFile(name+works, nil, 0o600); err != nil {
		return err
	}
	s := serveTelling(p, func() { _ = os.WriteFile(name+failed, nil, 0o600) })
	<-ctx.Done()
	r := s.end()
	r.Used = used()
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		return err
	}
	return f.Close()
}

// attend queries with the URL in a file, and has another pool, with the URL that is there by then, each time that somebody connects to the socket; who did is
// answered once nobody uses the former any more.
func attend(file, socket, result string) error {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	url, p, err := read(file)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	used := []string{url}
	m := &moving{now: &generation{pool: p}}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			url, p, err := read(file)
			if err == nil {
				mu.Lock()
				used = append(used, url)
				mu.Unlock()
				m.move(p)
				_, _ = c.Write([]byte(moved))
			}
			_ = c.Close()
		}
	}()
	return until(m, result, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return used
	})
}

// read makes a pool of the URL in a file. It has logged in.
func read(file string) (url string, p pool, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", nil, err
	}
	url = strings.TrimSpace(string(text))
	if p, err = open(url); err != nil {
		return "", nil, err
	}
	if err := p.query(context.Background()); err != nil {
		p.close()
		return "", nil, err
	}
	return url, p, nil
}

// moved is what a program answers that uses nothing older any more.
const moved = "moved"

// reload has the program at a socket read its file anew, and ends once it has. A program that is not there reads it when it begins.
func reload(socket string) error {
	c, err := net.Dial("unix", socket)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	answer := make([]byte, len(moved))
	if n, _ := c.Read(answer); string(answer[:n]) != moved {
		return errors.New("the program has not moved")
	}
	return c.Close()
}

// moving is a pool that gives way to others.
type moving struct {
	mu  sync.RWMutex
	now *generation
}

// generation is one of the pools, and who queries over it.
type generation struct {
	pool
	queries sync.WaitGroup
}

func (m *moving) query(ctx context.Context) error {
	m.mu.RLock()
	g := m.now
	g.queries.Add(1)
	m.mu.RUnlock()
	defer g.queries.Done()
	return g.query(ctx)
}

// move has all further queries go over p, and returns once nobody uses what was before.
func (m *moving) move(p pool) {
	m.mu.Lock()
	before := m.now
	m.now = &generation{pool: p}
	m.mu.Unlock()
	before.queries.Wait()
	before.close()
}

func (m *moving) close() { m.now.close() }

// process is a program that the test has started.
type process struct {
	*drill
	name string
	cmd  *exec.Cmd
}

// begin starts a program with variables besides this test's. What it says is kept in a file by its name.
func (d *drill) begin(name string, variables []string, args ...string) *process {
	d.Helper()
	p := &process{drill: d, name: name, cmd: exec.Command(args[0], args[1:]...)}
	p.cmd.Env = append(os.Environ(), variables...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.OpenFile(d.dir+"/"+name+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.Fatal(err)
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		d.Fatal(err)
	}
	d.Cleanup(p.kill)
	return p
}

// kill is kill -9.
func (p *process) kill() {
	if p.cmd.ProcessState != nil {
		return
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// end ends it as a person would. A program that lessor run has only just started anew does not listen to signals yet, and has queried nothing: then its exit
// status is that of SIGTERM.
func (p *process) end() {
	p.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil && p.cmd.ProcessState.ExitCode() != 128+int(syscall.SIGTERM) {
		p.Errorf("%s: %v", p.name, err)
	}
}

// program is one that knows nothing of lessor, and what looks after it.
type program struct {
	*process
	result string
}

// await waits until the program works.
func (p *program) await() {
	p.Helper()
	p.until(p.name+" works", func() bool { return there(p.result + works) })
}

// failing reports whether a query of it has failed.
func (p *program) failing() bool { return there(p.result + failed) }

func there(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// end ends it, and tells how all its starts went together.
func (p *program) end() (all result) {
	p.Helper()
	p.process.end()
	text, err := os.ReadFile(p.result)
	if err != nil {
		p.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		var r result
		if err := json.Unmarshal(line, &r); err != nil {
			p.Fatal(err)
		}
		all.add(r)
	}
	return all
}

// command is a program under lessor run, whose environment has references to the secret.
func (d *drill) command() *program {
	d.Helper()
	result := d.dir + "/command"
	field := func(name string) string { return "${lessor://" + secret + "?as=escaped#" + name + "}" }
	c := &program{d.begin("lessor run", []string{"LESSOR_ADDR=" + d.way(), "LESSOR_TOKEN=" + d.tokenOf("command", secret), resultFile + "=" + result},
		d.bin, "run", "-env="+commandURL+"="+d.url(field("username"), field("password")), "--", os.Args[0]), result}
	c.await()
	return c
}

// agent is a program that has its credentials from the agent's file.
type agent struct {
	*program
	agent *process
	file  string
}

func (d *drill) agent() *agent {
	d.Helper()
	a := &agent{file: d.dir + "/agent-url"}
	socket, result, token := d.dir+"/program.sock", d.dir+"/program", d.dir+"/agent-token"
	config := fmt.Sprintf(`
vault { address = %q }
auto_auth {
  method "token_file" { config = { token_file_path = %q } }
}
template {
  contents    = <<EOT
{{ with secret %q }}%s{{ end }}
EOT
  destination = %q
  command     = %q
}
state_dir = %q
`, d.way(), token, secret, d.url("{{ .Data.username }}", "{{ .Data.password }}"), a.file, reloads+"="+socket+" exec "+os.Args[0], d.dir+"/agent")
	for name, text := range map[string]string{token: d.tokenOf("agent", secret), d.dir + "/agent.hcl": config} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			d.Fatal(err)
		}
	}
	a.start(d)
	d.until("the agent has written its file", func() bool { return there(a.file) })
	a.program = &program{d.begin("the agent's program", []string{programFile + "=" + a.file, programSocket + "=" + socket, resultFile + "=" + result}, os.Args[0]), result}
	a.await()
	return a
}

// start starts the agent, again if it was killed.
func (a *agent) start(d *drill) {
	d.Helper()
	a.agent = d.begin("lessor agent", nil, d.bin, "agent", "-config="+d.dir+"/agent.hcl")
}

// written reports whether the agent's file names an account.
func (a *agent) written(account string) bool {
	text, _ := os.ReadFile(a.file)
	return strings.Contains(string(text), "//"+account+":")
}

// end ends both.
func (a *agent) end() result {
	a.Helper()
	a.agent.end()
	return a.program.end()
}
