package main

import (
	"errors"
	"os"
	"time"

	"github.com/spf13/pflag"

	"theseus.dev/theseus/internal/controller"
	"theseus.dev/theseus/internal/evidence"
)

// The environment in which the operator's Pod names its bucket; `theseus evidence`, run inside it, finds it there.
const (
	envBucket = "THESEUS_EVIDENCE_BUCKET"
	envPrefix = "THESEUS_EVIDENCE_PREFIX"
)

// evidenceFlags are where the operator keeps evidence.
type evidenceFlags struct {
	bucket, prefix string
	chosen         controller.Keep
}

func (e *evidenceFlags) register(f *pflag.FlagSet) {
	f.StringVar(&e.bucket, "evidence-bucket", os.Getenv(envBucket), "URL of the bucket for evidence: s3://, gs://, azblob:// or file://; empty keeps none ("+envBucket+")")
	f.StringVar(&e.prefix, "evidence-prefix", os.Getenv(envPrefix), "prefix of everything in the bucket ("+envPrefix+")")
	f.BoolVar(&e.chosen.Shared, "evidence-shared", true, "all replicas use the same bucket; false when it is a directory of each")
	f.DurationVar(&e.chosen.Every, "evidence-every", 30*time.Second, "how soon news of a healthy instance is in the bucket; faults are at once")
	f.DurationVar(&e.chosen.KeepCases, "evidence-keep-cases", 90*24*time.Hour, "how long the evidence of a condemned instance is kept; 0 is for ever")
	f.DurationVar(&e.chosen.KeepTrails, "evidence-keep-trails", 48*time.Hour, "how long the flight recorder's trails are kept; 0 is for ever")
}

// options are nil without a bucket.
func (e *evidenceFlags) options() (*controller.Keep, error) {
	if e.bucket == "" {
		return nil, nil
	}
	bucket, err := evidence.Open(e.bucket, e.prefix)
	if err != nil {
		return nil, err
	}
	out := e.chosen
	out.Bucket = bucket
	if out.Every <= 0 {
		return nil, errors.New("--evidence-every must be positive")
	}
	return &out, nil
}
