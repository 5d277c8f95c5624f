// Code generated from ../vault by go generate; DO NOT EDIT.

// Package openbao drives lessor with OpenBao's own Go client, unmodified, through its main uses.
package openbao

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/openbao/openbao/api/v2"

	"github.com/lessor-dev/lessor/test/clients/server"
)

var address string

// connect is a client of one server for all tests, with the root token.
func connect(t *testing.T) *api.Client {
	t.Helper()
	return dial(t, address, server.Root)
}

// dial is a client of the server at an address, which tries nothing twice.
func dial(t *testing.T, address, token string) *api.Client {
	t.Helper()
	cfg := api.DefaultConfig()
	cfg.Address, cfg.MaxRetries = address, 0
	c, err := api.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.SetToken(token)
	return c
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// status is the HTTP status of an error of the client.
func status(err error) int {
	var re *api.ResponseError
	if errors.As(err, &re) {
		return re.StatusCode
	}
	return 0
}

func TestUses(t *testing.T) {
	os.Unsetenv("VAULT_TOKEN")
	address = server.Start(t)
	t.Run("health and seal status", testHealth)
	t.Run("mounts and policies", testMounts)
	t.Run("kv v2", testKV2)
	t.Run("kv v1", testKV1)
	t.Run("static secrets are leased", testStaticLease)
	t.Run("tokens", testTokens)
	t.Run("userpass", testUserpass)
	t.Run("approle with wrapping", testAppRole)
	t.Run("jwt", testJWT)
	t.Run("wrapping", testWrapping)
	t.Run("token watcher", testTokenWatcher)
	t.Run("database", testDatabase)
	t.Run("a program that reads once", testReadsOnce)
	t.Run("redis and rabbitmq", testOtherTargets)
	t.Run("audit devices", testAudit)
	t.Run("errors", testErrors)
}

func testHealth(t *testing.T) {
	c := connect(t)
	h := must[*api.HealthResponse](t)(c.Sys().Health())
	if !h.Initialized || h.Sealed || h.Standby || !strings.HasPrefix(h.Version, "1.") {
		t.Errorf("health: %+v", h)
	}
	s := must[*api.SealStatusResponse](t)(c.Sys().SealStatus())
	if s.Sealed || !s.Initialized {
		t.Errorf("seal status: %+v", s)
	}
	if !must[bool](t)(c.Sys().InitStatus()) {
		t.Error("not initialised")
	}
	must[*api.LeaderResponse](t)(c.Sys().Leader())
}

func testMounts(t *testing.T) {
	c := connect(t)
	check(t, c.Sys().Mount("team-a", &api.MountInput{Type: "kv", Description: "of team a", Options: map[string]string{"version": "2"}}))
	mounts := must[map[string]*api.MountOutput](t)(c.Sys().ListMounts())
	if m := mounts["team-a/"]; m == nil || m.Type != "kv" || m.Options["version"] != "2" || m.Description != "of team a" {
		t.Errorf("mounts: %+v", m)
	}
	check(t, c.Sys().TuneMount("team-a", api.MountConfigInput{DefaultLeaseTTL: "1h", MaxLeaseTTL: "2h"}))
	cfg := must[*api.MountConfigOutput](t)(c.Sys().MountConfig("team-a"))
	if cfg.DefaultLeaseTTL != 3600 || cfg.MaxLeaseTTL != 7200 {
		t.Errorf("tuned to %+v", cfg)
	}
	if err := c.Sys().Mount("team-a", &api.MountInput{Type: "kv"}); err == nil || !strings.Contains(err.Error(), "path is already in use") {
		t.Errorf("mounted twice: %v", err)
	}
	check(t, c.Sys().Unmount("team-a"))
	if m := must[map[string]*api.MountOutput](t)(c.Sys().ListMounts()); m["team-a/"] != nil {
		t.Error("still mounted")
	}

	check(t, c.Sys().PutPolicy("reader", `path "secret/data/*" { capabilities = ["read"] }`))
	if p := must[string](t)(c.Sys().GetPolicy("reader")); !strings.Contains(p, "secret/data/*") {
		t.Errorf("policy: %q", p)
	}
	if names := must[[]string](t)(c.Sys().ListPolicies()); !slices.Contains(names, "reader") || !slices.Contains(names, "default") {
		t.Errorf("policies: %v", names)
	}
	tok := must[*api.Secret](t)(c.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{"reader"}}))
	caps := must[[]string](t)(c.Sys().Capabilities(tok.Auth.ClientToken, "secret/data/x"))
	if !slices.Equal(caps, []string{"read"}) {
		t.Errorf("capabilities: %v", caps)
	}
	check(t, c.Sys().DeletePolicy("reader"))
	if p := must[string](t)(c.Sys().GetPolicy("reader")); p != "" {
		t.Errorf("deleted policy reads %q", p)
	}
}

