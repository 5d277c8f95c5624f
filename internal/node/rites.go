package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/core"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/system"
	"github.com/lessor-dev/lessor/internal/token"
)

// A rite is an operation for which no token is asked but keys: sys/init, sys/unseal, sys/rekey and sys/generate-root, in Vault's shapes.
// Whoever shows keys that unseal the store (enough shares, or the key file's key) may do what they could do with the store and the keys anyway.
//
// Rites take their turn, one at a time. What people gave so far is in memory only, a share at most once and no more than are needed;
// it is gone when the node is sealed or stops. Each act is on record: with the change that it makes, in one commit; while the store is
// sealed, with the first commit after.

// deed is what a rite does: rows that are committed with its record, and what to do in memory then.
type deed struct {
	data  map[string]any // answer; nil: 204
	txn   store.Txn
	note  string // for the record; empty: nothing happened that needs one
	free  bool   // it takes no key: anybody may do it over and over
	named string // accessor of a token that it gives
	after func() // once it is on record
}

// rite is what answers; l is nil while the node is sealed.
type rite func(ctx context.Context, l *life, r *engine.Request) (*deed, error)

// openRites is the table of all rites, by path.
func (n *Node) openRites() map[string]*engine.Route {
	integer := func(name, help string) engine.Field { return engine.Field{Name: name, Type: engine.Int, Help: help} }
	text := func(name, help string) engine.Field { return engine.Field{Name: name, Type: engine.String, Help: help} }
	list := func(name, help string) engine.Field {
		return engine.Field{Name: name, Type: engine.Strings, Help: help}
	}
	flag := func(name, help string) engine.Field { return engine.Field{Name: name, Type: engine.Bool, Help: help} }
	key, nonce := text("key", "one unseal key, in hex or base64"), text("nonce", "of the attempt")
	shares := []engine.Field{
		integer("secret_shares", "how many shares to make"), integer("secret_threshold", "how many of them unseal"), integer("stored_shares", "ignored"),
		list("pgp_keys", "public keys, in base64, to encrypt the shares to, one each"),
	}
	table := map[string]*engine.Route{}
	add := func(path, help string, fields []engine.Field, rites map[lessor.Verb]rite) {
		route := &engine.Route{Pattern: path, Help: help, Open: true, Fields: fields, Ops: map[lessor.Verb]engine.Handler{}}
		for verb, f := range rites {
			route.Ops[verb] = n.inTurn(f)
		}
		table[path] = route
	}
	add("sys/init", "make the store's keys; with GET, whether that was done", append([]engine.Field{
		text("root_token_pgp_key", "public key, in base64, to encrypt the root token to"), integer("recovery_shares", "not for this seal"),
		integer("recovery_threshold", "not for this seal"), list("recovery_pgp_keys", "not for this seal"),
	}, shares...), map[lessor.Verb]rite{lessor.Update: n.initRite})
	add("sys/unseal", "give one of the keys that unseal", []engine.Field{key, flag("reset", "forget the keys given so far"), flag("migrate", "ignored: each seal unseals alone")},
		map[lessor.Verb]rite{lessor.Update: n.unsealRite})
	add("sys/rekey/init", "begin, look at or give up making new unseal keys", append([]engine.Field{
		nonce, flag("backup", "keep the encrypted shares"), flag("require_verification", "the new shares count only when they were shown"),
	}, shares...), map[lessor.Verb]rite{lessor.Read: n.rekeyStatus, lessor.Update: n.rekeyBegin, lessor.Delete: n.rekeyCancel})
	add("sys/rekey/update", "give one of the keys that a rekey asks for", []engine.Field{key, nonce}, map[lessor.Verb]rite{lessor.Update: n.rekeyUpdate})
	add("sys/rekey/verify", "show that a new unseal key has arrived", []engine.Field{key, nonce}, map[lessor.Verb]rite{lessor.Read: n.verifyStatus, lessor.Update: n.verifyUpdate, lessor.Delete: n.verifyRestart})
	for _, path := range []string{"init", "update", "verify"} {
		add("sys/rekey-recovery-key/"+path, "there are no recovery keys: each seal unseals alone", nil, map[lessor.Verb]rite{lessor.Read: noRecoveryKeys, lessor.Update: noRecoveryKeys, lessor.Delete: noRecoveryKeys})
	}
	add("sys/generate-root/attempt", "begin, look at or give up making a root token", []engine.Field{text("otp", "one-time pad; made if not given"), text("pgp_key", "public key, in base64, instead of a pad")},
		map[lessor.Verb]rite{lessor.Read: n.rootStatus, lessor.Update: n.rootBegin, lessor.Delete: n.rootCancel})
	add("sys/generate-root/update", "give one of the keys that a root token asks for", []engine.Field{key, nonce}, map[lessor.Verb]rite{lessor.Update: n.rootUpdate})
	return table
}

