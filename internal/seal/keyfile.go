package seal

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/lessor-dev/lessor/internal/lessor"
	"golang.org/x/crypto/argon2"
)

// Names of the KEKs in the store.
const (
	KeyFileName  = "keyfile"
	RecoveryName = "recovery"
)

// maxKeyFile bounds what is read of a key file, in bytes.
const maxKeyFile = 16 << 10

// keyKEK wraps by a key in memory. What it wraps names the key: format byte, key id (8), what wrap made.
type keyKEK struct {
	name, where string
	key         [keySize]byte
}

const kekFormat = 1

func (k *keyKEK) Name() string { return k.name }

func (k *keyKEK) Wrap(root []byte) ([]byte, error) {
	id := keyID(k.key[:])
	return wrap(append([]byte{kekFormat}, id[:]...), k.key[:], rootLabel, root), nil
}

func (k *keyKEK) Unwrap(wrapped []byte) ([]byte, error) {
	id := keyID(k.key[:])
	if len(wrapped) < 1+len(id) {
		return nil, fmt.Errorf("the store's row for %s is %w: use another key, or restore the store from a backup", k.where, ErrDamaged)
	}
	if wrapped[0] == publicFormat {
		root, err := k.open(rootLabel, wrapped[1+len(id):])
		if err != nil {
			return nil, fmt.Errorf("the store's row for %s is %w: use another key, or restore the store from a backup", k.where, err)
		}
		return root, nil
	}
	if wrapped[0] != kekFormat {
		return nil, fmt.Errorf("the store's row for %s was %w: upgrade lessor", k.where, ErrNewer)
	}
	if theirs := [8]byte(wrapped[1:]); theirs != id {
		return nil, fmt.Errorf("%w: %s holds key %x, the store was sealed with key %x", ErrWrongKey, k.where, id, theirs)
	}
	root, err := unwrap(k.key[:], rootLabel, wrapped[1+len(id):])
	if err != nil {
		return nil, fmt.Errorf("the store's row for %s is %w: use another key, or restore the store from a backup", k.where, err)
	}
	return root, nil
}

// Forget zeroes the key; the KEK wraps and unwraps no more.
func (k *keyKEK) Forget() { clear(k.key[:]) }

// KeyFile is a KEK in a file that only its owner may read: whoever starts lessor with it needs nothing else. It lies
// outside of the data folder, so that no backup holds both.
type KeyFile struct{ keyKEK }

// Recovery is a KEK in a file that is encrypted under a passphrase, for the day when the key file is lost. Keep it where
// neither the data nor the key file is.
type Recovery struct{ keyKEK }

// CreateKeyFile makes a new key, from random, and writes it to path, mode 0600, durably. Folders are made as needed, mode
// 0700. A file that is already there is left alone: the error says that the data may be missing. Once the file exists,
// losing it loses the store that Init made with it, but for other KEKs.
func CreateKeyFile(path string, random io.Reader) (*KeyFile, error) {
	k := &KeyFile{keyKEK{name: KeyFileName, where: "the key file " + path}}
	if _, err := io.ReadFull(random, k.key[:]); err != nil {
		return nil, fmt.Errorf("seal: no randomness: %w", err)
	}
	err := writeNew(path, keyFileText(&k.key))
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("refusing to make a new store: the key file %s already exists, so there should be data, but there is none: "+
			"check the data folder, or restore the data; only if it is not needed any more, move the key file away", path)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot write the key file: %w", err)
	}
	return k, nil
}

// OpenKeyFile reads the key file at path, for a store that has data. The error is ErrMissing if there is none,
// ErrDamaged if it makes no sense; it refuses a file that others than its owner may read or write.
func OpenKeyFile(path string) (*KeyFile, error) {
	text, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("refusing to start: the key file %s is missing; restore it from where you keep it, or use the recovery file, with its passphrase in a file that LESSOR_RECOVERY_PASSPHRASE_FILE names (%w)", path, ErrMissing)
	}
	if err != nil {
		return nil, fmt.Errorf("refusing to start: the key file %w", err)
	}
	defer clear(text)
	key, err := parseKeyFile(string(text))
	if err != nil {
		return nil, fmt.Errorf("refusing to start: the key file %s is %w", path, err)
	}
	return &KeyFile{keyKEK{KeyFileName, "the key file " + path, key}}, nil
}

