package evidence

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
)

// Kind says what an entry of a trail is.
type Kind string

// The kinds of entries.
const (
	// KindStatus is a status of the agent.
	KindStatus Kind = "status"
	// KindPostgres and KindAgent are lines of the two logs.
	KindPostgres Kind = "postgres"
	KindAgent    Kind = "agent"
	// KindStream is the operator's own word: a connection that began or broke, lines that were lost.
	KindStream Kind = "stream"
)

// Entry is one line of the trail that an instance leaves while it lives.
type Entry struct {
	// At is when it happened: by the agent's clock for what the agent says, by the operator's for the rest.
	At   time.Time `json:"at"`
	Kind Kind      `json:"kind"`
	// Boot and Sequence identify what an agent said, so that what two replicas wrote down is read once.
	Boot     string `json:"boot,omitempty"`
	Sequence uint64 `json:"seq,omitempty"`
	// By is the replica of the operator, for KindStream.
	By string `json:"by,omitempty"`
	// Text is the line, or what happened.
	Text string `json:"text,omitempty"`
	// Status in protobuf's JSON, for KindStatus.
	Status json.RawMessage `json:"status,omitempty"`
}

// Walker is whose trail it is.
type Walker struct {
	Namespace, Shard, Instance string
}

// Trails keeps the trails of instances in a bucket, as segments that are written once and never changed:
//
//	trail/<day>/<namespace>/<shard>/<instance>/<time>-<replica>-<number>.jsonl.gz
//
// The replica is in the name, so that two can write at the same time; the day comes first, so that old ones are found
// without listing all.
type Trails struct{ bucket Bucket }

const (
	dayFormat     = "2006-01-02"
	segmentFormat = "150405.000"
	segmentEnd    = ".jsonl.gz"
	// lineMost bounds one line of a segment in reading. Statuses are a few KiB.
	lineMost = 1 << 20
	// segmentMost bounds one segment in reading, uncompressed.
	segmentMost = 64 << 20
)

// Write stores a segment and returns its size in bytes.
func (t Trails) Write(ctx context.Context, who Walker, replica string, number uint64, now time.Time, entries []Entry) (int, error) {
	var out bytes.Buffer
	packed := gzip.NewWriter(&out)
	if err := WriteEntries(packed, entries); err != nil {
		return 0, err
	}
	if err := packed.Close(); err != nil {
		return 0, err
	}
	now = now.UTC()
	name := fmt.Sprintf("%s-%s-%d%s", now.Format(segmentFormat), strings.ReplaceAll(replica, "/", "_"), number, segmentEnd)
	key := path.Join(now.Format(dayFormat), who.Namespace, who.Shard, who.Instance, name)
	if err := t.bucket.Write(ctx, key, "application/gzip", bytes.NewReader(out.Bytes())); err != nil {
		return 0, fmt.Errorf("the trail of %s cannot be stored: %w", who.Instance, err)
	}
	return out.Len(), nil
}

// WriteEntries writes entries as lines of JSON.
func WriteEntries(w io.Writer, entries []Entry) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for i := range entries {
		if err := enc.Encode(&entries[i]); err != nil {
			return err
		}
	}
	return nil
}

// ReadEntries reads what WriteEntries wrote. Of a damaged or shortened text everything readable is returned, with the
// error.
func ReadEntries(r io.Reader) ([]Entry, error) {
	lines := bufio.NewScanner(io.LimitReader(r, segmentMost))
	lines.Buffer(nil, lineMost)
	var entries []Entry
	var damaged error
	for lines.Scan() {
		var e Entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			damaged = cmp.Or(damaged, fmt.Errorf("a line after %d entries is damaged: %w", len(entries), err))
			continue
		}
		entries = append(entries, e)
	}
	return entries, cmp.Or(damaged, lines.Err())
}

// Read gives the entries of an instance between two times, in their order, and what could not be read of them.
// The error is about the bucket; with it comes what was read before.
func (t Trails) Read(ctx context.Context, who Walker, from, until time.Time) (entries []Entry, problems []error, err error) {
	for day := from.UTC().Truncate(24 * time.Hour); !day.After(until.UTC()); day = day.Add(24 * time.Hour) {
		prefix := path.Join(day.Format(dayFormat), who.Namespace, who.Shard, who.Instance) + "/"
		err := t.bucket.each(ctx, prefix, func(key string, _ int64) error {
			at, ok := segmentTime(day, key)
			if !ok || at.Before(from) {
				return nil // a segment is written after everything in it
			}
			some, err := t.segment(ctx, key)
			if err != nil {
				problems = append(problems, fmt.Errorf("%s: %w", key, err))
			}
			entries = append(entries, some...)
			return ctx.Err()
		})
		if err != nil {
			return Merge(entries), problems, err
		}
	}
	entries = slices.DeleteFunc(entries, func(e Entry) bool { return e.At.Before(from) || e.At.After(until) })
	return Merge(entries), problems, nil
}

