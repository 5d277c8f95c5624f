package cli

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// mounts is one of the two kinds of mounts, as their commands name it.
type mounts struct {
	path string // of the API: "sys/mounts/"
	kind string // "secrets engine"
	at   string // what comes before a mount's path when it is used: "auth/"
}

var (
	engines = mounts{path: "sys/mounts/", kind: "secrets engine"}
	logins  = mounts{path: "sys/auth/", kind: "auth method", at: "auth/"}
)

func (a *app) secrets() *cobra.Command {
	return group("secrets", "Enable, disable, list, move and tune secrets engines", "",
		a.mountEnable(engines), a.mountDisable(engines), a.mountList(engines), a.mountMove(engines), a.mountTune(engines))
}

func (a *app) auth() *cobra.Command {
	return group("auth", "Enable, disable, list, move and tune auth methods", `
To log in: lessor login.`,
		a.mountEnable(logins), a.mountDisable(logins), a.mountList(logins), a.mountMove(logins), a.mountTune(logins), a.authHelp())
}

// mountConfig are the flags that enable and tune share.
type mountConfig struct {
	description        string
	owner              string
	defaultTTL, maxTTL duration
	visibility         string
	tokenType          string
	options            pairs
	version            int
	auditRequest       []string
	auditResponse      []string
	passthrough        []string
	allowedResponse    []string
	noTrailingSlashes  bool
	lockoutThreshold   string
	lockoutDuration    duration
	lockoutReset       duration
	lockoutDisable     bool
}

func (m mounts) flags(command *cobra.Command) *mountConfig {
	config := &mountConfig{options: pairs{}}
	f := command.Flags()
	f.StringVar(&config.description, "description", "", "`text` for people")
	f.StringVar(&config.owner, "owner", "", "`name` of who answers for it")
	f.Var(&config.defaultTTL, "default-lease-ttl", "lease `duration` where nothing else says one")
	f.Var(&config.maxTTL, "max-lease-ttl", "longest lease, as a `duration`")
	f.Var(config.options, "options", "option of the "+m.kind+", as `key=value`; may be repeated")
	f.StringVar(&config.visibility, "listing-visibility", "", "`who` may see it listed: hidden or unauth")
	f.StringArrayVar(&config.passthrough, "passthrough-request-headers", nil, "`name` of a request header that it may see; may be repeated")
	f.StringArrayVar(&config.allowedResponse, "allowed-response-headers", nil, "`name` of a header that it may answer with; may be repeated")
	f.StringArrayVar(&config.auditRequest, "audit-non-hmac-request-keys", nil, "`key` of a request that Vault's audit shows in clear; may be repeated; lessor's audit holds no values")
	f.StringArrayVar(&config.auditResponse, "audit-non-hmac-response-keys", nil, "the same of an answer")
	f.BoolVar(&config.noTrailingSlashes, "trim-request-trailing-slashes", false, "take slashes off the end of requests' paths")
	// Vault's, for what lessor does otherwise or not at all: the server answers for them.
	for _, name := range []string{"plugin-name", "plugin-version", "identity-token-key", "allowed-managed-keys", "delegated-auth-accessors"} {
		f.String(name, "", "of Vault's plugins")
		_ = f.MarkHidden(name)
	}
	if m == engines {
		f.IntVar(&config.version, "version", 0, "`number` of the engine's version: 2 keeps versions of secrets, for kv")
		f.Bool("force-no-cache", false, "accepted for Vault's users: lessor keeps no answers")
		_ = f.MarkHidden("force-no-cache")
	} else {
		f.IntVar(&config.version, "version", 0, "`number` of the method's version")
		_ = f.MarkHidden("version")
		f.StringVar(&config.tokenType, "token-type", "", "`kind` of tokens that logins make: default-service, default-batch, service or batch")
	}
	return config
}

