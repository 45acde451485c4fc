package postgres

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// A standby must not have less of some settings than the primary whose WAL it replays: it does not start, and one that
// runs pauses its replay (PostgreSQL's documentation, "Hot Standby", administrator's overview). Instances of a shard have
// different ones for a while when a user changes them, since parameters reach an instance when it is replaced. So a
// standby starts with what the control file says of the primary, if that is more. The control file comes with the copy
// and follows every change that the WAL announces.

// floors are these settings: their default in PostgreSQL, and what pg_controldata calls them. max_prepared_transactions is
// one too; it is refused in parameters.go.
var floors = map[string]struct {
	standard int
	control  string
}{
	"max_connections":           {100, "max_connections setting"},
	"max_worker_processes":      {8, "max_worker_processes setting"},
	"max_wal_senders":           {10, "max_wal_senders setting"},
	"max_locks_per_transaction": {64, "max_locks_per_xact setting"},
}

// PausedForSettings is in the line PostgreSQL logs when a running standby has less than its primary. Its replay is
// paused then until it is restarted.
const PausedForSettings = "hot standby is not possible because of insufficient parameter settings"

// floorsOf reads the control file. Without one there is nothing to replay.
func (s *Server) floorsOf(ctx context.Context) (map[string]int, error) {
	if !s.Initialised() {
		return nil, nil
	}
	control, err := s.Control(ctx)
	return control.Floors, err
}

// raised are the settings of which have is less than the floor.
func raised(have []setting, least map[string]int) (out []setting) {
	for _, name := range slices.Sorted(maps.Keys(least)) {
		value := floors[name].standard
		for _, s := range have { // the last one wins
			if s.name == name {
				value, _ = strconv.Atoi(strings.TrimSpace(s.value)) // what is no plain number is left to the floor
			}
		}
		if value < least[name] {
			out = append(out, setting{name, strconv.Itoa(least[name])})
		}
	}
	return out
}