func (t Trails) segment(ctx context.Context, key string) ([]Entry, error) {
	bucket, err := t.bucket.opened.get(ctx)
	if err != nil {
		return nil, err
	}
	r, err := bucket.NewReader(ctx, t.bucket.key(key), nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	plain, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	return ReadEntries(plain)
}

// segmentTime is when a segment was written.
func segmentTime(day time.Time, key string) (time.Time, bool) {
	name := path.Base(key)
	if !strings.HasSuffix(name, segmentEnd) || len(name) < len(segmentFormat) {
		return time.Time{}, false
	}
	of, err := time.Parse(segmentFormat, name[:len(segmentFormat)])
	if err != nil {
		return time.Time{}, false
	}
	return day.Add(of.Sub(of.Truncate(24 * time.Hour))), true
}

// Merge orders entries by time and drops what was written down twice.
func Merge(entries []Entry) []Entry {
	slices.SortStableFunc(entries, func(a, b Entry) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Boot, b.Boot), cmp.Compare(a.Sequence, b.Sequence))
	})
	type identity struct {
		kind     Kind
		boot, by string
		sequence uint64
		at       int64
		text     string
	}
	seen := map[identity]bool{}
	return slices.DeleteFunc(entries, func(e Entry) bool {
		id := identity{kind: e.Kind, boot: e.Boot, sequence: e.Sequence}
		if e.Kind == KindStream {
			id.by, id.at, id.text = e.By, e.At.UnixNano(), e.Text
		}
		twice := seen[id]
		seen[id] = true
		return twice
	})
}

// Walkers lists the instances of a namespace that have left a trail, newest day first; "" lists all namespaces.
func (t Trails) Walkers(ctx context.Context, namespace string) ([]Walker, error) {
	days, err := t.bucket.folders(ctx, "")
	if err != nil {
		return nil, err
	}
	slices.Reverse(days)
	var out []Walker
	seen := map[Walker]bool{}
	for _, day := range days {
		err := t.bucket.each(ctx, path.Join(day, namespace)+"/", func(key string, _ int64) error {
			parts := strings.Split(key, "/")
			if len(parts) != 5 {
				return nil
			}
			w := Walker{Namespace: parts[1], Shard: parts[2], Instance: parts[3]}
			if !seen[w] {
				seen[w] = true
				out = append(out, w)
			}
			return nil
		})
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

// Prune deletes the days that ended longer than keep ago and returns how many segments went.
func (t Trails) Prune(ctx context.Context, now time.Time, keep time.Duration) (int, error) {
	days, err := t.bucket.folders(ctx, "")
	if err != nil {
		return 0, err
	}
	n := 0
	for _, name := range days {
		day, err := time.Parse(dayFormat, name)
		if err != nil || now.Sub(day.Add(24*time.Hour)) < keep {
			continue
		}
		err = t.bucket.each(ctx, name+"/", func(key string, _ int64) error {
			n++
			return t.bucket.remove(ctx, key)
		})
		if err != nil {
			return n, fmt.Errorf("the trails of %s cannot be deleted: %w", name, err)
		}
	}
	return n, nil
}

// Shrink deletes the oldest segments until no more than most bytes are left, and returns how many went: for a directory that
// must not fill its disk.
func (t Trails) Shrink(ctx context.Context, most int64) (int, error) {
	type segment struct {
		key  string
		at   time.Time
		size int64
	}
	var all []segment
	total := int64(0)
	err := t.bucket.each(ctx, "", func(key string, size int64) error {
		name, _, _ := strings.Cut(key, "/")
		if day, err := time.Parse(dayFormat, name); err == nil {
			at, _ := segmentTime(day, key)
			all = append(all, segment{key, at, size})
			total += size
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	slices.SortFunc(all, func(a, b segment) int { return a.at.Compare(b.at) })
	n := 0
	for _, s := range all {
		if total <= most {
			break
		}
		if err := t.bucket.remove(ctx, s.key); err != nil {
			return n, err
		}
		total -= s.size
		n++
	}
	return n, nil
}

// each calls f with every key below a prefix and its size, in their order.
func (b Bucket) each(ctx context.Context, prefix string, f func(key string, size int64) error) error {
	return b.list(ctx, prefix, "", func(o *blob.ListObject, key string) error { return f(key, o.Size) })
}

// folders lists the names one level below a prefix.
func (b Bucket) folders(ctx context.Context, prefix string) ([]string, error) {
	var out []string
	err := b.list(ctx, prefix, "/", func(o *blob.ListObject, key string) error {
		if o.IsDir {
			out = append(out, path.Base(key))
		}
		return nil
	})
	return out, err
}

func (b Bucket) list(ctx context.Context, prefix, delimiter string, f func(o *blob.ListObject, key string) error) error {
	bucket, err := b.opened.get(ctx)
	if err != nil {
		return err
	}
	own := b.prefix
	if own != "" {
		own += "/"
	}
	it := bucket.List(&blob.ListOptions{Prefix: own + prefix, Delimiter: delimiter})
	for {
		o, err := it.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("what is below %q cannot be listed: %w", own+prefix, err)
		}
		if err := f(o, strings.TrimPrefix(o.Key, own)); err != nil {
			return err
		}
	}
}

// remove deletes an object; one that is not there is deleted.
func (b Bucket) remove(ctx context.Context, key string) error {
	bucket, err := b.opened.get(ctx)
	if err != nil {
		return err
	}
	if err := bucket.Delete(ctx, b.key(key)); gcerrors.Code(err) != gcerrors.NotFound {
		return err
	}
	return nil
}
