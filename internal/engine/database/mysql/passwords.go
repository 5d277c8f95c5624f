package mysql

import (
	"context"
	ed25519key "crypto/ed25519"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"filippo.io/edwards25519"
	"github.com/go-sql-driver/mysql"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Passwords: what the servers keep of them, lessor's own, and those of accounts that are not lessor's making.

// nativeHash is what a server keeps of a password for mysql_native_password: it can check one who knows the password by it. Who has it cannot log in
// with it, but may try passwords against it at the speed of SHA-1; those that lessor makes are beyond that.
func nativeHash(password string) string {
	once := sha1.Sum([]byte(password))
	return fmt.Sprintf("*%X", sha1.Sum(once[:]))
}

// ed25519Hash is what MariaDB keeps of a password for its plugin of that name: the public key of which the password is the seed.
func ed25519Hash(password string) string {
	h := sha512.Sum512([]byte(password))
	secret, err := edwards25519.NewScalar().SetBytesWithClamping(h[:32])
	if err != nil {
		panic("mysql: 32 bytes are no scalar") // they always are
	}
	public := new(edwards25519.Point).ScalarBaseMult(secret)
	return base64.RawStdEncoding.EncodeToString(public.Bytes())
}

// parsecHash is what MariaDB keeps of a password for its plugin parsec: the public key of which the password, made slow, is the seed. Its salt is the
// password's, and so the same whenever it is set again.
func parsecHash(password string) string {
	salt := sha256.Sum256([]byte("lessor salt\x00" + password))
	return parsecKey(password, salt[:18])
}

func parsecKey(password string, salt []byte) string {
	seed, err := pbkdf2.Key(sha512.New, password, salt, 1024, ed25519key.SeedSize)
	if err != nil {
		panic("mysql: PBKDF2 refuses its parameters") // which are constants
	}
	public := ed25519key.NewKeyFromSeed(seed).Public().(ed25519key.PublicKey)
	return "P0:" + base64.StdEncoding.EncodeToString(salt) + ":" + base64.RawStdEncoding.EncodeToString(public)
}

// hashes are all that a server may be given in the place of a password.
func hashes(password lessor.Secret) []string {
	return []string{nativeHash(password.Reveal()), ed25519Hash(password.Reveal()), parsecHash(password.Reveal())}
}

// nobody is a password that nobody knows; it has of everything that servers may demand of one.
func nobody() string { return "aA1-" + rand.Text() }

// hashing reports whether the server gets hashes of passwords.
func (s *session) hashing() bool {
	return s.authentication != plain && (s.maria || s.authentication != "")
}

// identified says what identifies an account by a password, for statements that name a plugin, or none (""); nil: they stay as they are.
func (s *session) identified(password lessor.Secret) func(plugin string) string {
	if !s.hashing() {
		return nil
	}
	return func(plugin string) string {
		if plugin == "" {
			plugin = native
			if s.authentication == ed25519 {
				plugin = ed25519
			}
		}
		switch strings.ToLower(plugin) {
		case native:
			return "IDENTIFIED WITH " + native + " AS '" + nativeHash(password.Reveal()) + "'"
		case ed25519:
			return "IDENTIFIED WITH " + ed25519 + " AS '" + ed25519Hash(password.Reveal()) + "'"
		case parsec:
			return "IDENTIFIED WITH " + parsec + " AS '" + parsecHash(password.Reveal()) + "'"
		}
		return ""
	}
}

// Use says which passwords may log lessor in. When the first of them is another than before, sessions are opened anew.
func (d *server) Use(passwords []lessor.Secret) {
	if d.logins.Use(passwords) {
		d.generation.Add(1)
	}
}

// Login tries a password in a session of its own.
func (d *server) Login(ctx context.Context, username string, password lessor.Secret) (database.Verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	c, err := d.dial(ctx, username, "", password.Reveal())
	if err == nil {
		_ = c.Close()
		return database.Accepted, nil
	}
	switch code(err) {
	case wrongPassword:
		if d.elsewhere(ctx, username) {
			return database.Unknown, nil
		}
		return database.Refused, nil
	case lockedMySQL, lockedMariaDB: // comes after the password
		return database.Barred, nil
	case passwordExpired, noDatabaseRight, noSuchDatabase, tooManySessions, limitReached: // come after the password
		return database.Accepted, nil
	case withoutPassword, hostNotPrivileged, insecureTransport, blockedMySQL, blockedMariaDB:
		return database.Unknown, nil
	}
	if errors.Is(err, mysql.ErrUnknownPlugin) { // MariaDB's parsec, among others: nobody can try it from here
		return database.Unknown, nil
	}
	return 0, d.fail(err, password.Reveal())
}

// elsewhere reports whether a server that refuses a login does so whatever the password, which it does not say: no account of that name is for clients
// from lessor's address, or for those that speak as lessor does.
func (d *server) elsewhere(ctx context.Context, username string) (elsewhere bool) {
	_ = d.session(ctx, func(s *session) error {
		rows, err := s.run("SELECT u.Host,u.ssl_type,u.plugin,SUBSTRING_INDEX(USER(),'@',-1) FROM mysql.user u WHERE u.User=" + text(username) +
			" AND u.Host<>'' AND u.Host NOT LIKE '%" + domain + "'")
		if err != nil || len(rows) == 0 {
			return err // nothing is known, or there is no such account
		}
		elsewhere = true
		for _, r := range rows {
			encrypted := r[1] == "" || r[1] == "ANY" && d.cfg.TLS != nil && !d.cfg.AllowFallbackToPlaintext
			if encrypted && byPassword(r[2]) && admits(r[0], r[3]) {
				elsewhere = false
			}
		}
		return nil
	})
	return elsewhere
}

// byPassword reports whether accounts of a plugin log in by a password that the server keeps.
func byPassword(plugin string) bool {
	switch strings.ToLower(plugin) {
	case "", native, ed25519, parsec, "caching_sha2_password", "sha256_password":
		return true
	}
	return false
}

// admits reports whether an account's host may stand for a client's. Where the client is known by its name, any address may, but for this machine's.
func admits(host, client string) bool {
	if strings.ContainsRune(host, '/') {
		return true
	}
	host, client = strings.ToLower(host), strings.ToLower(client)
	switch numeric := strings.Trim(host, "0123456789abcdef.:%_") == "" && strings.ContainsAny(host, ".:"); {
	case numeric && client == "localhost":
		return like(host, "127.0.0.1") || like(host, "::1")
	case numeric && strings.Trim(client, "0123456789abcdef.:") != "":
		return true
	}
	return like(host, client)
}

// like reports whether a pattern of SQL's LIKE, with % and _, stands for a text.
func like(pattern, text string) bool {
	for len(pattern) > 0 {
		if pattern[0] == '%' {
			for i := range len(text) + 1 {
				if like(pattern[1:], text[i:]) {
					return true
				}
			}
			return false
		}
		if text == "" || pattern[0] != '_' && pattern[0] != text[0] {
			return false
		}
		pattern, text = pattern[1:], text[1:]
	}
	return text == ""
}

// SetPassword changes the password of the accounts of a name, under the change's locks.
func (d *server) SetPassword(ctx context.Context, c database.Change) error {
	if !existing(c.Username) {
		return api.Errorf(api.Invalid, "the username cannot be put into statements")
	}
	v, err := fill(c.Username, c.Password.Reveal(), time.Time{})
	if err != nil {
		return api.Errorf(api.Invalid, "%v", err)
	}
	hidden := append(hashes(c.Password), c.Password.Reveal())
	for _, password := range c.Self {
		hidden = append(hidden, password.Reveal())
	}
	change := func(s *session, own lessor.Secret) error {
		if err := s.endMakers([]string{c.Name}); err != nil {
			return err
		}
		if err := s.begin(c.Name); err != nil {
			return err
		}
		var statements []string
		var err error
		if len(c.Statements) > 0 {
			v.identified = s.identified(c.Password)
			statements = v.statements(c.Statements)
		} else if statements, err = s.changing(&c, own); err != nil {
			return err
		}
		for i := 0; i < len(statements) && err == nil; i++ {
			if err = s.make(statements[i]); i > 0 && local(err) {
				return &api.Error{Kind: api.Upstream, Cause: database.ErrUnreachable, // it is in force
					Text: "the database has changed the password in part, at some of the account's hosts perhaps, and refused the rest: " + d.fail(err, hidden...).Error()}
			}
		}
		if code(err) == notCurrent && len(c.Statements) == 0 { // it logged in by the second that it was made to retain
			statements, _ = s.changing(&c, lessor.Secret{})
			err = s.make(statements...)
		}
		if wasBefore(err) { // where it keeps a history, what is set again is in it
			if verdict, _ := d.Login(s.ctx, c.Username, c.Password); verdict.Right() {
				err = nil
			}
		}
		if err != nil || s.maria {
			return err
		}
		return s.discard(&c)
	}
	if len(c.Self) == 0 {
		return d.session(ctx, func(s *session) error { return d.fail(change(s, lessor.Secret{}), hidden...) })
	}
	return d.alone(ctx, c, func(s *session, own lessor.Secret) error { return d.fail(change(s, own), hidden...) })
}

// Changeable looks for the accounts of the name, and at how they log in; and whether lessor may change accounts.
func (d *server) Changeable(ctx context.Context, c database.Change) error {
	if !existing(c.Username) {
		return api.Errorf(api.Invalid, "the username cannot be put into statements")
	}
	if len(c.Self) > 0 { // nobody but the account itself knows whether it may
		return nil
	}
	return d.session(ctx, func(s *session) error {
		if len(c.Statements) > 0 {
			return d.fail(s.there(c.Username))
		}
		if _, err := s.changing(&c, lessor.Secret{}); err != nil {
			return d.fail(err)
		}
		return d.fail(s.privileged())
	})
}

// there is the error that there is no account of the name, as far as lessor may see.
func (s *session) there(username string) error {
	rows, err := s.run("SELECT Host,User FROM mysql.user WHERE User=" + text(username))
	switch {
	case code(err) == noTableRight, code(err) == noColumnRight:
		return nil
	case err == nil && len(rows) == 0:
		return errNone(username)
	}
	return err
}

func errNone(username string) error {
	return &refusal{fmt.Sprintf("the account %q does not exist", username)}
}

// privileged is the error that lessor may not change accounts. It changes one that there cannot be: servers look at rights before that.
func (s *session) privileged() error {
	_, err := s.run("ALTER USER 'lessor-" + rand.Text()[:16] + "'@'localhost' REQUIRE NONE")
	if code(err) != 0 && code(err) != notPrivileged {
		return nil
	}
	return err
}

// discard takes from an account of MySQL the second password that somebody may have had it retain, and that survives the change of the first. An account
// that does it itself does not learn whether it has one, and needs a right of its own to lose it.
func (s *session) discard(c *database.Change) error {
	if len(c.Self) > 0 {
		err := s.make("ALTER USER USER() DISCARD OLD PASSWORD")
		if code(err) == notPrivileged {
			return nil
		}
		return err
	}
	rows, err := s.run("SELECT Host FROM mysql.user WHERE User=" + text(c.Username) + " AND JSON_CONTAINS_PATH(User_attributes,'one','$.additional_password') ORDER BY Host")
	switch {
	case code(err) == noTableRight, code(err) == noColumnRight, code(err) == noSuchColumn: // of a server that knows none
		return nil
	case err != nil:
		return err
	}
	for _, r := range rows {
		if err := s.make("ALTER USER " + text(c.Username) + "@" + text(r[0]) + " DISCARD OLD PASSWORD"); err != nil {
			return err
		}
	}
	return nil
}

// changing are the statements that change a password where nobody wrote any: at all hosts that the account has, as far as it logs in by a password there.
// MySQL changes all of them or none; MariaDB does what it can of a statement, so there it is one for each.
// own is the one that the account which does it itself has logged in by.
func (s *session) changing(c *database.Change, own lessor.Secret) ([]string, error) {
	password := c.Password.Reveal()
	if len(c.Self) > 0 {
		if !s.maria {
			statement := "ALTER USER USER() IDENTIFIED BY '" + password + "'"
			if !own.Empty() && !unsafe.MatchString(own.Reveal()) { // servers may demand it
				statement += " REPLACE '" + own.Reveal() + "'"
			}
			return []string{statement}, nil
		}
		rows, err := s.run("SHOW CREATE USER CURRENT_USER()")
		switch {
		case err != nil:
			return nil, err
		case !s.hashing():
			return []string{"SET PASSWORD=PASSWORD('" + password + "')"}, nil
		case len(rows) > 0 && clause(rows[0][0], "VIA", ed25519):
			return []string{"SET PASSWORD='" + ed25519Hash(password) + "'"}, nil
		}
		return []string{"SET PASSWORD='" + nativeHash(password) + "'"}, nil
	}
	rows, err := s.run("SELECT Host,plugin FROM mysql.user WHERE User=" + text(c.Username) + " AND Host<>'' AND Host NOT LIKE '%" + domain + "' ORDER BY Host")
	if code(err) == noTableRight || code(err) == noColumnRight {
		return nil, &refusal{"lessor's account at the database may not see which accounts there are: GRANT SELECT ON mysql.* to it, or say rotation_statements"}
	}
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, errNone(c.Username)
	}
	var all []string
	for _, r := range rows {
		account := text(c.Username) + "@" + text(r[0])
		if !byPassword(r[1]) {
			continue
		}
		if s.maria {
			if several, err := s.run("SHOW CREATE USER " + account); err != nil {
				return nil, err
			} else if len(several) > 0 && clause(several[0][0], "OR") {
				return nil, &refusal{fmt.Sprintf("the account %s may log in in several ways, of which a new password would leave one: say rotation_statements that keep the others", account)}
			}
		}
		all = append(all, account+" "+s.anew(r[1], c.Password))
	}
	if len(all) == 0 {
		return nil, &refusal{fmt.Sprintf("the account %q does not log in by a password", c.Username)}
	}
	if !s.maria {
		return []string{"ALTER USER " + strings.Join(all, ",")}, nil
	}
	for i := range all {
		all[i] = "ALTER USER " + all[i]
	}
	return all, nil
}

