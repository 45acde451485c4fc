package main

import (
	"bytes"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

func parsed(t *testing.T, args ...string) *evidenceFlags {
	var e evidenceFlags
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	e.register(f)
	require.NoError(t, f.Parse(args))
	return &e
}

func TestEvidenceBuckets(t *testing.T) {
	keep, err := parsed(t).options()
	require.NoError(t, err)
	require.Nil(t, keep, "without a bucket nothing is kept")
	for _, url := range []string{"s3://name?region=eu-west-1", "gs://name", "azblob://name", "file:///var/lib/theseus/evidence"} {
		keep, err := parsed(t, "--evidence-bucket="+url).options()
		require.NoError(t, err, url)
		require.True(t, keep.Shared)
	}
	_, err = parsed(t, "--evidence-bucket=ftp://name").options()
	require.ErrorContains(t, err, "this program knows azblob, file, gs, s3")
	_, err = parsed(t, "--evidence-bucket=gs://name", "--evidence-every=0s").options()
	require.Error(t, err)
}

// What autopsy runs in the operator's Pod, with the bucket of its environment.
func TestTheOtherEndOfAutopsy(t *testing.T) {
	run := func(args ...string) (string, error) {
		root := newRoot()
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetArgs(append([]string{"evidence"}, args...))
		err := root.Execute()
		return out.String(), err
	}
	t.Setenv(envBucket, "")
	_, err := run("list")
	require.ErrorContains(t, err, "no evidence is kept")
	t.Setenv(envBucket, "file://"+t.TempDir())
	out, err := run("list", "--namespace=ns")
	require.NoError(t, err)
	require.JSONEq(t, `{"cases":null,"trails":null}`, out)
	out, err = run("export", "--namespace=ns", "db-0-nobody")
	require.NoError(t, err, "nothing found is an answer")
	require.Contains(t, out, "index.json")
}
