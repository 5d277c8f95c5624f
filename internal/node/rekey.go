package node

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/system"
)

// cancelAfter is how long a rekey is cancelled by whoever knows its nonce only. Then anybody may, so that nobody blocks another for ever.
const cancelAfter = 10 * time.Minute

// rekeying is a change of the shares under way: first enough of the old ones are shown, then, if it was asked for, enough of the new.
// Until the last is done the old shares are in force.
type rekeying struct {
	nonce  string
	begun  time.Time
	cut    cut
	backup bool
	verify bool
	old    seal.Quorum
	fresh  *fresh // made, but not in force; nil before
}

// fresh are new shares that must be shown before they count.
type fresh struct {
	nonce string
	txn   store.Txn // puts them in force
	locks seal.Locks
	shown seal.Quorum
}

func (n *Node) dropRekeying() {
	if r := n.rekeying; r != nil {
		r.old.Clear()
		if r.fresh != nil {
			r.fresh.shown.Clear()
		}
	}
	n.rekeying = nil
}

// rekeyStatus tells how far a rekey came.
func (n *Node) rekeyStatus(_ context.Context, l *life, _ *engine.Request) (*deed, error) {
	data, err := n.rekeyData(l)
	return &deed{data: data}, err
}

func (n *Node) rekeyData(l *life) (map[string]any, error) {
	if l == nil {
		return nil, errSealed
	}
	threshold, _ := required(n.locks(n.state.Load()))
	data := map[string]any{
		"nonce": "", "started": false, "t": 0, "n": 0, "progress": 0, "required": threshold, "pgp_fingerprints": nil, "backup": false, "verification_required": false,
	}
	r := n.rekeying
	if r == nil {
		return data, nil
	}
	data["nonce"], data["started"], data["t"], data["n"], data["progress"] = r.nonce, true, r.cut.threshold, r.cut.shares, r.old.Progress()
	data["verification_required"] = r.verify
	if r.fresh != nil {
		data["verification_nonce"] = r.fresh.nonce
	}
	if len(r.cut.to) > 0 {
		data["pgp_fingerprints"], data["backup"] = r.cut.to.Fingerprints(), r.backup
	}
	return data, nil
}

func (n *Node) rekeyBegin(_ context.Context, l *life, r *engine.Request) (*deed, error) {
	if l == nil {
		return nil, errSealed
	}
	if r.Bool("backup") && len(r.List("pgp_keys")) == 0 {
		return nil, api.Errorf(api.Invalid, "cannot request a backup of the new keys without providing PGP keys for encryption")
	}
	if keys := r.List("pgp_keys"); len(keys) > 0 && int64(len(keys)) != r.Int("secret_shares") {
		return nil, api.Errorf(api.Invalid, "incorrect number of PGP keys for rekey")
	}
	if r.Int("secret_threshold") > r.Int("secret_shares") {
		return nil, api.Errorf(api.Invalid, "provided threshold greater than the total shares")
	}
	c, err := readCut(r, "invalid rekey seal configuration: ")
	if err != nil {
		return nil, err
	}
	if n.rekeying != nil {
		return nil, api.Errorf(api.Invalid, "rekey already in progress")
	}
	if _, ok := n.locks(n.state.Load()).Find(seal.ShamirName); !ok {
		return nil, api.Errorf(api.Invalid, "this store is not unsealed by shares, but by a file: add shares at sys/lessor/seal/shamir, or another key file at sys/lessor/seal/keyfile")
	}
	nonce, err := n.newNonce()
	if err != nil {
		return nil, err
	}
	n.rekeying = &rekeying{nonce: nonce, begun: r.Now, cut: c, backup: r.Bool("backup"), verify: r.Bool("require_verification")}
	data, err := n.rekeyData(l)
	return &deed{note: "rekey begun", free: true, data: data}, err
}

