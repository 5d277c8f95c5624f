package system

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
)

// Seal is what the seal's endpoints need of the node besides the store.
type Seal interface {
	// Rest begins to seal the node.
	Rest()
	// AddKeyFile makes a key file at path ("": the configuration's) and lets it unseal the store; it returns where the file is.
	AddKeyFile(ctx context.Context, op *lessor.Op, path string) (string, error)
	// AddRecovery does the same with a file under a passphrase.
	AddRecovery(ctx context.Context, op *lessor.Op, path string, passphrase lessor.Secret) (string, error)
	// Used says whether the node's configuration has it try the KEK of that name.
	Used(name string) bool
}

// sealRoutes change what unseals the store, and its keys, for whoever holds a token. What is done by showing keys instead
// (sys/unseal, sys/rekey, sys/generate-root) is the node's.
func (b *Backend) sealRoutes() []engine.Route {
	passphrase := engine.Field{Name: "passphrase", Type: engine.String, Help: "of the recovery file, 12 characters at least"}
	path := engine.Field{Name: "path", Type: engine.String, Help: "of the new file on the server; the configuration's if not given"}
	return []engine.Route{
		{Pattern: "seal", Help: "seal the node: forget the keys, and wait for them", Sudo: true, Ops: update(b.rest)},
		{Pattern: "key-status", Help: "the term of the keys in use", Ops: read(b.keyStatus)},
		{Pattern: "rotate", Help: "begin a new term of keys", Sudo: true, Ops: update(b.rotate)},
		{Pattern: "rotate/config", Help: "when terms of keys end by themselves", Fields: []engine.Field{
			{Name: "enabled", Type: engine.Bool, Help: "whether they do"},
			{Name: "max_operations", Type: engine.Int, Help: "commits in a term at most"},
			{Name: "interval", Type: engine.Duration, Help: "how long a term lasts at most; 0: as long as may be"},
		}, Ops: ops{lessor.Read: b.readRotation, lessor.Update: b.writeRotation}},
		{Pattern: "rekey/backup", Help: "the last rekey's keys, encrypted to the PGP keys that were given", Ops: ops{lessor.Read: b.readBackup, lessor.Delete: b.deleteBackup}},
		{Pattern: "rekey/recovery-key-backup", Help: "there are no recovery keys: each seal unseals alone", Ops: ops{lessor.Read: noBackup, lessor.Delete: nothing}},
		{Pattern: "decode-token", Help: "take the one-time pad off a root token that was generated", Fields: []engine.Field{
			{Name: "encoded_token", Type: engine.String, Help: "as sys/generate-root/update gave it"},
			{Name: "otp", Type: engine.String, Help: "the pad that it was begun with"},
		}, Open: true, Ops: update(decodeToken)},
		{Pattern: "lessor/seal", Help: "what unseals the store; each alone suffices", Sudo: true, Ops: read(b.locks)},
		{Pattern: "lessor/seal/keyfile", Help: "unseal by a key file, too", Fields: []engine.Field{path}, Sudo: true, Ops: ops{lessor.Update: b.addKeyFile, lessor.Delete: b.remove(seal.KeyFileName)}},
		{Pattern: "lessor/seal/keyfile/{node}", Help: "the key file of one of several nodes unseals no more", Sudo: true, Ops: ops{lessor.Delete: b.removeKeyFile}},
		{Pattern: "lessor/seal/recovery", Help: "unseal by a file under a passphrase, too", Fields: []engine.Field{path, passphrase}, Sudo: true, Ops: ops{lessor.Update: b.addRecovery, lessor.Delete: b.remove(seal.RecoveryName)}},
		{Pattern: "lessor/seal/shamir", Help: "unseal by people who hold a share each, too", Fields: []engine.Field{
			{Name: "secret_shares", Type: engine.Int, Help: "how many shares to make; 5"},
			{Name: "secret_threshold", Type: engine.Int, Help: "how many of them unseal; 3"},
			{Name: "pgp_keys", Type: engine.Strings, Help: "public keys, in base64, to encrypt the shares to, one each"},
		}, Sudo: true, Ops: ops{lessor.Update: b.addShamir, lessor.Delete: b.remove(seal.ShamirName)}},
	}
}

// errNoNode is the answer where the gate stands without a node around it.
var errNoNode = api.Errorf(api.Invalid, "this process has no seal of its own")

