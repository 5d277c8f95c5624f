package postgres

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/pgtest"
)

// The limits are the same statements straight through pgx, over as many sessions of a server that flushes. Compare
// /straight with /lessor: the ratio of their rates is what lessor's marks, locks, hashing and checks cost.

const sessions = 4

func straight(b *testing.B, s *pgtest.Server) []*pgx.Conn {
	all := make([]*pgx.Conn, sessions)
	for i := range all {
		all[i] = s.Connect(b, "")
	}
	return all
}

func over(n int, f func(i int)) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range sessions {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}

func report(b *testing.B, n int) {
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "roles/s")
}

func drop(b *testing.B, s *pgtest.Server, as []database.Account) {
	d := connection(b, s, "postgres")
	for _, err := range d.Remove(context.Background(), as) {
		if err != nil {
			b.Error(err)
		}
	}
}

func BenchmarkCreate(b *testing.B) {
	s := pgtest.Start(b, pgtest.Fsync())
	for _, iterations := range []int{1, 4096} {
		b.Run(fmt.Sprintf("iterations=%d/straight", iterations), func(b *testing.B) {
			conns := straight(b, s)
			as := make([]database.Account, b.N)
			statements := make([]string, b.N)
			hashed, err := verifier("password", []byte("0123456789abcdef"), iterations)
			if err != nil {
				b.Fatal(err)
			}
			for i := range as {
				as[i] = account()
				v, err := newValues(as[i].Username, hashed, as[i].Until)
				if err != nil {
					b.Fatal(err)
				}
				statements[i] = strings.TrimSuffix(v.script(as[i].Creation), "\n;")
			}
			free := queue(conns)
			b.ResetTimer()
			over(b.N, func(i int) {
				c := <-free
				if _, err := c.Exec(context.Background(), statements[i], pgx.QueryExecModeSimpleProtocol); err != nil {
					b.Error(err)
				}
				free <- c
			})
			b.StopTimer()
			report(b, b.N)
			for i := range as {
				if _, err := conns[0].Exec(context.Background(), `DROP ROLE "`+as[i].Username+`"`); err != nil {
					b.Error(err)
				}
			}
		})
		b.Run(fmt.Sprintf("iterations=%d/lessor", iterations), func(b *testing.B) {
			d := connection(b, s, "postgres", func(c *database.Connection, _ *database.Secrets) { c.ScramIterations = int64(iterations) })
			as := make([]database.Account, b.N)
			for i := range as {
				as[i] = account()
			}
			b.ResetTimer()
			over(b.N, func(i int) {
				if err := d.Create(context.Background(), as[i]); err != nil {
					b.Error(err)
				}
			})
			b.StopTimer()
			report(b, b.N)
			drop(b, s, as)
		})
	}
}

func BenchmarkRemove(b *testing.B) {
	s := pgtest.Start(b, pgtest.Fsync())
	root := s.Connect(b, "")
	if _, err := root.Exec(b.Context(), "CREATE TABLE IF NOT EXISTS granted (n int)"); err != nil {
		b.Fatal(err)
	}
	made := func(b *testing.B, grant bool) []database.Account {
		d := connection(b, s, "postgres")
		as := make([]database.Account, b.N)
		for i := range as {
			as[i] = account()
			if grant {
				as[i].Creation = append(as[i].Creation, `GRANT SELECT ON granted TO "{{name}}"`)
			}
		}
		over(b.N, func(i int) {
			if err := d.Create(context.Background(), as[i]); err != nil {
				b.Error(err)
			}
		})
		return as
	}
	for _, grant := range []bool{false, true} {
		name := map[bool]string{false: "bare", true: "granted"}[grant]
		b.Run(name+"/straight", func(b *testing.B) {
			as, conns := made(b, grant), straight(b, s)
			free := queue(conns)
			b.ResetTimer()
			over(b.N, func(i int) {
				sql := `DROP ROLE "` + as[i].Username + `"`
				if grant {
					sql = `DROP OWNED BY "` + as[i].Username + `";` + sql
				}
				c := <-free
				for {
					_, err := c.Exec(context.Background(), sql, pgx.QueryExecModeSimpleProtocol)
					if err == nil {
						break
					}
					if !inTheWay(err) {
						b.Error(err)
						break
					}
				}
				free <- c
			})
			report(b, b.N)
		})
		b.Run(name+"/lessor", func(b *testing.B) {
			as := made(b, grant)
			d := connection(b, s, "postgres")
			b.ResetTimer()
			for _, err := range d.Remove(context.Background(), as) {
				if err != nil {
					b.Error(err)
				}
			}
			report(b, b.N)
		})
	}
}

func queue(conns []*pgx.Conn) chan *pgx.Conn {
	free := make(chan *pgx.Conn, len(conns))
	for _, c := range conns {
		free <- c
	}
	return free
}

func BenchmarkVerifier(b *testing.B) {
	for _, n := range []int{1, 4096} {
		b.Run(fmt.Sprintf("iterations=%d", n), func(b *testing.B) {
			for b.Loop() {
				if _, err := verifier("a password of 26 letters..", salt("lease"), n); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
