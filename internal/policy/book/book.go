// Package book keeps policies: rows of store.Policies, and the parsed and compiled forms that are derived from them. What
// is derived is remembered for as long as no commit touches the table.
package book

import (
	"fmt"
	"strings"
	"sync"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/store"
)

// DefaultPolicy is the name of the policy that every token has unless it says otherwise.
const DefaultPolicy = "default"

// WrappingPolicy is the built-in policy of wrapping tokens: unwrap what they wrap, once, and nothing else.
const WrappingPolicy = "response-wrapping"

// JoinPolicy is the built-in policy of join secrets: let one machine join the cluster, once, and nothing else.
const JoinPolicy = "lessor-join"

// bearers are the built-in policies of tokens that are good for one thing, once.
var bearers = sync.OnceValue(func() map[string]*policy.Policy {
	all := map[string]*policy.Policy{}
	for name, path := range map[string]string{WrappingPolicy: "sys/wrapping/unwrap", JoinPolicy: "sys/lessor/join"} {
		p, err := policy.Parse(name, `path "`+path+`" { capabilities = ["update"] }`)
		if err != nil {
			panic(err)
		}
		all[name] = p
	}
	return all
})

// IsBearer says whether name is a built-in policy that only lessor itself gives to tokens: WrappingPolicy or JoinPolicy.
func IsBearer(name string) bool { return bearers()[name] != nil }

var prefix = store.MountKey(lessor.RootNamespace, "", "p/")

// Row finds the stored policy of a name; its value is the source, its version the policy's version.
func Row(v store.View, name string) (store.Row, error) {
	return v.Get(store.Key{Table: store.Policies, Name: prefix + name})
}

// Put stores source under name; the caller has parsed it. row is what Row said.
func Put(txn *store.Txn, row store.Row, source string) {
	txn.Require(row)
	txn.Put(row.Table, row.Name, []byte(source))
}

// Delete removes a policy.
func Delete(txn *store.Txn, name string) { txn.Delete(store.Policies, prefix+name) }

// Names lists the stored policies in order.
func Names(v store.View) ([]string, error) {
	var names []string
	for row, err := range v.Scan(store.Policies, prefix, store.PrefixEnd(prefix)) {
		if err != nil {
			return nil, err
		}
		names = append(names, strings.TrimPrefix(row.Name, prefix))
	}
	return names, nil
}

// Book derives ACLs. It is safe for concurrent use; the zero Book is ready.
type Book struct {
	mu   sync.RWMutex
	at   uint64 // Changed(Policies) that both maps are true for
	read map[string]*policy.Policy
	acls map[string]*policy.ACL
}

// most bounds each map; a map that is full starts anew.
const most = 20_000

// ACL compiles what a principal's policies say. Names without a policy say nothing, as in Vault. Compiled forms are shared
// by all for whom the same policies resolve to the same paths.
func (b *Book) ACL(v store.View, p *lessor.Principal) (*policy.ACL, error) {
	at := v.Changed(store.Policies)
	list := make([]*policy.Policy, 0, len(p.Policies))
	for _, name := range p.Policies {
		pol, err := b.policy(v, at, name)
		if err != nil {
			return nil, err
		}
		if pol != nil {
			list = append(list, pol)
		}
	}
	key := strings.Join(p.Policies, "\x00") + "\x00\x00" + policy.Variant(list, p)
	b.mu.RLock()
	acl, current := b.acls[key], b.at == at
	b.mu.RUnlock()
	if current && acl != nil {
		return acl, nil
	}
	acl = policy.Compile(list, p)
	b.remember(at, func() {
		if len(b.acls) >= most {
			clear(b.acls)
		}
		b.acls[key] = acl
	})
	return acl, nil
}

func (b *Book) policy(v store.View, at uint64, name string) (*policy.Policy, error) {
	if name == policy.Root().Name {
		return policy.Root(), nil
	}
	if p := bearers()[name]; p != nil {
		return p, nil
	}
	b.mu.RLock()
	pol, current := b.read[name], b.at == at
	b.mu.RUnlock()
	if current && pol != nil {
		return pol, nil
	}
	row, err := Row(v, name)
	if err != nil || !row.Exists() {
		return nil, err
	}
	if pol, err = policy.Parse(name, string(row.Value)); err != nil {
		return nil, fmt.Errorf("policy %q as stored does not parse: %w", name, err)
	}
	pol.Version = row.Version
	b.remember(at, func() {
		if len(b.read) >= most {
			clear(b.read)
		}
		b.read[name] = pol
	})
	return pol, nil
}

// remember runs put if the maps are true for at, after emptying them when at is newer. What an older View derived is not kept.
func (b *Book) remember(at uint64, put func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.at < at || b.read == nil {
		b.at, b.read, b.acls = at, map[string]*policy.Policy{}, map[string]*policy.ACL{}
	}
	if b.at == at {
		put()
	}
}