// CreateRecovery makes a new key, from random, and writes it to path, encrypted under passphrase; otherwise as CreateKeyFile.
// Add it to the store by Init or Keyring.WrapRoot.
func CreateRecovery(path string, passphrase lessor.Secret, random io.Reader) (*Recovery, error) {
	if len(line(passphrase)) < minPassphrase {
		return nil, fmt.Errorf("the recovery passphrase must have at least %d characters: better, five random words or more", minPassphrase)
	}
	k := &Recovery{keyKEK{name: RecoveryName, where: "the recovery file " + path}}
	cost := recoveryCost
	for _, b := range [][]byte{k.key[:], cost.salt[:]} {
		if _, err := io.ReadFull(random, b); err != nil {
			return nil, fmt.Errorf("seal: no randomness: %w", err)
		}
	}
	if err := writeNew(path, recoveryText(&k.key, cost, passphrase)); err != nil {
		return nil, fmt.Errorf("cannot write the recovery file: %w", err)
	}
	return k, nil
}

// OpenRecovery reads the recovery file at path. It takes a moment and 64 MiB of memory, so that guessing is slow.
// ErrWrongKey means the wrong passphrase, or an altered file, which nobody can tell apart.
func OpenRecovery(path string, passphrase lessor.Secret) (*Recovery, error) {
	text, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the recovery file %s is missing (%w)", path, ErrMissing)
	}
	if err != nil {
		return nil, fmt.Errorf("the recovery file %w", err)
	}
	cost, sealed, err := parseRecovery(string(text))
	if err != nil {
		return nil, fmt.Errorf("the recovery file %s is %w", path, err)
	}
	key, err := cost.open(sealed, passphrase)
	if err != nil {
		return nil, fmt.Errorf("%w: the passphrase does not open the recovery file %s", ErrWrongKey, path)
	}
	return &Recovery{keyKEK{RecoveryName, "the recovery file " + path, key}}, nil
}

const (
	keyFileVersion  = "lessor key file, version "
	recoveryVersion = "lessor recovery file, version "
	minPassphrase   = 12
)

// keyFileText is what a key file says. The id catches a copy with a slip.
func keyFileText(key *[keySize]byte) string {
	id := keyID(key[:])
	return keyFileVersion + "1\n" +
		"# Whoever holds this file and a copy of the store can read every secret. Without it, or another key\n" +
		"# that the store was given, nobody can. Keep a copy, away from the data and from its backups.\n" +
		"id:  " + hex.EncodeToString(id[:]) + "\n" +
		"key: " + base64.StdEncoding.EncodeToString(key[:]) + "\n"
}

func parseKeyFile(text string) (key [keySize]byte, err error) {
	fields, err := parseFields(text, keyFileVersion, "id", "key")
	if err != nil {
		return key, err
	}
	if err := decodeKey(&key, fields["key"]); err != nil {
		return key, err
	}
	if id := keyID(key[:]); hex.EncodeToString(id[:]) != fields["id"] {
		return [keySize]byte{}, fmt.Errorf("%w: id and key do not belong together", ErrDamaged)
	}
	return key, nil
}

func decodeKey(key *[keySize]byte, text string) error {
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	defer clear(b)
	if err != nil || len(b) != keySize {
		return fmt.Errorf("%w: the key is not %d bytes in base64", ErrDamaged, keySize)
	}
	copy(key[:], b)
	return nil
}

// cost is how a passphrase becomes a key, by argon2id.
type cost struct {
	time, memory uint32 // passes; KiB
	threads      uint8
	salt         [16]byte
}

// recoveryCost is RFC 9106's second recommendation. The salt is still to be drawn.
var recoveryCost = cost{time: 3, memory: 64 << 10, threads: 4}

func (c cost) String() string {
	return fmt.Sprintf("argon2id time=%d memory=%d threads=%d salt=%s", c.time, c.memory, c.threads, hex.EncodeToString(c.salt[:]))
}

// parseCost accepts what String makes and nothing else, within what a machine can bear.
func parseCost(text string) (c cost, err error) {
	var salt []byte
	if _, err := fmt.Sscanf(text, "argon2id time=%d memory=%d threads=%d salt=%x", &c.time, &c.memory, &c.threads, &salt); err != nil || len(salt) != len(c.salt) {
		return c, fmt.Errorf("%w: kdf makes no sense", ErrDamaged)
	}
	copy(c.salt[:], salt)
	if c.time < 1 || c.time > 64 || c.memory < 8<<10 || c.memory > 4<<20 || c.threads < 1 || c.String() != text {
		return c, fmt.Errorf("%w: kdf makes no sense", ErrDamaged)
	}
	return c, nil
}

// line is a passphrase without the line breaks at its end, which files and pipes bring along and nobody types: the same words open a
// recovery file, whatever way they come.
func line(passphrase lessor.Secret) string { return strings.TrimRight(passphrase.Reveal(), "\r\n") }

