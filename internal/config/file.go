package config

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/json"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// Parse reads configuration files: HCL, or JSON if the name ends in .json or the text begins with "{". A folder stands
// for its *.hcl and *.json files, sorted. Together they are one configuration, in which nothing but listener may be set twice;
// what they leave out has its default. The error says all that is wrong, a line "FILE:LINE: …" each.
func Parse(files ...string) (Config, error) {
	c := defaults()
	if err := c.read(files); err != nil {
		return Config{}, err
	}
	if err := c.complete(system()); err != nil {
		return Config{}, err
	}
	return c, c.Validate()
}

func (c *Config) read(files []string) error { return c.readAs(files, nil) }

func (c *Config) readAs(files []string, between *ends) error {
	files, err := expand(files)
	if err != nil {
		return err
	}
	d := decoder{config: c, places: map[string]string{}, ends: between}
	for _, file := range files {
		src, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("cannot read the configuration: %w", err)
		}
		d.file(file, src)
	}
	d.lockoutTerms()
	return errors.Join(d.wrong...)
}

// expand replaces folders by the configuration files in them.
func expand(files []string) ([]string, error) {
	var all []string
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			return nil, fmt.Errorf("cannot read the configuration: %w", err)
		}
		if !info.IsDir() {
			all = append(all, file)
			continue
		}
		entries, err := os.ReadDir(file)
		if err != nil {
			return nil, fmt.Errorf("cannot read the configuration: %w", err)
		}
		found := false
		for _, e := range entries {
			if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".hcl" || ext == ".json") {
				all, found = append(all, filepath.Join(file, e.Name())), true
			}
		}
		if !found {
			return nil, fmt.Errorf("the configuration folder %s has no *.hcl or *.json file", file)
		}
	}
	return all, nil
}

// decoder reads files into a configuration and collects what is wrong with them.
type decoder struct {
	config *Config
	places map[string]string // where each setting was set
	wrong  []error

	lockouts []said
	ends     *ends // what a move is between; nil: this is a server's configuration
}

// setting takes over an attribute's value. Its error continues "NAME " and never repeats the value.
type setting func(cty.Value) error

func (d *decoder) file(name string, src []byte) {
	parse := func() (*hcl.File, hcl.Diagnostics) { return hclsyntax.ParseConfig(src, name, hcl.InitialPos) }
	if filepath.Ext(name) == ".json" || bytes.HasPrefix(bytes.TrimSpace(src), []byte("{")) {
		parse = func() (*hcl.File, hcl.Diagnostics) { return json.Parse(src, name) }
	}
	file, diags := parse()
	if d.diagnose(diags) {
		return
	}
	c := d.config
	blocks := d.body(file.Body, "", map[string]setting{
		"allow_audit_log_prefixing": boolean(&c.Audit.AllowPrefix),
		"api_addr":                  text(&c.APIAddr),
		"cluster_addr":              text(&c.ClusterAddr),
		"cluster_name":              text(&c.ClusterName),
		"default_lease_ttl":         duration(&c.DefaultLeaseTTL),
		"disable_mlock":             boolean(new(bool)),
		"drain_delay":               duration(&c.DrainDelay),
		"log_format":                parsed(&c.LogJSON, parseLogFormat),
		"log_level":                 parsed(&c.LogLevel, parseLogLevel),
		"max_lease_ttl":             duration(&c.MaxLeaseTTL),
		"node_name":                 text(&c.NodeName),
		"pid_file":                  text(&c.PIDFile),
		"reported_version":          text(&c.ReportedVersion),
		"require_owner":             boolean(&c.RequireOwner),
		"rotator_directory":         text(&c.RotatorDirectory),
		"rotator_hosts":             words(&c.RotatorHosts),
		"rotator_same_user":         boolean(&c.RotatorSameUser),
		"ui":                        boolean(&c.UI),
	}, append([]hcl.BlockHeaderSchema{
		{Type: "audit"},
		{Type: "backup"},
		{Type: "listener", LabelNames: []string{"type"}},
		{Type: "seal", LabelNames: []string{"type"}},
		{Type: "telemetry"},
		{Type: "user_lockout", LabelNames: []string{"type"}},
	}, d.storages()...))
	for _, b := range blocks {
		d.block(b)
	}
}

