// Package rotator calls those who know a kind of target of which lessor knows nothing: an API that issues keys, a service with passwords of its own. It is
// a program of this machine (exec), or somebody who listens at a URL (webhook).
// A rotation of a secret is four steps, as of AWS's rotation functions, and lessor asks for each of them by one call:
//
//	create   make a value; asked again with the same token it answers the same value, or one that may be used in its place
//	set      bring the pending value into force at the target, besides the one in force
//	test     say whether the target takes the pending value; with "expect":"refused", whether it takes the previous one
//	finish   have the target refuse the previous value
//
// Each may be asked again after it was done, and after a call that died in its midst. lessor has on record what create answered before it goes on, and it
// asks for finish only when nobody is waited for any more who may use the previous value.
//
// Each is registered by name, with the secrets that it may be asked to rotate. Of a program the SHA-256 of its file is registered, too: what is run are the
// very bytes that were hashed. It is told everything by standard input, nothing by its arguments or environment, and what it says on standard error is counted,
// never kept: it may hold a secret. A webhook gets requests over TLS that are signed with a key of its own; see Signing.
package rotator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/store"
)

// Rotator is a registered one: a row of store.Config, free of secrets. CBOR keys are on disk: never renumber, only append.
type Rotator struct {
	Type    string        `cbor:"1,keyasint"` // Exec or Webhook
	Path    string        `cbor:"2,keyasint,omitempty"`
	Sum     []byte        `cbor:"3,keyasint,omitempty"` // SHA-256 of the file
	User    string        `cbor:"4,keyasint,omitempty"` // as whom it runs; empty: as lessor does, where the server allows that
	Timeout time.Duration `cbor:"5,keyasint,omitempty"` // of one call; 0: DefaultTimeout
	Paths   []string      `cbor:"6,keyasint,omitempty"` // of secrets that it may be asked to rotate, as policies write them
	URL     string        `cbor:"7,keyasint,omitempty"` // of a Webhook
	CA      string        `cbor:"8,keyasint,omitempty"` // PEM, of whom vouches for a Webhook's certificate; empty: as the machine has them
	Keyed   []int64       `cbor:"9,keyasint,omitempty"` // when each key of a Webhook's Signing was made, in seconds of Unix time, the newest first
}

// Types of rotators.
const (
	Exec    = "exec"    // a program of the server's machine
	Webhook = "webhook" // a URL
)

// DefaultTimeout and LongestTimeout bound one call.
const (
	DefaultTimeout = 10 * time.Second
	LongestTimeout = 25 * time.Second
)

const largestAnswer = 64 << 10 // bytes

// ErrUnreachable is the cause of an error where the rotator could not be called at all, or was cut off: it is no word about the secret.
var ErrUnreachable = errors.New("the rotator could not be called")

var names = regexp.MustCompile(`^\w(([\w.-]+)?\w)?$`)

// CheckName says what is wrong with a name.
func CheckName(name string) error {
	if len(name) > 128 || !names.MatchString(name) {
		return api.Errorf(api.Invalid, "%q is no name: letters, digits and _, with . and - in between, 128 at most", name)
	}
	return nil
}

// Check says what is wrong with what somebody wants to register.
func (r *Rotator) Check() error {
	switch {
	case r.Timeout < 0 || r.Timeout > LongestTimeout:
		return api.Errorf(api.Invalid, "timeout must be %d seconds or less", LongestTimeout/time.Second)
	case len(r.Paths) == 0:
		return api.Errorf(api.Invalid, `paths must name the secrets that it may be asked to rotate, as policies do, such as "secret/billing/*"; "*" is all of them`)
	case slices.ContainsFunc(r.Paths, strange):
		return api.Errorf(api.Invalid, `paths are those of secrets, without "data/", as in "secret/billing/key"; + stands for one segment, * at the end for anything`)
	}
	switch r.Type {
	case Exec:
		return r.checkProgram()
	case Webhook:
		return r.checkWebhook()
	}
	return api.Errorf(api.Invalid, `type must be "exec" or "webhook"`)
}

// strange reports whether a path cannot be meant.
func strange(path string) bool {
	return path == "" || path[0] == '/' || len(path) > 1024 || strings.Contains(strings.TrimSuffix(path, "*"), "*")
}

