// Package browsertest gives tests a real browser: Chromium, or Chrome, without a screen, driven by WebDriver, with a profile of its own in a temporary
// folder. It is gone when the test process is, however that ends.
//
// Where Chromium's driver is not installed a test is skipped, unless CI=true: then it fails.
package browsertest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long one command of the browser's may take.
const patience = time.Minute

// Browser is a running browser with one window. It accepts any server's certificate. Its methods fail the test if the browser does not do what they
// say within a minute, and belong to the test's goroutine.
type Browser struct {
	t       testing.TB
	session string // URL of WebDriver's session
}

// Start starts a browser that runs until the test ends.
func Start(t testing.TB) *Browser {
	t.Helper()
	driver, err := exec.LookPath("chromedriver") // which finds its browser
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatal("browsertest: no chromedriver is installed: run scripts/servers tests")
	default:
		t.Skip("browsertest: no chromedriver is installed (Debian: apt-get install chromium chromium-driver)")
	}
	profile, err := os.MkdirTemp("/tmp", "browsertest-")
	if err != nil {
		t.Fatal(err)
	}
	at, err := drive(t, driver, profile)
	if err != nil {
		t.Fatalf("browsertest: %v", err)
	}
	b := &Browser{t: t}
	var begun struct {
		ID string `json:"sessionId"`
	}
	b.call(http.MethodPost, at+"/session", map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
		"acceptInsecureCerts": true, "timeouts": map[string]any{"implicit": patience.Milliseconds() / 2},
		"goog:chromeOptions": map[string]any{"args": []string{
			"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run", "--disable-background-networking",
			"--disable-component-update", "--disable-sync", "--user-data-dir=" + profile,
			"--remote-debugging-pipe", // whose end is the browser's
		}},
	}}}, &begun)
	b.session = at + "/session/" + begun.ID
	t.Cleanup(func() { b.call(http.MethodDelete, b.session, nil, nil) })
	return b
}

var started = regexp.MustCompile(`started successfully on port (\d+)`)

// drive starts the driver, under a shell that ends it, and what it has started, as soon as this process ends, and says where it answers.
func drive(t testing.TB, driver, profile string) (at string, err error) {
	cmd := exec.Command("/bin/sh", "-c", `exec 3<&0
"$0" --port=0 & driver=$!
read -r _ <&3
kill "$driver"; wait "$driver"
rm -rf "$1" || { sleep 1; rm -rf "$1"; }`, driver, profile)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + profile, "LC_ALL=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if port := started.FindStringSubmatch(lines.Text()); port != nil {
			go func() {
				for lines.Scan() { // lest it waits for somebody to read
				}
			}()
			return "http://127.0.0.1:" + port[1], nil
		}
	}
	return "", errors.New("chromedriver does not say where it answers")
}

// Open goes to a page, and waits until it is loaded.
func (b *Browser) Open(url string) {
	b.t.Helper()
	b.call(http.MethodPost, b.session+"/url", map[string]any{"url": url}, nil)
}

// URL is where the browser is.
func (b *Browser) URL() (url string) {
	b.t.Helper()
	b.call(http.MethodGet, b.session+"/url", nil, &url)
	return url
}

// Text is what the page shows.
func (b *Browser) Text() (text string) {
	b.t.Helper()
	b.call(http.MethodPost, b.session+"/execute/sync", map[string]any{"script": "return document.body?.innerText ?? ''", "args": []any{}}, &text)
	return text
}

// Type types into the element that a CSS selector names.
func (b *Browser) Type(selector, text string) {
	b.t.Helper()
	b.call(http.MethodPost, b.element(selector)+"/value", map[string]any{"text": text}, nil)
}

// Click clicks on the element that a CSS selector names, and waits for the page that it leads to.
func (b *Browser) Click(selector string) {
	b.t.Helper()
	b.call(http.MethodPost, b.element(selector)+"/click", map[string]any{}, nil)
}

// Await waits until the page shows a text.
func (b *Browser) Await(text string) {
	b.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		shown := b.Text()
		if strings.Contains(shown, text) {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("browsertest: %s does not show %q within %v, but %q", b.URL(), text, patience, shown)
		}
	}
}

// element is the URL of the first element that a CSS selector names, once it is there.
func (b *Browser) element(selector string) string {
	b.t.Helper()
	var found map[string]string // by the name that WebDriver gives references to elements
	b.call(http.MethodPost, b.session+"/element", map[string]any{"using": "css selector", "value": selector}, &found)
	return b.session + "/element/" + found["element-6066-11e4-a52e-4f735466cecf"]
}

// call gives a command of WebDriver's, and reads the value that it answers; into may be nil.
func (b *Browser) call(method, url string, body, into any) {
	b.t.Helper()
	if err := command(method, url, body, into); err != nil {
		b.t.Fatalf("browsertest: %v", err)
	}
}

func command(method, url string, body, into any) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(text))
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var answer struct {
		Value json.RawMessage `json:"value"`
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		var told struct {
			Message string `json:"message"`
		}
		_ = json.Unmarshal(answer.Value, &told)
		return fmt.Errorf("%s: %s: %s", url, response.Status, told.Message)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(answer.Value, into)
}
