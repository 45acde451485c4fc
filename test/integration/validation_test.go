//go:build integration

package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/postgres"
)

// minimal is the smallest Database; edits below break it in one way each.
func minimal() map[string]any {
	return map[string]any{
		"apiVersion": "theseus.dev/v1alpha1", "kind": "Database",
		"metadata": map[string]any{"name": "orders"},
		"spec":     map[string]any{"storage": map[string]any{"size": "1Gi"}},
	}
}

func set(path string, value any) func(map[string]any) {
	return func(o map[string]any) {
		keys := strings.Split(path, "/")
		for _, k := range keys[:len(keys)-1] {
			next, ok := o[k].(map[string]any)
			if !ok {
				next = map[string]any{}
				o[k] = next
			}
			o = next
		}
		o[keys[len(keys)-1]] = value
	}
}

// apply runs what a user runs.
func apply(t *testing.T, namespace string, object map[string]any, args ...string) (string, error) {
	t.Helper()
	data, err := yaml.Marshal(object)
	require.NoError(t, err)
	args = append([]string{"--kubeconfig", cluster.kubeconfig, "-n", namespace, "apply", "-f", "-"}, args...)
	cmd := exec.Command(filepath.Join(os.Getenv("KUBEBUILDER_ASSETS"), "kubectl"), args...)
	cmd.Stdin = strings.NewReader(string(data))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestABadDatabaseIsRefusedWithAClearMessage(t *testing.T) {
	ns := namespace(t)
	for name, c := range map[string]struct {
		edit func(map[string]any)
		want string
	}{
		"name too long":       {set("metadata/name", strings.Repeat("a", 41)), "metadata.name must be at most 40 characters"},
		"name with a dot":     {set("metadata/name", "a.b"), "metadata.name must be lower case letters, digits and '-'"},
		"name from a digit":   {set("metadata/name", "9a"), "begin with a letter"},
		"name like a shard":   {set("metadata/name", "orders-0"), "must not end in '-' and a number"},
		"no instances":        {set("spec/instances", 0), "spec.instances must be at least 1: a shard without instances serves nobody"},
		"too many instances":  {set("spec/instances", 10), "spec.instances must be at most 9 per shard"},
		"no gateways":         {set("spec/gateway/replicas", 0), "to do without gateways set spec.gateway.enabled to false"},
		"no shards":           {set("spec/shards", 0), "spec.shards"},
		"tiny storage":        {set("spec/storage/size", "10Mi"), "spec.storage.size must be at least 256Mi"},
		"no storage":          {func(o map[string]any) { o["spec"] = map[string]any{} }, "spec.storage"},
		"unknown field":       {set("spec/replicas", 3), `unknown field "spec.replicas"`},
		"unknown deep field":  {set("spec/storage/sice", "1Gi"), `unknown field "spec.storage.sice"`},
		"unknown major":       {set("spec/postgres/major", 12), "Unsupported value: 12"},
		"too old":             {set("spec/lifetime/maxAge", "720h"), "must be between 1m and 696h (29 days): nothing gets older here"},
		"too short a pause":   {set("spec/gateway/maxPause", "10ms"), "spec.gateway.maxPause must be between 1s and 5m"},
		"no duration":         {set("spec/lifetime/alwaysFailover", "7d"), "spec.lifetime.alwaysFailover"},
		"failing over always": {set("spec/lifetime/alwaysFailover", "1s"), "spec.lifetime.alwaysFailover must be at least 10s"},
		"reserved role":       {set("spec/application/owner", "theseus_x"), "those roles are taken"},
		"reserved database":   {set("spec/application/database", "postgres"), "must not be one of PostgreSQL's own databases"},
		"relaxed durability":  {set("spec/durability", "Off"), `Unsupported value: "Off"`},
		"owned parameter":     {set("spec/postgres/parameters", map[string]any{"fsync": "off", "work_mem": "8MB"}), "spec.postgres.parameters: fsync cannot be set: Theseus sets it itself"},
		"upper case":          {set("spec/postgres/parameters", map[string]any{"Fsync": "off"}), "in lower case"},
		"injected line":       {set("spec/postgres/parameters", map[string]any{"work_mem": "8MB'\nfsync = off"}), "must be one line"},
		"asynchronous commit": {set("spec/postgres/parameters", map[string]any{"synchronous_commit": "off"}), "synchronous_commit must be on or remote_apply"},
		"more than the limit": {set("spec/resources", map[string]any{"requests": map[string]any{"cpu": 2, "memory": "1Gi"}, "limits": map[string]any{"cpu": "1500m", "memory": "1Gi"}}), "spec.resources: a request must not be more than its limit"},
		"memory of the other": {set("spec/resources", map[string]any{"requests": map[string]any{"memory": "1Gi"}, "limits": map[string]any{"memory": "512Mi"}}), "spec.resources: a request must not be more than its limit"},
		"deletion policy":     {set("spec/deletionPolicy", "Keep"), `supported values: "Delete", "RetainVolumes"`},
	} {
		t.Run(name, func(t *testing.T) {
			db := minimal()
			c.edit(db)
			out, err := apply(t, ns, db)
			require.Error(t, err, out)
			require.Contains(t, out, c.want)
		})
	}
}

// One object that the operator cannot read would keep it from seeing any other of the kind.
func TestWhatTheOperatorCouldNotReadIsRefused(t *testing.T) {
	ns := namespace(t)
	object := func(kind, name string, spec map[string]any) map[string]any {
		return map[string]any{"apiVersion": v1alpha1.GroupVersion.String(), "kind": kind, "metadata": map[string]any{"name": name}, "spec": spec}
	}
	reparent := func(field string, v any) map[string]any {
		o := object("Reparent", "db-0-2", map[string]any{"shard": "db-0", "term": 2})
		set("spec/"+field, v)(o)
		return o
	}
	policy := func(timeout string) map[string]any {
		return object("NodePolicy", "p-"+ns, map[string]any{
			"selector": map[string]any{}, "machine": map[string]any{"provider": "Webhook", "webhook": map[string]any{"url": "https://x", "timeout": timeout}},
		})
	}
	for name, c := range map[string]struct {
		object map[string]any
		want   string
	}{
		"a name that is no label": {
			object("Replacement", strings.Repeat("a", 64), map[string]any{"shard": "db-0", "instance": "db-0-a"}), "metadata.name must be at most 63 characters",
		},
		"a number":            {reparent("drainTimeout", "5"), "spec.drainTimeout"},
		"days":                {reparent("drainTimeout", "7d"), "spec.drainTimeout"},
		"too long":            {reparent("drainTimeout", "1h"), "spec.drainTimeout must be between 0s and 1m"},
		"the last of terms":   {reparent("term", int64(1)<<62), "spec.term"},
		"a policy's time-out": {policy("3sec"), "spec.machine.webhook.timeout"},
		"no time-out at all":  {policy("0s"), "spec.machine.webhook.timeout must be between 1s and 5m"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := apply(t, ns, c.object)
			require.Error(t, err, out)
			require.Contains(t, out, c.want)
		})
	}
}

