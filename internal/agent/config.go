package agent

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lessor-dev/lessor/client"
)

// Config is what an agent is to do.
type Config struct {
	Server       client.Config
	Auth         Auth
	Templates    []Template
	Listeners    []Listener
	Instance     string // which process of its holder the agent is, the same after a restart; empty: StateDir keeps one, or it is made up
	StateDir     string // folder that keeps what names the agent; no secret
	StatusSocket string
	PIDFile      string

	ExitAfterAuth bool
	ExitRetain    bool // leases are left to a successor when the agent ends
	Cache         bool // credentials that are read through the agent are kept there
	CacheSize     int  // bytes that they may take together
	OwnToken      bool // requests that pass through and carry no token get the agent's
	ForceToken    bool // so do those that carry one

	Notes []string // what of the configuration has no effect here, and why
}

// longestInstance leaves room for what tells further holders apart, in what a server takes.
const longestInstance = 100

// sameBut reports whether two configurations differ in their templates only.
func (c Config) sameBut(o Config) bool {
	c.Templates, o.Templates, c.Notes, o.Notes = nil, nil, nil, nil
	c.Server.Instance, o.Server.Instance = "", ""
	if o.Instance == "" {
		c.Instance = ""
	}
	return reflect.DeepEqual(c, o)
}

// Auth is how the agent logs in.
type Auth struct {
	Type  string // approle, cert, jwt, kubernetes, token_file
	Mount string // where the login is enabled: "approle"
	Role  string

	RoleID, RoleIDFile string
	File               string // of the secret id, JWT or token
	Remove             bool   // it is removed once it was read
	WrappedAt          string // what the file holds is a wrapping token, made at this path

	Sinks []Sink
}

// Sink is a file that has the agent's token.
type Sink struct {
	Path string
	Mode os.FileMode
}

// Template is a file that is to be kept.
type Template struct {
	Source      string // file of the template; empty: Contents
	Contents    string
	Destination string
	Mode        os.FileMode // 0: as the file has it, or 0600
	User, Group string      // name or number; empty: as the file has it
	Left, Right string      // delimiters
	Command     Command
	Backup      bool // the text before stays beside the file, as .bak
	MakeFolders bool
	Adopts      bool // without a command: who writes the file has the program use it
	Wait        Wait

	ErrorOnMissingKey bool
}

// Wait is how long is waited for further changes after one.
type Wait struct{ Least, Most time.Duration }

func (t Template) name() string { return t.Destination }

// adopts reports whether a file that was written, and whose program was told, is in use, and the one before is not.
func (t Template) adopts() bool { return t.Command.given() || t.Adopts }

// absent are the stanzas and settings of Vault's that are not here, and why: they would change what happens, so that they are refused.
var absent = map[string]string{
	"api_proxy enforce_consistency":               "a server of lessor's never answers with less than it has answered before",
	"api_proxy when_inconsistent":                 "a server of lessor's never answers with less than it has answered before",
	"cache persist":                               "nothing secret is on disk: after a restart the agent reads again, and ends what it had before",
	"env_template":                                "run the program by lessor run, which gives it its environment and starts it anew when that changes",
	"exec":                                        "run the program by lessor run, which gives it its environment and starts it anew when that changes",
	"telemetry":                                   "metrics are at the status socket",
	"method wrap_ttl":                             "the agent needs its token; have each reader log in by itself",
	"sink wrap_ttl":                               "who reads the sink is protected by the file's mode",
	"sink dh_type":                                "who reads the sink is protected by the file's mode",
	"sink dh_path":                                "who reads the sink is protected by the file's mode",
	"sink derive_key":                             "who reads the sink is protected by the file's mode",
	"sink aad":                                    "who reads the sink is protected by the file's mode",
	"sink aad_env_var":                            "who reads the sink is protected by the file's mode",
	"template sandbox_path":                       "the function file reads what the agent's user may read",
	"template function_denylist":                  "what templates cannot do here is listed in the documents",
	"template map_to_environment_variable":        "run the program by lessor run, which gives it its environment and starts it anew when that changes",
	"exec env":                                    "write it into the command: env NAME=value program",
	"exec kill_signal":                            "what takes longer than its timeout is killed with all that it has started",
	"exec reload_signal":                          "write reload_signal and reload_pid_file into the template",
	"exec splay":                                  "the command is run as soon as the file is written",
	"cache disable_caching_dynamic_secrets":       "leave the stanza cache out",
	"api_proxy prepend_configured_namespace":      "the namespace is named where a request names none",
	"listener agent_api":                          "an agent ends by SIGTERM",
	"listener telemetry":                          "metrics are at the status socket",
	"listener tls_min_version":                    "use a unix socket, or loopback: nobody else is let in",
	"listener tls_max_version":                    "use a unix socket, or loopback: nobody else is let in",
	"listener tls_cipher_suites":                  "use a unix socket, or loopback: nobody else is let in",
	"listener tls_client_ca_file":                 "use a unix socket with allow_users: then it is known who asks",
	"listener tls_require_and_verify_client_cert": "use a unix socket with allow_users: then it is known who asks",
	"listener tls_cert_file":                      "use a unix socket, or loopback: nobody else is let in",
	"listener tls_key_file":                       "use a unix socket, or loopback: nobody else is let in",
	"listener proxy_protocol":                     "nobody else is let in but who is on this machine",
}

