package server

import (
	"sync/atomic"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// flights are the operations under way, as far as there is room: a request costs two atomic stores.
type flights struct {
	next  atomic.Uint64
	slots [512]atomic.Pointer[lessor.Op]
}

// begin notes op until the function that it returns is called.
func (f *flights) begin(op *lessor.Op) (end func()) {
	slot := &f.slots[f.next.Add(1)%uint64(len(f.slots))]
	slot.Store(op)
	return func() { slot.CompareAndSwap(op, nil) }
}

// InFlight are operations under way: all of them, or of more than some hundreds the later ones.
func (h *Handler) InFlight() []*lessor.Op {
	var ops []*lessor.Op
	for i := range h.flights.slots {
		if op := h.flights.slots[i].Load(); op != nil {
			ops = append(ops, op)
		}
	}
	return ops
}
