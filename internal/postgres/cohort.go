package postgres

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// barrier is a name no instance has. See SetSynchronous.
const barrier = "theseus:barrier"

// SyncNames renders synchronous_standby_names for any acks of members; empty for none.
func SyncNames(members []string, acks int) string {
	if acks <= 0 {
		return ""
	}
	return "ANY " + strconv.Itoa(acks) + " (" + quoteNames(members) + ")"
}

func quoteNames(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = quoteIdent(n)
	}
	return strings.Join(quoted, ",")
}

// applied is what SetSynchronous last proved. While known is false acks is the strictest that may be in force.
type applied struct {
	known   bool
	acks    int
	members []string
	// mayBeEmpty is true while it is not proven that commits wait at all.
	mayBeEmpty bool
}

// appliedAtStart is what is in force in a server that was started with a value: all its processes inherited it.
func appliedAtStart(value string) applied {
	if value == Nobody {
		return applied{known: true, acks: 1, members: []string{nobody}}
	}
	a := applied{mayBeEmpty: value == ""}
	_, _ = fmt.Sscanf(value, "ANY %d", &a.acks)
	return a
}

// WriteSynchronous writes the rule and tells the server, without a proof. Before a promotion that is enough, and so it is after
// it: a process that has not read the rule yet uses Nobody, by which commits wait and nobody's acknowledgement counts. The
// next SetSynchronous proves what is in force.
func (s *Server) WriteSynchronous(members []string, acks int) error {
	s.mu.Lock()
	s.sync.known = false
	s.sync.acks, s.sync.mayBeEmpty = max(s.sync.acks, acks), s.sync.mayBeEmpty || acks == 0
	s.mu.Unlock()
	r := s.runtimeNow()
	r.Sync = SyncNames(slices.Sorted(slices.Values(members)), acks)
	return s.apply(r)
}

// SetSynchronous makes a running server require acks acknowledgements of members and returns when it is proven that no
// commit will be acknowledged by an older rule. Three kinds of processes hold a copy of synchronous_standby_names:
//
//   - Walsenders count the acknowledgements and wake the waiting backends. Each publishes in shared memory whether it
//     belongs to the list (sync_priority in pg_stat_replication: 0 no, else its place, which for ANY is always 1), and
//     only published members are counted, by any walsender. So a change of members is in force when every walsender
//     shows the right priority. How many are needed each walsender takes from its own copy, which nothing shows. So
//     when the number changes, the list passes through FIRST n ("theseus:barrier", members…), which gives all members
//     a priority of 2 or more, and which is at least as strict for n the larger of both numbers; a walsender that shows
//     2 and then 1 has certainly read the final value.
//   - The checkpointer keeps the flag whether commits wait at all. It changes only between an empty and a non-empty
//     list. From empty to non-empty, a CHECKPOINT that began after the checkpointer was told to reload proves that it
//     did, since it looks at pending reloads before it begins one. A standby always has a non-empty list (Nobody), so
//     that a promotion never waits for this.
//   - Backends wait for whatever the flag and the walsenders say; their own copy does not matter. The postmaster's
//     copy is inherited by new walsenders, and is proven by what a new session sees.
//
// When ctx ends first, the new rule may or may not be in force: both cohorts must stay recorded.
func (s *Server) SetSynchronous(ctx context.Context, members []string, acks int) error {
	if acks < 0 || acks > len(members) {
		return fmt.Errorf("%d acknowledgements cannot come from %d members", acks, len(members))
	}
	members = slices.Sorted(slices.Values(members))
	s.mu.Lock()
	before := s.sync
	s.mu.Unlock()
	if before.known && before.acks == acks && slices.Equal(before.members, members) {
		return nil
	}
	mayBeEmpty := before.mayBeEmpty || acks == 0
	s.mu.Lock()
	s.sync.acks, s.sync.mayBeEmpty = max(before.acks, acks), mayBeEmpty
	s.mu.Unlock()
	if !before.mayBeEmpty && acks > 0 && (!before.known || before.acks != acks) {
		strict := fmt.Sprintf("FIRST %d (%s,%s)", max(acks, before.acks), quoteIdent(barrier), quoteNames(members))
		if err := s.setSync(ctx, strict, func(p int) bool { return p >= 2 }, members); err != nil {
			return err
		}
	}
	listed := members
	if acks == 0 {
		listed = nil
	}
	if err := s.setSync(ctx, SyncNames(members, acks), func(p int) bool { return p == 1 }, listed); err != nil {
		return err
	}
	if mayBeEmpty && acks > 0 {
		if err := s.Checkpoint(ctx); err != nil {
			return fmt.Errorf("proving that commits wait: %w", err)
		}
	}
	s.mu.Lock()
	s.sync = applied{known: true, acks: acks, members: members, mayBeEmpty: acks == 0}
	s.mu.Unlock()
	return nil
}

// setSync writes the value, reloads, and waits until a new session and every walsender show it.
func (s *Server) setSync(ctx context.Context, value string, member func(priority int) bool, listed []string) error {
	r := s.runtimeNow()
	r.Sync = value
	s.mu.Lock()
	s.sync.known = false // until proven; the number stays the strictest that may be in force
	s.mu.Unlock()
	if err := s.apply(r); err != nil {
		return err
	}
	for {
		late, err := s.late(ctx, value, member, listed)
		if err == nil && late == "" {
			return nil
		}
		if ctx.Err() == nil && err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("synchronous_standby_names = %s is not in force: %s: %w", value, late, context.Cause(ctx))
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// late names who does not use the value yet, "" for nobody.
func (s *Server) late(ctx context.Context, value string, member func(int) bool, listed []string) (string, error) {
	fresh, err := s.Connect(ctx, "configure")
	if err != nil {
		return "", err
	}
	defer closeSoon(fresh)
	var seen string
	if err := fresh.QueryRow(ctx, "SELECT current_setting('synchronous_standby_names')").Scan(&seen); err != nil {
		return "", err
	}
	if seen != value {
		return "the postmaster", nil
	}
	rows, err := fresh.Query(ctx, "SELECT application_name, sync_priority FROM pg_stat_replication WHERE state IN ('catchup', 'streaming')")
	if err != nil {
		return "", err
	}
	defer rows.Close()
	var late []string
	for rows.Next() {
		var name string
		var priority int
		if err := rows.Scan(&name, &priority); err != nil {
			return "", err
		}
		if in := slices.Contains(listed, name); in != member(priority) && (in || priority != 0) {
			late = append(late, "the walsender of "+name)
		}
	}
	return strings.Join(late, ", "), rows.Err()
}
