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

	data   map[string]any
	answer map[string]any // data as the server gave it
}

// Field is one of the value's fields, as text: what is no text is JSON.
func (v Value) Field(name string) (text string, ok bool) {
	field, ok := v.data[name]
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
func (v Value) Fields() []string { return slices.Sorted(maps.Keys(v.data)) }

// Data is a copy of the value's fields. Numbers are json.Number.
func (v Value) Data() map[string]any { return maps.Clone(v.data) }

// Answer is the data that the server answered with: that of version 2 of the key-value engine has the fields in "data", and "metadata" beside them. It is to be
// left as it is.
func (v Value) Answer() map[string]any { return v.answer }

// Decode decodes the value's fields into what into points to, as encoding/json does.
func (v Value) Decode(into any) error {
	b, err := json.Marshal(v.data)
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
	fields := maps.Clone(v.data)
	for _, name := range []string{"ttl", "rotation_period", "rotation_schedule", "rotation_window"} {
		delete(fields, name)
	}
	return fields
}

// valueOf reads an answer. That of version 2 of the key-value engine has the fields one level deeper, beside their version.
func valueOf(path string, answer *Response, now time.Time) (Value, error) {
	v := Value{Path: path, Version: answer.Version, Lease: answer.LeaseID, Read: now, data: answer.Data, answer: answer.Data}
	if metadata, ok := answer.Data["metadata"].(map[string]any); ok && len(answer.Data) == 2 {
		if fields, ok := answer.Data["data"].(map[string]any); ok && metadata["version"] != nil {
			v.data = fields
			if n, ok := metadata["version"].(json.Number); ok && v.Version == 0 {
				version, _ := n.Int64()
				v.Version = uint64(max(version, 0))
			}
		}
	}
	if v.data == nil {
		return v, errors.New(strings.TrimSuffix("read "+path, "/") + ": there is no secret in the answer")
	}
	return v, nil
}
