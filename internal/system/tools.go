package system

import (
	"context"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"io"
	"slices"
	"strconv"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
)

func (b *Backend) toolRoutes() []engine.Route {
	format := engine.Field{Name: "format", Type: engine.String, Help: "hex or base64"}
	random := []engine.Field{{Name: "bytes", Type: engine.Int, Help: "how many bytes; default 32"}, format}
	digest := []engine.Field{
		{Name: "input", Type: engine.String, Help: "what to hash, base64"}, format,
		{Name: "algorithm", Type: engine.String, Help: "sha2-224, -256, -384, -512, sha3-224, -256, -384 or -512; default sha2-256"},
	}
	return []engine.Route{
		{Pattern: "tools/random", Help: "random bytes", Fields: random, Ops: update(randomBytes)},
		{Pattern: "tools/random/{source}", Help: "random bytes; of a source, or that many", Fields: random, Ops: update(randomBytes)},
		{Pattern: "tools/random/{source}/{urlbytes}", Help: "that many random bytes of a source", Fields: random, Ops: update(randomBytes)},
		{Pattern: "tools/hash", Help: "hash data", Fields: digest, Ops: update(hashed)},
		{Pattern: "tools/hash/{urlalgorithm}", Help: "hash data by an algorithm", Fields: digest, Ops: update(hashed)},
	}
}

// mostRandom bounds the random bytes of one request.
const mostRandom = 128 << 10

var sources = []string{"platform", "seal", "all"}

// randomBytes answers from the operating system's randomness, whatever the source: it is the only one there is. The path may name
// the number of bytes where the source would be, so that policies can speak of either.
func randomBytes(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	source, count, n := r.Param("source"), r.Param("urlbytes"), int64(32)
	if count == "" && source != "" && !slices.Contains(sources, source) {
		source, count = "", source
	}
	switch {
	case count != "":
		var err error
		if n, err = strconv.ParseInt(count, 10, 64); err != nil {
			return nil, api.Errorf(api.Invalid, "error parsing url-set byte count: %q is no number", count)
		}
	case r.Has("bytes"):
		n = r.Int("bytes")
	}
	format := "base64"
	if r.Has("format") {
		format = r.Str("format")
	}
	switch {
	case n < 1:
		return nil, api.Errorf(api.Invalid, `"bytes" cannot be less than 1`)
	case n > mostRandom:
		return nil, api.Errorf(api.Invalid, `"bytes" should be less than %d`, mostRandom)
	case source != "" && !slices.Contains(sources, source):
		return nil, api.Errorf(api.Invalid, `unsupported entropy source %q; must be "platform" or "seal", or "all"`, source)
	}
	raw := make([]byte, n)
	if _, err := io.ReadFull(r.Random, raw); err != nil {
		return nil, err
	}
	text, err := spelled(raw, format)
	if err != nil {
		return nil, err
	}
	return &engine.Reply{Data: map[string]any{"random_bytes": lessor.NewSecret(text)}}, nil
}

func spelled(raw []byte, format string) (string, error) {
	switch format {
	case "hex":
		return hex.EncodeToString(raw), nil
	case "base64":
		return base64.StdEncoding.EncodeToString(raw), nil
	}
	return "", api.Errorf(api.Invalid, `unsupported encoding format %q; must be "hex" or "base64"`, format)
}

var algorithms = map[string]func() hash.Hash{
	"sha2-224": sha256.New224, "sha2-256": sha256.New, "sha2-384": sha512.New384, "sha2-512": sha512.New,
	"sha3-224": func() hash.Hash { return sha3.New224() }, "sha3-256": func() hash.Hash { return sha3.New256() },
	"sha3-384": func() hash.Hash { return sha3.New384() }, "sha3-512": func() hash.Hash { return sha3.New512() },
}

func hashed(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	algorithm, format := r.Param("urlalgorithm"), "hex"
	if algorithm == "" {
		algorithm = "sha2-256"
		if r.Has("algorithm") {
			algorithm = r.Str("algorithm")
		}
	}
	if r.Has("format") {
		format = r.Str("format")
	}
	input, err := base64.StdEncoding.DecodeString(r.Str("input"))
	if err != nil {
		return nil, api.Errorf(api.Invalid, "unable to decode input as base64: %v", err)
	}
	begin := algorithms[algorithm]
	if begin == nil {
		return nil, api.Errorf(api.Invalid, "unsupported algorithm %s", algorithm)
	}
	h := begin()
	h.Write(input)
	sum, err := spelled(h.Sum(nil), format)
	if err != nil {
		return nil, err
	}
	return &engine.Reply{Data: map[string]any{"sum": sum}}, nil
}
