package session

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
)

// Codes that the program ends with; 0 is success.
const (
	ExitLocal  = 1 // something is wrong on this side
	ExitRemote = 2 // the server refused, or cannot be reached

	ExitUnknown = 127 // there is no such command, as shells say it
)

// ExitCode is an error that ends the program with this code and without a word: the command has said all.
type ExitCode int

func (c ExitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// usageError is a command that was typed wrongly.
type usageError struct {
	command string
	text    string
	data    bool // what was typed may have been meant as data
	unknown bool // there is no such command
}

func (e *usageError) Error() string { return e.command + ": " + e.text }

// Usage is the error of a command that was typed wrongly.
func Usage(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{command: cmd.CommandPath(), text: fmt.Sprintf(format, args...)}
}

// Unknown is the error of a command that does not exist. Its exit code is a shell's.
func Unknown(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{command: cmd.CommandPath(), text: fmt.Sprintf(format, args...), unknown: true}
}

// FlagError is a flag that cannot be read. Flags may stand behind arguments, too: data that looks like one needs a word.
func FlagError(cmd *cobra.Command, err error) error {
	return &usageError{command: cmd.CommandPath(), text: err.Error(), data: strings.Contains(cmd.Use, "key=value") && strings.HasPrefix(err.Error(), "unknown")}
}

// CodeOf is the exit code that err ends the program with.
func CodeOf(err error) int {
	if typed, ok := errors.AsType[*usageError](err); ok && typed.unknown {
		return ExitUnknown
	}
	if _, ok := errors.AsType[*client.Error](err); ok {
		return ExitRemote
	}
	if _, ok := errors.AsType[*client.Unreachable](err); ok {
		return ExitRemote
	}
	if _, ok := errors.AsType[*nothingThere](err); ok {
		return ExitRemote
	}
	return ExitLocal
}

// nothingThere is a path without a value.
type nothingThere struct{ path, next string }

func (e *nothingThere) Error() string { return "No value found at " + e.path }

// NothingAt is the error of a path without a value. next, if not empty, tells where to look.
func NothingAt(path, next string) error { return &nothingThere{path, next} }

// NoField is the error of an answer without the field that was asked for.
func NoField(field string) error { return &fieldMissing{field} }

// fieldMissing is an answer without the field that was asked for.
type fieldMissing struct{ field string }

func (e *fieldMissing) Error() string { return fmt.Sprintf("Field %q not present in secret", e.field) }

// Sentence is an error as it is told. What scripts look for is told as Vault tells it, and nothing else.
func Sentence(err error) string {
	text := Printable(err.Error())
	if _, ok := errors.AsType[*nothingThere](err); ok {
		return text
	}
	if _, ok := errors.AsType[*fieldMissing](err); ok {
		return text
	}
	return "Error: " + text
}

// Advice tells what to do about err; empty where its text says it already.
func (a *Session) Advice(err error) string {
	if e, ok := errors.AsType[*usageError](err); ok {
		if e.data {
			return "If it is data and no flag, put -- before it: lessor ... -- -key=value\nSee: " + e.command + " -help"
		}
		return "See: " + e.command + " -help"
	}
	if e, ok := errors.AsType[*nothingThere](err); ok {
		return e.next
	}
	if e, ok := errors.AsType[*client.Unreachable](err); ok {
		return adviceOnReaching(e)
	}
	if e, ok := errors.AsType[*client.Error](err); ok {
		return strings.Trim(a.adviceOnRefusal(e)+"\n"+a.adviceOnLineEnds(e), "\n")
	}
	return ""
}

// adviceOnLineEnds tells of passwords and the like that were refused, and came with the end of a line that nobody sees.
func (a *Session) adviceOnLineEnds(e *client.Error) string {
	if len(a.Input.ended) == 0 || e.Status != http.StatusBadRequest && e.Status != http.StatusForbidden && e.Status != http.StatusBadGateway {
		return ""
	}
	return "A line break at the end is part of the value, and there is one in: " + strings.Join(a.Input.ended, ", ") + `. tr -d '\n' takes it off.`
}

func adviceOnReaching(e *client.Unreachable) string {
	var (
		record    tls.RecordHeaderError
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		lookup    *net.DNSError
	)
	switch {
	case strings.Contains(e.Err.Error(), "server gave HTTP response to HTTPS client"), errors.As(e.Err, &record):
		return "The server speaks plain HTTP: write its address with http:// (LESSOR_ADDR or -address)."
	case errors.As(e.Err, &authority):
		return "Trust the server's authority with -ca-cert=FILE or LESSOR_CACERT."
	case errors.As(e.Err, &hostname):
		return "The certificate is for another name: use that name in the address, or give it with -tls-server-name."
	case errors.As(e.Err, &lookup):
		return "Check the address (LESSOR_ADDR, VAULT_ADDR or -address)."
	case errors.Is(e.Err, syscall.ECONNREFUSED), errors.Is(e.Err, fs.ErrNotExist):
		return "Start a server there (lessor server), or say where it is (LESSOR_ADDR, VAULT_ADDR or -address)."
	}
	return "Check that the server runs and can be reached from here: lessor status"
}

func (a *Session) adviceOnRefusal(e *client.Error) string {
	path, text := Printable(e.Path), strings.Join(e.Errors, " ")
	switch e.Status {
	case http.StatusForbidden:
		mount, _, login := strings.Cut(path, "/login")
		if !login {
			mount, login = strings.CutSuffix(path, "/oidc/auth_url")
		}
		if login && strings.HasPrefix(mount, "auth/") && a.Token.Empty() {
			return "Nobody logs in there: the auth method is enabled at another path (-path), or not at all (lessor auth list)."
		}
		if a.Token.Empty() {
			return "No token was sent: log in (lessor login), or set LESSOR_TOKEN."
		}
		if e.Path == "auth/token/lookup-self" || strings.Contains(text, "log in again") {
			return "Log in again: lessor login"
		}
		if strings.Contains(text, "bad token") { // the one that was asked about, not the one that asks
			return ""
		}
		if strings.HasPrefix(e.Path, "sys/internal/ui/mounts/") {
			return "Nothing is mounted there, or the token may use nothing of it (or it expired: lessor token lookup)."
		}
		return "What the token may do there: lessor token capabilities " + path + "\nWhether it is still valid: lessor token lookup"
	case http.StatusNotFound:
		if hint := warnings(e); hint != "" {
			return hint
		}
		if strings.Contains(text, "namespace not found") {
			return "Leave the namespace out: unset LESSOR_NAMESPACE and VAULT_NAMESPACE, no -namespace."
		}
		return "What there is: lessor list on the path above it, or lessor secrets list."
	case http.StatusMethodNotAllowed:
		return "The path exists, this operation on it does not."
	case http.StatusTooManyRequests:
		return "The server limits requests: wait a little, then try again."
	case http.StatusServiceUnavailable:
		if strings.Contains(text, "revocation is in force") {
			return "What is still to be taken back, and why: lessor lease outlived"
		}
		if strings.Contains(text, "is sealed") {
			return "How far it has come: lessor status. To give a share of its key: lessor operator unseal"
		}
		if text == "" || strings.Contains(text, "seal") {
			return "See whether the server is sealed or starting: lessor status"
		}
	case http.StatusBadRequest:
		if strings.Contains(text, "already initialized") {
			return "Its shares and its root token were printed then, and never will be again. New ones: lessor operator rekey, generate-root"
		}
		if strings.Contains(text, "path is already in use") {
			return "Choose another with -path=PATH. What there is: lessor secrets list, lessor auth list"
		}
		if strings.Contains(text, "check-and-set") {
			return "Which version is the current one: lessor kv metadata get. Give its number with -cas"
		}
		if strings.Contains(text, "HTTP request to an HTTPS server") {
			return "The server speaks TLS: write its address with https:// (LESSOR_ADDR or -address)."
		}
	case http.StatusInternalServerError:
		if len(e.Errors) == 0 {
			return "The server's log tells more."
		}
	}
	return ""
}

// Printable keeps text from steering the terminal that it is shown on: whoever chooses a path or a name could
// otherwise forge what the reader of an audit trail sees.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
}

// PrintableLine is printable, on one line.
func PrintableLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		return r
	}, Printable(text))
}

// ExplainMissing turns a 404 without texts into a plain statement that nothing is at path.
func ExplainMissing(err error, path, next string) error {
	refused, ok := errors.AsType[*client.Error](err)
	if ok && refused.Status == http.StatusNotFound && len(refused.Errors) == 0 {
		if hint := warnings(refused); hint != "" {
			next = hint
		}
		return &nothingThere{path, next}
	}
	return err
}

// warnings are what the server says beside a refusal; empty if it says nothing.
func warnings(e *client.Error) string {
	if e.Response == nil {
		return ""
	}
	return Printable(strings.Join(e.Response.Warnings, "\n"))
}