func (n *Node) rekeyCancel(_ context.Context, l *life, r *engine.Request) (*deed, error) {
	if l == nil {
		return nil, errSealed
	}
	if n.rekeying == nil {
		return &deed{}, nil
	}
	if r.Str("nonce") != n.rekeying.nonce && r.Now.Sub(n.rekeying.begun) < cancelAfter {
		return nil, &api.Error{Kind: api.Invalid, Text: "invalid request: a rekey is cancelled by its nonce, or by anybody after ten minutes", Cause: errNonce}
	}
	n.dropRekeying()
	return &deed{note: "rekey cancelled", free: true}, nil
}

// rekeyUpdate takes one of the old keys. With enough of them it makes the new ones, and shows them.
func (n *Node) rekeyUpdate(_ context.Context, l *life, r *engine.Request) (*deed, error) {
	key := r.Secret("key")
	switch a := n.rekeying; {
	case l == nil:
		return nil, errSealed
	case key.Empty():
		return nil, api.Errorf(api.Invalid, "'key' must be specified in request body as JSON")
	case a == nil:
		return nil, api.Errorf(api.Invalid, "no barrier rekey in progress")
	case a.fresh != nil:
		return nil, api.Errorf(api.Invalid, "rekey operation already finished; verification must be performed; nonce for the verification operation is %q", a.fresh.nonce)
	case r.Str("nonce") != a.nonce:
		return nil, wrongNonce("rekey", a.nonce)
	}
	a := n.rekeying
	enough, err := n.proven(l, &a.old, key)
	if err != nil {
		return nil, err
	}
	if !enough {
		data, err := n.rekeyData(l)
		return &deed{note: "unseal key taken for a rekey", data: data}, err
	}

	txn, locks, shares, err := n.reshare(l, a)
	if err != nil {
		return nil, err
	}
	inHex, inBase64, err := system.ShareLists(shares, a.cut.to)
	if err != nil {
		return nil, err
	}
	data := map[string]any{
		"nonce": a.nonce, "complete": true, "keys": inHex, "keys_base64": inBase64, "pgp_fingerprints": nil, "backup": a.backup, "verification_required": a.verify,
	}
	if len(a.cut.to) > 0 {
		data["pgp_fingerprints"] = a.cut.to.Fingerprints()
	}
	if a.backup {
		if err := a.keep(&txn, inHex, inBase64); err != nil {
			return nil, err
		}
	}
	if !a.verify {
		return &deed{note: "new unseal keys are in force", data: data, txn: txn, after: n.dropRekeying}, nil
	}
	nonce, err := n.newNonce()
	if err != nil {
		return nil, err
	}
	data["verification_nonce"] = nonce
	return &deed{note: "new unseal keys were made, and are to be verified", data: data, after: func() { a.fresh = &fresh{nonce: nonce, txn: txn, locks: locks} }}, nil
}

// proven takes a key towards an attempt, and says whether what was given would unseal the store.
func (n *Node) proven(l *life, q *seal.Quorum, key lessor.Secret) (bool, error) {
	locks := n.locks(n.state.Load())
	kek, again, err := q.Add(locks, key)
	switch {
	case err != nil:
		return false, given(err)
	case again:
		return false, api.Errorf(api.Invalid, "given key has already been provided during this generation operation")
	case kek == nil:
		return false, nil
	}
	defer kek.Forget()
	if err := l.keys.Prove(locks, kek); err != nil {
		return false, given(err)
	}
	return true, nil
}

// reshare makes new shares and the transaction that puts them in the place of the old.
func (n *Node) reshare(l *life, a *rekeying) (txn store.Txn, locks seal.Locks, shares []seal.Share, err error) {
	view, err := l.db.View()
	if err != nil {
		return txn, locks, nil, err
	}
	defer view.Close()
	row, err := view.Get(seal.KEKKey(seal.ShamirName))
	if err != nil {
		return txn, locks, nil, err
	}
	kek, shares, err := seal.NewShamir(n.o.Random, a.cut.shares, a.cut.threshold)
	if err != nil {
		return txn, locks, nil, err
	}
	defer kek.Forget()
	put, err := l.keys.WrapRoot(kek)
	if err != nil {
		return txn, locks, nil, err
	}
	txn.Require(row)
	txn.Puts = append(txn.Puts, put)
	return txn, seal.NewLocks(put), shares, nil
}

