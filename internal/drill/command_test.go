package drill

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Variables that make this test's program the command that lessor run runs.
const (
	commandURL = "LESSOR_DRILL_URL"    // of the database, with its password
	commandLog = "LESSOR_DRILL_RESULT" // file that each start adds a line to: queries, and how many failed
)

func TestMain(m *testing.M) {
	if url := os.Getenv(commandURL); url != "" {
		if err := work(url, os.Getenv(commandLog)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// begun is what the name of a file ends with that says that the command works.
const begun = ".begun"

// work queries over five connections until it is told to end, as a program does that reads its environment once.
func work(url, result string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return err
	}
	config.MaxConns, config.MaxConnLifetime = 5, lifetime
	p, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return err
	}
	if err := p.Ping(ctx); err != nil {
		return err
	}
	if err := os.WriteFile(result+begun, nil, 0o600); err != nil {
		return err
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	done, failed := 0, 0
	for range 5 {
		all.Go(func() {
			for ctx.Err() == nil {
				_, err := p.Exec(context.Background(), "SELECT 1")
				mu.Lock()
				if done++; err != nil {
					failed++
				}
				mu.Unlock()
				time.Sleep(pause())
			}
		})
	}
	all.Wait()
	p.Close()
	f, err := os.OpenFile(result, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(f, done, failed); err != nil {
		return err
	}
	return f.Close()
}

// command is one under lessor run.
type command struct {
	*drill
	cmd    *exec.Cmd
	result string
}

// command runs it from references to the secret.
func (d *drill) command() *command {
	d.Helper()
	c := &command{drill: d, result: d.dir + "/result"}
	field := func(name string) string { return "${lessor://" + secret + "?as=escaped#" + name + "}" }
	c.cmd = exec.Command(d.bin, "run", "-env="+commandURL+"="+d.url(field("username"), field("password")), "--", os.Args[0])
	c.cmd.Env = append(os.Environ(), "LESSOR_ADDR=http://"+d.server.address, "LESSOR_TOKEN="+d.tokenFor(secret), commandLog+"="+c.result)
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.OpenFile(d.dir+"/command", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.Fatal(err)
	}
	defer log.Close()
	c.cmd.Stdout, c.cmd.Stderr = log, log
	if err := c.cmd.Start(); err != nil {
		d.Fatal(err)
	}
	d.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		if d.Failed() {
			out, _ := os.ReadFile(d.dir + "/command")
			d.Logf("lessor run:\n%s", out)
		}
	})
	d.until("the command works", func() bool {
		_, err := os.Stat(c.result + begun)
		return err == nil
	})
	return c
}

// end ends it as a person would, and tells how all its starts went together.
func (c *command) end() (done, failed int) {
	c.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		c.Fatal(err)
	}
	if err := c.cmd.Wait(); err != nil {
		c.Errorf("lessor run: %v", err)
	}
	for line := range strings.Lines(c.results()) {
		var d, f int
		if _, err := fmt.Sscan(line, &d, &f); err != nil {
			c.Fatal(err)
		}
		done, failed = done+d, failed+f
	}
	return done, failed
}

// starts is how often the command was started, and has ended.
func (c *command) starts() int { return strings.Count(c.results(), "\n") }

func (c *command) results() string {
	text, err := os.ReadFile(c.result)
	if err != nil {
		c.Fatal(err)
	}
	return string(text)
}
