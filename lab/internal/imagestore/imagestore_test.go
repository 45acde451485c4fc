package imagestore

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st))
	return st.Ino
}

func TestCloneSharesContentsAndCopiesDatabases(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "root")
	require.NoError(t, os.MkdirAll(filepath.Join(from, "snapshots/1/fs"), 0o711))
	require.NoError(t, os.WriteFile(filepath.Join(from, "snapshots/1/fs/postgres"), []byte("elf"), 0o755))
	require.NoError(t, os.Symlink("postgres", filepath.Join(from, "snapshots/1/fs/link")))
	require.NoError(t, os.WriteFile(filepath.Join(from, "meta.db"), []byte("v1"), 0o600))

	require.NoError(t, Clone(from, to))
	require.Equal(t, inode(t, filepath.Join(from, "snapshots/1/fs/postgres")), inode(t, filepath.Join(to, "snapshots/1/fs/postgres")))
	link, err := os.Readlink(filepath.Join(to, "snapshots/1/fs/link"))
	require.NoError(t, err)
	require.Equal(t, "postgres", link)
	st, err := os.Stat(filepath.Join(to, "snapshots/1"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o711), st.Mode().Perm())

	require.NoError(t, os.WriteFile(filepath.Join(to, "meta.db"), []byte("node's own"), 0o600))
	b, err := os.ReadFile(filepath.Join(from, "meta.db"))
	require.NoError(t, err)
	require.Equal(t, "v1", string(b), "a node must not write into the store's database")

	require.NoError(t, Clone(from, to), "an interrupted clone can be repeated")
}

func TestStaticArchiveIsReproducible(t *testing.T) {
	dir := t.TempDir()
	exe := filepath.Join(dir, "pause")
	require.NoError(t, os.WriteFile(exe, []byte("static"), 0o755))
	a, b := filepath.Join(dir, "a.tar"), filepath.Join(dir, "b.tar")
	require.NoError(t, WriteStatic(a, "theseus.dev/lab/pause:1", exe))
	require.NoError(t, WriteStatic(b, "theseus.dev/lab/pause:1", exe))
	da, err := Digest(a)
	require.NoError(t, err)
	db, err := Digest(b)
	require.NoError(t, err)
	require.Equal(t, da, db)

	image, err := tarball.ImageFromPath(a, nil)
	require.NoError(t, err)
	c, err := image.ConfigFile()
	require.NoError(t, err)
	require.Equal(t, []string{"/pause"}, c.Config.Entrypoint)
	require.Len(t, c.RootFS.DiffIDs, 1)
	require.Error(t, WriteStatic(a, "x", filepath.Join(dir, "missing")))
}
