package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Response is the server's answer. Numbers in Data are json.Number.
type Response struct {
	Status        int             `json:"-"` // HTTP status
	Raw           json.RawMessage `json:"-"` // the answer as it came; nil for an empty one
	RequestID     string          `json:"request_id"`
	LeaseID       string          `json:"lease_id"`
	LeaseDuration int64           `json:"lease_duration"` // seconds
	Renewable     bool            `json:"renewable"`
	Data          map[string]any  `json:"data"` // for answers without an envelope (seal-status): all of it
	Warnings      []string        `json:"warnings"`
	Auth          *Auth           `json:"auth"`
	WrapInfo      *WrapInfo       `json:"wrap_info"`
	MountType     string          `json:"mount_type"`

	// Version is that of the static secret which the lease is on (X-Lessor-Version), for who said that he renews. 0: the lease, if there is one, is
	// not on a static secret, or the server is not lessor.
	Version uint64 `json:"-"`
}

// Auth is the token that a login or a token's creation made.
type Auth struct {
	ClientToken      string         `json:"client_token"`
	Accessor         string         `json:"accessor"`
	Policies         []string       `json:"policies"` // the token's and the identity's
	TokenPolicies    []string       `json:"token_policies"`
	IdentityPolicies []string       `json:"identity_policies"`
	Metadata         map[string]any `json:"metadata"`
	LeaseDuration    int64          `json:"lease_duration"` // seconds
	Renewable        bool           `json:"renewable"`
	EntityID         string         `json:"entity_id"`
	TokenType        string         `json:"token_type"`
	Orphan           bool           `json:"orphan"`
	MFARequirement   map[string]any `json:"mfa_requirement"`
	NumUses          int64          `json:"num_uses"`
}

// WrapInfo tells of an answer that was wrapped.
type WrapInfo struct {
	Token           string `json:"token"`
	Accessor        string `json:"accessor"`
	TTL             int64  `json:"ttl"`           // seconds
	CreationTime    string `json:"creation_time"` // RFC 3339
	CreationPath    string `json:"creation_path"`
	WrappedAccessor string `json:"wrapped_accessor"`
}

// Empty reports whether the answer says nothing.
func (r *Response) Empty() bool {
	return r.Data == nil && r.Auth == nil && r.WrapInfo == nil && r.LeaseID == ""
}

// Decode decodes the answer's data into v.
func (r *Response) Decode(v any) error {
	text, err := json.Marshal(r.Data)
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	if err != nil {
		return errors.New("the server's answer is not of the expected form; client and server may be of different versions")
	}
	return nil
}

// Keys is the list that a LIST answered.
func (r *Response) Keys() []string {
	list, _ := r.Data["keys"].([]any)
	keys := make([]string, 0, len(list))
	for _, key := range list {
		if s, ok := key.(string); ok {
			keys = append(keys, s)
		}
	}
	return keys
}

// String names the answer without showing anything of it.
func (r *Response) String() string { return fmt.Sprintf("response (status %d)", r.Status) }

// GoString is String: %#v shows nothing either.
func (r *Response) GoString() string { return r.String() }

var errNotJSON = errors.New("the answer is not JSON")

// decode reads an answer, enveloped or not. Answers without an envelope become Data as a whole.
func decode(status int, body []byte) (*Response, error) {
	response := &Response{Status: status}
	body = bytes.TrimSpace(body)
	if len(body) == 0 {
		return response, nil
	}
	var all map[string]any
	if unmarshal(body, &all) != nil {
		return nil, errNotJSON
	}
	response.Raw = body
	_, data := all["data"]
	_, id := all["request_id"]
	if !data && !id {
		response.Data = all
		return response, nil
	}
	if unmarshal(body, response) != nil {
		return nil, errors.New("the answer's envelope is not of the expected form")
	}
	return response, nil
}

// unmarshal keeps numbers exactly as they came.
func unmarshal(text []byte, v any) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	return decoder.Decode(v)
}

// Error is a refusal: the server was reached and answered with a status of 400 or above.
type Error struct {
	Method string
	Path   string
	Status int
	Errors []string // the server's texts; may be empty

	// Response is what came with the refusal, nil if nothing did: deleted versions of a secret, say, are answered
	// with 404 and their metadata.
	Response *Response
}

func (e *Error) Error() string {
	text := strings.Join(e.Errors, "; ")
	if text == "" {
		text = strings.ToLower(http.StatusText(e.Status))
	}
	return fmt.Sprintf("%s: %s (status %d)", Request{Method: e.Method, Path: e.Path}.name(), text, e.Status)
}

// IsStatus reports whether err is the server's refusal with one of these statuses.
func IsStatus(err error, statuses ...int) bool {
	refused, ok := errors.AsType[*Error](err)
	return ok && slices.Contains(statuses, refused.Status)
}

// Unreachable is a call that got no answer.
type Unreachable struct {
	Address string
	Method  string
	Path    string
	Err     error
}

func (e *Unreachable) Error() string {
	return fmt.Sprintf("%s: no answer from %s: %v", Request{Method: e.Method, Path: e.Path}.name(), e.Address, e.Err)
}

func (e *Unreachable) Unwrap() error { return e.Err }

// unreachable drops the URL that net/http puts into its errors: its query may hold secrets.
func (c *Client) unreachable(r Request, err error) error {
	if inner, ok := errors.AsType[*url.Error](err); ok {
		err = inner.Err
	}
	return &Unreachable{Address: c.config.Address, Method: r.Method, Path: r.Path, Err: err}
}

func decodeError(r Request, status int, body []byte) error {
	refused := &Error{Method: r.Method, Path: r.Path, Status: status}
	var texts struct {
		Errors []string `json:"errors"`
	}
	if unmarshal(body, &texts) != nil {
		// Not lessor's form: a proxy's page, or an HTTP server of another kind. One line of it is enough.
		if line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n"); line != "" && len(line) <= 200 && !strings.HasPrefix(line, "<") {
			refused.Errors = []string{line}
		}
		return refused
	}
	refused.Errors = texts.Errors
	if response, err := decode(status, body); err == nil {
		if _, textsOnly := response.Data["errors"]; !textsOnly {
			refused.Response = response
		}
	}
	return refused
}

// name is the call as errors tell it: without query and body.
func (r Request) name() string {
	verbs := map[string]string{
		http.MethodGet: "read", "LIST": "list", http.MethodPut: "write", http.MethodPost: "write",
		http.MethodPatch: "patch", http.MethodDelete: "delete",
	}
	verb, ok := verbs[r.Method]
	if !ok {
		verb = r.Method
	}
	return verb + " " + r.Path
}
