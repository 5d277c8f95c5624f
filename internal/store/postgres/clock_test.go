package postgres

import (
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// handClock is a clock whose monotonic clock is set by hand.
func handClock() (c *clock, at *time.Duration) {
	at = new(time.Duration)
	return &clock{elapsed: func() time.Duration { return *at }}, at
}

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func TestClockFollowsTheDatabase(t *testing.T) {
	c, at := handClock()
	read := func(now time.Time, trip time.Duration) {
		sent := *at
		*at += trip
		c.read(now, sent, *at)
	}
	tells := func(what string, want time.Time) {
		t.Helper()
		if got := c.Now(); !got.Equal(want) {
			t.Errorf("%s: %s, not %s", what, got, want)
		}
	}
	read(noon, 2*time.Millisecond)
	tells("half the trip later", noon.Add(time.Millisecond))
	*at += time.Second
	tells("what passed since", noon.Add(time.Second+time.Millisecond))
	read(noon.Add(time.Hour), 4*time.Second)
	tells("a reading that took too long to mean anything", noon.Add(5*time.Second+time.Millisecond))
	read(noon.Add(7*time.Second), 2*time.Millisecond)
	tells("ahead is followed at once", noon.Add(7*time.Second+time.Millisecond))

	read(noon, 2*time.Millisecond) // a server took over that is seven seconds behind
	told := c.Now()
	if told.Before(noon.Add(7 * time.Second)) {
		t.Errorf("time ran back to %s", told)
	}
	behind := told.Sub(noon.Add(time.Millisecond))
	*at += 2 * time.Second
	tells("half the pace", told.Add(time.Second))
	*at += 2 * behind
	tells("once the database has caught up", noon.Add(2*time.Second+2*behind+time.Millisecond))
}

// Time never runs back, whatever the database says and however long it takes.
func TestClockNeverRunsBack(t *testing.T) {
	c, at := handClock()
	last := time.Time{}
	for i := range 10000 {
		n := uint64(i) * 0x9e3779b97f4a7c15
		jump := time.Duration(int64(n>>20)%20000-10000) * time.Millisecond
		sent := *at
		*at += time.Duration(n>>50) * time.Microsecond
		c.read(noon.Add(*at+jump), sent, *at)
		*at += time.Duration(n>>56) * time.Millisecond
		now := c.Now()
		if now.Before(last) {
			t.Fatalf("step %d: %s after %s", i, now, last)
		}
		last = now
	}
}

// shifted is the URL of a database whose clock is another than the machine's, by what set says.
func shifted(t *testing.T) (url string, set func(by string)) {
	url = database(t)
	sql(t, url, `CREATE SCHEMA fake; CREATE TABLE fake.shift (by interval); INSERT INTO fake.shift VALUES ('0');
CREATE FUNCTION fake.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT pg_catalog.clock_timestamp() + by FROM fake.shift'`)
	return url + "&search_path=fake,pg_catalog", func(by string) {
		t.Helper()
		sql(t, url, `UPDATE fake.shift SET by = '`+by+`'`)
	}
}

// within is how exactly c was read.
func within(c *clock) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.error + (c.elapsed()-c.at)/pace + time.Millisecond
}

func timed(t *testing.T, url string) *store.DB {
	t.Helper()
	db, err := store.Open(connect(t, url), store.Options{Clock: lessor.SystemClock{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// Nodes whose machines' clocks are an hour off have one lease time, the database's, as exactly as each could read it.
func TestNodesHaveOneTime(t *testing.T) {
	url, set := shifted(t)
	set("1 hour")
	a, b := connect(t, url), connect(t, url)
	defer a.Close()
	defer b.Close()
	for range 20 {
		before, machine := a.clock.Now(), time.Now()
		between := b.clock.Now()
		after := a.clock.Now()
		off := within(a.clock) + within(b.clock)
		if between.Before(before.Add(-off)) || between.After(after.Add(off)) {
			t.Errorf("one node says %s, the other %s", before, between)
		}
		if off := between.Sub(machine.Add(time.Hour)).Abs(); off > time.Second {
			t.Errorf("lease time is %s off the database's", off)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A failover comes to a server whose clock is behind, then to one whose clock is ahead by minutes.
func TestDatabaseClockJumps(t *testing.T) {
	url, set := shifted(t)
	db := timed(t, url)
	earliest, from, latest := time.Now(), db.Now(), time.Now() // it may take a while from one to the next
	// until waits for something, while time goes on at half the machine's pace at least, and at its pace at most.
	until := func(what string, holds func() bool) {
		t.Helper()
		last := db.Now()
		for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(5 * time.Millisecond) {
			least, now, most := time.Since(latest), db.Now(), time.Since(earliest)
			if now.Before(last) {
				t.Fatalf("%s: time ran back, to %s from %s", what, now, last)
			}
			if told := now.Sub(from); told < least/2-100*time.Millisecond || told > most+100*time.Millisecond {
				t.Fatalf("%s: %s of lease time in %s to %s", what, told, least, most)
			}
			if last = now; time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	lags := func() bool {
		least := time.Since(latest)
		return db.Now().Sub(from) < least-200*time.Millisecond
	}
	set("-3 s")
	until("slower while the database's is behind", lags)
	if err := db.ClockAlarm(); err != nil {
		t.Error(err)
	}
	set("10 min")
	until("an alarm", func() bool { return db.ClockAlarm() != nil })
	set("0")
	until("the end of the alarm", func() bool { return db.ClockAlarm() == nil })
}
