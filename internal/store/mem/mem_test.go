package mem_test

import (
	"testing"

	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) func() store.Backend {
		disk := new(mem.Disk)
		return func() store.Backend { return disk.Open() }
	})
}
