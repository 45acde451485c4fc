// Package evidence keeps what can be had of an instance that is condemned, so that it can be killed without regret.
//
// Collect asks many small sources at once, each with its own deadline, and stores what comes as it comes; a manifest that
// is written last says what is there, what is missing and why. It never takes longer than its deadline, whatever a source
// does: recovery does not wait for evidence (package replacement bounds that once more). A bundle without a manifest is one
// whose collector died; what is there can be read all the same.
//
//	<prefix>/<shard>/<time>-<instance>/manifest.json
//	<prefix>/<shard>/<time>-<instance>/<item>
//
// Storage is anything gocloud.dev/blob can open: s3://, gs://, azblob://, file://, mem://. The program that opens a bucket
// imports the drivers it wants; this package imports none of the heavy ones.
package evidence

import (
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"

	"theseus.dev/theseus/api/v1alpha1"
)

// Subject is who the evidence is about, and why.
type Subject struct {
	Namespace string          `json:"namespace"`
	Database  string          `json:"database,omitempty"`
	Shard     string          `json:"shard"`
	Instance  string          `json:"instance"`
	PodUID    string          `json:"podUID,omitempty"`
	Node      string          `json:"node,omitempty"`
	Zone      string          `json:"zone,omitempty"`
	Reason    v1alpha1.Reason `json:"reason"`
	// Replacement that asked, and the verdict that condemned it, with the values it was taken from.
	Replacement string `json:"replacement,omitempty"`
	Verdict     string `json:"verdict,omitempty"`
	Why         string `json:"why,omitempty"`
	// DecidedAt is when it was condemned.
	DecidedAt time.Time `json:"decidedAt"`
}

// Item is one piece of evidence, or the reason why it is missing.
type Item struct {
	// Name of the item, which is also its file's: "postgres.log".
	Name string `json:"name"`
	// ContentType as in MIME. Default text/plain.
	ContentType string `json:"contentType,omitempty"`
	// Size stored, in bytes.
	Size int64 `json:"size"`
	// Truncated is true when there was more than the limit.
	Truncated bool `json:"truncated,omitempty"`
	// Took is how long it took.
	Took time.Duration `json:"took"`
	// Error says why it is missing or not whole; empty when it is.
	Error string `json:"error,omitempty"`
}

// Manifest says what a bundle holds. It is written last.
type Manifest struct {
	// Version of the format: 1.
	Version int     `json:"version"`
	Subject Subject `json:"subject"`
	// StartedAt and FinishedAt of the collection.
	StartedAt  time.Time `json:"startedAt"`
	FinishedAt time.Time `json:"finishedAt"`
	// Sources that were asked.
	Sources []string `json:"sources,omitempty"`
	// Items in the order of their names.
	Items []Item `json:"items"`
	// Incomplete is true when the deadline passed before every source had answered.
	Incomplete bool `json:"incomplete,omitempty"`
}

const (
	manifestName = "manifest.json"
	// subjectName + ".json" is stored at once: who a bundle is about is known even if its collector dies.
	subjectName = "subject"
	timeFormat  = "20060102T150405Z"
)

// Name of the bundle of a subject: what `theseus autopsy` is given and prints. It is unique because instance names are.
func (s Subject) Name() string {
	return path.Join(s.Namespace, s.Shard, s.DecidedAt.UTC().Format(timeFormat)+"-"+s.Instance)
}

var itemName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,99}$`)

// check refuses names that could lead anywhere else than into the bundle.
func check(item string) error {
	if !itemName.MatchString(item) || strings.Contains(item, "..") || item == manifestName {
		return fmt.Errorf("%q is no name for an item", item)
	}
	return nil
}

// CaseTime is when the subject of a case was condemned, by the case's name.
func CaseTime(name string) (time.Time, error) {
	stamp, _, _ := strings.Cut(path.Base(name), "-")
	at, err := time.Parse(timeFormat, stamp)
	if err != nil {
		return at, fmt.Errorf("%q is no name of a case: %w", name, err)
	}
	return at, nil
}
