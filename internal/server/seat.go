package server

import (
	"net/http"
	"time"
)

// Rooms bound what bodies and what was made of them take in memory together, whoever sends them: of those beyond a size there are
// so many at a time, and the others wait. Bodies of everyday size need no room.
var rooms = [...]struct{ beyond, seats int }{{64 << 10, 256}, {1 << 20, 8}}

// taken are the seats that are taken in each room.
type taken [len(rooms)]chan struct{}

func newTaken() (t taken) {
	for i, room := range rooms {
		t[i] = make(chan struct{}, room.seats)
	}
	return t
}

// seat is what one request has taken: one in each room up to the size of its body.
type seat struct {
	taken *taken
	rooms int
}

// take takes what a body needs of which size bytes came so far. It waits, and reports whether that was enough.
func (s *seat) take(r *http.Request, size int) bool {
	for s.rooms < len(rooms) && size > rooms[s.rooms].beyond {
		timer := time.NewTimer(patience(r))
		select {
		case s.taken[s.rooms] <- struct{}{}:
			s.rooms++
			timer.Stop()
		case <-timer.C:
			return false
		case <-r.Context().Done():
			timer.Stop()
			return false
		}
	}
	return true
}

// leave gives back what was taken; it follows when the request was answered.
func (s *seat) leave() {
	for ; s.rooms > 0; s.rooms-- {
		<-s.taken[s.rooms-1]
	}
}
