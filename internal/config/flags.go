package config

import (
	"cmp"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// arguments are the flags as given.
type arguments struct {
	configs                            []string
	data, keyFile, listen, nodeName    string
	logLevel, logFormat                string
	dev, devNoStoreToken, devTLS       bool
	devKV1                             bool
	devTLSNames                        []string
	devRootToken, devListen, devTLSDir string
	devPluginDir                       string
}

func (a *arguments) flagSet() *flag.FlagSet {
	f := flag.NewFlagSet("lessor server", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Func("config", "configuration `file` (HCL or JSON), or a folder of them; may be repeated", func(s string) error {
		a.configs = append(a.configs, s)
		return nil
	})
	f.StringVar(&a.data, "data", "", "keep the embedded store in this `folder`")
	f.StringVar(&a.keyFile, "key-file", "", "unseal with this key `file`, which must not be in the data folder")
	f.StringVar(&a.listen, "listen", "", "listen on this `address` by plain HTTP, on loopback (default "+defaultAddress+")")
	f.StringVar(&a.nodeName, "node-name", "", "`name` of this server in audit records and to operators (default the host's; LESSOR_NODE_NAME)")
	f.StringVar(&a.logLevel, "log-level", "", "`level` of the log: trace, debug, info, warn or error (LESSOR_LOG_LEVEL, VAULT_LOG_LEVEL)")
	f.StringVar(&a.logFormat, "log-format", "", "`format` of the log: standard or json (LESSOR_LOG_FORMAT, VAULT_LOG_FORMAT)")
	f.BoolVar(&a.dev, "dev", false, "try lessor out: in memory, unsealed, its root token printed")
	f.StringVar(&a.devRootToken, "dev-root-token-id", "", "with -dev: the root `token` (LESSOR_DEV_ROOT_TOKEN_ID, VAULT_DEV_ROOT_TOKEN_ID)")
	f.StringVar(&a.devListen, "dev-listen-address", "", "with -dev: listen on this `address` (LESSOR_DEV_LISTEN_ADDRESS, VAULT_DEV_LISTEN_ADDRESS)")
	f.BoolVar(&a.devNoStoreToken, "dev-no-store-token", false, "with -dev: do not leave the root token in ~/.lessor-token")
	f.BoolVar(&a.devTLS, "dev-tls", false, "-dev with TLS, by a certificate made for the occasion; may leave loopback")
	f.StringVar(&a.devTLSDir, "dev-tls-cert-dir", "", "with -dev-tls: write certificate and CA to this `folder`")
	f.Func("dev-tls-san", "with -dev-tls: a further `name` or address that the certificate is for; may be repeated", func(s string) error {
		a.devTLSNames = append(a.devTLSNames, s)
		return nil
	})
	f.BoolVar(&a.devKV1, "dev-kv-v1", false, "with -dev: mount version 1 of the key-value engine at secret/, not version 2")
	f.StringVar(&a.devPluginDir, "dev-plugin-dir", "", "ignored: lessor has no plugins (`folder`)")
	return f
}

// Usage lists the flags of "lessor server".
func Usage() string {
	var b strings.Builder
	f := new(arguments).flagSet()
	f.SetOutput(&b)
	f.PrintDefaults()
	return b.String()
}

// Flags makes the configuration of "lessor server" from its arguments, without the command's name, and from the files that they
// name. Flags win over files. Asked for help, it returns flag.ErrHelp; see Usage.
func Flags(args []string) (Config, error) { return flags(args, system()) }

func flags(args []string, env environment) (Config, error) {
	var a arguments
	f := a.flagSet()
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		return Config{}, err
	} else if err != nil {
		return Config{}, fmt.Errorf("%w; lessor server -help lists the flags", err)
	}
	if f.NArg() > 0 {
		return Config{}, fmt.Errorf("lessor server takes flags only, not %q", f.Arg(0))
	}
	c := defaults()
	if err := errors.Join(c.read(a.configs), c.environ(env)); err != nil {
		return Config{}, err
	}
	if err := errors.Join(a.apply(&c), a.applyDev(&c, f, env)); err != nil {
		return Config{}, err
	}
	if err := c.complete(env); err != nil {
		return Config{}, err
	}
	return c, c.Validate()
}

// apply puts what flags say over what files said.
func (a *arguments) apply(c *Config) (err error) {
	if a.data != "" {
		if c.Storage.Type != "" && c.Storage.Type != Pebble {
			return fmt.Errorf("-data is for the embedded store, but the configuration says storage %q", c.Storage.Type)
		}
		c.Storage = Storage{Type: Pebble, Path: a.data}
	}
	if a.keyFile != "" {
		c.Seal.KeyFile = a.keyFile
	}
	if a.nodeName != "" {
		c.NodeName = a.nodeName
	}
	if a.listen != "" {
		c.Listeners = []Listener{{Address: a.listen, MinVersion: tls.VersionTLS12}}
	}
	if a.logLevel != "" {
		if c.LogLevel, err = parseLogLevel(a.logLevel); err != nil {
			return fmt.Errorf("-log-level %w", err)
		}
	}
	if a.logFormat != "" {
		if c.LogJSON, err = parseLogFormat(a.logFormat); err != nil {
			return fmt.Errorf("-log-format %w", err)
		}
	}
	return nil
}

// applyDev turns c into a development server's if the flags say so.
func (a *arguments) applyDev(c *Config, f *flag.FlagSet, env environment) error {
	if !a.dev && !a.devTLS {
		var stray string
		f.Visit(func(f *flag.Flag) {
			if strings.HasPrefix(f.Name, "dev-") && f.Name != "dev-plugin-dir" {
				stray = f.Name
			}
		})
		if stray != "" {
			return fmt.Errorf("-%s needs -dev", stray)
		}
		return nil
	}
	if a.devTLSDir != "" && !a.devTLS {
		return errors.New("-dev-tls-cert-dir needs -dev-tls")
	}
	if a.devTLSNames != nil && !a.devTLS {
		return errors.New("-dev-tls-san needs -dev-tls")
	}
	if a.listen != "" {
		return errors.New("-dev listens where -dev-listen-address says: leave out -listen")
	}
	if c.Storage.Type == "" {
		c.Storage.Type = Mem
	}
	rootToken, _ := env.setting("DEV_ROOT_TOKEN_ID")
	listen, _ := env.setting("DEV_LISTEN_ADDRESS")
	c.Dev = Dev{
		Enabled:      true,
		RootToken:    lessor.NewSecret(cmp.Or(a.devRootToken, rootToken)),
		NoStoreToken: a.devNoStoreToken,
		TLS:          a.devTLS,
		TLSCertDir:   a.devTLSDir,
		TLSNames:     a.devTLSNames,
		KV1:          a.devKV1,
	}
	if c.RotatorHosts == nil {
		c.RotatorHosts = []string{"localhost", "127.0.0.1", "::1"}
	}
	first := Listener{Address: cmp.Or(a.devListen, listen, defaultAddress), TLS: a.devTLS, MinVersion: tls.VersionTLS12}
	c.Listeners = slices.Insert(c.Listeners, 0, first)
	return nil
}
