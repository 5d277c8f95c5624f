package torture

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/node"
	"github.com/lessor-dev/lessor/internal/pgtest"
)

// The environment of a run.
const (
	lengthEnv  = "LESSOR_TORTURE"         // how long faults go on; the everyday run's length otherwise
	seedEnv    = "LESSOR_TORTURE_SEED"    // 0 or nothing: another each time
	faultsEnv  = "LESSOR_TORTURE_FAULTS"  // only these kinds of faults, with commas between them
	historyEnv = "LESSOR_TORTURE_HISTORY" // file of a run that failed, to be checked again
	keepEnv    = "LESSOR_TORTURE_KEEP"    // folder that histories and logs of failed runs go to; the system's for temporary files otherwise
)

const (
	everyday        = 30 * time.Second
	everydayFault   = 4 * time.Second  // the longest
	longestFault    = 75 * time.Second // of a long run: longer than every timeout
	recoverPatience = 90 * time.Second // from an episode's end until all nodes serve
	quietPatience   = 2 * time.Minute  // from the end of all faults until no account is left at the target
)

// TestTorture is what the package is for.
func TestTorture(t *testing.T) {
	if testing.Short() {
		t.Skip("takes more than a minute")
	}
	duration, most := everyday, everydayFault
	if s := os.Getenv(lengthEnv); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal(err)
		}
		if duration = d; d >= 10*time.Minute {
			most = longestFault
		}
	}
	seed, _ := strconv.ParseUint(os.Getenv(seedEnv), 10, 64)
	if seed == 0 {
		seed = rand.Uint64N(1 << 32)
	}
	t.Logf("seed %d: replay with LESSOR_TORTURE=%s SEED=%d make torture", seed, duration, seed)
	if !pgtest.Root() {
		t.Log("no disk fills up: a disk of its own takes root")
	}

	names := possible(pgtest.Root())
	if s := os.Getenv(faultsEnv); s != "" {
		names = strings.Split(s, ",")
	}
	r := newRun(t)
	r.long = most == longestFault
	summary, serves := r.torment(seed, duration, plan(seed, int(duration/time.Second)+1, most, names))
	summary.Seed = seed
	var wrong []string
	if serves {
		wrong = r.afterwards(&summary)
	}
	wrong = append(wrong, r.inspect(&summary)...)
	t.Logf("\n%s", summary)
	for _, w := range wrong {
		t.Error(w)
	}
	if t.Failed() {
		t.Logf("replay with LESSOR_TORTURE=%s SEED=%d make torture; the history is in %s: LESSOR_TORTURE_HISTORY=%s go test ./internal/torture -run TestHistory",
			duration, seed, r.keep(), r.history.file.Name())
	}
}

