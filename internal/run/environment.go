package run

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Environment is the environment of a command, in order. What comes later wins.
type Environment struct {
	variables []Variable
}

// ours are the variables that the command does not get: they are lessor's own way in.
var ours = []string{"LESSOR_TOKEN", "VAULT_TOKEN"}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

// Set sets a variable, references in it included.
func (e *Environment) Set(name, value string) error {
	v, err := ParseVariable(name, value)
	if err != nil {
		return err
	}
	e.variables = slices.DeleteFunc(e.variables, func(old Variable) bool { return old.Name == name })
	e.variables = append(e.variables, v)
	return nil
}

// Inherit sets what a process's environment (os.Environ) has, without lessor's tokens.
func (e *Environment) Inherit(environ []string) error {
	for _, entry := range environ {
		name, value, ok := strings.Cut(entry, "=")
		if !ok || slices.Contains(ours, name) {
			continue
		}
		if err := e.Set(name, value); err != nil {
			return err
		}
	}
	return nil
}

// Assign sets what an assignment says: NAME=VALUE.
func (e *Environment) Assign(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok || !variableName.MatchString(name) {
		return fmt.Errorf("a variable is written as NAME=VALUE")
	}
	return e.Set(name, value)
}

// Load sets what a file says: a line NAME=VALUE each, as it stands, but for white space around it, an "export " before it and quotes around the
// value; empty lines and those that begin with # say nothing. Errors name the line, and do not repeat it.
func (e *Environment) Load(text string) error {
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !ok || !variableName.MatchString(name) {
			return fmt.Errorf("line %d: a variable is written as NAME=VALUE", n)
		}
		for _, quote := range []string{`"`, `'`} {
			if len(value) >= 2 && strings.HasPrefix(value, quote) && strings.HasSuffix(value, quote) {
				value = value[1 : len(value)-1]
				break
			}
		}
		if err := e.Set(name, value); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	return nil
}

// References are those in all variables.
func (e *Environment) References() []Reference {
	var all []Reference
	for _, v := range e.variables {
		all = append(all, v.References()...)
	}
	return all
}
