package vault

import (
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/hashicorp/vault/api"

	"github.com/lessor-dev/lessor/test/clients/server"
)

// TestSystem drives what administrators do.
func TestSystem(t *testing.T) {
	os.Unsetenv("VAULT_TOKEN")
	address = server.Start(t)
	t.Run("mounts are tuned and moved", testTuneAndMove)
	t.Run("the plugin catalog", testPluginCatalog)
	t.Run("CORS", testCORS)
	t.Run("the node", testNode)
	t.Run("OpenAPI", testOpenAPI)
}

func testTuneAndMove(t *testing.T) {
	c := connect(t)
	check(t, c.Sys().Mount("tuned", &api.MountInput{Type: "kv", Config: api.MountConfigInput{MaxLeaseTTL: "2h", ListingVisibility: "unauth"}}))
	two, description := map[string]string{"version": "2"}, "a description"
	check(t, c.Sys().TuneMount("tuned", api.MountConfigInput{
		DefaultLeaseTTL: "1h", Description: &description, Options: two, AuditNonHMACRequestKeys: []string{"a", "b"}, PassthroughRequestHeaders: []string{"X-A"},
	}))
	got := must[*api.MountConfigOutput](t)(c.Sys().MountConfig("tuned"))
	if got.DefaultLeaseTTL != 3600 || got.MaxLeaseTTL != 7200 || got.ListingVisibility != "unauth" || len(got.AuditNonHMACRequestKeys) != 2 {
		t.Errorf("tuned: %+v", got)
	}
	one := must[*api.MountOutput](t)(c.Sys().GetMount("tuned"))
	if one.Type != "kv" || one.Options["version"] != "2" || one.Accessor == "" || one.UUID == "" || one.RunningVersion == "" || one.DeprecationStatus != "supported" {
		t.Errorf("a mount: %+v", one)
	}
	must[*api.KVSecret](t)(c.KVv2("tuned").Put(t.Context(), "app", map[string]any{"k": "v"}))

	started := must[*api.MountMigrationOutput](t)(c.Sys().StartRemount("tuned", "moved"))
	status := must[*api.MountMigrationStatusOutput](t)(c.Sys().RemountStatus(started.MigrationID))
	if status.MigrationInfo.MigrationStatus != "success" || status.MigrationInfo.SourceMount != "tuned/" || status.MigrationInfo.TargetMount != "moved/" {
		t.Errorf("status of a move: %+v", status.MigrationInfo)
	}
	check(t, c.Sys().Remount("moved", "again"))
	if s := must[*api.KVSecret](t)(c.KVv2("again").Get(t.Context(), "app")); s.Data["k"] != "v" {
		t.Errorf("after two moves: %v", s.Data)
	}
	check(t, c.Sys().EnableAuthWithOptions("people", &api.MountInput{Type: "userpass"}))
	threshold, off := "7", true
	check(t, c.Sys().TuneMountAllowNil("auth/people", api.TuneMountConfigInput{
		UserLockoutConfig: &api.TuneUserLockoutConfigInput{LockoutThreshold: &threshold, DisableLockout: &off},
	}))
	if auths := must[map[string]*api.AuthMount](t)(c.Sys().ListAuth()); auths["people/"].Config.TokenType != "default-service" {
		t.Errorf("auth methods: %+v", auths["people/"])
	}
	check(t, c.Sys().Remount("auth/people", "auth/folk"))
	check(t, c.Sys().DisableAuth("folk"))
}

func testPluginCatalog(t *testing.T) {
	c := connect(t)
	all := must[*api.ListPluginsResponse](t)(c.Sys().ListPlugins(&api.ListPluginsInput{}))
	if len(all.PluginsByType[api.PluginTypeSecrets]) == 0 || len(all.PluginsByType[api.PluginTypeDatabase]) == 0 || len(all.Details) == 0 {
		t.Errorf("plugins: %+v", all)
	}
	kv := must[*api.GetPluginResponse](t)(c.Sys().GetPlugin(&api.GetPluginInput{Name: "kv", Type: api.PluginTypeSecrets}))
	if !kv.Builtin || kv.Name != "kv" || kv.Version == "" {
		t.Errorf("kv: %+v", kv)
	}
	if err := c.Sys().RegisterPlugin(&api.RegisterPluginInput{Name: "mine", Type: api.PluginTypeSecrets, Command: "mine", SHA256: "00"}); status(err) != http.StatusBadRequest {
		t.Errorf("registering an external plugin: %v", err)
	}
	must[string](t)(c.Sys().ReloadPlugin(&api.ReloadPluginInput{Plugin: "kv"}))
}

func testCORS(t *testing.T) {
	c := connect(t)
	check(t, c.Sys().ConfigureCORS(&api.CORSRequest{AllowedOrigins: []string{"https://a.example"}, AllowedHeaders: []string{"X-Foo"}, Enabled: true}))
	got := must[*api.CORSResponse](t)(c.Sys().CORSStatus())
	if !got.Enabled || len(got.AllowedOrigins) != 1 || got.AllowedOrigins[0] != "https://a.example" {
		t.Errorf("CORS: %+v", got)
	}
	for origin, want := range map[string]int{"https://a.example": 200, "https://b.example": 403} {
		r := must[*http.Request](t)(http.NewRequest(http.MethodOptions, c.Address()+"/v1/secret/data/app", nil))
		r.Header.Set("Origin", origin)
		r.Header.Set("Access-Control-Request-Method", "GET")
		answer := must[*http.Response](t)(http.DefaultClient.Do(r))
		_ = answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("%s: %d, want %d", origin, answer.StatusCode, want)
		}
	}
	check(t, c.Sys().DisableCORS())
}

