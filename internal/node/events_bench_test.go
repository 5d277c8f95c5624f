package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/config"
)

// BenchmarkSubscribers has very many clients wait for the same secret, each in a request of its own, 50 of which share a connection (HTTP/2 over TLS: so it needs
// few files), from a few addresses. It measures from the write until
// the last of them has been told; those who were told ask again meanwhile, as clients do. Both sides run on this machine.
func BenchmarkSubscribers(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { benchmarkSubscribers(b, n) })
	}
}

func benchmarkSubscribers(b *testing.B, n int) {
	do := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	dir := b.TempDir()
	do(makeCertificates(dir, time.Now(), "127.0.0.1"))
	c, err := config.Flags([]string{"-data", filepath.Join(dir, "data"), "-key-file", filepath.Join(dir, "seal.key"), "-listen", "127.0.0.1:0"})
	do(err)
	c.Listeners[0].TLS, c.Listeners[0].CertFile, c.Listeners[0].KeyFile = true, filepath.Join(dir, certFile), filepath.Join(dir, keyFile)
	node, err := Start(b.Context(), c, Options{Version: "bench"})
	do(err)
	b.Cleanup(func() { _ = node.Stop(context.Background()) })
	ca, err := os.ReadFile(filepath.Join(dir, caFile))
	do(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)

	var clients []*http.Client
	for i := range n / 50 {
		from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(i%16+1))}}
		clients = append(clients, &http.Client{Transport: &http.Transport{
			DialContext: from.DialContext, TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true,
		}})
	}
	ask := func(c *http.Client, method, path string, body []byte) map[string]any {
		r, err := http.NewRequestWithContext(b.Context(), method, node.Address()+"/v1/"+path, bytes.NewReader(body))
		do(err)
		r.Header.Set("X-Vault-Token", node.Root.Reveal())
		answer, err := c.Do(r)
		if err != nil {
			return nil // the benchmark is over
		}
		defer func() { _ = answer.Body.Close() }()
		text, err := io.ReadAll(answer.Body)
		if err != nil || answer.StatusCode >= 300 {
			b.Errorf("%s %s: %d %s %v", method, path, answer.StatusCode, text, err)
			return nil
		}
		var all struct{ Data map[string]any }
		if len(text) > 0 {
			do(json.Unmarshal(text, &all))
		}
		return all.Data
	}
	ask(clients[0], "POST", "sys/mounts/kv", []byte(`{"type":"kv","options":{"version":"2"}}`))
	const events = "sys/lessor/events/lessor/rotated"
	var begin string
	for _, c := range clients {
		begin = ask(c, "GET", events, nil)["cursor"].(string) // and its connection is there
	}
	var told, over sync.WaitGroup
	for i := range n {
		over.Go(func() {
			for cursor := begin; ; {
				page := ask(clients[i%len(clients)], "GET", events+"?wait=2m&path=kv%2Fdata%2Fapp&path=kv%2Fdata%2Fapp&after="+url.QueryEscape(cursor), nil)
				if page == nil {
					return
				}
				cursor = page["cursor"].(string)
				for range page["events"].([]any) {
					told.Done()
				}
			}
		})
	}
	b.Cleanup(over.Wait) // after the node has stopped, and b's context ended
	feed := node.state.Load().life.core.Events()
	for deadline := time.Now().Add(time.Minute); feed.Subscribers() < n; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("%d clients wait, not %d", feed.Subscribers(), n)
		}
	}
	for b.Loop() {
		told.Add(n)
		ask(clients[0], "POST", "kv/data/app", []byte(`{"data":{"k":"v"}}`))
		told.Wait()
	}
}
