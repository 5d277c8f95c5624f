package session

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/lessor-dev/lessor/client"
)

// Normalize turns long flags with one dash, as Vault's users type them (-format=json), into ones with two. What
// follows "--", lone letters (-h, -f), "-" (standard input) and negative numbers stay as they are.
func Normalize(args []string) []string {
	normal := make([]string, 0, len(args))
	for i, arg := range args {
		if arg == "--" {
			return append(normal, args[i:]...)
		}
		if isLongFlag(arg) {
			arg = "-" + arg
		}
		normal = append(normal, arg)
	}
	return normal
}

// isLongFlag reports whether arg is a single dash and a name of more than one letter, with or without a value.
func isLongFlag(arg string) bool {
	name, dashed := strings.CutPrefix(arg, "-")
	name, _, _ = strings.Cut(name, "=")
	if !dashed || len(name) < 2 || !isLetter(name[0]) {
		return false
	}
	for i := 1; i < len(name); i++ {
		if c := name[i]; !isLetter(c) && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

// input reads what arguments refer to: files, and standard input, which can be read once.
type input struct {
	Stdin io.Reader
	spent bool
	ended []string // keys whose value is a word and the end of its line, as files and pipes have it
}

var errStdinSpent = errors.New("standard input was asked for twice (-): give one of the values from a file (key=@file)")

// All is standard input, to its end.
func (i *input) All() (string, error) {
	if i.spent {
		return "", errStdinSpent
	}
	i.spent = true
	text, err := io.ReadAll(i.Stdin)
	if err != nil {
		return "", fmt.Errorf("standard input: %w", err)
	}
	return string(text), nil
}

// Data reads a request's data from arguments: key=value, key=@file and key=- (the value is in a file, on standard
// input), @file and - (a JSON object), key=\@text (a value that begins with @). Values are strings; a key that is
// given again makes a list. Errors never repeat a value.
func (i *input) Data(args []string) (map[string]any, error) {
	data := map[string]any{}
	for n, arg := range args {
		switch {
		case arg == "-":
			text, err := i.All()
			if err != nil {
				return nil, err
			}
			if err := mergeObject(data, text, "standard input"); err != nil {
				return nil, err
			}
		case strings.HasPrefix(arg, "@"):
			text, err := os.ReadFile(arg[1:])
			if err != nil {
				return nil, err
			}
			if err := mergeObject(data, string(text), "file "+arg[1:]); err != nil {
				return nil, err
			}
		default:
			key, value, ok := strings.Cut(arg, "=")
			if !ok || key == "" {
				return nil, fmt.Errorf("argument %d of the data is not of the form key=value, key=@file, key=-, @file or -", n+1)
			}
			value, err := i.Value(value)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", key, err)
			}
			if word, _, ok := strings.Cut(value, "\n"); ok && len(word) == len(value)-1 && !strings.Contains(word, " ") {
				i.ended = append(i.ended, key)
			}
			add(data, key, value)
		}
	}
	return data, nil
}

// Value is what one value stands for: "-" standard input, "@file" a file, `\@text` text that begins with @, else itself.
func (i *input) Value(text string) (string, error) {
	switch {
	case text == "-":
		return i.All()
	case strings.HasPrefix(text, "@"):
		content, err := os.ReadFile(text[1:])
		return string(content), err
	case strings.HasPrefix(text, `\@`):
		return text[1:], nil
	}
	return text, nil
}

func add(data map[string]any, key string, value any) {
	switch before := data[key].(type) {
	case nil:
		data[key] = value
	case []any:
		data[key] = append(before, value)
	default:
		data[key] = []any{before, value}
	}
}

func mergeObject(data map[string]any, text, from string) error {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	var object map[string]any
	err := decoder.Decode(&object)
	if _, more := decoder.Token(); err != nil || object == nil || more != io.EOF {
		return fmt.Errorf("%s does not hold one JSON object; to use all of it as one value, write key=@file or key=-", from)
	}
	for key, value := range object {
		data[key] = value
	}
	return nil
}

// SecretArgument reads an argument that should not be typed: "-" is a line on standard input.
func (i *input) SecretArgument(arg string) (client.Token, error) {
	if arg == "-" {
		text, err := i.All()
		if err != nil {
			return client.Token{}, err
		}
		arg = text
	}
	token := client.NewToken(arg)
	if token.Empty() {
		return token, errors.New("the value is empty")
	}
	return token, nil
}

// Pairs is a flag of key=value that may be repeated; a value may hold commas.
type Pairs map[string]string

func (p Pairs) String() string { return "" }

func (p Pairs) Type() string { return "key=value" }

func (p Pairs) Set(text string) error {
	key, value, ok := strings.Cut(text, "=")
	if !ok || key == "" {
		return errors.New("write it as key=value")
	}
	p[key] = value
	return nil
}

// Duration is a flag that the server reads; it is checked here so that a slip is told at once.
type Duration string

func (d *Duration) String() string { return string(*d) }

func (d *Duration) Type() string { return "duration" }

func (d *Duration) Set(text string) error {
	if _, err := client.ParseDuration(text); err != nil {
		return err
	}
	*d = Duration(text)
	return nil
}

// CleanPath takes the slashes off both ends of a path.
func CleanPath(path string) string { return strings.Trim(path, "/") }

// DataHelp tells how data is given, for the help of commands that take some.
const DataHelp = `
Data is given as key=value, or so that nobody sees it in the list of processes: key=@file and key=- take the value from
a file or standard input, @file and - take a whole JSON object. key=\@text is a value that begins with @.`
