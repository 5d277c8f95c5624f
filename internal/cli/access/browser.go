package access

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lessor-dev/lessor/internal/cli/session"
)

// open shows a page in the person's browser, if there is one. It need not: the address is on the screen. Who knows the address can log in there himself, and come back as this
// person's login, whose commands would write their secrets to where he reads; and all users of the machine see what is in command lines. So the browser is sent to a page of this
// process's first, which leads there whom it is for.
func (l *browserLogin) open(ctx context.Context, at string) {
	if !l.browser {
		return
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return
	}
	page := &lead{path: "/" + rand.Text(), to: at, spied: func() { l.giveUp(errSpied) }}
	server := &http.Server{Handler: page, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }()
	context.AfterFunc(ctx, func() { _ = server.Close() })
	start(ctx, l.a, "http://"+listener.Addr().String()+page.path)
}

// lead is a page that leads to an address: this user, as the system says; if it does not say whose a connection is, or it is root's, who passes on what others ask (Windows
// to WSL, say), whoever comes first. If such a one comes again, one of them may have been another user.
type lead struct {
	path, to string
	came     atomic.Int32 // that it is not known of who they were
	spied    func()
}

var errSpied = errors.New("the page that leads to the login was opened twice, perhaps by another user of this machine: log in again with skip_browser=true, and open the address yourself")

// ServeHTTP implements http.Handler.
func (p *lead) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
	if r.URL.Path != p.path || r.Method != http.MethodGet { // an icon, say
		http.NotFound(w, r)
		return
	}
	at := ""
	if addr, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		at = addr.String()
	}
	switch uid, known := peer(r.RemoteAddr, at); {
	case known && uid == os.Geteuid():
		http.Redirect(w, r, p.to, http.StatusSeeOther)
	case known && uid != 0:
		http.Error(w, "This login is another user's.", http.StatusForbidden)
	case p.came.Add(1) > 1:
		http.Error(w, "Somebody has been here before: this login is given up. Go back to the terminal.", http.StatusGone)
		_ = http.NewResponseController(w).Flush()
		p.spied()
	default:
		http.Redirect(w, r, p.to, http.StatusSeeOther)
	}
}

// start starts the person's browser.
func start(ctx context.Context, a *session.Session, at string) {
	program := []string{"xdg-open"}
	switch chosen, _ := a.Env("BROWSER"); {
	case chosen != "" && !strings.ContainsAny(chosen, ":%"):
		program = []string{chosen}
	case runtime.GOOS == "darwin":
		program = []string{"open"}
	case runtime.GOOS == "windows":
		program = []string{"rundll32", "url.dll,FileProtocolHandler"}
	}
	command := exec.CommandContext(context.WithoutCancel(ctx), program[0], append(program[1:], at)...)
	command.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "LESSOR_") || strings.HasPrefix(s, "VAULT_") })
	if command.Start() == nil {
		go func() { _ = command.Wait() }()
	}
}
