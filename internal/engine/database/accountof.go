package database

import "strings"

// AccountOf is the account that a path is about.
func (e *Engine) AccountOf(path string) (string, bool) {
	for prefix, rows := range map[string]string{
		staticCreds: staticPrefix, "static-roles/": staticPrefix, "rotate-role/": staticPrefix, connectionPrefix: rootPrefix, "rotate-root/": rootPrefix,
	} {
		if name, ok := strings.CutPrefix(path, prefix); ok && name != "" && !strings.Contains(name, "/") {
			return rows + name, true
		}
	}
	return "", false
}
