package evidence

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Func makes a source from a function.
type Func struct {
	// Called is the source's name.
	Called string
	// Do collects.
	Do func(ctx context.Context, s Subject, put Put) error
}

// Name is Called.
func (f Func) Name() string { return f.Called }

// Collect calls Do.
func (f Func) Collect(ctx context.Context, s Subject, put Put) error { return f.Do(ctx, s, put) }

// Value is a source that holds what is known already: a verdict with its inputs, the last statuses, a Pod. It is written as
// indented JSON under name + ".json".
func Value(name string, v any) Source {
	return Func{name, func(_ context.Context, _ Subject, put Put) error {
		text, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		return put(name+".json", "application/json", bytes.NewReader(append(text, '\n')))
	}}
}

// Stream is a source that opens something and keeps what it reads: a container's log.
func Stream(name string, open func(ctx context.Context) (io.ReadCloser, error)) Source {
	return Func{name, func(ctx context.Context, _ Subject, put Put) error {
		r, err := open(ctx)
		if err != nil {
			return err
		}
		defer r.Close()
		return put(name, "", r)
	}}
}

// Dump is one thing an agent says about itself: pg_controldata, pg_stat_activity, stacks, its own log.
type Dump struct {
	Name, ContentType string
	Data              []byte
	// Error is why it could not be had.
	Error string
}

// Agent is a source that asks the instance's agent. It is the one that knows most and the likeliest to be silent.
func Agent(ask func(ctx context.Context, s Subject) ([]Dump, error)) Source {
	return Func{"agent", func(ctx context.Context, s Subject, put Put) error {
		dumps, err := ask(ctx, s)
		missing := []string{}
		if err != nil {
			missing = append(missing, err.Error())
		}
		for _, d := range dumps {
			if d.Error != "" {
				missing = append(missing, d.Name+": "+d.Error)
			}
			if len(d.Data) == 0 {
				continue
			}
			if err := put(d.Name, d.ContentType, bytes.NewReader(d.Data)); err != nil {
				missing = append(missing, d.Name+": "+err.Error())
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("the agent did not yield everything: %s", strings.Join(missing, "; "))
		}
		return nil
	}}
}
