package config

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// environment is what defaults depend on, and what says more than files do.
type environment struct {
	getenv func(string) string
	root   bool   // run by the superuser
	host   string // the machine's name; may be empty
}

func system() environment {
	host, _ := os.Hostname()
	return environment{os.Getenv, os.Geteuid() == 0, host}
}

// nodeName is what a node is called when nobody says: as its host, if that can be a node's name.
func (e environment) nodeName() string {
	if IsNodeName(e.host) {
		return e.host
	}
	return "lessor"
}

// setting finds LESSOR_name, else VAULT_name, and tells which of the two it was. Empty counts as unset.
func (e environment) setting(name string) (value, variable string) {
	for _, prefix := range []string{"LESSOR_", "VAULT_"} {
		if value := e.getenv(prefix + name); value != "" {
			return value, prefix + name
		}
	}
	return "", ""
}

// dataDir is where data is kept when nobody says where.
func (e environment) dataDir() (string, error) {
	return e.place("/var/lib/lessor", "XDG_DATA_HOME", ".local/share", "", "-data")
}

// keyFile is where the key is kept when nobody says where: not below dataDir.
func (e environment) keyFile() (string, error) {
	return e.place("/etc/lessor", "XDG_CONFIG_HOME", ".config", "seal.key", "-key-file")
}

func (e environment) place(root, xdg, home, name, instead string) (string, error) {
	if e.root {
		return filepath.Join(root, name), nil
	}
	if dir := e.getenv(xdg); filepath.IsAbs(dir) {
		return filepath.Join(dir, "lessor", name), nil
	}
	if dir := e.getenv("HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, home, "lessor", name), nil
	}
	return "", fmt.Errorf("neither %s nor HOME is set: say %s", xdg, instead)
}

// environ puts what the environment says over what files said: API_ADDR (or REDIRECT_ADDR, as it was once called),
// CLUSTER_ADDR, NODE_NAME, LOG_LEVEL, LOG_FORMAT, DISABLE_USER_LOCKOUT. Flags come after it.
func (c *Config) environ(e environment) error {
	api, _ := e.setting("API_ADDR")
	redirect, _ := e.setting("REDIRECT_ADDR")
	cluster, _ := e.setting("CLUSTER_ADDR")
	name, _ := e.setting("NODE_NAME")
	c.APIAddr = cmp.Or(api, redirect, c.APIAddr)
	c.NodeName = cmp.Or(name, c.NodeName)
	c.ClusterAddr = cmp.Or(cluster, c.ClusterAddr)
	if text, variable := e.setting("LOG_LEVEL"); text != "" {
		level, err := parseLogLevel(text)
		if err != nil {
			return fmt.Errorf("%s %w", variable, err)
		}
		c.LogLevel = level
	}
	if text, variable := e.setting("LOG_FORMAT"); text != "" {
		asJSON, err := parseLogFormat(text)
		if err != nil {
			return fmt.Errorf("%s %w", variable, err)
		}
		c.LogJSON = asJSON
	}
	if text, variable := e.setting("DISABLE_USER_LOCKOUT"); text != "" {
		off, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%s must be true or false", variable)
		}
		c.Lockout.Disabled = &off
	}
	return nil
}