func (b *Backend) used(name string) bool { return b.Seal != nil && b.Seal.Used(name) }

func (b *Backend) rest(context.Context, *engine.Request) (*engine.Reply, error) {
	if b.Seal == nil {
		return nil, errNoNode
	}
	reply := &engine.Reply{Then: func(context.Context) error { b.Seal.Rest(); return nil }}
	reply.Txn.Urgent = true // who must seal does not wait for room on the disk
	return reply, nil
}

// keyStatus tells, as the number of encryptions, that of the term's commits: each of them seals some rows under a key derived anew.
func (b *Backend) keyStatus(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t := b.Keys.Term()
	return &engine.Reply{Flat: true, Data: map[string]any{
		"term": int64(t.ID), "install_time": t.Born.UTC().Format(time.RFC3339Nano), "encryptions": int64(r.View.Position() - min(t.Since, r.View.Position())),
	}}, nil
}

// Rotate adds a new term of keys to txn. Call adopt when it is committed.
func Rotate(v store.View, txn *store.Txn, keys *seal.Keyring, random io.Reader, now time.Time) (adopt func() error, err error) {
	row, err := v.Get(seal.KeyringKey)
	if err != nil {
		return nil, err
	}
	if err := keys.Adopt(row.Value); err != nil {
		return nil, err
	}
	put, err := keys.Rotate(random, now, v.Position())
	if err != nil {
		return nil, err
	}
	txn.Require(row) // two nodes may rotate at once
	txn.Puts = append(txn.Puts, put)
	return func() error { return keys.Adopt(put.Value) }, nil
}

func (b *Backend) rotate(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	reply := &engine.Reply{}
	adopt, err := Rotate(r.View, &reply.Txn, b.Keys, r.Random, r.Now)
	reply.Then = func(context.Context) error { return adopt() }
	return reply, err
}

// rotationKey is the row that says when terms end. It is JSON.
var rotationKey = store.Key{Table: store.Config, Name: store.MountKey(lessor.RootNamespace, "", "seal/rotation")}

type rotationSettings struct {
	Enabled    bool   `json:"enabled"`
	Operations uint64 `json:"max_operations"`
	Interval   int64  `json:"interval"` // seconds
}

// Rotation is when terms of keys end by themselves.
func Rotation(v store.View) (seal.Rotation, error) {
	row, err := v.Get(rotationKey)
	if err != nil || !row.Exists() {
		return seal.DefaultRotation, err
	}
	var r rotationSettings
	if err := json.Unmarshal(row.Value, &r); err != nil {
		return seal.DefaultRotation, err
	}
	return seal.Rotation{Disabled: !r.Enabled, Interval: time.Duration(r.Interval) * time.Second, Commits: r.Operations}, nil
}

func (b *Backend) readRotation(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	s, err := Rotation(r.View)
	if err != nil {
		return nil, err
	}
	data := map[string]any{"enabled": !s.Disabled, "max_operations": int64(s.Commits), "interval": 0}
	if s.Interval > 0 {
		data["interval"] = s.Interval.String()
	}
	return &engine.Reply{Data: data}, nil
}

func (b *Backend) writeRotation(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	row, err := r.View.Get(rotationKey)
	if err != nil {
		return nil, err
	}
	s, err := Rotation(r.View)
	if err != nil {
		return nil, err
	}
	if r.Has("enabled") {
		s.Disabled = !r.Bool("enabled")
	}
	if r.Has("max_operations") {
		n := r.Int("max_operations")
		if n < seal.MinCommits || n > seal.MaxCommits {
			return nil, api.Errorf(api.Invalid, "max_operations must be in the range [%d,%d]", seal.MinCommits, int64(seal.MaxCommits))
		}
		s.Commits = uint64(n)
	}
	if r.Has("interval") {
		if s.Interval = r.Dur("interval"); s.Interval != 0 && s.Interval < 24*time.Hour {
			return nil, api.Errorf(api.Invalid, "interval must be greater or equal to %s", 24*time.Hour)
		}
	}
	value, err := json.Marshal(rotationSettings{!s.Disabled, s.Commits, whole(s.Interval)})
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	reply.Txn.Require(row)
	reply.Txn.Put(rotationKey.Table, rotationKey.Name, value)
	return reply, nil
}

