package charts

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	rbacv1 "k8s.io/api/rbac/v1"
)

// grants are the rules that the operator has by what was rendered: everywhere ("") and by namespace.
type grants map[string][]rbacv1.PolicyRule

func granted(t *testing.T, set ...string) grants {
	t.Helper()
	objects := render(t, set...)
	rules := map[string][]rbacv1.PolicyRule{}
	for _, o := range objects {
		switch o.GetKind() {
		case "ClusterRole":
			rules["ClusterRole/"+o.GetName()] = as[rbacv1.ClusterRole](t, o).Rules
		case "Role":
			rules["Role/"+o.GetNamespace()+"/"+o.GetName()] = as[rbacv1.Role](t, o).Rules
		}
	}
	g := grants{}
	give := func(namespace string, ref rbacv1.RoleRef, to []rbacv1.Subject) {
		require.Equal(t, []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: "theseus-operator", Namespace: release}}, to)
		key := ref.Kind + "/" + ref.Name
		if ref.Kind == "Role" {
			key = ref.Kind + "/" + namespace + "/" + ref.Name
		}
		require.NotEmpty(t, rules[key], "a binding to a role that is not there: %s", key)
		g[namespace] = append(g[namespace], rules[key]...)
	}
	names := map[string]bool{}
	for _, o := range objects {
		id := o.GetKind() + "/" + o.GetNamespace() + "/" + o.GetName()
		require.False(t, names[id], "rendered twice: %s", id)
		names[id] = true
		switch o.GetKind() {
		case "ClusterRoleBinding":
			b := as[rbacv1.ClusterRoleBinding](t, o)
			give("", b.RoleRef, b.Subjects)
		case "RoleBinding":
			b := as[rbacv1.RoleBinding](t, o)
			give(b.Namespace, b.RoleRef, b.Subjects)
		}
	}
	return g
}

// may reports whether the operator may do this in a namespace; in "" it is asked for all namespaces, or for what has none.
func (g grants) may(namespace, verb, group, resource, name string) bool {
	rules := g[""]
	if namespace != "" {
		rules = slices.Concat(rules, g[namespace])
	}
	return slices.ContainsFunc(rules, func(r rbacv1.PolicyRule) bool {
		return slices.Contains(r.Verbs, verb) && slices.Contains(r.APIGroups, group) && slices.Contains(r.Resources, resource) &&
			(len(r.ResourceNames) == 0 || slices.Contains(r.ResourceNames, name))
	})
}

// need is something the operator's code asks of the API server.
type need struct {
	group, resource, name string
	verbs                 []string
}

var (
	reading = []string{"get", "list", "watch"}
	all     = append([]string{"create", "update", "patch", "delete"}, reading...)
	writing = []string{"get", "update", "patch"}

	// inWatched is what it does to Databases and what they are made of.
	inWatched = []need{
		{group: "theseus.dev", resource: "databases", verbs: all},
		{group: "theseus.dev", resource: "databases/status", verbs: writing},
		{group: "theseus.dev", resource: "shards", verbs: all},
		{group: "theseus.dev", resource: "shards/status", verbs: writing},
		{group: "theseus.dev", resource: "reparents", verbs: all},
		{group: "theseus.dev", resource: "reparents/status", verbs: writing},
		{group: "theseus.dev", resource: "replacements", verbs: all},
		{group: "theseus.dev", resource: "replacements/status", verbs: writing},
		// Owner references that block deletion need this of the owner, where the admission plugin for that is on.
		{group: "theseus.dev", resource: "databases/finalizers", verbs: []string{"update"}},
		{group: "theseus.dev", resource: "shards/finalizers", verbs: []string{"update"}},
		{resource: "pods", verbs: all},
		{resource: "pods/eviction", verbs: []string{"create"}},
		{resource: "pods/log", verbs: []string{"get"}},
		{resource: "persistentvolumeclaims", verbs: all},
		{resource: "services", verbs: all},
		{resource: "secrets", verbs: all},
		{group: "apps", resource: "deployments", verbs: all},
		{group: "policy", resource: "poddisruptionbudgets", verbs: all},
		{group: "events.k8s.io", resource: "events", verbs: []string{"create", "patch"}},
		{resource: "events", verbs: []string{"list"}}, // evidence
	}
	// inOwn is what it does in its own namespace.
	inOwn = []need{
		{group: "coordination.k8s.io", resource: "leases", verbs: []string{"get", "create", "update"}},
		{resource: "events", verbs: []string{"create", "patch"}},               // who became leader
		{resource: "secrets", verbs: []string{"get", "create", "update"}},      // the webhook's authority, NodePolicies' Secrets
		{resource: "pods", verbs: []string{"get", "list", "delete"}},           // replicas on dead machines
		{group: "events.k8s.io", resource: "events", verbs: []string{"patch"}}, // whichever API the recorder uses
	}
	// inDefault is where it tells and reads what is told about objects without a namespace.
	inDefault = []need{
		{group: "events.k8s.io", resource: "events", verbs: []string{"create", "patch"}},
		{resource: "events", verbs: []string{"list"}},
	}
	// everywhere is what has no namespace, or a machine's.
	everywhere = []need{
		{resource: "nodes", verbs: append([]string{"patch"}, reading...)},
		{group: "theseus.dev", resource: "nodepolicies", verbs: append([]string{"update"}, reading...)},
		{group: "theseus.dev", resource: "nodepolicies/status", verbs: []string{"update"}},
		{group: "admissionregistration.k8s.io", resource: "validatingwebhookconfigurations", name: "theseus-evictions", verbs: []string{"get", "update"}},
		{group: "karpenter.sh", resource: "nodeclaims", verbs: append([]string{"delete"}, reading...)},
		{group: "cluster.x-k8s.io", resource: "machines", verbs: append([]string{"patch", "delete"}, reading...)},
		{group: "cluster.x-k8s.io", resource: "machinesets", verbs: []string{"get", "patch"}},
		{group: "cluster.x-k8s.io", resource: "machinedeployments", verbs: []string{"get", "patch"}},
	}
)

