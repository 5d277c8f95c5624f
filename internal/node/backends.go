package node

import (
	"context"
	"fmt"
	"io"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"

	"github.com/lessor-dev/lessor/internal/auth/approle"
	"github.com/lessor-dev/lessor/internal/auth/token"
	"github.com/lessor-dev/lessor/internal/auth/userpass"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/cubbyhole"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/database/postgres"
	"github.com/lessor-dev/lessor/internal/engine/kv"
	"github.com/lessor-dev/lessor/internal/identity"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/system"
)

// backends are the engines and auth methods of this build.
type backends struct {
	all      map[string]engine.Backend // by the type of mounts
	system   *system.Backend
	tokens   *token.Backend
	database *database.Engine
}

func (n *Node) backends() *backends {
	b := &backends{
		system:   &system.Backend{Store: n.db, RequireOwner: n.config.RequireOwner},
		tokens:   &token.Backend{},
		database: database.New(postgres.Driver{}),
	}
	b.all = map[string]engine.Backend{
		"system": b.system, "identity": identity.Backend{}, "cubbyhole": cubbyhole.Backend{}, "token": b.tokens,
		"kv": kv.V1{}, "kv-v2": kv.V2{}, "database": b.database,
		"userpass": userpass.New(), "approle": approle.Backend{},
	}
	return b
}

// connect gives the engines that lead back into the core what they need of it.
func (b *backends) connect(n *Node) {
	reaper := n.core.Reaper()
	b.tokens.Settle = func(ctx context.Context, tomb string) error { return reaper.Settle(ctx, tomb) }
	b.system.Reaper, b.system.Backends = reaper, b.all
	b.system.Metrics = exposition(n)
	b.system.Info = n.info
}

// close drops the connections to targets.
func (b *backends) close() error {
	b.database.Shutdown()
	return nil
}

// info is what sys/lessor/info tells.
func (n *Node) info() map[string]any {
	head := n.db.Head()
	return map[string]any{
		"version": n.o.Version, "reported_version": n.config.ReportedVersion, "cluster_id": n.cluster.id, "cluster_name": n.cluster.name,
		"incarnation": head.Incarnation, "sequence": head.Seq, "storage": string(n.config.Storage.Type), "seal": sealType, "require_owner": n.config.RequireOwner,
	}
}

// exposition writes the node's metrics in Prometheus's text format.
func exposition(n *Node) func(context.Context, io.Writer) error {
	r := prometheus.NewRegistry()
	r.MustRegister(n.core, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return func(_ context.Context, w io.Writer) error {
		families, err := r.Gather()
		if err != nil {
			return err
		}
		e := expfmt.NewEncoder(w, expfmt.NewFormat(expfmt.TypeTextPlain))
		for _, f := range families {
			if err := e.Encode(f); err != nil {
				return err
			}
		}
		return nil
	}
}

// mountDevSecrets mounts secret/ as a development server has it: KV version 2.
func (n *Node) mountDevSecrets(ctx context.Context) error {
	id, err := identity.NewID(n.o.Random)
	if err != nil {
		return err
	}
	_, err = n.core.Handle(ctx, &lessor.Op{
		ID: id, Verb: lessor.Update, Namespace: lessor.RootNamespace, Path: "sys/mounts/secret", Token: n.Root, Time: n.db.Now(),
		Data: map[string]any{"type": "kv", "description": "key/value secret storage", "options": map[string]any{"version": "2"}},
	})
	if err != nil {
		return fmt.Errorf("mounting secret/: %w", err)
	}
	return nil
}
