package theseus

import (
	"testing"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/api/v1alpha1"
)

func TestAiling(t *testing.T) {
	healthy := func() v1alpha1.ShardStatus {
		return v1alpha1.ShardStatus{
			Term: 4, Primary: "a",
			Record: v1alpha1.CohortRecord{
				EstablishedTerm: 4,
				Cohorts:         []v1alpha1.CohortStatus{{Term: 4, Primary: "a", Members: []string{"b", "c"}, Acks: 1}},
			},
			Instances: []v1alpha1.InstanceStatus{{Name: "a", Ready: true}, {Name: "b", Ready: true}, {Name: "c", Ready: true}},
		}
	}
	require.Empty(t, ailing(healthy()))
	for want, change := range map[string]func(*v1alpha1.ShardStatus){
		"0 cohorts are recorded":           func(s *v1alpha1.ShardStatus) { s.Record.Cohorts = nil },
		"term 5 is not established":        func(s *v1alpha1.ShardStatus) { s.Term = 5 },
		"term 4 is not established":        func(s *v1alpha1.ShardStatus) { s.Record.EstablishedTerm = 3 },
		"b is named as the primary, not a": func(s *v1alpha1.ShardStatus) { s.Primary = "b" },
		"the cohort has 1 members":         func(s *v1alpha1.ShardStatus) { s.Record.Cohorts[0].Members = []string{"b"} },
		"there are 2 instances":            func(s *v1alpha1.ShardStatus) { s.Instances = s.Instances[:2] },
		"b is not ready: being seeded":     func(s *v1alpha1.ShardStatus) { s.Instances[1].Ready, s.Instances[1].Message = false, "being seeded" },
	} {
		s := healthy()
		change(&s)
		require.Equal(t, want, ailing(s))
	}
}
