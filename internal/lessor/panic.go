package lessor

import (
	"fmt"
	"log/slog"
	"runtime"
	"strings"
)

// Recovered is what a log may know of a panic with the value p, when called by the deferred function that recovered from it: the
// value only if it is the runtime's, which cannot hold a secret; and where it happened, functions and lines, innermost
// first, without the words of their arguments that debug.Stack prints, for these are memory.
func Recovered(p any) slog.Attr {
	what := "a value that is not shown"
	if e, ok := p.(runtime.Error); ok {
		what = e.Error()
	}
	var callers [64]uintptr
	frames := runtime.CallersFrames(callers[:runtime.Callers(2, callers[:])])
	var where strings.Builder
	for {
		f, more := frames.Next()
		fmt.Fprintf(&where, "%s %s:%d\n", f.Function, f.File, f.Line)
		if !more {
			return slog.Group("panic", "value", what, "stack", where.String())
		}
	}
}
