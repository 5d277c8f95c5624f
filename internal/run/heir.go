package run

import (
	"context"
	"net/http"
	"time"

	"github.com/lessor-dev/lessor/client"
)

// supersede has the server end what an earlier process of the session's instance had, which was killed: now that the command has what takes its place. It tries until
// the server has, or will not, or ctx ends, and says whether that is all.
func (r *runner) supersede(ctx context.Context, session *client.Session) (done bool) {
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		err := session.Supersede(ctx)
		switch {
		case err == nil:
			return true
		case client.IsStatus(err, http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed):
			r.Tell("credentials of an earlier process of this instance could not be ended, and end by themselves: %v", err)
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
}
