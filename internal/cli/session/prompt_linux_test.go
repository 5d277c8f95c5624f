package session

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal opens a pair: what is typed at person arrives at program, and what the terminal shows is read there, too.
func terminal(t *testing.T) (person, program *os.File) {
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	t.Cleanup(func() { _ = person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = program.Close() })
	return person, program
}

func TestPromptHidesWhatIsTyped(t *testing.T) {
	person, program := terminal(t)
	a := New(System{In: program, Out: io.Discard, Err: program, Env: func(string) (string, bool) { return "", false }})
	if !a.CanAsk() {
		t.Fatal("nobody can be asked")
	}
	shown := make(chan string, 1)
	go func() {
		screen := bufio.NewReader(person)
		question, _ := screen.ReadString(':')
		_, _ = io.WriteString(person, "sesame\n")
		rest, _ := screen.ReadString('\n')
		shown <- question + rest
	}()
	typed, err := a.Prompt(t.Context(), "Unseal Key")
	if err != nil || typed != "sesame" {
		t.Errorf("%q, %v", typed, err)
	}
	if text := <-shown; !strings.HasPrefix(text, "Unseal Key (will be hidden):") || strings.Contains(text, "sesame") {
		t.Errorf("the terminal showed %q", text)
	}

	a.Flags.nonInteractive = true
	if a.CanAsk() {
		t.Error("-non-interactive, and still somebody would be asked")
	}
	if _, err := a.Prompt(t.Context(), "Unseal Key"); err == nil {
		t.Error("-non-interactive, and still somebody was asked")
	}
}
