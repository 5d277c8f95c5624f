package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/store"
)

// aftermath is a store in a PostgreSQL that can be taken back in time, with two nodes' keys and anchors, and another PostgreSQL as
// target, where lessor has an account of its own and looks after another one.
type aftermath struct {
	*place
	store, target *pgtest.Server
	url           string
	root, static  string // accounts at the target
	conn          *pgx.Conn
}

func newAftermath(t *testing.T) *aftermath {
	t.Helper()
	m := &aftermath{place: newPlace(t), store: pgtest.Own(t, pgtest.Archive()), target: pgtest.Own(t)}
	m.url = m.store.URL(pgtest.Superuser, m.store.Password(), "postgres")
	m.conn = m.target.Connect(t, "")
	m.root, m.static = "lessor_own", "fixed"
	m.sql("CREATE ROLE " + m.root + " SUPERUSER LOGIN PASSWORD 'first'")
	m.sql("CREATE ROLE " + m.static + " LOGIN PASSWORD 'first'")
	return m
}

func (m *aftermath) sql(statement string) {
	m.Helper()
	if _, err := m.conn.Exec(m.Context(), statement); err != nil {
		m.Fatalf("%s: %v", statement, err)
	}
}

// conf is the configuration of one of the nodes.
func (m *aftermath) conf(node string) config.Config {
	m.Helper()
	key := filepath.Join(m.dir, node, "seal.key")
	c := m.config("-key-file", key)
	c.Storage = config.Storage{Type: config.PostgreSQL, ConnectionURL: lessor.NewSecret(m.url)}
	if first := filepath.Join(m.dir, "one", "seal.key"); node != "one" && !exists(key) {
		b, err := os.ReadFile(first)
		m.do(err)
		m.do(os.Mkdir(filepath.Dir(key), 0o700))
		m.do(os.WriteFile(key, b, 0o600))
	}
	return c
}

func (m *aftermath) tryNode(name string) (*running, error) {
	m.Helper()
	n, err := Start(m.Context(), m.conf(name), m.o)
	if err != nil {
		return nil, err
	}
	r := &running{m.place, n, n.Root.Reveal(), http.DefaultClient}
	m.Cleanup(r.stop)
	return r, nil
}

func (m *aftermath) node(name string) *running {
	m.Helper()
	r, err := m.tryNode(name)
	m.do(err)
	return r
}

// configure mounts the engine, with a connection by lessor's account, a role and a static role.
func (m *aftermath) configure(r *running) {
	m.Helper()
	r.must(204, "POST", "sys/mounts/db", `{"type":"database"}`)
	r.must(204, "POST", "db/config/pg", fmt.Sprintf(
		`{"plugin_name":"postgresql-database-plugin","connection_url":%q,"username":%q,"password":"first","allowed_roles":"*","scram_iterations":1}`,
		m.target.URL("{{username}}", "{{password}}", "postgres"), m.root))
	r.must(204, "POST", "db/roles/app", `{"db_name":"pg","creation_statements":["CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"],"default_ttl":"1h"}`)
	r.must(204, "POST", "db/roles/brief", `{"db_name":"pg","creation_statements":["CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}'"],"default_ttl":"3s"}`)
	r.must(200, "POST", "db/static-roles/fixed", fmt.Sprintf(`{"db_name":"pg","username":%q,"rotation_period":"24h"}`, m.static))
}

func (m *aftermath) credential(r *running, role string) (lease, username string) {
	m.Helper()
	answer := r.must(200, "GET", "db/creds/"+role, "")
	return answer["lease_id"].(string), answer["data"].(map[string]any)["username"].(string)
}

// accounts are those at the target whose names begin as lessor's do.
func (m *aftermath) has(username string) bool {
	m.Helper()
	var n int
	m.do(m.conn.QueryRow(m.Context(), "SELECT count(*) FROM pg_roles WHERE rolname = $1", username).Scan(&n))
	return n > 0
}

// fingerprint is what the target has of accounts: names, passwords, ends and comments.
func (m *aftermath) fingerprint() string {
	m.Helper()
	var text string
	m.do(m.conn.QueryRow(m.Context(), `SELECT string_agg(concat_ws('|', rolname, rolpassword, rolvaliduntil, shobj_description(oid, 'pg_authid')), E'\n' ORDER BY rolname) FROM pg_authid`).Scan(&text))
	return text
}

// note is the moment, by the store's server.
func (m *aftermath) note() (at time.Time) {
	m.Helper()
	c, err := m.store.Login(m.Context(), pgtest.Superuser, m.store.Password(), "")
	m.do(err)
	defer func() { _ = c.Close(m.Context()) }()
	m.do(c.QueryRow(m.Context(), "SELECT clock_timestamp()").Scan(&at))
	return at
}

