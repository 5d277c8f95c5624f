package torture

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

// outcome is what a client knows of an operation once it is over.
type outcome string

const (
	done    outcome = "ok"      // it was acknowledged
	refused outcome = "refused" // it was answered with a refusal that says something of the object: denied, not found, mismatch
	void    outcome = "void"    // lessor says that nothing was done, and says nothing of the object
	unknown outcome = "unknown" // it may have taken effect, or may yet
)

// op is one operation of a client on one object, as one of the models understands it.
type op struct {
	Client  int           `json:"client"`
	Node    int           `json:"node"`
	Model   string        `json:"model"`
	Object  string        `json:"object"`
	Do      string        `json:"do"`
	Item    int           `json:"item,omitempty"`  // which token, which lease
	Value   string        `json:"value,omitempty"` // written, read or tried
	CAS     int           `json:"cas,omitempty"`   // kv: the version that the write asks for; -1: any
	Version int           `json:"version,omitempty"`
	Uses    int           `json:"uses,omitempty"` // what a new token may be used for; -1: without end
	Call    time.Duration `json:"call"`           // since the run began
	Return  time.Duration `json:"return"`
	Outcome outcome       `json:"outcome"`
	Request string        `json:"request,omitempty"` // lessor's id of it, where the answer has one
	Method  string        `json:"method,omitempty"`
	Path    string        `json:"path,omitempty"`
	Status  int           `json:"status,omitempty"`
	Error   string        `json:"error,omitempty"`
}

// history collects operations, in memory and in a file, which is what is left if the run fails.
type history struct {
	mu   sync.Mutex
	ops  []op
	file *os.File
	w    *bufio.Writer
}

func newHistory(path string) (*history, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return &history{file: f, w: bufio.NewWriter(f)}, nil
}

func (h *history) add(o op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, o)
	if b, err := json.Marshal(o); err == nil {
		_, _ = h.w.Write(append(b, '\n'))
	}
}

func (h *history) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return errors.Join(h.w.Flush(), h.file.Close())
}

// readHistory reads what a run left behind.
func readHistory(r io.Reader) (ops []op, err error) {
	for d := json.NewDecoder(r); ; {
		var o op
		if err := d.Decode(&o); errors.Is(err, io.EOF) {
			return ops, nil
		} else if err != nil {
			return nil, err
		}
		ops = append(ops, o)
	}
}