// anew identifies an account by a new password, and by the plugin that it has.
func (s *session) anew(plugin string, password lessor.Secret) string {
	if plugin == "" {
		plugin = native
	}
	if identified := s.identified(password); identified != nil {
		if clause := identified(plugin); clause != "" {
			return clause
		}
	}
	if s.maria {
		return "IDENTIFIED WITH " + plugin + " AS PASSWORD('" + password.Reveal() + "')"
	}
	return "IDENTIFIED WITH " + plugin + " BY '" + password.Reveal() + "'"
}

// alone runs f in a session that the account itself opens, by the password that f is given.
func (d *server) alone(ctx context.Context, c database.Change, f func(*session, lessor.Secret) error) error {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	var failure error
	for _, password := range c.Self {
		conn, err := d.dial(ctx, c.Username, "", password.Reveal())
		if err == nil {
			conn, err = d.greet(ctx, &wire{Conn: conn, pool: d, generation: d.generation.Load()})
		}
		if err != nil {
			if failure = d.fail(err, password.Reveal()); code(err) == wrongPassword {
				failure = api.Errorf(api.Upstream, "the database refused the account's own login: none of its passwords is the one that lessor knows")
				continue
			}
			return untouched(failure)
		}
		defer conn.Close()
		return f(&session{server: d, wire: conn.(*wire), ctx: ctx}, password)
	}
	return failure
}
