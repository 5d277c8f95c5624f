package session

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lessor-dev/lessor/client"
)

// Dash stands for nothing in a table.
func Dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// Detailed reports whether the environment asks for more than names.
func (a *Session) Detailed() bool {
	on, _ := strconv.ParseBool(a.Env.Setting("DETAILED"))
	return on
}

// OrEmpty is value if it is a text.
func OrEmpty(value any) string {
	text, _ := value.(string)
	return text
}

// Form is how output is written.
type Form string

const (
	FormTable Form = "table"
	formJSON  Form = "json"
	FormYAML  Form = "yaml"
	FormRaw   Form = "raw" // the answer's bytes as they came: only read has them
)

// Format is the form that flag or environment ask for.
func (a *Session) Format() (Form, error) {
	text := a.Flags.Format
	if text == "" {
		text = a.Env.Setting("FORMAT")
	}
	switch f := Form(strings.ToLower(text)); f {
	case "", "pretty": // Vault's users have it for one command, which lessor does not have
		return FormTable, nil
	case "yml":
		return FormYAML, nil
	case FormTable, formJSON, FormYAML, FormRaw:
		return f, nil
	}
	return "", errors.New("the format must be table, json, yaml or raw (-format, LESSOR_FORMAT, VAULT_FORMAT)")
}

// ForPeople reports whether output is a table, which nobody parses without care: only then are there words beside it.
func (a *Session) ForPeople() bool {
	f, err := a.Format()
	return err == nil && f == FormTable
}

var errRaw = errors.New("-format=raw is for lessor read only: use table, json or yaml")

// Print writes value as JSON or YAML, or calls table to write it for people.
func (a *Session) Print(value any, table func() error) error {
	f, err := a.Format()
	if err != nil {
		return err
	}
	switch f {
	case FormTable:
		return table()
	case FormRaw:
		return errRaw
	}
	text, err := marshal(value)
	if err != nil {
		return err
	}
	if f == FormYAML {
		if text, err = Yaml(text); err != nil {
			return err
		}
	}
	_, err = a.Out.Write(text)
	return err
}

// marshal writes value as indented JSON. An answer of the server is shown as it came.
func marshal(value any) ([]byte, error) {
	if response, ok := value.(*client.Response); ok && response.Raw != nil {
		value = response.Raw
	}
	var text, indented bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, errors.New("the answer cannot be written as JSON")
	}
	if err := json.Indent(&indented, text.Bytes(), "", "  "); err != nil {
		return nil, errors.New("the answer cannot be written as JSON")
	}
	return indented.Bytes(), nil
}

// Row is one line of a table.
type Row []string

// Table writes rows in aligned columns, four spaces apart, below their headings.
func (a *Session) Table(headings Row, rows []Row) error {
	rules := make(Row, len(headings))
	for i, heading := range headings {
		rules[i] = strings.Repeat("-", len(heading))
	}
	_, err := a.Out.Write([]byte(Align(append([]Row{headings, rules}, rows...))))
	return err
}

const columnGap = "    "

// Align pads all columns but the last of each row. A cell of several lines keeps its lines.
func Align(rows []Row) string {
	var widths []int
	for _, r := range rows {
		for i, cell := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			if i < len(r)-1 {
				widths[i] = max(widths[i], utf8.RuneCountInString(cell))
			}
		}
	}
	var b strings.Builder
	for _, r := range rows {
		var line strings.Builder
		for i, cell := range r {
			line.WriteString(cell)
			if i < len(r)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)))
				line.WriteString(columnGap)
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
	return b.String()
}

// PrintAnswer writes an answer: one field of it, or all, or as a table of keys and values. Warnings go to the side.
func (a *Session) PrintAnswer(answer *client.Response, field string) error {
	if field != "" {
		return a.printField(answer, field)
	}
	a.Warn(answer)
	return a.Print(answer, func() error { return a.Pairs(AnswerRows(answer)) })
}

// Warn tells people what the server wants to be known besides. Who asked for JSON or YAML has the warnings in it.
func (a *Session) Warn(answer *client.Response) {
	if len(answer.Warnings) == 0 || !a.ForPeople() {
		return
	}
	a.Complain("WARNING! The server has this to say:\n")
	for _, warning := range answer.Warnings {
		a.Complain("  * %s\n", Printable(warning))
	}
}

