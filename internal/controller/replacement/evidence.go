package replacement

import (
	"context"

	"theseus.dev/theseus/internal/evidence"
)

// EvidenceCollector takes the evidence of an instance that is being replaced because it is sick.
type EvidenceCollector interface {
	// Collect takes what can be had and returns where it is, for `theseus autopsy`. It runs beside the replacement, once
	// per replacement in the life of a process; after a restart of the operator it is called again with the same subject.
	// The context ends when nothing waits for it any more. An error does not hold the replacement up; what was stored
	// until then is named all the same.
	Collect(ctx context.Context, s evidence.Subject) (location string, err error)
}

// NoEvidence collects nothing.
type NoEvidence struct{}

// Collect implements EvidenceCollector.
func (NoEvidence) Collect(context.Context, evidence.Subject) (string, error) { return "", nil }