func testKV2(t *testing.T) {
	ctx, c := context.Background(), connect(t)
	kv := c.KVv2("secret")
	s := must[*api.KVSecret](t)(kv.Put(ctx, "app/db", map[string]any{"user": "app", "n": 12345678901234567}))
	if s.VersionMetadata.Version != 1 {
		t.Errorf("first version: %+v", s.VersionMetadata)
	}
	must[*api.KVSecret](t)(kv.Put(ctx, "app/db", map[string]any{"user": "app2"}, api.WithCheckAndSet(1)))
	if _, err := kv.Put(ctx, "app/db", map[string]any{"user": "app3"}, api.WithCheckAndSet(1)); err == nil || !strings.Contains(err.Error(), "check-and-set parameter did not match the current version") {
		t.Errorf("stale check-and-set: %v", err)
	}
	must[*api.KVSecret](t)(kv.Patch(ctx, "app/db", map[string]any{"host": "db1"}))
	got := must[*api.KVSecret](t)(kv.Get(ctx, "app/db"))
	if got.Data["user"] != "app2" || got.Data["host"] != "db1" || got.VersionMetadata.Version != 3 {
		t.Errorf("patched: %+v %+v", got.Data, got.VersionMetadata)
	}
	first := must[*api.KVSecret](t)(kv.GetVersion(ctx, "app/db", 1))
	if n, ok := first.Data["n"].(interface{ String() string }); !ok || n.String() != "12345678901234567" {
		t.Errorf("number of version 1: %v", first.Data["n"])
	}
	check(t, kv.Delete(ctx, "app/db"))
	if got, err := kv.Get(ctx, "app/db"); err == nil && got.Data != nil {
		t.Errorf("deleted version reads %+v", got.Data)
	}
	check(t, kv.Undelete(ctx, "app/db", []int{3}))
	if got := must[*api.KVSecret](t)(kv.Get(ctx, "app/db")); got.Data["host"] != "db1" {
		t.Errorf("undeleted: %+v", got.Data)
	}
	must[*api.KVSecret](t)(kv.Rollback(ctx, "app/db", 2))
	check(t, kv.Destroy(ctx, "app/db", []int{1}))
	versions := must[[]api.KVVersionMetadata](t)(kv.GetVersionsAsList(ctx, "app/db"))
	if len(versions) != 4 || !versions[0].Destroyed {
		t.Errorf("versions: %+v", versions)
	}
	check(t, kv.PutMetadata(ctx, "app/db", api.KVMetadataPutInput{MaxVersions: 7, CustomMetadata: map[string]any{"team": "a"}}))
	meta := must[*api.KVMetadata](t)(kv.GetMetadata(ctx, "app/db"))
	if meta.MaxVersions != 7 || meta.CustomMetadata["team"] != "a" || meta.CurrentVersion != 4 {
		t.Errorf("metadata: %+v", meta)
	}
	list := must[*api.Secret](t)(c.Logical().List("secret/metadata/app"))
	if list == nil || !slices.Equal(list.Data["keys"].([]any), []any{"db"}) {
		t.Errorf("list: %+v", list)
	}
	check(t, kv.DeleteMetadata(ctx, "app/db"))
	if _, err := kv.Get(ctx, "app/db"); !errors.Is(err, api.ErrSecretNotFound) {
		t.Errorf("all gone: %v", err)
	}
	if empty := must[*api.Secret](t)(c.Logical().List("secret/metadata/app")); empty != nil {
		t.Errorf("empty list: %+v", empty)
	}
}

