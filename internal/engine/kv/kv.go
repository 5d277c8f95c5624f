// Package kv keeps values that somebody else made: the engines "kv" of version 1 (a value for a path) and version 2
// (numbered versions of it, which can be deleted, brought back and destroyed). A value is its JSON text, sealed; reading
// one is two point reads and no parsing.
package kv

import (
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

type ops = map[lessor.Verb]engine.Handler

// location is the path that the operation is about. A List may be about the root.
func location(r *engine.Request) (string, error) {
	path := r.Param("path")
	if path == "" && r.Verb == lessor.List {
		return "", nil
	}
	return path, engine.CheckPath(path)
}

// folder is the prefix of what lies under path.
func folder(path string) string {
	if path == "" {
		return ""
	}
	return strings.TrimSuffix(path, "/") + "/"
}

// missing is the answer where nothing is: a 404 without a text.
func missing() error { return &api.Error{Kind: api.NotFound} }

// open reads a row of Secrets.
func open(r *engine.Request, row store.Row) (lessor.SecretJSON, error) {
	s, err := r.Opener.Open(r.Grant, row)
	return lessor.SecretJSON{Secret: s}, err
}

// shown is what the audit record keeps of a value.
func shown(r *engine.Request, path string, version uint64, value lessor.SecretJSON, how string) []audit.Shown {
	f := r.Opener.Fingerprint(r.Mount.UUID, path, []byte(value.Reveal()))
	return []audit.Shown{{Path: path, Version: version, Fingerprint: f, How: how}}
}
