// Apikeys is a rotator for an HTTP API that issues keys: an account there may have several at a time, and each can be revoked. It is a program to copy and
// to change: what differs from API to API is in the four steps below.
//
// lessor runs it once for each step, with the step on standard input, and reads the answer from standard output. It keeps nothing. What it may do at the
// API is in a file of its own, which lessor never sees.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"
)

// configuration is the file that says where the API is, and with which token keys are managed there. It is compiled in: who may configure a rotation does
// not choose it.
var configuration = "/etc/lessor-rotators/apikeys.json"

// key is a value of the secret that is rotated, as its readers get it.
type key struct {
	ID  string `json:"id"`
	Key string `json:"key"`
}

// step is what lessor asks for.
type step struct {
	Step     string            `json:"step"`
	Token    string            `json:"token"`
	Current  *key              `json:"current"`
	Pending  *key              `json:"pending"`
	Previous *key              `json:"previous"`
	Expect   string            `json:"expect"`
	Options  map[string]string `json:"options"`
}

// answer is what it is told.
type answer struct {
	Pending *key   `json:"pending,omitempty"`
	Verdict string `json:"verdict,omitempty"`
	Failure string `json:"failure,omitempty"`
}

// failure is one of the words that lessor knows. It repeats no others: they might hold a secret.
type failure string

func (f failure) Error() string { return string(f) }

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	a, err := rotate(ctx, os.Stdin)
	if err != nil {
		a = answer{Failure: "misconfigured"}
		if f := failure(""); errors.As(err, &f) {
			a.Failure = string(f)
		}
	}
	if json.NewEncoder(os.Stdout).Encode(a) != nil {
		os.Exit(1)
	}
}

func rotate(ctx context.Context, in io.Reader) (answer, error) {
	var s step
	if err := json.NewDecoder(in).Decode(&s); err != nil {
		return answer{}, failure("invalid")
	}
	api, err := open()
	if err != nil {
		return answer{}, err
	}
	switch s.Step {
	case "create":
		// The token makes it idempotent: asked again, the API answers the key that it has made for it.
		k, err := api.issue(ctx, s.Options["account"], s.Token)
		return answer{Pending: k}, err
	case "set":
		return answer{}, nil // a key is in force as soon as it is issued
	case "test":
		k := s.Pending
		if s.Expect == "refused" {
			k = s.Previous
		}
		if k == nil {
			return answer{}, failure("invalid")
		}
		ok, err := api.takes(ctx, k)
		if a := (answer{Verdict: "refused"}); !ok {
			return a, err
		}
		return answer{Verdict: "accepted"}, err
	case "finish":
		if s.Previous == nil || s.Current != nil && s.Previous.ID == s.Current.ID {
			return answer{}, failure("invalid") // never the one that is in force
		}
		return answer{}, api.revoke(ctx, s.Previous.ID)
	}
	return answer{}, failure("invalid")
}

// issuer is the API.
type issuer struct {
	URL   string `json:"url"`
	Token string `json:"token"` // that manages keys
}

func open() (*issuer, error) {
	b, err := os.ReadFile(configuration)
	if err != nil {
		return nil, failure("misconfigured")
	}
	i := &issuer{}
	if json.Unmarshal(b, i) != nil || i.URL == "" {
		return nil, failure("misconfigured")
	}
	return i, nil
}

func (i *issuer) issue(ctx context.Context, account, token string) (*key, error) {
	if account == "" {
		return nil, failure("invalid")
	}
	k := &key{}
	_, err := i.call(ctx, http.MethodPost, "/keys", i.Token, map[string]string{"account": account, "request": token}, k)
	return k, err
}

func (i *issuer) revoke(ctx context.Context, id string) error {
	_, err := i.call(ctx, http.MethodDelete, "/keys/"+url.PathEscape(id), i.Token, nil, nil)
	return err
}

func (i *issuer) takes(ctx context.Context, k *key) (bool, error) {
	status, err := i.call(ctx, http.MethodGet, "/self", k.Key, nil, nil)
	if status == http.StatusUnauthorized {
		return false, nil
	}
	return err == nil, err
}

// call asks the API for something. What is gone already is no failure.
func (i *issuer) call(ctx context.Context, method, path, bearer string, body, into any) (status int, err error) {
	b, err := json.Marshal(body)
	if err != nil {
		return 0, err
	}
	r, err := http.NewRequestWithContext(ctx, method, i.URL+path, bytes.NewReader(b))
	if err != nil {
		return 0, failure("misconfigured")
	}
	r.Header.Set("Authorization", "Bearer "+bearer)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, failure("unreachable")
	}
	defer answer.Body.Close()
	switch s := answer.StatusCode; {
	case s == http.StatusNotFound && method == http.MethodDelete:
		return s, nil
	case s == http.StatusUnauthorized || s == http.StatusForbidden:
		return s, failure("denied")
	case s == http.StatusTooManyRequests:
		return s, failure("throttled")
	case s >= 500:
		return s, failure("unreachable")
	case s >= 300:
		return s, fmt.Errorf("the API answered with status %d", s)
	case into == nil:
		return s, nil
	}
	if json.NewDecoder(io.LimitReader(answer.Body, 1<<20)).Decode(into) != nil {
		return answer.StatusCode, failure("unreachable")
	}
	return answer.StatusCode, nil
}
