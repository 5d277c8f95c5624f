package redis

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
)

// Redis has neither transactions that can be conditional on accounts nor locks, and its scripts may not touch accounts. What it has is one thread,
// and sessions that are ended at once. So whoever makes or changes an account names the session after what it is about, and hears that it is named,
// before he sends the command that does it. Whoever undoes it lists the sessions of that name, and ends them, and hears that they are over, before he
// looks. From then on what a process that was stopped, or the network, still holds back has no session to arrive in: a command reaches a server only
// over the connection that it was written to. A call that has not named its session when its time is over sends nothing any more.

// batch is how many accounts one command removes.
const batch = 256

// Ping asks for a sign of life.
func (d *server) Ping(ctx context.Context) error {
	return d.session(ctx, idleName, func(*session) error { return nil }) // the name was taken
}

// Create makes the account, marked, in one command.
func (d *server) Create(ctx context.Context, a database.Account) error {
	if !identifier.MatchString(a.Username) {
		return api.Errorf(api.Invalid, "the username cannot be an account's")
	}
	words, err := rules(a.Creation, a.Username)
	if err != nil {
		return api.Errorf(api.Invalid, "creation_statements: %v", err)
	}
	marked, ok := slots(&a)
	if !ok || a.Password.Empty() {
		return api.Errorf(api.Internal, "the lease's notes are damaged: no mark, or no password")
	}
	secret := digest(a.Password.Reveal())
	command := []any{"ACL", "SETUSER", a.Username, "reset", "resetchannels"}
	for _, w := range words {
		command = append(command, w)
	}
	command = append(command, "on", "#"+secret)
	for _, m := range marked {
		command = append(command, "#"+m)
	}
	return d.session(ctx, sessionOf+short(a.Lease), func(s *session) error {
		f, err := s.look(a.Username)
		switch {
		case err != nil:
			return d.fail(err)
		case f == nil:
			if _, err := s.do(command...); err != nil {
				return d.fail(err, secret, a.Password.Reveal())
			}
		case f.Mark != a.Bears(): // or it was made before
			return api.Errorf(api.Upstream, "there is an account %q at the database already, and it is not this lease's", a.Username)
		}
		return s.save()
	})
}

// Renew sees that the account is there. Redis knows no ends that it could move.
func (d *server) Renew(ctx context.Context, a database.Account) error {
	return d.session(ctx, idleName, func(s *session) error {
		f, err := s.look(a.Username)
		if err == nil && (f == nil || f.Mark != a.Bears()) {
			return api.Errorf(api.Upstream, "there is no account %q of this lease any more; was the database started anew without saving its accounts?", a.Username)
		}
		return d.fail(err)
	})
}

// Remove ends the accounts, and with them their sessions.
func (d *server) Remove(ctx context.Context, as []database.Account) []error {
	errs := make([]error, len(as))
	all := make([]int, len(as))
	for i := range all {
		all[i] = i
	}
	for part := range slices.Chunk(all, batch) {
		if err := d.session(ctx, idleName, func(s *session) error { return s.remove(as, part, errs) }); err != nil {
			for _, i := range part {
				errs[i] = d.fail(err)
			}
		}
	}
	return errs
}

// remove removes some of the accounts, and says of each whether it is gone. An error that it returns is true of all of them.
func (s *session) remove(as []database.Account, which []int, errs []error) error {
	sessions := make([]string, len(which))
	for n, i := range which {
		sessions[n] = sessionOf + short(as[i].Lease)
	}
	if err := s.end(sessions); err != nil {
		return err
	}
	names := make([]string, 0, len(which))
	for _, i := range which {
		if errs[i] = nil; !identifier.MatchString(as[i].Username) {
			errs[i] = api.Errorf(api.Internal, "the lease's notes are damaged: no username")
			continue
		}
		names = append(names, as[i].Username)
	}
	found, err := s.lookAll(names)
	if err != nil {
		return err
	}
	doomed := []any{"ACL", "DELUSER"}
	for _, i := range which {
		switch f := found[as[i].Username]; {
		case f == nil || f.Mark != "" && f.Mark != as[i].Bears():
			// gone; or another lease's, and so this one's was never made
		case f.Mark == "":
			errs[i] = api.Errorf(api.Upstream, "the account %q does not bear lessor's mark any more: see whose it is, and delete it", f.Username)
		default:
			doomed = append(doomed, f.Username)
		}
	}
	if len(doomed) > 2 {
		if _, err := s.do(doomed...); err != nil {
			return err
		}
	}
	// Also if there was nothing to remove: it may have been removed, and not saved, before.
	return s.save()
}

// end ends the sessions of these names.
func (s *session) end(names []string) error {
	all, err := s.clients()
	if err != nil {
		return err
	}
	for _, c := range all {
		if !slices.Contains(names, c["name"]) {
			continue
		}
		if _, err := s.do("CLIENT", "KILL", "ID", c["id"]); err != nil { // of one that is over already it kills none, and says so
			return err
		}
	}
	return nil
}

// clients are the sessions with the server, each as its fields by name.
func (s *session) clients() (all []map[string]string, err error) {
	text, err := s.conn.ClientList(s.ctx).Result()
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(text) {
		c := map[string]string{}
		for _, field := range strings.Fields(line) {
			name, value, _ := strings.Cut(field, "=")
			c[name] = value
		}
		all = append(all, c)
	}
	return all, nil
}

