package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Peer is a standby as the primary sees it.
type Peer struct {
	Instance                string
	State, SyncState        string
	SyncPriority            int
	Sent, Flushed, Replayed LSN
	// Reply is the standby's own clock at its last reply: good for noticing that there was a new one.
	Reply time.Time
}

// Receiver is a standby's WAL receiver.
type Receiver struct {
	Streaming bool
	// MessageAge is since the last message from the upstream.
	MessageAge time.Duration
}

// Observation is what one look at a running server shows.
type Observation struct {
	InRecovery bool
	Identity
	Received, Replayed LSN
	SyncNames          string
	Version            string
	Peers              []Peer
	Receiver           Receiver
	// Clients is the number of client sessions, Open those in a transaction.
	Clients, Open int
}

// Observer looks at a server through sessions it keeps open. It is for one goroutine. After an error it starts over
// with new sessions.
type Observer struct {
	server    *Server
	conn      *pgx.Conn
	walsender *pgconn.PgConn
}

// NewObserver makes an observer that connects when it first looks.
func NewObserver(s *Server) *Observer { return &Observer{server: s} }

// Close ends the sessions.
func (o *Observer) Close() {
	if o.conn != nil {
		closeSoon(o.conn)
		o.conn = nil
	}
	if o.walsender != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		_ = o.walsender.Close(ctx)
		o.walsender = nil
	}
}

const observeSQL = `SELECT pg_is_in_recovery(),
	coalesce(pg_last_wal_receive_lsn(), '0/0')::text, coalesce(pg_last_wal_replay_lsn(), '0/0')::text,
	current_setting('synchronous_standby_names'), current_setting('server_version'),
	coalesce((SELECT status = 'streaming' FROM pg_stat_wal_receiver), false),
	coalesce((SELECT extract(epoch FROM clock_timestamp() - last_msg_receipt_time) FROM pg_stat_wal_receiver), 0)::float8,
	(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name NOT LIKE 'theseus-agent%'),
	(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name NOT LIKE 'theseus-agent%'
		AND xact_start IS NOT NULL)`

const peersSQL = `SELECT application_name, state, sync_state, sync_priority, coalesce(sent_lsn, '0/0')::text,
	coalesce(flush_lsn, '0/0')::text, coalesce(replay_lsn, '0/0')::text, coalesce(reply_time, 'epoch')
	FROM pg_stat_replication WHERE state IN ('catchup', 'streaming') ORDER BY 1`

// Observe looks once. When ctx ends before an answer, the sessions are dropped.
func (o *Observer) Observe(ctx context.Context) (obs Observation, err error) {
	defer func() {
		if err != nil {
			o.Close()
		}
	}()
	if !o.server.Running() {
		return obs, ErrDown
	}
	if o.conn == nil || o.conn.IsClosed() || o.walsender == nil || o.walsender.IsClosed() {
		o.Close()
		if o.conn, err = o.server.Connect(ctx, "observe"); err != nil {
			return obs, err
		}
		if o.walsender, err = o.server.replicationSession(ctx); err != nil {
			return obs, err
		}
	}
	var received, replayed string
	var age float64
	err = o.conn.QueryRow(ctx, observeSQL, prepared).Scan(&obs.InRecovery, &received, &replayed, &obs.SyncNames, &obs.Version,
		&obs.Receiver.Streaming, &age, &obs.Clients, &obs.Open)
	if err != nil {
		return obs, err
	}
	obs.Receiver.MessageAge = time.Duration(age * float64(time.Second))
	var e1, e2 error
	obs.Received, e1 = ParseLSN(received)
	obs.Replayed, e2 = ParseLSN(replayed)
	if err = errors.Join(e1, e2); err != nil {
		return obs, err
	}
	if obs.Identity, err = identify(ctx, o.walsender); err != nil {
		return obs, err
	}
	obs.Peers, err = o.peers(ctx)
	return obs, err
}

func (o *Observer) peers(ctx context.Context) ([]Peer, error) {
	rows, err := o.conn.Query(ctx, peersSQL, prepared)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var peers []Peer
	for rows.Next() {
		var p Peer
		var sent, flushed, replayed string
		if err := rows.Scan(&p.Instance, &p.State, &p.SyncState, &p.SyncPriority, &sent, &flushed, &replayed, &p.Reply); err != nil {
			return nil, err
		}
		var e1, e2, e3 error
		p.Sent, e1 = ParseLSN(sent)
		p.Flushed, e2 = ParseLSN(flushed)
		p.Replayed, e3 = ParseLSN(replayed)
		if err := errors.Join(e1, e2, e3); err != nil {
			return nil, err
		}
		peers = append(peers, p)
	}
	return peers, rows.Err()
}
