package node

import (
	"context"
	"io"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/lessor-dev/lessor/internal/auth/approle"
	"github.com/lessor-dev/lessor/internal/auth/cert"
	"github.com/lessor-dev/lessor/internal/auth/jwt"
	authtoken "github.com/lessor-dev/lessor/internal/auth/token"
	"github.com/lessor-dev/lessor/internal/auth/userpass"
	"github.com/lessor-dev/lessor/internal/core"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/cubbyhole"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/database/mysql"
	"github.com/lessor-dev/lessor/internal/engine/database/postgres"
	"github.com/lessor-dev/lessor/internal/engine/database/rabbitmq"
	"github.com/lessor-dev/lessor/internal/engine/database/redis"
	"github.com/lessor-dev/lessor/internal/engine/kv"
	"github.com/lessor-dev/lessor/internal/engine/ldap"
	"github.com/lessor-dev/lessor/internal/engine/ldap/directory"
	"github.com/lessor-dev/lessor/internal/identity"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rotator"
	"github.com/lessor-dev/lessor/internal/system"
)

// backends are all that can be mounted, and those of them that look back into the core.
type backends struct {
	all    map[string]engine.Backend // by mount type
	system *system.Backend
	tokens *authtoken.Backend
	ldap   *ldap.Engine
}

// mountable makes them.
func (l *life) mountable() backends {
	jwts := jwt.New() // under both of its names
	b := backends{system: &system.Backend{}, tokens: &authtoken.Backend{}, ldap: ldap.New(directory.Open)}
	b.all = map[string]engine.Backend{
		"system": b.system, "token": b.tokens, "identity": identity.Backend{}, "cubbyhole": cubbyhole.Backend{},
		"kv": kv.V1{}, "kv-v2": kv.V2{Rotators: l.rotators()},
		"database": database.New(append(mysql.Drivers(), postgres.Driver{}, redis.Driver{})...), "rabbitmq": rabbitmq.New(), "ldap": b.ldap,
		"userpass": userpass.New(), "approle": approle.Backend{}, "cert": cert.Backend{}, "jwt": jwts, "oidc": jwts,
	}
	return b
}

// rotators calls those who rotate secrets of the key-value engine.
func (l *life) rotators() *rotator.Caller {
	c := l.n.config
	return &rotator.Caller{
		Directory: c.RotatorDirectory, SameUser: c.RotatorSameUser, Hosts: c.RotatorHosts,
		Mount: core.SystemMount, Keys: l.keys, Random: l.n.o.Random,
	}
}

// connect gives the backends what they need of the core, once there is one.
func (b backends) connect(l *life) {
	n, c := l.n, l.core
	b.tokens.Settle = func(ctx context.Context, tomb string) error { return c.Reaper().Settle(ctx, tomb) }
	b.ldap.Settle = func(ctx context.Context, l *lease.Lease) error { return c.Reaper().SettleLease(ctx, l) }
	registry := prometheus.NewRegistry()
	if l.backups != nil {
		registry.MustRegister(l.backups)
	}
	registry.MustRegister(c, l.exporters, n.revived(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	*b.system = system.Backend{
		Store: l.db, Reaper: c.Reaper(), Backends: b.all, RequireOwner: n.config.RequireOwner, Info: l.info, Keys: l.keys, Seal: l,
		Reported: n.config.ReportedVersion, Upgrade: c.Upgrade, Node: l.about(),
		Lockout:     n.config.Lockout,
		PrefixAudit: n.config.Audit.AllowPrefix, Exporters: l.exporters, Backups: l.backups, Welcome: l.welcome(),
		Metrics: system.Metrics{
			Text: func(_ context.Context, w io.Writer) error { return expose(registry, w) },
			JSON: func(_ context.Context, w io.Writer) error { return summarize(registry, n.Now(), w) },
		},
		Outside: n.outside(),
	}
	b.system.Rotators = l.rotators()
	b.system.Quotas, b.system.Events, b.system.Listen = c.Quotas(), c.Events(), c.Listen
}

// close drops what engines keep open: connections to targets.
func (b backends) close() {
	for _, e := range b.all {
		if open, ok := e.(interface{ Shutdown() }); ok {
			open.Shutdown()
		}
	}
}

// info is the answer of sys/lessor/info.
func (l *life) info() map[string]any {
	n, head := l.n, l.db.Head()
	info := map[string]any{
		"version": n.o.Version, "go_version": runtime.Version(), "cluster_id": l.cluster.id, "cluster_name": l.cluster.name,
		"storage": string(n.config.Storage.Type), "seal": n.sealType(n.locks(n.state.Load())), "incarnation": head.Incarnation, "sequence": head.Seq,
		"fenced": l.core.Fenced(), "started": n.started, "clock_alarm": nil,
	}
	if err := l.db.ClockAlarm(); err != nil {
		info["clock_alarm"] = err.Error()
	}
	return info
}

// mountDevSecrets mounts KV at secret/, where everybody who tries a development server looks for it.
func (n *Node) mountDevSecrets(ctx context.Context, c *core.Core) error {
	version := "2"
	if n.config.Dev.KV1 {
		version = "1"
	}
	_, err := c.Handle(ctx, &lessor.Op{
		ID: "dev", Verb: lessor.Update, Namespace: lessor.RootNamespace, Path: "sys/mounts/secret", Token: n.Root, Time: n.db.Now(),
		Data: map[string]any{"type": "kv", "options": map[string]any{"version": version}, "description": "key/value secret storage"},
	})
	return err
}
