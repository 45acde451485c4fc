package postgres

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// describeFiles are what the kernel says about where a process is and what it waits for. Only root may read stack; the
// others are open to the process's own user. cmdline is last: it waits for the process's memory lock, which one that
// hangs in the kernel may hold.
func describeFiles() []string {
	return []string{"status", "wchan", "syscall", "stack", "io", "cmdline"}
}

// telling are the lines of status that say something about a process that hangs.
func telling(status string) string {
	var out []string
	for line := range strings.Lines(status) {
		for _, name := range []string{"State:", "VmRSS:", "SigPnd:", "ShdPnd:", "voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"} {
			if strings.HasPrefix(line, name) {
				out = append(out, strings.Join(strings.Fields(line), " "))
			}
		}
	}
	return strings.Join(out, ", ")
}

const (
	describeMost = 200     // processes: a stalled server has as many as it has sessions, and they look alike
	describeFile = 4 << 10 // bytes of one file
)

// Describe says, of every process of Within, what it is doing as far as the kernel tells: state, wait channel, system
// call, kernel stack. What may not be read is replaced by the reason. It may hang where a process does; the caller must
// be able to leave it behind.
func (p *Processes) Describe(dir string) []byte {
	pids := p.Within(dir)
	slices.Sort(pids)
	var out strings.Builder
	fmt.Fprintf(&out, "%d processes\n", len(pids))
	for i, pid := range pids {
		if i == describeMost {
			fmt.Fprintf(&out, "\n… and %d more\n", len(pids)-i)
			break
		}
		fmt.Fprintf(&out, "\n== %d\n", pid)
		for _, name := range describeFiles() {
			data, err := os.ReadFile(filepath.Join(p.proc, strconv.Itoa(pid), name))
			if err != nil {
				data = []byte(err.Error())
			}
			text := strings.TrimSpace(strings.ReplaceAll(string(data[:min(len(data), describeFile)]), "\x00", " "))
			if name == "status" && err == nil {
				text = telling(text)
			}
			if strings.Contains(text, "\n") {
				text = "\n    " + strings.ReplaceAll(text, "\n", "\n    ")
			}
			fmt.Fprintf(&out, "%s: %s\n", name, text)
		}
	}
	return []byte(out.String())
}
