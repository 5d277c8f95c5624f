package exporter

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// Device is the configuration of one audit device. CBOR keys are on disk: never renumber, only append.
type Device struct {
	UUID        string            `cbor:"1,keyasint"` // 8 hex digits; names the cursor, and the device in its lines
	Path        string            `cbor:"2,keyasint"` // "file/", as Vault has it
	Type        string            `cbor:"3,keyasint"` // "file", "socket", "syslog"
	Description string            `cbor:"4,keyasint,omitempty"`
	Options     map[string]string `cbor:"5,keyasint,omitempty"` // as they were given
	Local       bool              `cbor:"6,keyasint,omitempty"`
	Created     time.Time         `cbor:"7,keyasint"`
	From        uint64            `cbor:"8,keyasint"` // the first commit that it is told
}

// Name is the path without its slash.
func (d *Device) Name() string { return strings.TrimSuffix(d.Path, "/") }

func byPath(a, b *Device) int { return cmp.Compare(a.Path, b.Path) }

// The types of devices.
const (
	File   = "file"
	Socket = "socket"
	Syslog = "syslog"
)

var (
	devices = store.MountKey(lessor.RootNamespace, "", "audit-device/")
	cursors = store.MountKey(lessor.RootNamespace, "", "audit-cursor/")
)

func (d *Device) key() store.Key    { return store.Key{Table: store.Config, Name: devices + d.Path} }
func (d *Device) cursor() store.Key { return store.Key{Table: store.Engine, Name: cursors + d.UUID} }

var encoding = func() cbor.EncMode {
	o := cbor.CoreDetEncOptions()
	o.Time = cbor.TimeUnixMicro
	m, err := o.EncMode()
	if err != nil {
		panic(err)
	}
	return m
}()

