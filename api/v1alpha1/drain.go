package v1alpha1

// Annotations and labels by which somebody says that a node or an instance should go.
const (
	// AnnotationDrain on a Node has the instances moved off it; the value says why, for people. Removing it takes the
	// request back as far as nothing has begun.
	AnnotationDrain = "theseus.dev/drain"
	// TaintDead on a Node (NoSchedule) says that its machine answers nobody although Kubernetes still calls it ready. The
	// operator sets it, and takes it away when Kubernetes has noticed too, or after a minute and a half.
	TaintDead = "theseus.dev/dead"
	// AnnotationEvictionRequested on an instance's Pod is when its eviction was asked for last (RFC 3339). The operator's
	// webhook sets it, since an eviction that is refused leaves no other trace.
	AnnotationEvictionRequested = "theseus.dev/eviction-requested"
	// AnnotationEvictionCordoned is "true" when the Pod's node was cordoned at that time: then uncordoning it takes the
	// request back.
	AnnotationEvictionCordoned = "theseus.dev/eviction-cordoned"
	// AnnotationCordonedFor on a Node names the NodePolicy that cordoned it, which alone may uncordon it.
	AnnotationCordonedFor = "theseus.dev/cordoned-for"
	// LabelAging on a Node ("true") says that it goes soon for its age: instances are placed there, and primaries left there,
	// only where there is no better place. The NodePolicy that selects the node sets it and takes it away.
	LabelAging = "theseus.dev/aging"
	// AnnotationNode on a Replacement is the node on whose account it was asked for.
	AnnotationNode = "theseus.dev/node"
)
