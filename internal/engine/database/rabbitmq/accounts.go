package rabbitmq

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// An account is made in several requests, none of which can be conditional: the user, which has password, tags and marks, and then its permissions.
// Of these only the first could bring back an account that was removed, if a process that was stopped, or the network, holds it back. It does not hold it
// back for long: the management API closes a connection on which it hears nothing for a minute (idle_timeout, 60 s unless it is configured otherwise), and a request goes over the
// connection that it was written to, or not at all. Until two minutes after an attempt that never reported back its account is removed again, and again. What
// could be seen meanwhile is an account without permissions, whose password was told nobody.

// Marks are tags: those that RabbitMQ does not know mean nothing to it.
const (
	tagPrefix = "lessor-"
	leaseTag  = tagPrefix + "lease-"
	mountTag  = tagPrefix + "mount-"
	roleTag   = tagPrefix + "role-"
)

const administrator = "administrator"

// sha256Hashing is what the broker calls the hash of passwords that lessor makes.
const sha256Hashing = "rabbit_password_hashing_sha256"

// user is an account as the API has it.
type user struct {
	Name    string `json:"name"`
	Hash    string `json:"password_hash"`
	Hashing string `json:"hashing_algorithm"`
	Tags    tags   `json:"tags"`
}

// tags are an array, or a string with commas before RabbitMQ 3.9.
type tags []string

func (t *tags) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, (*[]string)(t)) == nil {
		return nil
	}
	var text string
	err := json.Unmarshal(b, &text)
	*t = slices.DeleteFunc(strings.Split(text, ","), func(s string) bool { return s == "" })
	return err
}

// marks are what an account says of whose it is; Mark is empty if it is none of lessor's.
func (u *user) marks() database.Marked {
	m := database.Marked{Username: u.Name}
	for _, t := range u.Tags {
		for prefix, to := range map[string]*string{leaseTag: &m.Mark, mountTag: &m.Mount, roleTag: &m.Role} {
			if v, ok := strings.CutPrefix(t, prefix); ok {
				*to = v
			}
		}
	}
	return m
}

// marked are the tags that say whose an account is.
func marked(a *database.Account) []string {
	all := []string{leaseTag + a.Bears()}
	if a.Mount != "" {
		all = append(all, mountTag+a.Mount)
	}
	if a.Role != "" {
		all = append(all, roleTag+a.Role)
	}
	return all
}

// digest is what the broker keeps of a password. Salts tell passwords apart that are the same: this one is of the password's purpose, and so the same
// whenever it is set again.
func digest(password lessor.Secret, purpose string) string {
	from := sha256.Sum256([]byte("lessor salt\x00" + purpose + "\x00" + password.Reveal()))
	salt := from[:4]
	h := sha256.Sum256(append(slices.Clone(salt), password.Reveal()...))
	return base64.StdEncoding.EncodeToString(append(salt, h[:]...))
}

// has reports whether a password is the account's.
func (u *user) has(password lessor.Secret) bool {
	kept, err := base64.StdEncoding.DecodeString(u.Hash)
	if err != nil || len(kept) < 4 {
		return false // it has none
	}
	salted := append(slices.Clone(kept[:4]), password.Reveal()...)
	var h []byte
	switch u.Hashing {
	case sha256Hashing:
		sum := sha256.Sum256(salted)
		h = sum[:]
	case "rabbit_password_hashing_sha512":
		sum := sha512.Sum512(salted)
		h = sum[:]
	case "rabbit_password_hashing_md5": // RabbitMQ before 3.6: of accounts that lessor takes over
		sum := md5.Sum(salted)
		h = sum[:]
	}
	return len(h) > 0 && subtle.ConstantTimeCompare(kept[4:], h) == 1
}

// look is an account; nil: there is none.
func (b *broker) look(ctx context.Context, username string) (*user, error) {
	var u user
	switch err := b.call(ctx, http.MethodGet, nil, &u, "users", username); {
	case refused(err) == http.StatusNotFound:
		return nil, nil
	case err != nil:
		return nil, err
	}
	return &u, nil
}

// put makes or changes an account.
func (b *broker) put(ctx context.Context, username, hash string, tags []string) error {
	body := map[string]string{"password_hash": hash, "hashing_algorithm": sha256Hashing, "tags": strings.Join(tags, ",")}
	return b.call(ctx, http.MethodPut, body, nil, "users", username)
}

