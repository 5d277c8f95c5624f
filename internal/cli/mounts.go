package cli

import (
	"maps"
	"slices"
	"strconv"
	"strings"

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
	return group("secrets", "Enable, disable, list and tune secrets engines", "",
		a.mountEnable(engines), a.mountDisable(engines), a.mountList(engines), a.mountTune(engines))
}

func (a *app) auth() *cobra.Command {
	return group("auth", "Enable, disable, list and tune auth methods", `
To log in: lessor login.`,
		a.mountEnable(logins), a.mountDisable(logins), a.mountList(logins), a.mountTune(logins))
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
	if m == engines {
		f.IntVar(&config.version, "version", 0, "`number` of the engine's version: 2 keeps versions of secrets, for kv")
	} else {
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
			return a.say("Success! Enabled the %s %s at: %s/", kind, m.kind, path)
		})
	config = m.flags(command)
	f := command.Flags()
	f.StringVar(&path, "path", "", "`path` to enable it at (default its type)")
	f.BoolVar(&local, "local", false, "accepted for Vault's users: replication is the store's affair")
	f.BoolVar(&sealWrap, "seal-wrap", false, "accepted for Vault's users: lessor encrypts every value")
	return command
}

func article(kind string) string {
	if strings.HasPrefix(kind, "a") {
		return "an " + kind
	}
	return "a " + kind
}

func (a *app) mountDisable(m mounts) *cobra.Command {
	return a.remote("disable PATH", "Disable "+article(m.kind), `
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
		})
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
		return a.print(answer.Data, func() error { return a.mountTable(answer.Data, detailed) })
	})
	command.Flags().BoolVar(&detailed, "detailed", false, "show their settings, too")
	return command
}

func (a *app) mountTable(data map[string]any, detailed bool) error {
	headings := row{"Path", "Type", "Accessor", "Owner", "Description"}
	if detailed {
		headings = row{"Path", "Type", "Accessor", "Owner", "Default TTL", "Max TTL", "Options", "UUID", "Description"}
	}
	var rows []row
	for _, path := range slices.Sorted(maps.Keys(data)) {
		mount, ok := data[path].(map[string]any)
		if !ok {
			continue
		}
		text := func(key string) string { return printableLine(dash(orEmpty(mount[key]))) }
		settings, _ := mount["config"].(map[string]any)
		line := row{printableLine(path), text("type"), text("accessor"), text("owner")}
		if detailed {
			ttl := func(key string) string {
				if value := cell("ttl", settings[key]); value != "0s" && value != "n/a" {
					return value
				}
				return "system"
			}
			line = append(line, ttl("default_lease_ttl"), ttl("max_lease_ttl"), cell("", mount["options"]), text("uuid"))
		}
		rows = append(rows, append(line, text("description")))
	}
	return a.table(headings, rows)
}

func orEmpty(value any) string {
	text, _ := value.(string)
	return text
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
	return command
}
