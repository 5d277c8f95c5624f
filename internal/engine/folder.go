package engine

import (
	"encoding/json"
	"strings"
	"unicode/utf8"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// LongestPath is the number of bytes of a path, or name, that a client may choose: what the store's names have room for.
const LongestPath = 2048

// CheckPath refuses paths that no client may give to what it stores: relative ones, those with empty segments, and those
// with bytes that nobody could read back. The empty path is refused, too. Errors are of kind Invalid.
func CheckPath(path string) error {
	if path == "" {
		return api.Errorf(api.Invalid, "missing path")
	}
	if len(path) > LongestPath {
		return api.Errorf(api.Invalid, "paths have at most %d bytes", LongestPath)
	}
	for segment := range strings.SplitSeq(path, "/") {
		switch segment {
		case "":
			return api.Errorf(api.Invalid, "empty segments in paths are not supported")
		case ".", "..":
			return api.Errorf(api.Invalid, "relative paths not supported")
		}
	}
	if !utf8.ValidString(path) || strings.ContainsFunc(path, func(r rune) bool { return r < 0x20 || r >= 0x7f && r < 0xa0 }) {
		return api.Errorf(api.Invalid, "paths hold no control characters and are valid UTF-8")
	}
	return nil
}

// List names what lies directly in a folder of t's rows, in order: "a" for a row, "b/" for a folder. prefix begins the
// names of the folder's rows (with its "/"). The cost is that of the names listed, however much lies deeper.
func List(v store.View, t store.Table, prefix string) ([]string, error) {
	var names []string
	end := store.PrefixEnd(prefix)
	for from := prefix; from != ""; {
		next := ""
		for row, err := range v.Scan(t, from, end) {
			if err != nil {
				return nil, err
			}
			name, _, folder := strings.Cut(row.Name[len(prefix):], "/")
			if !folder {
				names = append(names, name)
				continue
			}
			names = append(names, name+"/")
			next = store.PrefixEnd(prefix + name + "/")
			break
		}
		from = next
	}
	return names, nil
}

// Keys is the answer to a List: NotFound, without a text, if there is nothing.
func Keys(names []string) (*Reply, error) {
	if len(names) == 0 {
		return nil, &api.Error{Kind: api.NotFound}
	}
	return &Reply{Data: map[string]any{"keys": names}}, nil
}

// Members takes a stored JSON object apart for an answer's data: each member's value stays secret, and as it was written.
func Members(object lessor.SecretJSON) (map[string]any, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal([]byte(object.Reveal()), &raw); err != nil {
		return nil, api.Errorf(api.Internal, "engine: a stored value is no JSON object")
	}
	data := make(map[string]any, len(raw))
	for name, value := range raw {
		data[name] = lessor.SecretJSON{Secret: lessor.NewSecret(value)}
	}
	return data, nil
}