// Pairs writes a table of keys and values.
func (a *Session) Pairs(rows []Row) error {
	return a.Table(Row{"Key", "Value"}, rows)
}

// AnswerRows are lease, token and wrapping of an answer, then its data.
func AnswerRows(answer *client.Response) []Row {
	var rows []Row
	add := func(key, value string) { rows = append(rows, Row{key, value}) }
	if answer.LeaseDuration > 0 {
		if answer.LeaseID != "" {
			add("lease_id", answer.LeaseID)
			add("lease_duration", Seconds(answer.LeaseDuration))
			add("lease_renewable", strconv.FormatBool(answer.Renewable))
		} else {
			add("refresh_interval", Seconds(answer.LeaseDuration))
		}
	}
	if auth := answer.Auth; auth != nil {
		add("token", auth.ClientToken)
		add("token_accessor", auth.Accessor)
		if auth.LeaseDuration == 0 {
			add("token_duration", "∞")
		} else {
			add("token_duration", Seconds(auth.LeaseDuration))
		}
		add("token_renewable", strconv.FormatBool(auth.Renewable))
		add("token_policies", quoted(auth.TokenPolicies))
		add("identity_policies", quoted(auth.IdentityPolicies))
		add("policies", quoted(auth.Policies))
		for _, key := range slices.Sorted(maps.Keys(auth.Metadata)) {
			add("token_meta_"+key, Cell("", auth.Metadata[key]))
		}
	}
	if wrap := answer.WrapInfo; wrap != nil {
		add("wrapping_token:", wrap.Token)
		add("wrapping_accessor:", wrap.Accessor)
		add("wrapping_token_ttl:", Seconds(wrap.TTL))
		add("wrapping_token_creation_time:", wrap.CreationTime)
		add("wrapping_token_creation_path:", wrap.CreationPath)
		if wrap.WrappedAccessor != "" {
			add("wrapped_accessor:", wrap.WrappedAccessor)
		}
	}
	return append(rows, DataRows(answer.Data)...)
}

// DataRows are an answer's data, by key.
func DataRows(data map[string]any) []Row {
	var rows []Row
	for _, key := range slices.Sorted(maps.Keys(data)) {
		rows = append(rows, Row{PrintableLine(key), Cell(key, data[key])})
	}
	return rows
}

