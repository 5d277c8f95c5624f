package mysql

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
type values struct {
	*strings.Replacer
	identified func(plugin string) string // what stands for IDENTIFIED … '{{password}}', where the server gets a hash; nil: nothing does
}

var (
	identifier = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,80}$`)
	unsafe     = regexp.MustCompile("['\"`\\\\\\x00-\\x1f\\x7f]")
)

var errPassword = errors.New("the password has a quote, backtick, backslash or control character, which statements cannot take: change its policy")

// existing reports whether lessor can put the name of an account that is not its own making into statements: nothing in it ends a quoted string
// or identifier.
func existing(name string) bool {
	return name != "" && len(name) <= 80 && utf8.ValidString(name) && !unsafe.MatchString(name)
}

// newValues refuses what would have to be escaped, rather than to escape it: statements put values in quotes of three kinds, and in strings that are
// executed in turn.
func newValues(name, password string, until time.Time) (values, error) {
	if !identifier.MatchString(name) {
		return values{}, errors.New("the username is not made of 1 to 80 letters, digits, _, . and -")
	}
	return fill(name, password, until)
}

// fill is newValues without its allowlist of names.
func fill(name, password string, until time.Time) (values, error) {
	if unsafe.MatchString(password) {
		return values{}, errPassword
	}
	return values{strings.NewReplacer("{{name}}", name, "{{username}}", name, "{{password}}", password, "{{expiration}}", expiration(until)), nil}, nil
}

// expiration is the end of an account in UTC, for statements that use it; nothing of the server's own does.
func expiration(until time.Time) string {
	return until.Add(database.Skew + time.Second - time.Nanosecond).UTC().Format("2006-01-02 15:04:05")
}

// statements are the single ones of a list, filled in.
func (v values) statements(list []string) []string {
	var all []string
	for _, sql := range list {
		for _, one := range split(sql) {
			if v.identified != nil {
				one = hashed(one, v.identified)
			}
			all = append(all, v.Replace(one))
		}
	}
	return all
}

var placeholder = regexp.MustCompile(`\{\{[^{}]*\}\}`)

// check reads statements as the servers' lexer would, to see that every placeholder is within quotes and one of can, and that none is of a kind that
// cannot be run.
func check(sql, can string) error {
	first := true // at the start of a statement
	for i := 0; i < len(sql); {
		rest := sql[i:]
		kind, n := token(sql, i)
		switch kind {
		case open:
			return fmt.Errorf("%.2q is never closed", rest)
		case executable:
			return fmt.Errorf("%.3q is not allowed: it is a comment to some servers only", rest)
		case quote:
			if err := within(rest[:n], can, rest[0]); err != nil {
				return err
			}
		case word:
			if rest[0] == '$' {
				return fmt.Errorf("%.2q is not allowed: some servers begin a quoted text with it, others a name", rest)
			}
			if text, refused := unfit[strings.ToUpper(rest[:n])]; first && refused {
				return fmt.Errorf("%s is not allowed: %s", strings.ToUpper(rest[:n]), text)
			}
		case other:
			if strings.HasPrefix(rest, "{{") {
				return fmt.Errorf(`%s must be in quotes: '{{name}}', '{{password}}', '{{expiration}}'`, placeholderAt(rest))
			}
		}
		if kind != blank {
			first = kind == end
		}
		i += n
	}
	return nil
}

const (
	committed = "accounts know no transactions there, each statement commits by itself"
	compound  = "statements with statements within them cannot be told apart here; put them into a procedure, and CALL it"
)

// unfit are words that no statement may begin with, and why.
var unfit = map[string]string{
	"BEGIN": compound, "DECLARE": compound, "IF": compound, "WHILE": compound, "LOOP": compound, "REPEAT": compound, "CASE": compound,
	"DELIMITER": "it is a command of the mysql client, the server does not know it; " + compound,
	"SOURCE":    "it is a command of the mysql client, the server does not know it",
	"START":     committed, "COMMIT": committed, "ROLLBACK": committed, "SAVEPOINT": committed, "RELEASE": committed, "XA": committed,
	"LOCK": committed, "UNLOCK": committed,
}

// split are the statements of a text, without what ends them; empty ones are left out.
func split(sql string) (all []string) {
	from, something := 0, false
	for i := 0; i < len(sql); {
		kind, n := token(sql, i)
		i += n
		if kind == end || i >= len(sql) {
			one := sql[from:i]
			if kind == end {
				one = one[:len(one)-1]
			} else if kind != blank {
				something = true
			}
			if something {
				all = append(all, one)
			}
			from, something = i, false
			continue
		}
		something = something || kind != blank
	}
	return all
}