func (r *Rotator) checkProgram() error {
	switch {
	case r.URL != "" || r.CA != "":
		return api.Errorf(api.Invalid, "url and ca are for the type webhook")
	case !filepath.IsAbs(r.Path) || filepath.Clean(r.Path) != r.Path:
		return api.Errorf(api.Invalid, "path must be the absolute path of a program in the server's rotator_directory")
	case len(r.Sum) != 32:
		return api.Errorf(api.Invalid, "sha256 must be the SHA-256 of the program's file, in hexadecimal: sha256sum shows it")
	case r.User == "root" || r.User == "0":
		return api.Errorf(api.Invalid, "user must not be root: give the rotator a user of its own")
	}
	return nil
}

// May says why a rotator may not be asked to rotate a secret, which is named by its path in full.
func (r *Rotator) May(secret string) error {
	if slices.ContainsFunc(r.Paths, func(pattern string) bool { return policy.Match(pattern, secret) }) {
		return nil
	}
	return api.Errorf(api.Invalid, "the rotator may not be asked to rotate %s: the paths that it is registered with do not name it", secret)
}

// Prefix begins the names of the rows of what is registered.
var Prefix = store.MountKey(lessor.RootNamespace, "", "rotator/")

// Load finds one by its name; nil: there is none.
func Load(v store.View, name string) (*Rotator, store.Row, error) {
	row, err := v.Get(store.Key{Table: store.Config, Name: Prefix + name})
	if err != nil || !row.Exists() {
		return nil, row, err
	}
	r := &Rotator{}
	if err := cbor.Unmarshal(row.Value, r); err != nil {
		return nil, row, fmt.Errorf("rotator: damaged row %s: %w", row.Key, err)
	}
	return r, row, nil
}

// Save puts r in row's place, provided that it is as it was read.
func (r *Rotator) Save(txn *store.Txn, row store.Row) error { return save(txn, row, r) }

func save(txn *store.Txn, row store.Row, x any) error {
	value, err := cbor.Marshal(x)
	if err != nil {
		return err
	}
	txn.Require(row)
	txn.Put(row.Table, row.Name, value)
	return nil
}

// Step is one step of a rotation.
type Step string

// The steps.
const (
	Create Step = "create"
	Set    Step = "set"
	Test   Step = "test"
	Finish Step = "finish"
)

// Call asks for a step. Values are JSON objects; the zero Secret is none.
type Call struct {
	Step     Step
	Secret   string // path in full, of the secret that is rotated
	Token    string // of the rotation: it is the same whenever a step of it is asked for again
	Current  lessor.Secret
	Pending  lessor.Secret
	Previous lessor.Secret
	Refused  bool // with Test: whether the target refuses Previous
	Options  map[string]string
}

// Answer is what a rotator said.
type Answer struct {
	Pending  lessor.Secret // of Create: a JSON object
	Accepted bool          // of Test: the target takes the value
}

// request is a Call as a rotator reads it.
type request struct {
	Step     Step              `json:"step"`
	Secret   string            `json:"secret"`
	Token    string            `json:"token"`
	Current  json.RawMessage   `json:"current,omitempty"`
	Pending  json.RawMessage   `json:"pending,omitempty"`
	Previous json.RawMessage   `json:"previous,omitempty"`
	Expect   string            `json:"expect,omitempty"`
	Options  map[string]string `json:"options"`
}

// encode is the call as a rotator reads it: the caller clears it.
func (c *Call) encode() ([]byte, error) {
	r := request{
		Step: c.Step, Secret: c.Secret, Token: c.Token, Options: c.Options,
		Current: json.RawMessage(c.Current.Reveal()), Pending: json.RawMessage(c.Pending.Reveal()), Previous: json.RawMessage(c.Previous.Reveal()),
	}
	if r.Options == nil {
		r.Options = map[string]string{}
	}
	if c.Step == Test {
		if r.Expect = "accepted"; c.Refused {
			r.Expect = "refused"
		}
	}
	return json.Marshal(r)
}