// idle are settings of Vault's without an effect here, and why.
var idle = map[string]string{
	"disable_idle_connections":                              "connections are kept while they are of use",
	"disable_keep_alives":                                   "connections are kept while they are of use",
	"auto_auth enable_reauth_on_new_credentials":            "a new proof is read when the agent logs in again",
	"cache use_auto_auth_token":                             "",
	"method exit_on_err":                                    "a login that fails is tried again",
	"method min_backoff":                                    "pauses grow from half a second",
	"method max_backoff":                                    "pauses grow to a minute",
	"vault retry":                                           "what fails for now is tried again, after a growing pause",
	"template_config static_secret_render_interval":         "changes are heard of as they happen",
	"template_config max_connections_per_host":              "connections are shared",
	"template_config lease_renewal_threshold":               "leases are renewed after two thirds of their time",
	"cache when_inconsistent":                               "a server of lessor's never answers with less than it has answered before",
	"cache enforce_consistency":                             "a server of lessor's never answers with less than it has answered before",
	"listener tls_disable":                                  "",
	"cache cache_static_secrets":                            "key-value secrets are asked for each time, since they may have changed, and answered from the cache while the server is away",
	"cache static_secret_token_capability_refresh_interval": "key-value secrets are asked for each time, with the reader's token",
	"cache static_secret_token_capability_refresh_behavior": "key-value secrets are asked for each time, with the reader's token",
	"config reload":                                         "a certificate is read anew for each connection",
	"disable_mlock":                                         "what keeps secrets from being swapped out is a page that is locked, where that is allowed",
	"exec kill_timeout":                                     "what takes longer than its timeout is killed with all that it has started",
	"template error_fatal":                                  "a template that fails is tried again, and harms no other",
	"wait enabled":                                          "",
	"log_rotate_bytes":                                      "the log goes to standard error", "log_rotate_duration": "the log goes to standard error", "log_rotate_max_files": "the log goes to standard error",
	"log_level": "", "log_file": "the log goes to standard error", "log_format": "",
}

// Parse reads configurations: HCL, or JSON if a file's name ends in .json; env is the environment, of which the server's address and the like come where they are not
// configured. The error says all that is wrong, a line each.
func Parse(env client.Lookup, files ...string) (Config, error) {
	top, err := load(files)
	if err != nil {
		return Config{}, err
	}
	c := Config{}
	if c.Server, err = client.FromEnvironment(env); err != nil {
		return c, err
	}
	c.Server.Token = client.Token{}
	c.Server.WrapTTL = 0
	top.text("pid_file", &c.PIDFile)
	top.boolean("exit_after_auth", &c.ExitAfterAuth)
	top.boolean("exit_retain", &c.ExitRetain)
	c.Instance = c.Server.Instance
	top.text("instance", &c.Instance)
	if len(c.Instance) > longestInstance {
		top.complain("instance has %d bytes at most", longestInstance)
	}
	top.text("state_dir", &c.StateDir)
	top.text("status_socket", &c.StatusSocket)
	for _, s := range top.stanzas("vault") {
		c.vault(s)
	}
	auths := top.stanzas("auto_auth")
	if len(auths) != 1 {
		top.complain("there must be one stanza auto_auth, which says how the agent logs in")
	}
	for _, s := range auths {
		c.auth(s)
	}
	for _, s := range top.stanzas("template_config") {
		exit := false
		s.boolean("exit_on_retry_failure", &exit)
		if exit {
			s.complain("exit_on_retry_failure cannot be on: a template that fails is tried again, and harms no other")
		}
	}
	for _, s := range top.stanzas("template") {
		c.Templates = append(c.Templates, readTemplate(s))
	}
	for _, s := range top.stanzas("cache") {
		c.Cache, c.CacheSize = true, cacheSize
		size := ""
		if s.text("max_size", &size); size != "" {
			n, err := strconv.Atoi(size)
			if err != nil || n < 1 {
				s.complain("max_size is a number of bytes, 1 or more")
			}
			c.CacheSize = n
		}
		c.token(s)
	}
	for _, s := range top.stanzas("api_proxy") {
		c.token(s)
	}
	for _, s := range top.stanzas("listener") {
		if l, ok := listener(s); ok {
			c.Listeners = append(c.Listeners, l)
		}
	}
	places := map[string]bool{}
	for _, t := range c.Templates {
		if places[t.Destination] {
			top.complain("two templates have the destination %s", t.Destination)
		}
		places[t.Destination] = true
	}
	c.Notes = top.leftover()
	if c.Instance == "" && c.StateDir == "" {
		c.Notes = append(c.Notes, "neither instance nor state_dir is set: after a restart, credentials of the process before end by themselves only")
	}
	return c, errors.Join(*top.wrong...)
}