// Ping asks who lessor is, and whether it may make accounts.
func (b *broker) Ping(ctx context.Context) error {
	var self user
	if err := b.call(ctx, http.MethodGet, nil, &self, "whoami"); err != nil {
		return b.fail(err)
	}
	if !slices.Contains(self.Tags, administrator) {
		return api.Errorf(api.Upstream, "the account %q lacks the tag administrator at the broker", self.Name)
	}
	return nil
}

// Create makes the account, marked, and then gives it its permissions.
func (b *broker) Create(ctx context.Context, a database.Account) error {
	r, err := parse(a.Creation)
	if err != nil {
		return api.Errorf(api.Invalid, "%v", err)
	}
	if !identifier.MatchString(a.Username) || a.Password.Empty() {
		return api.Errorf(api.Internal, "the lease's notes are damaged: no username, or no password")
	}
	hash := digest(a.Password, a.Lease)
	u, err := b.look(ctx, a.Username)
	if err != nil {
		return untouched(b.fail(err))
	}
	if u == nil {
		if err := b.put(ctx, a.Username, hash, append(r.tags(), marked(&a)...)); err != nil {
			return b.fail(err, hash)
		}
	} else if u.marks().Mark != a.Bears() { // or it was made before
		return api.Errorf(api.Upstream, "there is an account %q at the broker already, and it is not this lease's", a.Username)
	}
	for vhost, g := range r.VHosts {
		if err := b.call(ctx, http.MethodPut, g, nil, "permissions", vhost, a.Username); err != nil {
			return b.permission(err, vhost)
		}
	}
	for vhost, exchanges := range r.Topics {
		for exchange, t := range exchanges {
			body := map[string]string{"exchange": exchange, "write": t.Write, "read": t.Read}
			if err := b.call(ctx, http.MethodPut, body, nil, "topic-permissions", vhost, a.Username); err != nil {
				return b.permission(err, vhost)
			}
		}
	}
	return nil
}

// permission is the error of a permission that was not given.
func (b *broker) permission(err error, vhost string) error {
	if refused(err) == http.StatusBadRequest {
		return api.Errorf(api.Upstream, "the broker refused the permissions in the virtual host %q: see whether it is there, and the role's regular expressions: %s", vhost, b.redact(err.Error(), nil))
	}
	return b.fail(err)
}

// Renew sees that the account is there. RabbitMQ knows no ends that it could move.
func (b *broker) Renew(ctx context.Context, a database.Account) error {
	u, err := b.look(ctx, a.Username)
	if err == nil && (u == nil || u.marks().Mark != a.Bears()) {
		return api.Errorf(api.Upstream, "there is no account %q of this lease any more at the broker", a.Username)
	}
	return b.fail(err)
}

// Remove removes the accounts; the broker ends their connections itself.
func (b *broker) Remove(ctx context.Context, as []database.Account) []error {
	errs := make([]error, len(as))
	var wg sync.WaitGroup
	free := make(chan struct{}, cap(b.free))
	for i := range as {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			errs[i] = b.fail(b.remove(ctx, &as[i]))
		})
	}
	wg.Wait()
	return errs
}

func (b *broker) remove(ctx context.Context, a *database.Account) error {
	if !identifier.MatchString(a.Username) {
		return api.Errorf(api.Internal, "the lease's notes are damaged: no username")
	}
	u, err := b.look(ctx, a.Username)
	if err != nil || u == nil {
		return err
	}
	switch mark := u.marks().Mark; mark {
	case a.Bears():
		err := b.call(ctx, http.MethodDelete, nil, nil, "users", a.Username)
		if refused(err) == http.StatusNotFound {
			return nil
		}
		return err
	case "":
		return api.Errorf(api.Upstream, "the account %q does not bear lessor's mark any more: see whose it is, and delete it", a.Username)
	}
	return nil // another lease's, and so this one's was never made
}

// Marked lists the accounts that bear a mark of lessor's.
func (b *broker) Marked(ctx context.Context) (all []database.Marked, err error) {
	var users []user
	if err := b.call(ctx, http.MethodGet, nil, &users, "users"); err != nil {
		return nil, b.fail(err)
	}
	for i := range users {
		if m := users[i].marks(); m.Mark != "" {
			all = append(all, m)
		}
	}
	return all, nil
}

