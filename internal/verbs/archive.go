package verbs

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"theseus.dev/theseus/internal/evidence"
)

// Archive is where evidence is: a bucket, or the replicas of the operator, who have the keys to it.
type Archive interface {
	// List says what there is of a namespace; "" is all.
	List(ctx context.Context, namespace string) (Listing, error)
	// Fetch gets everything about an instance, or about a case by its name.
	Fetch(ctx context.Context, namespace, name string) (*Found, error)
}

// Listing is what there is.
type Listing struct {
	Cases []CaseSummary `json:"cases"`
	// Trails of instances, those that were heard last first.
	Trails []evidence.Walker `json:"trails"`
	// Problems say what could not be listed.
	Problems []string `json:"problems,omitempty"`
}

// CaseSummary is a line of the list.
type CaseSummary struct {
	Name    string            `json:"name"`
	At      time.Time         `json:"at"`
	Subject *evidence.Subject `json:"subject,omitempty"`
	// Items that were kept, and Missing those that could not be had.
	Items   int `json:"items"`
	Missing int `json:"missing"`
}

// Found is everything about one instance.
type Found struct {
	Walker evidence.Walker `json:"walker"`
	// Case is the name of its case, "" when it was never condemned or the case is not there.
	Case     string             `json:"case,omitempty"`
	Manifest *evidence.Manifest `json:"manifest,omitempty"`
	// Problems say what could not be read.
	Problems []string `json:"problems,omitempty"`
	// Files of the case, and its trail.
	Files map[string][]byte `json:"-"`
	Trail []evidence.Entry  `json:"-"`
}

// ErrNothingFound says that there is neither a case nor a trail.
var ErrNothingFound = errors.New("there is neither a case nor a trail of it")

const (
	// before and after are how much of the trail around a condemnation is fetched.
	before, after = 30 * time.Minute, time.Hour
	// lookBack is how far back the trail of an instance that was not condemned is looked for; the last `before` of it is
	// what is fetched.
	lookBack = 72 * time.Hour
	// manifestsMost bounds how many manifests a list reads.
	manifestsMost = 200
	// fileMost bounds one file that is fetched, in bytes; items are stored with a smaller limit.
	fileMost = 64 << 20
)

// BucketArchive reads a bucket.
type BucketArchive struct {
	Bucket evidence.Bucket
	Now    func() time.Time
}

// List implements Archive.
func (a BucketArchive) List(ctx context.Context, namespace string) (Listing, error) {
	var l Listing
	cases, err := a.Bucket.Cases().List(ctx, namespace)
	if err != nil {
		return l, err
	}
	for i, c := range cases {
		s := CaseSummary{Name: c.Name, At: c.At}
		if i < manifestsMost {
			m, err := a.Bucket.Cases().Manifest(ctx, c.Name)
			if err != nil {
				l.Problems = append(l.Problems, err.Error())
			}
			s.count(m)
		}
		l.Cases = append(l.Cases, s)
	}
	l.Trails, err = a.Bucket.Trails().Walkers(ctx, namespace)
	return l, err
}

func (s *CaseSummary) count(m evidence.Manifest) {
	if m.Subject.Instance != "" {
		s.Subject = &m.Subject
	}
	for _, i := range m.Items {
		if i.Size > 0 {
			s.Items++
		}
		if i.Error != "" {
			s.Missing++
		}
	}
}

// Fetch implements Archive.
func (a BucketArchive) Fetch(ctx context.Context, namespace, name string) (*Found, error) {
	f := &Found{Files: map[string][]byte{}}
	cases, err := a.Bucket.Cases().List(ctx, namespace)
	if err != nil {
		return nil, err
	}
	for _, c := range cases {
		if matches(c.Name, name) {
			f.Case = c.Name
			break
		}
	}
	until := a.Now()
	from := until.Add(-lookBack)
	if f.Case != "" {
		if from, until, err = a.fetchCase(ctx, f); err != nil {
			return nil, err
		}
	} else {
		f.Walker = evidence.Walker{Namespace: namespace, Shard: ShardOf(name), Instance: name}
	}
	trail, problems, err := a.Bucket.Trails().Read(ctx, f.Walker, from, until)
	for _, p := range append(problems, err) {
		if p != nil {
			f.Problems = append(f.Problems, p.Error())
		}
	}
	f.Trail = trail
	if f.Case == "" {
		f.Trail = lastPart(trail)
		if len(trail) == 0 {
			return f, fmt.Errorf("%s/%s: %w", namespace, name, ErrNothingFound)
		}
	}
	return f, nil
}