// state is what the server knows of an account.
type state struct {
	database.Marked
	hashes []string // of its passwords
	off    bool     // nobody logs in to it
}

// look is what the server knows of an account; nil: there is none.
func (s *session) look(username string) (*state, error) {
	found, err := s.lookAll([]string{username})
	return found[username], err
}

// lookAll is what the server knows of accounts, those left out that are not there.
func (s *session) lookAll(usernames []string) (map[string]*state, error) {
	answers := make([]*redis.Cmd, len(usernames))
	_, _ = s.conn.Pipelined(s.ctx, func(p redis.Pipeliner) error {
		for i, name := range usernames {
			answers[i] = p.Do(s.ctx, "ACL", "GETUSER", name)
		}
		return nil
	})
	found := make(map[string]*state, len(usernames))
	for i, name := range usernames {
		fields, err := answers[i].Slice()
		if errors.Is(err, redis.Nil) {
			continue
		}
		if err != nil {
			return nil, err
		}
		hashes, ok := texts(fields, "passwords")
		if !ok {
			return nil, api.Errorf(api.Upstream, "the database does not tell what passwords the account %q has", name)
		}
		flags, _ := texts(fields, "flags")
		f := &state{off: slices.Contains(flags, "off")}
		f.Marked, f.hashes = marks(hashes)
		f.Username = name
		found[name] = f
	}
	return found, nil
}

// texts are those of one field of what ACL GETUSER answers: names of fields, each before its value. ok: there is one of that name.
func texts(fields []any, name string) (all []string, ok bool) {
	at := slices.Index(fields, any(name))
	if at < 0 || at+1 == len(fields) {
		return nil, false
	}
	list, _ := fields[at+1].([]any)
	all = make([]string, len(list))
	for i, word := range list {
		all[i], _ = word.(string)
	}
	return all, true
}

// Marked lists the accounts that bear a mark of lessor's.
func (d *server) Marked(ctx context.Context) (all []database.Marked, err error) {
	err = d.session(ctx, idleName, func(s *session) error {
		lines, err := s.conn.Do(s.ctx, "ACL", "LIST").StringSlice()
		for _, line := range lines { // user NAME on #HASH … ~* +@read
			words := strings.Fields(line)
			if len(words) < 2 {
				continue
			}
			var hashes []string
			for _, w := range words[2:] {
				if h, ok := strings.CutPrefix(w, "#"); ok {
					hashes = append(hashes, h)
				}
			}
			if m, _ := marks(hashes); m.Mark != "" {
				m.Username = words[1]
				all = append(all, m)
			}
		}
		return d.fail(err)
	})
	return all, err
}

// Sessions lists the sessions of accounts, those of replicas included.
func (d *server) Sessions(ctx context.Context, usernames []string) (all []database.Session, err error) {
	err = d.session(ctx, idleName, func(s *session) error {
		clients, err := s.clients()
		for _, c := range clients {
			if !slices.Contains(usernames, c["user"]) {
				continue
			}
			found := database.Session{Username: c["user"], Client: "local", Application: c["name"]}
			if at := strings.LastIndex(c["addr"], ":"); at > 0 && !strings.HasPrefix(c["addr"], "/") {
				found.Client = strings.Trim(c["addr"][:at], "[]")
			}
			if found.Application == "" {
				found.Application = c["lib-name"] // which clients of Redis 7.2 and later tell
			}
			if len(found.Application) > database.LongestApplication {
				found.Application = strings.ToValidUTF8(found.Application[:database.LongestApplication], "")
			}
			if age, err := strconv.ParseInt(c["age"], 10, 64); err == nil {
				found.Since = time.Now().UTC().Add(-time.Duration(age) * time.Second).Truncate(time.Second)
			}
			all = append(all, found)
		}
		return d.fail(err)
	})
	return all, err
}

// End ends an account's sessions.
func (d *server) End(ctx context.Context, username string) error {
	if !existing(username) {
		return errInvalidName
	}
	return d.session(ctx, idleName, func(s *session) error {
		_, err := s.do("CLIENT", "KILL", "USER", username)
		if strings.HasPrefix(said(err), "ERR No such user") {
			return nil
		}
		return d.fail(err)
	})
}

var errInvalidName = api.Errorf(api.Invalid, "%v", errName)

// save has accounts as they are now outlive the server, as far as persistence_mode says.
func (s *session) save() error {
	var err error
	switch s.persistence {
	case none:
		return nil
	case rewrite:
		_, err = s.do("CONFIG", "REWRITE")
	default:
		_, err = s.do("ACL", "SAVE")
		if s.persistence == automatic && strings.Contains(said(err), "not configured to use an ACL file") {
			return nil
		}
	}
	if strings.HasPrefix(said(err), "NOPERM") {
		return api.Errorf(api.Upstream, "lessor's account may not save accounts: permit it %s at the database, or say persistence_mode=NONE; then what it does is undone when the database is started anew",
			map[bool]string{true: "+config|rewrite", false: "+acl|save"}[s.persistence == rewrite])
	}
	return s.fail(err)
}
