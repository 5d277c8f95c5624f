package config

import (
	"crypto/tls"
	"fmt"
	"time"

	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
)

// HCL is a configuration file from which Parse reads c again, as far as c says what a node over PostgreSQL needs: storage, key file,
// listeners, its name and address, and what all nodes should agree about. Lockout, development and backups are not in it. It may hold a password.
func (c Config) HCL() []byte {
	f := hclwrite.NewEmptyFile()
	top := writer{f.Body()}
	top.text("node_name", c.NodeName)
	top.text("api_addr", c.APIAddr)
	top.text("cluster_name", c.ClusterName)
	f.Body().AppendNewline()
	storage := top.block("storage", string(PostgreSQL))
	storage.text("connection_url", c.Storage.ConnectionURL.Reveal())
	if c.Storage.Connections > 0 {
		storage.SetAttributeValue("max_parallel", cty.NumberIntVal(int64(c.Storage.Connections)))
	}
	file := top.block("seal", "keyfile")
	file.text("path", c.Seal.KeyFile)
	file.text("anchor", c.Seal.Anchor)
	for _, l := range c.Listeners {
		listener := top.block("listener", "tcp")
		listener.text("address", l.Address)
		listener.flag("tls_disable", !l.TLS)
		listener.text("tls_cert_file", l.CertFile)
		listener.text("tls_key_file", l.KeyFile)
		listener.text("tls_client_ca_file", l.ClientCAFile)
		listener.flag("tls_require_and_verify_client_cert", l.RequireClients)
		listener.flag("tls_disable_client_certs", l.IgnoreClients)
		if l.MinVersion == tls.VersionTLS13 {
			listener.text("tls_min_version", "tls13")
		}
		listener.flag("allow_plaintext_off_loopback", l.AllowPlaintext)
	}
	trail := top.block("audit")
	trail.duration("retention", c.Audit.Retention)
	trail.duration("exporter_patience", c.Audit.Patience)
	top.duration("default_lease_ttl", c.DefaultLeaseTTL)
	top.duration("max_lease_ttl", c.MaxLeaseTTL)
	top.text("reported_version", c.ReportedVersion)
	top.flag("allow_audit_log_prefixing", c.Audit.AllowPrefix)
	top.flag("require_owner", c.RequireOwner)
	top.text("rotator_directory", c.RotatorDirectory)
	top.flag("rotator_same_user", c.RotatorSameUser)
	top.words("rotator_hosts", c.RotatorHosts)
	top.flag("ui", c.UI)
	return hclwrite.Format(f.Bytes())
}

// writer puts settings into a stanza. What is empty or off is left out.
type writer struct{ *hclwrite.Body }

func (w writer) block(kind string, labels ...string) writer {
	b := w.AppendNewBlock(kind, labels)
	w.AppendNewline()
	return writer{b.Body()}
}

func (w writer) text(name, value string) {
	if value != "" {
		w.SetAttributeValue(name, cty.StringVal(value))
	}
}

func (w writer) flag(name string, on bool) {
	if on {
		w.SetAttributeValue(name, cty.True)
	}
}

func (w writer) words(name string, all []string) {
	var values []cty.Value
	for _, s := range all {
		values = append(values, cty.StringVal(s))
	}
	if len(values) > 0 {
		w.SetAttributeValue(name, cty.TupleVal(values))
	}
}

func (w writer) duration(name string, d time.Duration) {
	w.SetAttributeValue(name, cty.StringVal(fmt.Sprintf("%ds", int64(d/time.Second))))
}
