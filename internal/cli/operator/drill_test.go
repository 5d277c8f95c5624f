package operator

import (
	"strings"
	"testing"
	"time"
)

// A drill is as good as what it restored: of a backup that is too old it does not count, however lately it was.
func TestDrillsGrowOld(t *testing.T) {
	day, week, year := 24*3600.0, 7*24*3600.0, 365*24*3600.0
	for name, test := range map[string]struct {
		found freshness
		says  string
	}{
		"none":             {freshness{}, "No drill was reported"},
		"both are late":    {freshness{&day, &week}, ""},
		"an old drill":     {freshness{&year, &year}, "whole was 8760h ago"},
		"an old backup":    {freshness{&day, &year}, "nothing later than of 8760h ago"},
		"an older server":  {freshness{&day, nil}, ""},
		"an old one there": {freshness{&year, nil}, "whole was 8760h ago"},
	} {
		said := test.found.complaint(8 * 24 * time.Hour)
		if test.says == "" && said != "" || !strings.Contains(said, test.says) {
			t.Errorf("%s: %q", name, said)
		}
	}
}
