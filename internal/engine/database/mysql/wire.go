package mysql

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// wire is a session with the server, as the pool keeps it.
type wire struct {
	driver.Conn
	pool       *server
	generation int64
	maria      bool
	spent      bool // not to be used again
	clock      reading
	seeing     int8 // whether lessor's account sees others' sessions: 0 unknown, 1 yes, -1 no
}

// reading is what a server's clock said.
type reading struct {
	server float64   // Unix seconds
	before time.Time // it was not asked before
}

// IsValid says whether the pool may keep it.
func (w *wire) IsValid() bool {
	v, ok := w.Conn.(driver.Validator)
	return !w.spent && w.generation == w.pool.generation.Load() && (!ok || v.IsValid())
}

// ResetSession sees whether it still stands, before it is used again.
func (w *wire) ResetSession(ctx context.Context) error {
	if !w.IsValid() {
		return driver.ErrBadConn
	}
	if r, ok := w.Conn.(driver.SessionResetter); ok {
		return r.ResetSession(ctx)
	}
	return nil
}

// greeting is what each session begins with: the grammar that statements are checked by, no account that a GRANT makes in passing, times in UTC.
const greeting = "SET SESSION sql_mode=CONCAT('STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION',IF(VERSION() LIKE '%MariaDB%',',NO_AUTO_CREATE_USER','')),autocommit=1;" +
	"SET time_zone='+00:00';SELECT VERSION(),UNIX_TIMESTAMP(SYSDATE(6))"

// Connect opens a session for the pool.
func (d *server) Connect(ctx context.Context) (driver.Conn, error) {
	var opened *wire
	wrong := func(err error) bool { return code(err) == wrongPassword }
	err := d.logins.Try(wrong, func(password lessor.Secret) error {
		generation := d.generation.Load()
		c, err := d.dial(ctx, d.cfg.User, d.cfg.DBName, password.Reveal())
		opened = &wire{Conn: c, pool: d, generation: generation}
		return err
	})
	if err != nil {
		return nil, err
	}
	return d.greet(ctx, opened)
}

// Driver is for database/sql, which asks nobody but a Connector.
func (d *server) Driver() driver.Driver { return mysql.MySQLDriver{} }

// dial opens a session of an account.
func (d *server) dial(ctx context.Context, username, name, password string) (driver.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	cfg := d.cfg.Clone()
	cfg.User, cfg.DBName, cfg.Passwd = username, name, password
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		c, err := connector.Connect(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, mysql.ErrMalformPkt) && try < greetings:
			// The library cuts off a zero that a challenge of MariaDB's ed25519 ends with, one of 256, and gives up: nothing was tried yet.
		default:
			return c, err
		}
	}
}

// greetings are how many a server may have to make for one login.
const greetings = 8

func (d *server) greet(ctx context.Context, w *wire) (driver.Conn, error) {
	w.clock.before = time.Now()
	rows, err := w.run(ctx, greeting)
	if err == nil && len(rows) != 1 {
		err = &refusal{"the database does not tell its version"}
	}
	if err == nil {
		w.maria = strings.Contains(rows[0][0], "MariaDB")
		w.clock.server, err = strconv.ParseFloat(rows[0][1], 64)
	}
	if err != nil {
		_ = w.Close()
		return nil, err
	}
	return w, nil
}

// run sends a script, all of it in one message, and returns the rows of all its statements. The first that fails ends it.
func (w *wire) run(ctx context.Context, script string) (all [][]string, err error) {
	q, ok := w.Conn.(driver.QueryerContext)
	if !ok {
		return nil, errors.New("mysql: a session that takes no statements")
	}
	rows, err := q.QueryContext(ctx, script, nil)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	sets := rows.(driver.RowsNextResultSet)
	for {
		values := make([]driver.Value, len(rows.Columns()))
		for {
			if err := rows.Next(values); err == io.EOF {
				break
			} else if err != nil {
				return all, err
			}
			row := make([]string, len(values))
			for i, v := range values {
				switch v := v.(type) {
				case nil:
				case []byte:
					row[i] = string(v)
				default:
					row[i] = fmt.Sprint(v)
				}
			}
			all = append(all, row)
		}
		if err := sets.NextResultSet(); err == io.EOF {
			return all, nil
		} else if err != nil {
			return all, err
		}
	}
}
