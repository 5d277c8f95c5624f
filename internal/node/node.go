// Package node is a running lessor: it puts together, from a config.Config, what the other packages are apart: the store
// and what it lies in, the key that unseals it, the gate, the engines and logins behind it, the listeners before it.
//
// Start is the order of events: bind the listeners (a port that is taken costs nothing), open the store, unseal it (or make
// it: see unseal.go) if that can be done without people, serve. Stop is the reverse. Command is what "lessor server" does around them.
//
// A node has two parts. Listeners and the open store last as long as it does; they answer health and seal status, and take
// what unseals the store. The rest (keys, gate, engines, background work: see life.go) exists only while the store is unsealed, may be taken down
// (sys/seal) and put up again. What is done to the seal by people who show keys instead of a token is in rites.go and after.
package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lessor-dev/lessor/internal/archive"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/server"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
)

// DrainTime is how long requests under way may take to finish once Stop was called.
const DrainTime = 30 * time.Second

// Options are what a node takes from its surroundings rather than from its configuration. The zero value is usable.
type Options struct {
	Version  string       // of this binary
	Log      *slog.Logger // nil: none
	Clock    lessor.Clock // nil: the machine's
	Random   io.Reader    // keys, tokens, ids; nil: crypto/rand
	Recovery Recovery
	Level    *slog.LevelVar // of Log; nil: it cannot be changed
}

// Recovery names the file that unseals the store besides the key file. It is made at the first start if there is a passphrase.
// When the key file is lost, the store is unsealed with it, and gets a new key file.
type Recovery struct {
	File       string // empty: the configuration's, or recovery.key beside the key file
	Passphrase lessor.Secret
	UnsealKeys []lessor.Secret // for work without a server: shares, or a key file's key
}

// Node is a running server. Its methods are safe for concurrent use.
type Node struct {
	Root      lessor.Secret // the root token that this start made; empty if it made none
	TokenFile string        // where it was written; empty if it was not
	UnsealKey lessor.Secret // of a store in memory: its key, base64
	Recovered string        // the recovery file that this start made; empty if it made none
	CAFile    string        // with a certificate made for the occasion: its authority

	config    config.Config
	o         Options
	log       *slog.Logger
	listeners []*listener
	rites     map[string]*engine.Route
	started   time.Time
	disk      mem.Disk // of a store in memory

	destination archive.Destination // of backups; nil: none are made

	state    atomic.Pointer[state]
	silent   atomic.Bool            // the database does not answer, or takes newer nodes only
	draining atomic.Bool            // the node was told to stop
	lock     atomic.Pointer[string] // name in the store of the key file that unsealed it; nil: none did
	revivals atomic.Uint64          // how often the store was opened anew
	broken   atomic.Pointer[error]  // why the node cannot go on
	resting  sync.WaitGroup         // being sealed
	tending  sync.WaitGroup         // looking after a shared store
	untend   context.CancelFunc     // ends that; nil: there is none

	turn      sync.Mutex    // held by whoever unseals, seals, or shows keys; guards what follows
	db        *store.DB     // open, whether sealed or not
	backend   store.Backend // that it lies in
	keys      *seal.Keyring
	unsealing unsealing
	rekeying  *rekeying
	rooting   *rooting
	unheard   []audit.Record // what happened while sealed, for the trail
	warned    bool           // of keys that could be swapped out

	announcing sync.Mutex // so that what is said last is the latest; guards what follows
	announced  said       // last

	running sync.WaitGroup // what goes on whether sealed or not
	once    sync.Once
	stopped error
	release []func() error // what was acquired, in order
}

// listener is one address that is served.
type listener struct {
	net.Listener
	config      config.Listener
	certificate *server.Certificate // nil: plain HTTP
	handler     *server.Handler
	http        *http.Server
}

// Start starts a node: when it returns, requests are answered. Ending ctx afterwards changes nothing; Stop does. A
// configuration that Validate refuses is an error.
func Start(ctx context.Context, c config.Config, o Options) (*Node, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	n := newNode(c, o)
	if to := c.Backup.Destination; to != "" {
		var err error
		if n.destination, err = archive.Open(to); err != nil {
			return nil, fmt.Errorf("refusing to start: backup: %w", err)
		}
	}
	for _, step := range []func(context.Context) error{n.listen, n.open, n.attend, n.serve} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, n.free())
		}
	}
	return n, nil
}

