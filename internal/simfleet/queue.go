package simfleet

// kind of an event.
type kind uint8

const (
	evStep kind = iota
	evRunning
	evSeeded
	evHealthy
	evPodGone
	evNodeUp
	evNodeGone
	evNodeFails
	evSick
	evDetected
	evEmergency
	evReparented
	evTroubleBegins
	evTroubleEnds
	evTick
	evHour
)

// event concerns the thing with the number id; gen tells it from a later thing of the same number.
type event struct {
	at   int64
	seq  uint32
	gen  uint32
	id   int32
	kind kind
}

// queue is a binary heap by time, then by order of insertion.
type queue struct {
	items []event
	seq   uint32
}

func (q *queue) less(a, b event) bool {
	return a.at < b.at || a.at == b.at && int32(a.seq-b.seq) < 0
}

func (q *queue) push(e event) {
	q.seq++
	e.seq = q.seq
	q.items = append(q.items, e)
	i := len(q.items) - 1
	for i > 0 {
		p := (i - 1) / 2
		if !q.less(q.items[i], q.items[p]) {
			break
		}
		q.items[i], q.items[p] = q.items[p], q.items[i]
		i = p
	}
}

func (q *queue) pop() event {
	top, last := q.items[0], len(q.items)-1
	q.items[0] = q.items[last]
	q.items = q.items[:last]
	for i := 0; ; {
		l := 2*i + 1
		if l >= last {
			return top
		}
		if r := l + 1; r < last && q.less(q.items[r], q.items[l]) {
			l = r
		}
		if !q.less(q.items[l], q.items[i]) {
			return top
		}
		q.items[i], q.items[l] = q.items[l], q.items[i]
		i = l
	}
}
