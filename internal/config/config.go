// Package config is what the operator may decide about a server: the flags of "lessor server", and configuration files in
// HCL or JSON with Vault's stanzas. Without either there are defaults that need no ceremony: data in the user's data
// folder, the key file outside of it, plain HTTP on loopback.
//
// Nothing is guessed and nothing is passed over: a setting that lessor does not know is an error that names its line,
// and so is one that is set twice.
package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/lockout"
)

// Config is a server's configuration. Flags and Parse make it complete; Validate has accepted it.
type Config struct {
	Storage   Storage
	Listeners []Listener // at least one
	Seal      Seal
	Audit     Audit
	Backup    Backup
	Dev       Dev
	Lockout   lockout.Settings // of users who fail to log in

	RequireOwner    bool          // refuse mounts, roles and secrets that nobody owns
	DefaultLeaseTTL time.Duration // of tokens and dynamic credentials, where nothing nearer says so
	MaxLeaseTTL     time.Duration // at least DefaultLeaseTTL
	ReportedVersion string        // what clients that look for a version of Vault are told

	RotatorDirectory string   // where programs are that rotate secrets: absolute; empty: none are run
	RotatorSameUser  bool     // such programs may run as the user that lessor runs as
	RotatorHosts     []string // hosts of webhooks that rotate secrets, in lower case, without ports; "*" is any; none: no webhook is called

	NodeName    string        // of this node, in audit records and to operators: NodeName's pattern; the host's unless said otherwise
	DrainDelay  time.Duration // how long a node that is told to stop still takes connections, so that load balancers notice; at most ten minutes
	APIAddr     string        // URL at which clients reach this node; empty: the first listener's
	ClusterAddr string        // accepted for Vault's sake; nodes do not talk to each other
	ClusterName string        // empty: chosen at the first start
	PIDFile     string        // empty: none
	UI          bool
	LogLevel    slog.Level // LevelTrace and up
	LogJSON     bool
}

// LevelTrace is below slog's levels: each request, without anything secret.
const LevelTrace = slog.LevelDebug - 4

// StorageType is where the store is.
type StorageType string

const (
	Pebble     StorageType = "pebble"     // embedded, in a folder; one node
	PostgreSQL StorageType = "postgresql" // several nodes
	Mem        StorageType = "mem"        // gone at the end of the process
)

// Storage says where the store is.
type Storage struct {
	Type          StorageType
	Path          string        // Pebble: the data folder
	ConnectionURL lessor.Secret // PostgreSQL: URL or keyword/value string; may hold a password
	Connections   int           // PostgreSQL: of this node to the database, at most; 0: 20
}

// Seal says what unseals the store; each of it does alone. At a start the key file is tried first, then the recovery file; with
// neither, the store waits for the keys of a Shamir seal.
type Seal struct {
	KeyFile  string // path; empty: none
	Recovery Recovery
	Shamir   bool   // the store is initialised, and may be unsealed, by people who hold a share each
	Anchor   string // path of the file that remembers how far the store had come; empty only with Mem
}

// Recovery is a file under a passphrase.
type Recovery struct {
	Path           string // empty: none
	PassphraseFile string // path; empty: the recovery file is not used by itself
}

// Audit says how long audit records are kept.
type Audit struct {
	Retention   time.Duration // at least a day; 0: for ever
	Patience    time.Duration // how much longer for the sake of an audit device that lags; 0: not at all
	AllowPrefix bool          // files of audit devices may have a prefix before each line
}

// Backup says where the store is backed up to, and how often. Only the embedded store is.
type Backup struct {
	Destination string        // URL, see archive.Open; empty: it is not
	Interval    time.Duration // from one increment to the next; a second or more
	Full        time.Duration // from one whole copy to the next; not less than Interval
	Keep        time.Duration // how far back each state can be restored; 0: for ever
}