func testKV1(t *testing.T) {
	ctx, c := context.Background(), connect(t)
	check(t, c.Sys().Mount("old", &api.MountInput{Type: "kv", Options: map[string]string{"version": "1"}}))
	kv := c.KVv1("old")
	check(t, kv.Put(ctx, "a/b", map[string]any{"k": "v"}))
	if got := must[*api.KVSecret](t)(kv.Get(ctx, "a/b")); got.Data["k"] != "v" {
		t.Errorf("got %+v", got.Data)
	}
	check(t, kv.Delete(ctx, "a/b"))
	if _, err := kv.Get(ctx, "a/b"); !errors.Is(err, api.ErrSecretNotFound) {
		t.Errorf("deleted: %v", err)
	}
}

func testStaticLease(t *testing.T) {
	c := connect(t)
	must[*api.Secret](t)(c.Logical().Write("secret/data/leased", map[string]any{"data": map[string]any{"k": "v1"}}))
	s := must[*api.Secret](t)(c.Logical().Read("secret/data/leased"))
	if s.LeaseID == "" || s.Renewable || s.LeaseDuration != 300 || s.Warnings != nil {
		t.Errorf("lease of a value: %q renewable=%v %d %v", s.LeaseID, s.Renewable, s.LeaseDuration, s.Warnings)
	}
	again := must[*api.Secret](t)(c.Logical().Read("secret/data/leased"))
	if again.LeaseID != s.LeaseID || again.LeaseDuration != 300 {
		t.Errorf("the same holder got %q %d after %q", again.LeaseID, again.LeaseDuration, s.LeaseID)
	}
	r := must[*api.Secret](t)(c.Sys().Renew(s.LeaseID, 0))
	if r.LeaseID != s.LeaseID || r.Renewable || r.Data != nil || r.LeaseDuration != 300 {
		t.Errorf("renewal: %+v", r)
	}
	must[*api.Secret](t)(c.Logical().Write("secret/data/leased", map[string]any{"data": map[string]any{"k": "v2"}}))
	r = must[*api.Secret](t)(c.Sys().Renew(s.LeaseID, 0))
	if r.LeaseDuration != 1 || len(r.Warnings) == 0 {
		t.Errorf("renewal of a superseded version: %d %v", r.LeaseDuration, r.Warnings)
	}
	newer := must[*api.Secret](t)(c.Logical().Read("secret/data/leased"))
	if newer.LeaseID == s.LeaseID {
		t.Error("a newer version came under the old lease")
	}
	meta := must[*api.Secret](t)(c.Logical().Read("secret/metadata/leased"))
	if meta.LeaseID != "" || meta.LeaseDuration != 0 {
		t.Errorf("metadata is leased: %q %d", meta.LeaseID, meta.LeaseDuration)
	}
}

