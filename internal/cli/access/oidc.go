package access

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

// loginTime is how long a person has at the provider.
const loginTime = 10 * time.Minute

// browserLogin is a login at an OpenID provider, as its parameters ask for it.
type browserLogin struct {
	a       *session.Session
	c       *client.Client
	path    string // of the method: "auth/oidc/oidc/"
	role    any    // nil: the method's default one
	nonce   string // nobody else can end what begins with it
	listen  string // host:port that the browser comes back to
	host    string // by which the browser knows that host
	port    string // and the port; empty: the one that is listened on
	scheme  string
	browser bool // open one

	giveUp context.CancelCauseFunc // ends the login
}

// loginInBrowser sends a person to the provider and waits until he comes back, or, where the role says so, until he typed a code there.
func loginInBrowser(a *session.Session, cmd *cobra.Command, c *client.Client, mount string, data map[string]any) (*client.Response, error) {
	l := &browserLogin{
		a: a, c: c, path: "auth/" + mount + "/oidc/", role: data["role"], nonce: rand.Text(),
		listen: net.JoinHostPort(parameter(data, "listenaddress", "localhost"), parameter(data, "port", "8250")),
		host:   parameter(data, "callbackhost", "localhost"), port: parameter(data, "callbackport", ""), scheme: parameter(data, "callbackmethod", "http"),
		browser: true,
	}
	if text := parameter(data, "skip_browser", ""); text != "" {
		skip, err := strconv.ParseBool(text)
		if err != nil {
			return nil, session.Usage(cmd, "skip_browser must be true or false")
		}
		l.browser = !skip
	}
	if l.scheme != "http" && l.scheme != "https" {
		return nil, session.Usage(cmd, "callbackmethod must be http or https")
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), loginTime)
	defer cancel()
	ctx, l.giveUp = context.WithCancelCause(ctx)
	answer, err := l.run(ctx)
	if cause := context.Cause(ctx); errors.Is(cause, errSpied) { // even if somebody has logged in by now: who?
		return nil, cause
	}
	if errors.Is(err, context.DeadlineExceeded) && cmd.Context().Err() == nil {
		err = errors.New("nobody logged in at the provider in time: try again")
	}
	return answer, err
}

// parameter is one that the user gave, or what it is otherwise.
func parameter(data map[string]any, name, otherwise string) string {
	if text, ok := data[name].(string); ok && text != "" {
		return text
	}
	return otherwise
}

func (l *browserLogin) run(ctx context.Context) (*client.Response, error) {
	// Nobody may need it: where a code is typed elsewhere, the browser does not come back.
	listener, busy := new(net.ListenConfig).Listen(ctx, "tcp", l.listen)
	if busy == nil {
		defer listener.Close()
	}
	begin := map[string]any{"redirect_uri": l.redirect(listener), "client_nonce": l.nonce}
	if l.role != nil {
		begin["role"] = l.role
	}
	answer, err := l.c.WithWrapTTL(0).Write(ctx, l.path+"auth_url", begin)
	if err != nil {
		return nil, err
	}
	var begun struct {
		URL      string `json:"auth_url"`
		UserCode string `json:"user_code"`
		State    string `json:"state"`
		Interval string `json:"poll_interval"`
	}
	if err := answer.Decode(&begun); err != nil {
		return nil, err
	}
	at, err := url.Parse(begun.URL)
	if err != nil || at.Host == "" || at.Scheme != "https" && at.Scheme != "http" {
		return nil, errors.New("the server does not say where to log in: see whether the role allows the redirect URI " + l.redirect(listener))
	}
	if begun.State != "" {
		l.a.Complain("Log in at\n\n    %s\n", session.Printable(at.String()))
		if begun.UserCode != "" {
			l.a.Complain("with the code %s\n", session.Printable(begun.UserCode))
		}
		l.open(ctx, at.String())
		return l.poll(ctx, begun.State, begun.Interval)
	}
	if busy != nil {
		return nil, fmt.Errorf("cannot wait for the browser (give port=N where the role allows it): %w", busy)
	}
	came := make(chan url.Values, 1)
	server := &http.Server{Handler: l.waits(at.Query().Get("state"), came), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second) // for the page to arrive
		defer cancel()
		_ = server.Shutdown(ctx)
	}()
	l.a.Complain("Log in at\n\n    %s\n\nThis waits for the browser to come back.\n", session.Printable(at.String()))
	l.open(ctx, at.String())
	select {
	case q := <-came:
		q.Set("client_nonce", l.nonce)
		return l.c.Read(ctx, l.path+"callback", q)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// redirect is where the browser comes back to.
func (l *browserLogin) redirect(listener net.Listener) string {
	port := l.port
	if port == "" && listener != nil {
		_, port, _ = net.SplitHostPort(listener.Addr().String())
	}
	if port == "" {
		_, port, _ = net.SplitHostPort(l.listen)
	}
	return (&url.URL{Scheme: l.scheme, Host: net.JoinHostPort(l.host, port), Path: "/oidc/callback"}).String()
}

// waits answers the browser that comes back from this login. Anybody on this machine, and any page in its browsers, can come here: what has another
// state is not what is waited for.
func (l *browserLogin) waits(state string, came chan<- url.Values) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/oidc/callback", func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if err := r.ParseForm(); err != nil || state == "" || r.Form.Get("state") != state {
			http.Error(w, "This is not the login that lessor waits for.", http.StatusBadRequest)
			return
		}
		q := url.Values{}
		for _, name := range []string{"state", "code", "error"} {
			if v := r.Form.Get(name); v != "" {
				q.Set(name, v)
			}
		}
		select {
		case came <- q:
			_, _ = fmt.Fprintln(w, "Go back to the terminal: lessor tells there whether you are logged in. You can close this page.")
		default:
			http.Error(w, "This login has come back already.", http.StatusBadRequest)
		}
	})
	return mux
}

// poll asks until the person has typed the code. A server or a provider that is away for the moment is asked again, after a growing pause (RFC 8628,
// 3.5): the code is good meanwhile.
func (l *browserLogin) poll(ctx context.Context, state, interval string) (*client.Response, error) {
	seconds, err := strconv.Atoi(interval)
	if err != nil || seconds < 1 || seconds > 600 {
		seconds = 5
	}
	for away := 0; ; {
		pause := time.Duration(seconds) * time.Second
		if away > 0 {
			pause = max(pause, min(pause<<min(away, 5), mostPause))
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		answer, err := l.c.Write(ctx, l.path+"poll", map[string]any{"state": state, "client_nonce": l.nonce})
		refusal, refused := errors.AsType[*client.Error](err)
		_, unreachable := errors.AsType[*client.Unreachable](err)
		switch {
		case refused && slices.Contains(refusal.Errors, "authorization_pending"):
			away = 0
		case refused && slices.Contains(refusal.Errors, "slow_down"):
			seconds, away = seconds+5, 0
		case ctx.Err() == nil && (unreachable || refused && (refusal.Status >= 500 || refusal.Status == http.StatusTooManyRequests)):
			if away++; away == 1 {
				l.a.Complain("%s. This goes on asking.\n", session.Sentence(err))
			}
		default:
			return answer, err
		}
	}
}

// mostPause is the longest pause between two questions that comes from failures.
const mostPause = 30 * time.Second
