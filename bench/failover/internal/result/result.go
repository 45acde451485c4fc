// Package result is what the comparison of failovers produced: one Run per repetition, appended to a file as it ends, and
// the figures, the table and the plot that are made of them. It is pure but for the file.
package result

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Run is one repetition: one fault done to one system under write load. Durations are in milliseconds.
type Run struct {
	System string    `json:"system"`
	Fault  string    `json:"fault"`
	Rep    int       `json:"rep"`
	At     time.Time `json:"at"`

	// Measured is false when the repetition says nothing about the system (Note says why); it is repeated then.
	Measured bool   `json:"measured"`
	Note     string `json:"note,omitempty"`

	// Recovered is false when writes had not come back when the harness gave up waiting and undid the fault; StallMS
	// is a lower bound then.
	Recovered bool `json:"recovered"`
	// Closed says that a client which came after the fault, before its repair, could not write, whatever the stall of those
	// that were there. Only a fault that hurts newcomers has one try.
	Closed bool `json:"closed,omitempty"`
	// StallMS is the longest time without any acknowledged write between the fault and its repair.
	StallMS float64 `json:"stallMs"`
	// RepairStallMS is the same from the beginning of the repair (a node thawed, healed or added) to the end.
	RepairStallMS float64 `json:"repairStallMs"`
	// SteadyStallMS is the same before the fault: what the noise of the machine is.
	SteadyStallMS float64 `json:"steadyStallMs"`

	// Acked, Failed and Unknown count operations; see package load. Those of the repair are counted apart.
	Acked         int64            `json:"acked"`
	Failed        int64            `json:"failed"`
	Unknown       int64            `json:"unknown"`
	RepairFailed  int64            `json:"repairFailed"`
	RepairUnknown int64            `json:"repairUnknown"`
	Errors        map[string]int64 `json:"errors,omitempty"`

	// Lost counts acknowledged writes that are missing, over the whole repetition; meaningless unless Verified.
	Lost     int64 `json:"lost"`
	Verified bool  `json:"verified"`
	// FailedPresent counts writes that are there although the server refused them.
	FailedPresent int64 `json:"failedPresent"`

	// OldPrimary, Node and NewPrimary say what was hit and who took over.
	OldPrimary string `json:"oldPrimary,omitempty"`
	Node       string `json:"node,omitempty"`
	NewPrimary string `json:"newPrimary,omitempty"`

	// HealthyMS is how long it took from the repair to three healthy members.
	HealthyMS float64 `json:"healthyMs"`
	// SteadyRate is acknowledged writes per second before the fault.
	SteadyRate float64 `json:"steadyRate"`
	// MachineLoad is the machine's one-minute load average at the fault.
	MachineLoad float64 `json:"machineLoad"`
	// Phases is the system's own account of what it did, if it gives one.
	Phases []Phase `json:"phases,omitempty"`
}

// Phase is a step of a system's own account: its times are milliseconds since the fault.
type Phase struct {
	Name    string  `json:"name"`
	StartMS float64 `json:"startMs"`
	EndMS   float64 `json:"endMs"`
}

// ClientErrors is what clients saw between the fault and its repair.
func (r Run) ClientErrors() int64 { return r.Failed + r.Unknown }

// Append adds a run to a file of JSON lines, so that an interrupted comparison keeps what it had.
func Append(path string, r Run) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Sync(), f.Close())
}

// Load reads such a file; a file that is not there has no runs. A last line without its end, as a power cut leaves it,
// is ignored.
func Load(path string) ([]Run, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Read(f)
}

// Read is Load from a stream.
func Read(in io.Reader) ([]Run, error) {
	var out []Run
	r := bufio.NewReader(in)
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		var run Run
		if err := json.Unmarshal(line, &run); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		out = append(out, run)
	}
}

// Count is how many measured repetitions there are of a fault of a system.
func Count(runs []Run, system, fault string) int {
	n := 0
	for _, r := range runs {
		if r.Measured && r.System == system && r.Fault == fault {
			n++
		}
	}
	return n
}