func testTokens(t *testing.T) {
	c := connect(t)
	made := must[*api.Secret](t)(c.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{"default"}, TTL: "1h", Metadata: map[string]string{"for": "test"}}))
	if !strings.HasPrefix(made.Auth.ClientToken, "hvs.") || made.Auth.LeaseDuration != 3600 || !made.Auth.Renewable {
		t.Errorf("token: %+v", made.Auth)
	}
	child := must[*api.Client](t)(c.Clone())
	child.SetToken(made.Auth.ClientToken)
	self := must[*api.Secret](t)(child.Auth().Token().LookupSelf())
	if self.Data["type"] != "service" || self.Data["id"] != made.Auth.ClientToken || self.Data["expire_time"] == nil {
		t.Errorf("lookup-self: %+v", self.Data)
	}
	byAcc := must[*api.Secret](t)(c.Auth().Token().LookupAccessor(made.Auth.Accessor))
	if byAcc.Data["id"] != "" {
		t.Error("a lookup by accessor tells the token")
	}
	renewed := must[*api.Secret](t)(child.Auth().Token().RenewSelf(7200))
	if renewed.Auth.LeaseDuration != 7200 {
		t.Errorf("renewed to %d", renewed.Auth.LeaseDuration)
	}
	check(t, child.Auth().Token().RevokeSelf(""))
	if _, err := child.Auth().Token().LookupSelf(); status(err) != http.StatusForbidden {
		t.Errorf("revoked token: %v", err)
	}
	batch := must[*api.Secret](t)(c.Auth().Token().Create(&api.TokenCreateRequest{Type: "batch", Policies: []string{"default"}, TTL: "1h"}))
	if !strings.HasPrefix(batch.Auth.ClientToken, "hvb.") || batch.Auth.Renewable || batch.Auth.Accessor != "" {
		t.Errorf("batch token: %+v", batch.Auth)
	}
	child.SetToken(batch.Auth.ClientToken)
	if self := must[*api.Secret](t)(child.Auth().Token().LookupSelf()); self.Data["type"] != "batch" {
		t.Errorf("batch token's lookup: %+v", self.Data)
	}
	orphan := must[*api.Secret](t)(c.Auth().Token().CreateOrphan(&api.TokenCreateRequest{Period: "1h"}))
	if !orphan.Auth.Orphan {
		t.Error("no orphan")
	}
	list := must[*api.Secret](t)(c.Logical().List("auth/token/accessors"))
	if !slices.Contains(list.Data["keys"].([]any), any(orphan.Auth.Accessor)) {
		t.Error("an accessor is missing in the list")
	}
	check(t, c.Auth().Token().RevokeAccessor(orphan.Auth.Accessor))
}

func testUserpass(t *testing.T) {
	c := connect(t)
	check(t, c.Sys().EnableAuthWithOptions("userpass", &api.EnableAuthOptions{Type: "userpass"}))
	must[*api.Secret](t)(c.Logical().Write("auth/userpass/users/ann", map[string]any{"password": "a long password", "token_policies": "default"}))
	login := must[*api.Secret](t)(c.Logical().Write("auth/userpass/login/ann", map[string]any{"password": "a long password"}))
	if login.Auth.EntityID == "" || login.Auth.Metadata["username"] != "ann" {
		t.Errorf("login: %+v", login.Auth)
	}
	again := must[*api.Secret](t)(c.Logical().Write("auth/userpass/login/ann", map[string]any{"password": "a long password"}))
	if again.Auth.EntityID != login.Auth.EntityID {
		t.Error("the second login is another entity")
	}
	if _, err := c.Logical().Write("auth/userpass/login/ann", map[string]any{"password": "wrong"}); status(err) != http.StatusBadRequest {
		t.Errorf("wrong password: %v", err)
	}
	auths := must[map[string]*api.AuthMount](t)(c.Sys().ListAuth())
	if auths["userpass/"] == nil || auths["token/"] == nil {
		t.Errorf("auth methods: %v", auths)
	}
}

// A workload logs in by a token that its platform signed. The platform is a key here.
func testJWT(t *testing.T) {
	c := connect(t)
	public, private, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	der, err := x509.MarshalPKIXPublicKey(public)
	check(t, err)
	part := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	sign := func(project string) string {
		now := time.Now().Unix()
		signed := part(`{"alg":"EdDSA"}`) + "." + part(fmt.Sprintf(`{"iss":"ci","aud":"lessor","sub":"job","project":%q,"iat":%d,"exp":%d}`, project, now, now+300))
		return signed + "." + part(string(ed25519.Sign(private, []byte(signed))))
	}
	check(t, c.Sys().EnableAuthWithOptions("jwt", &api.EnableAuthOptions{Type: "jwt"}))
	must[*api.Secret](t)(c.Logical().Write("auth/jwt/config", map[string]any{
		"jwt_validation_pubkeys": []string{string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}, "bound_issuer": "ci", "default_role": "app",
	}))
	must[*api.Secret](t)(c.Logical().Write("auth/jwt/role/app", map[string]any{
		"role_type": "jwt", "user_claim": "sub", "bound_audiences": []string{"lessor"}, "bound_claims": map[string]any{"project": []string{"shop", "store"}},
		"claim_mappings": map[string]any{"project": "project"}, "token_policies": []string{"default"},
	}))
	role := must[*api.Secret](t)(c.Logical().Read("auth/jwt/role/app"))
	if role.Data["user_claim"] != "sub" || role.Data["role_type"] != "jwt" {
		t.Errorf("role: %v", role.Data)
	}
	login := must[*api.Secret](t)(c.Logical().Write("auth/jwt/login", map[string]any{"role": "app", "jwt": sign("shop")}))
	if login.Auth.EntityID == "" || login.Auth.Metadata["project"] != "shop" || login.Auth.Metadata["role"] != "app" {
		t.Errorf("login: %+v", login.Auth)
	}
	if _, err := c.Logical().Write("auth/jwt/login", map[string]any{"jwt": sign("other")}); status(err) != http.StatusBadRequest {
		t.Errorf("another project's: %v", err)
	}
}