// tuning is what the flags ask for, as sys/mounts/PATH/tune takes it.
func (config *mountConfig) tuning(command *cobra.Command) map[string]any {
	tuning := map[string]any{}
	set := func(flag string, value any) {
		if command.Flags().Changed(flag) {
			tuning[strings.ReplaceAll(flag, "-", "_")] = value
		}
	}
	set("default-lease-ttl", string(config.defaultTTL))
	set("max-lease-ttl", string(config.maxTTL))
	set("listing-visibility", config.visibility)
	set("token-type", config.tokenType)
	set("passthrough-request-headers", config.passthrough)
	set("allowed-response-headers", config.allowedResponse)
	set("audit-non-hmac-request-keys", config.auditRequest)
	set("audit-non-hmac-response-keys", config.auditResponse)
	set("trim-request-trailing-slashes", config.noTrailingSlashes)
	for _, flag := range []string{"plugin-version", "identity-token-key", "force-no-cache", "allowed-managed-keys", "delegated-auth-accessors"} {
		if f := command.Flags().Lookup(flag); f != nil {
			set(flag, f.Value.String())
		}
	}
	lockout := map[string]any{}
	for flag, value := range map[string]any{
		"threshold": config.lockoutThreshold, "duration": string(config.lockoutDuration),
		"counter-reset-duration": string(config.lockoutReset), "disable": config.lockoutDisable,
	} {
		if command.Flags().Changed("user-lockout-" + flag) {
			lockout["lockout_"+strings.ReplaceAll(flag, "-", "_")] = value
		}
	}
	if len(lockout) > 0 {
		tuning["user_lockout_config"] = lockout
	}
	return tuning
}

func (config *mountConfig) allOptions() map[string]string {
	options := maps.Clone(map[string]string(config.options))
	if config.version > 0 {
		options["version"] = strconv.Itoa(config.version)
	}
	return options
}

func (a *app) mountEnable(m mounts) *cobra.Command {
	var path string
	var local, sealWrap bool
	var config *mountConfig
	example := "  lessor secrets enable -path=secret -version=2 kv\n  lessor secrets enable database"
	if m == logins {
		example = "  lessor auth enable approle\n  lessor auth enable -path=people userpass"
	}
	command := a.remote("enable TYPE", "Enable "+article(m.kind), example,
		1, 1, func(cmd *cobra.Command, args []string) error {
			kind := args[0]
			if path == "" {
				path = kind
			}
			options := config.allOptions()
			if kind == "plugin" {
				name, _ := cmd.Flags().GetString("plugin-name")
				if name == "" {
					return usage(cmd, "lessor's engines and methods are built in: name one, for example kv or database")
				}
				kind, args[0] = name, name
			}
			if m == engines && kind == "kv-v2" {
				kind = "kv"
				options["version"] = "2"
			}
			body := map[string]any{"type": kind, "config": config.tuning(cmd)}
			if config.description != "" {
				body["description"] = config.description
			}
			if config.owner != "" {
				body["owner"] = config.owner
			}
			if len(options) > 0 {
				body["options"] = options
			}
			if local {
				body["local"] = true
			}
			if sealWrap {
				body["seal_wrap"] = true
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			path := cleanPath(path)
			answer, err := c.Write(cmd.Context(), m.path+path, body)
			if err != nil {
				return err
			}
			a.warn(answer)
			if m == logins {
				return a.say("Success! Enabled %s %s at: %s/", args[0], m.kind, path)
			}
			return a.say("Success! Enabled the %s %s at: %s/", args[0], m.kind, path)
		})
	config = m.flags(command)
	f := command.Flags()
	f.StringVar(&path, "path", "", "`path` to enable it at (default its type)")
	f.BoolVar(&local, "local", false, "accepted for Vault's users: replication is the store's affair")
	f.BoolVar(&sealWrap, "seal-wrap", false, "accepted for Vault's users: lessor encrypts every value")
	f.Bool("external-entropy-access", false, "accepted for Vault's users")
	_ = f.MarkHidden("external-entropy-access")
	return command
}

func article(kind string) string {
	if strings.HasPrefix(kind, "a") {
		return "an " + kind
	}
	return "a " + kind
}

func (a *app) mountDisable(m mounts) *cobra.Command {
	return a.completeArgument(a.remote("disable PATH", "Disable "+article(m.kind), `
All that it holds is deleted, and all its leases are revoked.`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			path := cleanPath(args[0])
			if m == logins {
				path = strings.TrimPrefix(path, m.at)
			}
			answer, err := c.Delete(cmd.Context(), m.path+path, nil)
			if err != nil {
				return err
			}
			a.warn(answer)
			return a.say("Success! Disabled the %s (if it existed) at: %s/", m.kind, path)
		}), 0, m.complete)
}

