package agent

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errSuperseded ends a command when one of a higher term arrives: an emergency must not queue behind what it replaces.
var errSuperseded = errors.New("superseded by a command of a higher term")

// commands lets one command at a time change what the instance is.
type commands struct {
	mu      sync.Mutex
	running *command
}

type command struct {
	term   uint64
	name   string
	cancel context.CancelCauseFunc
	done   chan struct{}
}

// begin waits for its turn. A running command of a lower term is told to give up first; all are written so that they
// can be repeated. done must be called. The returned context ends when the command is superseded.
func (c *commands) begin(ctx context.Context, term uint64, name string) (context.Context, func(), error) {
	for {
		c.mu.Lock()
		now := c.running
		if now == nil {
			ctx, cancel := context.WithCancelCause(ctx)
			mine := &command{term: term, name: name, cancel: cancel, done: make(chan struct{})}
			c.running = mine
			c.mu.Unlock()
			return ctx, func() { c.end(mine) }, nil
		}
		if now.term < term {
			now.cancel(errSuperseded)
		}
		c.mu.Unlock()
		select {
		case <-now.done:
		case <-ctx.Done():
			return nil, nil, status.Errorf(codes.Unavailable, "%s of term %d is still running", now.name, now.term)
		}
	}
}

// idle says whether no command runs.
func (c *commands) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running == nil
}

func (c *commands) end(mine *command) {
	c.mu.Lock()
	c.running = nil
	c.mu.Unlock()
	mine.cancel(nil)
	close(mine.done)
}

// Longest time each command may take whatever its caller says. Callers set shorter deadlines.
const (
	quickLimit     = 15 * time.Second
	bootstrapLimit = 2 * time.Minute
	followLimit    = 5 * time.Minute
)

// lowerTerm is the refusal every command begins with.
func lowerTerm(have, got uint64) error {
	if got < have {
		return status.Errorf(codes.FailedPrecondition, "term %d is over, this instance has accepted %d", got, have)
	}
	return nil
}

func refuse(format string, args ...any) error {
	return status.Errorf(codes.FailedPrecondition, format, args...)
}

// failed makes an error of a command one that tells the caller whether to try again.
func failed(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	switch {
	case errors.Is(err, errSuperseded):
		return status.Error(codes.Aborted, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	}
	return status.Error(codes.Internal, err.Error())
}

func equalState(a, b State) bool { return reflect.DeepEqual(a, b) }

// steps says how long each step of a command took, for its log line.
type steps struct {
	last time.Time
	took []any
}

func newSteps() *steps { return &steps{last: time.Now()} }

func (s *steps) done(name string) {
	now := time.Now()
	s.took = append(s.took, name, took(s.last))
	s.last = now
}

// took is the time since begun, for people.
func took(begun time.Time) string { return time.Since(begun).Round(100 * time.Microsecond).String() }
