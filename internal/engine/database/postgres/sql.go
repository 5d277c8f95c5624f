package postgres

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lessor-dev/lessor/internal/engine/database"
)

// values fill the placeholders of statements. None of them can end a quoted string or identifier, see newValues.
type values struct{ *strings.Replacer }

var (
	identifier = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,63}$`)
	unsafe     = regexp.MustCompile(`['"\\\x00-\x1f\x7f]|\$([A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$`)
)

var errPassword = errors.New(`the password has a quote, backslash, "$$", "$tag$" or control character, which statements cannot take: change its policy`)

// existing reports whether lessor can put the name of an account that is not its own making into statements: nothing in it ends a quoted
// string or identifier.
func existing(name string) bool {
	return name != "" && len(name) <= 63 && utf8.ValidString(name) && !unsafe.MatchString(name) && !strings.Contains(name, "$")
}

// newValues refuses what would have to be escaped, rather than to escape it: statements put values in quotes of two kinds,
// in bodies of DO, and in strings that are executed in turn.
func newValues(name, password string, until time.Time) (values, error) {
	if !identifier.MatchString(name) {
		return values{}, errors.New("the username is not made of 1 to 63 letters, digits, _, . and -")
	}
	return fill(name, password, until)
}

// fill is newValues without its allowlist of names.
func fill(name, password string, until time.Time) (values, error) {
	if unsafe.MatchString(password) {
		return values{}, errPassword
	}
	return values{strings.NewReplacer("{{name}}", name, "{{username}}", name, "{{password}}", password, "{{expiration}}", expiration(until))}, nil
}

// expiration is the end of an account as VALID UNTIL has it: never before its lease's.
func expiration(until time.Time) string {
	return until.Add(database.Skew + time.Second - time.Nanosecond).UTC().Format("2006-01-02 15:04:05-0700")
}

// script joins statements, filled in. Each ends on a line of its own, so that a comment at its end does not swallow the next.
func (v values) script(statements []string) string {
	var b strings.Builder
	for _, s := range statements {
		b.WriteString(v.Replace(strings.TrimRight(s, "; \t\r\n")))
		b.WriteString("\n;")
	}
	return b.String()
}

var placeholder = regexp.MustCompile(`\{\{[^{}]*\}\}`)

// check reads statements as PostgreSQL's lexer would, to see that every placeholder is within quotes and one of can, and
// that transactions are left to lessor.
func check(sql, can string) error {
	first := true // at the start of a statement
	for i := 0; i < len(sql); {
		rest := sql[i:]
		kind, n := token(sql, i)
		switch kind {
		case open:
			return fmt.Errorf("%.2q is never closed", rest)
		case quote:
			if err := within(rest[:n], can, rest[0]); err != nil {
				return err
			}
		case dollars:
			tag := dollar.FindString(rest)
			if err := body(rest[len(tag):n-len(tag)], can); err != nil {
				return err
			}
		case word:
			if first && transaction[strings.ToUpper(rest[:n])] {
				return fmt.Errorf("%s is not allowed: statements run in a transaction of lessor's", strings.ToUpper(rest[:n]))
			}
		case other:
			if strings.HasPrefix(rest, "{{") {
				return fmt.Errorf(`%s must be in quotes: "{{name}}", '{{password}}', '{{expiration}}'`, placeholderAt(rest))
			}
		}
		if kind != blank {
			first = kind == end
		}
		i += n
	}
	return nil
}

// statement is the length of the first of the statements, with what ends it.
func statement(sql string) int {
	for i := 0; i < len(sql); {
		kind, n := token(sql, i)
		i += n
		if kind == end || kind == open {
			return i
		}
	}
	return len(sql)
}

type kind int

const (
	other   kind = iota // one character of no meaning here
	blank               // white space, or a comment
	word                // a word or number
	quote               // a string or identifier in quotes
	dollars             // a string between $tags$
	end                 // ";"
	open                // a comment or string that is never closed; all the rest
)