// newNode is a node that holds nothing yet.
func newNode(c config.Config, o Options) *Node {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = lessor.SystemClock{}
	}
	if o.Random == nil {
		o.Random = rand.Reader
	}
	n := &Node{config: c, o: o, log: o.Log, started: o.Clock.Now()}
	n.rites = n.openRites()
	return n
}

// listen binds every address.
func (n *Node) listen(ctx context.Context) error {
	for i, c := range n.config.Listeners {
		l := &listener{config: c}
		var err error
		if c.TLS {
			if l.certificate, err = n.certificate(i, c); err != nil {
				return err
			}
		}
		if l.Listener, err = new(net.ListenConfig).Listen(ctx, "tcp", c.Address); err != nil {
			return fmt.Errorf("cannot listen on %s: %w", c.Address, err)
		}
		n.listeners = append(n.listeners, l)
		n.release = append(n.release, func() error {
			if err := l.Close(); !errors.Is(err, net.ErrClosed) {
				return err
			}
			return nil
		})
		if a, ok := l.Addr().(*net.TCPAddr); ok && !c.TLS && !a.IP.IsLoopback() && !c.AllowPlaintext {
			return fmt.Errorf("refusing to start: %s is %s, which is off loopback, where plain HTTP would show every token and secret to the network: "+
				"set tls_cert_file and tls_key_file, or say allow_plaintext_off_loopback = true", c.Address, a.IP)
		}
	}
	return nil
}

func (n *Node) certificate(i int, c config.Listener) (*server.Certificate, error) {
	clients := server.Clients{Ignore: c.IgnoreClients, Require: c.RequireClients, File: c.ClientCAFile}
	if c.CertFile != "" || i > 0 || !n.config.Dev.TLS {
		return server.LoadCertificate(c.CertFile, c.KeyFile, clients)
	}
	dir := n.config.Dev.TLSCertDir
	if dir == "" {
		temporary, err := os.MkdirTemp("", "lessor-tls-")
		if err != nil {
			return nil, err
		}
		n.release = append(n.release, func() error { return os.RemoveAll(temporary) })
		dir = temporary
	}
	host, _, _ := net.SplitHostPort(c.Address)
	if err := makeCertificates(dir, n.o.Clock.Now(), append([]string{host}, n.config.Dev.TLSNames...)...); err != nil {
		return nil, fmt.Errorf("cannot make certificates in %s: %w", dir, err)
	}
	n.CAFile = filepath.Join(dir, caFile)
	return server.LoadCertificate(filepath.Join(dir, certFile), filepath.Join(dir, keyFile), clients)
}

// attend begins to look after a store that others work on, too.
func (n *Node) attend(ctx context.Context) error {
	if !n.shared() {
		return nil
	}
	ctx, n.untend = context.WithCancel(context.WithoutCancel(ctx))
	n.running.Go(func() { n.watch(ctx) })
	n.tending.Go(func() { n.tend(ctx) })
	n.release = append(n.release, func() error { n.untend(); return nil })
	return nil
}

// serve begins to answer.
func (n *Node) serve(context.Context) error {
	connections := server.NewConnections(server.Most(server.Files()))
	for _, l := range n.listeners {
		l.handler = server.New(server.Options{
			Gate: n, Clock: n, Random: n.o.Random, Log: n.log, Proxies: l.config.TrustedProxies,
		})
		l.http = server.NewHTTP(l.handler, n.log)
		l.http.ConnState = connections.Note
		if l.certificate != nil {
			l.http.TLSConfig = l.certificate.Config(l.config.MinVersion)
		}
		n.running.Go(func() {
			serve := l.http.Serve
			if l.certificate != nil {
				serve = func(nl net.Listener) error { return l.http.ServeTLS(nl, "", "") }
			}
			if err := serve(connections.Bound(l.Listener)); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				n.log.Error("listener failed", "address", l.Addr().String(), "error", err)
			}
		})
		n.log.Info("listening", "address", l.url())
	}
	return nil
}

