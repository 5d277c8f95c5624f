package password

import (
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// RowPrefix begins the names of the rows of store.Config that keep policies; their values are the policies' sources.
func RowPrefix() string { return store.MountKey(lessor.RootNamespace, "", "password/") }

// Key is that of the policy of a name.
func Key(name string) store.Key { return store.Key{Table: store.Config, Name: RowPrefix() + name} }