func testAppRole(t *testing.T) {
	ctx, c := context.Background(), connect(t)
	check(t, c.Sys().EnableAuthWithOptions("approle", &api.EnableAuthOptions{Type: "approle"}))
	must[*api.Secret](t)(c.Logical().Write("auth/approle/role/app", map[string]any{"token_policies": []string{"default"}, "secret_id_num_uses": 1, "token_ttl": "10m"}))
	id := must[*api.Secret](t)(c.Logical().Read("auth/approle/role/app/role-id"))
	wrapping := must[*api.Client](t)(c.Clone())
	wrapping.SetToken(server.Root)
	wrapping.SetWrappingLookupFunc(func(op, path string) string { return "60s" })
	wrapped := must[*api.Secret](t)(wrapping.Logical().WriteWithContext(ctx, "auth/approle/role/app/secret-id", nil))
	if wrapped.WrapInfo == nil || wrapped.WrapInfo.CreationPath != "auth/approle/role/app/secret-id" {
		t.Fatalf("not wrapped: %+v", wrapped)
	}
	app := must[*api.Client](t)(c.Clone())
	app.SetToken(wrapped.WrapInfo.Token)
	secret := must[*api.Secret](t)(app.Logical().Unwrap(""))
	login := must[*api.Secret](t)(app.Logical().Write("auth/approle/login", map[string]any{"role_id": id.Data["role_id"], "secret_id": secret.Data["secret_id"]}))
	if login.Auth.Metadata["role_name"] != "app" || login.Auth.LeaseDuration != 600 {
		t.Errorf("login: %+v", login.Auth)
	}
	if _, err := app.Logical().Write("auth/approle/login", map[string]any{"role_id": id.Data["role_id"], "secret_id": secret.Data["secret_id"]}); status(err) != http.StatusBadRequest {
		t.Errorf("a secret id of one use was used twice: %v", err)
	}
}

func testWrapping(t *testing.T) {
	c := connect(t)
	must[*api.Secret](t)(c.Logical().Write("secret/data/wrapped", map[string]any{"data": map[string]any{"k": "v"}}))
	w := must[*api.Client](t)(c.Clone())
	w.SetToken(server.Root)
	w.SetWrappingLookupFunc(func(op, path string) string { return "5m" })
	s := must[*api.Secret](t)(w.Logical().Read("secret/data/wrapped"))
	if s.WrapInfo == nil || s.Data != nil || s.WrapInfo.TTL != 300 {
		t.Fatalf("wrapped read: %+v", s)
	}
	look := must[*api.Secret](t)(c.Logical().Write("sys/wrapping/lookup", map[string]any{"token": s.WrapInfo.Token}))
	if look.Data["creation_path"] != "secret/data/wrapped" {
		t.Errorf("lookup: %+v", look.Data)
	}
	got := must[*api.Secret](t)(c.Logical().Unwrap(s.WrapInfo.Token))
	if data, _ := got.Data["data"].(map[string]any); data["k"] != "v" {
		t.Errorf("unwrapped: %+v", got.Data)
	}
	if _, err := c.Logical().Unwrap(s.WrapInfo.Token); status(err) != http.StatusBadRequest {
		t.Errorf("second unwrap: %v", err)
	}
}