// hashed is a statement with what stands for its password, where it says IDENTIFIED BY '{{password}}', or IDENTIFIED VIA (or WITH) a plugin USING (or
// AS) PASSWORD('{{password}}'), as far as identified knows the plugin; "" stands for the one that is not named.
func hashed(sql string, identified func(plugin string) string) string {
	type part struct {
		text string
		at   int // where it begins
		end  int
	}
	var parts []part // all that is not blank
	for i := 0; i < len(sql); {
		kind, n := token(sql, i)
		if kind != blank {
			parts = append(parts, part{sql[i : i+n], i, i + n})
		}
		i += n
	}
	is := func(i int, words ...string) bool {
		for _, w := range words {
			if i < len(parts) && strings.EqualFold(parts[i].text, w) {
				return true
			}
		}
		return false
	}
	password := func(i int) bool { return is(i, "'{{password}}'", `"{{password}}"`) }
	var b strings.Builder
	from := 0
	put := func(first, last int, clause string) {
		if clause == "" {
			return
		}
		b.WriteString(sql[from:parts[first].at])
		b.WriteString(clause)
		from = parts[last].end
	}
	for i := range parts {
		switch {
		case !is(i, "IDENTIFIED"):
		case is(i+1, "BY") && password(i+2):
			put(i, i+2, identified(""))
		case is(i+1, "VIA", "WITH") && is(i+3, "USING", "AS") && is(i+4, "PASSWORD") && is(i+5, "(") && password(i+6) && is(i+7, ")"):
			put(i, i+7, identified(strings.Trim(parts[i+2].text, "'\"`")))
		}
	}
	return b.String() + sql[from:]
}

type kind int

const (
	other      kind = iota // one character of no meaning here
	blank                  // white space, or a comment
	quote                  // a quoted string or identifier
	word                   // a keyword, unquoted name or number
	end                    // ;
	open                   // a quote or comment without an end
	executable             // a comment that servers execute
)

// token is what stands at i in sql, and how long it is. The sessions' sql_mode has neither ANSI_QUOTES nor NO_BACKSLASH_ESCAPES.
func token(sql string, i int) (kind, int) {
	rest := sql[i:]
	switch c := rest[0]; {
	case strings.HasPrefix(rest, "/*!"), strings.HasPrefix(rest, "/*M!"):
		return executable, len(rest)
	case strings.HasPrefix(rest, "/*"):
		n := strings.Index(rest[2:], "*/")
		if n < 0 {
			return open, len(rest)
		}
		return blank, n + 4
	case c == '#', strings.HasPrefix(rest, "--") && (len(rest) == 2 || rest[2] <= ' '):
		if n := strings.IndexByte(rest, '\n'); n >= 0 {
			return blank, n + 1
		}
		return blank, len(rest)
	case c == '\'' || c == '"' || c == '`':
		if n := quoted(rest); n > 0 {
			return quote, n
		}
		return open, len(rest)
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

// within checks the placeholders of a quoted text.
func within(text, can string, quote byte) error {
	for _, p := range placeholder.FindAllString(text, -1) {
		name := p[2 : len(p)-2]
		switch {
		case !strings.Contains(" "+can+" ", " "+name+" "):
			return fmt.Errorf("%s is not known here; {{%s}} are", p, strings.ReplaceAll(can, " ", "}}, {{"))
		case quote == '`' && (name == "password" || name == "expiration"):
			return fmt.Errorf("%s must be in single quotes", p)
		}
	}
	return nil
}

func wordByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '$' || c >= 0x80
}

// quoted is the length of the quoted text that s begins with; 0 if it has no end. A quote that is doubled is one within, and so is one after a
// backslash, but in backticks.
func quoted(s string) int {
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\\' && s[0] != '`':
			i++
		case s[i] == s[0] && i+1 < len(s) && s[i+1] == s[0]:
			i++
		case s[i] == s[0]:
			return i + 1
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

// traceless are the words that a statement begins with which leaves its session as it was; others may change it for those after it.
var traceless = regexp.MustCompile(`(?i)^\s*((create|alter|drop|rename)\s+(or\s+replace\s+)?(user|role)|grant|revoke|flush\s+privileges|insert|update|delete)\b`)

// leavesTraces reports whether statements may change their session.
func leavesTraces(all []string) bool {
	for _, sql := range all {
		if !traceless.MatchString(sql) || strings.Contains(sql, "@") && strings.Contains(sql, ":=") {
			return true
		}
	}
	return false
}

// text is a string as a literal.
func text(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", "''", "\x00", `\0`).Replace(s) + "'"
}

// texts is a list of literals; NULL stands for an empty one.
func texts(l []string) string {
	if len(l) == 0 {
		return "NULL"
	}
	all := make([]string, len(l))
	for i, s := range l {
		all[i] = text(s)
	}
	return strings.Join(all, ",")
}
