package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/api/v1alpha1"
)

func TestTheFlagOfMachines(t *testing.T) {
	var m machines
	require.Nil(t, m, "without the flag it is both")
	require.NoError(t, m.Set("karpenter,clusterapi"))
	require.Equal(t, machines{v1alpha1.MachineKarpenter, v1alpha1.MachineClusterAPI}, m)
	require.Equal(t, "clusterapi,karpenter", m.String())
	require.NoError(t, m.Set("clusterapi"))
	require.Equal(t, machines{v1alpha1.MachineClusterAPI}, m)
	require.NoError(t, m.Set(""))
	require.NotNil(t, m, "nobody's is not everybody's")
	require.Empty(t, m)
	require.ErrorContains(t, m.Set("vmware"), "vmware")
	require.NoError(t, newOperator().ParseFlags([]string{"--machines="}))
	require.Error(t, newOperator().ParseFlags([]string{"--machines=Karpenter"}))
}

// The words of the chart are those of the flag.
func TestTheChartSaysWhoseMachines(t *testing.T) {
	read := func(name string) string {
		text, err := os.ReadFile("../../charts/theseus/templates/" + name)
		require.NoError(t, err)
		return string(text)
	}
	require.Contains(t, read("deployment.yaml"), `--machines={{ include "theseus.machines" . }}`)
	for word := range providers() {
		require.Contains(t, read("_helpers.tpl"), `append $whose "`+word+`"`)
	}
}