// validate says what is wrong with b.
func (b Backup) validate(s Storage) error {
	if b.Destination == "" {
		return nil
	}
	switch s.Type {
	case PostgreSQL:
		return errors.New(`backup: with storage "postgresql" the store is backed up as that database is, by base backups and its write-ahead log: leave out backup`)
	case Mem:
		return errors.New(`backup: storage "mem" forgets everything: leave out backup, or use storage "pebble"`)
	}
	u, err := url.Parse(b.Destination)
	if err != nil || u.Scheme != "file" && u.Scheme != "s3" {
		return errors.New("backup: destination must be a URL like file:///var/backups/lessor or s3://bucket/prefix")
	}
	if u.Scheme == "file" && (Within(u.Path, s.Path) || Within(s.Path, u.Path)) {
		return fmt.Errorf("backup: the destination %s and the data folder %s are lost together: back up to another disk, or another machine", u.Path, s.Path)
	}
	if b.Interval < time.Second || b.Full < b.Interval || b.Keep != 0 && b.Keep < b.Full {
		return errors.New("backup: interval must be a second or more, full not shorter than interval, and keep not shorter than full, or 0 to keep everything")
	}
	return nil
}

// Listener is one address to serve.
type Listener struct {
	Address        string // host:port; an empty host is every interface; port 0: any free one
	TLS            bool
	CertFile       string         // PEM; both empty only for Dev.TLS
	KeyFile        string         // PEM
	MinVersion     uint16         // tls.VersionTLS12 or tls.VersionTLS13
	ClientCAFile   string         // PEM of the authorities of clients' certificates; empty: none are named
	RequireClients bool           // take no connection without a certificate of those
	IgnoreClients  bool           // ask clients for no certificate
	TrustedProxies []netip.Prefix // whose X-Forwarded-For is believed
	AllowPlaintext bool           // plain HTTP off loopback: the operator said so in words
}

// Dev is the development mode: in memory, unsealed, with a root token that is printed. Never for anything worth keeping.
type Dev struct {
	Enabled      bool
	RootToken    lessor.Secret // empty: a random one
	NoStoreToken bool          // do not leave the root token in ~/.lessor-token
	TLS          bool          // the first listener uses a certificate made for the occasion
	TLSCertDir   string        // where that certificate and its CA go; empty: a temporary folder
	TLSNames     []string      // further names and addresses that the certificate is for
	KV1          bool          // secret/ keeps no versions
}

// complete fills in what neither flags nor files said.
func (c *Config) complete(env environment) error {
	if c.Storage.Type == "" {
		c.Storage.Type = Pebble
	}
	if c.Storage.Type == Pebble && c.Storage.Path == "" {
		dir, err := env.dataDir()
		if err != nil {
			return err
		}
		c.Storage.Path = dir
	}
	if err := c.Seal.complete(c.Storage.Type, env); err != nil {
		return err
	}
	if len(c.Listeners) == 0 {
		c.Listeners = []Listener{{Address: defaultAddress, MinVersion: tls.VersionTLS12}}
	}
	if c.NodeName == "" {
		c.NodeName = env.nodeName()
	}
	if c.DrainDelay < 0 {
		c.DrainDelay = 0
		if c.Storage.Type == PostgreSQL {
			c.DrainDelay = drainDelay
		}
	}
	return nil
}

// drainDelay is DrainDelay where other nodes serve meanwhile: two or three health checks of a load balancer.
const drainDelay = 5 * time.Second

var nodeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// IsNodeName says whether a node may be called that: a letter or digit, then up to 62 letters, digits, dots, dashes and underscores.
func IsNodeName(name string) bool { return nodeName.MatchString(name) }

// AnchorSuffix is what the anchor is called by unless the configuration says otherwise: after the key file, beside it.
const AnchorSuffix = ".anchor"