// TestHistory checks the history of a run that was kept.
func TestHistory(t *testing.T) {
	path := os.Getenv(historyEnv)
	if path == "" {
		t.Skip("no history is named in " + historyEnv)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ops, err := readHistory(f)
	if err != nil {
		t.Fatal(err)
	}
	objects, wrong := linearizable(ops, checkPatience)
	t.Logf("%d operations on %d objects", len(ops), objects)
	for _, w := range wrong {
		t.Error(w)
	}
}

// newRun starts the cluster and furnishes it.
func newRun(t *testing.T) *run {
	r := &run{cluster: newCluster(t), began: time.Now()}
	dir, err := os.MkdirTemp(os.Getenv(keepEnv), "lessor-torture-")
	r.must(err)
	r.history, err = newHistory(filepath.Join(dir, "history.jsonl"))
	r.must(err)
	t.Cleanup(func() {
		if !t.Failed() {
			_ = os.RemoveAll(dir)
		}
	})
	r.ledger = &ledger{odd: r.odd, grants: map[string]*grant{}, users: map[string]*grant{}}
	for i, p := range r.nodes {
		r.way[i] = newTransport(p.link.address())
	}
	r.furnish()
	return r
}

// furnish makes what all clients use.
func (r *run) furnish() {
	c := r.operator()
	c.do("POST", "sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]any{"version": "2"}})
	c.do("POST", "sys/mounts/database", map[string]any{"type": "database"})
	c.do("POST", "sys/auth/approle", map[string]any{"type": "approle"})
	c.do("POST", "sys/auth/userpass", map[string]any{"type": "userpass"})
	for _, v := range values {
		c.eventually("POST", "secret/data/probe/"+v, map[string]any{"data": map[string]any{"v": v}})
	}
	policies := map[string]string{
		"reader": `path "secret/data/probe/*" { capabilities = ["read"] }`,
		"parent": `path "auth/token/create" { capabilities = ["update"] }`,
		"client": `path "secret/data/*" { capabilities = ["create", "read", "update"] }
path "database/creds/*" { capabilities = ["read"] }
path "database/static-creds/*" { capabilities = ["read"] }
path "sys/leases/renew" { capabilities = ["update"] }`,
	}
	for name, text := range policies {
		c.do("PUT", "sys/policies/acl/"+name, map[string]any{"policy": text})
	}
	c.do("POST", "database/config/target", map[string]any{
		"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "scram_iterations": 1, "username": pgtest.Superuser, "password": r.target.Password(),
		"connection_url": fmt.Sprintf("postgresql://{{username}}:{{password}}@%s/%s?sslmode=disable", r.aim.address(), r.base),
	})
	c.do("POST", "database/roles/short", roleOf(shortLease, shortMost))
	c.do("POST", "database/static-roles/fixed", map[string]any{"db_name": "target", "username": "fixed", "rotation_period": "5s"})
	c.do("POST", "auth/approle/role/client", map[string]any{"token_policies": "client", "token_ttl": "2h", "secret_id_num_uses": 0})
	r.roleID = text(c.do("GET", "auth/approle/role/client/role-id", nil), "data", "role_id")
	r.secrets = text(c.do("POST", "auth/approle/role/client/secret-id", map[string]any{"num_uses": 0}), "data", "secret_id")
	for i := range r.nodes { // nodes hear of each other's commits a moment later
		c.node = i
		c.eventually("GET", "secret/data/probe/0", nil)
	}
}

// operator is somebody who does what must succeed, while nothing is wrong.
func (r *run) operator() *client {
	return &client{run: r, id: clients, r: rand.New(rand.NewPCG(0, 0))}
}

func (c *client) do(method, path string, body any) map[string]any {
	c.t.Helper()
	a, err := c.attempt(method, path, body)
	c.must(err)
	return a
}

func (c *client) attempt(method, path string, body any) (map[string]any, error) {
	var o op
	at := c.node
	a := c.ask(&o, c.root.Reveal(), method, path, body, "")
	c.node = at
	if o.Outcome != done {
		return nil, fmt.Errorf("%s %s: %d %s", method, path, o.Status, o.Error)
	}
	return a, nil
}

func (c *client) eventually(method, path string, body any) (a map[string]any) {
	c.t.Helper()
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if a, err = c.attempt(method, path, body); err == nil {
			return a
		}
	}
	c.must(err)
	return nil
}

// torment lets clients work while faults happen. It returns early, and false, if the cluster does not serve again after some.
func (r *run) torment(seed uint64, duration time.Duration, episodes []episode) (s summary, serves bool) {
	r.began = time.Now()
	r.observer = &observer{accounts: map[string]*account{}}
	working, stop := context.WithCancel(r.t.Context())
	watching, rest := context.WithCancel(r.t.Context())
	var all, watch sync.WaitGroup
	watch.Go(func() { r.observer.watch(watching, r.target, r.now) })
	r.watching = func() { rest(); watch.Wait() }
	for id := range clients {
		all.Go(func() {
			c := &client{run: r, id: id, node: id % nodes, r: rand.New(rand.NewPCG(seed, uint64(id)+100))}
			c.work(working)
		})
	}
	s = summary{Faults: map[string]int{}, Recovery: map[string][]time.Duration{}}
	serves = true
	for i, e := range episodes {
		if r.now() > duration {
			break
		}
		sleep(working, time.Second)
		r.t.Logf("%7.1f s: episode %d: %s", r.now().Seconds(), i, e)
		from := r.now()
		if err := e.run(working, r.cluster); err != nil {
			r.t.Errorf("episode %d: %v", i, err)
		}
		healed := r.now()
		err := r.recover(working)
		r.wrong = append(r.wrong, span{from, r.now(), e})
		s.Episodes++
		for _, f := range e {
			s.Faults[f.Kind]++
			s.Recovery[f.Kind] = append(s.Recovery[f.Kind], r.now()-healed)
		}
		if err != nil {
			r.t.Errorf("episode %d (%s): %s after all was healed: %v\n%s", i, e, recoverPatience, err, r.tails())
			serves = false
			break
		}
	}
	stop()
	all.Wait()
	s.Duration, s.Longest, s.LongestAt = r.now(), r.longest, r.longestAt
	return s, serves
}

// recover waits until every node has made a commit.
func (r *run) recover(ctx context.Context) (err error) {
	for end := time.Now().Add(recoverPatience); time.Now().Before(end) && ctx.Err() == nil; sleep(ctx, 50*time.Millisecond) {
		look, cancel := context.WithTimeout(ctx, 5*time.Second)
		err = r.healthy(look)
		cancel()
		if err != nil {
			continue
		}
		c := r.operator()
		for i := range r.nodes {
			c.node = i
			if _, e := c.attempt("POST", "secret/data/recovered", map[string]any{"data": map[string]any{"node": i}}); e != nil {
				err = fmt.Errorf("node %d: %w", i, e)
			}
		}
		if err == nil {
			return nil
		}
	}
	return err
}

func (r *run) tails() string {
	var b strings.Builder
	for _, p := range r.nodes {
		fmt.Fprintf(&b, "%s:\n%s\n", p.name, p.tail(12))
	}
	return b.String()
}

// keep leaves the logs of all that runs beside the history, and tells where.
func (r *run) keep() string {
	dir := filepath.Dir(r.history.file.Name())
	for _, name := range []string{"primary", "standby", "target"} {
		if b, err := os.ReadFile(r.server(name).Log); err == nil {
			_ = os.WriteFile(filepath.Join(dir, name+".log"), b, 0o600)
		}
	}
	for _, p := range r.nodes {
		if b, err := os.ReadFile(filepath.Join(p.dir, "log")); err == nil {
			_ = os.WriteFile(filepath.Join(dir, filepath.Base(p.dir)+".log"), b, 0o600)
		}
	}
	return dir
}

// found is what a check has found; of much, some.
func (s *summary) found(what string, all ...string) (wrong []string) {
	const shown = 12
	s.Checks = append(s.Checks, verdict{what, len(all)})
	for i, w := range all {
		if i == shown {
			return append(wrong, fmt.Sprintf("%s: %d more", what, len(all)-shown))
		}
		wrong = append(wrong, what+": "+w)
	}
	return wrong
}

func problem(err error) []string {
	if err == nil {
		return nil
	}
	return []string{err.Error()}
}

// afterwards asks the cluster, healed and quiet, for what must hold, and returns what does not.
func (r *run) afterwards(s *summary) (wrong []string) {
	c := r.operator()
	check := func(what string, all ...string) { wrong = append(wrong, s.found(what, all...)...) }
	check("what was written is there", r.readBack(c)...)
	check("the static account's password works", problem(r.staticWorks(c))...)
	r.expire()
	check("no account is left", problem(r.settle(c))...)
	r.watching()
	accounts := r.observer.all()
	s.Accounts, s.Leases, s.Looks = len(accounts), len(r.ledger.grants), r.observer.looks
	check("no credential outlives its lease", outlived(accounts, r.ledger.grants, r.wrong)...)
	t, err := r.readTrail(c)
	check("the trail can be read", problem(err)...)
	s.Records = t.Records
	check("nothing took effect without its record", unrecorded(r.history.ops, accounts, t)...)
	check("the trail has no gap", t.Gaps...)
	return wrong
}

// inspect checks what is left when all nodes have ended: the store, and the history.
func (r *run) inspect(s *summary) (wrong []string) {
	check := func(what string, all ...string) { wrong = append(wrong, s.found(what, all...)...) }
	r.watching()
	var all sync.WaitGroup
	for _, p := range r.nodes {
		all.Go(p.stop)
		s.Restarts += p.ended
	}
	all.Wait()
	check("the chain verifies", problem(r.verify(s))...)
	s.count(r.history.ops)
	s.Silence = silences(r.history.ops, r.wrong)
	began := time.Now()
	objects, order := linearizable(r.history.ops, checkPatience)
	s.Objects, s.Checking = objects, time.Since(began)
	check("histories are linearizable", order...)
	check("answers are explained", r.unexpected...)
	check("the history is kept", problem(r.history.close())...)
	return wrong
}

// readBack reads every secret, as one more operation of its history, which so says whether it has what was acknowledged.
func (r *run) readBack(c *client) (wrong []string) {
	seen := map[string]bool{}
	for _, o := range slices.Clone(r.history.ops) {
		if o.Model != "kv" || seen[o.Object] {
			continue
		}
		seen[o.Object] = true
		for try := 0; ; try++ {
			read := op{Model: "kv", Object: o.Object, Do: "read"}
			c.node = (c.node + 1) % nodes
			a := c.ask(&read, c.root.Reveal(), "GET", "secret/data/"+o.Object, nil, "404")
			if read.Outcome == done {
				read.Value, read.Version = text(a, "data", "data", "v"), number(a, "data", "metadata", "version")
			}
			if r.record(read); read.Outcome == done || read.Outcome == refused {
				break
			}
			if try == 10 {
				wrong = append(wrong, fmt.Sprintf("%s cannot be read: %s", o.Object, read.Error))
				break
			}
		}
	}
	return wrong
}

// staticWorks logs in at the target with the password that lessor tells.
func (r *run) staticWorks(c *client) (err error) {
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		a, e := c.attempt("GET", "database/static-creds/fixed", nil)
		if err = e; err != nil {
			continue
		}
		if err = r.loginAtTarget(r.t.Context(), "fixed", text(a, "data", "password")); err == nil {
			return nil
		}
	}
	return err
}

