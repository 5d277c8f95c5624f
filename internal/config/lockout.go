package config

import (
	"errors"
	"slices"
	"strconv"

	"github.com/hashicorp/hcl/v2"

	"github.com/lessor-dev/lessor/internal/lockout"
)

// lockoutBlock reads user_lockout "TYPE" { … }. What it leaves out is as "all" has it, wherever that stands.
func (d *decoder) lockoutBlock(b *hcl.Block) {
	kind := b.Labels[0]
	if kind != "all" && !slices.Contains(lockout.Types, kind) {
		d.complain(b.DefRange, "unsupported auth type %q: use all, approle, ldap or userpass", kind)
		return
	}
	d.once("user_lockout "+kind, b.DefRange)
	var t lockout.Terms
	var threshold string
	blocks := map[string]setting{
		"lockout_threshold":     text(&threshold),
		"lockout_duration":      duration(&t.Duration),
		"lockout_counter_reset": duration(&t.CounterReset),
		"disable_lockout":       boolean(&t.Disabled),
	}
	takes := map[string]func(*lockout.Terms){
		"lockout_threshold":     func(to *lockout.Terms) { to.Threshold = t.Threshold },
		"lockout_duration":      func(to *lockout.Terms) { to.Duration = t.Duration },
		"lockout_counter_reset": func(to *lockout.Terms) { to.CounterReset = t.CounterReset },
		"disable_lockout":       func(to *lockout.Terms) { to.Disabled = t.Disabled },
	}
	attributes, _ := b.Body.JustAttributes()
	d.body(b.Body, "user_lockout "+kind, blocks, nil)
	if attributes["lockout_threshold"] != nil {
		n, err := strconv.ParseUint(threshold, 10, 32)
		if err != nil {
			d.complain(attributes["lockout_threshold"].NameRange, "lockout_threshold %v", errors.New("must be a number of failures"))
		}
		t.Threshold = n
	}
	for name := range attributes {
		if take := takes[name]; take != nil {
			d.lockouts = append(d.lockouts, said{kind, take})
		}
	}
}

// said is one setting of a user_lockout stanza.
type said struct {
	kind string
	take func(*lockout.Terms)
}

// lockoutTerms puts together what the stanzas said.
func (d *decoder) lockoutTerms() {
	if len(d.lockouts) == 0 {
		return
	}
	terms := map[string]lockout.Terms{}
	for _, kind := range append([]string{"all"}, lockout.Types...) {
		t := lockout.Default
		for _, from := range []string{"all", kind} {
			for _, s := range d.lockouts {
				if s.kind == from {
					s.take(&t)
				}
			}
		}
		terms[kind] = t
	}
	d.config.Lockout.ByType = terms
}