// stretch makes the key that the passphrase stands for.
func (c cost) stretch(passphrase lessor.Secret) []byte {
	return argon2.IDKey([]byte(line(passphrase)), c.salt[:], c.time, c.memory, c.threads, keySize)
}

func (c cost) open(sealed []byte, passphrase lessor.Secret) (key [keySize]byte, err error) {
	stretched := c.stretch(passphrase)
	defer clear(stretched)
	b, err := unwrap(stretched, c.String(), sealed)
	if err == nil && len(b) != keySize {
		err = ErrDamaged
	}
	if err != nil {
		return key, err
	}
	defer clear(b)
	copy(key[:], b)
	return key, nil
}

func recoveryText(key *[keySize]byte, c cost, passphrase lessor.Secret) string {
	stretched := c.stretch(passphrase)
	defer clear(stretched)
	sealed := wrap(nil, stretched, c.String(), key[:])
	id := keyID(key[:])
	return recoveryVersion + "1\n" +
		"# With its passphrase this file unseals the store when the key file is lost. Keep it where neither of them is.\n" +
		"id:  " + hex.EncodeToString(id[:]) + "\n" +
		"kdf: " + c.String() + "\n" +
		"key: " + base64.StdEncoding.EncodeToString(sealed) + "\n"
}

func parseRecovery(text string) (c cost, sealed []byte, err error) {
	fields, err := parseFields(text, recoveryVersion, "id", "kdf", "key")
	if err != nil {
		return c, nil, err
	}
	if c, err = parseCost(fields["kdf"]); err != nil {
		return c, nil, err
	}
	sealed, err = base64.StdEncoding.Strict().DecodeString(fields["key"])
	if err != nil || len(sealed) != wrapSize+keySize {
		return c, nil, fmt.Errorf("%w: the key makes no sense", ErrDamaged)
	}
	return c, sealed, nil
}

// parseFields reads a version line, then "name: value" lines, each of the names once, among comments and empty lines.
func parseFields(text, version string, names ...string) (map[string]string, error) {
	first, rest, _ := strings.Cut(text, "\n")
	number, ok := strings.CutPrefix(strings.TrimSpace(first), version)
	if !ok {
		return nil, fmt.Errorf("%w: the first line is not %q", ErrDamaged, version+"1")
	}
	if n, err := strconv.Atoi(number); err != nil {
		return nil, fmt.Errorf("%w: the first line is not %q", ErrDamaged, version+"1")
	} else if n != 1 {
		return nil, fmt.Errorf("%w (version %d): upgrade lessor", ErrNewer, n)
	}
	fields := map[string]string{}
	for line := range strings.Lines(rest) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if _, twice := fields[name]; !ok || twice {
			return nil, fmt.Errorf("%w: a line is neither a comment nor new", ErrDamaged)
		}
		fields[name] = strings.TrimSpace(value)
	}
	for _, name := range names {
		if fields[name] == "" {
			return nil, fmt.Errorf("%w: it names no %s", ErrDamaged, name)
		}
	}
	if len(fields) != len(names) {
		return nil, fmt.Errorf("%w: it says more than %s", ErrDamaged, strings.Join(names, ", "))
	}
	return fields, nil
}

// readPrivate reads a file that only its owner may use. Its errors continue a sentence that begins with what the file is.
func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s can be used by others than its owner (mode %04o): run chmod 600 %s, and consider whether someone read it", path, mode, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("%s is %w: it is far too long", path, ErrDamaged)
	}
	return text, nil
}

// writeNew writes a file that was not there, mode 0600, and returns when it would survive a crash. On failure it leaves none.
func writeNew(path, text string) (err error) {
	dir := filepath.Dir(path)
	if err := makeDirs(dir); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			_ = os.Remove(path)
		}
	}()
	if err := f.Chmod(0o600); err != nil { // whatever the umask is
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return syncDir(dir)
}

// makeDirs makes dir and what is missing above it, durably.
func makeDirs(dir string) error {
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if err := makeDirs(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// MemoryName is the name in the store of the KEK of a store that ends with its process.
const MemoryName = "memory"

// Key is a KEK that is kept nowhere but in memory.
type Key struct{ keyKEK }

// NewKey makes a Key from random, named name.
func NewKey(name string, random io.Reader) (*Key, error) {
	k := &Key{keyKEK{name: name, where: "the unseal key"}}
	if _, err := io.ReadFull(random, k.key[:]); err != nil {
		return nil, fmt.Errorf("seal: no randomness: %w", err)
	}
	return k, nil
}

// Text is the key in base64, as a Quorum takes it.
func (k *keyKEK) Text() lessor.Secret {
	return lessor.NewSecret(base64.StdEncoding.EncodeToString(k.key[:]))
}
