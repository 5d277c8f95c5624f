package access

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// peer is the user of this machine whose end of a connection of TCP over IPv4 is at from, of those that lead to at: others may come from the same port to elsewhere. It is -1 if
// that end is there no more; known is false if the kernel does not say.
func peer(from, at string) (uid int, known bool) {
	client, errFrom := netip.ParseAddrPort(from)
	server, errAt := netip.ParseAddrPort(at)
	if errFrom != nil || errAt != nil || !client.Addr().Is4() || !server.Addr().Is4() {
		return 0, false
	}
	for file, prefix := range map[string]string{"/proc/net/tcp": "", "/proc/net/tcp6": mapped} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		uid, known = -1, true
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 7 && f[1] == prefix+end(client) && f[2] == prefix+end(server) { // in whatever state: he may have said all that he will say
				uid, err := strconv.Atoi(f[7])
				return uid, err == nil
			}
		}
	}
	return uid, known
}

// end is one of a connection's two ends, as the kernel writes it.
func end(of netip.AddrPort) string {
	ip := of.Addr().As4()
	return fmt.Sprintf("%08X:%04X", binary.NativeEndian.Uint32(ip[:]), of.Port())
}

// mapped is what an address of IPv4 begins with, as the kernel writes it, if its socket is one of IPv6.
var mapped = fmt.Sprintf("0000000000000000%08X", binary.NativeEndian.Uint32([]byte{0, 0, 0xff, 0xff}))
