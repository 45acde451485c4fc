package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var epoch = time.Unix(1000, 0).UTC()

// entry is one entry of a tar, with its content.
type entry struct {
	tar.Header
	body string
}

func pack(t *testing.T, entries ...entry) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Size = int64(len(e.body))
		require.NoError(t, w.WriteHeader(&e.Header))
		_, err := io.WriteString(w, e.body)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return &b
}

func unpack(t *testing.T, compressed []byte) map[string]entry {
	t.Helper()
	gz, err := gzip.NewReader(bytes.NewReader(compressed))
	require.NoError(t, err)
	out := map[string]entry{}
	for r := tar.NewReader(gz); ; {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		require.NoError(t, err)
		body, err := io.ReadAll(r)
		require.NoError(t, err)
		out[h.Name] = entry{*h, string(body)}
	}
}

// copied runs Copy over entries, leaving out names that begin with "drop".
func copied(t *testing.T, entries ...entry) ([]byte, Blob, error) {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, epoch, gzip.BestSpeed)
	require.NoError(t, err)
	if err := Copy(w, pack(t, entries...), func(name string) bool { return strings.HasPrefix(name, "drop") }, nil); err != nil {
		return nil, Blob{}, err
	}
	blob, err := w.Close()
	require.NoError(t, err)
	return b.Bytes(), blob, nil
}

func file(name, body string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: epoch}, body}
}

func link(kind byte, name, target string) entry {
	return entry{tar.Header{Typeflag: kind, Name: name, Linkname: target, Mode: 0o777, ModTime: epoch}, ""}
}

func TestABlobDescribesItsBytes(t *testing.T) {
	data, blob, err := copied(t, file("./a", "hello"))
	require.NoError(t, err)
	require.EqualValues(t, len(data), blob.Size)
	require.Equal(t, fmt.Sprintf("%x", sha256.Sum256(data)), blob.Digest.Hex)
	gz, err := gzip.NewReader(bytes.NewReader(data))
	require.NoError(t, err)
	raw, err := io.ReadAll(gz)
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("%x", sha256.Sum256(raw)), blob.DiffID.Hex)
}

func TestOnlyContentModesNumbersAndOldTimesSurvive(t *testing.T) {
	rich := file("./usr/bin/su", "x")
	rich.Mode, rich.Uid, rich.Gid, rich.Uname, rich.Gname = 0o6755, 7, 8, "somebody", "some"
	rich.ModTime = epoch.Add(time.Hour + time.Nanosecond)
	rich.Format, rich.AccessTime = tar.FormatPAX, epoch
	rich.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "x"}
	old := file("old", "")
	old.ModTime = epoch.Add(-time.Hour)
	sticky := entry{tar.Header{Typeflag: tar.TypeDir, Name: "./tmp/", Mode: 0o1777, ModTime: epoch}, ""}

	data, _, err := copied(t, entry{tar.Header{Typeflag: tar.TypeDir, Name: "./"}, ""}, rich, old, sticky)
	require.NoError(t, err)
	got := unpack(t, data)
	su := got["usr/bin/su"]
	require.EqualValues(t, 0o755, su.Mode, "setuid bits must go")
	require.Equal(t, []any{7, 8, "", ""}, []any{su.Uid, su.Gid, su.Uname, su.Gname})
	require.True(t, su.ModTime.Equal(epoch))
	require.Empty(t, su.PAXRecords)
	require.True(t, got["old"].ModTime.Equal(epoch.Add(-time.Hour)))
	require.EqualValues(t, 0o1777, got["tmp/"].Mode, "the sticky bit of /tmp must stay")
	require.NotContains(t, got, "./")
	require.Len(t, got, 3)
}

func TestTwoTarsThatDifferOnlyInNoiseMakeOneLayer(t *testing.T) {
	noisy := file("./a", "hello")
	noisy.Uname, noisy.ModTime = "x", epoch.Add(time.Hour)
	_, one, err := copied(t, file("a", "hello"))
	require.NoError(t, err)
	_, two, err := copied(t, noisy)
	require.NoError(t, err)
	require.Equal(t, one, two)
	_, three, err := copied(t, file("a", "hellO"))
	require.NoError(t, err)
	require.NotEqual(t, one, three)
}

func TestLinksToWhatIsLeftOut(t *testing.T) {
	data, _, err := copied(t,
		link(tar.TypeSymlink, "./etc/hash.0", "../dropped/cert.pem"),
		link(tar.TypeSymlink, "./etc/abs", "/dropped/x"),
		link(tar.TypeSymlink, "./etc/kept", "passwd"),
		link(tar.TypeSymlink, "./etc/dangling", "drop"), // etc/drop, which is not left out
		file("./dropped/x", ""),
	)
	require.NoError(t, err)
	got := unpack(t, data)
	require.Len(t, got, 2)
	require.Contains(t, got, "etc/kept")
	require.Contains(t, got, "etc/dangling")

	_, _, err = copied(t, file("./dropped/x", ""), link(tar.TypeLink, "./kept", "./dropped/x"))
	require.ErrorContains(t, err, "hard link")
	data, _, err = copied(t, file("./a", "1"), link(tar.TypeLink, "./b", "./a"))
	require.NoError(t, err)
	require.Equal(t, "a", unpack(t, data)["b"].Linkname)
}

func TestDevicesAndDamageAreErrors(t *testing.T) {
	_, _, err := copied(t, entry{tar.Header{Typeflag: tar.TypeChar, Name: "./null"}, ""})
	require.ErrorContains(t, err, "null")

	w, err := NewWriter(io.Discard, epoch, gzip.BestSpeed)
	require.NoError(t, err)
	whole, err := io.ReadAll(pack(t, file("a", strings.Repeat("x", 5000))))
	require.NoError(t, err)
	never := func(string) bool { return false }
	require.Error(t, Copy(w, bytes.NewReader(whole[:2000]), never, nil))
}

func TestInspectionSeesWhatIsKept(t *testing.T) {
	var seen bytes.Buffer
	w, err := NewWriter(io.Discard, epoch, gzip.BestSpeed)
	require.NoError(t, err)
	require.NoError(t, Copy(w, pack(t, file("./a", "hello"), file("./b", "no")), func(string) bool { return false },
		func(name string) io.Writer {
			if name == "a" {
				return &seen
			}
			return nil
		}))
	require.Equal(t, "hello", seen.String())
}

func TestCleanName(t *testing.T) {
	for in, want := range map[string]string{"./": ".", ".": ".", "/": ".", "./a/": "a", "/a": "a", "a/../b": "b", "../../a": "a"} {
		require.Equal(t, want, CleanName(in), in)
	}
}
