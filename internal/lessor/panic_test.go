package lessor

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestRecovered(t *testing.T) {
	say := func(panics func(key [4]uint64)) string {
		var b bytes.Buffer
		func() {
			defer func() { slog.New(slog.NewTextHandler(&b, nil)).Error("panicked", Recovered(recover())) }()
			panics([4]uint64{0xdecade, 0xfacade, 0xdeface, 0xefface})
		}()
		return b.String()
	}
	var index [2]int
	for name, c := range map[string]struct {
		panics func([4]uint64)
		want   string
	}{
		"the runtime's": {func(key [4]uint64) { _ = index[key[0]%7+2] }, "index out of range"},
		"somebody's":    {func([4]uint64) { panic("hunter2") }, "not shown"},
	} {
		text := say(c.panics)
		if !strings.Contains(text, c.want) || !strings.Contains(text, "TestRecovered") || !strings.Contains(text, "panic_test.go:") {
			t.Errorf("%s: the log does not say what and where: %s", name, text)
		}
		for _, secret := range []string{"hunter2", "decade", "facade", "0x"} {
			if strings.Contains(text, secret) {
				t.Errorf("%s: the log shows %s: %s", name, secret, text)
			}
		}
	}
}