func (s *Seal) complete(t StorageType, env environment) error {
	if t == Mem {
		return nil
	}
	file := s.KeyFile
	if file == "" {
		usual, err := env.keyFile()
		switch {
		case err != nil && (!s.Shamir || s.Anchor == ""):
			return err
		case !s.Shamir:
			s.KeyFile = usual
		}
		file = usual
	}
	if s.Anchor == "" {
		s.Anchor = file + AnchorSuffix
	}
	return nil
}

const defaultAddress = "127.0.0.1:8200"

func defaults() Config {
	return Config{
		Audit:           Audit{Retention: 400 * day, Patience: 30 * day},
		DrainDelay:      -1, // complete knows
		DefaultLeaseTTL: 32 * day,
		MaxLeaseTTL:     32 * day,
		ReportedVersion: "1.20.0",
		LogLevel:        slog.LevelInfo,
	}
}

var semver = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

// Validate says all that is wrong with c, one line each; nil if nothing is. It reads no file.
func (c Config) Validate() error {
	var wrong []error
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }

	switch c.Storage.Type {
	case Pebble:
		if c.Storage.Path == "" {
			complain(`storage "pebble" needs a path`)
		}
	case PostgreSQL:
		if c.Storage.ConnectionURL.Empty() {
			complain(`storage "postgresql" needs a connection_url`)
		}
	case Mem:
		if c.Seal != (Seal{}) {
			complain(`storage "mem" forgets everything, so it takes no key file and no other seal: leave out seal, or use storage "pebble"`)
		}
	default:
		complain("unknown storage %q: use %q, %q or %q", c.Storage.Type, Pebble, PostgreSQL, Mem)
	}
	if c.Storage.Type != Mem && c.Seal.KeyFile == "" && !c.Seal.Shamir {
		complain(`seal "keyfile" needs a path`)
	}
	if c.Storage.Type != Mem && c.Seal.Anchor == "" {
		complain("the anchor needs a path")
	}
	if c.RotatorDirectory != "" && !filepath.IsAbs(c.RotatorDirectory) {
		complain("rotator_directory must be an absolute path")
	}
	if slices.ContainsFunc(c.RotatorHosts, func(h string) bool { return h == "" || strings.ContainsAny(h, "/@ []") || h != strings.ToLower(h) }) {
		complain(`rotator_hosts must be names or addresses in lower case, without ports, such as ["rotators.example.org"]`)
	}
	for what, path := range map[string]string{
		"key file": c.Seal.KeyFile, "recovery file": c.Seal.Recovery.Path, "recovery passphrase": c.Seal.Recovery.PassphraseFile,
	} {
		if c.Storage.Type == Pebble && path != "" && Within(path, c.Storage.Path) {
			complain("the %s %s is inside the data folder %s, where every backup of the data would hold the key: keep it elsewhere", what, path, c.Storage.Path)
		}
	}
	if c.Storage.Type == Pebble && c.Seal.Anchor != "" && Within(c.Seal.Anchor, c.Storage.Path) {
		complain("the anchor %s is inside the data folder %s, and would be put back to an earlier state together with it: keep it elsewhere", c.Seal.Anchor, c.Storage.Path)
	}

	if len(c.Listeners) == 0 {
		complain("there is no listener")
	}
	for i, l := range c.Listeners {
		if err := l.validate(c.Dev, i == 0); err != nil {
			wrong = append(wrong, err)
		}
		same := func(o Listener) bool { return o.Address == l.Address && !strings.HasSuffix(l.Address, ":0") }
		if slices.ContainsFunc(c.Listeners[:i], same) {
			complain("two listeners for %s", l.Address)
		}
	}

	if c.Dev.Enabled && c.Storage.Type != Mem {
		complain("-dev keeps everything in memory: leave out storage and -data, or -dev")
	}
	if c.Audit.Retention < 0 || c.Audit.Retention > 0 && c.Audit.Retention < day {
		complain("audit: retention must be a day or more, or 0 to keep everything")
	}
	if err := c.Backup.validate(c.Storage); err != nil {
		wrong = append(wrong, err)
	}
	switch {
	case c.DefaultLeaseTTL <= 0 || c.MaxLeaseTTL <= 0:
		complain("default_lease_ttl and max_lease_ttl must be longer than 0")
	case c.DefaultLeaseTTL > c.MaxLeaseTTL:
		complain("default_lease_ttl (%s) is longer than max_lease_ttl (%s)", c.DefaultLeaseTTL, c.MaxLeaseTTL)
	}
	if !semver.MatchString(c.ReportedVersion) {
		complain("reported_version %q is no version like 1.20.0", c.ReportedVersion)
	}
	if !IsNodeName(c.NodeName) {
		complain("node_name %q is no name of a node: it has 1 to 63 letters, digits, dots, dashes and underscores, and begins with a letter or digit", c.NodeName)
	}
	if c.DrainDelay < 0 || c.DrainDelay > 10*time.Minute {
		complain("drain_delay must be ten minutes or less")
	}
	if !webAddress(c.APIAddr) {
		complain("api_addr must be a URL like https://lessor.example.com:8200")
	}
	if !webAddress(c.ClusterAddr) {
		complain("cluster_addr must be a URL like https://10.0.0.1:8201")
	}
	return errors.Join(wrong...)
}

