package core_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// as does an operation as one of somebody's instances.
func (g *gate) as(instance string, token lessor.Secret, verb lessor.Verb, path, data string) (*lessor.Answer, error) {
	g.Helper()
	op := g.op(token, verb, path, data)
	op.Instance, op.Renewable = instance, true
	return g.core.Handle(g.Context(), op)
}

// reads has an instance read the secret, and returns the lease.
func (g *gate) reads(instance string, token lessor.Secret, path string) string {
	g.Helper()
	a, err := g.as(instance, token, lessor.Read, path, "")
	if err != nil {
		g.Fatal(err)
	}
	return a.Lease.ID
}

// holders tells who may use a secret: "instance oldest-newest acknowledged".
func (g *gate) holders(path string) string {
	g.Helper()
	var all []string
	for _, h := range g.do(g.root, lessor.Read, "sys/lessor/holders/"+path, "").Data["holders"].([]any) {
		h := h.(map[string]any)
		all = append(all, fmt.Sprintf("%s %d-%d %d", h["instance"], h["oldest"], h["newest"], h["acknowledged"]))
	}
	return strings.Join(all, ", ")
}

func TestAcknowledge(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.policy("app", `path "secret/data/*" { capabilities = ["read"] }`)
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass"}`)
	user := func(name string) lessor.Secret {
		g.do(g.root, lessor.Update, "auth/userpass/users/"+name, `{"password":"a long password","token_policies":"app"}`)
		return g.login("userpass", name).Auth.Token
	}
	ann, bob := user("ann"), user("bob")
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"1"}}`)
	first := g.reads("pod-1", ann, "secret/data/app")
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"2"}}`)
	second := g.reads("pod-1", ann, "secret/data/app")
	if got := g.holders("secret/app"); got != "pod-1 1-2 0" {
		t.Errorf("after reading the second: %s", got)
	}
	const path = "sys/lessor/leases/acknowledge"
	body := func(id string) string { return `{"lease_id":"` + id + `"}` }
	for who, by := range map[string]struct {
		instance string
		token    lessor.Secret
	}{"another instance": {"pod-2", ann}, "no instance": {"", ann}, "somebody else": {"pod-1", bob}, "root": {"pod-1", g.root}} {
		_, err := g.as(by.instance, by.token, lessor.Update, path, body(second))
		if api.KindOf(err) != api.Invalid || err.Error() != "lease not found" {
			t.Errorf("%s acknowledges: %v", who, err)
		}
	}
	for what, id := range map[string]string{"no such lease": "secret/data/app/nothing", "no mount": "nowhere/x", "empty": ""} {
		if _, err := g.as("pod-1", ann, lessor.Update, path, body(id)); api.KindOf(err) != api.Invalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := g.holders("secret/app"); got != "pod-1 1-2 0" {
		t.Errorf("after others tried: %s", got)
	}
	for range 2 {
		if a, err := g.as("pod-1", ann, lessor.Update, path, body(second)); err != nil || a.Status != 0 && a.Status != 204 || a.Data != nil {
			t.Errorf("acknowledging: %+v, %v", a, err)
		}
		if got := g.holders("secret/app"); got != "pod-1 2-2 2" {
			t.Errorf("after acknowledging: %s", got)
		}
	}
	rec := g.last(path)[0]
	if rec.Lease != second || rec.Note != "acknowledged" || len(rec.Secrets) != 1 || rec.Secrets[0].Version != 2 || rec.Secrets[0].Path != "secret/data/app" || rec.Instance != "pod-1" {
		t.Errorf("on record: %+v", rec.Record)
	}
	if _, err := g.as("pod-1", ann, lessor.Update, path, body(first)); err != nil { // said late
		t.Error(err)
	}
	if got := g.holders("secret/app"); got != "pod-1 2-2 2" {
		t.Errorf("after acknowledging the first: %s", got)
	}
	g.do(g.root, lessor.Update, "sys/leases/revoke", body(second))
	if _, err := g.as("pod-1", ann, lessor.Update, path, body(second)); api.KindOf(err) != api.Invalid {
		t.Errorf("acknowledging what was revoked: %v", err)
	}
	// A dynamic credential is its holder's only.
	g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"target"}`)
	l := g.reads("pod-1", g.root, "target/creds/app")
	if _, err := g.as("pod-1", g.root, lessor.Update, path, body(l)); api.KindOf(err) != api.Invalid || !strings.Contains(err.Error(), "static") {
		t.Errorf("acknowledging a dynamic credential: %v", err)
	}
}

// Who ends gives its leases back: a credential of its own is taken back, that of somebody else is not.
func TestRelease(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"target"}`)
	l := g.reads("pod-1", g.root, "target/creds/app")
	const path = "sys/lessor/leases/release"
	body := `{"lease_id":"` + l + `"}`
	for _, instance := range []string{"pod-2", ""} {
		if _, err := g.as(instance, g.root, lessor.Update, path, body); api.KindOf(err) != api.Invalid || err.Error() != "lease not found" {
			t.Errorf("instance %q releases: %v", instance, err)
		}
	}
	g.do(g.root, lessor.Update, "sys/leases/lookup", body)
	if a, err := g.as("pod-1", g.root, lessor.Update, path, body); err != nil || a.Data != nil {
		t.Errorf("releasing: %+v, %v", a, err)
	}
	if rec := g.last(path)[0]; rec.Lease != l || rec.Note != "released" {
		t.Errorf("on record: %+v", rec.Record)
	}
	if _, err := g.as("pod-1", g.root, lessor.Update, path, body); api.KindOf(err) != api.Invalid {
		t.Errorf("once more: %v", err)
	}
	g.kv2("secret")
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"1"}}`)
	static := g.reads("pod-1", g.root, "secret/data/app")
	if _, err := g.as("pod-1", g.root, lessor.Update, path, `{"lease_id":"`+static+`"}`); err != nil {
		t.Error(err)
	}
	if found := g.do(g.root, lessor.Read, "sys/lessor/exposures/secret/app", "").Data["exposures"]; len(found.([]any)) != 0 {
		t.Errorf("exposed: %v", found)
	}
}

// Who was merged into another entity still speaks for what it holds; the other one's aliases do not.
func TestMergedHolderAcknowledges(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.policy("app", `path "secret/data/*" { capabilities = ["read"] }`)
	login := func(mount, name string) *lessor.Auth {
		g.do(g.root, lessor.Update, "auth/"+mount+"/users/"+name, `{"password":"a long password","token_policies":"app"}`)
		return g.login(mount, name).Auth
	}
	g.write("sys/auth/userpass", `{"type":"userpass"}`)
	g.write("sys/auth/second", `{"type":"userpass"}`)
	old, keep := login("userpass", "ann"), login("second", "annie")
	g.write("secret/data/app", `{"data":{"k":"1"}}`)
	g.reads("pod-1", old.Token, "secret/data/app")
	g.write("secret/data/app", `{"data":{"k":"2"}}`)
	id := g.reads("pod-1", old.Token, "secret/data/app")
	g.write("identity/entity/merge", `{"from_entity_ids":["`+old.Entity+`"],"to_entity_id":"`+keep.Entity+`"}`)
	const path = "sys/lessor/leases/acknowledge"
	if _, err := g.as("pod-1", keep.Token, lessor.Update, path, `{"lease_id":"`+id+`"}`); api.KindOf(err) != api.Invalid {
		t.Errorf("through another alias: %v", err)
	}
	if _, err := g.as("pod-1", old.Token, lessor.Update, path, `{"lease_id":"`+id+`"}`); err != nil {
		t.Error(err)
	}
	if got := g.holders("secret/app"); got != "pod-1 2-2 2" {
		t.Errorf("holders: %s", got)
	}
}

// Who was started anew ends what it had before, and nothing of anybody else, nor what it goes on with.
func TestSupersede(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"target"}`)
	g.kv2("secret")
	g.write("secret/data/app", `{"data":{"k":"1"}}`)
	g.policy("app", `path "target/creds/app" { capabilities = ["read"] } path "secret/data/*" { capabilities = ["read"] }`)
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass"}`)
	login := func(name string) lessor.Secret {
		g.do(g.root, lessor.Update, "auth/userpass/users/"+name, `{"password":"a long password","token_policies":"app"}`)
		return g.login("userpass", name).Auth.Token
	}
	const creds = "target/creds/app"
	before, bob := login("ann"), login("bob")
	old, static := g.reads("pod-1", before, creds), g.reads("pod-1", before, "secret/data/app")
	others := []string{g.reads("pod-2", before, creds), g.reads("", before, creds), g.reads("pod-1", bob, creds), g.reads("pod-1", g.root, creds)}
	now := login("ann")
	kept := g.reads("pod-1", now, creds)
	const path = "sys/lessor/leases/supersede"
	body := `{"keep":["` + kept + `"]}`
	if _, err := g.as("", now, lessor.Update, path, body); api.KindOf(err) != api.Invalid {
		t.Errorf("without an instance: %v", err)
	}
	if _, err := g.as("pod-1", now, lessor.Update, path, body); err != nil {
		t.Fatal(err)
	}
	lives := func(id string) bool {
		_, err := g.as("", g.root, lessor.Update, "sys/leases/lookup", `{"lease_id":"`+id+`"}`)
		return err == nil
	}
	if lives(old) {
		t.Error("what it had before is there still")
	}
	for _, id := range append(others, static, kept) {
		if !lives(id) {
			t.Errorf("%s is gone", id)
		}
	}
	if found := g.do(g.root, lessor.Read, "sys/lessor/exposures/secret/app", "").Data["exposures"]; len(found.([]any)) != 0 {
		t.Errorf("exposed: %v", found)
	}
	if _, err := g.as("pod-1", before, lessor.Read, "auth/token/lookup-self", ""); err != nil {
		t.Errorf("the token of before: %v", err)
	}
	if rec := g.last(path)[0]; rec.Note != "by heir" || rec.Tombstone != "" || rec.Instance != "pod-1" {
		t.Errorf("on record: %+v", rec.Record)
	}
	if _, err := g.as("pod-1", now, lessor.Update, path, ""); err != nil || lives(kept) {
		t.Errorf("once more, keeping nothing: %v", err)
	}
}