// patience is how long Stop may take, whatever time a service manager would give it by itself.
func (n *Node) patience() time.Duration { return n.config.DrainDelay + 2*DrainTime }

// Stop ends the node in order. From now on health says 503, and each answer asks the client to connect elsewhere; for as long as the
// configuration's DrainDelay, or until ctx ends, everybody is served all the same, so that load balancers find out, while background work is handed over to
// the other nodes. Then nobody is accepted, and requests under way have DrainTime, or until ctx ends; then background work stops, the anchor is brought up to date
// and the store is closed.
func (n *Node) Stop(ctx context.Context) error {
	n.once.Do(func() {
		n.log.Info("stopping")
		n.retire(ctx)
		ctx, cancel := context.WithTimeout(ctx, DrainTime)
		defer cancel()
		var all sync.WaitGroup
		for _, l := range n.listeners {
			all.Go(func() { l.stop(ctx, n.log) })
		}
		all.Wait()
		n.resting.Wait()
		if n.untend != nil {
			n.untend()
		}
		n.tending.Wait()
		n.turn.Lock()
		defer n.turn.Unlock()
		n.stopped = n.free()
		n.running.Wait()
		if n.stopped == nil {
			n.log.Info("stopped")
		}
	})
	return n.stopped
}

// retire tells everybody that the node is about to stop, hands its background work over, and gives load balancers the time to hear of it.
func (n *Node) retire(ctx context.Context) {
	n.draining.Store(true)
	n.announce()
	for _, l := range n.listeners {
		l.handler.Retire()
	}
	l := n.state.Load().life
	if l == nil {
		return // nobody sends anything here
	}
	l.claims.Retire()
	select {
	case <-ctx.Done():
	case <-time.After(n.config.DrainDelay):
	}
	l.core.Events().Leave() // whoever waits for news waits elsewhere from now on
}

// stop ends the listener: no more connections, then no more requests.
func (l *listener) stop(ctx context.Context, log *slog.Logger) {
	_ = l.Close()
	err := l.handler.Drain(ctx)
	if err == nil {
		err = l.http.Shutdown(ctx)
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		log.Warn("requests were cut off", "address", l.Addr().String(), "error", err)
		_ = l.http.Close()
	}
}

// free gives back what was acquired, last first.
func (n *Node) free() error {
	var err error
	for i := len(n.release) - 1; i >= 0; i-- {
		err = errors.Join(err, n.release[i]())
	}
	n.release = nil
	return err
}

// Reload reads the certificates again, and opens the files of audit devices anew. A certificate whose files are bad stays as it was.
func (n *Node) Reload() error {
	if l := n.enter(); l != nil {
		l.exporters.Reload()
		l.leave()
	}
	var err error
	for _, l := range n.listeners {
		if l.certificate == nil {
			continue
		}
		if e := l.certificate.Reload(); e != nil {
			err = errors.Join(err, e)
			continue
		}
		n.log.Info("certificate reloaded", "address", l.Addr().String())
	}
	return err
}

// Fault is why the node cannot go on; nil if it can. Only another start ends it.
func (n *Node) Fault() error {
	if err := n.broken.Load(); err != nil {
		return *err
	}
	fault := n.state.Load().db.Fault()
	if fault != nil && n.shared() && store.Passing(fault) {
		return nil // see revive
	}
	return fault
}

// Address is the URL of the first listener.
func (n *Node) Address() string { return n.listeners[0].url() }

// url is where the listener is reached, with the port that it got.
func (l *listener) url() string {
	scheme := "http://"
	if l.certificate != nil {
		scheme = "https://"
	}
	return scheme + l.Addr().String()
}

// reachable is Address, as seen from this machine, if the operator named none.
func (n *Node) reachable() string {
	if n.config.APIAddr != "" {
		return n.config.APIAddr
	}
	l := n.listeners[0]
	addr, err := netip.ParseAddrPort(l.Addr().String())
	if err != nil || !addr.Addr().IsUnspecified() {
		return l.url()
	}
	scheme := "http://"
	if l.certificate != nil {
		scheme = "https://"
	}
	return scheme + netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), addr.Port()).String()
}
