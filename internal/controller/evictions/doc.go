// Package evictions hears of evictions. When `kubectl drain` asks for one and the disruption budget refuses it, nothing
// is left behind that anybody could see: no object, no condition, no event. So the operator serves a validating webhook
// for pods/eviction that writes the request onto the instance's Pod, where package drain finds it, and refuses it with
// 429 Too Many Requests: the one refusal that every tool that drains takes as "ask again". Once the instance has
// been replaced its Pod is gone and so is the refusal.
//
// The webhook is a convenience for drains, never a condition for anything: its failure policy is Ignore, it is called only
// for namespaces that have Shards, and it answers from memory. While it cannot be reached the disruption budget of each
// shard decides alone: one instance at a time, and only when all are healthy.
//
// Every replica of the operator serves it, with a certificate of its own in memory, signed by an authority that
// replicas share in a Secret. They keep the configuration of the webhook up to date: the authority, and the namespaces.
// The configuration itself is the chart's; without it nothing is served.
package evictions
