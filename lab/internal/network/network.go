// Package network connects the machines of a lab.
//
// There is no bridge. A router, which is nothing but a network namespace, has
// one point-to-point link to every machine, named after the machine, and one
// route per machine and per Pod range. Every packet between two machines
// therefore passes through the router's packet filter as a pair of interface
// names, which makes partitions, also one-way ones, a rule each.
//
// No namespace has a default route and none is linked to the host's: nothing
// can leak out of a lab or into it.
package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"theseus.dev/theseus/lab/internal/plan"
	"theseus.dev/theseus/lab/internal/state"
)

const nsDir = "/run/netns"

// Path is the file that names a machine's network namespace.
func Path(lab, machine string) string { return filepath.Join(nsDir, plan.NetNS(lab, machine)) }

// Do runs f on a thread inside a named network namespace.
func Do(lab, machine string, f func() error) error {
	target, err := netns.GetFromPath(Path(lab, machine))
	if err != nil {
		return fmt.Errorf("the network of %s is not there: %w", machine, err)
	}
	defer target.Close()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("find the own network namespace: %w", err)
	}
	defer home.Close()
	if err := netns.Set(target); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network of %s: %w", machine, err)
	}
	defer func() {
		// A thread that cannot get back must not be reused: leaving it locked
		// makes the runtime end it with its goroutine.
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}

// Dial opens a TCP connection from inside a machine's network namespace to a
// literal address.
func Dial(ctx context.Context, lab, machine, address string) (conn net.Conn, err error) {
	err = Do(lab, machine, func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
		return err
	})
	return conn, err
}

// ensureNS makes a named namespace if it is not there, and reports whether it did.
func ensureNS(name string) (made bool, err error) {
	if h, err := netns.GetFromName(name); err == nil {
		return false, h.Close()
	}
	// A file without a namespace on it is the trace of an interrupted attempt.
	_ = os.Remove(filepath.Join(nsDir, name))
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return false, err
	}
	defer home.Close()
	h, err := netns.NewNamed(name)
	if back := netns.Set(home); back == nil {
		runtime.UnlockOSThread()
	}
	if err != nil {
		return false, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	return true, h.Close()
}

// DeleteNS removes the name of a machine's network namespace. The namespace
// itself ends with its last process.
func DeleteNS(lab, machine string) error {
	p := Path(lab, machine)
	err := unix.Unmount(p, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", p, err)
	}
	if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Found lists the machines of a lab whose network namespaces exist, whether or
// not anything else is known of them.
func Found(lab string) []string {
	entries, _ := os.ReadDir(nsDir)
	var found []string
	for _, e := range entries {
		if machine, ok := strings.CutPrefix(e.Name(), plan.NetNS(lab, "")); ok {
			found = append(found, machine)
		}
	}
	return found
}

// Inode identifies a namespace file, so that processes inside it can be found.
func Inode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

// EnsureRouter makes the router's namespace.
func EnsureRouter(lab string) error {
	if _, err := ensureNS(plan.NetNS(lab, plan.RouterName)); err != nil {
		return err
	}
	return Do(lab, plan.RouterName, func() error {
		return sysctls(map[string]string{
			"net/ipv4/ip_forward":                  "1",
			"net/ipv4/conf/all/rp_filter":          "0",
			"net/ipv4/conf/default/rp_filter":      "0",
			"net/ipv4/conf/all/send_redirects":     "0",
			"net/ipv6/conf/default/disable_ipv6":   "1",
			"net/ipv6/conf/all/disable_ipv6":       "1",
			"net/ipv4/neigh/default/gc_stale_time": "30",
		})
	})
}

func sysctls(values map[string]string) error {
	for key, value := range values {
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set %s: %w", key, err)
		}
	}
	return nil
}

// Attach gives a machine its namespace, its link to the router and its routes.
// pods is the range its Pods live in; the zero Prefix if it has none. A machine
// that is attached already stays as it is.
func Attach(lab, machine string, addr netip.Addr, pods netip.Prefix) error {
	if _, err := ensureNS(plan.NetNS(lab, machine)); err != nil {
		return err
	}
	mns, err := netns.GetFromName(plan.NetNS(lab, machine))
	if err != nil {
		return err
	}
	defer mns.Close()
	rns, err := netns.GetFromName(plan.NetNS(lab, plan.RouterName))
	if err != nil {
		return fmt.Errorf("the router is not there: %w", err)
	}
	defer rns.Close()
	router, err := netlink.NewHandleAt(rns)
	if err != nil {
		return err
	}
	defer router.Close()
	if _, err := router.LinkByName(machine); err != nil {
		veth := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: machine},
			PeerName:      "eth0",
			PeerNamespace: netlink.NsFd(mns),
		}
		if err := router.LinkAdd(veth); err != nil {
			return fmt.Errorf("link %s to the router: %w", machine, err)
		}
	}
	if err := configureRouter(router, machine, addr, pods); err != nil {
		return fmt.Errorf("configure the router's link to %s: %w", machine, err)
	}
	host, err := netlink.NewHandleAt(mns)
	if err != nil {
		return err
	}
	defer host.Close()
	if err := configureMachine(host, addr); err != nil {
		return fmt.Errorf("configure the link of %s: %w", machine, err)
	}
	return Do(lab, machine, func() error {
		return sysctls(map[string]string{
			"net/ipv4/ip_forward":                "1",
			"net/ipv4/conf/all/rp_filter":        "0",
			"net/ipv4/conf/default/rp_filter":    "0",
			"net/ipv6/conf/all/disable_ipv6":     "1",
			"net/ipv6/conf/default/disable_ipv6": "1",
		})
	})
}

