package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

// FuzzReadExport: whatever a file holds, reading it ends, and what it says was whole is whole.
func FuzzReadExport(f *testing.F) {
	f.Add([]byte("{}\n"))
	f.Add(exported(f))
	f.Fuzz(func(t *testing.T, file []byte) {
		found, _ := ReadExport(bytes.NewReader(file))
		again, err := ReadExport(bytes.NewReader(file[:found.Size]))
		if err != nil || again.Commits != found.Commits || again.Hash != found.Hash {
			t.Errorf("what was whole is not: %v", err)
		}
	})
}

// exported is a file of commits 5 to 8, of which the last has no records and the third had its pruned.
func exported(t testing.TB) []byte {
	t.Helper()
	var file bytes.Buffer
	before := Header{Seq: 4}
	chain := Chain{Last: before, hash: Hash{1}}
	for seq := uint64(5); seq <= 8; seq++ {
		var records []Record
		for i := range (8 - seq) % 4 {
			records = append(records, Record{Time: time.Unix(int64(seq), 12000).UTC(), Operation: "read", Path: "secret/data/a<b>", Phase: Done,
				Granted: i == 0, Count: i, Secrets: []Shown{{Path: "x", Fingerprint: []byte{1, 2, 3}, How: "shown"}}})
		}
		leaves := make([]Hash, len(records))
		for i := range records {
			leaves[i] = Leaf(records[i].Encode())
		}
		h := Header{Seq: seq, Incarnation: 1, Time: time.Unix(int64(seq), 0).UTC(), Prev: chain.hash, Root: Root(leaves), Count: uint32(len(leaves)), Batch: "b"}
		h.Seal(keys("k"))
		chain.hash = h.Hash()
		if seq == 7 {
			records = nil
		}
		if err := Export(&file, &h, records); err != nil {
			t.Fatal(err)
		}
	}
	return file.Bytes()
}

func TestExportIsRead(t *testing.T) {
	file := exported(t)
	found, err := ReadExport(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	if found.First.Seq != 5 || found.Last.Seq != 8 || found.Commits != 4 || found.Records != 3+2 || found.Gone != 1 || found.Hash != found.Last.Hash() || found.Size != int64(len(file)) {
		t.Errorf("%+v", found)
	}
	// One that was broken off says up to where it is whole.
	third := bytes.Index(file, []byte(`{"seq":7`))
	for _, end := range []int{third + 1, third + 100, len(file) - 1} {
		found, err := ReadExport(bytes.NewReader(file[:end]))
		if !errors.Is(err, ErrCut) || found.Size > int64(end) || file[found.Size-1] != '\n' {
			t.Errorf("cut at %d: %v, whole up to %d", end, err, found.Size)
		}
	}
	if found, err := ReadExport(bytes.NewReader(nil)); err != nil || found.Commits != 0 {
		t.Errorf("of nothing: %+v, %v", found, err)
	}
}

// Whatever is changed in the file shows.
func TestExportCannotBeAltered(t *testing.T) {
	file := exported(t)
	lines := bytes.SplitAfter(file, []byte("\n"))
	lines = lines[:len(lines)-1]
	broken := func(what string, lines ...[]byte) {
		t.Helper()
		if _, err := ReadExport(bytes.NewReader(bytes.Join(lines, nil))); err == nil || errors.Is(err, ErrCut) {
			t.Errorf("%s: %v", what, err)
		}
	}
	broken("a commit left out", lines[0], lines[2], lines[3])
	broken("commits in another order", lines[1], lines[0])
	broken("a commit twice", lines[0], lines[0])
	for i, line := range lines {
		var c exportedCommit
		if err := json.Unmarshal(line, &c); err != nil {
			t.Fatal(err)
		}
		alter := func(what string, f func(*exportedCommit)) {
			t.Helper()
			changed := c
			changed.Header = bytes.Clone(c.Header)
			changed.Records = append([]exportedRecord(nil), c.Records...)
			f(&changed)
			text, err := json.Marshal(changed)
			if err != nil {
				t.Fatal(err)
			}
			all := append([][]byte(nil), lines...)
			all[i] = append(text, '\n')
			broken(what, all...)
		}
		alter("another sequence", func(c *exportedCommit) { c.Seq++ })
		alter("another time", func(c *exportedCommit) { c.Time = c.Time.Add(time.Second) })
		alter("another hash", func(c *exportedCommit) { c.Hash = strings.Repeat("0", 64) })
		alter("another header", func(c *exportedCommit) { c.Header[len(c.Header)/2] ^= 1 })
		if c.Gone {
			alter("records that are not gone", func(c *exportedCommit) { c.Gone = false })
			continue
		}
		alter("records that are gone", func(c *exportedCommit) { c.Gone = true })
		if len(c.Records) == 0 {
			continue
		}
		alter("one record fewer", func(c *exportedCommit) { c.Records = c.Records[1:] })
		alter("one record twice", func(c *exportedCommit) { c.Records = append(c.Records, c.Records[0]) })
		alter("another text", func(c *exportedCommit) {
			c.Records[0].Record = bytes.Replace(c.Records[0].Record, []byte(`"read"`), []byte(`"list"`), 1)
		})
		alter("both forms of a record", func(c *exportedCommit) {
			r, err := DecodeRecord(c.Records[0].Encoded)
			if err != nil {
				t.Fatal(err)
			}
			r.Operation = "list"
			text, _ := json.Marshal(&r)
			c.Records[0] = exportedRecord{r.Encode(), text}
		})
	}
	// What is not bound by the header is not exported.
	h, err := DecodeHeader(func() []byte { var c exportedCommit; _ = json.Unmarshal(lines[0], &c); return c.Header }())
	if err != nil {
		t.Fatal(err)
	}
	if err := Export(&bytes.Buffer{}, &h, []Record{{Operation: "read"}}); err == nil {
		t.Error("other records than the header's were exported")
	}
}