func TestEveryOwnedParameterIsRefusedAtAdmission(t *testing.T) {
	ns := namespace(t)
	for pattern := range postgres.Owned() {
		for _, name := range []string{strings.TrimSuffix(pattern, "*"), strings.Replace(pattern, "*", "x", 1)} {
			if strings.HasSuffix(name, "_") {
				name += "y"
			}
			db := &v1alpha1.Database{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "db"}, Spec: v1alpha1.DatabaseSpec{
				Storage:  v1alpha1.StorageSpec{Size: resource.MustParse("1Gi")},
				Postgres: v1alpha1.PostgresSpec{Parameters: map[string]v1alpha1.ParameterValue{name: "1"}},
			}}
			err := cluster.client.Create(t.Context(), db, client.DryRunAll)
			require.ErrorContains(t, err, name+" cannot be set")
		}
	}
}

func TestAChangeThatCannotBeMadeIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		before, edit func(map[string]any)
		want         string
	}{
		"shards":             {nil, set("spec/shards", 2), "spec.shards cannot be changed"},
		"smaller volume":     {nil, set("spec/storage/size", "512Mi"), "spec.storage.size cannot shrink"},
		"major":              {nil, set("spec/postgres/major", 15), "spec.postgres.major cannot be changed in place"},
		"application":        {nil, set("spec/application/owner", "other"), "spec.application cannot be changed"},
		"storage class":      {set("spec/storage/className", "a"), set("spec/storage/className", "b"), "spec.storage.className cannot be changed"},
		"a class appears":    {nil, set("spec/storage/className", "b"), "spec.storage.className cannot be changed, nor added or removed"},
		"a class disappears": {set("spec/storage/className", "a"), set("spec/storage", map[string]any{"size": "1Gi"}), "spec.storage.className cannot be changed, nor added or removed"},
		"back to one":        {nil, set("spec/instances", 1), "spec.instances cannot go back to 1"},
	} {
		t.Run(name, func(t *testing.T) {
			ns := namespace(t)
			db := minimal()
			if c.before != nil {
				c.before(db)
			}
			out, err := apply(t, ns, db)
			require.NoError(t, err, out)
			c.edit(db)
			out, err = apply(t, ns, db)
			require.Error(t, err, out)
			require.Contains(t, out, c.want)
		})
	}
}

