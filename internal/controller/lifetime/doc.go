// Package lifetime asks for the replacement of every instance before it is as old as its Database allows, and for a
// reparent of every shard that is to fail over regularly. When is decided by package lifetime, which is pure; what
// happens then is the replacement's and the reparent's business.
//
// One plan is made for all instances with the same maximum age, whatever shard they are of, because the rate of
// replacements is to be flat over the fleet. The plans are made from objects each time; nothing is remembered but what
// was told as conditions and metrics.
//
// Expiry freezes, loudly, rather than reduce redundancy: by the switch, while condemnations storm, in a zone without
// capacity, and while more than a tenth of the shards is degraded. A shard then says Frozen, and PlanHolds says whether an
// instance is, or will be, too old. Both come into the status with the shard controller's own conditions.
package lifetime
