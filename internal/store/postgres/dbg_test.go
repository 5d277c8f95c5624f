package postgres
import ("testing";"time";"fmt";"github.com/lessor-dev/lessor/internal/store";"github.com/lessor-dev/lessor/internal/pgtest")
func TestDbg(t *testing.T){
	s := pgtest.Own(t, pgtest.Fsync())
	db := node(t, s.URL(pgtest.Superuser, s.Password(), s.Database(t)), "node")
	add(t.Context(), db, "n")
	s.Kill()
	t0:=time.Now()
	_, err := add(t.Context(), db, "n")
	fmt.Println("add", time.Since(t0), err)
	t0=time.Now()
	fmt.Println("up", s.Up(), time.Since(t0))
	for range 5 {
	t0=time.Now()
	fmt.Println("ping", s.Port)
	c, err := s.Login(t.Context(), pgtest.Superuser, s.Password(), "")
	fmt.Println(err, time.Since(t0)); if err==nil {c.Close(t.Context())}
	t0=time.Now()
	snap, err := db.View()
	if err!=nil {fmt.Println(err);continue}
	_, err = snap.Get(store.Key{Table: store.Engine, Name: "n"})
	fmt.Println("get", err, time.Since(t0))
	snap.Close()
	}
}