// keep adds the backup of encrypted shares to the commit that puts them in force.
func (a *rekeying) keep(txn *store.Txn, inHex, inBase64 []any) error {
	backup := system.Backup{Nonce: a.nonce, Keys: map[string][]string{}, Base64: map[string][]string{}}
	for i, name := range a.cut.to.Fingerprints() {
		backup.Keys[name] = append(backup.Keys[name], fmt.Sprint(inHex[i]))
		backup.Base64[name] = append(backup.Base64[name], fmt.Sprint(inBase64[i]))
	}
	value, err := json.Marshal(backup)
	txn.Put(system.BackupKey.Table, system.BackupKey.Name, value)
	return err
}

func encodeBase64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

func wrongNonce(what, nonce string) error {
	return &api.Error{Kind: api.Invalid, Text: fmt.Sprintf("incorrect nonce supplied; nonce for this %s operation is %q", what, nonce), Cause: errNonce}
}

// verifyStatus tells how many of the new shares were shown.
func (n *Node) verifyStatus(_ context.Context, l *life, _ *engine.Request) (*deed, error) {
	data, err := n.verifyData(l)
	return &deed{data: data}, err
}

func (n *Node) verifyData(l *life) (map[string]any, error) {
	if l == nil {
		return nil, errSealed
	}
	a := n.rekeying
	if a == nil {
		return nil, api.Errorf(api.Invalid, "no rekey configuration found")
	}
	data := map[string]any{"nonce": "", "started": false, "t": a.cut.threshold, "n": a.cut.shares, "progress": 0}
	if a.fresh != nil {
		data["nonce"], data["started"], data["progress"] = a.fresh.nonce, true, a.fresh.shown.Progress()
	}
	return data, nil
}

// verifyRestart forgets which of the new shares were shown.
func (n *Node) verifyRestart(_ context.Context, l *life, _ *engine.Request) (*deed, error) {
	if l != nil && n.rekeying != nil && n.rekeying.fresh != nil {
		nonce, err := n.newNonce()
		if err != nil {
			return nil, err
		}
		n.rekeying.fresh.shown.Clear()
		n.rekeying.fresh.nonce = nonce
	}
	data, err := n.verifyData(l)
	return &deed{note: "verification begun anew", free: true, data: data}, err
}

// verifyUpdate takes one of the new shares. With enough of them they are in force.
func (n *Node) verifyUpdate(_ context.Context, l *life, r *engine.Request) (*deed, error) {
	key := r.Secret("key")
	switch a := n.rekeying; {
	case l == nil:
		return nil, errSealed
	case key.Empty():
		return nil, api.Errorf(api.Invalid, "'key' must be specified in request body as JSON")
	case a == nil:
		return nil, api.Errorf(api.Invalid, "no rekey in progress")
	case a.fresh == nil:
		return nil, api.Errorf(api.Invalid, "no rekey verification in progress")
	case r.Str("nonce") != a.fresh.nonce:
		return nil, wrongNonce("verify", a.fresh.nonce)
	}
	a := n.rekeying
	kek, again, err := a.fresh.shown.Add(a.fresh.locks, key)
	switch {
	case err != nil:
		return nil, given(err)
	case again:
		return nil, api.Errorf(api.Invalid, "given key has already been provided during this verify operation")
	case kek == nil:
		data, err := n.verifyData(l)
		return &deed{note: "new unseal key shown", data: data}, err
	}
	kek.Forget()
	return &deed{
		note: "new unseal keys are in force", data: map[string]any{"nonce": a.fresh.nonce, "complete": true}, txn: a.fresh.txn, after: n.dropRekeying,
	}, nil
}
