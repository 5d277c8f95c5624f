package access

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// peer is the user of this machine who has a connection of TCP to it, over IPv4, from an address; known is false if the kernel does not say.
func peer(address string) (uid int, known bool) {
	at, err := netip.ParseAddrPort(address)
	if err != nil || !at.Addr().Is4() {
		return 0, false
	}
	ip := at.Addr().As4()
	local := fmt.Sprintf("%08X:%04X", binary.NativeEndian.Uint32(ip[:]), at.Port())
	mapped := fmt.Sprintf("0000000000000000%08X", binary.NativeEndian.Uint32([]byte{0, 0, 0xff, 0xff})) + local
	for file, name := range map[string]string{"/proc/net/tcp": local, "/proc/net/tcp6": mapped} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			const established = "01" // others may be of whoever had the port before
			if f := strings.Fields(line); len(f) > 7 && f[1] == name && f[3] == established {
				uid, err := strconv.Atoi(f[7])
				return uid, err == nil
			}
		}
	}
	return 0, false
}
