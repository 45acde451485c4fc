package replacement

import "theseus.dev/theseus/api/v1alpha1"

// ChooseVolume decides by reason whether the successor takes over the volume.
//
//	Condemned, Drill   never: what is wrong may be on the disk, and a drill is to exercise seeding
//	Outdated           if it can: only the release changes
//	all others         if it can and the user allows it (ReuseVolumes): nothing gets old here, volumes neither
//
// It can when the instance is a healthy copy, so that its volume is worth having, and when the shard has enough healthy
// copies without it, because between the two instances the volume serves nobody.
func ChooseVolume(reason v1alpha1.Reason, reuseAllowed, healthy bool, without, wanted int) Volume {
	switch reason {
	case v1alpha1.ReasonCondemned, v1alpha1.ReasonDrill:
		return Fresh
	case v1alpha1.ReasonOutdated:
	default:
		if !reuseAllowed {
			return Fresh
		}
	}
	if healthy && without >= wanted {
		return Reuse
	}
	return Fresh
}
