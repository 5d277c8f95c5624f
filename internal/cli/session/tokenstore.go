package session

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/lessor-dev/lessor/client"
)

// TokenStore is where the token of the last login is kept: a file in the user's home folder, or the program that the
// user's configuration names as its token_helper.
//
// That configuration is the file that LESSOR_CONFIG_PATH or VAULT_CONFIG_PATH names, else ~/.lessor, else ~/.vault.
func (a *Session) TokenStore() (client.TokenStore, error) {
	paths := []string{a.Env.Setting("CONFIG_PATH")}
	if paths[0] == "" {
		paths = nil
		if a.home != "" {
			paths = []string{filepath.Join(a.home, ".lessor"), filepath.Join(a.home, ".vault")}
		}
	}
	for _, path := range paths {
		path = a.expand(path)
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if info.IsDir() {
			continue // somebody else's
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		program, err := tokenHelper(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w; if the file is not meant for this program, set LESSOR_CONFIG_PATH to one that is", path, err)
		}
		if program == "" {
			break
		}
		program = a.expand(program)
		if !filepath.IsAbs(program) {
			return nil, fmt.Errorf("%s: token_helper must be an absolute path", path)
		}
		return client.TokenProgram{Program: program}, nil
	}
	return client.TokenFile{Home: a.home}, nil
}

// expand puts the home folder in the place of a leading ~.
func (a *Session) expand(path string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok && a.home != "" {
		return filepath.Join(a.home, rest)
	}
	return path
}

// tokenHelper reads the only setting that the command line's configuration has, from HCL or JSON.
func tokenHelper(text []byte) (string, error) {
	const setting = "token_helper"
	values := map[string]string{}
	if strings.HasPrefix(strings.TrimSpace(string(text)), "{") {
		if err := json.Unmarshal(text, &values); err != nil {
			return "", errors.New("it is not a JSON object of texts")
		}
	} else {
		file, problems := hclsyntax.ParseConfig(text, "", hcl.InitialPos)
		if problems.HasErrors() {
			return "", errors.New("it is not well-formed")
		}
		attributes, problems := file.Body.JustAttributes()
		if problems.HasErrors() {
			return "", errors.New("it holds blocks, and may hold token_helper only")
		}
		for name, attribute := range attributes {
			value, problems := attribute.Expr.Value(nil)
			if problems.HasErrors() || value.IsNull() || value.Type().FriendlyName() != "string" {
				return "", fmt.Errorf("%s must be a text in quotes", name)
			}
			values[name] = value.AsString()
		}
	}
	for name := range values {
		if name != setting {
			return "", fmt.Errorf("it may hold %s only, not %q", setting, name)
		}
	}
	return values[setting], nil
}
