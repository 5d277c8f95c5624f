package node

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/config"
)

// cutShort stands for the end of what the client has to say.
const cutShort = "(end)"

// talk writes raw to the node and returns the status lines of all answers until the node closes the connection, or says nothing
// more for a while.
func (r *running) talk(raw string) (answers []string) {
	r.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(r.Address(), "http://"))
	if err != nil {
		r.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	whole, cut := strings.CutSuffix(raw, cutShort)
	go func() {
		_, _ = io.WriteString(c, whole)
		if cut {
			_ = c.(*net.TCPConn).CloseWrite()
		}
	}()
	in := bufio.NewReader(c)
	for {
		answer, err := http.ReadResponse(in, nil)
		if err != nil {
			return append(answers, "end")
		}
		body, _ := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if bytes.Contains(body, []byte(secretValue)) || bytes.Contains(body, []byte("goroutine ")) {
			r.Errorf("%.60q shows %s", raw, body)
		}
		answers = append(answers, fmt.Sprint(answer.StatusCode))
		if answer.Close {
			return answers
		}
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	}
}

// Requests that no client sends get a clear answer or none, and the node goes on.
func TestHostileRequests(t *testing.T) {
	r := newPlace(t).start()
	r.fill()
	// chunked and Content-Length at once: what follows is another request or none, but never part of this one's body.
	const smuggled = "GET /v1/secret/data/app HTTP/1.1\r\nHost: x\r\n\r\n"
	get := func(path string, headers ...string) string {
		return "GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + strings.Join(headers, "") + "\r\n"
	}
	post := func(body string, headers ...string) string {
		return "POST /v1/secret/data/app HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Vault-Token: " + r.token + "\r\n" +
			strings.Join(headers, "") + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
	}
	zipped := func(text string) string {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = io.WriteString(w, text)
		_ = w.Close()
		return b.String()
	}
	for name, c := range map[string]struct{ raw, want string }{
		"chunked with a length":           {"POST /v1/sys/mounts HTTP/1.1\r\nHost: x\r\nContent-Length: 60\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled, "403 | 403 403 end | 400"},
		"two lengths":                     {"POST /v1/sys/mounts HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x" + smuggled, "400"},
		"a list of lengths":               {"POST /v1/sys/mounts HTTP/1.1\r\nHost: x\r\nContent-Length: 2, 3\r\n\r\n{}x" + smuggled, "400"},
		"a negative length":               {"POST /v1/sys/mounts HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n" + smuggled, "400"},
		"a length with a sign":            {"POST /v1/sys/mounts HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\n{}" + smuggled, "400"},
		"another transfer encoding":       {"POST /v1/sys/mounts HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n" + smuggled, "501 | 400"},
		"two transfer encodings":          {"POST /v1/sys/mounts HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + smuggled, "501 | 400"},
		"a bad chunk":                     {"POST /v1/secret/data/app HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + smuggled, "400"},
		"a chunk with a huge size":        {"POST /v1/secret/data/app HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n" + smuggled, "400"},
		"a blank before the colon":        {"GET /v1/sys/health HTTP/1.1\r\nHost : x\r\n\r\n", "400"},
		"no host":                         {"GET /v1/sys/health HTTP/1.1\r\n\r\n", "400"},
		"two hosts":                       {"GET /v1/sys/health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "400"},
		"NUL in a header":                 {get("/v1/sys/health", "X-A: a\x00b\r\n"), "400"},
		"NUL in the path":                 {get("/v1/sys/hea\x00lth"), "400"},
		"a blank in the path":             {get("/v1/secret/a b"), "400"},
		"another protocol":                {"GET /v1/sys/health HTTP/7.3\r\nHost: x\r\n\r\n", "505 | 400"},
		"no protocol":                     {"GET /v1/sys/health\r\n\r\n", "400"},
		"HTTP/2 without an agreement":     {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "404 | 505 | 400 | end"},
		"TLS where there is none":         {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400 | end"},
		"TRACE":                           {"TRACE /v1/secret/data/app HTTP/1.1\r\nHost: x\r\nX-Vault-Token: " + r.token + "\r\nConnection: close\r\n\r\n", "405"},
		"CONNECT":                         {"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\nConnection: close\r\n\r\n", "404 | 405"},
		"OPTIONS":                         {"OPTIONS /v1/secret/data/app HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "405"},
		"OPTIONS *":                       {"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "200 | 404 | 405"},
		"a proxy's request":               {"GET http://evil.example/v1/secret/data/app HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "403"},
		"headers too large":               {get("/v1/sys/health", "X-A: "+strings.Repeat("a", 100<<10)+"\r\n"), "431"},
		"headers too many":                {get("/v1/sys/health", strings.Repeat("X-A: a\r\n", 20000)), "431"},
		"a path too long":                 {get("/v1/" + strings.Repeat("a/", 3000)), "400"},
		"dots":                            {get("/v1/secret/data/../../sys/mounts"), "400"},
		"escaped dots":                    {get("/v1/secret/%2e%2e/sys/mounts"), "400"},
		"half escaped dots":               {get("/v1/secret/.%2E/sys/mounts"), "400"},
		"escaped slashes":                 {get("/v1/secret%2f..%2fsys%2fmounts"), "400"},
		"twice escaped":                   {get("/v1/secret/%252e%252e/sys/mounts"), "403"}, // a secret of that odd name
		"backslashes":                     {get(`/v1/secret/..\..\sys`), "403"},
		"an escaped NUL":                  {get("/v1/secret/data/app%00"), "400"},
		"overlong UTF-8":                  {get("/v1/secret/%c0%ae%c0%ae/sys/mounts"), "400"},
		"a bad escape":                    {get("/v1/secret/%zz"), "400"},
		"empty segments":                  {get("/v1/secret//data/app"), "400"},
		"another case":                    {get("/V1/secret/data/app"), "404"},
		"a namespace that is not":         {get("/v1/secret/data/app", "X-Vault-Namespace: team/a\r\n"), "404"},
		"a namespace with dots":           {get("/v1/secret/data/app", "X-Vault-Namespace: ../root\r\n"), "404"},
		"a zipped body":                   {post(zipped(`{"data":{"a":"b"}}`), "Content-Encoding: gzip\r\n"), "400"},
		"a zip bomb":                      {post(zipped(`{"data":{"a":"`+strings.Repeat("b", 64<<20)+`"}}`), "Content-Encoding: gzip\r\n"), "400"},
		"a body of another type":          {post("<a/>", "Content-Type: text/xml\r\n"), "400"},
		"a form of many parts":            {post("--x\r\nContent-Disposition: form-data; name=a\r\n\r\nb\r\n--x--\r\n", "Content-Type: multipart/form-data; boundary=x\r\n"), "400"},
		"deep JSON":                       {post(`{"data":{"a":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + "}}"), "400"},
		"JSON with a key twice":           {post(`{"data":{"a":1,"a":2}}`), "400"},
		"JSON in UTF-16":                  {post("\xff\xfe{\x00}\x00"), "400"},
		"JSON with a byte order mark":     {post("\ufeff{}"), "400"},
		"expects what nobody has":         {post(`{}`, "Expect: 200-maybe\r\n"), "417"},
		"a body that is cut short":        {"POST /v1/secret/data/app HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{}" + cutShort, "400"},
		"an upgrade":                      {get("/v1/sys/seal-status", "Upgrade: websocket\r\nConnection: Upgrade\r\n"), "200"},
		"a token that is not printable":   {get("/v1/sys/mounts", "X-Vault-Token: \xff\xfe\r\n"), "403"},
		"a token of many bytes":           {get("/v1/sys/mounts", "X-Vault-Token: hvs."+strings.Repeat("A", 30<<10)+"\r\n"), "403"},
		"a batch token of many bytes":     {get("/v1/sys/mounts", "X-Vault-Token: hvb."+strings.Repeat("A", 30<<10)+"\r\n"), "403"},
		"a wrapping time without an end":  {get("/v1/secret/data/app", "X-Vault-Token: "+r.token+"\r\nX-Vault-Wrap-TTL: 99999999999999h\r\n"), "400"},
		"a negative wrapping time":        {get("/v1/secret/data/app", "X-Vault-Token: "+r.token+"\r\nX-Vault-Wrap-TTL: -1s\r\n"), "400"},
		"addresses from nobody's proxy":   {get("/v1/sys/mounts", "X-Forwarded-For: 10.0.0.1\r\n"), "403"},
		"several requests one after next": {strings.Repeat("GET /v1/sys/seal-status HTTP/1.1\r\nHost: x\r\n\r\n", 3), "200 200 200 end"},
	} {
		t.Run(name, func(t *testing.T) {
			got := strings.Join(r.talk(c.raw), " ")
			for _, want := range strings.Split(c.want, " | ") {
				if got == want || got == want+" end" {
					return
				}
			}
			t.Errorf("answered %q, want %q", got, c.want)
		})
	}
	r.checkFilled()
	if log := r.place.log.String(); strings.Contains(log, r.token) || strings.Contains(log, "panic") {
		t.Errorf("the log has a token or a panic: %s", log)
	}
}

// What clients put into URLs, where it does not belong, is neither in the log nor in the audit trail.
func TestSecretsInURLs(t *testing.T) {
	r := newPlace(t).start()
	r.fill()
	created := r.must(200, "POST", "auth/token/create", `{"policies":["default"],"id":""}`)
	token := created["auth"].(map[string]any)["client_token"].(string)
	const secret = "SeCrEt-In-A-URL"
	for _, path := range []string{
		"secret/data/app?token=" + token + "&secret_id=" + secret, "auth/token/lookup-self?X-Vault-Token=" + token,
		"auth/approle/login?role_id=r&secret_id=" + secret, "auth/token/lookup/" + token, "auth/token/revoke/" + token, "auth/token/lookup?token=" + token,
		"sys/wrapping/unwrap?token=" + token, "sys/wrapping/lookup?token=" + token, "secret/data/" + token, "nowhere/" + token + "/x", "secret/data/app?" + secret + "=1;2",
		"sys/leases/lookup/" + token, "sys/capabilities?token=" + token + "&path=x", "secret/data/app?password=" + secret + "&help=1",
	} {
		for _, method := range []string{"GET", "LIST", "DELETE", "POST"} {
			r.ask(method, path, "")
		}
	}
	// Who is not let in, and who has the wrong token.
	for _, wrong := range []string{"", "hvs.wrong"} {
		before := r.token
		r.token = wrong
		r.ask("GET", "secret/data/app?token="+token+"&x="+secret, "")
		r.ask("GET", "auth/token/lookup/"+token, "")
		r.token = before
	}
	records := fmt.Sprint(r.must(200, "GET", "sys/lessor/audit/records?limit=1000", ""))
	if !strings.Contains(records, "hash:") {
		t.Errorf("no token was taken out of a path: %.2000s", records)
	}
	for what, text := range map[string]string{"log": r.place.log.String(), "audit trail": records} {
		for name, hidden := range map[string]string{"the token": token, "its end": token[len(token)-20:], "a secret": secret, "the root token": r.token} {
			if i := strings.Index(text, hidden); i >= 0 {
				t.Errorf("the %s has %s: …%s…", what, name, text[max(0, i-200):min(len(text), i+100)])
			}
		}
	}
}

// Tokens that are no good are refused alike, whatever is wrong with them.
func TestTokensThatAreNoGood(t *testing.T) {
	r := newPlace(t).start()
	r.fill()
	other := newPlace(t).start()
	make := func(r *running, body string) string {
		return r.must(200, "POST", "auth/token/create", body)["auth"].(map[string]any)["client_token"].(string)
	}
	revoked, batch := make(r, `{"policies":["default"]}`), make(other, `{"type":"batch","policies":["default"],"ttl":"1h"}`)
	r.must(204, "POST", "auth/token/revoke", `{"token":"`+revoked+`"}`)
	spent := make(r, `{"num_uses":1,"policies":["default"]}`)
	good := r.token
	changed := good[:len(good)-1] + "A"
	if changed == good {
		changed = good[:len(good)-1] + "B"
	}
	r.token = spent
	r.must(200, "GET", "auth/token/lookup-self", "")
	answers := map[string][]string{}
	for name, token := range map[string]string{
		"unknown": "hvs.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "short": "x", "of another server": other.token, "batch of another server": batch,
		"revoked": revoked, "used up": spent, "changed": changed, "batch, made up": "hvb." + strings.Repeat("A", 100), "in another case": strings.ToUpper(good),
	} {
		for _, path := range []string{"secret/data/app", "secret/data/none", "nowhere/x", "sys/mounts", "auth/token/lookup-self"} {
			r.token = token
			status, body := r.ask("GET", path, "")
			answers[fmt.Sprint(status, body)] = append(answers[fmt.Sprint(status, body)], name+" "+path)
		}
	}
	if len(answers) != 1 {
		t.Errorf("answers differ: %v", answers)
	}
	for answer := range answers {
		if !strings.HasPrefix(answer, "403 ") || !strings.Contains(answer, "permission denied") {
			t.Errorf("answer: %s", answer)
		}
	}
}

// Streams that are opened and reset at once (CVE-2023-39325) cost the node nothing that lasts.
func TestRapidReset(t *testing.T) {
	p := newPlace(t)
	dir := filepath.Join(p.dir, "tls")
	p.do(makeCertificates(dir, time.Now(), "127.0.0.1"))
	c := p.config()
	c.Listeners = []config.Listener{{Address: "127.0.0.1:0", TLS: true, MinVersion: tls.VersionTLS12, CertFile: filepath.Join(dir, certFile), KeyFile: filepath.Join(dir, keyFile)}}
	n, err := Start(t.Context(), c, p.o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Stop(context.Background()) }()
	address := strings.TrimPrefix(n.Address(), "https://")
	trust := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}} // a test's own server
	before := runtime.NumGoroutine()
	conn, err := tls.Dial("tcp", address, trust)
	if err != nil {
		t.Fatal(err)
	}
	if got := conn.ConnectionState().NegotiatedProtocol; got != "h2" {
		t.Fatalf("agreed on %q", got)
	}
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	frame := func(kind, flags byte, stream uint32, payload string) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
		b = append(b, flags)
		return append(binary.BigEndian.AppendUint32(b, stream), payload...)
	}
	out := bufio.NewWriter(conn)
	_, _ = out.WriteString("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	_, _ = out.Write(frame(4, 0, 0, ""))
	const path = "/v1/secret/data/app"
	headers := "\x82\x87\x41\x01x\x44" + string(rune(len(path))) + path // GET, https, authority, path
	most := 0
	for i := range 20_000 {
		stream := uint32(2*i + 1)
		_, _ = out.Write(frame(1, 5, stream, headers)) // HEADERS: the end of headers, the end of the stream
		if _, err = out.Write(frame(3, 0, stream, "\x00\x00\x00\x08")); err != nil {
			break // the node has had enough
		}
		if i%100 == 0 {
			most = max(most, runtime.NumGoroutine()-before)
		}
	}
	_ = out.Flush()
	_ = conn.Close()
	if most > 500 {
		t.Errorf("%d goroutines at a time", most)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: time.Minute} // a test's own server
	answer, err := client.Get(n.Address() + "/v1/sys/health")
	if err != nil || answer.StatusCode != 200 {
		t.Fatalf("afterwards: %v %v", answer, err)
	}
	_ = answer.Body.Close()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if runtime.NumGoroutine() < before+20 {
			return
		}
	}
	t.Errorf("%d goroutines are left, %d were there before", runtime.NumGoroutine(), before)
}