func (c *Config) vault(s *stanza) {
	t := &c.Server.TLS
	for name, to := range map[string]*string{
		"address": &c.Server.Address, "ca_cert": &t.CACert, "ca_path": &t.CAPath, "client_cert": &t.ClientCert, "client_key": &t.ClientKey,
		"tls_server_name": &t.ServerName, "namespace": &c.Server.Namespace,
	} {
		s.text(name, to)
	}
	s.boolean("tls_skip_verify", &t.SkipVerify)
}

// token is whether what passes through gets the agent's token: true, false or "force".
func (c *Config) token(s *stanza) {
	text := ""
	s.text("use_auto_auth_token", &text)
	switch text {
	case "", "false":
	case "true":
		c.OwnToken = true
	case "force":
		c.OwnToken, c.ForceToken = true, true
	default:
		s.complain(`use_auto_auth_token is true, false or "force"`)
	}
}

func (c *Config) auth(s *stanza) {
	methods := s.stanzas("method")
	if len(methods) != 1 {
		s.complain("auto_auth needs one method")
		return
	}
	m := methods[0]
	a := Auth{Type: m.label}
	m.text("type", &a.Type)
	a.Mount = a.Type
	m.text("mount_path", &a.Mount)
	a.Mount = strings.TrimPrefix(strings.Trim(a.Mount, "/"), "auth/")
	m.text("namespace", &c.Server.Namespace)
	config := m
	if all := m.stanzas("config"); len(all) == 1 {
		config = all[0]
	}
	switch a.Type {
	case "approle":
		a.Remove = true
		config.text("role_id", &a.RoleID)
		config.text("role_id_file_path", &a.RoleIDFile)
		config.text("secret_id_file_path", &a.File)
		config.boolean("remove_secret_id_file_after_reading", &a.Remove)
		config.text("secret_id_response_wrapping_path", &a.WrappedAt)
		if (a.RoleID == "") == (a.RoleIDFile == "") {
			m.complain("approle needs a role_id_file_path")
		}
	case "cert":
		t := &c.Server.TLS
		config.text("name", &a.Role)
		config.text("ca_cert", &t.CACert)
		config.text("client_cert", &t.ClientCert)
		config.text("client_key", &t.ClientKey)
		if t.ClientCert == "" || t.ClientKey == "" {
			m.complain("cert needs a client_cert and a client_key")
		}
		if strings.HasPrefix(c.Server.Address, "http://") || strings.HasPrefix(c.Server.Address, "unix://") {
			m.complain("cert needs a server at https://: there only is a certificate shown")
		}
	case "jwt":
		a.Remove = true
		config.text("role", &a.Role)
		config.text("path", &a.File)
		config.boolean("remove_jwt_after_reading", &a.Remove)
	case "kubernetes":
		a.File = "/var/run/secrets/kubernetes.io/serviceaccount/token"
		config.text("role", &a.Role)
		config.text("token_path", &a.File)
	case "token_file":
		config.text("token_file_path", &a.File)
	default:
		m.complain("the method %q is not here: %s", a.Type, cmp.Or(otherMethods[a.Type], "use approle, cert, jwt, kubernetes or token_file"))
		config.settings = nil
	}
	if a.File == "" && a.Type != "approle" && a.Type != "cert" && otherMethods[a.Type] == "" {
		m.complain("the method needs the path of its file")
	}
	sinks := s.stanzas("sink")
	for _, group := range s.stanzas("sinks") {
		sinks = append(sinks, group.stanzas("sink")...)
	}
	for _, k := range sinks {
		kind := k.label
		k.text("type", &kind)
		if kind != "file" {
			k.complain("the sink %q is not here: use file", kind)
		}
		config := k
		if all := k.stanzas("config"); len(all) == 1 {
			config = all[0]
		}
		sink := Sink{Mode: 0o600}
		config.text("path", &sink.Path)
		config.mode("mode", &sink.Mode)
		if sink.Path == "" {
			k.complain("a sink needs a path")
		}
		a.Sinks = append(a.Sinks, sink)
	}
	c.Auth = a
}

