package store

import (
	"context"
	"crypto/hmac"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
)

// arrival is how a store came to be where it is, as far as the next commit has to do with it.
type arrival int

const (
	settled   arrival = iota // it was here before
	relocated                // it was moved here: the next commit lets it be opened
	reborn                   // its state is an earlier one, or a copy: the next commit also begins a new incarnation
)

// Marks are rows of table 0, which is no table: no backup and no verification knows them. A store that has one does not open.
var (
	restoreMark = Key{0, "restore"} // a restore into the store has not finished
	moveMark    = Key{0, "move"}    // nor has a move into it
	movedMark   = Key{0, "moved"}   // the store was moved elsewhere
)

// errElsewhere is the error of a store that was moved. A node that was cut off meanwhile hears of it as the Fault.
var errElsewhere = errors.New("store: it was moved")

// admit says why a store cannot be opened as it lies in snap; nil if it can.
func (a arrival) admit(snap Snapshot) error {
	if a != settled {
		return nil
	}
	for _, k := range [...]Key{restoreMark, moveMark, movedMark} {
		stored, err := snap.Get(k)
		if err != nil {
			return err
		}
		if stored == nil {
			continue
		}
		switch k {
		case restoreMark:
			return errors.New("store: a restore into this store did not finish; empty it and restore again")
		case moveMark:
			return errors.New("store: a move into this store did not finish; run the same lessor operator migrate again")
		}
		p, err := decodePassage(movedMark, stored)
		if err != nil {
			return err
		}
		return fmt.Errorf("%w to %s on %s: start its servers there. If what is there is lost, what is here "+
			"can be taken over: lessor operator takeover", errElsewhere, p.To, p.Began.Format(time.RFC3339))
	}
	return nil
}

// marks are those that the next commit takes away.
func (a arrival) marks() []Key {
	if a == settled {
		return nil
	}
	return []Key{restoreMark, moveMark, movedMark}
}

// passage is what the marks of a move say: the same at both ends but for how far it came.
type passage struct {
	ID       string // 16 hex digits
	From, To string // in words
	Began    time.Time
	Seq      uint64     // the head that is moved
	Hash     audit.Hash // of its header

	Table  Table  // what was copied last, all before it included; 0: nothing, or what was copied is not to be relied upon
	Name   []byte // of its row
	Copied Extent
	Whole  bool // all is copied
}

// at says where the copy goes on: after the row that was copied last.
func (p *passage) at() Key { return Key{p.Table, string(p.Name)} }

// passageMAC is what the MAC of a passage is over. It begins with 'm', which no encoded header begins with.
func passageMAC(k Key, encoded []byte) []byte { return append([]byte("move:"+k.Name+":"), encoded...) }

// stored is the stored form of the passage under k: a version, a MAC, and JSON.
func (p *passage) stored(c Cipher, k Key) ([]byte, error) {
	encoded, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	mac := c.MAC(passageMAC(k, encoded))
	b := append([]byte{0, 0, 0, 0, 0, 0, 0, 1}, mac[:]...)
	return append(b, encoded...), nil
}

// decodePassage reads a mark. Whether lessor wrote it is told by authentic.
func decodePassage(k Key, stored []byte) (passage, error) {
	var p passage
	if len(stored) < versionLen+metaMACLen || json.Unmarshal(stored[versionLen+metaMACLen:], &p) != nil {
		return passage{}, &Damage{k, "it is no mark of a move"}
	}
	return p, nil
}

// readPassage is the mark under k, if there is one, made under the keys of c.
func readPassage(snap Snapshot, c Cipher, k Key) (p passage, found bool, err error) {
	stored, err := snap.Get(k)
	if err != nil || stored == nil {
		return passage{}, false, err
	}
	if p, err = decodePassage(k, stored); err != nil {
		return passage{}, false, err
	}
	want := c.MAC(passageMAC(k, stored[versionLen+metaMACLen:]))
	if !hmac.Equal(want[:], stored[versionLen:versionLen+metaMACLen]) {
		return passage{}, false, &Damage{k, "it was not made under these keys: it is of a move of another store, or was altered"}
	}
	return p, true, nil
}

// alonePatience is how long nodes that just ended may still seem to be there.
const alonePatience = PeerTerm + 2*time.Second

// mustBeAlone returns once no other node has b open, or an error if one goes on giving signs of life.
func mustBeAlone(ctx context.Context, b Backend) error {
	shared, ok := b.(Shared)
	if !ok {
		return nil // the backend itself lets one in at a time
	}
	for deadline := time.Now().Add(alonePatience); ; {
		peers, err := shared.Peers(ctx)
		if err != nil {
			return err
		}
		others := 0
		for _, p := range peers {
			if p.Alive && p.ID != shared.Self() {
				others++
			}
		}
		switch {
		case others == 0:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("store: %d other servers have it open: stop them first", others)
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
