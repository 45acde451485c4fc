package evidence

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
)

// Bucket stores bundles in a bucket, below a prefix.
type Bucket struct {
	opened *opened
	prefix string
}

// opened opens a bucket when it is first used, and again after that failed: credentials that cannot be had for a moment must
// not keep the program from starting.
type opened struct {
	open func(ctx context.Context) (*blob.Bucket, error)

	mu     sync.Mutex
	bucket *blob.Bucket
}

func (o *opened) get(ctx context.Context) (*blob.Bucket, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.bucket != nil {
		return o.bucket, nil
	}
	b, err := o.open(ctx)
	if err != nil {
		return nil, err
	}
	o.bucket = b
	return b, nil
}

var _ Store = Bucket{}

// NewBucket uses an open bucket; closing it is the caller's.
func NewBucket(b *blob.Bucket, prefix string) Bucket {
	return Bucket{opened: &opened{bucket: b}, prefix: strings.Trim(prefix, "/")}
}

// Open opens a bucket by its URL, with whatever drivers the program has imported. Directories (file://) are made when they
// are missing, and files appear in them whole or not at all. Only an address that nothing can be made of is an error: what
// else prevents opening is the error of the first use, and the next one tries again.
func Open(address, prefix string) (Bucket, error) {
	u, err := url.Parse(address)
	if err != nil {
		return Bucket{}, fmt.Errorf("%q is no URL of a bucket: %w", address, err)
	}
	if u.Scheme == "file" {
		q := u.Query()
		for name, value := range map[string]string{"create_dir": "true", "no_tmp_dir": "true", "metadata": "skip"} {
			if !q.Has(name) {
				q.Set(name, value)
			}
		}
		u.RawQuery = q.Encode()
	}
	if !blob.DefaultURLMux().ValidBucketScheme(u.Scheme) {
		return Bucket{}, fmt.Errorf("evidence cannot be kept in %q: this program knows %s", u.Redacted(), strings.Join(blob.DefaultURLMux().BucketSchemes(), ", "))
	}
	open := func(ctx context.Context) (*blob.Bucket, error) {
		b, err := blob.OpenBucket(ctx, u.String())
		if err != nil {
			return nil, fmt.Errorf("evidence cannot be kept in %q: %w", u.Redacted(), err)
		}
		return b, nil
	}
	return Bucket{opened: &opened{open: open}, prefix: strings.Trim(prefix, "/")}, nil
}

// Cases are the bundles of condemned instances in the bucket.
func (b Bucket) Cases() Bucket { return Bucket{opened: b.opened, prefix: path.Join(b.prefix, "cases")} }

// Trails are what the flight recorder wrote in the bucket.
func (b Bucket) Trails() Trails {
	return Trails{Bucket{opened: b.opened, prefix: path.Join(b.prefix, "trail")}}
}

// Close closes the bucket, if it was ever used.
func (b Bucket) Close() error {
	b.opened.mu.Lock()
	defer b.opened.mu.Unlock()
	if b.opened.bucket == nil {
		return nil
	}
	return b.opened.bucket.Close()
}

func (b Bucket) key(k string) string { return path.Join(b.prefix, k) }

// Write stores one object. When the reader or the context fails nothing, or what came before, is stored.
func (b Bucket) Write(ctx context.Context, key, contentType string, r io.Reader) error {
	if contentType == "" {
		contentType = "application/octet-stream"
	}
	bucket, err := b.opened.get(ctx)
	if err != nil {
		return err
	}
	return bucket.Upload(ctx, b.key(key), r, &blob.WriterOptions{ContentType: contentType})
}

func writeManifest(ctx context.Context, store Store, m Manifest) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := store.Write(ctx, m.Subject.Name()+"/"+manifestName, "application/json", bytes.NewReader(append(text, '\n'))); err != nil {
		return fmt.Errorf("the manifest of %s could not be stored: %w", m.Subject.Name(), err)
	}
	return nil
}

// ErrNoBundle says that there is no bundle of that name.
var ErrNoBundle = errors.New("no such bundle")

// Summary of a bundle in a list.
type Summary struct {
	Name string
	// At is when its subject was condemned, as far as its name tells.
	At time.Time
	// Complete is true when its manifest is there.
	Complete bool
}

