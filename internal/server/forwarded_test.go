package server

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

// FuzzForwarded: nobody who is no trusted proxy chooses the address that counts, and what a trusted one says is never
// taken further than the first hop that it does not vouch for.
func FuzzForwarded(f *testing.F) {
	f.Add("192.0.2.1:80", "203.0.113.7, 10.0.0.1")
	f.Add("203.0.113.9:80", "1.2.3.4")
	f.Add("10.0.0.1:1", "1.2.3.4:99,[2001:db8::1]:5, ::ffff:10.0.0.2")
	f.Add("[::1]:1", ",,")
	h := answering(nil, nil, nil)
	h.proxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.0.0.0/8")}
	f.Fuzz(func(t *testing.T, peer, header string) {
		at, err := netip.ParseAddrPort(peer)
		if err != nil {
			return
		}
		from := at.Addr().Unmap().WithZone("")
		got, err := h.client(&http.Request{RemoteAddr: peer, Header: http.Header{"X-Forwarded-For": {header}}})
		if !h.trusted(from) {
			if err != nil || got != from {
				t.Fatalf("%s says %q and is taken for %s (%v)", peer, header, got, err)
			}
			return
		}
		if err != nil || got == from {
			return
		}
		hops := strings.Split(header, ",")
		for i := len(hops) - 1; i >= 0; i-- {
			a, err := forwarded(strings.TrimSpace(hops[i]))
			if err != nil {
				t.Fatalf("%q is taken for %s, past %q", header, got, hops[i])
			}
			if a == got {
				return
			}
			if !h.trusted(a) {
				t.Fatalf("%q is taken for %s, past %s", header, got, a)
			}
		}
		t.Fatalf("%s is not in %q", got, header)
	})
}