func TestGatewaysAskForALittleUnlessTold(t *testing.T) {
	ns := namespace(t)
	for name, c := range map[string]struct {
		given *corev1.ResourceRequirements
		cpu   string
	}{
		"nothing said": {nil, "50m"},
		"none":         {&corev1.ResourceRequirements{}, "0"},
		"said": {&corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")},
		}, "2"},
	} {
		t.Run(name, func(t *testing.T) {
			db := &v1alpha1.Database{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "db"}, Spec: v1alpha1.DatabaseSpec{
				Storage: v1alpha1.StorageSpec{Size: resource.MustParse("1Gi")}, Gateway: v1alpha1.GatewaySpec{Resources: c.given},
			}}
			require.NoError(t, cluster.client.Create(t.Context(), db, client.DryRunAll))
			require.NotNil(t, db.Spec.Gateway.Resources)
			require.Equal(t, c.cpu, db.Spec.Gateway.Resources.Requests.Cpu().String())
		})
	}
}

func TestGoodDatabasesAreLetIn(t *testing.T) {
	for name, edits := range map[string][]func(map[string]any){
		"minimal":    nil,
		"longest":    {set("metadata/name", strings.Repeat("a", 40))},
		"parameters": {set("spec/postgres/parameters", map[string]any{"work_mem": "8MB", "synchronous_commit": "remote_apply", "pg_stat_statements.max": "1000"})},
		"no gateway": {set("spec/gateway/enabled", false)},
		"resources":  {set("spec/resources", map[string]any{"requests": map[string]any{"cpu": 1, "memory": "1Gi"}, "limits": map[string]any{"cpu": "1000m", "memory": "1024Mi", "ephemeral-storage": "1Gi"}})},
		"no limits":  {set("spec/resources", map[string]any{"requests": map[string]any{"cpu": "50m"}})},
		"bigger":     {set("spec/instances", 5), set("spec/shards", 4)},
		"from one":   {set("spec/instances", 1)},
	} {
		t.Run(name, func(t *testing.T) {
			ns := namespace(t)
			db := minimal()
			for _, edit := range edits {
				edit(db)
			}
			out, err := apply(t, ns, db)
			require.NoError(t, err, out)
			set("spec/storage/size", "2Gi")(db)
			if name == "from one" {
				set("spec/instances", 3)(db)
			}
			out, err = apply(t, ns, db)
			require.NoError(t, err, out)
		})
	}
}
