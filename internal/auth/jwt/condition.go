package jwt

import (
	"encoding/json"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/ext"

	"github.com/lessor-dev/lessor/api"
)

const (
	longestCondition = 4096  // bytes of an expression
	mostNodes        = 1000  // of its tree
	mostCost         = 50000 // of one evaluation, in CEL's units: some milliseconds at most
)

// conditions is what expressions may speak of: the claims of a token, and nothing else. They see no clock, and reach nowhere.
var conditions = func() *cel.Env {
	env, err := cel.NewEnv(
		cel.Variable("claims", cel.MapType(cel.StringType, cel.DynType)),
		cel.CrossTypeNumericComparisons(true), cel.DefaultUTCTimeZone(true), ext.Strings(),
		cel.ParserExpressionSizeLimit(longestCondition), cel.ParserRecursionLimit(deepest), cel.ExpressionNodeLimit(mostNodes),
		cel.RegexProgramSizeLimit(mostNodes),
	)
	if err != nil {
		panic("jwt: " + err.Error()) // a defect
	}
	return env
}()

// A condition is what a role asks of the claims in CEL, the Common Expression Language. Safe for concurrent use.
type condition struct{ program cel.Program }

// compile reads an expression, which must be true or false. Errors are of kind Invalid.
func compile(expression string) (*condition, error) {
	ast, issues := conditions.Compile(expression)
	if issues.Err() != nil {
		return nil, api.Errorf(api.Invalid, "bound_cel: %s", strings.TrimSpace(issues.Err().Error()))
	}
	if !ast.OutputType().IsExactType(cel.BoolType) {
		return nil, api.Errorf(api.Invalid, "bound_cel must be true or false, and this is of type %s: compare it with something", ast.OutputType())
	}
	program, err := conditions.Program(ast, cel.CostLimit(mostCost))
	if err != nil {
		return nil, api.Errorf(api.Invalid, "bound_cel: %v", err)
	}
	return &condition{program}, nil
}

// expressions keeps compiled conditions, which take longer to compile than to evaluate. It is a cache: what is not in it is compiled.
type expressions struct {
	mu    sync.Mutex
	known map[string]*condition
}

const mostExpressions = 1000

// compiled is the condition of an expression; nil for none.
func (e *expressions) compiled(expression string) (*condition, error) {
	if expression == "" {
		return nil, nil
	}
	e.mu.Lock()
	known := e.known[expression]
	e.mu.Unlock()
	if known != nil {
		return known, nil
	}
	c, err := compile(expression)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.known == nil || len(e.known) >= mostExpressions {
		e.known = map[string]*condition{}
	}
	e.known[expression] = c
	return c, nil
}

// errCondition refuses a token. It does not say which part of the expression was not true.
var errCondition = api.Errorf(api.Invalid, "error validating claims: the role's bound_cel is not true of this token")

// holds refuses a token of which the condition is not true. One that cannot be evaluated, since a claim is missing or of another type, or
// since it takes too long, is not true.
func (c *condition) holds(of claims) error {
	out, _, err := c.program.Eval(map[string]any{"claims": plain(map[string]any(of))})
	if err != nil {
		return errCondition
	}
	if yes, ok := out.Value().(bool); !ok || !yes {
		return errCondition
	}
	return nil
}

// plain is a value of JSON as expressions take it: whole numbers are integers, others floating.
func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = plain(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = plain(e)
		}
		return out
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64() // beyond the largest number: infinite
		return f
	}
	return v
}
