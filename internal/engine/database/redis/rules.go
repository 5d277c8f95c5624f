package redis

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Rules are what a role gives its accounts: words of ACL SETUSER, as Vault's plugin has them, a JSON list as one statement. A list of statements
// that each are a rule, or several with spaces, says the same.

// standard are the rules of a role that has none: whatever can be read.
var standard = []string{"~*", "+@read"}

// keywords are the rules without a sign that a role may have.
var keywords = []string{
	"on", "allkeys", "resetkeys", "allchannels", "resetchannels", "allcommands", "nocommands", "clearselectors", "sanitize-payload", "skip-sanitize-payload",
	"alldbs", "resetdbs", // of Valkey 9.1, as is db=
}

// rules are the words for ACL SETUSER of a role's statements; {{name}} and {{username}} become the account's name.
func rules(statements []string, name string) ([]string, error) {
	var all []string
	for _, statement := range statements {
		var list []string
		if json.Unmarshal([]byte(statement), &list) != nil {
			list = []string{statement}
		}
		for _, text := range list {
			some, err := words(text)
			if err != nil {
				return nil, err
			}
			all = append(all, some...)
		}
	}
	if len(all) == 0 {
		all = slices.Clone(standard)
	}
	for i, word := range all {
		if err := permitted(word); err != nil {
			return nil, err
		}
		all[i] = strings.NewReplacer("{{name}}", name, "{{username}}", name).Replace(word)
		if strings.Contains(all[i], "{{") {
			return nil, fmt.Errorf("%q: only {{name}} can stand in a rule", word)
		}
	}
	return all, nil
}

// words splits a text at spaces, but those within parentheses, which make a selector.
func words(text string) (all []string, err error) {
	for {
		text = strings.TrimSpace(text)
		if text == "" {
			return all, nil
		}
		end := strings.IndexAny(text, " \t\r\n")
		if text[0] == '(' {
			if end = strings.IndexByte(text, ')') + 1; end == 0 {
				return nil, fmt.Errorf("%q lacks a closing parenthesis", text)
			}
		}
		if end < 0 {
			end = len(text)
		}
		all, text = append(all, text[:end]), text[end:]
	}
}

var errPassword = errors.New("rules about passwords, and off, are lessor's to set: leave them out")

// permitted refuses what is not a role's to say: the account's password, and whether it is one at all.
func permitted(word string) error {
	if inner, ok := strings.CutPrefix(word, "("); ok {
		for _, w := range strings.Fields(strings.TrimSuffix(inner, ")")) {
			if strings.HasPrefix(w, "(") {
				return fmt.Errorf("%q: a selector has none within it", word)
			}
			if err := permitted(w); err != nil {
				return err
			}
		}
		return nil
	}
	if strings.ContainsFunc(word, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return errors.New("a rule has control characters in it")
	}
	switch word[0] {
	case '+', '-', '~', '%', '&':
		return nil
	case '>', '<', '#', '!':
		return errPassword
	}
	switch lower := strings.ToLower(word); {
	case lower == "off" || lower == "reset" || lower == "nopass" || lower == "resetpass":
		return errPassword
	case strings.HasPrefix(lower, "db="):
	case !slices.Contains(keywords, lower):
		return fmt.Errorf("%q is no rule: they begin with +, -, ~, %%, & or (, or are one of %s", word, strings.Join(keywords, ", "))
	}
	return nil
}
