package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Value is what a secret was at one time: it never changes. However it is printed or logged it reads "[secret]"; only Field, Data and
// Decode tell what is in it.
type Value struct {
	Path    string    // that it was read from
	Version uint64    // that the server gave it; 0: it gave none
	Lease   string    // id of the lease that it was read under; empty: it has none
	Read    time.Time // when
	Serial  uint64    // counts the values of one Secret, from 1

	answer map[string]any // data as the server gave it; nil: it is sealed
	sealed []byte         // JSON of it
	by     Sealer
}

// Sealer keeps the values of Secrets out of plain memory, encrypted, say, under a key that is never swapped out. Its methods are safe for concurrent use.
type Sealer interface {
	// Seal returns plain in a form that tells nothing, in memory of its own. Plain is the caller's, who overwrites it.
	Seal(plain []byte) []byte
	// Open returns what Seal was given, in memory of the caller's. Of what Seal did not make it panics.
	Open(sealed []byte) []byte
}

// seal has the value lie sealed from now on. What was read of it before is the collector's.
func (v *Value) seal(by Sealer) error {
	text, err := json.Marshal(v.answer)
	if err != nil {
		return fmt.Errorf("what %s answered cannot be kept sealed", v.Path)
	}
	v.sealed, v.by, v.answer = by.Seal(text), by, nil
	clear(text)
	return nil
}

// Field is one of the value's fields, as text: what is no text is JSON.
func (v Value) Field(name string) (text string, ok bool) {
	field, ok := v.fields()[name]
	if !ok {
		return "", false
	}
	if text, ok := field.(string); ok {
		return text, true
	}
	b, err := json.Marshal(field)
	return string(b), err == nil
}

// Fields are the names of the value's fields, sorted.
func (v Value) Fields() []string { return slices.Sorted(maps.Keys(v.fields())) }

// Data is a copy of the value's fields. Numbers are json.Number.
func (v Value) Data() map[string]any { return maps.Clone(v.fields()) }

// Answer is the data that the server answered with: that of version 2 of the key-value engine has the fields in "data", and "metadata" beside them. It is to be
// left as it is.
func (v Value) Answer() map[string]any {
	if v.by == nil {
		return v.answer
	}
	text := v.by.Open(v.sealed)
	defer clear(text)
	var answer map[string]any
	if err := unmarshal(text, &answer); err != nil {
		panic(fmt.Sprintf("client: a sealed value is not what it was: %v", errNotJSON))
	}
	return answer
}

// fields are the value's fields: the answer's data, or, of version 2 of the key-value engine, what lies one level deeper, beside its version.
func (v Value) fields() map[string]any {
	answer := v.Answer()
	if fields, _, ok := versioned(answer); ok {
		return fields
	}
	return answer
}

// versioned is what an answer of version 2 of the key-value engine has; ok: it is one.
func versioned(answer map[string]any) (fields map[string]any, version any, ok bool) {
	metadata, ok := answer["metadata"].(map[string]any)
	if !ok || len(answer) != 2 || metadata["version"] == nil {
		return nil, nil, false
	}
	fields, ok = answer["data"].(map[string]any)
	return fields, metadata["version"], ok
}

// Decode decodes the value's fields into what into points to, as encoding/json does.
func (v Value) Decode(into any) error {
	b, err := json.Marshal(v.fields())
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		return fmt.Errorf("the fields of %s are not of the form that is asked for", v.Path)
	}
	return nil
}

func (v Value) String() string               { return "[secret]" }
func (v Value) GoString() string             { return "[secret]" }
func (v Value) Format(f fmt.State, _ rune)   { _, _ = io.WriteString(f, "[secret]") }
func (v Value) LogValue() slog.Value         { return slog.StringValue("[secret]") }
func (v Value) MarshalText() ([]byte, error) { return []byte("[secret]"), nil }

// same reports whether the secret is as it was: it has the same version, or, where the server counts none, the same fields.
func (v Value) same(w Value) bool {
	if v.Version != 0 || w.Version != 0 {
		return v.Version == w.Version && reflect.DeepEqual(v.lasting(), w.lasting())
	}
	return reflect.DeepEqual(v.lasting(), w.lasting())
}

// lasting are the fields that stay as they are while the secret does: ttl counts down.
func (v Value) lasting() map[string]any {
	fields := v.Data()
	for _, name := range []string{"ttl", "rotation_period", "rotation_schedule", "rotation_window"} {
		delete(fields, name)
	}
	return fields
}

// valueOf reads an answer, whose version is that of the server's word, or of the key-value engine's.
func valueOf(path string, answer *Response, now time.Time) (Value, error) {
	v := Value{Path: path, Version: answer.Version, Lease: answer.LeaseID, Read: now, answer: answer.Data}
	if v.answer == nil {
		return v, errors.New(strings.TrimSuffix("read "+path, "/") + ": there is no secret in the answer")
	}
	_, version, _ := versioned(v.answer)
	if n, ok := version.(json.Number); ok && v.Version == 0 {
		number, _ := n.Int64()
		v.Version = uint64(max(number, 0))
	}
	return v, nil
}