// BackupKey is the row that keeps the last rekey's shares, encrypted to PGP keys, if that was asked for. It is a Backup in JSON.
var BackupKey = store.Key{Table: store.Config, Name: store.MountKey(lessor.RootNamespace, "", "seal/backup")}

// Backup is what a rekey made, by fingerprint of the PGP key that it is encrypted to.
type Backup struct {
	Nonce  string              `json:"nonce"`
	Keys   map[string][]string `json:"keys"` // hex
	Base64 map[string][]string `json:"keys_base64"`
}

func (b *Backend) readBackup(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	row, err := r.View.Get(BackupKey)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, api.Errorf(api.Invalid, "no backed-up keys found")
	}
	var backup Backup
	if err := json.Unmarshal(row.Value, &backup); err != nil {
		return nil, err
	}
	lists := func(from map[string][]string) map[string]any {
		out := map[string]any{}
		for name, keys := range from {
			out[name] = keys
		}
		return out
	}
	return &engine.Reply{Flat: true, Data: map[string]any{"nonce": backup.Nonce, "keys": lists(backup.Keys), "keys_base64": lists(backup.Base64)}}, nil
}

func noBackup(context.Context, *engine.Request) (*engine.Reply, error) {
	return nil, api.Errorf(api.Invalid, "no backed-up keys found")
}

func decodeToken(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	b, err := base64.RawStdEncoding.DecodeString(r.Str("encoded_token"))
	pad := r.Secret("otp").Reveal()
	switch {
	case err != nil || len(b) == 0:
		return nil, api.Errorf(api.Invalid, "error decoding base64'd token")
	case len(b) != len(pad):
		return nil, api.Errorf(api.Invalid, "otp has another length than the token")
	}
	for i := range b {
		b[i] ^= pad[i]
	}
	return &engine.Reply{Data: map[string]any{"token": lessor.NewSecret(b)}}, nil
}

func (b *Backend) deleteBackup(context.Context, *engine.Request) (*engine.Reply, error) {
	reply := &engine.Reply{}
	reply.Txn.Delete(BackupKey.Table, BackupKey.Name)
	return reply, nil
}

// locks lists what unseals the store.
func (b *Backend) locks(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	locks, err := seal.ReadLocks(r.View)
	if err != nil {
		return nil, err
	}
	list := []any{}
	for _, l := range locks.List() {
		kind, _, _ := strings.Cut(l.Name, "/")
		added, err := b.Store.Committed(l.Version)
		if err != nil {
			return nil, err
		}
		list = append(list, map[string]any{
			"name": l.Name, "type": kind, "id": l.ID, "added": stamp(added), "shares": l.Shares, "threshold": l.Threshold, "configured": b.used(l.Name),
		})
	}
	return &engine.Reply{Data: map[string]any{"locks": list}}, nil
}

func (b *Backend) addKeyFile(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	if b.Seal == nil {
		return nil, errNoNode
	}
	op, path := r.Op, r.Str("path")
	return &engine.Reply{Note: "asked for; the outcome has a record of its own", Later: func(ctx context.Context) (map[string]any, error) {
		path, err := b.Seal.AddKeyFile(ctx, op, path)
		return map[string]any{"name": seal.KeyFileName, "path": path}, err
	}}, nil
}

func (b *Backend) addRecovery(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	op, path, passphrase := r.Op, r.Str("path"), r.Secret("passphrase")
	switch {
	case b.Seal == nil:
		return nil, errNoNode
	case passphrase.Empty():
		return nil, api.Errorf(api.Invalid, "missing passphrase")
	}
	return &engine.Reply{Note: "asked for; the outcome has a record of its own", Later: func(ctx context.Context) (map[string]any, error) {
		path, err := b.Seal.AddRecovery(ctx, op, path, passphrase)
		return map[string]any{"name": seal.RecoveryName, "path": path}, err
	}}, nil
}

// CheckShares says whether a key can be cut so, in Vault's words after prefix.
func CheckShares(shares, threshold int64, prefix string) error {
	text := ""
	switch {
	case shares < 1:
		text = "shares must be at least one"
	case threshold < 1:
		text = "threshold must be at least one"
	case shares > 1 && threshold == 1:
		text = "threshold must be greater than one for multiple shares"
	case shares > seal.MaxShares:
		text = "shares must be less than " + strconv.Itoa(seal.MaxShares+1)
	case threshold > shares:
		text = "threshold cannot be larger than shares"
	default:
		return nil
	}
	return api.Errorf(api.Invalid, "%s%s", prefix, text)
}

