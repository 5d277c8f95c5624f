package client

import (
	"encoding/json"
	"net/http"
	"net/http/httputil"
	"strings"
)

// Forward hands requests of others on to the server, as they come. The client's own token, headers and timeout play no part;
// how it reaches the server does, and its namespace where a request names none. What is told to who asks, if the server cannot be reached, is 502.
func (c *Client) Forward() http.Handler {
	return &httputil.ReverseProxy{
		Transport: c.http.Transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = c.base.Scheme, c.base.Host
			if prefix := c.base.EscapedPath(); prefix != "" {
				r.Out.URL.RawPath = prefix + r.In.URL.EscapedPath()
				r.Out.URL.Path = c.base.Path + r.In.URL.Path
			}
			r.Out.Host = c.base.Host
			if c.config.Namespace != "" && r.Out.Header.Get("X-Vault-Namespace") == "" {
				r.Out.Header.Set("X-Vault-Namespace", strings.Trim(c.config.Namespace, "/"))
			}
			if _, ok := r.Out.Header["User-Agent"]; !ok {
				r.Out.Header.Set("User-Agent", "")
			}
		},
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadGateway)
			_ = json.NewEncoder(w).Encode(map[string][]string{"errors": {"the server cannot be reached"}})
		},
	}
}
