package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strconv"

	"github.com/jackc/pgx/v5"
)

// footprint is what one request leaves in the database: how many rows, and what their names and values come to, in bytes.
type footprint struct {
	rows, name, value int
}

// limitTable is what the limit writes to. Several limits, one for each node, share it.
const limitTable = `CREATE TABLE IF NOT EXISTS bench_limit (name bytea PRIMARY KEY, bytes bytea NOT NULL)`

// at is the database at url with a footprint, as toRows takes it.
func (f footprint) at(database string) string {
	return database + "#" + url.Values{
		"rows": {strconv.Itoa(f.rows)}, "name": {strconv.Itoa(f.name)}, "value": {strconv.Itoa(f.value)},
	}.Encode()
}

// toRows keeps records as rows in PostgreSQL: those of all requests that wait in one INSERT, which is one commit. One row of each
// request has a name in order, as audit records have, the others have names by chance.
func toRows(target string) (keep func(n int) error, err error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	said, err := url.ParseQuery(u.Fragment)
	if err != nil {
		return nil, err
	}
	var f footprint
	for name, to := range map[string]*int{"rows": &f.rows, "name": &f.name, "value": &f.value} {
		if *to, err = strconv.Atoi(said.Get(name)); err != nil {
			return nil, fmt.Errorf("the limit's %s: %w", name, err)
		}
	}
	u.Fragment = ""
	ctx := context.Background()
	c, err := pgx.Connect(ctx, u.String())
	if err != nil {
		return nil, err
	}
	chance := rand.NewChaCha8([32]byte{byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32())})
	order := chance.Uint64() >> 1
	value := make([]byte, f.value)
	_, _ = chance.Read(value)
	var names, values [][]byte
	return func(n int) error {
		names, values = names[:0], values[:0]
		space := make([]byte, n*f.rows*f.name)
		_, _ = chance.Read(space)
		for i := range n * f.rows {
			name := space[i*f.name : (i+1)*f.name]
			if i%f.rows == 0 {
				order++
				binary.BigEndian.PutUint64(name, order)
			}
			names, values = append(names, name), append(values, value)
		}
		_, err := c.Exec(ctx, `INSERT INTO bench_limit SELECT * FROM unnest($1::bytea[], $2::bytea[])`, names, values)
		return err
	}, nil
}
