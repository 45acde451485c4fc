package sim

// timeline is one run of a primary's log, as it really happened. PostgreSQL sees only its number and where it began; two
// failed promotions can give two timelines the same number.
type timeline struct {
	id     uint32
	term   uint64
	start  uint64 // LSN of its first record
	parent *timeline
}

// record is one WAL record. Logs are chains that share their beginnings. An LSN is the number of records before and
// including it.
type record struct {
	lsn    uint64
	id     uint64 // of the commit or whatever it is; never used twice, except for a copy of the same record
	tl     *timeline
	parent *record
	jump   *record // a far ancestor, so that looking back takes logarithmic time
}

// extend appends a record to a log.
func extend(parent *record, tl *timeline, id uint64) *record {
	r := &record{id: id, tl: tl, parent: parent}
	if parent == nil {
		r.lsn = 1
		return r
	}
	r.lsn = parent.lsn + 1
	// The skew-binary construction: jumps of length 1, 3, 7, …
	if p := parent.jump; p != nil && p.jump != nil && parent.lsn-p.lsn == p.lsn-p.jump.lsn {
		r.jump = p.jump
	} else {
		r.jump = parent
	}
	return r
}

// at is the ancestor of r with that LSN, nil for 0.
func (r *record) at(lsn uint64) *record {
	for r != nil && r.lsn > lsn {
		if r.jump != nil && r.jump.lsn >= lsn {
			r = r.jump
		} else {
			r = r.parent
		}
	}
	if r != nil && r.lsn != lsn {
		return nil
	}
	return r
}

// contains reports whether log r has o as a record of its own history.
func (r *record) contains(o *record) bool {
	return o == nil || r != nil && r.lsn >= o.lsn && r.at(o.lsn) == o
}

func (r *record) end() uint64 {
	if r == nil {
		return 0
	}
	return r.lsn
}

// tli is the number PostgreSQL knows the timeline of the last record by.
func (r *record) tli() uint32 {
	if r == nil {
		return 0
	}
	return r.tl.id
}

// history finds the timeline of that number in the log's history, and the LSN where the history leaves it.
func (r *record) history(id uint32) (tl *timeline, until uint64, ok bool) {
	until = r.end()
	for tl = r.tl; tl != nil; tl = tl.parent {
		if tl.id == id {
			return tl, until, true
		}
		until = tl.start - 1
	}
	return nil, 0, false
}

// fits is PostgreSQL's own check whether a log that ends at mine can go on from server's: by numbers only.
func fits(mine, server *record) bool {
	if mine == nil || server == nil {
		return mine == nil
	}
	if mine.tli() > server.tli() {
		return false
	}
	_, until, ok := server.history(mine.tli())
	return ok && mine.lsn <= until
}

// appendFrom continues mine with server's records up to and including the one at lsn. When mine is not really a beginning
// of server's log, the records are glued on all the same, as PostgreSQL would write them to disk.
func appendFrom(mine, server *record, lsn uint64) *record {
	if server.at(mine.end()) == mine {
		return server.at(lsn)
	}
	var missing []*record
	for r := server.at(lsn); r != nil && r.lsn > mine.end(); r = r.parent {
		missing = append(missing, r)
	}
	for i := len(missing) - 1; i >= 0; i-- {
		mine = extend(mine, missing[i].tl, missing[i].id)
	}
	return mine
}

// common is where pg_rewind thinks the two logs part: by the numbers and beginnings of timelines.
func common(mine, server *record) uint64 {
	for tl := mine.tl; tl != nil; tl = tl.parent {
		other, until, ok := server.history(tl.id)
		if ok && other.start == tl.start {
			_, ours, _ := mine.history(tl.id)
			return min(ours, until)
		}
	}
	return 0
}
