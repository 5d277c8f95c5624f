package server

import (
	"net/http"
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/api"
)

// CORS is which web pages of other origins may read answers, and which headers they may send. The zero CORS is switched off: a
// browser, left to itself, lets no page do so.
type CORS struct {
	Origins []string // "*" alone: all
	Headers []string
}

func (c CORS) admits(origin string) bool {
	return slices.ContainsFunc(c.Origins, func(o string) bool { return o == "*" || strings.EqualFold(o, origin) })
}

var crossMethods = []string{"DELETE", "GET", "OPTIONS", "POST", "PUT", "PATCH", "LIST"}

// cross treats a request that a browser sent for a page of an origin. It reports whether that was all: the origin is not admitted, or
// the browser only asks what its page may do.
func (h *Handler) cross(w http.ResponseWriter, r *http.Request, origin string) bool {
	c := h.gate.CORS()
	if origin == "" || len(c.Origins) == 0 {
		return false
	}
	if !c.admits(origin) {
		h.refuse(w, &api.Error{Kind: api.Denied, Text: "origin not allowed"})
		return true
	}
	asks := r.Method == http.MethodOptions
	if asks && !slices.Contains(crossMethods, first(r.Header, "Access-Control-Request-Method")) {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return true
	}
	header := w.Header()
	header.Set("Access-Control-Allow-Origin", origin)
	header.Set("Vary", "Origin")
	if asks {
		header.Set("Access-Control-Allow-Methods", strings.Join(crossMethods, ","))
		header.Set("Access-Control-Allow-Headers", strings.Join(c.Headers, ","))
		header.Set("Access-Control-Max-Age", "300")
		w.WriteHeader(http.StatusOK)
	}
	return asks
}