// Seconds writes a duration of so many seconds as people read it: "768h", "1h30m", "15s".
func Seconds(n int64) string {
	d := time.Duration(n) * time.Second
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

func quoted(list []string) string {
	quotes := make([]string, len(list))
	for i, s := range list {
		quotes[i] = strconv.Quote(s)
	}
	return "[" + strings.Join(quotes, " ") + "]"
}

// Cell writes one value for people. Keys that name durations show them as such.
func Cell(key string, value any) string {
	if isDuration(key) {
		if n, ok := value.(json.Number); ok {
			if whole, err := n.Int64(); err == nil {
				return Seconds(whole)
			}
		}
	}
	if value == "" {
		return "n/a"
	}
	return Plain(value)
}

// Plain writes a value as Vault's command line does, which is Go's way: [a b], map[k:v], <nil>.
func Plain(value any) string { return Printable(fmt.Sprint(value)) }

func isDuration(key string) bool {
	for _, name := range []string{"ttl", "period", "duration"} {
		if key == name || strings.HasSuffix(key, "_"+name) {
			return true
		}
	}
	return key == "lease_max" || key == "ttl_max"
}

// Compact writes a value as JSON on one line.
func Compact(value any) (string, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(value)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// printField writes one field and nothing else, and no newline either unless a person is looking.
func (a *Session) printField(answer *client.Response, field string) error {
	value, ok := answerField(answer, field)
	if !ok {
		return &fieldMissing{field}
	}
	return a.PrintValue(value)
}

func answerField(answer *client.Response, field string) (any, bool) {
	if value, ok := answer.Data[field]; ok {
		return value, true
	}
	if auth := answer.Auth; auth != nil {
		if value, ok := map[string]any{
			"token": auth.ClientToken, "token_accessor": auth.Accessor, "token_duration": auth.LeaseDuration,
			"token_renewable": auth.Renewable, "token_policies": auth.TokenPolicies,
			"identity_policies": auth.IdentityPolicies, "policies": auth.Policies, "entity_id": auth.EntityID,
		}[field]; ok {
			return value, true
		}
		if key, ok := strings.CutPrefix(field, "token_meta_"); ok {
			value, ok := auth.Metadata[key]
			return value, ok
		}
	}
	if wrap := answer.WrapInfo; wrap != nil {
		if value, ok := map[string]any{
			"wrapping_token": wrap.Token, "wrapping_accessor": wrap.Accessor, "wrapping_token_ttl": wrap.TTL,
			"wrapping_token_creation_time": wrap.CreationTime, "wrapping_token_creation_path": wrap.CreationPath,
			"wrapped_accessor": wrap.WrappedAccessor,
		}[field]; ok {
			return value, true
		}
	}
	value, ok := map[string]any{
		"lease_id": answer.LeaseID, "lease_duration": answer.LeaseDuration, "lease_renewable": answer.Renewable,
		"refresh_interval": answer.LeaseDuration, "request_id": answer.RequestID, "data": answer.Data,
		"warnings": answer.Warnings,
	}[field]
	return value, ok
}

// PrintValue writes one value and nothing else, and no newline either unless a person is looking.
func (a *Session) PrintValue(value any) error {
	f, err := a.Format()
	if err != nil {
		return err
	}
	text := fmt.Sprint(value)
	if f != FormTable && f != FormRaw {
		var b []byte
		if b, err = marshal(value); err == nil && f == FormYAML {
			b, err = Yaml(b)
		}
		if err != nil {
			return err
		}
		text = strings.TrimSuffix(string(b), "\n")
	}
	if a.Terminal {
		text += "\n"
	}
	_, err = a.Out.Write([]byte(text))
	return err
}

// PrintKeys writes the keys of a list, and if detailed what the server tells of each.
func (a *Session) PrintKeys(answer *client.Response, detailed bool) error {
	if answer.WrapInfo != nil {
		return a.PrintAnswer(answer, "")
	}
	a.Warn(answer)
	keys := slices.Sorted(slices.Values(answer.Keys()))
	about, _ := answer.Data["key_info"].(map[string]any)
	if !detailed {
		about = nil
	}
	var value any = keys
	if detailed {
		value = answer
	}
	return a.Print(value, func() error {
		seen := map[string]bool{}
		for _, key := range keys {
			of, _ := about[key].(map[string]any)
			for name := range of {
				seen[name] = true
			}
		}
		columns := slices.Sorted(maps.Keys(seen))
		rows := make([]Row, len(keys))
		for i, key := range keys {
			rows[i] = Row{PrintableLine(key)}
			of, _ := about[key].(map[string]any)
			for _, column := range columns {
				text := "n/a"
				if value, ok := of[column]; ok {
					text = PrintableLine(Cell(column, value))
				}
				rows[i] = append(rows[i], text)
			}
		}
		return a.Table(append(Row{"Keys"}, columns...), rows)
	})
}

// PrintNoKeys is what a list of nothing answers to who asked for JSON or YAML; for people err says it.
func (a *Session) PrintNoKeys(err error) error {
	if _, missing := errors.AsType[*nothingThere](err); !missing || a.ForPeople() {
		return err
	}
	if err := a.Print(map[string]any{}, func() error { return nil }); err != nil {
		return err
	}
	return ExitCode(ExitRemote)
}

// Banner is a heading in the middle of a line of equals signs, about as wide as what is below it.
func Banner(title string, width int) string {
	signs := max(width-len(title)-2, 4)
	side := strings.Repeat("=", (signs+1)/2)
	return side + " " + title + " " + side
}

// Section writes a banner and a table of keys and values below it.
func (a *Session) Section(title string, rows []Row) error {
	width := 0
	for _, r := range rows {
		width = max(width, len(r[0]))
	}
	if _, err := fmt.Fprintln(a.Out, Banner(title, width+len(columnGap)+len("Value"))); err != nil {
		return err
	}
	return a.Pairs(rows)
}

// Moment writes a time to the second; - for none.
func Moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}