// ShareLists are shares as they leave, in hex and in base64, as Vault's clients show them; with recipients, one for each share, encrypted.
func ShareLists(shares []seal.Share, to seal.Recipients) (inHex, inBase64 []any, err error) {
	for i, s := range shares {
		if len(to) == 0 {
			inHex, inBase64 = append(inHex, s.Hex()), append(inBase64, s.Base64())
			continue
		}
		b, err := to.Encrypt(i, s.Hex())
		if err != nil {
			return nil, nil, err
		}
		inHex, inBase64 = append(inHex, hex.EncodeToString(b)), append(inBase64, base64.StdEncoding.EncodeToString(b))
	}
	return inHex, inBase64, nil
}

func (b *Backend) addShamir(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	shares, threshold := int64(5), int64(3)
	if r.Has("secret_shares") || r.Has("secret_threshold") {
		shares, threshold = r.Int("secret_shares"), r.Int("secret_threshold")
	}
	if err := CheckShares(shares, threshold, ""); err != nil {
		return nil, err
	}
	keys := r.List("pgp_keys")
	if len(keys) > 0 && int64(len(keys)) != shares {
		return nil, api.Errorf(api.Invalid, "count mismatch between number of provided PGP keys and number of shares")
	}
	to, err := seal.ParseRecipients(keys)
	if err != nil {
		return nil, err
	}
	row, err := r.View.Get(seal.KEKKey(seal.ShamirName))
	if err != nil {
		return nil, err
	}
	if row.Exists() {
		return nil, api.Errorf(api.Invalid, "the store is unsealed by shares already: make new ones by a rekey (sys/rekey/init)")
	}
	kek, made, err := seal.NewShamir(r.Random, int(shares), int(threshold))
	if err != nil {
		return nil, err
	}
	defer kek.Forget()
	put, err := b.Keys.WrapRoot(kek)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{Note: "unseal keys added"}
	reply.Txn.Require(row)
	reply.Txn.Puts = append(reply.Txn.Puts, put)
	inHex, inBase64, err := ShareLists(made, to)
	if err != nil {
		return nil, err
	}
	reply.Data = map[string]any{"name": seal.ShamirName, "keys": inHex, "keys_base64": inBase64, "secret_shares": shares, "secret_threshold": threshold}
	if len(to) > 0 {
		reply.Data["pgp_fingerprints"] = to.Fingerprints()
	}
	if !b.used(seal.ShamirName) {
		reply.Warnings = append(reply.Warnings, `the server's configuration has no seal "shamir" {} yet: without it a start does not wait for the shares`)
	}
	return reply, nil
}

// removeKeyFile takes away the key file of a node, as of one that is given up.
func (b *Backend) removeKeyFile(ctx context.Context, r *engine.Request) (*engine.Reply, error) {
	return b.remove(seal.KeyFileOf(r.Param("node")))(ctx, r)
}

// remove takes one KEK away, but never the last.
func (b *Backend) remove(name string) engine.Handler {
	return func(_ context.Context, r *engine.Request) (*engine.Reply, error) {
		locks, err := seal.ReadLocks(r.View)
		if err != nil {
			return nil, err
		}
		all := locks.List()
		if _, ok := locks.Find(name); !ok {
			return nil, notFound("the store is not unsealed by %q", name)
		}
		if len(all) == 1 {
			return nil, api.Errorf(api.Invalid, "nothing else unseals the store: add another seal first")
		}
		reply := &engine.Reply{Note: "removed"}
		reply.Txn.Deletes = append(reply.Txn.Deletes, seal.KEKKey(name))
		reply.Txn.Unchanged = append(reply.Txn.Unchanged, store.Since{Table: store.Meta, Position: r.View.Position()}) // nobody removes the other meanwhile
		used := false
		for _, l := range all {
			used = used || l.Name != name && b.used(l.Name)
		}
		if !used {
			reply.Warnings = append(reply.Warnings, "nothing that is left is in the server's configuration: change it before the next start")
		}
		return reply, nil
	}
}
