package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"
)

// Status is how an agent stands. It has no secret.
type Status struct {
	Started   time.Time        `json:"started"`
	LoggedIn  bool             `json:"logged_in"`
	Error     string           `json:"error"` // why it is not, or soon will not be
	Instance  string           `json:"instance"`
	Templates []TemplateStatus `json:"templates"`
	Secrets   []SecretStatus   `json:"secrets"`
}

// TemplateStatus is how a template stands.
type TemplateStatus struct {
	Destination string    `json:"destination"`
	State       string    `json:"state"` // waiting, failing, current
	Error       string    `json:"error"`
	Rendered    time.Time `json:"rendered"` // when the file was written last; zero: not since the agent began
	Writes      uint64    `json:"writes"`
	Failures    uint64    `json:"failures"`
}

// SecretStatus is how a secret stands that templates use.
type SecretStatus struct {
	Path      string    `json:"path"`
	Version   uint64    `json:"version"`   // 0: it has none
	Settled   bool      `json:"settled"`   // nothing older is in use, and the server knows
	Confirmed time.Time `json:"confirmed"` // when the server said last that it is current
	Expires   time.Time `json:"expires"`   // of a dynamic credential
	Error     string    `json:"error"`     // why it may not be current, or is not there
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (t *template) status() TemplateStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	return TemplateStatus{
		Destination: t.Destination, State: string(t.state), Error: text(t.failure), Rendered: t.rendered, Writes: t.writes, Failures: t.failures,
	}
}

func (b *bench) status() []SecretStatus {
	all := []SecretStatus{}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sources {
		s.mu.Lock()
		one := SecretStatus{Path: s.path, Error: text(s.failure)}
		if s.secret != nil {
			now := s.secret.Status()
			one.Version, one.Settled, one.Confirmed, one.Expires, one.Error = s.secret.Value().Version, s.secret.Settled(), now.Confirmed, now.Expires, text(now.Err)
		}
		s.mu.Unlock()
		all = append(all, one)
	}
	return all
}

// status is how the agent stands now.
func (a *agent) status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := Status{Started: a.started, LoggedIn: a.session != nil, Error: text(a.failure), Instance: a.config.Instance, Templates: []TemplateStatus{}, Secrets: []SecretStatus{}}
	if a.session != nil {
		s.Error = text(a.session.Err())
	}
	for _, t := range a.templates {
		s.Templates = append(s.Templates, t.status())
	}
	if a.bench != nil {
		s.Secrets = a.bench.status()
	}
	return s
}

// statusHandler tells how the agent stands, as JSON and as metrics.
func (a *agent) statusHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a.status())
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		s := a.status()
		_, _ = fmt.Fprintf(w, "# TYPE lessor_agent_logged_in gauge\nlessor_agent_logged_in %d\n", number(s.LoggedIn))
		_, _ = fmt.Fprint(w, "# TYPE lessor_agent_template_current gauge\n")
		for _, t := range s.Templates {
			_, _ = fmt.Fprintf(w, "lessor_agent_template_current{destination=%q} %d\n", t.Destination, number(t.State == string(current)))
		}
		_, _ = fmt.Fprint(w, "# TYPE lessor_agent_template_writes_total counter\n")
		for _, t := range s.Templates {
			_, _ = fmt.Fprintf(w, "lessor_agent_template_writes_total{destination=%q} %d\n", t.Destination, t.Writes)
		}
		_, _ = fmt.Fprint(w, "# TYPE lessor_agent_template_failures_total counter\n")
		for _, t := range s.Templates {
			_, _ = fmt.Fprintf(w, "lessor_agent_template_failures_total{destination=%q} %d\n", t.Destination, t.Failures)
		}
	})
	return mux
}

func number(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// Current reports whether the agent is logged in, and all its files are as they should be.
func (s Status) Current() bool {
	for _, t := range s.Templates {
		if t.State != string(current) {
			return false
		}
	}
	return s.LoggedIn
}

// ReadStatus asks the agent at a socket.
func ReadStatus(ctx context.Context, socket string) (s Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, headerTimeout)
	defer cancel()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/status", nil)
	if err != nil {
		return s, err
	}
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return s, err
	}
	defer func() { _ = answer.Body.Close() }()
	return s, json.NewDecoder(answer.Body).Decode(&s)
}
