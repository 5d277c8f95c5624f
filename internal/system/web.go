package system

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// webRoutes are what browsers are told.
func (b *Backend) webRoutes() []engine.Route {
	return []engine.Route{
		{Pattern: "config/cors", Help: "which web pages may read answers (CORS)", Sudo: true, Ops: ops{lessor.Read: readCORS, lessor.Update: writeCORS, lessor.Delete: deleteCORS},
			Fields: []engine.Field{
				{Name: "enable", Type: engine.Bool, Help: "accepted for older clients: what has origins is enabled"},
				{Name: "allowed_origins", Type: engine.Strings, Help: "origins whose pages may: https://ui.example.com, …; or only *"},
				{Name: "allowed_headers", Type: engine.Strings, Help: "headers that they may send besides those that Vault's clients send"},
			}},
		{Pattern: "config/ui/headers", Help: "headers of a user interface", Sudo: true, Ops: ops{lessor.List: listHeaders}},
		{Pattern: "config/ui/headers/{header}", Help: "a header of a user interface, kept and told: this server has none", Sudo: true,
			Ops: ops{lessor.Read: readHeader, lessor.Update: writeHeader, lessor.Delete: deleteHeader},
			Fields: []engine.Field{
				{Name: "values", Type: engine.Strings, Help: "values of the header"},
				{Name: "multivalue", Type: engine.Bool, Help: "whether to tell all values, not the first"},
			}},
	}
}

// CORS is which web pages may read lessor's answers: those of Origins, "*" being all. The zero CORS is switched off: browsers, left
// to themselves, let no page do so.
type CORS struct {
	Origins []string `json:"allowed_origins"`
	Headers []string `json:"allowed_headers"` // besides clientHeaders
}

var corsKey = store.Key{Table: store.Config, Name: store.MountKey(lessor.RootNamespace, "", "cors")}

// clientHeaders are those that pages may always send, once they may anything.
var clientHeaders = []string{
	"Content-Type", "X-Requested-With", "X-Vault-AWS-IAM-Server-ID", "X-Vault-MFA", "X-Vault-No-Request-Forwarding", "X-Vault-Wrap-Format",
	"X-Vault-Wrap-TTL", "X-Vault-Policy-Override", "Authorization", "X-Vault-Token",
}

// LoadCORS reads the configuration, with all headers that pages may send.
func LoadCORS(v store.View) (CORS, error) {
	row, err := v.Get(corsKey)
	if err != nil || !row.Exists() {
		return CORS{}, err
	}
	var c CORS
	if err := json.Unmarshal(row.Value, &c); err != nil {
		return CORS{}, fmt.Errorf("system: damaged row %s: %w", row.Key, err)
	}
	c.Headers = append(slices.Clone(clientHeaders), c.Headers...)
	return c, nil
}

func readCORS(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	c, err := LoadCORS(r.View)
	if err != nil {
		return nil, err
	}
	data := map[string]any{"enabled": len(c.Origins) > 0}
	if len(c.Origins) > 0 {
		data["allowed_origins"], data["allowed_headers"] = c.Origins, c.Headers
	}
	return &engine.Reply{Data: data, Flat: true}, nil
}

func writeCORS(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	c := CORS{Origins: r.List("allowed_origins"), Headers: r.List("allowed_headers")}
	size := len(strings.Join(c.Origins, "")) + len(strings.Join(c.Headers, ""))
	switch {
	case len(c.Origins) == 0:
		return nil, api.Errorf(api.Invalid, "at least one origin or the wildcard must be provided")
	case len(c.Origins) > 1 && slices.Contains(c.Origins, "*"):
		return nil, api.Errorf(api.Invalid, "to allow all origins the '*' must be the only value for allowed_origins")
	case size > 16<<10:
		return nil, api.Errorf(api.Invalid, "origins and headers have at most 16 KiB together")
	case slices.ContainsFunc(append(slices.Clone(c.Origins), c.Headers...), func(s string) bool { return strings.ContainsAny(s, " ,;\r\n\t\x00") || s == "" }):
		return nil, api.Errorf(api.Invalid, "an origin or header is empty, or has white space, a comma or a semicolon in it")
	}
	reply := &engine.Reply{Note: "web pages of other origins admitted"}
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	reply.Txn.Put(corsKey.Table, corsKey.Name, raw)
	return reply, nil
}

func deleteCORS(context.Context, *engine.Request) (*engine.Reply, error) {
	reply := &engine.Reply{}
	reply.Txn.Delete(corsKey.Table, corsKey.Name)
	return reply, nil
}

var headerRows = store.MountKey(lessor.RootNamespace, "", "ui-header/")

func headerKey(r *engine.Request) store.Key {
	return store.Key{Table: store.Config, Name: headerRows + http.CanonicalHeaderKey(r.Param("header"))}
}

func listHeaders(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	names, err := engine.List(r.View, store.Config, headerRows)
	if err != nil {
		return nil, err
	}
	return engine.Keys(names)
}

func readHeader(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	row, err := r.View.Get(headerKey(r))
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, empty()
	}
	var values []string
	if err := json.Unmarshal(row.Value, &values); err != nil || len(values) == 0 {
		return nil, fmt.Errorf("system: damaged row %s", row.Key)
	}
	if r.Bool("multivalue") {
		return &engine.Reply{Data: map[string]any{"values": values}}, nil
	}
	return &engine.Reply{Data: map[string]any{"value": values[0]}}, nil
}

func writeHeader(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	values := r.List("values")
	switch {
	case len(values) == 0:
		return nil, api.Errorf(api.Invalid, "header and values must be specified")
	case strings.HasPrefix(strings.ToLower(r.Param("header")), "x-vault-"):
		return nil, api.Errorf(api.Invalid, "X-Vault headers cannot be set")
	case len(r.Param("header")) > 256 || len(strings.Join(values, "")) > 16<<10:
		return nil, api.Errorf(api.Invalid, "a header's name has at most 256 bytes, its values 16 KiB")
	}
	raw, err := json.Marshal(values)
	if err != nil {
		return nil, err
	}
	key := headerKey(r)
	reply := &engine.Reply{Warnings: []string{"the header is kept, but has no effect: this server has no user interface"}}
	reply.Txn.Put(key.Table, key.Name, raw)
	return reply, nil
}

func deleteHeader(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	reply, key := &engine.Reply{}, headerKey(r)
	reply.Txn.Delete(key.Table, key.Name)
	return reply, nil
}
