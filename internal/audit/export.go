package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// A part of the trail as a file is a line of JSON for each commit, in order and without a gap. A line has the header as it was hashed and MACed,
// and each record twice: as it was hashed, and in JSON for people and their tools. Whoever reads it can check without any key that
// the file is one piece of one chain: that each header continues the one before, and that the records are those that the headers bind. That it is a
// piece of lessor's chain follows from the last header's hash, if somebody who has the chain says the same one.

// exportedCommit is a line.
type exportedCommit struct {
	Seq     uint64           `json:"seq"`
	Time    time.Time        `json:"time"`
	Hash    string           `json:"hash"` // of the header, in hex
	Header  []byte           `json:"header"`
	Records []exportedRecord `json:"records,omitempty"`
	Gone    bool             `json:"gone,omitempty"` // its records were pruned
}

type exportedRecord struct {
	Encoded []byte          `json:"encoded"`
	Record  json.RawMessage `json:"record"`
}

// longestLine bounds a line that is read: what a batch's records and touched keys take, several times over.
const longestLine = 256 << 20

// Export writes the line of one commit. It fails if the records, as they are given, are not those that the header binds; none
// means that they were pruned.
func Export(w io.Writer, h *Header, records []Record) error {
	encoded := h.Encode()
	hash := sha256.Sum256(encoded)
	line := exportedCommit{Seq: h.Seq, Time: h.Time.UTC(), Hash: hex.EncodeToString(hash[:]), Header: encoded, Gone: h.Count > 0 && len(records) == 0}
	leaves := make([]Hash, len(records))
	for i := range records {
		b := records[i].Encode()
		text, err := json.Marshal(&records[i])
		if err != nil {
			return fmt.Errorf("audit: record %d of commit %d: %w", i, h.Seq, err)
		}
		leaves[i], line.Records = Leaf(b), append(line.Records, exportedRecord{b, text})
	}
	if !line.Gone {
		if err := h.VerifyRecords(leaves); err != nil {
			return err
		}
	}
	return json.NewEncoder(w).Encode(&line)
}

// Exported is what a file of exported commits holds.
type Exported struct {
	First, Last Header // the zero Header if there are none
	Hash        Hash   // of Last
	Commits     uint64
	Records     uint64
	Gone        uint64 // commits whose records had been pruned before
	Size        int64  // bytes up to the end of Last's line
}

// ErrCut is the error of a file that ends within a line, as one does whose writing was broken off. What is before is whole.
var ErrCut = errors.New("audit: the file ends within a line: its export was broken off")

// ReadExport reads such a file to its end and checks it. The error names the line that is broken; what was whole before it
// is returned in any case.
func ReadExport(r io.Reader) (found Exported, err error) {
	in := bufio.NewReaderSize(r, 1<<20)
	for n := 1; ; n++ {
		line, err := readLine(in)
		switch {
		case err == io.EOF && len(line) == 0:
			return found, nil
		case err == io.EOF:
			return found, ErrCut
		case err != nil:
			return found, err
		}
		if err := found.next(line); err != nil {
			return found, fmt.Errorf("line %d: %w", n, err)
		}
		found.Size += int64(len(line))
	}
}

// readLine reads a line with its end; with io.EOF, what there is of one.
func readLine(in *bufio.Reader) (line []byte, err error) {
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		if err != bufio.ErrBufferFull {
			return line, err
		}
		if len(line) > longestLine {
			return nil, errors.New("audit: a line is longer than any that lessor writes")
		}
	}
}

// next takes the next line in.
func (e *Exported) next(line []byte) error {
	var c exportedCommit
	strict := json.NewDecoder(bytes.NewReader(line))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&c); err != nil {
		return errors.New("audit: it is no line of an export")
	}
	h, err := DecodeHeader(c.Header)
	if err != nil {
		return err
	}
	hash := sha256.Sum256(c.Header)
	switch {
	case c.Seq != h.Seq || !c.Time.Equal(h.Time) || c.Hash != hex.EncodeToString(hash[:]):
		return fmt.Errorf("audit: commit %d is told otherwise than its header says", h.Seq)
	case e.Commits > 0 && h.Seq != e.Last.Seq+1:
		return fmt.Errorf("audit: commit %d follows commit %d: what was between is missing", h.Seq, e.Last.Seq)
	case e.Commits > 0 && h.Prev != e.Hash:
		return fmt.Errorf("audit: commit %d does not continue commit %d: one of them was replaced", h.Seq, e.Last.Seq)
	case e.Commits > 0 && (h.Time.Before(e.Last.Time) || h.Incarnation < e.Last.Incarnation || h.Incarnation > e.Last.Incarnation+1):
		return fmt.Errorf("audit: commit %d cannot follow commit %d: it is of an earlier time or another incarnation", h.Seq, e.Last.Seq)
	case c.Gone && (len(c.Records) > 0 || h.Count == 0):
		return fmt.Errorf("audit: the records of commit %d are said to be gone, and are not", h.Seq)
	}
	if !c.Gone {
		leaves := make([]Hash, len(c.Records))
		for i := range c.Records {
			if leaves[i], err = c.Records[i].leaf(); err != nil {
				return fmt.Errorf("record %d of commit %d: %w", i, h.Seq, err)
			}
		}
		if err := h.VerifyRecords(leaves); err != nil {
			return err
		}
	} else {
		e.Gone++
	}
	if e.Commits == 0 {
		e.First = h
	}
	e.Last, e.Hash = h, hash
	e.Commits++
	e.Records += uint64(len(c.Records))
	return nil
}

// leaf checks that both forms of the record say the same.
func (r *exportedRecord) leaf() (Hash, error) {
	decoded, err := DecodeRecord(r.Encoded)
	if err != nil {
		return Hash{}, err
	}
	want, err := json.Marshal(&decoded)
	if err != nil {
		return Hash{}, err
	}
	if !bytes.Equal(want, r.Record) {
		return Hash{}, errors.New("audit: its text was altered")
	}
	return Leaf(r.Encoded), nil
}