func (a *app) mountList(m mounts) *cobra.Command {
	var detailed bool
	command := a.remote("list", "List "+m.kind+"s", "", 0, 0, func(cmd *cobra.Command, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		answer, err := c.Read(cmd.Context(), cleanPath(m.path), nil)
		if err != nil {
			return err
		}
		if answer.WrapInfo != nil {
			return a.printAnswer(answer, "")
		}
		a.warn(answer)
		return a.print(answer.Data, func() error { return a.mountTable(m, answer.Data, detailed || a.detailed()) })
	})
	command.Flags().BoolVar(&detailed, "detailed", false, "show their settings, too, and who owns them (LESSOR_DETAILED, VAULT_DETAILED)")
	return command
}

// mountTable has Vault's columns in Vault's order, with n/a for nothing, and the owner behind them.
func (a *app) mountTable(m mounts, data map[string]any, detailed bool) error {
	headings := row{"Path", "Type", "Accessor", "Description"}
	if m == logins {
		headings = append(headings, "Version")
	}
	if detailed {
		fifth := "Force No Cache"
		if m == logins {
			fifth = "Token Type"
		}
		headings = row{
			"Path", "Plugin", "Accessor", "Default TTL", "Max TTL", fifth, "Replication", "Seal Wrap", "External Entropy Access",
			"Options", "Description", "UUID", "Version", "Running Version", "Running SHA256", "Deprecation Status", "Owner",
		}
	}
	var rows []row
	for _, path := range slices.Sorted(maps.Keys(data)) {
		mount, ok := data[path].(map[string]any)
		if !ok {
			continue
		}
		text := func(key string) string { return printableLine(cell("", cmp.Or(orEmpty(mount[key]), "n/a"))) }
		line := row{printableLine(path), text("type"), text("accessor")}
		if !detailed {
			line = append(line, text("description"))
			if m == logins {
				line = append(line, text("plugin_version"))
			}
			rows = append(rows, line)
			continue
		}
		settings, _ := mount["config"].(map[string]any)
		ttl := func(key string) string {
			if kind := mount["type"]; kind == "system" || kind == "cubbyhole" {
				return "n/a"
			}
			if value := plain(settings[key]); value != "0" && settings[key] != nil {
				return value
			}
			return "system"
		}
		yes := func(value any) string { on, _ := value.(bool); return strconv.FormatBool(on) }
		fifth := yes(settings["force_no_cache"])
		if m == logins {
			fifth = cmp.Or(orEmpty(settings["token_type"]), "n/a")
		}
		replication := "replicated"
		if mount["local"] == true {
			replication = "local"
		}
		options := "map[]"
		if mount["options"] != nil {
			options = printableLine(plain(mount["options"]))
		}
		rows = append(rows, append(line,
			ttl("default_lease_ttl"), ttl("max_lease_ttl"), fifth, replication, yes(mount["seal_wrap"]), yes(mount["external_entropy_access"]),
			options, text("description"), text("uuid"), text("plugin_version"), text("running_plugin_version"), text("running_sha256"),
			text("deprecation_status"), text("owner")))
	}
	return a.table(headings, rows)
}

func orEmpty(value any) string {
	text, _ := value.(string)
	return text
}

// moveWait is the time between two looks at a move that goes on.
const moveWait = time.Second

