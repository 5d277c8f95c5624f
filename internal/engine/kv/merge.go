package kv

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// object parses a value, numbers kept as they are. null is the object without keys.
func object(value lessor.SecretJSON) (map[string]any, error) {
	d := json.NewDecoder(strings.NewReader(value.Reveal()))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		return nil, fmt.Errorf("kv: a value is no JSON object")
	}
	return m, nil
}

// merge applies a JSON merge patch (RFC 7396) to an object: null takes a key away, objects merge, anything else replaces.
// It changes neither argument; the result shares parts with both.
func merge(target, patch map[string]any) map[string]any {
	out := make(map[string]any, len(target)+len(patch))
	for k, v := range target {
		out[k] = v
	}
	for k, v := range patch {
		switch v := v.(type) {
		case nil:
			delete(out, k)
		case map[string]any:
			inner, _ := out[k].(map[string]any)
			out[k] = merge(inner, v)
		default:
			out[k] = v
		}
	}
	return out
}