// List lists bundles whose names begin with a namespace, or namespace/shard, newest first; "" lists all.
func (b Bucket) List(ctx context.Context, under string) ([]Summary, error) {
	prefix := strings.Trim(under, "/")
	if prefix != "" {
		prefix += "/"
	}
	found := map[string]*Summary{}
	err := b.each(ctx, prefix, func(key string, _ int64) error {
		parts := strings.Split(key, "/")
		if len(parts) != 4 {
			return nil
		}
		name := path.Join(parts[:3]...)
		s := found[name]
		if s == nil {
			s = &Summary{Name: name}
			stamp, _, _ := strings.Cut(parts[2], "-")
			s.At, _ = time.Parse(timeFormat, stamp)
			found[name] = s
		}
		s.Complete = s.Complete || parts[3] == manifestName
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := make([]Summary, 0, len(found))
	for _, s := range found {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(x, y Summary) int {
		if c := y.At.Compare(x.At); c != 0 {
			return c
		}
		return strings.Compare(x.Name, y.Name)
	})
	return out, nil
}

// Find resolves what a person types: a bundle's name, or the name of an instance (the newest bundle of it).
func (b Bucket) Find(ctx context.Context, what string) (string, error) {
	all, err := b.List(ctx, "")
	if err != nil {
		return "", err
	}
	for _, s := range all {
		_, instance, _ := strings.Cut(path.Base(s.Name), "-")
		if s.Name == strings.Trim(what, "/") || instance == what || path.Base(s.Name) == what {
			return s.Name, nil
		}
	}
	return "", fmt.Errorf("%q: %w", what, ErrNoBundle)
}

// Manifest reads what a bundle holds. Of a bundle without a manifest it lists what is there, as incomplete.
func (b Bucket) Manifest(ctx context.Context, name string) (Manifest, error) {
	bucket, err := b.opened.get(ctx)
	if err != nil {
		return Manifest{}, err
	}
	text, err := bucket.ReadAll(ctx, b.key(name+"/"+manifestName))
	if err == nil {
		var m Manifest
		if err := json.Unmarshal(text, &m); err != nil {
			return Manifest{}, fmt.Errorf("the manifest of %s is damaged: %w", name, err)
		}
		return m, nil
	}
	if gcerrors.Code(err) != gcerrors.NotFound {
		return Manifest{}, fmt.Errorf("the manifest of %s cannot be read: %w", name, err)
	}
	m := Manifest{Incomplete: true}
	if text, err := bucket.ReadAll(ctx, b.key(name+"/"+subjectName+".json")); err == nil {
		if err := json.Unmarshal(text, &m.Subject); err != nil {
			return Manifest{}, fmt.Errorf("the subject of %s is damaged: %w", name, err)
		}
	}
	if m.Items, err = b.Files(ctx, name); err != nil {
		return Manifest{}, err
	}
	if len(m.Items) == 0 {
		return Manifest{}, fmt.Errorf("%q: %w", name, ErrNoBundle)
	}
	return m, nil
}

// Files lists what is stored of a bundle besides its manifest: also what an earlier collection left that did not get to its
// end, and that the manifest of the later one does not know.
func (b Bucket) Files(ctx context.Context, name string) ([]Item, error) {
	var items []Item
	err := b.each(ctx, name+"/", func(key string, size int64) error {
		if check(path.Base(key)) == nil {
			items = append(items, Item{Name: path.Base(key), Size: size})
		}
		return nil
	})
	return items, err
}

// Read opens one item of a bundle.
func (b Bucket) Read(ctx context.Context, name, item string) (io.ReadCloser, error) {
	if err := check(item); err != nil {
		return nil, err
	}
	bucket, err := b.opened.get(ctx)
	if err != nil {
		return nil, err
	}
	r, err := bucket.NewReader(ctx, b.key(name+"/"+item), nil)
	if gcerrors.Code(err) == gcerrors.NotFound {
		return nil, fmt.Errorf("%s has no %s: %w", name, item, ErrNoBundle)
	}
	return r, err
}

// Prune deletes bundles older than keep and returns how many. Evidence gets old, too.
func (b Bucket) Prune(ctx context.Context, now time.Time, keep time.Duration) (int, error) {
	all, err := b.List(ctx, "")
	if err != nil {
		return 0, err
	}
	n := 0
	for _, s := range all {
		if s.At.IsZero() || now.Sub(s.At) < keep {
			continue
		}
		items, err := b.Files(ctx, s.Name)
		if err != nil {
			return n, err
		}
		// The manifest goes first: half a bundle must not look whole.
		keys := []string{manifestName}
		for _, i := range items {
			keys = append(keys, i.Name)
		}
		for _, k := range keys {
			if err := b.remove(ctx, s.Name+"/"+k); err != nil {
				return n, fmt.Errorf("%s of %s cannot be deleted: %w", k, s.Name, err)
			}
		}
		n++
	}
	return n, nil
}
