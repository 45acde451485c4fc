package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"theseus.dev/theseus/internal/quorum"
)

// State is what an agent must not forget. It lies beside the data, so that it shares the data's fate: a fresh volume has
// promised nothing and knows nothing.
type State struct {
	// Term is the highest term accepted. Commands of lower ones are refused.
	Term uint64 `json:"term"`
	// Promised is the term last promised to a coordinator.
	Promised uint64 `json:"promised,omitempty"`
	// Intent is the term this instance began to be promoted in. A timeline found after a crash that the map does not
	// know was begun by it.
	Intent uint64 `json:"intent,omitempty"`
	// Timelines says in which term each timeline began.
	Timelines map[uint32]uint64 `json:"timelines,omitempty"`
	// Follow is whom a standby streams from; nil after a promise.
	Follow *Target `json:"follow,omitempty"`
	// Primary is set while this instance is the primary of Term; nil once it has promised or been demoted.
	Primary *Primary `json:"primary,omitempty"`
	// Halted: PostgreSQL stays down until told whom to follow, or to promote. Says why.
	Halted string `json:"halted,omitempty"`
	// Seed marks the copy under way while Halted says seeding.
	Seed string `json:"seed,omitempty"`
	// Diverged: the data directory can follow nobody and has to be seeded again. Says why.
	Diverged string `json:"diverged,omitempty"`
	// Rewindable: it diverged and nobody has tried to rewind it yet.
	Rewindable bool `json:"rewindable,omitempty"`
	// Rewinding: pg_rewind has begun and did not end; the directory is unusable.
	Rewinding bool `json:"rewinding,omitempty"`
	// Bootstrap is the term of the Bootstrap that made this directory; Bootstrapping is true until it has finished.
	Bootstrap     uint64 `json:"bootstrap,omitempty"`
	Bootstrapping bool   `json:"bootstrapping,omitempty"`
	// Fenced says why the agent stopped PostgreSQL by itself, until it is told something or its term is confirmed.
	Fenced string `json:"fenced,omitempty"`
	// Parameters are the ones given to Bootstrap; those of the Pod's environment win over them.
	Parameters map[string]string `json:"parameters,omitempty"`
	// Endpoints are the members of the shard as last told.
	Endpoints []Target `json:"endpoints,omitempty"`
}

// haltedSeeding is the Halted of an instance whose data directory is being copied.
const haltedSeeding = "seeding"

// Target is how to reach an instance, and in which term it was named.
type Target struct {
	Term         uint64 `json:"term,omitempty"`
	Instance     string `json:"instance"`
	Host         string `json:"host"`
	PostgresPort int    `json:"postgresPort"`
	AgentPort    int    `json:"agentPort"`
}

// Primary is the primary's own memory of its term.
type Primary struct {
	Cohort quorum.Cohort `json:"cohort"`
}

// clone is deep.
func (s State) clone() State {
	s.Timelines = maps.Clone(s.Timelines)
	s.Parameters = maps.Clone(s.Parameters)
	s.Endpoints = slices.Clone(s.Endpoints)
	if s.Follow != nil {
		follow := *s.Follow
		s.Follow = &follow
	}
	if s.Primary != nil {
		primary := *s.Primary
		primary.Cohort.Members = slices.Clone(primary.Cohort.Members)
		s.Primary = &primary
	}
	return s
}

// walTerm is the term of a record on timeline tli. A timeline that nobody told this instance of was begun either by its
// own interrupted promotion or by the primary it was told to follow, whose term comes with it. Timeline 1 is initdb's, and
// initdb is run once in a shard's life, by the bootstrap in term 1: that needs nobody's word.
func (s State) walTerm(tli uint32) (uint64, error) {
	if term, ok := s.Timelines[tli]; ok {
		return term, nil
	}
	switch {
	case tli == 1:
		return 1, nil
	case s.Intent != 0:
		return s.Intent, nil
	case s.Follow != nil && s.Follow.Term != 0:
		return s.Follow.Term, nil
	}
	return 0, fmt.Errorf("nobody said in which term timeline %d began", tli)
}

// Store keeps the state in one file.
type Store struct {
	dir string
	// busy is held while a write is under way, which can be for ever on a stalled device.
	busy chan struct{}
}

// NewStore keeps state.json in dir, which it makes.
func NewStore(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &Store{dir: dir, busy: make(chan struct{}, 1)}
	_ = s.reserve() // on a full volume the one of earlier is there, or there is none
	return s, nil
}

// ballast is given up when the volume is full: an instance that cannot write down a promise cannot be replaced by the
// very reparent that would save it.
const ballast = 256 << 10

func (s *Store) ballastPath() string { return filepath.Join(s.dir, "ballast") }

// reserve makes the ballast again.
func (s *Store) reserve() error {
	if info, err := os.Stat(s.ballastPath()); err == nil && info.Size() == ballast {
		return nil
	}
	noise := make([]byte, ballast) // a file of zeroes might take no space
	_, _ = rand.Read(noise)
	return os.WriteFile(s.ballastPath(), noise, 0o600)
}

func (s *Store) path() string { return filepath.Join(s.dir, "state.json") }

// Load reads the state; a fresh volume has the zero one. A file that cannot be understood is an error, never a fresh
// start: it may hold a promise.
func (s *Store) Load() (State, error) {
	data, err := os.ReadFile(s.path())
	if errors.Is(err, os.ErrNotExist) {
		return State{}, nil
	}
	if err != nil {
		return State{}, err
	}
	var st State
	if err := json.Unmarshal(data, &st); err != nil {
		return State{}, fmt.Errorf("%s: %w", s.path(), err)
	}
	return st, nil
}

// Save writes the state and returns when it is on the device. When ctx ends first it is unknown whether the new state is:
// the caller goes on with the old one and has promised nothing. Later saves wait for one that hangs, so that the file
// never goes back in time.
func (s *Store) Save(ctx context.Context, st State) error {
	select {
	case s.busy <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("state: an earlier write hangs: %w", context.Cause(ctx))
	}
	done := make(chan error, 1)
	go func() {
		done <- s.write(st)
		<-s.busy
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("state: the write hangs: %w", context.Cause(ctx))
	}
}

func (s *Store) write(st State) error {
	err := s.replace(st)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		if rerr := os.Remove(s.ballastPath()); rerr == nil {
			err = s.replace(st)
		}
		return err
	}
	return err
}

func (s *Store) replace(st State) error {
	data, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return err
	}
	tmp := s.path() + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, s.path()); err != nil {
		return err
	}
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}
