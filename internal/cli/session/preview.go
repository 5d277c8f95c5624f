package session

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/client"
)

// Preview is the end of a command that shows its call instead of making it: the text to show.
type Preview string

func (p Preview) Error() string { return "the call was shown instead of made" }

// asCurl shows a call as a curl command. The token is not in it: the command asks for it when it is run.
func asCurl(request *http.Request, body []byte, tls client.TLS) error {
	words := []string{"curl"}
	if tls.SkipVerify {
		words = append(words, "--insecure")
	}
	if request.Method != http.MethodGet {
		words = append(words, "-X", request.Method)
	}
	for _, file := range []struct{ flag, path string }{
		{"--cacert", tls.CACert}, {"--capath", tls.CAPath}, {"--cert", tls.ClientCert}, {"--key", tls.ClientKey},
	} {
		if file.path != "" {
			words = append(words, file.flag, shellQuote(file.path))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(request.Header)) {
		for _, value := range request.Header[name] {
			switch name {
			case "User-Agent":
			case "X-Vault-Token":
				words = append(words, "-H", `"X-Vault-Token: $(lessor print token)"`)
			default:
				words = append(words, "-H", shellQuote(name+": "+value))
			}
		}
	}
	if len(body) > 0 {
		words = append(words, "-d", shellQuote(string(body)))
	}
	address := request.URL.String()
	if strings.ContainsAny(address, "?&'$`\"\\ ;()*") {
		address = shellQuote(address)
	}
	return Preview(strings.Join(append(words, address), " "))
}

// shellQuote makes one word of text, whatever is in it.
func shellQuote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'"'"'`) + "'" }

// rootProtected are the paths that need the capability sudo, as policies write paths.
var rootProtected = []string{
	"auth/token/accessors", "auth/token/revoke-orphan",
	"sys/audit", "sys/audit/*", "sys/auth/*", "sys/config/auditing/*", "sys/config/cors", "sys/config/ui/*",
	"sys/leases", "sys/leases/lookup/*", "sys/leases/revoke-force/*", "sys/leases/revoke-prefix/*",
	"sys/lessor/audit/*", "sys/lessor/backup", "sys/lessor/fence", "sys/lessor/revoke", "sys/lessor/seal", "sys/lessor/seal/*",
	"sys/plugins/catalog/*", "sys/plugins/runtimes/catalog", "sys/remount", "sys/revoke-force/*", "sys/revoke-prefix/*",
	"sys/rotate", "sys/seal", "sys/step-down",
}

// asPolicy shows the policy that a call needs.
func asPolicy(request *http.Request) error {
	_, path, found := strings.Cut(request.URL.Path, "/v1/")
	if !found {
		return errors.New("the call has no path")
	}
	path = strings.TrimPrefix(path, "/")
	var capabilities []string
	switch request.Method {
	case http.MethodGet:
		capabilities = []string{"read"}
		if request.URL.Query().Get("list") == "true" {
			capabilities = []string{"list"}
		}
	case http.MethodPut, http.MethodPost:
		capabilities = []string{"create", "update"}
	case http.MethodPatch:
		capabilities = []string{"patch"}
	case http.MethodDelete:
		capabilities = []string{"delete"}
	}
	if slices.ContainsFunc(rootProtected, func(protected string) bool {
		prefix, open := strings.CutSuffix(protected, "*")
		return strings.TrimSuffix(path, "/") == protected || open && strings.HasPrefix(path, prefix)
	}) {
		capabilities = append(capabilities, "sudo")
	}
	return Preview("path \"" + path + "\" {\n  capabilities = [\"" + strings.Join(capabilities, `", "`) + "\"]\n}")
}