func (d *decoder) block(b *hcl.Block) {
	c := d.config
	switch b.Type {
	case "audit":
		d.once("audit", b.DefRange)
		d.body(b.Body, "audit", map[string]setting{
			"exporter_patience": duration(&c.Audit.Patience),
			"retention":         duration(&c.Audit.Retention),
		}, nil)
	case "backup":
		d.once("backup", b.DefRange)
		c.Backup = Backup{Interval: time.Minute, Full: day, Keep: 30 * day}
		d.body(b.Body, "backup", map[string]setting{
			"destination": text(&c.Backup.Destination),
			"full":        duration(&c.Backup.Full),
			"interval":    duration(&c.Backup.Interval),
			"keep":        duration(&c.Backup.Keep),
		}, nil)
		if c.Backup.Destination == "" {
			d.complain(b.DefRange, "backup needs a destination")
		}
	case "seal":
		d.seal(b)
	case "storage":
		d.once("storage", b.DefRange)
		d.storage(b, &c.Storage)
	case "storage_source":
		d.once(b.Type, b.DefRange)
		d.storage(b, &d.ends.source)
	case "storage_destination":
		d.once(b.Type, b.DefRange)
		d.storage(b, &d.ends.destination)
	case "listener":
		if b.Labels[0] != "tcp" {
			d.complain(b.DefRange, "unknown listener %q: use %q", b.Labels[0], "tcp")
			return
		}
		d.listener(b)
	case "user_lockout":
		d.lockoutBlock(b)
	case "telemetry": // Vault's sinks; lessor's metrics need no setting
	}
}

// seal reads one of the stanzas that unseal the store, each in its own way.
func (d *decoder) seal(b *hcl.Block) {
	s := &d.config.Seal
	where := "seal " + strconv.Quote(b.Labels[0])
	settings := map[string]setting{"anchor": text(&s.Anchor)}
	switch b.Labels[0] {
	case "keyfile":
		settings["path"] = text(&s.KeyFile)
	case "recovery":
		settings = map[string]setting{"path": text(&s.Recovery.Path), "passphrase_file": text(&s.Recovery.PassphraseFile)}
	case "shamir":
		s.Shamir = true
	default:
		d.complain(b.DefRange, "unknown seal %q: use %q, %q or %q", b.Labels[0], "keyfile", "recovery", "shamir")
		return
	}
	d.once(where, b.DefRange)
	before := s.Anchor
	s.Anchor = ""
	d.body(b.Body, where, settings, nil)
	if before != "" && s.Anchor != "" {
		d.complain(b.DefRange, "the anchor was set before")
	}
	s.Anchor = cmp.Or(s.Anchor, before)
	switch {
	case b.Labels[0] == "keyfile" && s.KeyFile == "", b.Labels[0] == "recovery" && s.Recovery.Path == "":
		d.complain(b.DefRange, "%s needs a path", where)
	}
}

func (d *decoder) storage(b *hcl.Block, s *Storage) {
	settings := map[string]setting{}
	switch t := b.Labels[0]; t {
	case "pebble":
		s.Type = Pebble
		settings["path"] = text(&s.Path)
	case "postgresql":
		s.Type = PostgreSQL
		settings["connection_url"] = secret(&s.ConnectionURL)
		settings["max_parallel"] = parsed(&s.Connections, parseConnections)
		settings["ha_enabled"] = parsed(new(bool), func(text string) (bool, error) {
			if on, err := strconv.ParseBool(text); err != nil || !on {
				return false, errors.New("cannot be off: all nodes on one database are one cluster, and all serve")
			}
			return true, nil
		})
		for name, why := range senseless {
			settings[name] = func(cty.Value) error { return errors.New(why) }
		}
	case "mem", "inmem":
		s.Type = Mem
	default:
		d.complain(b.DefRange, "unknown storage %q: use %q, %q or %q", t, Pebble, PostgreSQL, Mem)
		return
	}
	d.body(b.Body, b.Type, settings, nil)
}

// senseless are settings that Vault has for PostgreSQL and that mean nothing here, with what to do instead.
var senseless = map[string]string{
	"table":                "cannot be chosen: lessor's tables are in the schema lessor of the database; leave it out",
	"ha_table":             "cannot be chosen: nodes need no lock of their own; leave it out",
	"skip_create_table":    "is not needed: make the schema lessor in advance, owned by lessor's role, if that may not create schemas; leave it out",
	"max_idle_connections": "cannot be chosen: connections are kept while they are of use, and max_parallel bounds them; leave it out",
	"max_connect_retries":  "cannot be chosen: a database that is away is tried again until it is back; leave it out",
	"auth_mode":            "is not known: log in by password, or by certificate (sslcert and sslkey in connection_url); leave it out",
}

// parseConnections reads how many connections a node may have.
func parseConnections(text string) (int, error) {
	const least, most = 8, 1000
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("must be a number of connections from %d to %d", least, most)
	}
	return n, nil
}

