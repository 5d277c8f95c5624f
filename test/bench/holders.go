package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// following is what a holder asks to be told of: the secret that all of them hold.
const (
	followed  = "database/static-creds/role-0"
	following = "sys/lessor/events/lessor/rotated?path=" + followed
)

// holders measures a rotation under very many who hold the password: each waits for news in a request of its own, and when there is some reads the new
// password and acknowledges it, over a connection of its own.
func (b *bench) holders() error {
	n := pick(b.quick, 500, 10_000)
	what := count(float64(n)) + " holders of one secret"
	names := []string{what + ": from the rotation to the last that has acknowledged", "the same: until the old password is proven dead"}
	if !b.wants(names...) {
		return nil
	}
	p, err := b.startPostgres()
	if err != nil {
		return err
	}
	r, err := b.newRotated(p, strategies[1], 1)
	if err != nil {
		return err
	}
	if _, err := r.call("POST", "sys/policies/acl/holder", object{"policy": fmt.Sprintf("path %q { capabilities = [\"read\"] }", followed)}); err != nil {
		return err
	}
	made, err := r.call("POST", "auth/token/create-orphan", object{"policies": []string{"holder"}, "period": "24h"})
	if err != nil {
		return err
	}
	c, err := r.hold(text(made, "auth", "client_token"), n)
	if err != nil {
		return err
	}
	f := &figure{name: names[0], clients: n}
	var first, last, dead []float64 // seconds from when the new password was in force
	for range pick(b.quick, 1, 3) {
		at, retired, err := c.rotate()
		if err != nil {
			return err
		}
		first, last, dead = append(first, at[0].Seconds()), append(last, at[n-1].Seconds()), append(dead, retired.Seconds())
		f.rates = append(f.rates, float64(n)/at[n-1].Seconds())
		b.say("the first after %.2f s, half after %.2f s, all after %.2f s, retired after %.2f s", at[0].Seconds(), at[n/2].Seconds(), at[n-1].Seconds(), retired.Seconds())
	}
	c.leave()
	r.end(syscall.SIGTERM)
	p.stop()
	if err := os.RemoveAll(p.dir); err != nil {
		return err
	}

	l, err := startLimit(b.dir + "/holders")
	if err != nil {
		return err
	}
	defer l.stop()
	if err := l.answers(make([]byte, 600)); err != nil {
		return err
	}
	for range f.rates {
		took, err := told(l.addr, n)
		if err != nil {
			return err
		}
		f.limits = append(f.limits, float64(n)/took.Seconds())
	}
	f.note = fmt.Sprintf("first %.2f s, last %.2f s", median(first), median(last))
	b.figures = append(b.figures, f)
	b.say("%s", f)
	b.plain(&figure{name: names[1], value: fmt.Sprintf("%.2f s (%.2f s at most)", median(dead), slices.Max(dead))})
	return nil
}