// Load reads all devices, by path.
func Load(v store.View) ([]*Device, error) {
	var all []*Device
	for row, err := range v.Scan(store.Config, devices, store.PrefixEnd(devices)) {
		if err != nil {
			return nil, err
		}
		d, err := decode(row)
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

func decode(row store.Row) (*Device, error) {
	d := &Device{}
	if err := cbor.Unmarshal(row.Value, d); err != nil {
		return nil, fmt.Errorf("exporter: damaged row %s: %w", row.Key, err)
	}
	d.Created = d.Created.UTC()
	return d, nil
}

// Find reads the device at a path, with or without a slash at its end; nil: there is none.
func Find(v store.View, path string) (*Device, error) {
	row, err := v.Get((&Device{Path: strings.TrimSuffix(path, "/") + "/"}).key())
	if err != nil || !row.Exists() {
		return nil, err
	}
	return decode(row)
}

// Enable adds to txn a new device, told from commit from on. It refuses, with an error of kind Invalid, options that make no sense and
// a path or file that another device has.
func Enable(v store.View, txn *store.Txn, d *Device, random io.Reader) error {
	if d.Path = strings.Trim(d.Path, "/") + "/"; d.Path == "/" {
		return wrong("backend path must be specified")
	}
	if len(d.Path) > engine.LongestPath {
		return wrong("the path of an audit device has at most %d bytes", engine.LongestPath)
	}
	s, err := parse(d.Type, d.Options)
	if err != nil {
		return err
	}
	all, err := Load(v)
	if err != nil {
		return err
	}
	for _, other := range all {
		if strings.HasPrefix(other.Path, d.Path) || strings.HasPrefix(d.Path, other.Path) {
			return wrong("path already in use")
		}
		if theirs, err := parse(other.Type, other.Options); err == nil && s.real() && theirs.file == s.file {
			return wrong("file_path already in use")
		}
	}
	var id [4]byte
	if _, err := io.ReadFull(random, id[:]); err != nil {
		return err
	}
	d.UUID = hex.EncodeToString(id[:])
	b, err := encoding.Marshal(d)
	if err != nil {
		return err
	}
	txn.Unchanged = append(txn.Unchanged, store.Since{Table: store.Config, Position: v.Position()}) // nobody took the path, or one around it
	txn.Put(store.Config, d.key().Name, b)
	return nil
}

// Disable removes a device and its cursor.
func Disable(txn *store.Txn, d *Device) {
	txn.Delete(store.Config, d.key().Name)
	txn.Delete(store.Engine, d.cursor().Name)
}

func wrong(format string, args ...any) error {
	return api.Errorf(api.Invalid, format+": invalid configuration", args...)
}

// unusable is the error of options that no device can be made of, as Vault words it.
func unusable(format string, args ...any) error {
	return api.Errorf(api.Invalid, "unable to create new audit backend: "+format, args...)
}

// settings are a device's options, parsed.
type settings struct {
	prefix       string
	accessors    bool // are hashed
	untested     bool // skip_test
	since        string
	file         string // file: absolute, cleaned; "stdout", "discard"
	mode         os.FileMode
	keepMode     bool
	network      string // socket
	address      string // socket; syslog: the socket of the daemon, empty: where it usually is
	writeTimeout time.Duration
	facility     int // syslog: its number
	tag          string
	unknown      []string
}

const (
	stdout  = "stdout"
	discard = "discard"
)

// real reports whether the device is a file by a name.
func (s *settings) real() bool { return s.file != "" && s.file != stdout && s.file != discard }

// facilities by name (RFC 3164, section 4.1.1).
var facilities = []string{
	"KERN", "USER", "MAIL", "DAEMON", "AUTH", "SYSLOG", "LPR", "NEWS", "UUCP", "CRON", "AUTHPRIV", "FTP", "NTP", "LOG_AUDIT", "LOG_ALERT", "CRON2",
	"LOCAL0", "LOCAL1", "LOCAL2", "LOCAL3", "LOCAL4", "LOCAL5", "LOCAL6", "LOCAL7",
}

// parse reads options as Vault's users write them.
func parse(kind string, options map[string]string) (*settings, error) {
	s := &settings{accessors: true, mode: 0o600, network: "tcp", writeTimeout: 2 * time.Second, facility: slices.Index(facilities, "AUTH"), tag: "vault"}
	switch kind {
	case File, Socket, Syslog:
	default:
		return nil, wrong("unknown backend type: %q", kind)
	}
	for _, name := range slices.Sorted(maps.Keys(options)) {
		if err := s.set(kind, name, options[name]); err != nil {
			return nil, err
		}
	}
	switch {
	case kind == File && s.file == "":
		return nil, unusable("%q is required: invalid configuration", "file_path")
	case kind == Socket && s.address == "":
		return nil, unusable("%q is required: invalid configuration", "address")
	}
	return s, nil
}

// set takes one option over.
func (s *settings) set(kind, name, value string) (err error) {
	yes := func() bool {
		b, bad := strconv.ParseBool(value)
		if bad != nil {
			err = unusable("unable to parse %q: invalid configuration", name)
		}
		return b
	}
	switch name {
	case "format":
		if value != "json" {
			return unusable("unsupported %q: lines are json here: invalid configuration", name)
		}
		return nil
	case "log_raw":
		if yes() {
			return unusable("%q is not supported: no value is in lessor's audit trail, so none can be shown: invalid configuration", name)
		}
		return err
	case "filter", "exclude", "fallback":
		return unusable("%q is not supported: every device is told every record, whole: invalid configuration", name)
	case "prefix":
		if s.prefix = value; len(value) > 64 || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
			return unusable("%q has at most 64 printable ASCII characters: invalid configuration", name)
		}
		return nil
	case "hmac_accessor":
		s.accessors = yes()
		return err
	case "elide_list_responses": // no answer is in a line, elided or not
		yes()
		return err
	case "skip_test":
		s.untested = yes()
		return err
	case "from":
		if s.since = value; value != "now" && value != "beginning" && value != "" {
			if _, bad := time.Parse(time.RFC3339Nano, value); bad != nil {
				return unusable("%q is now, beginning, or a time of the form 2006-01-02T15:04:05Z: invalid configuration", name)
			}
		}
		return nil
	}
	switch kind + " " + name {
	case "file file_path", "file path":
		return s.setFile(strings.TrimSpace(value))
	case "file mode":
		return s.setMode(strings.TrimSpace(value))
	case "socket address":
		s.address = strings.TrimSpace(value)
	case "socket socket_type":
		switch s.network = value; value {
		case "tcp", "udp", "unix":
		default:
			return unusable("%q is tcp, udp or unix: invalid configuration", name)
		}
	case "socket write_timeout":
		d, ok := engine.ParseDuration(value)
		if !ok || d < 10*time.Millisecond || d > time.Hour {
			return unusable("%q is a duration such as 2s: invalid configuration", name)
		}
		s.writeTimeout = d
	case "syslog socket_path":
		s.address = value
	case "syslog facility":
		if s.facility = slices.Index(facilities, strings.ToUpper(strings.TrimSpace(value))); s.facility < 0 {
			return unusable("%q is a facility of syslog, such as AUTH or LOCAL7: invalid configuration", name)
		}
	case "syslog tag":
		if s.tag = value; value == "" || len(value) > 32 || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("[]:", r) }) {
			return unusable("%q has 1 to 32 printable ASCII characters without blanks, brackets and colons: invalid configuration", name)
		}
	default:
		s.unknown = append(s.unknown, name)
	}
	return nil
}