func testTokenWatcher(t *testing.T) {
	c := connect(t)
	made := must[*api.Secret](t)(c.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{"default"}, TTL: "3s"}))
	child := must[*api.Client](t)(c.Clone())
	child.SetToken(made.Auth.ClientToken)
	w := must[*api.LifetimeWatcher](t)(child.NewLifetimeWatcher(&api.LifetimeWatcherInput{Secret: made, Increment: 3}))
	go w.Start()
	defer w.Stop()
	renewals := 0
	for end := time.After(6 * time.Second); ; {
		select {
		case err := <-w.DoneCh():
			t.Fatalf("the watcher ended: %v", err)
		case <-w.RenewCh():
			renewals++
			continue
		case <-end:
		}
		break
	}
	if renewals < 2 || renewals > 12 {
		t.Errorf("%d renewals in 6 s of a lease of 3 s", renewals)
	}
	if _, err := child.Auth().Token().LookupSelf(); err != nil {
		t.Errorf("the renewed token: %v", err)
	}
}

// testReadsOnce: a program that reads a password once, when it starts, logs in with that for the grace that its role declares, whatever is rotated meanwhile;
// then it is named.
func testReadsOnce(t *testing.T) {
	const grace = 3 * time.Second
	ctx, c := context.Background(), connect(t)
	url := server.Postgres(t)
	admin := must[*pgx.Conn](t)(pgx.Connect(ctx, url))
	defer admin.Close(ctx)
	for _, user := range []string{"turn_a", "turn_b"} {
		_, err := admin.Exec(ctx, "CREATE ROLE "+user+" LOGIN")
		check(t, err)
	}
	check(t, c.Sys().Mount("turns", &api.MountInput{Type: "database"}))
	defer func() { check(t, c.Sys().Unmount("turns")) }()
	must[*api.Secret](t)(c.Logical().Write("turns/config/pg", map[string]any{
		"plugin_name": "postgresql-database-plugin", "connection_url": url, "allowed_roles": "*",
	}))
	must[*api.Secret](t)(c.Logical().Write("turns/static-roles/app", map[string]any{
		"db_name": "pg", "usernames": "turn_a,turn_b", "rotation_period": "1h", "rotation_grace": grace.String(),
	}))
	once := must[*api.Secret](t)(c.Logical().Read("turns/static-creds/app"))
	program := must[*pgx.ConnConfig](t)(pgx.ParseConfig(url))
	program.User, program.Password = once.Data["username"].(string), once.Data["password"].(string)
	works := func() bool {
		conn, err := pgx.ConnectConfig(ctx, program)
		if err == nil {
			check(t, conn.Close(ctx))
		}
		return err == nil
	}
	if !works() {
		t.Fatal("the password does not log in")
	}

	rotated := time.Now()
	must[*api.Secret](t)(c.Logical().Write("turns/rotate-role/app", nil))
	if next := must[*api.Secret](t)(c.Logical().Read("turns/static-creds/app")); next.Data["username"] == program.User {
		t.Fatal("the other account is not in force")
	}
	for works() {
		if time.Since(rotated) > time.Minute {
			t.Fatal("the old password outlives its grace")
		}
	}
	if lasted := time.Since(rotated); lasted < grace {
		t.Errorf("it was locked out after %v, within its grace", lasted)
	}
	how := must[*api.Secret](t)(c.Logical().Read("sys/lessor/rotation/status/turns/static-creds/app"))
	stragglers, _ := how.Data["stragglers"].([]any)
	if !slices.ContainsFunc(stragglers, func(one any) bool { return one.(map[string]any)["display_name"] == "root" }) { // its sessions may be, too
		t.Errorf("named are %v", stragglers)
	}
}

