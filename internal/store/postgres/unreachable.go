package postgres

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
)

// Unreachable reports whether err means that the server did not answer, is starting or stopping, or has no room at present, rather than that
// it refused: trying again may help.
func Unreachable(err error) bool {
	if err == nil || ours(err) {
		return false
	}
	if said, ok := errors.AsType[*pgconn.PgError](err); ok {
		// admin_shutdown, crash_shutdown, cannot_connect_now; connection exceptions; insufficient resources: connections, memory, disk;
		// read_only_sql_transaction: the address still leads to a standby
		return strings.HasPrefix(said.Code, "57P0") || strings.HasPrefix(said.Code, "08") || strings.HasPrefix(said.Code, "53") || said.Code == "25006"
	}
	if name, ok := errors.AsType[*net.DNSError](err); ok {
		return !name.IsNotFound
	}
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
