// Package machinehook speaks the protocol by which Theseus has machines replaced (version "theseus.dev/machine/v1": one
// POST per call, JSON both ways). It only translates; Machines does what is asked.
//
// The lab removes no node of its own accord, so there is nothing to hold: hold and release are answered with 501,
// which the protocol takes as done.
package machinehook

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Version of the protocol.
const Version = "theseus.dev/machine/v1"

// Errors of Machines.
var (
	// ErrUnknown: there was never a node of that name.
	ErrUnknown = errors.New("the lab has never had a node of that name")
)

// State is what is known of a node's machine.
type State struct {
	// Gone is true when it does not exist any more.
	Gone bool
	// Removing is true while it is being taken away.
	Removing bool
	// Message for people.
	Message string
}

// Machines does what is asked. No method waits: each starts what takes time, and says so when it is asked again.
type Machines interface {
	// Status of a node's machine. ErrUnknown when there was never one.
	Status(node string) (State, error)
	// Surge makes another node in the same zone; done once it is Ready.
	Surge(node string) (done bool, message string, err error)
	// GiveBack keeps what Surge made for the next one that asks.
	GiveBack(node string) error
	// Replace takes the node away and sees to another one, unless Surge did.
	Replace(node string) (message string, err error)
}

// request and response are what the protocol says of them, as far as the lab needs it.
type request struct {
	Version string `json:"version"`
	Action  string `json:"action"`
	Machine string `json:"machine"`
	Node    struct {
		Name string `json:"name"`
	} `json:"node"`
}

type response struct {
	Machine  string `json:"machine,omitempty"`
	Done     bool   `json:"done,omitempty"`
	Gone     bool   `json:"gone,omitempty"`
	Removing bool   `json:"removing,omitempty"`
	Message  string `json:"message,omitempty"`
}

// Handler answers calls.
func Handler(m Machines, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
		var req request
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&req); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if req.Version != Version {
			http.Error(w, "the version is not "+Version, http.StatusBadRequest)
			return
		}
		name := req.Machine
		if name == "" {
			name = req.Node.Name
		}
		answer, err := do(m, req.Action, name)
		switch {
		case errors.Is(err, ErrUnknown):
			http.Error(w, err.Error(), http.StatusNotFound)
		case errors.Is(err, errors.ErrUnsupported):
			http.Error(w, "the lab has no such action", http.StatusNotImplemented)
		case err != nil:
			log.Error("cannot do what is asked about a machine", "action", req.Action, "node", name, "error", err)
			http.Error(w, err.Error(), http.StatusInternalServerError)
		default:
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(answer)
		}
	})
	return mux
}

func do(m Machines, action, name string) (response, error) {
	s, err := m.Status(name)
	if err != nil {
		return response{}, err
	}
	answer := response{Machine: name, Gone: s.Gone, Removing: s.Removing, Message: s.Message}
	if s.Gone {
		return answer, nil
	}
	switch action {
	case "status":
	case "surge":
		answer.Done, answer.Message, err = m.Surge(name)
	case "give-back":
		err = m.GiveBack(name)
	case "replace":
		answer.Done, answer.Removing = true, true
		answer.Message, err = m.Replace(name)
	default:
		err = errors.ErrUnsupported
	}
	return answer, err
}

// Serve answers on l until ctx ends.
func Serve(ctx context.Context, l net.Listener, m Machines, log *slog.Logger) error {
	s := &http.Server{Handler: Handler(m, log), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
