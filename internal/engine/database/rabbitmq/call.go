package rabbitmq

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/target"
	"github.com/lessor-dev/lessor/internal/lessor"
)

const (
	longest      = 30 * time.Second // of a call whose context has no deadline
	connect      = 10 * time.Second // to make a connection
	mostOfAnswer = 64 << 20         // bytes of an answer that are read
	mostOfReason = 500              // bytes of a refusal that are quoted
)

// broker is a RabbitMQ, by its management API. Calls are concurrent, as many as the connection says.
type broker struct {
	at        *url.URL
	username  string
	hide      []string // secrets of the connection, kept out of errors
	logins    database.Logins
	transport *http.Transport
	client    *http.Client
	free      chan struct{} // one for each call under way
}

// refusal is an answer that is no success.
type refusal struct {
	status int
	reason string
}

func (r *refusal) Error() string { return fmt.Sprintf("%s (status %d)", r.reason, r.status) }

// refused is the status that the broker refused with; 0 if it did not.
func refused(err error) int {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.status
	}
	return 0
}

// Close ends what is idle; what is under way ends by itself.
func (b *broker) Close() { b.transport.CloseIdleConnections() }

// Use says which passwords may log lessor in. Each call logs in anew.
func (b *broker) Use(passwords []lessor.Secret) { b.logins.Use(passwords) }

// call asks the API for a path, whose segments are given.
func (b *broker) call(ctx context.Context, method string, body, into any, path ...string) error {
	unauthorized := func(err error) bool { return refused(err) == http.StatusUnauthorized }
	return b.logins.Try(unauthorized, func(password lessor.Secret) error {
		return b.as(ctx, b.username, password, method, body, into, path...)
	})
}

// as is call as an account, once.
func (b *broker) as(ctx context.Context, username string, password lessor.Secret, method string, body, into any, path ...string) error {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	select {
	case b.free <- struct{}{}:
		defer func() { <-b.free }()
	case <-ctx.Done():
		return ctx.Err()
	}
	u := *b.at
	for _, segment := range path {
		u.RawPath = u.EscapedPath() + "/" + strings.ReplaceAll(url.PathEscape(segment), ".", "%2E") // "." and ".." are names, too
		u.Path += "/" + segment
	}
	var content io.Reader
	if body != nil {
		sent, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(sent)
	}
	r, err := http.NewRequestWithContext(ctx, method, u.String(), content)
	if err != nil {
		return err
	}
	r.GetBody = nil // what changes something is sent over one connection, once
	r.Header.Set("Content-Type", "application/json")
	r.SetBasicAuth(username, password.Reveal())
	answer, err := b.client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	got, err := io.ReadAll(io.LimitReader(answer.Body, mostOfAnswer))
	switch {
	case err != nil:
		return err
	case answer.StatusCode/100 != 2:
		return &refusal{answer.StatusCode, reason(got, answer.StatusCode)}
	case into == nil:
		return nil
	}
	if err := json.Unmarshal(got, into); err != nil {
		return &refusal{answer.StatusCode, "the answer is not the management API's: see where connection_uri leads"}
	}
	return nil
}

// reason is what an answer says of its refusal.
func reason(answer []byte, status int) string {
	var said struct {
		Error, Reason any
	}
	if json.Unmarshal(answer, &said) == nil {
		for _, v := range []any{said.Reason, said.Error} {
			if text, ok := v.(string); ok && text != "" {
				return text
			}
		}
	}
	return http.StatusText(status)
}

// fail says what went wrong, without secrets. What only says that the broker cannot be asked is database.ErrUnreachable besides.
func (b *broker) fail(err error, secrets ...string) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e
	}
	unreachable := func(text string) error {
		return &api.Error{Kind: api.Upstream, Text: "the broker cannot be reached: " + text, Cause: database.ErrUnreachable}
	}
	if status := refused(err); status != 0 {
		text := b.redact(err.Error(), secrets)
		switch {
		case status == http.StatusUnauthorized || status == http.StatusForbidden:
			return api.Errorf(api.Upstream, "the broker refused lessor's own login, or what it may do: its account needs the tag administrator: %s", text)
		case status/100 == 5 || status == http.StatusTooManyRequests:
			return unreachable(text)
		}
		return api.Errorf(api.Upstream, "the broker refused: %s", text)
	}
	if errors.Is(err, target.ErrForbidden) {
		return api.Errorf(api.Upstream, "%v", target.ErrForbidden)
	}
	return unreachable(target.Unreachable(err))
}

// untouched says of an error that nothing was changed.
func untouched(err error) error {
	if e, ok := errors.AsType[*api.Error](err); ok && errors.Is(err, database.ErrUnreachable) {
		return &api.Error{Kind: e.Kind, Text: e.Text, Cause: database.ErrUntouched}
	}
	return err
}

// redact takes secrets out of a text of the broker's.
func (b *broker) redact(text string, secrets []string) string {
	for _, list := range [][]string{b.hide, b.logins.Reveal(), secrets} {
		for _, s := range list {
			if s != "" {
				text = strings.ReplaceAll(text, s, "[secret]")
			}
		}
	}
	if len(text) > mostOfReason {
		text = text[:mostOfReason]
	}
	return strings.ToValidUTF8(text, "")
}