func noRecoveryKeys(context.Context, *life, *engine.Request) (*deed, error) {
	return nil, api.Errorf(api.Invalid, "recovery rekeying not supported")
}

// perform answers a rite's path.
func (n *Node) perform(ctx context.Context, route *engine.Route, op *lessor.Op) (*lessor.Answer, error) {
	handler := route.Handler(op.Verb)
	if handler == nil {
		return nil, api.Errorf(api.Unsupported, "method not allowed")
	}
	op = folded(op)
	r := &engine.Request{Op: op, Verb: op.Verb, Now: n.Now(), Random: n.o.Random}
	if _, err := r.Bind(route); err != nil {
		return nil, err
	}
	reply, err := handler(ctx, r)
	if err != nil {
		return nil, err
	}
	return &lessor.Answer{Data: reply.Data, Bare: true}, nil
}

// folded is op with the names of its parameters in lower case: for Vault they have none here.
func folded(op *lessor.Op) *lessor.Op {
	lower := *op
	lower.Data = make(map[string]any, len(op.Data))
	for name, value := range op.Data {
		lower.Data[strings.ToLower(name)] = value
	}
	return &lower
}

// inTurn makes a rite a handler: it waits for its turn, and puts what was done on record.
func (n *Node) inTurn(f rite) engine.Handler {
	return func(ctx context.Context, r *engine.Request) (*engine.Reply, error) {
		if err := n.await(ctx); err != nil {
			return nil, err
		}
		n.turn.Lock()
		defer n.turn.Unlock()
		l := n.enter()
		if l != nil {
			defer l.leave()
		}
		d, err := f(ctx, l, r)
		if err == nil && d.note == "" {
			return &engine.Reply{Data: d.data}, nil // only asked
		}
		if d == nil {
			d = &deed{}
		}
		if err := n.recorded(ctx, l, r, d, err); err != nil {
			return nil, err
		}
		if err != nil {
			return nil, err
		}
		if d.after != nil {
			d.after()
		}
		return &engine.Reply{Data: d.data}, nil
	}
}

// await waits until a node that was told to seal has done so.
func (n *Node) await(ctx context.Context) error {
	rested := n.state.Load().rested
	if rested == nil {
		return nil
	}
	select {
	case <-rested:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// recorded makes a deed durable with its record, or the record of a refusal. A flood of what takes no key is counted: it must not
// fill the disk.
func (n *Node) recorded(ctx context.Context, l *life, r *engine.Request, d *deed, failure error) error {
	rec := audit.Record{
		Time: r.Now, Request: r.Op.ID, Operation: r.Op.Verb.String(), Path: r.Op.Path, Phase: audit.Done, System: "seal",
		Granted: failure == nil, Rule: "system:seal", Policy: "system", Accessor: d.named, Note: d.note,
	}
	if r.Op.Client.IsValid() {
		rec.Client = r.Op.Client.String()
	}
	txn := d.txn
	if failure != nil {
		rec.ErrorKind, rec.Note, txn = api.KindOf(failure).String(), refusal(failure), store.Txn{}
	}
	if l == nil {
		if n.keys == nil { // else it was just unsealed, and the record is in the first commit
			n.hear(rec)
		}
		return nil
	}
	if (d.free || failure != nil) && l.core.Counts(r.Op.Client, rec) {
		return nil
	}
	txn.Audit = append(txn.Audit, rec)
	_, err := l.db.Commit(ctx, txn)
	return outcome(err)
}

// refusal is a fixed text for the record.
func refusal(err error) string {
	switch {
	case errors.Is(err, seal.ErrForeign):
		return "an unseal key that does not belong to this store"
	case errors.Is(err, seal.ErrNoKey):
		return "no unseal key"
	case errors.Is(err, errNonce):
		return "wrong nonce"
	}
	return ""
}

// mostUnheard bounds what is remembered of what happens while the store is sealed; more of it is counted.
const mostUnheard = 256

// hear remembers what happened while the store is sealed.
func (n *Node) hear(rec audit.Record) {
	if len(n.unheard) < mostUnheard {
		n.unheard = append(n.unheard, rec)
		return
	}
	last := &n.unheard[len(n.unheard)-1]
	last.Count = max(last.Count, 1) + 1
	last.Note = "and more that was refused or done while the store was sealed"
}

// outcome puts the store's errors into the client's words.
func outcome(err error) error {
	if conflict := (*store.Conflict)(nil); errors.As(err, &conflict) {
		return api.Errorf(api.Mismatch, "what unseals the store was changed by somebody else meanwhile: cancel, and begin again")
	}
	return core.Outcome(err)
}

var errNonce = errors.New("wrong nonce")

// given is the error of a key that was refused, in words for the client.
func given(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, seal.ErrDamaged), errors.Is(err, seal.ErrNewer):
		return &api.Error{Kind: api.Internal, Cause: err}
	}
	return &api.Error{Kind: api.Invalid, Text: err.Error(), Cause: err}
}