func (s *settings) setFile(value string) (err error) {
	switch {
	case value == "":
		return unusable("file path is required: invalid configuration")
	case strings.EqualFold(value, stdout):
		s.file = stdout
	case strings.EqualFold(value, discard), value == os.DevNull:
		s.file = discard
	default:
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' }) {
			return unusable("the file's name has a control character: invalid configuration")
		}
		if s.file, err = filepath.Abs(value); err != nil {
			return unusable("the file's name cannot be resolved: invalid configuration")
		}
	}
	return nil
}

func (s *settings) setMode(value string) error {
	if value == "" {
		return nil
	}
	m, err := strconv.ParseUint(value, 8, 32)
	switch {
	case err != nil || m > 0o777:
		return unusable("invalid mode: %s", value)
	case m&0o111 != 0:
		return unusable("file mode may not be executable: %s", value)
	case m == 0:
		s.keepMode = true
	default:
		s.mode = os.FileMode(m)
	}
	return nil
}

// Ignored names the device's options that mean nothing here.
func (d *Device) Ignored() []string {
	s, err := parse(d.Type, d.Options)
	if err != nil {
		return nil
	}
	return s.unknown
}

// Untested reports whether the device is enabled without trying it.
func (d *Device) Untested() bool { s, err := parse(d.Type, d.Options); return err == nil && s.untested }

// Prefixed reports whether the device is a file whose lines begin with a prefix.
func (d *Device) Prefixed() bool { return d.Type == File && d.Options["prefix"] != "" }

// Where says in words where the device's lines go, for the audit record of enabling it.
func (d *Device) Where() string {
	s, err := parse(d.Type, d.Options)
	switch {
	case err != nil:
		return d.Type
	case d.Type == File:
		return "file " + s.file
	case d.Type == Socket:
		return s.network + " " + s.address
	}
	return strings.TrimSpace(Syslog + " " + s.address)
}

// Keys are what a device's hashes are made with; seal.Keyring implements it.
type Keys interface {
	Fingerprint(mount, path string, value []byte) []byte
}

// Digest is what audit records keep of a string in place of itself (a request header's value), from which every device makes its own hash.
func Digest(k Keys, s string) []byte { return k.Fingerprint("audit", "", []byte(s)) }

// Hash is what the device's lines say in place of s, as Vault writes it: "hmac-sha256:", then the hash in hex. Each device has a salt
// of its own.
func (d *Device) Hash(k Keys, s string) string { return d.rehash(k, Digest(k, s)) }

// rehash is the Hash of what has the given Digest.
func (d *Device) rehash(k Keys, digest []byte) string {
	h := hmac.New(sha256.New, k.Fingerprint("audit device", d.UUID, nil))
	h.Write(digest)
	return "hmac-sha256:" + hex.EncodeToString(h.Sum(nil))
}
