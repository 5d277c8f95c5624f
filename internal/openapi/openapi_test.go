package openapi_test

import (
	"context"
	"encoding/json"
	"reflect"
	"testing"

	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/openapi"
)

func TestDocument(t *testing.T) {
	h := func(context.Context, *engine.Request) (*engine.Reply, error) { return nil, nil }
	routes := []engine.Route{
		{
			Pattern: "roles/{name}", Help: "a role", Sudo: true, Exists: func(*engine.Request) (bool, error) { return false, nil },
			Fields: []engine.Field{
				{Name: "name", Type: engine.String, Help: "its name"}, {Name: "ttl", Type: engine.Duration, Help: "a time"}, {Name: "tags", Type: engine.Strings, Help: "texts"},
			},
			Ops: map[lessor.Verb]engine.Handler{lessor.Read: h, lessor.List: h, lessor.Create: h, lessor.Update: h, lessor.Delete: h},
		},
		{Pattern: "find/{path...}/now", Help: "a search", Open: true, Fields: []engine.Field{{Name: "limit", Type: engine.Int, Help: "at most"}}, Ops: map[lessor.Verb]engine.Handler{lessor.Read: h}},
	}
	const role = `"parameters":[{"name":"name","in":"path","required":true,"description":"its name","schema":{"type":"string"}}`
	for _, c := range []struct {
		name   string
		o      openapi.Options
		mounts []openapi.Mount
		paths  string
	}{
		{"a mount", openapi.Options{Version: "1.0.0"}, []openapi.Mount{{Path: "db/", Type: "x", Tag: "secrets", Routes: routes}}, `{
			"/db/find/{path}/now":{"description":"a search","x-vault-unauthenticated":true,"parameters":[{"name":"path","in":"path","required":true,"schema":{"type":"string"}}],
				"get":{"operationId":"x-read-find-path-now","summary":"a search","tags":["secrets"],"parameters":[{"name":"limit","in":"query","description":"at most","schema":{"type":"integer"}}],
					"responses":{"200":{"description":"OK"}}}},
			"/db/roles/{name}":{"description":"a role","x-vault-sudo":true,"x-vault-createSupported":true,` + role + `],
				"get":{"operationId":"x-read-roles-name","summary":"a role","tags":["secrets"],"responses":{"200":{"description":"OK"}}},
				"post":{"operationId":"x-write-roles-name","summary":"a role","tags":["secrets"],
					"requestBody":{"required":true,"content":{"application/json":{"schema":{"$ref":"#/components/schemas/XWriteRolesNameRequest"}}}},
					"responses":{"200":{"description":"OK"},"204":{"description":"empty body"}}},
				"delete":{"operationId":"x-delete-roles-name","summary":"a role","tags":["secrets"],"responses":{"204":{"description":"empty body"}}}},
			"/db/roles/{name}/":{"description":"a role","x-vault-sudo":true,` + role + `],
				"get":{"operationId":"x-list-roles-name","summary":"a role","tags":["secrets"],
					"parameters":[{"name":"list","in":"query","required":true,"description":"Must be set to ` + "`true`" + `","schema":{"type":"string","enum":["true"]}}],
					"responses":{"200":{"description":"OK","content":{"application/json":{"schema":{"$ref":"#/components/schemas/StandardListResponse"}}}}}}}}`},
		{"two of a type, in a context", openapi.Options{Context: "c"}, []openapi.Mount{{Path: "a/", Type: "x", Routes: routes[1:]}, {Path: "auth/b/", Type: "x", Routes: routes[1:], Param: "b_mount_path"}}, `{
			"/a/find/{path}/now":{"description":"a search","x-vault-unauthenticated":true,"parameters":[{"name":"path","in":"path","required":true,"schema":{"type":"string"}}],
				"get":{"operationId":"x-read-find-path-now_c","summary":"a search","parameters":[{"name":"limit","in":"query","description":"at most","schema":{"type":"integer"}}],"responses":{"200":{"description":"OK"}}}},
			"/auth/{b_mount_path}/find/{path}/now":{"description":"a search","x-vault-unauthenticated":true,"parameters":[{"name":"path","in":"path","required":true,"schema":{"type":"string"}},
				{"name":"b_mount_path","in":"path","required":true,"description":"Path that the backend was mounted at","schema":{"type":"string","default":"b"}}],
				"get":{"operationId":"x-read-find-path-now_c2","summary":"a search","parameters":[{"name":"limit","in":"query","description":"at most","schema":{"type":"integer"}}],"responses":{"200":{"description":"OK"}}}}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			doc := openapi.Document(c.o, c.mounts)
			var want, got any
			if err := json.Unmarshal([]byte(c.paths), &want); err != nil {
				t.Fatal(err)
			}
			text := lessor.AppendJSON(nil, doc["paths"])
			if err := json.Unmarshal(text, &got); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %s", text)
			}
			if again := lessor.AppendJSON(nil, openapi.Document(c.o, c.mounts)); string(again) != string(lessor.AppendJSON(nil, doc)) {
				t.Error("it is not the same again")
			}
		})
	}
	schemas := openapi.Document(openapi.Options{}, []openapi.Mount{{Type: "x", Routes: routes}})["components"].(map[string]any)["schemas"].(map[string]any)
	const request = `{"properties":{"tags":{"description":"texts","items":{"type":"string"},"type":"array"},"ttl":{"description":"a time","format":"duration","type":"string"}},"type":"object"}`
	if got := string(lessor.AppendJSON(nil, schemas["XWriteRolesNameRequest"])); got != request {
		t.Errorf("a request: %s", got)
	}
}
