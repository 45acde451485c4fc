package agent

import (
	"bytes"
	"context"
	"runtime/pprof"
	"time"
)

// dumpSlow is how long what may hang on a sick machine is waited for.
const dumpSlow = 2 * time.Second

// slowEvidence is what has to touch a disk or other processes.
func (a *Agent) slowEvidence() map[string]func(context.Context) ([]byte, error) {
	return map[string]func(context.Context) ([]byte, error){
		"controldata.txt": func(ctx context.Context) ([]byte, error) {
			control, err := a.pg.Control(ctx)
			return []byte(control.Text), err
		},
		"processes.txt": func(context.Context) ([]byte, error) { return a.procs.Describe(a.conf.pgdata()), nil },
		"goroutines.txt": func(context.Context) ([]byte, error) {
			var out bytes.Buffer
			err := pprof.Lookup("goroutine").WriteTo(&out, 1)
			return out.Bytes(), err
		},
	}
}

// inTime runs all at once and gives what is there when the time is up. What hangs, in a stalled device for instance, is
// left behind and replaced by the reason: even SIGKILL would not end it.
func inTime(ctx context.Context, limit time.Duration, all map[string]func(context.Context) ([]byte, error)) map[string][]byte {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	type result struct {
		name string
		data []byte
	}
	results := make(chan result, len(all))
	out := map[string][]byte{}
	for name, f := range all {
		out[name] = []byte("it had not answered after " + limit.String() + "\n")
		go func() {
			data, err := f(ctx)
			if err != nil {
				data = append(data, err.Error()+"\n"...)
			}
			results <- result{name, data}
		}()
	}
	for range all {
		select {
		case r := <-results:
			out[r.name] = r.data
		case <-ctx.Done():
			return out
		}
	}
	return out
}
