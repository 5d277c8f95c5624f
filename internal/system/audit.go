package system

import (
	"context"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/exporter"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// auditRoutes are Vault's audit devices and what of requests is audited. The trail itself is not theirs: see ownRoutes.
func (b *Backend) auditRoutes() []engine.Route {
	return []engine.Route{
		{Pattern: "audit", Help: "list audit devices", Sudo: true, Ops: read(b.listDevices)},
		{Pattern: "audit/{path...}", Help: "audit devices: files, sockets and syslog that are told the audit trail", Sudo: true,
			Ops: ops{lessor.Update: b.enableDevice, lessor.Delete: b.disableDevice}, Fields: []engine.Field{
				{Name: "type", Type: engine.String, Help: "file, socket or syslog"},
				{Name: "description", Type: engine.String, Help: "for people"},
				{Name: "options", Type: engine.Pairs, Help: "file: file_path, mode; socket: address, socket_type, write_timeout; syslog: facility, tag, socket_path; " +
					"all: prefix, hmac_accessor, skip_test, from (now, beginning or a time)"},
				{Name: "local", Type: engine.Bool, Help: "kept for clients of Vault"},
			}},
		{Pattern: "audit-hash/{path...}", Help: "what an audit device's lines say in place of a string", Ops: update(b.deviceHash),
			Fields: []engine.Field{{Name: "input", Type: engine.String, Help: "the string"}}},
		{Pattern: "lessor/audit/check/{path...}", Help: "compare the file of an audit device with the trail, line by line", Sudo: true, Ops: read(b.checkDevice)},
		{Pattern: "config/auditing/request-headers", Help: "list the request headers that audit records keep", Sudo: true, Ops: read(b.listHeaders)},
		{Pattern: "config/auditing/request-headers/{header}", Help: "request headers that audit records keep", Sudo: true,
			Ops:    ops{lessor.Read: b.readHeader, lessor.Update: b.keepHeader, lessor.Delete: b.dropHeader},
			Fields: []engine.Field{{Name: "hmac", Type: engine.Bool, Help: "keep a hash of the value instead of the value; the default"}}},
	}
}

func (b *Backend) listDevices(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	all, err := exporter.Load(r.View)
	if err != nil {
		return nil, err
	}
	data := map[string]any{}
	for _, d := range all {
		options := d.Options
		if options == nil {
			options = map[string]string{}
		}
		data[d.Path] = map[string]any{
			"path": d.Path, "type": d.Type, "description": d.Description, "options": options, "local": d.Local, "lessor": b.deviceStatus(d),
		}
	}
	return &engine.Reply{Data: data, Flat: true}, nil
}

// deviceStatus is how a device fares, which Vault has no place for: clients pass over the key.
func (b *Backend) deviceStatus(d *exporter.Device) map[string]any {
	if b.Exporters == nil {
		return nil
	}
	s := b.Exporters.Status(d)
	return map[string]any{
		"device": d.UUID, "from_sequence": d.From, "state": s.State, "sequence": s.Seq, "lag_commits": s.Behind, "lag_records": s.Lag, "records": s.Told,
		"pruned_records": s.Lost, "error_kind": s.Kind, "error": s.Error, "failing_since": stamp(s.Failing), "ignored_options": d.Ignored(),
	}
}

func (b *Backend) enableDevice(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	d := &exporter.Device{
		Path: r.Param("path"), Type: r.Str("type"), Description: r.Str("description"), Options: r.Pairs("options"), Local: r.Bool("local"), Created: r.Now,
		From: r.View.Position() + 1, // so the commit that enables it is in
	}
	switch since := d.Options["from"]; since {
	case "", "now":
	case "beginning":
		d.From = 1
	default:
		if t, err := time.Parse(time.RFC3339Nano, since); err == nil { // Enable refuses what is no time
			if d.From, err = b.Store.Since(t); err != nil {
				return nil, err
			}
		}
	}
	if d.Prefixed() && !b.PrefixAudit {
		return nil, api.Errorf(api.Invalid, "audit prefixing is not enabled in configuration, audit prefixing may not be configured for file sinks")
	}
	reply := &engine.Reply{}
	if err := exporter.Enable(r.View, &reply.Txn, d, r.Random); err != nil {
		return nil, err
	}
	reply.Note = "to " + d.Where()
	if b.Exporters == nil {
		return reply, nil
	}
	if err := b.Exporters.Vet(d); err != nil {
		return nil, err
	}
	reply.Do = func(ctx context.Context) error {
		if d.Untested() {
			b.Exporters.Nudge()
			return nil
		}
		return b.Exporters.Enabled(ctx, d)
	}
	return reply, nil
}

func (b *Backend) disableDevice(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	d, err := exporter.Find(r.View, r.Param("path"))
	if err != nil || d == nil {
		return &engine.Reply{}, err
	}
	reply := &engine.Reply{Note: "was to " + d.Where()}
	exporter.Disable(&reply.Txn, d)
	if b.Exporters != nil {
		reply.Do = func(ctx context.Context) error { return b.Exporters.Disabled(ctx, d) }
	}
	return reply, nil
}

func (b *Backend) deviceHash(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	if r.Str("input") == "" {
		return nil, api.Errorf(api.Invalid, "the \"input\" parameter is empty")
	}
	d, err := exporter.Find(r.View, r.Param("path"))
	if err != nil {
		return nil, err
	}
	if d == nil {
		return nil, api.Errorf(api.Invalid, "unknown audit backend %q", strings.Trim(r.Param("path"), "/")+"/")
	}
	return &engine.Reply{Data: map[string]any{"hash": d.Hash(r.Opener, r.Str("input"))}, Flat: true}, nil
}

// checkDevice compares the lines of a device's file with the trail. What does not fit is an answer, no error.
func (b *Backend) checkDevice(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	d, err := exporter.Find(r.View, r.Param("path"))
	if err != nil {
		return nil, err
	}
	if d == nil || b.Exporters == nil {
		return nil, notFound("there is no audit device %q", r.Param("path"))
	}
	return &engine.Reply{Later: func(ctx context.Context) (map[string]any, error) {
		began := time.Now()
		report, err := b.Exporters.Check(ctx, d)
		if err != nil {
			return nil, err
		}
		data := map[string]any{
			"ok": report.Broken == "", "lines": report.Lines, "foreign_lines": report.Foreign, "pruned_lines": report.Pruned, "repeated_lines": report.Repeated,
			"missing_records": report.Missing, "first_sequence": report.First, "last_sequence": report.Last, "took_ms": time.Since(began).Milliseconds(),
		}
		if report.Broken != "" {
			data["broken"] = map[string]any{"line": report.Line, "reason": report.Broken}
		}
		return data, nil
	}}, nil
}

func (b *Backend) listHeaders(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	h, err := exporter.LoadHeaders(r.View)
	if err != nil {
		return nil, err
	}
	all := map[string]any{}
	for _, name := range h.Names {
		hashed, _ := h.Hashed(name)
		all[name] = map[string]any{"hmac": hashed}
	}
	return &engine.Reply{Data: map[string]any{"headers": all}, Flat: true}, nil
}

func (b *Backend) readHeader(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	h, err := exporter.LoadHeaders(r.View)
	if err != nil {
		return nil, err
	}
	hashed, kept := h.Hashed(r.Param("header"))
	if !kept {
		return nil, api.Errorf(api.Invalid, "Could not find header in config")
	}
	return &engine.Reply{Data: map[string]any{r.Param("header"): map[string]any{"hmac": hashed}}, Flat: true}, nil
}

func (b *Backend) keepHeader(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	reply := &engine.Reply{}
	return reply, exporter.KeepHeader(&reply.Txn, r.Param("header"), !r.Has("hmac") || r.Bool("hmac"))
}

func (b *Backend) dropHeader(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	reply := &engine.Reply{}
	exporter.DropHeader(&reply.Txn, r.Param("header"))
	return reply, nil
}
