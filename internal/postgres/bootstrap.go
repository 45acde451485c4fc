package postgres

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

const scramIterations = 4096

// ScramVerifier is what PostgreSQL stores for a password. It is computed here so that the password never appears in a
// statement, and so in no log. salt should be 16 random bytes.
func ScramVerifier(password string, salt []byte) (string, error) {
	salted, err := pbkdf2.Key(sha256.New, password, salt, scramIterations, sha256.Size)
	if err != nil {
		return "", err
	}
	mac := func(text string) []byte {
		m := hmac.New(sha256.New, salted)
		m.Write([]byte(text))
		return m.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", scramIterations, b64(salt), b64(stored[:]), b64(mac("Server Key"))), nil
}

// templateSQL is run in template1 and in postgres, so that every database has it.
const templateSQL = `
CREATE SCHEMA theseus;
REVOKE ALL ON SCHEMA theseus FROM PUBLIC;
GRANT USAGE ON SCHEMA theseus TO ` + GatewayRole + `;
CREATE FUNCTION theseus.user_lookup(name text) RETURNS TABLE (uname text, phash text)
	LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
	SELECT rolname::text, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END
	FROM pg_authid WHERE rolname = name AND rolcanlogin AND NOT rolsuper AND NOT rolreplication
	AND rolname NOT LIKE 'theseus\_%' $$;
COMMENT ON FUNCTION theseus.user_lookup(text) IS 'Password verifiers for the gateway''s auth_query.';
REVOKE ALL ON FUNCTION theseus.user_lookup(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION theseus.user_lookup(text) TO ` + GatewayRole + `;
`

// rolesSQL makes Theseus' roles; the replicator may do what pg_rewind needs, and ask for the checkpoint without which
// pg_rewind 15 does not see a promotion.
const rolesSQL = `
CREATE ROLE ` + ReplicatorRole + ` LOGIN REPLICATION;
CREATE ROLE ` + GatewayRole + ` LOGIN;
GRANT pg_checkpoint TO ` + ReplicatorRole + `;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean) TO ` + ReplicatorRole + `;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_stat_file(text, boolean) TO ` + ReplicatorRole + `;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text) TO ` + ReplicatorRole + `;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) TO ` + ReplicatorRole + `;
`

const journalSQL = `
CREATE TABLE theseus.reparents (
	term bigint NOT NULL, "primary" text NOT NULL, kind text NOT NULL, reason text NOT NULL,
	at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (term, at));
COMMENT ON TABLE theseus.reparents IS 'Each primary''s first write in its term. Acknowledged by the cohort before clients are let in.';
`

// CreateRoles makes Theseus' roles, the reparent journal, and the application's role and database on a new server.
func (s *Server) CreateRoles(ctx context.Context, database, owner, password string) error {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt)
	verifier, err := ScramVerifier(password, salt)
	if err != nil {
		return err
	}
	if err := s.script(ctx, "postgres", rolesSQL+templateSQL+journalSQL); err != nil {
		return err
	}
	if err := s.script(ctx, "template1", templateSQL); err != nil {
		return err
	}
	if owner == "" || database == "" {
		return nil
	}
	role := pgx.Identifier{owner}.Sanitize()
	if err := s.script(ctx, "postgres", "CREATE ROLE "+role+" LOGIN PASSWORD "+quote(verifier)); err != nil {
		return err
	}
	if database == "postgres" {
		return nil
	}
	return s.script(ctx, "postgres", "CREATE DATABASE "+pgx.Identifier{database}.Sanitize()+" OWNER "+role)
}

func (s *Server) script(ctx context.Context, database, sql string) error {
	conn, err := s.connect(ctx, database, "bootstrap", nil)
	if err != nil {
		return err
	}
	defer closeSoon(conn)
	_, err = conn.Exec(ctx, sql)
	return err
}

// ErrUnacknowledged says that a commit's wait for its cohort was interrupted: it is in the WAL here and nobody knows
// where else.
var ErrUnacknowledged = errors.New("the commit was not acknowledged by its cohort")

// Journal writes the row of a reparent and returns once the cohort has acknowledged it. ctx drops the session and
// cancels nothing. A commit whose wait somebody else cancelled reports success with a warning; that is an error here.
func (s *Server) Journal(ctx context.Context, term uint64, kind, reason string) error {
	return s.acknowledged(ctx, `INSERT INTO theseus.reparents (term, "primary", kind, reason) VALUES ($1, $2, $3, $4)`,
		int64(term), s.conf.Instance, kind, reason)
}

// acknowledged runs a statement and returns once its commit was acknowledged synchronously.
func (s *Server) acknowledged(ctx context.Context, sql string, args ...any) (err error) {
	warm, err := s.acquire(ctx)
	if err != nil {
		return err
	}
	defer func() { warm.done(err) }()
	if _, err := warm.Exec(ctx, "SET synchronous_commit = on; SET statement_timeout = 0; SET lock_timeout = 0"); err != nil {
		return err
	}
	s.warm.warned.Store(false)
	if _, err := warm.Exec(ctx, sql, args...); err != nil {
		return err
	}
	if s.warm.warned.Load() {
		return ErrUnacknowledged
	}
	return nil
}