func (l Listener) validate(dev Dev, first bool) error {
	host, port, err := net.SplitHostPort(l.Address)
	if err != nil {
		return fmt.Errorf("listener: address %q is not host:port", l.Address)
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return fmt.Errorf("listener %s: no such port", l.Address)
	}
	madeUp := dev.Enabled && dev.TLS && first
	switch {
	case l.TLS && !madeUp && (l.CertFile == "" || l.KeyFile == ""):
		return fmt.Errorf("listener %s: set tls_cert_file and tls_key_file, or tls_disable = true", l.Address)
	case !l.TLS && (l.CertFile != "" || l.KeyFile != ""):
		return fmt.Errorf("listener %s: tls_disable and tls_cert_file or tls_key_file contradict each other", l.Address)
	case !l.TLS && (l.ClientCAFile != "" || l.RequireClients):
		return fmt.Errorf("listener %s: tls_disable and tls_client_ca_file or tls_require_and_verify_client_cert contradict each other", l.Address)
	case l.IgnoreClients && (l.ClientCAFile != "" || l.RequireClients):
		return fmt.Errorf("listener %s: tls_disable_client_certs and tls_client_ca_file or tls_require_and_verify_client_cert contradict each other", l.Address)
	case l.RequireClients && l.ClientCAFile == "":
		return fmt.Errorf("listener %s: tls_require_and_verify_client_cert needs a tls_client_ca_file", l.Address)
	case l.TLS && l.MinVersion < tls.VersionTLS12:
		return fmt.Errorf("listener %s: tls_min_version must be tls12 or tls13", l.Address)
	case !l.TLS && dev.Enabled && !loopback(host):
		return fmt.Errorf("-dev listens on loopback only, not on %s: use -dev-tls", l.Address)
	case !l.TLS && !loopback(host) && !l.AllowPlaintext:
		return fmt.Errorf("listener %s: plain HTTP off loopback shows every token and secret to the network: "+
			"set tls_cert_file and tls_key_file, or say allow_plaintext_off_loopback = true", l.Address)
	}
	return nil
}

// webAddress says whether addr is empty or the URL of a web server.
func webAddress(addr string) bool {
	u, err := url.Parse(addr)
	return addr == "" || err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

// loopback says whether host is this machine for sure.
func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return strings.EqualFold(strings.TrimSuffix(host, "."), "localhost")
	}
	return addr.Unmap().IsLoopback()
}

// Within says whether path lies in dir, by name.
func Within(path, dir string) bool {
	path, err1 := filepath.Abs(path)
	dir, err2 := filepath.Abs(dir)
	if err1 != nil || err2 != nil {
		return false
	}
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}