func testDatabase(t *testing.T) {
	ctx, c := context.Background(), connect(t)
	url := server.Postgres(t)
	admin := must[*pgx.Conn](t)(pgx.Connect(ctx, url))
	defer admin.Close(ctx)
	check(t, c.Sys().Mount("database", &api.MountInput{Type: "database"}))
	defer func() { check(t, c.Sys().Unmount("database")) }()
	must[*api.Secret](t)(c.Logical().Write("database/config/pg", map[string]any{
		"plugin_name": "postgresql-database-plugin", "connection_url": url, "allowed_roles": "*",
	}))
	must[*api.Secret](t)(c.Logical().Write("database/roles/app", map[string]any{
		"db_name": "pg", "default_ttl": "3s", "max_ttl": "1m",
		"creation_statements": `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`,
	}))
	s := must[*api.Secret](t)(c.Logical().Read("database/creds/app"))
	if !s.Renewable || s.LeaseDuration != 3 || !strings.HasPrefix(s.LeaseID, "database/creds/app/") {
		t.Fatalf("credential's lease: %q %v %d", s.LeaseID, s.Renewable, s.LeaseDuration)
	}
	user := s.Data["username"].(string)
	exists := func() (n int) {
		check(t, admin.QueryRow(ctx, "SELECT count(*) FROM pg_roles WHERE rolname = $1", user).Scan(&n))
		return n
	}
	if exists() != 1 {
		t.Fatal("there is no such role")
	}
	w := must[*api.LifetimeWatcher](t)(c.NewLifetimeWatcher(&api.LifetimeWatcherInput{Secret: s, Increment: 3}))
	go w.Start()
	time.Sleep(5 * time.Second)
	if exists() != 1 {
		t.Error("a renewed credential is gone")
	}
	w.Stop()
	gone := false
	for range 60 {
		if gone = exists() == 0; gone {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if !gone {
		t.Error("the credential outlived its lease")
	}
	other := must[*api.Secret](t)(c.Logical().Read("database/creds/app"))
	look := must[*api.Secret](t)(c.Logical().Write("sys/leases/lookup", map[string]any{"lease_id": other.LeaseID}))
	if look.Data["id"] != other.LeaseID {
		t.Errorf("lookup: %+v", look.Data)
	}
	check(t, c.Sys().Revoke(other.LeaseID))
	user = other.Data["username"].(string)
	if exists() != 0 {
		t.Error("a synchronous revocation left the role")
	}
	if _, err := c.Sys().Renew(other.LeaseID, 1); status(err) != http.StatusBadRequest {
		t.Errorf("renewal of a revoked lease: %v", err)
	}
	check(t, c.Sys().Revoke(other.LeaseID)) // again: no error
	third := must[*api.Secret](t)(c.Logical().Read("database/creds/app"))
	check(t, c.Sys().RevokePrefix("database/creds/app"))
	user = third.Data["username"].(string)
	for range 60 {
		if exists() == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Error("revoke-prefix left the role")
}

// What tools that configure Vault write and read again, of targets that are not there.
func testOtherTargets(t *testing.T) {
	c := connect(t)
	check(t, c.Sys().Mount("caches", &api.MountInput{Type: "database"}))
	defer func() { check(t, c.Sys().Unmount("caches")) }()
	must[*api.Secret](t)(c.Logical().Write("caches/config/redis", map[string]any{
		"plugin_name": "redis-database-plugin", "host": "localhost", "port": 1, "tls": true, "insecure_tls": false, "ca_cert": "", "username": "lessor", "password": "x",
		"allowed_roles": []string{"*"}, "verify_connection": false,
	}))
	details := must[*api.Secret](t)(c.Logical().Read("caches/config/redis")).Data["connection_details"].(map[string]any)
	if details["host"] != "localhost" || details["port"] != json.Number("1") || details["tls"] != true || details["username"] != "lessor" || details["password"] != nil {
		t.Errorf("connection to Redis: %v", details)
	}
	must[*api.Secret](t)(c.Logical().Write("caches/roles/app", map[string]any{"db_name": "redis", "creation_statements": []string{`["~app:*", "+@read"]`}}))

	check(t, c.Sys().Mount("rabbitmq", &api.MountInput{Type: "rabbitmq"}))
	defer func() { check(t, c.Sys().Unmount("rabbitmq")) }()
	must[*api.Secret](t)(c.Logical().Write("rabbitmq/config/connection", map[string]any{
		"connection_uri": "http://localhost:1", "username": "lessor", "password": "x", "verify_connection": false, "username_template": "", "password_policy": "",
	}))
	must[*api.Secret](t)(c.Logical().Write("rabbitmq/config/lease", map[string]any{"ttl": 60, "max_ttl": 120}))
	if l := must[*api.Secret](t)(c.Logical().Read("rabbitmq/config/lease")); l.Data["ttl"] != json.Number("60") || l.Data["max_ttl"] != json.Number("120") {
		t.Errorf("lease: %v", l.Data)
	}
	must[*api.Secret](t)(c.Logical().Write("rabbitmq/roles/app", map[string]any{
		"tags": "monitoring", "vhosts": `{"/":{"configure":"","write":"","read":".*"}}`, "vhost_topics": `{"/":{"amq.topic":{"write":"","read":".*"}}}`,
	}))
	role := must[*api.Secret](t)(c.Logical().Read("rabbitmq/roles/app"))
	vhost := role.Data["vhosts"].(map[string]any)["/"].(map[string]any)
	topic := role.Data["vhost_topics"].(map[string]any)["/"].(map[string]any)["amq.topic"].(map[string]any)
	if role.Data["tags"] != "monitoring" || vhost["read"] != ".*" || vhost["write"] != "" || topic["read"] != ".*" {
		t.Errorf("role: %v", role.Data)
	}
}

func testAudit(t *testing.T) {
	c := connect(t)
	file := t.TempDir() + "/audit.log"
	check(t, c.Sys().EnableAuditWithOptions("to-file", &api.EnableAuditOptions{Type: "file", Description: "d", Options: map[string]string{"file_path": file}}))
	all := must[map[string]*api.Audit](t)(c.Sys().ListAudit())
	if a := all["to-file/"]; len(all) != 1 || a == nil || a.Type != "file" || a.Path != "to-file/" || a.Description != "d" || a.Options["file_path"] != file || a.Local {
		t.Errorf("list: %+v", all)
	}
	if err := c.Sys().EnableAuditWithOptions("to-file", &api.EnableAuditOptions{Type: "file", Options: map[string]string{"file_path": file + "2"}}); status(err) != http.StatusBadRequest ||
		!strings.Contains(err.Error(), "path already in use") {
		t.Errorf("enabled twice: %v", err)
	}
	self := must[*api.Secret](t)(c.Auth().Token().LookupSelf())
	hash := must[string](t)(c.Sys().AuditHash("to-file", self.Data["accessor"].(string)))
	if !strings.HasPrefix(hash, "hmac-sha256:") {
		t.Errorf("hash: %s", hash)
	}
	check(t, c.Sys().DisableAudit("to-file"))
	text := string(must[[]byte](t)(os.ReadFile(file)))
	if n := strings.Count(text, hash); n == 0 || strings.Contains(text, server.Root) || !strings.Contains(text, `"path":"auth/token/lookup-self"`) {
		t.Errorf("the accessor's hash is %d times in: %s", n, text)
	}
	if all := must[map[string]*api.Audit](t)(c.Sys().ListAudit()); len(all) != 0 {
		t.Errorf("disabled: %+v", all)
	}
	check(t, c.Sys().DisableAudit("to-file"))
}

func testErrors(t *testing.T) {
	c := connect(t)
	anonymous := must[*api.Client](t)(c.Clone())
	anonymous.ClearToken()
	if _, err := anonymous.Logical().Read("secret/data/x"); status(err) != http.StatusForbidden || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("anonymous read: %v", err)
	}
	made := must[*api.Secret](t)(c.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{"default"}}))
	anonymous.SetToken(made.Auth.ClientToken)
	if _, err := anonymous.Logical().Read("secret/data/x"); status(err) != http.StatusForbidden || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("read without a rule: %v", err)
	}
	if s, err := c.Logical().Read("secret/data/not-there"); s != nil || err != nil {
		t.Errorf("read of nothing: %+v %v", s, err)
	}
	if _, err := c.Logical().Read("nowhere/x"); status(err) != http.StatusNotFound && err != nil {
		t.Errorf("unknown mount: %v", err)
	}
	if _, err := c.Logical().Write("secret/data/x", map[string]any{}); status(err) != http.StatusBadRequest {
		t.Errorf("write of nothing: %v", err)
	}
	c.SetNamespace("team")
	if _, err := c.Logical().Read("secret/data/x"); status(err) != 0 && status(err) != http.StatusNotFound {
		t.Errorf("unknown namespace: %v", err)
	}
}
