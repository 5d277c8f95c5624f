package torture

import (
	"cmp"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// checkPatience is how long the search for an order of one object's operations may take. One that did not end has shown nothing, and fails.
const checkPatience = 30 * time.Second

// models tell what each operation may have been answered, and what it makes of the object. An unknown operation may be given any
// place after its call; at the end of all it has no effect that anybody saw, so each step may assume that it happened.
var models = map[string]porcupine.Model{
	"kv":       {Init: func() any { return kvState{} }, Step: kvStep, DescribeOperation: describe},
	"register": {Init: func() any { return "" }, Step: registerStep, DescribeOperation: describe},
	"uses":     {Init: func() any { return usesState{} }, Step: usesStep, DescribeOperation: describe},
	"leases":   {Init: func() any { return uint64(0) }, Step: leasesStep, DescribeOperation: describe},
}

func describe(input, _ any) string {
	o := input.(op)
	return fmt.Sprintf("client %d at node %d: %s %d %q cas %d → %s %d", o.Client, o.Node, o.Do, o.Item, o.Value, o.CAS, o.Outcome, o.Version)
}

// kvState is a secret of KV version 2: its latest version, and what that says.
type kvState struct {
	version int
	value   string
}

func kvStep(state, input, _ any) (bool, any) {
	s, o := state.(kvState), input.(op)
	fits := o.CAS < 0 || o.CAS == s.version
	next := kvState{s.version + 1, o.Value}
	switch {
	case o.Do == "read" && o.Outcome == refused:
		return s.version == 0, s
	case o.Do == "read":
		return s.version == o.Version && s.value == o.Value, s
	case o.Outcome == refused:
		return !fits, s
	case o.Outcome == done:
		return fits && next.version == o.Version, next
	case fits:
		return true, next
	}
	return true, s
}

// registerStep is of what has one value, which a probe of a value confirms or denies: what a policy permits, a user's password.
func registerStep(state, input, _ any) (bool, any) {
	s, o := state.(string), input.(op)
	switch {
	case o.Do == "set":
		return true, o.Value
	case o.Outcome == refused:
		return s != o.Value, s
	}
	return s == o.Value, s
}

// usesState is a family of tokens: how often each may be used yet; 0 is dead, -1 without end. The first is the others' parent.
// Secret ids and wrapping tokens are families of one.
type usesState [4]int

func usesStep(state, input, _ any) (bool, any) {
	s, o := state.(usesState), input.(op)
	switch o.Do {
	case "create":
		if o.Item == 0 {
			s[0] = o.Uses
			return true, s
		}
		if o.Outcome == refused {
			return s[0] == 0, s
		}
		if s[0] != 0 {
			s[o.Item] = o.Uses
			return true, s
		}
		return o.Outcome == unknown, s
	case "use":
		left := s[o.Item]
		if o.Outcome == refused {
			return left == 0, s
		}
		if left > 0 {
			s[o.Item]--
		}
		return left != 0 || o.Outcome == unknown, s
	}
	if o.Item == 0 { // revoke
		return true, usesState{}
	}
	s[o.Item] = 0
	return true, s
}

// leasesStep is of a role's leases: those that live.
func leasesStep(state, input, _ any) (bool, any) {
	s, o := state.(uint64), input.(op)
	bit := uint64(1) << o.Item
	switch o.Do {
	case "issue":
		return true, s | bit
	case "revoke":
		return true, s &^ bit
	case "revoke all":
		return true, uint64(0)
	}
	return (s&bit != 0) == (o.Outcome == done), s // renew, look up
}

// reads are operations that change nothing: unknown ones say nothing.
var reads = map[string]bool{"read": true, "probe": true, "renew": true, "look up": true}

// linearizable checks each object's operations against its model, and returns what does not fit.
func linearizable(ops []op, patience time.Duration) (objects int, wrong []string) {
	byObject := map[string][]op{}
	for _, o := range ops {
		if o.Model == "" || o.Outcome == void || o.Outcome == unknown && reads[o.Do] {
			continue
		}
		k := o.Model + " " + o.Object
		byObject[k] = append(byObject[k], o)
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	seats := make(chan struct{}, runtime.GOMAXPROCS(0))
	for name, ops := range byObject {
		all.Add(1)
		seats <- struct{}{}
		go func() {
			defer func() { <-seats; all.Done() }()
			switch porcupine.CheckOperationsTimeout(models[ops[0].Model], operations(ops), patience) {
			case porcupine.Ok:
				return
			case porcupine.Unknown:
				mu.Lock()
				wrong = append(wrong, fmt.Sprintf("%s: whether its %d operations have an order was not found out in %s", name, len(ops), patience))
				mu.Unlock()
			default:
				mu.Lock()
				wrong = append(wrong, name+" is not linearizable:\n"+listing(ops))
				mu.Unlock()
			}
		}()
	}
	all.Wait()
	slices.Sort(wrong)
	return len(byObject), wrong
}

func operations(ops []op) []porcupine.Operation {
	out := make([]porcupine.Operation, len(ops))
	for i, o := range ops {
		out[i] = porcupine.Operation{ClientId: o.Client, Input: o, Call: int64(o.Call), Return: int64(o.Return)}
		if o.Outcome == unknown {
			out[i].Return = math.MaxInt64
		}
	}
	return out
}

// listing is the operations in the order of their calls.
func listing(ops []op) string {
	ops = slices.Clone(ops)
	slices.SortFunc(ops, func(a, b op) int { return cmp.Compare(a.Call, b.Call) })
	var b strings.Builder
	for _, o := range ops {
		fmt.Fprintf(&b, "    %9.4f to %9.4f  %s  %s %s\n", o.Call.Seconds(), o.Return.Seconds(), describe(o, nil), o.Request, o.Error)
	}
	return b.String()
}