// told has n clients get what one rotation gives each holder, three answers, from the limit, and returns how long it took until the last had them.
func told(addr string, n int) (time.Duration, error) {
	var all []*client
	defer func() { hangUp(all) }()
	for i := range n {
		c, err := come(addr, i)
		if err != nil {
			return 0, err
		}
		all = append(all, c)
	}
	var wg sync.WaitGroup
	errs := make([]error, n)
	began := time.Now()
	for i, c := range all {
		wg.Go(func() {
			for range 3 {
				c.request("GET", followed, "", "")
				if _, errs[i] = c.must(); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(began), errors.Join(errs...)
}

// come dials as one of very many, who come from a few addresses.
func come(addr string, i int) (*client, error) {
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(1+i%16))}}
	conn, err := from.Dial("tcp", addr)
	return &client{conn: conn, n: i}, err
}

// congregation are all holders of one secret.
type congregation struct {
	*rotated
	token   string
	all     []*client
	left    chan struct{}  // closed when they stop
	over    sync.WaitGroup // until they have
	reports chan report
}

// report is what became of one holder at one rotation.
type report struct {
	at  time.Time // when its acknowledgement was answered
	err error
}

// hold has n holders read, acknowledge, and wait for news.
func (r *rotated) hold(token string, n int) (*congregation, error) {
	c := &congregation{rotated: r, token: token, left: make(chan struct{}), reports: make(chan report, n)}
	m, err := r.callAs(token, "GET", following, nil)
	if err != nil {
		return nil, err
	}
	for i := range n {
		holder, err := come(r.addr, i) // and asks at once: the server ends connections that say nothing
		if err != nil {
			return nil, err
		}
		if err := c.adopt(holder); err != nil {
			return nil, err
		}
		c.all = append(c.all, holder)
		c.over.Go(func() { c.follow(holder, text(m, "data", "cursor")) })
	}
	return c, c.gathered()
}

// gathered waits until all wait for news.
func (c *congregation) gathered() error {
	return eventually(5*time.Minute, often, "all wait for news", func() (bool, error) {
		metrics, err := c.fetch(c.root, "GET", "sys/metrics?format=prometheus", nil)
		if err != nil {
			return false, err
		}
		_, rest, _ := strings.Cut(string(metrics), "\nlessor_event_subscribers ")
		line, _, _ := strings.Cut(rest, "\n")
		waiting, err := strconv.ParseFloat(line, 64)
		return int(waiting) >= len(c.all), err
	})
}

// adopt has a holder read the password, and acknowledge it.
func (c *congregation) adopt(holder *client) error {
	instance := fmt.Sprintf("holder-%d", holder.n)
	holder.begin("GET", followed, c.token)
	holder.header("X-Lessor-Lease", "renewable")
	holder.header("X-Lessor-Instance", instance)
	holder.finish("")
	body, err := holder.must()
	if err != nil {
		return err
	}
	var value struct {
		Lease string `json:"lease_id"`
	}
	if err := json.Unmarshal(body, &value); err != nil {
		return err
	}
	holder.begin("PUT", "sys/lessor/leases/acknowledge", c.token)
	holder.header("X-Lessor-Instance", instance)
	holder.finish(`{"lease_id":"` + value.Lease + `"}`)
	_, err = holder.must()
	return err
}

// follow waits for news from cursor on, and adopts what is new, until its connection ends.
func (c *congregation) follow(holder *client, cursor string) {
	for {
		holder.request("GET", following+"&wait=2m&after="+url.QueryEscape(cursor), c.token, "")
		body, err := holder.must()
		var page struct {
			Data struct {
				Cursor string
				Events []json.RawMessage
			}
		}
		if err == nil {
			err = json.Unmarshal(body, &page)
		}
		if cursor = page.Data.Cursor; err == nil && len(page.Data.Events) == 0 {
			continue
		}
		if err == nil {
			err = c.adopt(holder)
		}
		select {
		case <-c.left:
			return
		case c.reports <- report{time.Now(), err}:
		}
		if err != nil {
			return
		}
	}
}

// rotate rotates the password, and returns how long after it was in force each holder had acknowledged, in order, and how long until the old one was proven dead.
func (c *congregation) rotate() (acknowledged []time.Duration, dead time.Duration, err error) {
	if err := c.gathered(); err != nil {
		return nil, 0, err
	}
	if _, err := c.call("POST", "database/rotate-role/role-0", object{}); err != nil {
		return nil, 0, err
	}
	var all []time.Time
	for range c.all {
		select {
		case r := <-c.reports:
			if r.err != nil {
				return nil, 0, r.err
			}
			all = append(all, r.at)
		case <-time.After(5 * time.Minute):
			return nil, 0, fmt.Errorf("%d of %d holders have acknowledged", len(all), len(c.all))
		}
	}
	if err := c.idle(); err != nil {
		return nil, 0, err
	}
	text, err := c.fetch(c.root, "GET", "sys/lessor/rotation/status/"+followed, nil)
	if err != nil {
		return nil, 0, err
	}
	var answer struct{ Data standing }
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, 0, err
	}
	for _, at := range all {
		acknowledged = append(acknowledged, at.Sub(answer.Data.Rotated))
	}
	slices.Sort(acknowledged)
	return acknowledged, answer.Data.Since.Sub(answer.Data.Rotated), nil
}

// leave ends all connections, and waits until nobody uses them.
func (c *congregation) leave() {
	close(c.left)
	hangUp(c.all)
	c.over.Wait()
}
