// Package v1alpha1 is the API of Theseus: what a user writes (Database, NodePolicy) and what the
// controllers write down for each other and for people to read (Shard, Reparent, Replacement).
//
// Ages and time-outs are Go durations ("696h"), sizes are Kubernetes quantities, terms are int64 counted from 1.
//
// +kubebuilder:object:generate=true
// +groupName=theseus.dev
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var (
	// GroupVersion is theseus.dev/v1alpha1.
	GroupVersion = schema.GroupVersion{Group: "theseus.dev", Version: "v1alpha1"}
	// SchemeBuilder collects the kinds of this package.
	SchemeBuilder = runtime.NewSchemeBuilder(addKnownTypes)
	// AddToScheme adds the kinds of this package to a scheme.
	AddToScheme = SchemeBuilder.AddToScheme
)

func addKnownTypes(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&Database{}, &DatabaseList{},
		&Shard{}, &ShardList{},
		&Reparent{}, &ReparentList{},
		&Replacement{}, &ReplacementList{},
		&NodePolicy{}, &NodePolicyList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
