package cgroup

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseTellsTheVersionsApart(t *testing.T) {
	hybrid := []string{
		"27 24 0:23 / /sys/fs/cgroup rw shared:7 - tmpfs tmpfs rw,mode=755",
		"28 27 0:24 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset",
		"29 27 0:25 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
		"30 27 0:26 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer",
		"31 27 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
		"32 27 0:28 / /mnt/elsewhere rw - cgroup cgroup rw,memory",
	}
	tree, err := parse(hybrid)
	require.NoError(t, err)
	require.Equal(t, 1, tree.Version())
	require.Len(t, tree.roots, 4, "the empty v2 tree counts, a mount elsewhere does not")
	require.Equal(t, "/sys/fs/cgroup/cpuset", tree.cpuset)
	require.Equal(t, "/sys/fs/cgroup/freezer", tree.freezer)

	pure := []string{"27 24 0:23 / /sys/fs/cgroup rw shared:7 - cgroup2 cgroup2 rw,nsdelegate"}
	tree, err = parse(pure)
	require.NoError(t, err)
	require.Equal(t, 2, tree.Version())
	require.Equal(t, []string{"/sys/fs/cgroup/theseus-lab/x/n/system/cgroup.procs"}, tree.ProcsFiles("/theseus-lab/x/n"))

	_, err = parse([]string{"garbage", "1 2 3 / /proc rw - proc proc rw"})
	require.Error(t, err)
}

func TestFreezeStates(t *testing.T) {
	v1 := &Tree{freezer: "/f"}
	file, want, check := v1.freezeFiles("/a", true)
	require.Equal(t, []string{"/f/a/freezer.state", "FROZEN", "/f/a/freezer.state"}, []string{file, want, check})
	require.False(t, settled("FREEZING\n", true, false))
	require.True(t, settled("FROZEN\n", true, false))
	require.True(t, settled("THAWED\n", false, false))

	v2 := &Tree{v2: true, roots: []string{"/c"}}
	file, want, check = v2.freezeFiles("/a", false)
	require.Equal(t, []string{"/c/a/cgroup.freeze", "0", "/c/a/cgroup.events"}, []string{file, want, check})
	require.True(t, settled("populated 1\nfrozen 0\n", false, true))
	require.False(t, settled("populated 1\nfrozen 0\n", true, true))
}