func (d *decoder) listener(b *hcl.Block) {
	l := Listener{Address: defaultAddress, MinVersion: tls.VersionTLS12}
	var plain bool
	d.body(b.Body, fmt.Sprintf("listener %d", len(d.config.Listeners)+1), map[string]setting{
		"address":                            text(&l.Address),
		"allow_plaintext_off_loopback":       boolean(&l.AllowPlaintext),
		"cluster_address":                    text(new(string)),
		"tls_cert_file":                      text(&l.CertFile),
		"tls_client_ca_file":                 text(&l.ClientCAFile),
		"tls_disable":                        boolean(&plain),
		"tls_disable_client_certs":           boolean(&l.IgnoreClients),
		"tls_key_file":                       text(&l.KeyFile),
		"tls_min_version":                    parsed(&l.MinVersion, parseTLSVersion),
		"tls_require_and_verify_client_cert": boolean(&l.RequireClients),
		"x_forwarded_for_authorized_addrs":   prefixes(&l.TrustedProxies),
	}, nil)
	l.TLS = !plain
	d.config.Listeners = append(d.config.Listeners, l)
}

// body applies the attributes of a stanza (where; "" is the top level) and returns the blocks within.
func (d *decoder) body(body hcl.Body, where string, settings map[string]setting, blocks []hcl.BlockHeaderSchema) hcl.Blocks {
	schema := &hcl.BodySchema{Blocks: blocks}
	for name := range settings {
		schema.Attributes = append(schema.Attributes, hcl.AttributeSchema{Name: name})
	}
	slices.SortFunc(schema.Attributes, func(a, b hcl.AttributeSchema) int { return strings.Compare(a.Name, b.Name) })
	content, diags := body.Content(schema)
	d.diagnose(diags)
	if content == nil {
		return nil
	}
	for _, known := range schema.Attributes {
		a := content.Attributes[known.Name]
		if a == nil {
			continue
		}
		d.once(strings.TrimSpace(where+" "+a.Name), a.NameRange)
		if !literal(a.Expr) {
			d.complain(a.NameRange, "%s must be written out: a configuration computes nothing", a.Name)
			continue
		}
		value, diags := a.Expr.Value(nil)
		if d.diagnose(diags) {
			continue
		}
		if value.IsNull() || !value.IsWhollyKnown() {
			d.complain(a.NameRange, "%s has no value", a.Name)
		} else if err := settings[a.Name](value); err != nil {
			d.complain(a.NameRange, "%s %v", a.Name, err)
		}
	}
	return content.Blocks
}

// once complains about what is set a second time.
func (d *decoder) once(what string, r hcl.Range) {
	if first, ok := d.places[what]; ok {
		d.complain(r, "%s was set before, at %s", what, first)
		return
	}
	d.places[what] = fmt.Sprintf("%s:%d", r.Filename, r.Start.Line)
}

func (d *decoder) complain(r hcl.Range, format string, args ...any) {
	d.wrong = append(d.wrong, fmt.Errorf("%s:%d: %s", r.Filename, r.Start.Line, fmt.Sprintf(format, args...)))
}

// diagnose takes over HCL's complaints and says whether there were any.
func (d *decoder) diagnose(diags hcl.Diagnostics) bool {
	for _, diag := range diags {
		if diag.Severity != hcl.DiagError {
			continue
		}
		r := hcl.Range{Filename: "configuration"}
		if diag.Subject != nil {
			r = *diag.Subject
		}
		d.complain(r, "%s", strings.TrimSuffix(diag.Summary, ".")+": "+diag.Detail)
	}
	return diags.HasErrors()
}

// literal says whether e is a value as it stands: no variable, function, operator or template. All of JSON is.
func literal(e hcl.Expression) bool {
	notLiteral := func(e hclsyntax.Expression) bool { return !literal(e) }
	notText := func(e hclsyntax.Expression) bool {
		l, ok := e.(*hclsyntax.LiteralValueExpr)
		return !ok || l.Val.Type() != cty.String
	}
	switch e := e.(type) {
	case *hclsyntax.LiteralValueExpr:
		return true
	case *hclsyntax.UnaryOpExpr:
		return literal(e.Val)
	case *hclsyntax.TemplateExpr:
		return !slices.ContainsFunc(e.Parts, notText)
	case *hclsyntax.TupleConsExpr:
		return !slices.ContainsFunc(e.Exprs, notLiteral)
	case hclsyntax.Expression:
		return false
	}
	return true
}

// modest says whether writing out the number v takes no more than a line.
func modest(v cty.Value) bool {
	f := v.AsBigFloat()
	exp := f.MantExp(nil)
	return !f.IsInf() && -64 <= exp && exp <= 64
}

