// Package charts is only tests of the chart: that its alerts name metrics that exist and runbooks that say what to do, that the
// operator may do what it does and no more, that mistyped values are refused.
package charts

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	metricName = regexp.MustCompile(`theseus_[a-z_]+`)
	expression = regexp.MustCompile(`(?m)^\s+expr: (.*)$`)
	alert      = regexp.MustCompile(`(?m)^\s+- alert: (\w+)$`)
	runbook    = regexp.MustCompile(`runbook_url: .*\.runbooks }}/(\S+)#(\S+)`)
)

// quoted are the names of metrics that the product's source has as string literals; those of agents have a prefix in common.
func quoted(t *testing.T) map[string]bool {
	names := map[string]bool{}
	require.NoError(t, filepath.WalkDir("../internal", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`"(theseus_[a-z_]+)"`).FindAllStringSubmatch(string(data), -1) {
			names[m[1]] = true
		}
		for _, m := range regexp.MustCompile(`= desc\("([a-z_]+)"`).FindAllStringSubmatch(string(data), -1) {
			names["theseus_agent_"+m[1]] = true
		}
		return err
	}))
	return names
}

func TestAlerts(t *testing.T) {
	files, err := filepath.Glob("theseus/templates/alerts-*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	metrics := quoted(t)
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		text := string(data)
		for _, e := range expression.FindAllStringSubmatch(text, -1) {
			for _, name := range metricName.FindAllString(e[1], -1) {
				base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
				require.True(t, metrics[name] || metrics[base], "%s: no metric %s", file, name)
			}
		}
		alerts, links := alert.FindAllStringSubmatch(text, -1), runbook.FindAllStringSubmatch(text, -1)
		require.NotEmpty(t, alerts, file)
		require.Len(t, links, len(alerts), "%s: every alert has a runbook", file)
		for i, l := range links {
			require.Equal(t, strings.ToLower(alerts[i][1]), l[2], file)
			doc, err := os.ReadFile(filepath.Join("../docs/runbooks", l[1]))
			require.NoError(t, err, file)
			require.Contains(t, string(doc), "\n## "+alerts[i][1]+"\n", l[1])
		}
	}
}
