package initd

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	restartDelay = time.Second
	pollInterval = 20 * time.Millisecond
	// waitLimit bounds how long a service waits for what it needs; after that
	// it is started all the same and may say itself what is missing.
	waitLimit = 2 * time.Minute
)

// Main is pid 1. It returns only when it has been asked to stop, or when the
// machine could not be set up.
func Main(specPath string, log *slog.Logger) error {
	spec, err := ReadSpec(specPath)
	if err != nil {
		return err
	}
	if err := joinCgroups(spec.JoinCgroups); err != nil {
		return err
	}
	if err := furnish(spec); err != nil {
		return err
	}
	return newSupervisor(spec, log).run()
}

type exit struct {
	pid    int
	status unix.WaitStatus
}

// supervisor keeps services running. One goroutine owns all its fields; others
// only send to it.
type supervisor struct {
	spec    *Spec
	log     *slog.Logger
	env     []string
	running map[int]int // pid → index in spec.Services
	start   chan int    // index of a service that may be started
	exits   chan exit
	stop    chan os.Signal
}

func newSupervisor(spec *Spec, log *slog.Logger) *supervisor {
	s := &supervisor{
		spec: spec, log: log,
		running: map[int]int{},
		start:   make(chan int, len(spec.Services)),
		exits:   make(chan exit),
		stop:    make(chan os.Signal, 1),
		env: []string{
			"PATH=" + BinDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"HOME=/root", "LANG=C.UTF-8",
		},
	}
	signal.Notify(s.stop, unix.SIGTERM, unix.SIGINT)
	return s
}

func (s *supervisor) run() error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go s.reap(children)
	for i, svc := range s.spec.Services {
		go func() {
			await(svc.WaitFor)
			s.start <- i
		}()
	}
	for {
		select {
		case i := <-s.start:
			if err := s.launch(i); err != nil {
				s.log.Error("cannot start", "service", s.spec.Services[i].Name, "error", err)
				s.again(i)
			}
		case e := <-s.exits:
			if i, ok := s.running[e.pid]; ok {
				delete(s.running, e.pid)
				s.log.Warn("exited, starting it again", "service", s.spec.Services[i].Name, "status", describe(e.status))
				s.again(i)
			}
		case <-s.stop:
			s.shutdown()
			return nil
		}
	}
}

func (s *supervisor) again(i int) {
	time.AfterFunc(restartDelay, func() { s.start <- i })
}

// reap collects every child that ends: the services, and whatever was orphaned
// to pid 1.
func (s *supervisor) reap(children <-chan os.Signal) {
	for range children {
		for {
			var status unix.WaitStatus
			pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
			if err == unix.EINTR {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
			s.exits <- exit{pid, status}
		}
	}
}

// launch starts a service. It uses StartProcess and never Wait, which belongs
// to reap alone. An exit cannot overtake the registration of its pid, because
// the goroutine that registers is the one that receives exits.
func (s *supervisor) launch(i int) error {
	svc := s.spec.Services[i]
	path := filepath.Join(MachineDir, LogFile(svc.Name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	p, err := os.StartProcess(svc.Argv[0], svc.Argv, &os.ProcAttr{
		Dir: "/", Env: s.env, Files: []*os.File{null, out, out},
	})
	if err != nil {
		return err
	}
	s.running[p.Pid] = i
	s.log.Info("started", "service", svc.Name, "pid", p.Pid)
	_ = p.Release()
	return nil
}

// shutdown stops the services, last one first, each within the grace. What is
// left after that dies with this process.
func (s *supervisor) shutdown() {
	for i := len(s.spec.Services) - 1; i >= 0; i-- {
		for pid, j := range s.running {
			if j != i {
				continue
			}
			_ = unix.Kill(pid, unix.SIGTERM)
			deadline := time.NewTimer(s.spec.StopGrace)
			for s.running[pid] == i && s.has(pid) {
				select {
				case e := <-s.exits:
					delete(s.running, e.pid)
				case <-s.start: // nothing is started any more
				case <-deadline.C:
					s.log.Warn("did not stop in time, killing it", "service", s.spec.Services[i].Name)
					_ = unix.Kill(pid, unix.SIGKILL)
					delete(s.running, pid)
				}
			}
			deadline.Stop()
		}
	}
}

func (s *supervisor) has(pid int) bool {
	_, ok := s.running[pid]
	return ok
}

// await returns when something listens at target, or at waitLimit.
func await(target string) {
	if target == "" {
		return
	}
	network := "tcp"
	if strings.HasPrefix(target, "/") {
		network = "unix"
	}
	for end := time.Now().Add(waitLimit); time.Now().Before(end); time.Sleep(pollInterval) {
		if c, err := net.DialTimeout(network, target, time.Second); err == nil {
			_ = c.Close()
			return
		}
	}
}

func describe(s unix.WaitStatus) string {
	if s.Signaled() {
		return "signal " + s.Signal().String()
	}
	return fmt.Sprintf("code %d", s.ExitStatus())
}
