package core_test

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

const drills = "sys/lessor/drills"

// whole is the report of a drill that restored up to a commit of the server's.
func (g *gate) whole(seq uint64) string {
	g.Helper()
	_, hash, err := g.db.Header(seq)
	if err != nil {
		g.Fatal(err)
	}
	return fmt.Sprintf(`{"sequence":%d,"hash":%q,"restore_time":"2.5s","verify_time":1,"bytes":3000,"rows":20,"records":10}`, seq, hex.EncodeToString(hash[:]))
}

// metric is the value of a gauge of the core's.
func (g *gate) metric(name string) float64 {
	g.Helper()
	value, ok := g.gauges()[name]
	if !ok {
		g.Fatalf("there is no metric %s", name)
	}
	return value
}

// gauges are those of the core's that have no labels.
func (g *gate) gauges() map[string]float64 {
	g.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(g.core)
	families, err := registry.Gather()
	if err != nil {
		g.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		if m := f.GetMetric()[0]; m.Gauge != nil && len(m.Label) == 0 {
			all[f.GetName()] = m.Gauge.GetValue()
		}
	}
	return all
}

// What is reported of drills is kept, on record and in the metrics; a failure does not take away when the last good one was.
func TestDrillsAreReported(t *testing.T) {
	g := start(t)
	for _, name := range []string{"age_seconds", "backup_age_seconds", "duration_seconds", "success"} {
		if v := g.metric("lessor_drill_" + name); v != -1 {
			t.Errorf("without a drill, %s is %g", name, v)
		}
	}
	g.same("no drills", g.do(g.root, lessor.Read, drills, "").Data, `{"last":null,"last_good":null,"last_good_age_seconds":null,"last_good_backup_age_seconds":null}`)
	g.refused(api.NotFound, g.root, lessor.List, drills+"/", "")

	g.kv2("secret")
	seq := g.db.Head().Seq
	g.clock.Advance(time.Hour)
	g.policy("drill", `path "sys/lessor/drills" { capabilities = ["update", "sudo"] }`)
	timer := g.token(`{"policies":["drill"],"display_name":"drill"}`)
	told := `{"ok":true,"error":"","reported_by":"token-drill","sequence":` + fmt.Sprint(seq) + `,"backup_age_seconds":3600,"restore_seconds":2.5,"verify_seconds":1,
		"bytes":3000,"rows":20,"records":10,"recovery":false,"time":"*","backup_time":"*"}`
	g.same("the report", g.do(timer, lessor.Update, drills, g.whole(seq)).Data, told)
	if rec := g.last(drills); len(rec) == 0 || rec[0].Note != "a drill restored a backup that is whole" || rec[0].Name != "token-drill" {
		t.Errorf("on record: %+v", rec)
	}
	g.clock.Advance(24 * time.Hour)
	failed := g.do(timer, lessor.Update, drills, `{"error":"no backup of that time","bytes":7}`).Data
	g.same("the failure", failed, `{"ok":false,"error":"no backup of that time","reported_by":"token-drill","time":"*"}`)
	if rec := g.last(drills); rec[0].Note != "a drill failed" {
		t.Errorf("on record: %+v", rec)
	}
	read := g.do(g.root, lessor.Read, drills, "").Data
	if read["last_good_age_seconds"] != float64(24*3600) || read["last_good_backup_age_seconds"] != float64(25*3600) {
		t.Errorf("the last good one: %v", read)
	}
	g.same("the last one", read["last"].(map[string]any), `{"ok":false,"error":"no backup of that time","reported_by":"token-drill","time":"*"}`)
	g.same("the last good one", read["last_good"].(map[string]any), told)
	for name, want := range map[string]float64{"age_seconds": 24 * 3600, "backup_age_seconds": 25 * 3600, "duration_seconds": 3.5, "success": 0} {
		if v := g.metric("lessor_drill_" + name); v < want || v > want+1 {
			t.Errorf("%s is %g, not %g", name, v, want)
		}
	}

	// The latest are kept, and the last good one.
	for range 40 {
		g.clock.Advance(time.Minute)
		g.do(timer, lessor.Update, drills, `{"error":"the disk is full"}`)
	}
	list := g.do(g.root, lessor.List, drills+"/", "").Data
	keys := list["keys"].([]string)
	if len(keys) != 33 {
		t.Errorf("%d drills are kept: %v", len(keys), keys)
	}
	g.same("the oldest that is kept", list["key_info"].(map[string]any)[keys[0]].(map[string]any), told)
	g.do(timer, lessor.Update, drills, g.whole(g.db.Head().Seq))
	keys = g.do(g.root, lessor.List, drills+"/", "").Data["keys"].([]string)
	if len(keys) != 32 || g.metric("lessor_drill_success") != 1 {
		t.Errorf("after a good one: %v", keys)
	}
}

// What cannot be read is no drill that was never made: the metrics say nothing of it.
func TestDrillsThatCannotBeRead(t *testing.T) {
	g := start(t)
	if all := g.gauges(); all["lessor_drill_age_seconds"] != -1 {
		t.Fatalf("without a drill: %v", all)
	}
	var txn store.Txn
	txn.Put(store.Config, store.MountKey(lessor.RootNamespace, "", "drill/20261129T000000.000Z-x"), []byte("no drill"))
	if _, err := g.db.Commit(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	all := g.gauges()
	for name, value := range all {
		if strings.HasPrefix(name, "lessor_drill_") {
			t.Errorf("%s is %g", name, value)
		}
	}
	if len(all) == 0 {
		t.Error("nothing else is told")
	}
}

// What cannot have been a drill of this store is refused, and so is who may not report.
func TestDrillsOfOthersAreRefused(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	seq := g.db.Head().Seq
	good := g.whole(seq)
	g.policy("writer", `path "*" { capabilities = ["create", "read", "update", "patch", "delete", "list"] }`)
	for _, verb := range []lessor.Verb{lessor.Update, lessor.Read, lessor.List} {
		g.refused(api.Denied, g.token(`{"policies":["writer"]}`), verb, drills, good)
	}
	_, hash, err := g.db.Header(seq)
	if err != nil {
		t.Fatal(err)
	}
	number, mine := fmt.Sprintf(`"sequence":%d`, seq), hex.EncodeToString(hash[:])
	for what, data := range map[string]string{
		"another commit": strings.Replace(good, number, `"sequence":1`, 1), "one to come": strings.Replace(good, number, `"sequence":3000`, 1),
		"another hash": strings.Replace(good, mine, strings.Repeat("00", 32), 1), "half a hash": strings.Replace(good, mine, mine[:32], 1),
		"no hash": `{` + number + `}`, "no number": `{"hash":"` + mine + `"}`, "no hex": strings.Replace(good, mine, "x"+mine[1:], 1), "nothing": `{}`,
		"less than nothing": strings.Replace(good, `"bytes":3000`, `"bytes":-1`, 1), "an endless error": `{"error":"` + strings.Repeat("x", 513) + `"}`,
		"an error of two lines": `{"error":"one\ntwo"}`,
	} {
		if text := g.refused(api.Invalid, g.root, lessor.Update, drills, data); text == "" {
			t.Errorf("%s is refused without a word", what)
		}
	}
	v, err := g.db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	prefix := store.MountKey(lessor.RootNamespace, "", "drill/")
	for row := range v.Scan(store.Config, prefix, store.PrefixEnd(prefix)) {
		t.Errorf("a refused report left %s", row.Key)
	}
}