// failures are what a rotator can say that went wrong. Other words of its own are not repeated: they might hold a secret.
var failures = map[string]string{
	"unreachable":   "its target cannot be reached",
	"denied":        "its target does not let it",
	"invalid":       "it was called with options or a value that it cannot use",
	"throttled":     "its target takes no more calls for now",
	"misconfigured": "it is not set up as it has to be",
}

// decode reads what a rotator answered to the call.
func (c *Call) decode(out []byte) (a Answer, err error) {
	var said struct {
		Pending json.RawMessage `json:"pending"`
		Verdict string          `json:"verdict"`
		Failure string          `json:"failure"`
	}
	if json.Unmarshal(out, &said) != nil {
		return a, c.failed("it did not answer with a JSON object")
	}
	if said.Failure != "" {
		return a, c.failed(cmp.Or(failures[said.Failure], "it says so in words that are not repeated here"))
	}
	switch c.Step {
	case Create:
		var value map[string]json.RawMessage
		if json.Unmarshal(said.Pending, &value) != nil || len(value) == 0 {
			return a, c.failed(`it did not answer with "pending", a JSON object`)
		}
		a.Pending = lessor.NewSecret([]byte(said.Pending))
	case Test:
		if said.Verdict != "accepted" && said.Verdict != "refused" {
			return a, c.failed(`it did not answer with "verdict", "accepted" or "refused"`)
		}
		a.Accepted = said.Verdict == "accepted"
	}
	return a, nil
}

func (c *Call) failed(why string) error {
	return api.Errorf(api.Upstream, "the rotator failed at the step %q: %s", c.Step, why)
}

// Opener opens rows of secrets for a Grant; seal.Keyring implements it.
type Opener interface {
	Open(g policy.Grant, row store.Row) (lessor.Secret, error)
}

// Caller calls rotators. It keeps nothing, and is safe for concurrent use.
type Caller struct {
	Directory string   // where programs may be; empty: none may be called
	SameUser  bool     // programs may run as the user that lessor runs as
	Hosts     []string // of webhooks, in lower case: names or addresses, without ports; "*" is any; none: no webhook may be called

	Mount  string    // UUID of the mount at sys/, which keeps the keys that requests are signed with
	Keys   Opener    // opens them
	Random io.Reader // makes the requests' ids
}

// Ready says why a rotator could not be called on this server, as far as that can be said without doing it.
func (k *Caller) Ready(r *Rotator) error {
	if r.Type == Webhook {
		return k.readyWebhook(r)
	}
	switch {
	case k == nil || k.Directory == "":
		return api.Errorf(api.Invalid, "this server calls no programs: set rotator_directory in its configuration")
	case filepath.Dir(r.Path) != filepath.Clean(k.Directory):
		return api.Errorf(api.Invalid, "the program must be in %s, the server's rotator_directory", k.Directory)
	}
	_, err := k.identity(r)
	return err
}

// Call asks the rotator for a step, and waits for its answer for as long as it may take.
func (k *Caller) Call(ctx context.Context, v store.View, name string, c Call) (Answer, error) {
	r, _, err := Load(v, name)
	if err != nil {
		return Answer{}, err
	}
	if r == nil {
		return Answer{}, api.Errorf(api.Invalid, "there is no rotator %q: register it at sys/lessor/rotators/%s", name, name)
	}
	if err := r.May(c.Secret); err != nil {
		return Answer{}, err
	}
	if err := k.Ready(r); err != nil {
		return Answer{}, err
	}
	in, err := c.encode()
	if err != nil {
		return Answer{}, c.failed("it cannot be told what it is about: the value in force is no JSON object")
	}
	defer clear(in)
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(r.Timeout, DefaultTimeout))
	defer cancel()
	if r.Type != Webhook {
		return c.answered(k.run(ctx, r, &c, in))
	}
	signing, err := k.signing(v, name)
	if err != nil {
		return Answer{}, err
	}
	return c.answered(k.post(ctx, signing, r, &c, in))
}

// answered is what a rotator answered to the call, unless it could not be asked.
func (c *Call) answered(out []byte, err error) (Answer, error) {
	defer clear(out)
	if err != nil {
		return Answer{}, err
	}
	return c.decode(out)
}
