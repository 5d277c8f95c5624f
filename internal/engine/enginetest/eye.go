package enginetest

import (
	"sync"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// Eye sees each touch of a target, and may come between lessor and it, as Rotated.Watch wants. It is safe for concurrent use; the zero Eye lets all pass.
type Eye struct {
	mu   sync.Mutex
	seen func(call string, password lessor.Secret, do func() error) error // nil: do
}

// Watch has f come between from now on; nil: nobody.
func (e *Eye) Watch(f func(call string, password lessor.Secret, do func() error) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seen = f
}

// Call does what a call of lessor's does, as who watches lets it. password is the zero Secret where the call has none.
func (e *Eye) Call(call string, password lessor.Secret, do func() error) error {
	e.mu.Lock()
	f := e.seen
	e.mu.Unlock()
	if f == nil {
		return do()
	}
	return f(call, password, do)
}
