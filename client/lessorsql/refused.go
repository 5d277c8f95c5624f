package lessorsql

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
)

// refused reports whether a login that failed may have failed for its credential. Where a driver's error has a code, that tells; a database that was
// not reached, or went away, has refused nothing; of other errors it is not known, so they may.
func refused(err error) bool {
	if coded, ok := errors.AsType[sqlState](err); ok { // pgx, lib/pq and others
		return strings.HasPrefix(coded.SQLState(), "28")
	}
	if number, ok := mysqlNumber(err); ok {
		return slices.Contains(mysqlRefusals, number)
	}
	_, network := errors.AsType[net.Error](err)
	return !network && !slices.ContainsFunc(
		[]error{context.Canceled, context.DeadlineExceeded, driver.ErrBadConn, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed},
		func(e error) bool { return errors.Is(err, e) },
	)
}

// sqlState is an error with a code of five characters, whose class 28 is "invalid authorization specification".
type sqlState interface {
	error
	SQLState() string
}

// mysqlRefusals are what MySQL and MariaDB say of a wrong password, an account that is gone (1045, 1698), one that is locked (3118, 4151) or has to change
// its password (1862).
var mysqlRefusals = []uint64{1045, 1698, 1862, 3118, 4151}

// mysqlNumber is the number of an error of go-sql-driver/mysql, which this package does not import: it would be in every program.
func mysqlNumber(err error) (uint64, bool) {
	for _, one := range unwrapped(err) {
		v := reflect.Indirect(reflect.ValueOf(one))
		if v.Kind() != reflect.Struct || v.Type().Name() != "MySQLError" {
			continue
		}
		if n := v.FieldByName("Number"); n.IsValid() && n.CanUint() {
			return n.Uint(), true
		}
	}
	return 0, false
}

// unwrapped are an error and all that it wraps.
func unwrapped(err error) []error {
	all := []error{err}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			all = append(all, unwrapped(inner)...)
		}
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			all = append(all, unwrapped(inner)...)
		}
	}
	return all
}
