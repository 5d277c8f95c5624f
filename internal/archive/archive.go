// Package archive keeps backups of a store in a folder or a bucket: a whole state (a base), then again and again what became of
// it (an increment), so that the store can be restored as it was at the end of each.
//
// What lies there are segments: objects of some megabytes that are written once and never changed. A segment has rows as the store has them,
// sealed; it names the one before it by hash, and is authenticated under the keys of the store's chain. A run of segments is a
// base or an increment; its last one is a point, at which the store can be restored. A base begins a set.
//
// The names of segments say all that is needed to find a point and the way to it, so there is no manifest that could be lost; what
// names claim is checked against the segments when they are read. A name ends with the hash of its segment. So an object that is written twice is
// the same one; two writers that continue the same point make two branches, both of which can be restored; and what a writer that died midway
// left is a branch without a point, which nobody needs.
package archive

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"path/filepath"
)

// Destination is where segments lie: flat names with one slash, each written once. Methods are safe for concurrent use. Errors may be of a
// moment, unless they are ErrGone.
type Destination interface {
	// List yields what is there whole, in no particular order. It stops after the first error.
	List(ctx context.Context) iter.Seq2[Object, error]
	// Read returns the content of an object.
	Read(ctx context.Context, name string) ([]byte, error)
	// Write makes an object, which is not empty, durably, whole or not at all. One of that name that is there already has the same content, and stays.
	Write(ctx context.Context, name string, content []byte) error
	// Delete removes an object; one that is not there is no error.
	Delete(ctx context.Context, name string) error
	// String says where it is, for operators. It holds no secret.
	String() string
}

// Object is one that a Destination lists.
type Object struct {
	Name string
	Size int64 // in bytes
}

// ErrGone is the error of reading an object that is not there.
var ErrGone = errors.New("archive: there is no such object")

// largest bounds an object that is read, in bytes: a segment is as large as segmentBytes, or one row.
const largest = 2 << 30

// Open opens the destination that a URL names: "file:///folder", or "s3://bucket/prefix?endpoint=https://host:port&region=r", with
// the further parameters credentials (a file as AWS's tools have it; else the environment says who we are, as with them, or the machine) and
// profile (a name in that file). Nothing is touched yet.
func Open(address string) (Destination, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, errors.New("archive: a destination is a URL, such as file:///var/backups/lessor or s3://bucket/prefix")
	}
	if u.User != nil || u.Fragment != "" {
		return nil, errors.New("archive: a destination's URL holds no user, no password and no fragment: name a file of credentials instead")
	}
	switch u.Scheme {
	case "file":
		if u.Host != "" || u.RawQuery != "" || !filepath.IsAbs(u.Path) {
			return nil, errors.New("archive: a folder is named as file:///path/of/folder")
		}
		return Folder(filepath.Clean(u.Path)), nil
	case "s3":
		return openBucket(u)
	}
	return nil, fmt.Errorf("archive: unknown destination %q: use file:///folder or s3://bucket/prefix", u.Scheme)
}