func testNode(t *testing.T) {
	c := connect(t)
	ha := must[*api.HAStatusResponse](t)(c.Sys().HAStatus())
	if len(ha.Nodes) != 1 || !ha.Nodes[0].ActiveNode || ha.Nodes[0].APIAddress == "" {
		t.Errorf("nodes: %+v", ha)
	}
	check(t, c.Sys().StepDown())
	history := must[*api.Secret](t)(c.Logical().List("sys/version-history"))
	if len(history.Data["keys"].([]any)) != 1 {
		t.Errorf("history: %v", history.Data)
	}
	random := must[*api.Secret](t)(c.Logical().Write("sys/tools/random/16", nil))
	if random.Data["random_bytes"] == "" {
		t.Errorf("random: %v", random.Data)
	}
	help := must[*api.Help](t)(c.Help("sys/mounts/x/tune"))
	if !strings.Contains(help.Help, "default_lease_ttl") || help.OpenAPI == nil {
		t.Errorf("help: %+v", help)
	}
	leases := must[*api.Secret](t)(c.Logical().ReadWithData("sys/leases/count", map[string][]string{"type": {"irrevocable"}}))
	if leases.Data["lease_count"] == nil {
		t.Errorf("irrevocable leases: %v", leases.Data)
	}
}

// testOpenAPI checks the description of the API by a library that does nothing else.
func testOpenAPI(t *testing.T) {
	c := connect(t)
	check(t, c.Sys().Mount("plain", &api.MountInput{Type: "kv"}))
	check(t, c.Sys().Mount("database", &api.MountInput{Type: "database"}))
	for _, auth := range []string{"approle", "userpass"} {
		check(t, c.Sys().EnableAuthWithOptions(auth, &api.MountInput{Type: auth}))
	}
	load := func(path, token string) (*openapi3.T, []byte) {
		t.Helper()
		r := must[*http.Request](t)(http.NewRequest(http.MethodGet, c.Address()+"/v1/sys/internal/specs/openapi"+path, nil))
		r.Header.Set("X-Vault-Token", token)
		answer := must[*http.Response](t)((&http.Client{Timeout: 10 * time.Second}).Do(r))
		defer func() { _ = answer.Body.Close() }()
		raw := must[[]byte](t)(io.ReadAll(answer.Body))
		doc, err := openapi3.NewLoader().LoadFromData(raw)
		if err != nil {
			t.Fatalf("%v\n%.2000s", err, raw)
		}
		if err := doc.Validate(t.Context()); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		return doc, raw
	}
	doc, _ := load("", server.Root)
	if doc.OpenAPI != "3.0.2" || doc.Paths.Len() < 150 {
		t.Errorf("version %s, %d paths", doc.OpenAPI, doc.Paths.Len())
	}
	data := doc.Paths.Value("/secret/data/{path}")
	if data == nil || data.Get == nil || data.Post == nil || data.Patch == nil || data.Delete == nil || data.Extensions["x-vault-createSupported"] != true || data.Post.Tags[0] != "secrets" {
		t.Errorf("data of kv v2: %+v", data)
	}
	if list := doc.Paths.Value("/secret/metadata/{path}/"); list == nil || list.Get == nil || list.Get.Parameters.GetByInAndName("query", "list") == nil {
		t.Errorf("lists of kv v2: %+v", list)
	}
	if p := doc.Paths.Value("/sys/remount"); p == nil || p.Extensions["x-vault-sudo"] != true {
		t.Errorf("sys/remount: %+v", p)
	}
	if p := doc.Paths.Value("/auth/userpass/login/{username}"); p == nil || p.Extensions["x-vault-unauthenticated"] != true {
		t.Errorf("a login: %+v", p)
	}
	testSudo(t, doc)
	doc, _ = load("?generic_mount_paths=true&context=x", server.Root)
	if p := doc.Paths.Value("/auth/{userpass_mount_path}/login/{username}"); p == nil || p.Parameters.GetByInAndName("path", "userpass_mount_path") == nil || p.Post == nil || !strings.HasSuffix(p.Post.OperationID, "_x") {
		t.Errorf("a generic login: %+v", p)
	}
	if doc, raw := load("", ""); doc.Paths.Len() != 0 {
		for path := range doc.Paths.Map() {
			if !strings.HasPrefix(path, "/again/") {
				t.Fatalf("without a token: %.300s", raw)
			}
		}
	}
}

// testSudo compares what takes sudo with what Vault's client believes, by which its users write their policies.
func testSudo(t *testing.T, doc *openapi3.T) {
	compared := 0
	for path, item := range doc.Paths.Map() {
		if strings.HasPrefix(path, "/sys/lessor/") || path == "/sys/leases/lookup" { // the client takes that for its list
			continue
		}
		compared++
		asked := strings.TrimSuffix(regexp.MustCompile(`\{\w+\}`).ReplaceAllString(path, "x"), "/")
		if sudo := item.Extensions["x-vault-sudo"] == true; sudo != api.IsSudoPath(asked) {
			t.Errorf("%s takes sudo: %t, Vault's client believes the contrary", path, sudo)
		}
	}
	if compared < 150 {
		t.Errorf("only %d paths were compared", compared)
	}
}
