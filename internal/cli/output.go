package cli

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

// form is how output is written.
type form string

const (
	formTable form = "table"
	formJSON  form = "json"
	formYAML  form = "yaml"
	formRaw   form = "raw" // the answer's bytes as they came: only read has them
)

// format is the form that flag or environment ask for.
func (a *app) format() (form, error) {
	text := a.flags.format
	if text == "" {
		text = a.env.Setting("FORMAT")
	}
	switch f := form(strings.ToLower(text)); f {
	case "", "pretty": // Vault's users have it for one command, which lessor does not have
		return formTable, nil
	case "yml":
		return formYAML, nil
	case formTable, formJSON, formYAML, formRaw:
		return f, nil
	}
	return "", errors.New("the format must be table, json, yaml or raw (-format, LESSOR_FORMAT, VAULT_FORMAT)")
}

// forPeople reports whether output is a table, which nobody parses without care: only then are there words beside it.
func (a *app) forPeople() bool {
	f, err := a.format()
	return err == nil && f == formTable
}

// print writes value as JSON or YAML, or calls table to write it for people.
func (a *app) print(value any, table func() error) error {
	f, err := a.format()
	if err != nil {
		return err
	}
	switch f {
	case formTable:
		return table()
	case formRaw:
		return errors.New("-format=raw is for lessor read only: use table, json or yaml")
	}
	text, err := marshal(value)
	if err != nil {
		return err
	}
	if f == formYAML {
		if text, err = yaml(text); err != nil {
			return err
		}
	}
	_, err = a.out.Write(text)
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

// row is one line of a table.
type row []string

// table writes rows in aligned columns, four spaces apart, below their headings.
func (a *app) table(headings row, rows []row) error {
	rules := make(row, len(headings))
	for i, heading := range headings {
		rules[i] = strings.Repeat("-", len(heading))
	}
	_, err := a.out.Write([]byte(align(append([]row{headings, rules}, rows...))))
	return err
}

const columnGap = "    "

// align pads all columns but the last of each row. A cell of several lines keeps its lines.
func align(rows []row) string {
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

// printAnswer writes an answer: one field of it, or all, or as a table of keys and values. Warnings go to the side.
func (a *app) printAnswer(answer *client.Response, field string) error {
	if field != "" {
		return a.printField(answer, field)
	}
	a.warn(answer)
	return a.print(answer, func() error { return a.pairs(answerRows(answer)) })
}

// warn tells people what the server wants to be known besides. Who asked for JSON or YAML has the warnings in it.
func (a *app) warn(answer *client.Response) {
	if len(answer.Warnings) == 0 || !a.forPeople() {
		return
	}
	a.complain("WARNING! The server has this to say:\n")
	for _, warning := range answer.Warnings {
		a.complain("  * %s\n", printable(warning))
	}
}

// pairs writes a table of keys and values.
func (a *app) pairs(rows []row) error {
	return a.table(row{"Key", "Value"}, rows)
}

// answerRows are lease, token and wrapping of an answer, then its data.
func answerRows(answer *client.Response) []row {
	var rows []row
	add := func(key, value string) { rows = append(rows, row{key, value}) }
	if answer.LeaseDuration > 0 {
		if answer.LeaseID != "" {
			add("lease_id", answer.LeaseID)
			add("lease_duration", seconds(answer.LeaseDuration))
			add("lease_renewable", strconv.FormatBool(answer.Renewable))
		} else {
			add("refresh_interval", seconds(answer.LeaseDuration))
		}
	}
	if auth := answer.Auth; auth != nil {
		add("token", auth.ClientToken)
		add("token_accessor", auth.Accessor)
		if auth.LeaseDuration == 0 {
			add("token_duration", "∞")
		} else {
			add("token_duration", seconds(auth.LeaseDuration))
		}
		add("token_renewable", strconv.FormatBool(auth.Renewable))
		add("token_policies", quoted(auth.TokenPolicies))
		add("identity_policies", quoted(auth.IdentityPolicies))
		add("policies", quoted(auth.Policies))
		for _, key := range slices.Sorted(maps.Keys(auth.Metadata)) {
			add("token_meta_"+key, cell("", auth.Metadata[key]))
		}
	}
	if wrap := answer.WrapInfo; wrap != nil {
		add("wrapping_token:", wrap.Token)
		add("wrapping_accessor:", wrap.Accessor)
		add("wrapping_token_ttl:", seconds(wrap.TTL))
		add("wrapping_token_creation_time:", wrap.CreationTime)
		add("wrapping_token_creation_path:", wrap.CreationPath)
		if wrap.WrappedAccessor != "" {
			add("wrapped_accessor:", wrap.WrappedAccessor)
		}
	}
	return append(rows, dataRows(answer.Data)...)
}

func dataRows(data map[string]any) []row {
	var rows []row
	for _, key := range slices.Sorted(maps.Keys(data)) {
		rows = append(rows, row{printableLine(key), cell(key, data[key])})
	}
	return rows
}

// seconds writes a duration of so many seconds as people read it: "768h", "1h30m", "15s".
func seconds(n int64) string {
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

// cell writes one value for people. Keys that name durations show them as such.
func cell(key string, value any) string {
	if isDuration(key) {
		if n, ok := value.(json.Number); ok {
			if whole, err := n.Int64(); err == nil {
				return seconds(whole)
			}
		}
	}
	if value == "" {
		return "n/a"
	}
	return plain(value)
}

// plain writes a value as Vault's command line does, which is Go's way: [a b], map[k:v], <nil>.
func plain(value any) string { return printable(fmt.Sprint(value)) }

func isDuration(key string) bool {
	for _, name := range []string{"ttl", "period", "duration"} {
		if key == name || strings.HasSuffix(key, "_"+name) {
			return true
		}
	}
	return key == "lease_max" || key == "ttl_max"
}

func compact(value any) (string, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(value)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// printField writes one field and nothing else, and no newline either unless a person is looking.
func (a *app) printField(answer *client.Response, field string) error {
	value, ok := answerField(answer, field)
	if !ok {
		return &fieldMissing{field}
	}
	return a.printValue(value)
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

func (a *app) printValue(value any) error {
	f, err := a.format()
	if err != nil {
		return err
	}
	text := fmt.Sprint(value)
	if f != formTable && f != formRaw {
		var b []byte
		if b, err = marshal(value); err == nil && f == formYAML {
			b, err = yaml(b)
		}
		if err != nil {
			return err
		}
		text = strings.TrimSuffix(string(b), "\n")
	}
	if a.terminal {
		text += "\n"
	}
	_, err = a.out.Write([]byte(text))
	return err
}

// printKeys writes the keys of a list, and if detailed what the server tells of each.
func (a *app) printKeys(answer *client.Response, detailed bool) error {
	if answer.WrapInfo != nil {
		return a.printAnswer(answer, "")
	}
	a.warn(answer)
	keys := slices.Sorted(slices.Values(answer.Keys()))
	about, _ := answer.Data["key_info"].(map[string]any)
	if !detailed {
		about = nil
	}
	var value any = keys
	if detailed {
		value = answer
	}
	return a.print(value, func() error {
		seen := map[string]bool{}
		for _, key := range keys {
			of, _ := about[key].(map[string]any)
			for name := range of {
				seen[name] = true
			}
		}
		columns := slices.Sorted(maps.Keys(seen))
		rows := make([]row, len(keys))
		for i, key := range keys {
			rows[i] = row{printableLine(key)}
			of, _ := about[key].(map[string]any)
			for _, column := range columns {
				text := "n/a"
				if value, ok := of[column]; ok {
					text = printableLine(cell(column, value))
				}
				rows[i] = append(rows[i], text)
			}
		}
		return a.table(append(row{"Keys"}, columns...), rows)
	})
}

// printNoKeys is what a list of nothing answers to who asked for JSON or YAML; for people err says it.
func (a *app) printNoKeys(err error) error {
	if _, missing := errors.AsType[*nothingThere](err); !missing || a.forPeople() {
		return err
	}
	if err := a.print(map[string]any{}, func() error { return nil }); err != nil {
		return err
	}
	return ExitCode(exitRemote)
}

// banner is a heading in the middle of a line of equals signs, about as wide as what is below it.
func banner(title string, width int) string {
	signs := max(width-len(title)-2, 4)
	side := strings.Repeat("=", (signs+1)/2)
	return side + " " + title + " " + side
}

// section writes a banner and a table of keys and values below it.
func (a *app) section(title string, rows []row) error {
	width := 0
	for _, r := range rows {
		width = max(width, len(r[0]))
	}
	if _, err := fmt.Fprintln(a.out, banner(title, width+len(columnGap)+len("Value"))); err != nil {
		return err
	}
	return a.pairs(rows)
}