// otherMethods are Vault Agent's ways to log in that are not here, and what to use instead.
var otherMethods = map[string]string{
	"alicloud": platform, "aws": platform, "azure": platform, "cf": platform, "gcp": platform, "oci": platform, "spiffe": "use cert with its X.509 certificate, or jwt with its JWT",
	"kerberos": person, "ldap": person, "okta": person, "userpass": person,
}

const (
	platform = "use jwt with a token that the platform signs and puts into a file (of a service account, a workload identity), or cert"
	person   = "it is for people; a program logs in by approle, cert or jwt"
)

// commandTimeout is how long a command may take, if nothing else is configured.
const commandTimeout = 30 * time.Second

// signalSettle is for how long a program that was signalled may use what it had, if nothing else is configured: as with lessor run.
const signalSettle = 30 * time.Second

// signals are those that programs take for "read your files again", and the like.
var signals = map[string]syscall.Signal{
	"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "QUIT": syscall.SIGQUIT, "TERM": syscall.SIGTERM, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2,
}

func readTemplate(s *stanza) (t Template) {
	t.Left, t.Right, t.MakeFolders, t.Command.Timeout = "{{", "}}", true, commandTimeout
	for name, to := range map[string]*string{
		"source": &t.Source, "contents": &t.Contents, "destination": &t.Destination, "left_delimiter": &t.Left, "right_delimiter": &t.Right,
		"user": &t.User, "group": &t.Group, "reload_pid_file": &t.Command.PIDFile,
	} {
		s.text(name, to)
	}
	for name, to := range map[string]*bool{
		"backup": &t.Backup, "create_dest_dirs": &t.MakeFolders, "error_on_missing_key": &t.ErrorOnMissingKey, "adopts": &t.Adopts,
	} {
		s.boolean(name, to)
	}
	s.mode("perms", &t.Mode)
	s.command("command", &t.Command.Args)
	s.duration("command_timeout", &t.Command.Timeout)
	for _, e := range s.stanzas("exec") {
		e.command("command", &t.Command.Args)
		e.duration("timeout", &t.Command.Timeout)
	}
	for _, w := range s.stanzas("wait") {
		w.duration("min", &t.Wait.Least)
		t.Wait.Most = 4 * t.Wait.Least
		w.duration("max", &t.Wait.Most)
	}
	name := ""
	s.text("reload_signal", &name)
	if name != "" {
		t.Command.Signal = signals[strings.TrimPrefix(strings.ToUpper(name), "SIG")]
		if t.Command.Signal == 0 {
			s.complain("reload_signal is HUP, INT, QUIT, TERM, USR1 or USR2")
		}
	}
	if t.Command.Signal != 0 {
		t.Command.Settle = signalSettle
	}
	s.duration("reload_settle", &t.Command.Settle)
	if t.Command.Signal == 0 && t.Command.Settle != 0 {
		s.complain("reload_settle is for a reload_signal: a command ends when the program has settled")
	}
	if (t.Command.Signal != 0) != (t.Command.PIDFile != "") {
		s.complain("reload_signal and reload_pid_file belong together")
	}
	if t.Command.Signal != 0 && len(t.Command.Args) > 0 {
		s.complain("a program is told by a command or a signal, not by both")
	}
	if (t.Source == "") == (t.Contents == "") {
		s.complain("a template has a source or contents")
	}
	if t.Destination == "" {
		s.complain("a template needs a destination")
	}
	t.Destination = filepath.Clean(t.Destination)
	return t
}

