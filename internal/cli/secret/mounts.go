package secret

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/internal/cli/session"
)

// Secrets is the group secrets.
func Secrets(a *session.Session) *cobra.Command {
	return session.Group("secrets", "Enable, disable, list, move and tune secrets engines", "",
		mountEnable(a, session.Engines), mountDisable(a, session.Engines), mountList(a, session.Engines), mountMove(a, session.Engines), mountTune(a, session.Engines))
}

// Auth is the group auth.
func Auth(a *session.Session) *cobra.Command {
	return session.Group("auth", "Enable, disable, list, move and tune auth methods", `
To log in: lessor login.`,
		mountEnable(a, session.Logins), mountDisable(a, session.Logins), mountList(a, session.Logins), mountMove(a, session.Logins), mountTune(a, session.Logins), authHelp(a))
}

// mountConfig are the flags that enable and tune share.
type mountConfig struct {
	description        string
	owner              string
	defaultTTL, maxTTL session.Duration
	visibility         string
	tokenType          string
	options            session.Pairs
	version            int
	auditRequest       []string
	auditResponse      []string
	passthrough        []string
	allowedResponse    []string
	noTrailingSlashes  bool
	lockoutThreshold   string
	lockoutDuration    session.Duration
	lockoutReset       session.Duration
	lockoutDisable     bool
}

