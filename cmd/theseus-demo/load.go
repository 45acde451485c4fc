package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"theseus.dev/theseus/internal/labkit"
	"theseus.dev/theseus/internal/load"
	"theseus.dev/theseus/internal/story"
)

// writing is a write load on a machine beside the nodes, through the gateway.
type writing struct {
	cmd    *exec.Cmd
	out    string
	exited chan struct{}
	err    error

	mu   sync.Mutex
	seen account
	said []string
}

// startWriting begins to write, and with that the first part of the story.
func startWriting(ctx context.Context, kit *labkit.Kit, first story.Part) (*writing, error) {
	uri, err := kit.AppURI(ctx, namespace, database)
	if err != nil {
		return nil, err
	}
	// The load runs beside the nodes, where the authority's file is not.
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	q := u.Query()
	q.Set("sslmode", "require")
	q.Del("sslrootcert")
	u.RawQuery = q.Encode()
	dir, err := os.MkdirTemp("", "theseus-demo-")
	if err != nil {
		return nil, err
	}
	w := &writing{out: filepath.Join(dir, "load.json"), exited: make(chan struct{})}
	w.seen.begin(first)
	w.cmd = exec.Command(kit.Bin("lab"), "--name", kit.LabName, "client", "--", kit.Bin("theseus-load"),
		"--interval", "10ms", "--timeout", "5s", "--connect-timeout", "2s", "--max-lifetime", "10s", "--out", w.out)
	// As pools do it: connections end by themselves before a gateway that leaves ends them. And as clients of a machine that may
	// lose power must: nobody but they can end a connection to it.
	// The password travels in the environment, where other users cannot read it.
	w.cmd.Env = append(os.Environ(), "DATABASE_URL="+u.String())
	// Its own process group: Ctrl-C is for the demo, which then ends the load in order.
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	stderr, err := w.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := w.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		w.read(stderr)
		w.err = w.cmd.Wait()
		close(w.exited)
	}()
	return w, nil
}

func (w *writing) read(r io.Reader) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		p, ok := load.ParseProgress(lines.Text())
		w.mu.Lock()
		if ok {
			w.seen.line(p)
		} else {
			w.said = append(w.said, lines.Text())
		}
		w.mu.Unlock()
	}
}

// clients is what the load has seen so far.
func (w *writing) clients() story.Clients {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen.clients()
}

// lineLimit bounds the wait for the next line of the load, which writes one a second.
const lineLimit = 10 * time.Second

// turn begins another part of the story. It waits for a line, so that nothing of what was before is counted in it.
func (w *writing) turn(ctx context.Context, p story.Part) error {
	ctx, cancel := context.WithTimeout(ctx, lineLimit)
	defer cancel()
	before := -1
	return labkit.Poll(ctx, 20*time.Millisecond, func(context.Context) (bool, string, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if before < 0 {
			before = w.seen.lines
		}
		if w.seen.lines == before {
			return false, "the load says nothing", nil
		}
		w.seen.begin(p)
		return true, "", nil
	})
}

// end stops the load, which reads everything back, and returns what it found.
func (w *writing) end(ctx context.Context) (story.Ending, error) {
	_ = w.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-w.exited:
	case <-ctx.Done():
		_ = w.cmd.Process.Kill()
		return story.Ending{}, errors.New("the load did not end")
	}
	defer func() { _ = os.RemoveAll(filepath.Dir(w.out)) }()
	data, err := os.ReadFile(w.out)
	if err != nil {
		return story.Ending{}, fmt.Errorf("the load left no summary (%w): %s", w.err, strings.Join(w.said, "; "))
	}
	s := &load.Summary{}
	if err := json.Unmarshal(data, s); err != nil {
		return story.Ending{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return story.Ending{Acked: s.Acked, Lost: s.Lost, Verified: s.Verified, Parts: w.seen.end(s)}, nil
}
