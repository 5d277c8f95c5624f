package auth

import (
	"net/netip"
	"testing"
)

// FuzzPrefixes: what is accepted as addresses means the same when it is shown and read again.
func FuzzPrefixes(f *testing.F) {
	for _, s := range []string{"10.0.0.0/8", "10.1.2.3/8", "192.0.2.1", "::1", "fe80::1%eth0", "2001:db8::/32", "::ffff:10.0.0.0/104", "10.0.0.0/33", ""} {
		f.Add(s, "10.1.2.3")
	}
	f.Add("fe80::/10", "fe80::1%eth0")
	f.Fuzz(func(t *testing.T, block, from string) {
		bound, err := Prefixes("f", []string{block})
		if err != nil {
			return
		}
		again, err := Prefixes("f", addresses(bound))
		if err != nil || len(again) != 1 || again[0] != bound[0] {
			t.Fatalf("%q is %v, then %v (%v)", block, bound, again, err)
		}
		a, err := netip.ParseAddr(from)
		if err != nil {
			return
		}
		if Within(bound, a) != Within(bound, netip.AddrFrom16(a.As16())) {
			t.Fatalf("%v lies in %v, or does not, by how it is written", a, bound)
		}
		if Within(bound, a) && !Inside(bound, []netip.Prefix{netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())}) {
			t.Fatalf("%v is within %v and not inside", a, bound)
		}
	})
}