// text accepts a string, or a number or boolean as it would be written.
func text(to *string) setting {
	return func(v cty.Value) error {
		if v.Type() == cty.Number && !modest(v) {
			return errors.New("is no number of a sensible size")
		}
		v, err := convert.Convert(v, cty.String)
		if err != nil {
			return errors.New("must be a string")
		}
		*to = v.AsString()
		return nil
	}
}

func secret(to *lessor.Secret) setting {
	return func(v cty.Value) error {
		var s string
		if err := text(&s)(v); err != nil {
			return err
		}
		*to = lessor.NewSecret(s)
		return nil
	}
}

func parsed[T any](to *T, parse func(string) (T, error)) setting {
	return func(v cty.Value) error {
		var s string
		err := text(&s)(v)
		if err != nil {
			return err
		}
		*to, err = parse(s)
		return err
	}
}

// boolean accepts true, 1, "true", "1" and their opposites, as Vault's configurations have them.
func boolean(to *bool) setting {
	return parsed(to, func(s string) (bool, error) {
		switch s {
		case "true", "1":
			return true, nil
		case "false", "0":
			return false, nil
		}
		return false, errors.New("must be true or false")
	})
}

func duration(to *time.Duration) setting { return parsed(to, parseDuration) }

// words accepts a list of strings, or one with commas in between.
func words(to *[]string) setting {
	return func(v cty.Value) error {
		wrong := errors.New("must be a list of strings")
		var items []string
		if t := v.Type(); t.IsTupleType() || t.IsListType() || t.IsSetType() {
			for _, e := range v.AsValueSlice() {
				var item string
				if e.IsNull() || text(&item)(e) != nil {
					return wrong
				}
				items = append(items, item)
			}
		} else {
			var list string
			if text(&list)(v) != nil {
				return wrong
			}
			items = strings.Split(list, ",")
		}
		for i := range items {
			items[i] = strings.TrimSpace(items[i])
		}
		*to = items
		return nil
	}
}

// prefixes accepts addresses and CIDR prefixes as words does.
func prefixes(to *[]netip.Prefix) setting {
	return func(v cty.Value) error {
		wrong := errors.New(`must be a list of addresses or prefixes, such as ["10.0.0.0/8"]`)
		var items []string
		if words(&items)(v) != nil {
			return wrong
		}
		var all []netip.Prefix
		for _, item := range items {
			p, err := netip.ParsePrefix(item)
			if addr, notAddr := netip.ParseAddr(item); notAddr == nil && addr.Zone() == "" {
				p, err = addr.Prefix(addr.BitLen())
			}
			if err != nil {
				return wrong
			}
			all = append(all, p.Masked())
		}
		*to = all
		return nil
	}
}

const day = 24 * time.Hour

// maxDays keeps durations far from overflow: a hundred years.
const maxDays = 36525

// parseDuration reads "3600" (seconds), "90m", "1h30m", "400d", "1d12h".
func parseDuration(s string) (time.Duration, error) {
	wrong := errors.New(`must be a duration, such as 3600, "90m" or "30d"`)
	s = strings.TrimSpace(s)
	if seconds, err := strconv.ParseInt(s, 10, 64); err == nil {
		if seconds < 0 || seconds > maxDays*int64(day/time.Second) {
			return 0, wrong
		}
		return time.Duration(seconds) * time.Second, nil
	}
	var total time.Duration
	if days, rest, ok := strings.Cut(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 32)
		if err != nil || n > maxDays {
			return 0, wrong
		}
		total, s = time.Duration(n)*day, rest
		if s == "" {
			return total, nil
		}
	}
	rest, err := time.ParseDuration(s)
	if err != nil || rest < 0 || rest > maxDays*day {
		return 0, wrong
	}
	return total + rest, nil
}

func parseLogLevel(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "trace":
		return LevelTrace, nil
	case "debug":
		return slog.LevelDebug, nil
	case "info", "notice":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error", "err":
		return slog.LevelError, nil
	}
	return 0, errors.New("must be trace, debug, info, warn or error")
}

// parseLogFormat says whether logs are JSON.
func parseLogFormat(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "json":
		return true, nil
	case "standard", "text":
		return false, nil
	}
	return false, errors.New("must be standard or json")
}

func parseTLSVersion(s string) (uint16, error) {
	switch s {
	case "tls12":
		return tls.VersionTLS12, nil
	case "tls13":
		return tls.VersionTLS13, nil
	}
	return 0, errors.New("must be tls12 or tls13")
}