// Login tries a password with the API, which lets in such as have a tag for it only. Of others, what the broker keeps tells whether it is theirs.
func (b *broker) Login(ctx context.Context, username string, password lessor.Secret) (database.Verdict, error) {
	if !strings.Contains(username, ":") { // which HTTP would take for the name's end
		err := b.as(ctx, username, password, http.MethodGet, nil, nil, "whoami")
		if err == nil {
			return database.Accepted, nil
		}
		if refused(err) != http.StatusUnauthorized {
			return 0, b.fail(err, password.Reveal())
		}
	}
	u, err := b.look(ctx, username)
	switch {
	case err != nil:
		return 0, b.fail(err)
	case u != nil && u.has(password):
		return database.Accepted, nil
	}
	return database.Refused, nil
}

// SetPassword gives an account another password; tags and permissions stay. Tags that somebody changes in this very moment may be as they were before.
func (b *broker) SetPassword(ctx context.Context, c database.Change) error {
	if len(c.Self) > 0 {
		return errSelf
	}
	u, err := b.look(ctx, c.Username)
	switch {
	case err != nil:
		return untouched(b.fail(err))
	case u == nil:
		return errNone(c.Username)
	}
	hash := digest(c.Password, c.Name)
	return b.fail(b.put(ctx, c.Username, hash, u.Tags), hash)
}

// Changeable is the error that there is no such account: who may see accounts may change them, too.
func (b *broker) Changeable(ctx context.Context, c database.Change) error {
	if len(c.Self) > 0 {
		return errSelf
	}
	u, err := b.look(ctx, c.Username)
	if err == nil && u == nil {
		return errNone(c.Username)
	}
	return b.fail(err)
}

var errSelf = api.Errorf(api.Invalid, "RabbitMQ's accounts cannot change their own passwords")

func errNone(username string) error {
	return api.Errorf(api.Upstream, "there is no account %q at the broker", username)
}

// peer is a client's connection, as the API has it.
type peer struct {
	Name        string `json:"name"` // from -> to
	User        string `json:"user"`
	PeerHost    string `json:"peer_host"`
	ConnectedAt int64  `json:"connected_at"` // Unix milliseconds
	Client      struct {
		Name string `json:"connection_name"`
	} `json:"client_properties"`
}

// mostDescribed is how many connections of an account are asked for what their clients say of themselves.
const mostDescribed = 64

// Sessions lists the connections of accounts. The broker tells at once that there are some, and some seconds later what they say of themselves.
func (b *broker) Sessions(ctx context.Context, usernames []string) (all []database.Session, err error) {
	for _, username := range usernames {
		open, err := b.connections(ctx, username)
		if err != nil {
			return nil, err
		}
		for i, c := range open {
			if i < mostDescribed {
				described := c
				if err := b.call(ctx, http.MethodGet, nil, &described, "connections", c.Name); err == nil && described.User == username {
					c = described
				}
			}
			found := database.Session{Username: username, Client: c.PeerHost, Application: c.Client.Name}
			if from, _, ok := strings.Cut(c.Name, " -> "); ok && found.Client == "" {
				found.Client, _, _ = net.SplitHostPort(from)
			}
			if len(found.Application) > database.LongestApplication {
				found.Application = strings.ToValidUTF8(found.Application[:database.LongestApplication], "")
			}
			if c.ConnectedAt > 0 {
				found.Since = time.UnixMilli(c.ConnectedAt).UTC()
			}
			all = append(all, found)
		}
	}
	return all, nil
}

// connections are those of an account.
func (b *broker) connections(ctx context.Context, username string) (open []peer, err error) {
	err = b.call(ctx, http.MethodGet, nil, &open, "connections", "username", username)
	if status := refused(err); status == http.StatusNotFound || status == http.StatusMethodNotAllowed {
		return nil, &api.Error{Kind: api.Upstream, Text: "the broker shows no connections: it is older than RabbitMQ 3.10", Cause: database.ErrUnseen}
	}
	return open, b.fail(err)
}

// End ends the connections of an account.
func (b *broker) End(ctx context.Context, username string) error {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		open, err := b.connections(ctx, username)
		if err != nil || len(open) == 0 {
			return err
		}
		for _, c := range open {
			if err := b.call(ctx, http.MethodDelete, nil, nil, "connections", c.Name); err != nil && refused(err) != http.StatusNotFound {
				return b.fail(err)
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return b.fail(ctx.Err())
		}
	}
}