// stanza is a block of a configuration, or the whole. What is asked of it is ticked off: the rest is nothing that is known here.
type stanza struct {
	name, label string
	place       string
	settings    map[string]any // string, bool, []any
	blocks      []*stanza
	known       map[string]bool
	wrong       *[]error
}

func (s *stanza) complain(format string, args ...any) {
	*s.wrong = append(*s.wrong, fmt.Errorf("%s: %s", s.place, fmt.Sprintf(format, args...)))
}

// stanzas are the blocks of a name.
func (s *stanza) stanzas(name string) (all []*stanza) {
	s.known[name] = true
	for _, b := range s.blocks {
		if b.name == name {
			all = append(all, b)
		}
	}
	return all
}

func (s *stanza) setting(name string) (any, bool) {
	s.known[name] = true
	v, ok := s.settings[name]
	return v, ok
}

func (s *stanza) text(name string, to *string) {
	v, ok := s.setting(name)
	switch v := v.(type) {
	case string:
		*to = v
	case bool:
		*to = strconv.FormatBool(v)
	default:
		if ok {
			s.complain("%s must be a string", name)
		}
	}
}

func (s *stanza) boolean(name string, to *bool) {
	text := ""
	if s.text(name, &text); text == "" {
		return
	}
	on, err := strconv.ParseBool(text)
	if err != nil {
		s.complain("%s must be true or false", name)
		return
	}
	*to = on
}

func (s *stanza) duration(name string, to *time.Duration) {
	text := ""
	if s.text(name, &text); text == "" {
		return
	}
	d, err := client.ParseDuration(text)
	if err != nil {
		s.complain(`%s must be a duration, such as "30s"`, name)
		return
	}
	*to = d
}

// mode reads a file's mode, in octal.
func (s *stanza) mode(name string, to *os.FileMode) {
	text := ""
	if s.text(name, &text); text == "" {
		return
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(text, "0o"), 8, 9)
	if err != nil {
		s.complain(`%s must be a file's mode in octal, such as "0640"`, name)
		return
	}
	*to = os.FileMode(n)
}

// command reads a program and its arguments; a single text is for the shell.
func (s *stanza) command(name string, to *[]string) {
	v, ok := s.setting(name)
	if !ok {
		return
	}
	list, isList := v.([]any)
	if text, isText := v.(string); isText {
		list, isList = []any{text}, true
	}
	var args []string
	for _, item := range list {
		text, isText := item.(string)
		isList = isList && isText
		args = append(args, text)
	}
	if !isList {
		s.complain("%s must be a list of strings, or one for the shell", name)
		return
	}
	if len(args) == 1 && args[0] != "" {
		args = []string{"/bin/sh", "-c", args[0]}
	}
	if len(args) > 0 && args[0] != "" {
		*to = args
	}
}

// list reads texts, or one with commas between them.
func (s *stanza) list(name string) (all []string) {
	v, ok := s.setting(name)
	switch v := v.(type) {
	case string:
		for _, item := range strings.Split(v, ",") {
			all = append(all, strings.TrimSpace(item))
		}
	case []any:
		for _, item := range v {
			text, isText := item.(string)
			if !isText {
				s.complain("%s must be a list", name)
			}
			all = append(all, text)
		}
	default:
		if ok {
			s.complain("%s must be a list", name)
		}
	}
	return all
}

// leftover complains about what was not asked for, and tells of what has no effect.
func (s *stanza) leftover() (notes []string) {
	names := map[string]string{}
	for name := range s.settings {
		names[name] = s.place
	}
	for _, b := range s.blocks {
		names[b.name] = cmp.Or(names[b.name], b.place)
		if s.known[b.name] {
			notes = append(notes, b.leftover()...)
		}
	}
	for name, place := range names {
		whole := strings.TrimSpace(s.name + " " + name)
		why, without := idle[whole]
		switch {
		case s.known[name]:
		case without && why != "":
			notes = append(notes, fmt.Sprintf("%s: %s has no effect: %s", place, whole, why))
		case without:
		case absent[whole] != "":
			*s.wrong = append(*s.wrong, fmt.Errorf("%s: %s is not here: %s", place, whole, absent[whole]))
		default:
			*s.wrong = append(*s.wrong, fmt.Errorf("%s: %s is nothing that is known here", place, whole))
		}
	}
	slices.Sort(notes)
	return notes
}
