package agent_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// nobody is a user without rights.
const nobody = 65534

// asNobody has a process be nobody's, to whom the folder belongs from now on.
func (p *place) asNobody(cmd *exec.Cmd) {
	p.Helper()
	if err := os.Chmod(filepath.Dir(p.dir), 0o711); err != nil { // where the test's folders lie
		p.Fatal(err)
	}
	files, err := os.ReadDir(p.dir)
	if err != nil {
		p.Fatal(err)
	}
	for _, name := range append([]string{""}, names(files)...) {
		if err := os.Chown(p.in(name), nobody, nobody); err != nil {
			p.Fatal(err)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}

func names(files []os.DirEntry) (all []string) {
	for _, f := range files {
		all = append(all, f.Name())
	}
	return all
}

// The memory of an agent is root's to look at, even where the agent is somebody else's; it leaves no core dump; and the key of what is kept in memory stays there.
func TestMemoryIsTheAgentsOwn(t *testing.T) {
	binary := build(t)
	p := newPlace(t)
	p.put("app", "one")
	p.config("template {\n  contents = <<EOT\n" + password + "\nEOT\n  destination = \"$D/app\"\n}\n")
	var change []func(*exec.Cmd)
	if os.Getuid() == 0 {
		change = append(change, p.asNobody)
	}
	agent := p.launch(binary, change...)
	p.await("app", "one\n")
	proc := func(name string) string {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", agent.Process.Pid, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	info, err := os.Stat(fmt.Sprintf("/proc/%d/mem", agent.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 {
		t.Errorf("its memory can be looked at by the user %d", owner)
	}
	if limits := proc("limits"); !regexp.MustCompile(`Max core file size +0 +0 `).MatchString(limits) {
		t.Errorf("core dumps:\n%s", limits)
	}
	locked := regexp.MustCompile(`VmLck:\s+(\d+) kB`).FindStringSubmatch(proc("status"))
	if told := strings.Contains(p.log.String(), "may be swapped out"); locked == nil || (locked[1] == "0") != told {
		t.Errorf("locked: %v kB, and that it could not be is told: %t", locked, told)
	}
	if os.Getuid() != 0 {
		return // the rest is root's to look at
	}
	if !regexp.MustCompile(`(?m)^VmFlags:.* lo .*wf .*dd `).MatchString(proc("smaps")) {
		t.Error("no page is locked, out of dumps and kept from children")
	}
}