func mountFlags(m session.Mounts, command *cobra.Command) *mountConfig {
	config := &mountConfig{options: session.Pairs{}}
	f := command.Flags()
	f.StringVar(&config.description, "description", "", "`text` for people")
	f.StringVar(&config.owner, "owner", "", "`name` of who answers for it")
	f.Var(&config.defaultTTL, "default-lease-ttl", "lease `duration` where nothing else says one")
	f.Var(&config.maxTTL, "max-lease-ttl", "longest lease, as a `duration`")
	f.Var(config.options, "options", "option of the "+m.Kind+", as `key=value`; may be repeated")
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
	if m == session.Engines {
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

func mountEnable(a *session.Session, m session.Mounts) *cobra.Command {
	var path string
	var local, sealWrap bool
	var config *mountConfig
	example := "  lessor secrets enable -path=secret -version=2 kv\n  lessor secrets enable database"
	if m == session.Logins {
		example = "  lessor auth enable approle\n  lessor auth enable -path=people userpass"
	}
	command := a.Remote("enable TYPE", "Enable "+article(m.Kind), example,
		1, 1, func(cmd *cobra.Command, args []string) error {
			kind := args[0]
			if path == "" {
				path = kind
			}
			options := config.allOptions()
			if kind == "plugin" {
				name, _ := cmd.Flags().GetString("plugin-name")
				if name == "" {
					return session.Usage(cmd, "lessor's engines and methods are built in: name one, for example kv or database")
				}
				kind, args[0] = name, name
			}
			if m == session.Engines && kind == "kv-v2" {
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
			c, err := a.Connect()
			if err != nil {
				return err
			}
			path := session.CleanPath(path)
			answer, err := c.Write(cmd.Context(), m.Path+path, body)
			if err != nil {
				return err
			}
			a.Warn(answer)
			if m == session.Logins {
				return a.Say("Success! Enabled %s %s at: %s/", args[0], m.Kind, path)
			}
			return a.Say("Success! Enabled the %s %s at: %s/", args[0], m.Kind, path)
		})
	config = mountFlags(m, command)
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

func mountDisable(a *session.Session, m session.Mounts) *cobra.Command {
	return a.CompleteArgument(a.Remote("disable PATH", "Disable "+article(m.Kind), `
All that it holds is deleted, and all its leases are revoked.`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			path := session.CleanPath(args[0])
			if m == session.Logins {
				path = strings.TrimPrefix(path, m.At)
			}
			answer, err := c.Delete(cmd.Context(), m.Path+path, nil)
			if err != nil {
				return err
			}
			a.Warn(answer)
			return a.Say("Success! Disabled the %s (if it existed) at: %s/", m.Kind, path)
		}), 0, m.Complete)
}

func mountList(a *session.Session, m session.Mounts) *cobra.Command {
	var detailed bool
	command := a.Remote("list", "List "+m.Kind+"s", "", 0, 0, func(cmd *cobra.Command, _ []string) error {
		c, err := a.Connect()
		if err != nil {
			return err
		}
		answer, err := c.Read(cmd.Context(), session.CleanPath(m.Path), nil)
		if err != nil {
			return err
		}
		if answer.WrapInfo != nil {
			return a.PrintAnswer(answer, "")
		}
		a.Warn(answer)
		return a.Print(answer.Data, func() error { return mountTable(a, m, answer.Data, detailed || a.Detailed()) })
	})
	command.Flags().BoolVar(&detailed, "detailed", false, "show their settings, too, and who owns them (LESSOR_DETAILED, VAULT_DETAILED)")
	return command
}

// mountTable has Vault's columns in Vault's order, with n/a for nothing, and the owner behind them.
func mountTable(a *session.Session, m session.Mounts, data map[string]any, detailed bool) error {
	headings := session.Row{"Path", "Type", "Accessor", "Description"}
	if m == session.Logins {
		headings = append(headings, "Version")
	}
	if detailed {
		fifth := "Force No Cache"
		if m == session.Logins {
			fifth = "Token Type"
		}
		headings = session.Row{
			"Path", "Plugin", "Accessor", "Default TTL", "Max TTL", fifth, "Replication", "Seal Wrap", "External Entropy Access",
			"Options", "Description", "UUID", "Version", "Running Version", "Running SHA256", "Deprecation Status", "Owner",
		}
	}
	var rows []session.Row
	for _, path := range slices.Sorted(maps.Keys(data)) {
		mount, ok := data[path].(map[string]any)
		if !ok {
			continue
		}
		text := func(key string) string {
			return session.PrintableLine(session.Cell("", cmp.Or(session.OrEmpty(mount[key]), "n/a")))
		}
		line := session.Row{session.PrintableLine(path), text("type"), text("accessor")}
		if !detailed {
			line = append(line, text("description"))
			if m == session.Logins {
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
			if value := session.Plain(settings[key]); value != "0" && settings[key] != nil {
				return value
			}
			return "system"
		}
		yes := func(value any) string { on, _ := value.(bool); return strconv.FormatBool(on) }
		fifth := yes(settings["force_no_cache"])
		if m == session.Logins {
			fifth = cmp.Or(session.OrEmpty(settings["token_type"]), "n/a")
		}
		replication := "replicated"
		if mount["local"] == true {
			replication = "local"
		}
		options := "map[]"
		if mount["options"] != nil {
			options = session.PrintableLine(session.Plain(mount["options"]))
		}
		rows = append(rows, append(line,
			ttl("default_lease_ttl"), ttl("max_lease_ttl"), fifth, replication, yes(mount["seal_wrap"]), yes(mount["external_entropy_access"]),
			options, text("description"), text("uuid"), text("plugin_version"), text("running_plugin_version"), text("running_sha256"),
			text("deprecation_status"), text("owner")))
	}
	return a.Table(headings, rows)
}

// moveWait is the time between two looks at a move that goes on.
const moveWait = time.Second

func mountMove(a *session.Session, m session.Mounts) *cobra.Command {
	command := a.Remote("move SOURCE DESTINATION", "Move "+article(m.Kind)+" to another path, with all that it holds", `
Its leases are revoked: what clients hold was handed out under the old path.`,
		2, 2, func(cmd *cobra.Command, args []string) error {
			from, to := session.CleanPath(args[0])+"/", session.CleanPath(args[1])+"/"
			if m == session.Logins {
				from, to = m.At+strings.TrimPrefix(from, m.At), m.At+strings.TrimPrefix(to, m.At)
			}
			c, err := a.Unwrapped()
			if err != nil {
				return err
			}
			answer, err := c.Write(cmd.Context(), "sys/remount", map[string]any{"from": from, "to": to})
			if err != nil {
				return err
			}
			id := session.OrEmpty(answer.Data["migration_id"])
			if err := a.Say("Started moving %s %s to %s, with migration ID %s", m.Kind, from, to, id); err != nil {
				return err
			}
			a.Progress.Begin("moving " + from + " to " + to)
			for {
				answer, err := c.Read(cmd.Context(), "sys/remount/status/"+id, nil)
				if err != nil {
					return err
				}
				about, _ := answer.Data["migration_info"].(map[string]any)
				switch about["status"] {
				case "success":
					return a.Say("Success! Finished moving %s %s to %s, with migration ID %s", m.Kind, from, to, id)
				case "failure":
					return fmt.Errorf("moving %s %s to %s failed (migration ID %s): the server's log tells why", m.Kind, from, to, id)
				}
				select {
				case <-cmd.Context().Done():
					return cmd.Context().Err()
				case <-time.After(moveWait):
				}
			}
		})
	return a.CompleteArgument(command, 0, m.Complete)
}

// authHelp tells how to log in by a method.
func authHelp(a *session.Session) *cobra.Command {
	command := a.Remote("help TYPE | PATH", "Tell what a login by an auth method needs", `
  lessor auth help userpass`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			kind := session.CleanPath(args[0])
			text, known := loginHelp[kind]
			if !known {
				c, err := a.Unwrapped()
				if err != nil {
					return err
				}
				answer, err := c.Read(cmd.Context(), session.CleanPath(session.Logins.Path), nil)
				if err != nil {
					return err
				}
				mount, ok := answer.Data[strings.TrimPrefix(kind, session.Logins.At)+"/"].(map[string]any)
				if !ok {
					return fmt.Errorf("no auth method is available on the server at %q; what there is: lessor auth list", args[0])
				}
				kind = session.OrEmpty(mount["type"])
				if text, known = loginHelp[kind]; !known {
					text = "  lessor login -method=" + kind + " -path=" + session.CleanPath(args[0]) + " key=value...\n\nSends key=value to the method's login."
				}
			}
			_, err := fmt.Fprintln(a.Out, text)
			return err
		})
	return a.CompleteArgument(command, 0, session.Logins.Complete)
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
	"jwt": `  lessor login -method=jwt [role=NAME] [jwt=-|@file]

  role=NAME     without it, the method's default role
  jwt=TOKEN     the token that your platform gave; without it, it is asked for
  mount=PATH    where the method is enabled, as -path`,
	"oidc": `  lessor login -method=oidc [role=NAME]

  role=NAME             without it, the method's default role
  skip_browser=true     only show the address to log in at
  port=8250             that the browser comes back to; 0: any that is free
  listenaddress=HOST    to wait at for that; localhost unless said otherwise
  callbackhost=HOST     and callbackport=N, callbackmethod=https: what the browser calls it
  mount=PATH            where the method is enabled, as -path`,
	"cert": `  lessor login -method=cert -client-cert=FILE -client-key=FILE [name=ROLE]

  name=ROLE     without it, the first role that the certificate is good for
  mount=PATH    where the method is enabled, as -path`,
}

func mountTune(a *session.Session, m session.Mounts) *cobra.Command {
	var config *mountConfig
	command := a.Remote("tune PATH", "Change the settings of "+article(m.Kind), `
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
				return session.Usage(cmd, "say what to change, for example -max-lease-ttl=24h")
			}
			c, err := a.Connect()
			if err != nil {
				return err
			}
			path := strings.TrimPrefix(session.CleanPath(args[0]), m.At)
			answer, err := c.Write(cmd.Context(), m.Path+path+"/tune", body)
			if err != nil {
				return err
			}
			a.Warn(answer)
			return a.Say("Success! Tuned the %s at: %s/", m.Kind, path)
		})
	config = mountFlags(m, command)
	if m == session.Logins {
		f := command.Flags()
		f.StringVar(&config.lockoutThreshold, "user-lockout-threshold", "", "`number` of failed logins that lock a user out")
		f.Var(&config.lockoutDuration, "user-lockout-duration", "how long a user is locked out, as a `duration`")
		f.Var(&config.lockoutReset, "user-lockout-counter-reset-duration", "after which `duration` without a failed login they count anew")
		f.BoolVar(&config.lockoutDisable, "user-lockout-disable", false, "lock nobody out")
	}
	return a.CompleteArgument(command, 0, m.Complete)
}