func (m *aftermath) until(what string, done func() bool) {
	m.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.Fatalf("waited in vain until %s; log:\n%s", what, m.log)
		}
	}
}

// logsIn reports whether the static role's password that lessor tells is in force.
func (m *aftermath) logsIn(r *running) bool {
	m.Helper()
	request, err := http.NewRequest("GET", r.Address()+"/v1/db/static-creds/fixed", nil)
	m.do(err)
	request.Header.Set("X-Vault-Token", r.token)
	answer, err := http.DefaultClient.Do(request)
	m.do(err)
	defer func() { _ = answer.Body.Close() }()
	var told struct{ Data struct{ Password string } }
	m.do(json.NewDecoder(answer.Body).Decode(&told))
	c, err := m.target.Login(m.Context(), m.static, told.Data.Password, "postgres")
	if err != nil {
		return false
	}
	_ = c.Close(m.Context())
	return true
}

// back takes the store to a moment; both nodes refuse it then, and one takes it over. The hash is what the other one accepts it by.
func (m *aftermath) back(at time.Time) (hash string, tokenFile string) {
	m.Helper()
	m.do(m.store.RestoreTo(at))
	for _, name := range []string{"one", "two"} {
		if _, err := m.tryNode(name); !errors.Is(err, store.ErrBehind) || !strings.Contains(err.Error(), "lessor operator takeover") {
			m.Fatalf("node %s started over a store of earlier: %v", name, err)
		}
	}
	taken, err := Takeover(m.Context(), m.conf("one"), m.o, false, nil)
	m.do(err)
	if taken.Head.Incarnation != 2 {
		m.Errorf("incarnation %d", taken.Head.Incarnation)
	}
	return taken.Hash, taken.TokenFile
}

func (m *aftermath) read(file string) string {
	m.Helper()
	b, err := os.ReadFile(file)
	m.do(err)
	return strings.TrimSpace(string(b))
}

// fence is what sys/lessor/fence says.
func (r *running) fence() map[string]any {
	r.Helper()
	return r.must(200, "GET", "sys/lessor/fence", "")["data"].(map[string]any)
}