func configureRouter(h *netlink.Handle, machine string, addr netip.Addr, pods netip.Prefix) error {
	link, err := h.LinkByName(machine)
	if err != nil {
		return err
	}
	if err := h.AddrReplace(link, &netlink.Addr{IPNet: host(plan.Router), Scope: unix.RT_SCOPE_LINK}); err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	to := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: host(addr), Src: plan.Router.AsSlice(), Scope: netlink.SCOPE_LINK}
	if err := h.RouteReplace(to); err != nil {
		return err
	}
	if !pods.IsValid() {
		return nil
	}
	return h.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: prefix(pods), Gw: addr.AsSlice()})
}

func configureMachine(h *netlink.Handle, addr netip.Addr) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(lo); err != nil {
		return err
	}
	if err := h.AddrReplace(lo, &netlink.Addr{IPNet: host(plan.DNS), Scope: unix.RT_SCOPE_HOST}); err != nil {
		return err
	}
	eth, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := h.AddrReplace(eth, &netlink.Addr{IPNet: host(addr)}); err != nil {
		return err
	}
	if err := h.LinkSetUp(eth); err != nil {
		return err
	}
	index := eth.Attrs().Index
	via := &netlink.Route{LinkIndex: index, Dst: host(plan.Router), Src: addr.AsSlice(), Scope: netlink.SCOPE_LINK}
	if err := h.RouteReplace(via); err != nil {
		return err
	}
	// The route to Services only gets packets as far as the rules that
	// translate them; whatever is not translated ends at the router.
	for _, net := range []netip.Prefix{plan.MachineNet, plan.PodNet, plan.ServiceNet} {
		r := &netlink.Route{LinkIndex: index, Dst: prefix(net), Gw: plan.Router.AsSlice(), Src: addr.AsSlice()}
		if err := h.RouteReplace(r); err != nil {
			return err
		}
	}
	return nil
}

// Isolate gives a machine a network namespace with nothing but loopback.
func Isolate(lab, machine string) error {
	if _, err := ensureNS(plan.NetNS(lab, machine)); err != nil {
		return err
	}
	ns, err := netns.GetFromName(plan.NetNS(lab, machine))
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	return h.LinkSetUp(lo)
}

// Unplug takes a machine's link away and leaves routes behind that swallow what
// is still sent to it, so that its peers see silence rather than a refusal. A
// machine that has no link is not an error.
func Unplug(lab, machine string, addr netip.Addr, pods netip.Prefix) error {
	rns, err := netns.GetFromName(plan.NetNS(lab, plan.RouterName))
	if err != nil {
		return nil //nolint:nilerr // no router, no link
	}
	defer rns.Close()
	h, err := netlink.NewHandleAt(rns)
	if err != nil {
		return err
	}
	defer h.Close()
	if link, err := h.LinkByName(machine); err == nil {
		if err := h.LinkDel(link); err != nil {
			return fmt.Errorf("unplug %s: %w", machine, err)
		}
	}
	dead := []*net.IPNet{host(addr)}
	if pods.IsValid() {
		dead = append(dead, prefix(pods))
	}
	for _, dst := range dead {
		if err := h.RouteReplace(&netlink.Route{Dst: dst, Type: unix.RTN_BLACKHOLE}); err != nil {
			return fmt.Errorf("swallow packets for %s: %w", machine, err)
		}
	}
	return nil
}

// ApplyCuts makes the router's packet filter match the cuts.
func ApplyCuts(ctx context.Context, lab string, cuts []state.Cut) error {
	return NFT(ctx, lab, plan.RouterName, Rules(cuts))
}

// NFT feeds rules to nft inside a machine's namespace, all or nothing.
func NFT(ctx context.Context, lab, machine, rules string) error {
	return Do(lab, machine, func() error {
		cmd := exec.CommandContext(ctx, "nft", "-f", "-")
		cmd.Stdin = bytes.NewReader([]byte(rules))
		out, err := cmd.CombinedOutput()
		if errors.Is(err, exec.ErrNotFound) {
			return errors.New("nft is not installed: apt-get install nftables")
		}
		if err != nil {
			return fmt.Errorf("nft in the network of %s: %w: %s", machine, err, bytes.TrimSpace(out))
		}
		return nil
	})
}

func host(a netip.Addr) *net.IPNet { return prefix(netip.PrefixFrom(a, a.BitLen())) }

func prefix(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
