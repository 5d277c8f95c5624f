package event

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/api"
)

// Interest is what a subscriber wants to hear of, as far as it is not a matter of who may: the zero Interest is nothing.
type Interest struct {
	Types []string // of the events; * stands for any characters. One must match
	Paths []string // by which is read what the events are about; a * at the end stands for any. None: all paths
	// Filter says of an event, besides, whether it is wanted; nil: it is
	Filter func(*Event) bool
}

// Bounds of what one subscriber may name.
const (
	longestType  = 128
	mostNames    = 1024
	mostPatterns = 64 // of types, and of paths that end in *: each event is held against them, for all subscribers in turn
)

// Check refuses an interest in what cannot be.
func (i *Interest) Check() error {
	switch {
	case slices.Contains(i.Types, "") || len(i.Types) == 0:
		return api.Errorf(api.Invalid, "did not specify eventType to subscribe to: name one, such as kv-v2/data-write, or several with a *")
	case slices.ContainsFunc(i.Types, func(t string) bool { return len(t) > longestType }):
		return api.Errorf(api.Invalid, "no type of events has a name of more than %d bytes", longestType)
	case len(i.Types) > mostPatterns || i.prefixes() > mostPatterns:
		return api.Errorf(api.Invalid, "a subscription names %d types, and %d paths that end in *, at most: subscribe more than once", mostPatterns, mostPatterns)
	case len(i.Paths) > mostNames:
		return api.Errorf(api.Invalid, "a subscription names %d paths at most: use a * at the end of a path, or subscribe more than once", mostNames)
	}
	return nil
}

// Wants reports whether the event is of interest.
func (i *Interest) Wants(e *Event) bool {
	return slices.ContainsFunc(i.Types, func(t string) bool { return Match(t, e.Type) }) &&
		(len(i.Paths) == 0 || slices.ContainsFunc(i.Paths, func(p string) bool { return beneath(p, e.Path) })) &&
		(i.Filter == nil || i.Filter(e))
}

// beneath reports whether a path is the one that is wanted, or one of those if that ends in *.
func beneath(wanted, path string) bool {
	if prefix, ok := strings.CutSuffix(wanted, "*"); ok {
		return strings.HasPrefix(path, prefix)
	}
	return path == wanted
}

// Match reports whether a pattern, in which each * stands for any characters, none included, matches all of s.
func Match(pattern, s string) bool {
	prefix, rest, glob := strings.Cut(pattern, "*")
	if !glob {
		return s == pattern
	}
	s, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return false
	}
	for {
		part, more, glob := strings.Cut(rest, "*")
		if !glob {
			return strings.HasSuffix(s, part)
		}
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s, rest = s[i+len(part):], more
	}
}

// interested finds whom an event may concern: by its path where they named paths, else by what they have in common.
type interested struct {
	exact map[string]set     // by path, those who named it
	wide  map[string]subject // those who named no path, or some that end in *: by types and these
}

type set map[*Subscription]struct{}

// subject is what many may be interested in alike.
type subject struct {
	*Interest
	set
}

func newInterested() interested {
	return interested{map[string]set{}, map[string]subject{}}
}

// prefixes is how many paths end in *.
func (i *Interest) prefixes() int {
	if _, wide := i.split(); wide != nil {
		return len(wide.Paths)
	}
	return 0
}

// split are the paths that are named exactly, and the rest of the interest, which has to be held against each event; nil: there is none.
func (i *Interest) split() (exact []string, wide *Interest) {
	var prefixes []string
	for _, p := range i.Paths {
		if strings.HasSuffix(p, "*") {
			prefixes = append(prefixes, p)
		} else {
			exact = append(exact, p)
		}
	}
	if len(i.Paths) == 0 || len(prefixes) > 0 {
		wide = &Interest{Types: i.Types, Paths: prefixes}
	}
	return exact, wide
}

// subject tells what two are interested in apart, whatever characters they name it by.
func (i *Interest) subject() string { return fmt.Sprintf("%q %q", i.Types, i.Paths) }

func (in interested) add(s *Subscription) {
	exact, wide := s.interest.split()
	for _, p := range exact {
		enrol(in.exact, p, s)
	}
	if wide == nil {
		return
	}
	key := wide.subject()
	if in.wide[key].set == nil {
		in.wide[key] = subject{wide, set{}}
	}
	in.wide[key].set[s] = struct{}{}
}

func (in interested) remove(s *Subscription) {
	exact, wide := s.interest.split()
	for _, p := range exact {
		strike(in.exact, p, s)
	}
	if wide == nil {
		return
	}
	key := wide.subject()
	if delete(in.wide[key].set, s); len(in.wide[key].set) == 0 {
		delete(in.wide, key)
	}
}

// enrol adds a subscription to those of a name.
func enrol(all map[string]set, name string, s *Subscription) {
	if all[name] == nil {
		all[name] = set{}
	}
	all[name][s] = struct{}{}
}

// strike takes it away.
func strike(all map[string]set, name string, s *Subscription) {
	if delete(all[name], s); len(all[name]) == 0 {
		delete(all, name)
	}
}

// wake has all look whom an event may concern.
func (in interested) wake(e *Event) {
	for s := range in.exact[e.Path] {
		s.poke()
	}
	for _, about := range in.wide {
		if about.Wants(e) {
			for s := range about.set {
				s.poke()
			}
		}
	}
}