// The database of the store is restored to an earlier time: what was made, changed and ended at the target since then is found out
// and put right, once somebody has said so, and not before.
func TestDatabaseRestoredToAnEarlierTime(t *testing.T) {
	t.Parallel()
	m := newAftermath(t)
	one := m.node("one")
	two := m.node("two")
	two.token = one.token
	m.configure(one)
	one.must(204, "POST", "db/rotate-root/pg", "")
	m.do(m.store.BaseBackup())
	keptLease, kept := m.credential(one, "app")
	revokedLease, revoked := m.credential(one, "app")
	_, brief := m.credential(one, "brief")
	at := m.note()
	before := one.token

	// What the state of then will not know. An account that another lessor made bears another mark.
	_, stray := m.credential(one, "app")
	_, other := m.credential(two, "app")
	one.must(204, "PUT", "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, revokedLease))
	one.must(204, "POST", "db/rotate-role/fixed", "")
	if !m.logsIn(one) {
		t.Fatal("the static role's password is not in force")
	}
	m.sql("CREATE ROLE " + m.static + "_foreign LOGIN")
	m.sql("COMMENT ON ROLE " + m.static + "_foreign IS 'lessor lease=00112233445566778899aabbccddeeff mount=00112233445566778899aabb'")
	one.stop()
	two.stop()

	hash, tokenFile := m.back(at)
	asBefore := m.fingerprint()
	if _, err := m.tryNode("two"); !errors.Is(err, store.ErrBehind) || !strings.Contains(err.Error(), "-accept") {
		t.Errorf("the other node started without being told: %v", err)
	}
	if _, err := Accept(t.Context(), m.conf("two"), m.o, strings.Repeat("0", 64)); err == nil {
		t.Error("the other node accepted another hash")
	}
	if _, err := Accept(t.Context(), m.conf("two"), m.o, hash); err != nil {
		t.Fatal(err)
	}

	// Fenced: nothing at the target is touched, though a lease is over and a password is another than the store believes.
	one = m.node("one")
	two = m.node("two")
	one.token = before
	one.must(403, "GET", "sys/lessor/fence", "")
	one.token = m.read(tokenFile)
	two.token = one.token
	if f := one.fence(); f["fenced"] != true || f["searching"] != false || !strings.Contains(f["since"].(string), "taken over at") {
		t.Errorf("fence: %v", f)
	}
	if status, _ := two.ask("GET", "db/creds/app", ""); status != 503 {
		t.Errorf("a fenced store made a credential: %d", status)
	}
	if status, _ := two.ask("POST", "db/rotate-role/fixed", ""); status != 503 {
		t.Errorf("a fenced store changed a password: %d", status)
	}
	time.Sleep(2 * time.Second) // longer than the background waits between two looks
	if now := m.fingerprint(); now != asBefore {
		t.Fatalf("a fenced store touched its target:\n%s\nbefore:\n%s", now, asBefore)
	}

	one.must(204, "DELETE", "sys/lessor/fence", "")
	m.until("nothing is left that the store does not know, or that is over", func() bool {
		return !m.has(stray) && !m.has(other) && !m.has(brief) && !m.has(revoked)
	})
	m.until("the search is over", func() bool { return one.fence()["searching"] == false })
	m.until("the password in force is known", func() bool { return m.logsIn(two) })
	if !m.has(m.static + "_foreign") {
		t.Error("an account that somebody else made was removed")
	}
	if !m.has(kept) {
		t.Error("an account is gone though its lease goes on")
	}
	one.must(204, "PUT", "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, keptLease))
	m.until("what the store knew is revoked as ever", func() bool { return !m.has(kept) })
	if _, fresh := m.credential(two, "app"); !m.has(fresh) {
		t.Error("no new account")
	}
	one.must(200, "GET", "sys/lessor/audit/verify", "")
}

// Lessor's own password was rotated after the time that the store was restored to: nobody knows it. That is said, with what to
// do, and mended by it. Another connection to that server finds what was made there; it goes over the one that its role used then, whatever
// the role uses meanwhile.
func TestPasswordThatARestoredStoreNeverKnew(t *testing.T) {
	t.Parallel()
	m := newAftermath(t)
	one := m.node("one")
	two := m.node("two")
	m.configure(one)
	m.sql("CREATE ROLE lessor_twin SUPERUSER LOGIN PASSWORD 'twin'")
	one.must(204, "POST", "db/config/twin", fmt.Sprintf(
		`{"plugin_name":"postgresql-database-plugin","connection_url":%q,"username":"lessor_twin","password":"twin","allowed_roles":"*"}`,
		m.target.URL("{{username}}", "{{password}}", "postgres")))
	m.do(m.store.BaseBackup())
	at := m.note()
	_, stray := m.credential(one, "app")
	one.must(204, "POST", "db/rotate-root/pg", "")
	one.must(204, "POST", "db/rotate-role/fixed", "")
	one.stop()
	two.stop()
	_, tokenFile := m.back(at)

	one = m.node("one")
	one.token = m.read(tokenFile)
	one.must(204, "DELETE", "sys/lessor/fence", "")
	var found []any
	m.until("the target is named", func() bool {
		found = one.fence()["unsearched"].([]any)
		return len(found) == 1
	})
	f := found[0].(map[string]any)
	if f["mount"] != "db/" || f["target"] != "pg" || f["error"] == "" || !strings.Contains(f["advice"].(string), "lessor write db/config/pg") {
		t.Errorf("said: %v", f)
	}
	if !strings.Contains(m.log.String(), "lessor write db/config/pg") {
		t.Error("the log does not say what to do")
	}
	if !m.has(stray) {
		t.Error("an account is gone that nobody could remove")
	}
	m.until("the stray is overdue at its role's connection", func() bool {
		overdue := one.must(200, "GET", "sys/lessor/outlived", "")["data"].(map[string]any)["credentials"].([]any)
		if len(overdue) != 1 {
			return false
		}
		l := overdue[0].(map[string]any)
		return strings.HasPrefix(l["lease_id"].(string), "db/strays/") && l["target"] == "pg" && l["last_error"] != ""
	})
	one.must(204, "POST", "db/roles/app", `{"db_name":"twin"}`)
	if status, answer := one.ask("DELETE", "db/config/pg", ""); status != 400 || !strings.Contains(fmt.Sprint(answer), "still needed to revert its leases") {
		t.Errorf("a connection was deleted that a stray needs: %d %v", status, answer)
	}

	m.sql("ALTER ROLE " + m.root + " PASSWORD 'third'")
	one.must(204, "POST", "db/config/pg", `{"password":"third"}`)
	m.until("the stray is gone", func() bool { return !m.has(stray) })
	m.until("the search is over", func() bool { return one.fence()["searching"] == false })
	m.until("the static role's password is known", func() bool { return m.logsIn(one) })
}