// expire waits until the accounts are gone whose leases have ended by themselves, or should be; after a long run, those that nobody
// confirmed, too.
func (r *run) expire() {
	for end := r.now() + unconfirmed + lateBy; r.now() < end; sleep(r.t.Context(), lookEvery) {
		waiting := 0
		for _, a := range r.observer.all() {
			ends := a.end()
			if g := r.ledger.of(a.Name); g != nil {
				ends = g.end()
			} else if !r.long {
				continue
			}
			if !a.Gone && ends < end-lateBy {
				waiting++
			}
		}
		if waiting == 0 {
			return
		}
	}
}

// settle revokes all that lives, and waits until the target has no account of lessor's.
func (r *run) settle(c *client) (err error) {
	for end := time.Now().Add(quietPatience); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err != nil || len(r.observer.left()) > 0 {
			_, err = c.attempt("POST", "sys/leases/revoke-prefix/database/creds", map[string]any{})
		} else if sleep(r.t.Context(), 2*lookEvery); len(r.observer.left()) == 0 {
			return nil
		}
	}
	return errors.Join(err, fmt.Errorf("%d accounts are left at the target after %s: %s", len(r.observer.left()), quietPatience, strings.Join(r.observer.left(), ", ")))
}

// readTrail reads the whole audit trail, and leaves it beside the history.
func (r *run) readTrail(c *client) (t *trail, err error) {
	t = newTrail()
	file, err := os.OpenFile(filepath.Join(filepath.Dir(r.history.file.Name()), "trail.jsonl"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	kept := json.NewEncoder(file)
	for cursor := ""; ; {
		var a map[string]any
		for range 5 {
			if a, err = c.attempt("GET", "sys/lessor/audit/records?limit=2000&after="+cursor, nil); err == nil {
				break
			}
		}
		if err != nil {
			return t, err
		}
		records, _ := at(a, []string{"data", "records"}).([]any)
		for _, e := range records {
			t.add(e.(map[string]any))
			if err := kept.Encode(e); err != nil {
				return t, err
			}
		}
		if cursor = text(a, "data", "next"); cursor == "" {
			return t, nil
		}
	}
}

// add takes down one record as it is told.
func (t *trail) add(rec map[string]any) {
	t.follows(place{uint64(number(rec, "seq")), uint64(number(rec, "index"))})
	if lease := text(rec, "lease_id"); lease != "" {
		t.Marks[markOf(lease)] = true
	}
	if text(rec, "phase") == "begun" || text(rec, "outcome") != "granted" {
		return
	}
	t.Requests[text(rec, "request_id")] = true
	operation := text(rec, "operation")
	if operation == "create" {
		operation = "update"
	}
	t.Acts[operation+" "+text(rec, "path")]++
}

// verify checks the whole store, without a node.
func (r *run) verify(s *summary) error {
	c, err := config.Flags([]string{"-config", filepath.Join(r.nodes[0].dir, "lessor.hcl")})
	if err != nil {
		return err
	}
	v, err := node.Verify(context.Background(), c, node.Options{Version: "torture"}, nil)
	s.Commits = v.Head
	return errors.Join(err, v.Broken)
}

// verdict is one check, and how much it found.
type verdict struct {
	What  string
	Found int
}

// summary is what a run tells.
type summary struct {
	Seed      uint64
	Duration  time.Duration
	Episodes  int
	Faults    map[string]int
	Recovery  map[string][]time.Duration // from the end of the episode until all nodes had made a commit, by kind of fault
	Silence   map[string]time.Duration   // the longest time without acknowledgements meanwhile
	Outcomes  map[string]map[outcome]int // by operation
	Ops       int
	Objects   int
	Checking  time.Duration
	Longest   time.Duration
	LongestAt time.Duration
	Accounts  int
	Leases    int
	Looks     int
	Records   int
	Commits   uint64
	Restarts  int
	Checks    []verdict
}

func (s *summary) count(ops []op) {
	s.Ops, s.Outcomes = len(ops), map[string]map[outcome]int{}
	for _, o := range ops {
		name := strings.TrimSpace(o.Model + " " + o.Do)
		if s.Outcomes[name] == nil {
			s.Outcomes[name] = map[outcome]int{}
		}
		s.Outcomes[name][o.Outcome]++
	}
}

// String is the summary as BENCHMARKS.md has it.
func (s summary) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d nodes, %d clients, seed %d: %s, %d episodes of faults; %d operations on %d objects, %d commits, %d audit records; "+
		"%d leases known to clients, %d accounts seen at the target in %d looks; nodes ended by themselves %d times. "+
		"Longest time without any acknowledgement: %.1f s (at %.0f s). Histories checked in %.1f s.\n\n",
		nodes, clients, s.Seed, s.Duration.Round(time.Second), s.Episodes, s.Ops, s.Objects, s.Commits, s.Records, s.Leases, s.Accounts, s.Looks, s.Restarts,
		s.Longest.Seconds(), s.LongestAt.Seconds(), s.Checking.Seconds())
	b.WriteString("| operation | ok | refused | nothing done | unknown |\n|---|---:|---:|---:|---:|\n")
	for _, name := range sorted(s.Outcomes) {
		n := s.Outcomes[name]
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d |\n", name, n[done], n[refused], n[void], n[unknown])
	}
	b.WriteString("\n| fault | times | longest time without any acknowledgement meanwhile | all serve again: median | longest |\n|---|---:|---:|---:|---:|\n")
	for _, name := range sorted(s.Faults) {
		d := slices.Sorted(slices.Values(s.Recovery[name]))
		fmt.Fprintf(&b, "| %s | %d | %.1f s | %.1f s | %.1f s |\n", name, s.Faults[name], s.Silence[name].Seconds(), d[len(d)/2].Seconds(), d[len(d)-1].Seconds())
	}
	b.WriteString("\n| afterwards | found against it |\n|---|---:|\n")
	for _, c := range s.Checks {
		fmt.Fprintf(&b, "| %s | %d |\n", c.What, c.Found)
	}
	return b.String()
}

func sorted[K cmp.Ordered, V any](m map[K]V) (keys []K) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
