package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

const (
	pingEvery      = 30 * time.Second // without a message: so that neither proxies nor we take who listens for gone
	socketPatience = 30 * time.Second // for a client to take a message, or to answer a ping
)

var errNoSocket = &api.Error{Kind: api.Invalid, Text: "this path speaks over a websocket only (HTTP/1.1, Upgrade: websocket); without one, ask sys/lessor/events/TYPE, which waits"}

// converse sends messages over a websocket, until the client leaves or the Feed ends: then the close frame says why.
func (h *Handler) converse(w http.ResponseWriter, r *http.Request, op *lessor.Op, feed lessor.Feed) {
	if r.ProtoMajor != 1 || !strings.EqualFold(first(r.Header, "Upgrade"), "websocket") {
		h.refuse(w, errNoSocket)
		return
	}
	if err := feed.Open(); err != nil {
		h.fail(w, r, op, err)
		return
	}
	defer feed.Close()
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // it has answered
	}
	defer func() { _ = conn.CloseNow() }()
	ctx, leave := context.WithCancel(r.Context())
	defer leave()
	go func() { // nothing is expected of the client but answers to pings, and that it leaves
		defer leave()
		_, _, _ = conn.Reader(ctx)
	}()
	for {
		messages, err := next(ctx, feed)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, context.DeadlineExceeded):
			err = within(ctx, conn.Ping)
		case err != nil:
			h.farewell(ctx, conn, op, err)
			return
		}
		for _, m := range messages {
			if err == nil {
				err = within(ctx, func(ctx context.Context) error { return conn.Write(ctx, websocket.MessageText, m) })
			}
		}
		if err != nil {
			return
		}
	}
}

// next waits for messages until it is time to ping.
func next(ctx context.Context, feed lessor.Feed) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, pingEvery)
	defer cancel()
	return feed.Next(ctx)
}

// within does something that takes the client.
func within(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, socketPatience)
	defer cancel()
	return do(ctx)
}

// farewell tells why a conversation ends.
func (h *Handler) farewell(ctx context.Context, conn *websocket.Conn, op *lessor.Op, err error) {
	code, text := websocket.StatusInternalError, internal(op.ID).Text
	switch kind := api.KindOf(err); kind {
	case api.Unavailable:
		code, text = websocket.StatusGoingAway, err.Error()
	case api.Unauthenticated, api.Denied:
		code, text = websocket.StatusPolicyViolation, err.Error()
	case api.Internal, api.Uncertain:
		h.log.LogAttrs(ctx, slog.LevelError, "conversation broke off", slog.String("request_id", op.ID), slog.Any("cause", cause(err)))
	default:
		code, text = websocket.StatusTryAgainLater, err.Error()
	}
	_ = conn.Close(code, strings.ToValidUTF8(text[:min(len(text), longestReason)], ""))
}

// longestReason is what a close frame holds, in bytes.
const longestReason = 123