// each calls f with every verb of the needs.
func each(needs []need, f func(n need, verb string)) {
	for _, n := range needs {
		for _, verb := range n.verbs {
			f(n, verb)
		}
	}
}

func TestTheOperatorMayDoWhatItDoes(t *testing.T) {
	for name, tt := range map[string]struct {
		set     []string
		watched []string
	}{
		"all namespaces":  {watched: []string{"team-a", "team-b", "any"}},
		"some namespaces": {set: []string{"watchNamespaces={team-a,team-b,team-a}"}, watched: []string{"team-a", "team-b"}},
		"its own and default": {
			set: []string{"watchNamespaces={" + release + ",default}"}, watched: []string{release, "default"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := granted(t, tt.set...)
			check := func(namespace string, needs []need) {
				each(needs, func(n need, verb string) {
					require.True(t, g.may(namespace, verb, n.group, n.resource, n.name), "%s %s/%s in %q", verb, n.group, n.resource, namespace)
				})
			}
			for _, ns := range tt.watched {
				check(ns, inWatched)
			}
			check(release, inOwn)
			check("default", inDefault)
			check("", everywhere)
		})
	}
}

// With watchNamespaces nothing of anybody else's is in reach: no Secret above all.
func TestAnOperatorOfSomeNamespacesReachesNoOther(t *testing.T) {
	g := granted(t, "watchNamespaces={team-a,team-b}")
	for _, ns := range []string{"", "any", "kube-system", "default"} {
		each(inWatched, func(n need, verb string) {
			if n.resource == "events" && ns == "default" {
				return
			}
			require.False(t, g.may(ns, verb, n.group, n.resource, n.name), "%s %s/%s in %q", verb, n.group, n.resource, ns)
		})
	}
	for _, verb := range []string{"list", "watch", "patch", "delete"} {
		require.False(t, g.may(release, verb, "", "secrets", "any"), "%s Secrets in its own namespace", verb)
	}
	require.False(t, g.may("", "update", "admissionregistration.k8s.io", "validatingwebhookconfigurations", "somebody-elses"))
	// Nor by a rule that this test does not know of.
	for _, r := range g[""] {
		require.NotContains(t, r.APIGroups, "*")
		require.NotContains(t, r.Verbs, "*")
		for _, resource := range r.Resources {
			require.True(t, slices.ContainsFunc(everywhere, func(n need) bool {
				return n.resource == resource || resource == "nodepolicies/finalizers"
			}), "cluster-wide: %s", resource)
		}
	}
}

func TestMachinesThatNobodyHasAreNotAskedFor(t *testing.T) {
	g := granted(t, "machines.karpenter=false", "machines.clusterAPI=false")
	require.False(t, g.may("", "get", "karpenter.sh", "nodeclaims", ""))
	require.False(t, g.may("", "get", "cluster.x-k8s.io", "machines", ""))
	require.True(t, g.may("", "patch", "", "nodes", ""))
}
