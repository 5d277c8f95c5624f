package pebble_test

import (
	"testing"

	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/pebble"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) func() store.Backend {
		dir := t.TempDir()
		return func() store.Backend {
			b, err := pebble.Open(dir, pebble.Options{Ballast: -1})
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	})
}
