package config

import (
	"errors"
	"fmt"

	"github.com/hashicorp/hcl/v2"
)

// ends are what a store is moved between.
type ends struct{ source, destination Storage }

// Migration reads the configuration of a move as Vault's "operator migrate" has it: stanzas storage_source and
// storage_destination, each with what a storage stanza has. Whatever else the files say, the seal above all, is said of both servers.
func Migration(files ...string) (from, to Config, err error) { return migration(files, system()) }

func migration(files []string, env environment) (from, to Config, err error) {
	var between ends
	from = defaults()
	if err := from.readAs(files, &between); err != nil {
		return Config{}, Config{}, err
	}
	if between.source.Type == "" || between.destination.Type == "" {
		return Config{}, Config{}, errors.New("a move needs two stanzas: storage_source and storage_destination")
	}
	to = from
	from.Storage, to.Storage = between.source, between.destination
	for what, c := range map[string]*Config{"storage_source": &from, "storage_destination": &to} {
		if err := c.complete(env); err != nil {
			return Config{}, Config{}, err
		}
		if err := c.Validate(); err != nil {
			return Config{}, Config{}, fmt.Errorf("%s: %w", what, err)
		}
	}
	return from, to, nil
}

// storages are the stanzas that say where the store is.
func (d *decoder) storages() []hcl.BlockHeaderSchema {
	label := []string{"type"}
	if d.ends != nil {
		return []hcl.BlockHeaderSchema{{Type: "storage_source", LabelNames: label}, {Type: "storage_destination", LabelNames: label}}
	}
	return []hcl.BlockHeaderSchema{{Type: "storage", LabelNames: label}}
}