func (a *app) mountMove(m mounts) *cobra.Command {
	command := a.remote("move SOURCE DESTINATION", "Move "+article(m.kind)+" to another path, with all that it holds", `
Its leases are revoked: what clients hold was handed out under the old path.`,
		2, 2, func(cmd *cobra.Command, args []string) error {
			from, to := cleanPath(args[0])+"/", cleanPath(args[1])+"/"
			if m == logins {
				from, to = m.at+strings.TrimPrefix(from, m.at), m.at+strings.TrimPrefix(to, m.at)
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			answer, err := c.Write(cmd.Context(), "sys/remount", map[string]any{"from": from, "to": to})
			if err != nil {
				return err
			}
			id := orEmpty(answer.Data["migration_id"])
			if err := a.say("Started moving %s %s to %s, with migration ID %s", m.kind, from, to, id); err != nil {
				return err
			}
			a.progress.begin("moving " + from + " to " + to)
			for {
				answer, err := c.Read(cmd.Context(), "sys/remount/status/"+id, nil)
				if err != nil {
					return err
				}
				about, _ := answer.Data["migration_info"].(map[string]any)
				switch about["status"] {
				case "success":
					return a.say("Success! Finished moving %s %s to %s, with migration ID %s", m.kind, from, to, id)
				case "failure":
					return fmt.Errorf("moving %s %s to %s failed (migration ID %s): the server's log tells why", m.kind, from, to, id)
				}
				select {
				case <-cmd.Context().Done():
					return cmd.Context().Err()
				case <-time.After(moveWait):
				}
			}
		})
	return a.completeArgument(command, 0, m.complete)
}

// authHelp tells how to log in by a method.
func (a *app) authHelp() *cobra.Command {
	command := a.remote("help TYPE | PATH", "Tell what a login by an auth method needs", `
  lessor auth help userpass`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			kind := cleanPath(args[0])
			text, known := loginHelp[kind]
			if !known {
				c, err := a.connect()
				if err != nil {
					return err
				}
				answer, err := c.Read(cmd.Context(), cleanPath(logins.path), nil)
				if err != nil {
					return err
				}
				mount, ok := answer.Data[strings.TrimPrefix(kind, logins.at)+"/"].(map[string]any)
				if !ok {
					return fmt.Errorf("no auth method is available on the server at %q; what there is: lessor auth list", args[0])
				}
				kind = orEmpty(mount["type"])
				if text, known = loginHelp[kind]; !known {
					text = "  lessor login -method=" + kind + " -path=" + cleanPath(args[0]) + " key=value...\n\nSends key=value to the method's login."
				}
			}
			_, err := fmt.Fprintln(a.out, text)
			return err
		})
	return a.completeArgument(command, 0, logins.complete)
}

// loginHelp is what logins by each method that the command line knows need.
var loginHelp = map[string]string{
	"token": `  lessor login [TOKEN | - | @file] [lookup=false]

  token=TOKEN     the token; without it, it is asked for
  lookup=false    keep the token without asking the server about it`,
	"userpass": `  lessor login -method=userpass username=NAME [password=-|@file]

  username=NAME        who logs in
  password=PASSWORD    without it, it is asked for
  mount=PATH           where the method is enabled, as -path`,
	"approle": `  lessor login -method=approle role_id=ID [secret_id=-|@file]

  role_id=ID      which role logs in
  secret_id=ID    without it, a person is asked for it; a role may do without
  mount=PATH      where the method is enabled, as -path`,
}

func (a *app) mountTune(m mounts) *cobra.Command {
	var config *mountConfig
	command := a.remote("tune PATH", "Change the settings of "+article(m.kind), `
Settings that are not given stay as they are.`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			body := config.tuning(cmd)
			if cmd.Flags().Changed("description") {
				body["description"] = config.description
			}
			if cmd.Flags().Changed("owner") {
				body["owner"] = config.owner
			}
			if options := config.allOptions(); len(options) > 0 {
				body["options"] = options
			}
			if len(body) == 0 {
				return usage(cmd, "say what to change, for example -max-lease-ttl=24h")
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			path := strings.TrimPrefix(cleanPath(args[0]), m.at)
			answer, err := c.Write(cmd.Context(), m.path+path+"/tune", body)
			if err != nil {
				return err
			}
			a.warn(answer)
			return a.say("Success! Tuned the %s at: %s/", m.kind, path)
		})
	config = m.flags(command)
	if m == logins {
		f := command.Flags()
		f.StringVar(&config.lockoutThreshold, "user-lockout-threshold", "", "`number` of failed logins that lock a user out")
		f.Var(&config.lockoutDuration, "user-lockout-duration", "how long a user is locked out, as a `duration`")
		f.Var(&config.lockoutReset, "user-lockout-counter-reset-duration", "after which `duration` without a failed login they count anew")
		f.BoolVar(&config.lockoutDisable, "user-lockout-disable", false, "lock nobody out")
	}
	return a.completeArgument(command, 0, m.complete)
}
