package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Archive makes the server archive its WAL, so that RestoreTo can take it back to a moment after BaseBackup.
func Archive() Option { return func(o *options) { o.fsync, o.archive = true, true } }

func (s *Server) archive() string { return filepath.Join(s.Dir, "archive") }
func (s *Server) base() string    { return filepath.Join(s.Dir, "base") }

// archiving makes the folder of the archive, and is what postgresql.conf says of it.
func (s *Server) archiving() (string, error) {
	if err := os.Mkdir(s.archive(), 0o700); err != nil {
		return "", err
	}
	if err := s.Chown(s.archive()); err != nil {
		return "", err
	}
	return fmt.Sprintf("wal_level = replica\narchive_mode = on\narchive_command = 'cp %%p %s/%%f'\nrestore_command = 'cp %s/%%f %%p'\n", s.archive(), s.archive()), nil
}

// BaseBackup takes a base backup with pg_basebackup, as an operator does; it takes the place of an earlier one.
func (s *Server) BaseBackup() error {
	if err := os.RemoveAll(s.base()); err != nil {
		return err
	}
	cmd := s.program("pg_basebackup", "-D", s.base(), "-h", s.Socket, "-p", fmt.Sprint(s.Port), "-U", Superuser,
		"--checkpoint=fast", "--wal-method=stream", "--no-sync")
	cmd.Env = append(cmd.Env, "PGPASSWORD="+password)
	return s.Do(cmd)
}

// RestoreTo stops the server, puts the base backup in the place of its data, and starts it: with all that was committed by a moment, by
// the server's clock, and nothing that came after. Something must have been committed after it.
func (s *Server) RestoreTo(at time.Time) error {
	if err := s.Down(); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(s.data()), os.Rename(s.base(), s.data())); err != nil {
		return err
	}
	if err := s.Write(filepath.Join(s.data(), "recovery.signal"), nil); err != nil {
		return err
	}
	err := s.Append(filepath.Join(s.data(), "postgresql.conf"),
		fmt.Sprintf("recovery_target_time = '%s'\nrecovery_target_action = promote\n", at.UTC().Format("2006-01-02 15:04:05.000000+00")))
	if err != nil {
		return err
	}
	if err := s.Up(); err != nil {
		return err
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		switch recovering, err := s.recovering(); {
		case err == nil && !recovering:
			return nil
		case time.Now().After(deadline):
			return errors.Join(errors.New("PostgreSQL did not end its recovery"), err)
		}
	}
}

func (s *Server) recovering() (yes bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := s.Login(ctx, Superuser, password, "")
	if err != nil {
		return false, err
	}
	defer c.Close(ctx)
	err = c.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&yes)
	return yes, err
}