// token is the kind and length of the token of sql that begins at i.
func token(sql string, i int) (kind, int) {
	rest := sql[i:]
	closed := func(k kind, n int) (kind, int) {
		if n == 0 {
			return open, len(rest)
		}
		return k, n
	}
	inWord := i > 0 && wordByte(sql[i-1])
	switch c := rest[0]; {
	case c == '\'':
		escapes := inWord && (sql[i-1] == 'e' || sql[i-1] == 'E') && (i < 2 || !wordByte(sql[i-2]))
		return closed(quote, quoted(rest, escapes))
	case c == '"':
		return closed(quote, quoted(rest, false))
	case strings.HasPrefix(rest, "--"):
		if n := strings.IndexByte(rest, '\n'); n >= 0 {
			return blank, n + 1
		}
		return blank, len(rest)
	case strings.HasPrefix(rest, "/*"):
		return closed(blank, comment(rest))
	case c == '$' && !inWord:
		tag := dollar.FindString(rest)
		if tag == "" {
			return other, 1
		}
		n := strings.Index(rest[len(tag):], tag)
		if n < 0 {
			return open, len(rest)
		}
		return dollars, n + 2*len(tag)
	case c == ';':
		return end, 1
	case c == ' ' || c >= '\t' && c <= '\r':
		return blank, 1
	case wordByte(c):
		n := 1
		for n < len(rest) && wordByte(rest[n]) {
			n++
		}
		return word, n
	}
	return other, 1
}

// body checks the body of a function or DO block: SQL, in which BEGIN and END are no transaction's.
func body(sql, can string) error {
	err := check(transactionWords.ReplaceAllString(sql, "x"), can)
	if err != nil && strings.HasSuffix(err.Error(), "closed") {
		return within(sql, can, '$') // not SQL: some other language
	}
	return err
}

// within checks the placeholders of a quoted text.
func within(text, can string, quote byte) error {
	for _, p := range placeholder.FindAllString(text, -1) {
		name := p[2 : len(p)-2]
		switch {
		case !strings.Contains(" "+can+" ", " "+name+" "):
			return fmt.Errorf("%s is not known here; {{%s}} are", p, strings.ReplaceAll(can, " ", "}}, {{"))
		case quote == '$':
			return fmt.Errorf("%s must be in quotes", p)
		case quote == '"' && (name == "password" || name == "expiration"):
			return fmt.Errorf("%s must be in single quotes", p)
		}
	}
	return nil
}

var (
	dollar           = regexp.MustCompile(`^\$([A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$`)
	transactionWords = regexp.MustCompile(`(?i)\b(begin|end|start|commit|rollback|abort|savepoint|release|prepare)\b`)
	transaction      = map[string]bool{"BEGIN": true, "END": true, "START": true, "COMMIT": true, "ROLLBACK": true, "ABORT": true, "SAVEPOINT": true, "RELEASE": true, "PREPARE": true}
)

func wordByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c >= 0x80
}

// quoted is the length of the quoted text that s begins with; 0 if it has no end. A quote that is doubled is one within.
func quoted(s string, backslashes bool) int {
	for i := 1; i < len(s); i++ {
		switch {
		case backslashes && s[i] == '\\':
			i++
		case s[i] == s[0] && i+1 < len(s) && s[i+1] == s[0]:
			i++
		case s[i] == s[0]:
			return i + 1
		}
	}
	return 0
}

// comment is the length of the comment that s begins with; they nest.
func comment(s string) int {
	depth := 0
	for i := 0; i+1 < len(s); {
		switch s[i : i+2] {
		case "/*":
			depth++
			i += 2
		case "*/":
			depth--
			i += 2
			if depth == 0 {
				return i
			}
		default:
			i++
		}
	}
	return 0
}

func placeholderAt(s string) string {
	if p := placeholder.FindString(s); strings.HasPrefix(s, p) && p != "" {
		return p
	}
	return "{{"
}

// leavesTraces matches statements that change the session for those after it.
var leavesTraces = regexp.MustCompile(`(?i)((^|;|\bbegin|\bthen)\s*(set|reset|discard|listen|load)\b)|\bset_config\b`)