// fetchCase reads the case's files and says which part of the trail belongs to it.
func (a BucketArchive) fetchCase(ctx context.Context, f *Found) (from, until time.Time, err error) {
	m, err := a.Bucket.Cases().Manifest(ctx, f.Case)
	if err != nil {
		return from, until, err
	}
	f.Manifest = &m
	parts := strings.Split(f.Case, "/")
	_, instance, _ := strings.Cut(parts[2], "-")
	f.Walker = evidence.Walker{Namespace: parts[0], Shard: parts[1], Instance: instance}
	stored, err := a.Bucket.Cases().Files(ctx, f.Case)
	if err != nil {
		f.Problems = append(f.Problems, err.Error())
	}
	for _, i := range stored {
		data, err := a.file(ctx, f.Case, i.Name)
		if err != nil {
			f.Problems = append(f.Problems, fmt.Sprintf("%s: %v", i.Name, err))
		}
		f.Files[i.Name] = data
	}
	at, err := evidence.CaseTime(f.Case)
	return at.Add(-before), at.Add(after), err
}

func (a BucketArchive) file(ctx context.Context, name, item string) ([]byte, error) {
	r, err := a.Bucket.Cases().Read(ctx, name, item)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	return io.ReadAll(io.LimitReader(r, fileMost))
}

// lastPart is the end of a trail.
func lastPart(trail []evidence.Entry) []evidence.Entry {
	if len(trail) == 0 {
		return nil
	}
	from := trail[len(trail)-1].At.Add(-before)
	i := slices.IndexFunc(trail, func(e evidence.Entry) bool { return !e.At.Before(from) })
	return trail[i:]
}

// matches says whether what a person typed means the case: its name, the end of it, or its instance.
func matches(of, what string) bool {
	_, instance, _ := strings.Cut(path.Base(of), "-")
	return of == strings.Trim(what, "/") || path.Base(of) == what || instance == what
}

// ShardOf is the shard of an instance, by its name.
func ShardOf(instance string) string {
	if i := strings.LastIndexByte(instance, '-'); i > 0 {
		return instance[:i]
	}
	return instance
}

const (
	indexFile = "index.json"
	trailFile = "trail.jsonl"
	casePath  = "case/"
)

// Pack writes what was found as a tar archive.
func (f *Found) Pack(w io.Writer) error {
	out := tar.NewWriter(w)
	add := func(name string, data []byte) error {
		if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err := out.Write(data)
		return err
	}
	index, err := json.Marshal(f)
	if err != nil {
		return err
	}
	var trail bytes.Buffer
	if err := evidence.WriteEntries(&trail, f.Trail); err != nil {
		return err
	}
	if err := errors.Join(add(indexFile, index), add(trailFile, trail.Bytes())); err != nil {
		return err
	}
	for name, data := range f.Files {
		if err := add(casePath+name, data); err != nil {
			return err
		}
	}
	return out.Close()
}

// Unpack reads what Pack wrote. An archive that ends early gives what came before, with a problem.
func Unpack(r io.Reader) (*Found, error) {
	f := &Found{Files: map[string][]byte{}}
	in := tar.NewReader(r)
	indexed := false
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) && indexed {
			return f, nil
		}
		if err != nil {
			return f.shortened(err, indexed)
		}
		data, err := io.ReadAll(io.LimitReader(in, fileMost))
		switch name, inCase := strings.CutPrefix(h.Name, casePath); {
		case h.Name == indexFile:
			indexed = json.Unmarshal(data, f) == nil
		case h.Name == trailFile:
			entries, bad := evidence.ReadEntries(bytes.NewReader(data))
			f.Trail, err = entries, errors.Join(err, bad)
		case inCase && path.Base(name) == name && name != "." && name != "..":
			f.Files[name] = data
		}
		if err != nil {
			return f.shortened(err, indexed)
		}
	}
}

func (f *Found) shortened(err error, indexed bool) (*Found, error) {
	if !indexed {
		return nil, fmt.Errorf("the answer ended before it began: %w", err)
	}
	f.Problems = append(f.Problems, fmt.Sprintf("the answer is shortened: %v", err))
	return f, nil
}
