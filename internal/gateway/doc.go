// Package gateway is PgBouncer that follows its shard's primary by itself: no Service, DNS or API server is in the path
// of a reparent, and none of them needs to be up.
//
// # How
//
// One process, `theseus gateway`, is PID 1 of its Pod. It writes PgBouncer's configuration once, runs PgBouncer as its
// child, and steers it:
//
//	clients ──TLS, SCRAM──► PgBouncer ──unix socket──► hop ──mutual TLS──► PostgreSQL of the primary
//	                            ▲ console                ▲ gate
//	                            └──────── steer ─────────┘◄── Decide ◄── follower ◄── status streams of all agents
//
// The follower keeps a Watch stream to every agent; Decide, a pure function, turns what they say into a Route; steer
// applies it. One container and not two: the child's life, its configuration and its console belong to whoever steers
// it, and there is nothing that a second container could do when the first has died.
//
// # The hop, and what it costs
//
// PgBouncer alone can do a planned move (PAUSE, RELOAD with another host, RESUME) but not an emergency. Its server
// connections to a frozen machine can only be dropped together with idle clients (KILL) or client by client
// (KILL_CLIENT), and as soon as one login has failed, because the primary is gone and its successor not there yet,
// it turns away every client of that pool that asks for anything, with the cached error, until a login succeeds.
// What was in flight may see an error; here everybody would.
//
// So PgBouncer's "server" is a unix socket of this process. The hop owns the real connections. It cuts those of a term
// that is over the moment that it is, with a FATAL in the server's name for whoever had a transaction under way; it
// holds logins while there is no primary, since nothing has been said yet that would have to be taken back; a move is
// a change of address in this process, with no reload. It also does what PgBouncer cannot: it verifies that the server
// is an agent of this very shard (PgBouncer verifies names, and instances are addressed by IP), and it notices a
// standby by what it says of itself.
//
// The price is a copy through this process. Measured on two cores that run everything (pgbench, PgBouncer 1.24, hop,
// PostgreSQL 15 without fsync, TLS on both sides) on a loopback without latency, which is the worst case, medians of
// TestHopCost against PgBouncer doing the TLS itself: one client reading 0.61 of the transactions per second (0.16 ms instead
// of 0.10 ms per transaction), eight clients reading 0.71–0.78, eight clients writing 0.71–0.74. It is a constant of some
// 60 µs per round trip, nearly all of it system calls, not encryption: against a commit that waits for a standby in
// another zone it does not show, and it takes its processor time on another core than PgBouncer's only one.
//
// Gained for it, measured in the same place with the machine busy: ten planned moves under full load, 26 ms without
// a write in the median, no error, clients that come and go all the time included; a frozen or killed primary with idle clients connected: 4 errors for the
// 4 writes in flight, none for anybody else, and 50 ms from the news to the next write.
//
// # Planned and unplanned
//
// Drain: pools are kept from growing, logins under way are let through, PAUSE. PgBouncer finishes the transactions that
// run and keeps the others waiting; when all server connections are given up, the primary's agent is told (Acknowledge),
// which is what its own Drain waits for. Serve, in the new term: the gate opens, RESUME.
//
// Hold, out of the blue: all server connections are cut, logins wait in the hop. No PAUSE: it would end those logins.
// The session that looks up the names of clients who log in outlives its primary; see lookup.
//
// Nobody is held for longer than Config.MaxPause. Then those who wait, and from then on those who ask, get an error that
// says why.
package gateway