// newNonce names an attempt.
func (n *Node) newNonce() (string, error) {
	var b [16]byte
	if _, err := n.o.Random.Read(b[:]); err != nil {
		return "", err
	}
	return uuid(b), nil
}

func uuid(b [16]byte) string {
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// unsealing is what was given to unseal the store so far.
type unsealing struct {
	nonce  string
	quorum seal.Quorum
}

// forgetAttempts drops what people gave so far, for whatever.
func (n *Node) forgetAttempts() {
	n.unsealing.quorum.Clear()
	n.unsealing.nonce = ""
	n.dropRekeying()
	n.dropRooting()
}

// unsealRite takes one key, and unseals the store if that is enough. The answer is the seal's status, which the server adds.
func (n *Node) unsealRite(ctx context.Context, l *life, r *engine.Request) (*deed, error) {
	if r.Bool("reset") {
		if l != nil {
			return nil, api.Errorf(api.Invalid, "vault is unsealed")
		}
		n.forgetAttempts()
		return &deed{note: "progress dropped"}, n.look()
	}
	key := r.Secret("key")
	if key.Empty() {
		return nil, api.Errorf(api.Invalid, "'key' must be specified in request body as JSON, or 'reset' set to true")
	}
	if l != nil {
		return &deed{}, given(seal.CheckKey(key)) // as Vault does
	}
	if err := n.broken.Load(); err != nil {
		return nil, &api.Error{Kind: api.Internal, Cause: *err}
	}
	if err := n.look(); err != nil {
		return nil, core.Outcome(err)
	}
	locks := n.state.Load().locks
	if !locks.Initialised() {
		return nil, api.Errorf(api.Invalid, "Vault is not initialized")
	}
	kek, again, err := n.unsealing.quorum.Add(locks, key)
	if err != nil {
		return nil, given(err)
	}
	if kek == nil {
		d := &deed{note: "unseal key taken"}
		if again {
			d.note = "unseal key given before"
		} else if n.unsealing.nonce == "" {
			if n.unsealing.nonce, err = n.newNonce(); err != nil {
				return nil, err
			}
		}
		return d, n.look()
	}
	defer kek.Forget()
	if err := locks.Try(kek); err != nil {
		return nil, given(err)
	}
	n.forgetAttempts()
	return &deed{note: "unsealed"}, n.wake(ctx, kek, r)
}

// wake unseals the store and begins a life.
func (n *Node) wake(ctx context.Context, kek seal.KEK, r *engine.Request) error {
	if err := n.unlock(kek); err != nil {
		n.log.Error("unsealing failed", "error", err)
		return &api.Error{Kind: api.Internal, Cause: err}
	}
	rec := audit.Record{
		Time: n.db.Now(), Request: r.Op.ID, Operation: "unseal", Path: r.Op.Path, Phase: audit.Done, System: "seal", Granted: true,
		Rule: "system:seal", Policy: "system", Note: "unsealed by " + kek.Name(),
	}
	if r.Op.Client.IsValid() {
		rec.Client = r.Op.Client.String()
	}
	if err := n.awaken(ctx, nil, append(n.unheard, rec)); err != nil {
		n.log.Error("unsealing failed", "error", err)
		if again := n.reopen(ctx); again != nil {
			n.fail(again)
		}
		return core.Outcome(err)
	}
	n.unheard = nil
	n.log.Warn("unsealed", "by", kek.Name())
	return nil
}

// initRite makes the keys of a new store, and shows their shares and a root token, this once. The store is sealed afterwards, as Vault's is.
func (n *Node) initRite(ctx context.Context, l *life, r *engine.Request) (*deed, error) {
	if l == nil {
		if err := n.look(); err != nil {
			return nil, core.Outcome(err)
		}
	}
	if l != nil || n.state.Load().locks.Initialised() {
		return nil, api.Errorf(api.Invalid, "Vault is already initialized")
	}
	var stray []string
	for _, name := range []string{"recovery_shares", "recovery_threshold"} {
		if r.Int(name) != 0 {
			stray = append(stray, name)
		}
	}
	if len(r.List("recovery_pgp_keys")) > 0 {
		stray = append(stray, "recovery_pgp_keys")
	}
	if len(stray) > 0 {
		return nil, api.Errorf(api.Invalid, "parameters %s not applicable to seal type shamir", strings.Join(stray, ","))
	}
	cut, err := readCut(r, "invalid seal configuration: ")
	if err != nil {
		return nil, err
	}
	var owner seal.Recipients
	if key := r.Str("root_token_pgp_key"); key != "" {
		if owner, err = seal.ParseRecipients([]string{key}); err != nil {
			return nil, err
		}
	}
	data, err := n.initStore(ctx, cut, owner)
	if err != nil {
		if again := n.reopen(ctx); again != nil {
			n.fail(again)
		} else if n.state.Load().locks.Initialised() && !errors.Is(err, store.ErrUncertain) {
			err = api.Errorf(api.Invalid, "Vault is already initialized") // another node was faster
		}
		return nil, core.Outcome(err)
	}
	if err := n.reopen(ctx); err != nil {
		n.fail(err)
	}
	return &deed{data: data}, nil // on record already
}

// cut is how a key is to be shared.
type cut struct {
	shares, threshold int
	to                seal.Recipients // empty, or one for each share
}

// readCut reads it from a request. prefix begins what is wrong with it, in Vault's words.
func readCut(r *engine.Request, prefix string) (c cut, err error) {
	shares, threshold, keys := r.Int("secret_shares"), r.Int("secret_threshold"), r.List("pgp_keys")
	if err := system.CheckShares(shares, threshold, prefix); err != nil {
		return c, err
	}
	c = cut{shares: int(shares), threshold: int(threshold)}
	if len(keys) > 0 && len(keys) != c.shares {
		return c, api.Errorf(api.Invalid, "%scount mismatch between number of provided PGP keys and number of shares", prefix)
	}
	c.to, err = seal.ParseRecipients(keys)
	return c, err
}

func (n *Node) initStore(ctx context.Context, c cut, owner seal.Recipients) (map[string]any, error) {
	shamir, shares, err := seal.NewShamir(n.o.Random, c.shares, c.threshold)
	if err != nil {
		return nil, err
	}
	keks, err := n.withRecovery(shamir)
	if err != nil {
		return nil, err
	}
	rows, err := n.initKeys(keks)
	if err != nil {
		return nil, err
	}
	if err := n.anchorReady(false); err != nil {
		return nil, err
	}
	if err := n.db.Unseal(n.keys.Cipher()); err != nil {
		return nil, err
	}
	more, err := cluster{}.rows(n.config.ClusterName, n.o.Random)
	if err != nil {
		return nil, err
	}
	l := &life{n: n, db: n.db, keys: n.keys}
	gate, err := l.newCore()
	if err != nil {
		return nil, err
	}
	inHex, inBase64, err := system.ShareLists(shares, c.to)
	if err != nil {
		return nil, err
	}
	root, err := token.NewID(n.o.Random)
	if err != nil {
		return nil, err
	}
	data := map[string]any{"keys": inHex, "keys_base64": inBase64, "root_token": root}
	if len(owner) > 0 {
		b, err := owner.Encrypt(0, root)
		if err != nil {
			return nil, err
		}
		data["root_token"] = encodeBase64(b)
	}
	_, err = gate.Init(ctx, append(rows, more...), root, bootstrapTTL)
	return data, err
}

// base62 is a random string of letters and digits.
func base62(length int) (string, error) {
	const letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	b := make([]byte, length)
	for i := range b {
		at, err := rand.Int(rand.Reader, big.NewInt(int64(len(letters))))
		if err != nil {
			return "", err
		}
		b[i] = letters[at.Int64()]
	}
	return string(b), nil
}
