package session

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

// Yaml writes a JSON text as YAML: blocks for objects and lists, in the JSON's order of keys; text that YAML could
// take for something else in double quotes, whose escapes are JSON's; text of several lines as a literal block.
func Yaml(text []byte) ([]byte, error) {
	y := yamlWriter{decoder: json.NewDecoder(bytes.NewReader(text))}
	y.decoder.UseNumber()
	if err := y.document(); err != nil {
		return nil, errors.New("the answer cannot be written as YAML")
	}
	return y.b.Bytes(), nil
}

type yamlWriter struct {
	decoder *json.Decoder
	b       bytes.Buffer
}

func (y *yamlWriter) document() error {
	token, err := y.decoder.Token()
	if err != nil {
		return err
	}
	if scalar, ok := yamlScalar(token, ""); ok {
		y.b.WriteString(scalar + "\n")
		return nil
	}
	if !y.decoder.More() {
		y.b.WriteString(yamlEmpty(token) + "\n")
		_, err := y.decoder.Token()
		return err
	}
	return y.block(token.(json.Delim), "", false)
}

// block writes the members of the object or list that open begins. The first one continues a line that its
// parent began if hanging.
func (y *yamlWriter) block(open json.Delim, indent string, hanging bool) error {
	for first := true; y.decoder.More(); first = false {
		if !first || !hanging {
			y.b.WriteString(indent)
		}
		if open == '{' {
			key, err := y.decoder.Token()
			if err != nil {
				return err
			}
			y.b.WriteString(yamlLine(key.(string)) + ":")
		} else {
			y.b.WriteByte('-')
		}
		if err := y.member(open == '[', indent); err != nil {
			return err
		}
	}
	_, err := y.decoder.Token() // the closing bracket
	return err
}

func (y *yamlWriter) member(inList bool, indent string) error {
	token, err := y.decoder.Token()
	if err != nil {
		return err
	}
	if scalar, ok := yamlScalar(token, indent+"  "); ok {
		y.b.WriteString(" " + scalar + "\n")
		return nil
	}
	if !y.decoder.More() {
		y.b.WriteString(" " + yamlEmpty(token) + "\n")
		_, err := y.decoder.Token()
		return err
	}
	if inList {
		y.b.WriteByte(' ')
		return y.block(token.(json.Delim), indent+"  ", true)
	}
	y.b.WriteByte('\n')
	return y.block(token.(json.Delim), indent+"  ", false)
}

func yamlEmpty(open json.Token) string {
	if open == json.Delim('{') {
		return "{}"
	}
	return "[]"
}

// yamlScalar writes a token that is no bracket; lines of a literal block are indented.
func yamlScalar(token json.Token, indent string) (string, bool) {
	switch v := token.(type) {
	case json.Delim:
		return "", false
	case string:
		return yamlText(v, indent), true
	case nil:
		return "null", true
	default:
		return fmt.Sprint(v), true
	}
}

func yamlText(text, indent string) string {
	lines := strings.TrimSuffix(text, "\n")
	if !strings.Contains(lines, "\n") || indent == "" || !yamlLiteral(lines) {
		return yamlLine(text)
	}
	header := "|"
	if lines == text {
		header = "|-"
	}
	return header + "\n" + indent + strings.ReplaceAll(lines, "\n", "\n"+indent)
}

// yamlLiteral reports whether a literal block gives the lines back exactly: it begins with text (else it would need
// an indentation indicator), ends with some, and holds no character that YAML does not take as it stands.
func yamlLiteral(lines string) bool {
	first, last := lines[0], lines[len(lines)-1]
	if first == ' ' || first == '\t' || first == '\n' || last == '\n' || last == ' ' {
		return false
	}
	for _, r := range lines {
		if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

var (
	yamlPlain = regexp.MustCompile(`^[A-Za-z_/.][A-Za-z0-9_./+@()-]*( [A-Za-z0-9_./+@()-]+)*$`)
	// What a reader of YAML 1.1 or 1.2 would not take for text.
	yamlWord = regexp.MustCompile(`(?i)^(true|false|yes|no|on|off|y|n|null|\.inf|\.nan|\.|\.\.\.)$`)
	yamlDot  = regexp.MustCompile(`^\.[0-9]`)
)

// yamlLine writes text on one line, in quotes if need be.
func yamlLine(text string) string {
	if yamlPlain.MatchString(text) && !yamlWord.MatchString(text) && !yamlDot.MatchString(text) {
		return text
	}
	quoted, err := Compact(text)
	if err != nil {
		return `""`
	}
	// JSON leaves what YAML does not print as it is.
	var b strings.Builder
	for _, r := range quoted {
		if r == 0x7f || r >= 0x80 && r <= 0x9f || r == 0xfeff {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}
