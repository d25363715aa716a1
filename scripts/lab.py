# SPDX-License-Identifier: MIT OR Apache-2.0
"""Two sites on one machine, joined by patchcord, and the traffic that crosses. Run it by scripts/lab.

    pc-lab-a1 --+                                                    +-- pc-lab-b1
                br-lan - pc0 = patchcord === wan ... wan === patchcord = pc0 - br-lan
    pc-lab-a2 --+        pc-lab-site-a    192.0.2.0/24    pc-lab-site-b        +-- pc-lab-b2

Every box is a network namespace. a1 is 10.77.0.11, b2 is 10.77.0.22, and so on; a2 and b2 also
speak VLAN 42. Each step prints a line and the report comes last; then everything is removed.
"""
import argparse
import ctypes
import fcntl
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import time

from sites import CLONE_NEWNET, UNDERLAY, Failed, Sites, libc, run, until, unwind_on_signals

HOSTS = ["a1", "a2", "b1", "b2"]
MARKER = b"patchcord-lab-plain-text-marker"
GROUPS = {"broadcast": "255.255.255.255", "link-local group": "224.0.0.199", "IPv4 group": "239.1.2.3", "IPv6 group": "ff02::4242"}
GROUP_PORT = 7100
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 2, 0x1000


def v4(host):
    return "10.77.0.%d%s" % (ord(host[0]) - ord("a") + 1, host[1])


def v6(host):
    return "fd77:7a:b::%d%s" % (ord(host[0]) - ord("a") + 1, host[1])


def mac(host):
    return "02:00:00:00:0%s:0%s" % (host[0], host[1])


# --- the sites ------------------------------------------------------------------------------------

class Lab(Sites):
    """Two sites, each a bridge with hosts."""

    def __init__(self, binary, keep=False, name="lab", hosts=HOSTS):
        super().__init__(name, binary, keep)
        self.hosts = hosts

    def build(self):
        """Namespaces, bridges, hosts and the underlay; no patchcord yet."""
        os.makedirs(self.work, mode=0o700)
        self.add("site-a", "site-b", *self.hosts)
        self.join()
        for site in UNDERLAY:
            self.ip("site-" + site, "link add br-lan type bridge", "link set br-lan up")
        for host in self.hosts:
            site = "site-" + host[0]
            run("ip", "link", "add", host, "netns", self.ns(site), "type", "veth",
                "peer", "name", "eth0", "address", mac(host), "netns", self.ns(host))
            self.ip(site, "link set %s master br-lan up" % host)
            self.ip(host, "link set eth0 up", "addr add %s/24 brd + dev eth0" % v4(host), "addr add %s/64 dev eth0" % v6(host),
                    "route add default dev eth0")

    def start(self):
        begun = time.monotonic()
        self.start_cords(lambda site: 'bridge = "br-lan"')
        self.first_ping("a1", v4("b1"))
        return "first ping %.2f s after start" % (time.monotonic() - begun)

    def agent(self, host, *argv):
        """This program again, inside a host; `ready` on its output means that it listens."""
        child = self.spawn(host, sys.executable, os.path.abspath(__file__), *argv, log="agent-%s.log" % host,
                           stdout=subprocess.PIPE, text=True)
        if child.stdout.readline().strip() != "ready":
            raise Failed("the listener on %s did not start" % host)
        return child


# --- the steps ------------------------------------------------------------------------------------

def step_arp(lab, report):
    """ARP finds a host of the other site"""
    lab.ip("a1", "neigh flush dev eth0")
    lab.inside("a1", "ping", "-c1", "-W2", v4("b1"))
    return neighbour(lab, "a1", v4("b1"), "b1")


def neighbour(lab, host, address, owner):
    entries = json.loads(lab.inside(host, "ip", "-j", "neigh", "show", "to", address, "dev", "eth0").stdout or "[]")
    found = entries[0].get("lladdr") if entries else None
    if found != mac(owner):
        raise Failed("%s resolved to %s, not to %s" % (address, found, mac(owner)))
    return "%s is at %s" % (address, found)


def pings(lab, source, target, count, *options):
    """The output of ping, and how many of the first `count` requests were not answered.

    With -w it waits for that many answers, and sends on meanwhile; with -c alone it waits for the last
    one only as long as two round trips took, which is short on a busy machine."""
    out = lab.inside(source, "ping", "-n", "-c", count, "-i0.02", "-w5", *options, target, check=False).stdout
    answered = {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", out)}
    return out, len(set(range(1, count + 1)) - answered)


def step_ping(lab, report):
    """ping a1 -> b1"""
    out, lost = pings(lab, "a1", v4("b1"), 40)
    if lost:
        raise Failed("%d of 40 pings were lost" % lost)
    low, mean, high = re.search(r"= ([\d.]+)/([\d.]+)/([\d.]+)/", out).groups()
    report["rtt_ms"] = {"min": float(low), "avg": float(mean), "max": float(high), "loss_pct": 0.0}
    return "RTT min %s ms, avg %s ms" % (low, mean)


def step_full_size(lab, report):
    """1500-byte IP packets with DF over a 1500-byte underlay"""
    for source, target in (("a1", "b1"), ("b2", "a2")):
        out, lost = pings(lab, source, v4(target), 5, "-M", "do", "-s", 1472)
        if lost:
            raise Failed("ping -M do -s 1472 %s -> %s: %s" % (source, target, out.strip().splitlines()[-1] if out else "no output"))
    return "ping -M do -s 1472, both ways"


def step_dhcp(lab, report):
    """DHCP server on a1 leases to a client on b1"""
    server = lab.spawn("a1", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--bind-dynamic", "--interface=eth0",
                       "--user=root", "--pid-file", "--no-ping", "--no-resolv", "--no-hosts", "--log-facility=-",
                       "--dhcp-leasefile=" + os.path.join(lab.work, "leases"), "--dhcp-range=10.77.0.100,10.77.0.199,5m",
                       log="dnsmasq.log")
    script, lease = os.path.join(lab.work, "udhcpc.sh"), os.path.join(lab.work, "lease")
    with open(script, "w") as f:       # instead of the system's script: it must not touch the machine's resolv.conf
        f.write('#!/bin/sh\n[ "$1" = bound ] || exit 0\nip addr add "$ip/24" dev "$interface"\necho "$ip $serverid" > %s\n' % lease)
    os.chmod(script, 0o755)
    try:
        begun = time.monotonic()
        lab.inside("b1", "busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q", "-t", 8, "-T", 1, "-s", script)
        took = time.monotonic() - begun
        address, serverid = open(lease).read().split()
        lab.inside("a1", "ping", "-c1", "-W2", address)
        lab.ip("b1", "addr del %s/24 dev eth0" % address)
    finally:
        server.terminate()
    if serverid != v4("a1"):
        raise Failed("the lease came from %s" % serverid)
    return "%s from %s in %.1f s" % (address, serverid, took)


def step_ipv6(lab, report):
    """IPv6 neighbour discovery and ping, link-local and ULA"""
    link_local = "fe80::ff:fe00:%x" % (int(mac("b1").split(":")[4], 16) << 8 | 1)
    for address in (link_local, v6("b1")):
        lab.ip("a1", "neigh flush dev eth0")
        lab.inside("a1", "ping", "-6", "-c2", "-i0.1", "-W2", address + ("%eth0" if address is link_local else ""))
        neighbour(lab, "a1", address, "b1")
    return "%s and %s" % (link_local, v6("b1"))


def step_groups(lab, report):
    """broadcast and multicast reach every host exactly once"""
    listeners = {host: lab.agent(host, "_listen", "eth0") for host in lab.hosts if host != "a1"}
    sent = json.loads(lab.inside("a1", sys.executable, os.path.abspath(__file__), "_send", "eth0").stdout)
    wrong = []
    for host, child in listeners.items():
        counts = json.loads(child.communicate(timeout=10)[0])
        wrong += ["%s got %s %d times" % (host, label, n) for label, n in counts.items() if n != 1]
    if wrong:
        raise Failed("; ".join(wrong))
    return "%d datagrams, %d hosts" % (len(sent), len(listeners))


def step_vlan(lab, report):
    """VLAN 42 between tagged hosts a2 and b2, tags intact"""
    how = [vlan_host(lab, host) for host in ("a2", "b2")][0]
    watcher = lab.spawn("site-b", "tcpdump", "-l", "-nne", "-c2", "-i", "pc0", "vlan 42 and icmp", log="tcpdump-vlan.log",
                        stdout=subprocess.PIPE, text=True)
    listening(lab, "tcpdump-vlan.log")
    lab.inside("a2", "ping", "-q", "-c3", "-i0.1", "-W2", "10.42.0.22")
    lab.inside("a2", "ping", "-q", "-c2", "-i0.1", "-W2", "-M", "do", "-s", 1472, "10.42.0.22")
    seen = watcher.communicate(timeout=5)[0]
    if seen.count("vlan 42") < 2:
        raise Failed("no tag seen at pc0 of site B: %s" % seen[:200])
    return "seen tagged at site B; 1518-byte frames too; hosts tag by %s" % how


def vlan_host(lab, host):
    """Gives a host an address in VLAN 42: by the kernel's 802.1Q device, or by our own tagger."""
    address = "10.42.0.%s" % v4(host).rsplit(".", 1)[1]
    if lab.inside(host, "ip", "link", "add", "link", "eth0", "name", "vlan42", "type", "vlan", "id", 42, check=False).returncode == 0:
        how = "802.1Q device"
    else:
        lab.agent("site-" + host[0], "_tagger", lab.ns(host), lab.ns("site-" + host[0]), host + "-trunk")
        lab.ip("site-" + host[0], "link set %s-trunk master br-lan up" % host)
        how = "a user-space tagger (kernel has no 8021q)"
    lab.ip(host, "link set vlan42 up", "addr add %s/24 dev vlan42" % address)
    return how


def listening(lab, log):
    until(5, lambda: "listening on" in open(os.path.join(lab.work, log)).read(), "tcpdump did not start")


def step_tcp_there(lab, report):
    """TCP a1 -> b1"""
    return iperf(lab, report, "tcp_a_to_b_mbit_s", [])


def step_tcp_back(lab, report):
    """TCP b1 -> a1"""
    return iperf(lab, report, "tcp_b_to_a_mbit_s", ["-R"])


def iperf(lab, report, key, extra):
    server = lab.spawn("b1", "iperf3", "-s", "-1", "-p", 5201, log="iperf3.log")
    try:
        until(5, lambda: ":1451" in lab.inside("b1", "cat", "/proc/net/tcp6", "/proc/net/tcp").stdout, "iperf3 -s did not listen")
        done = lab.inside("a1", "iperf3", "-c", v4("b1"), "-p", 5201, "-t", 3, "-J", *extra, check=False, timeout=30)
    finally:
        server.terminate()
        server.wait()
    result = json.loads(done.stdout or "{}")
    if done.returncode or "error" in result:
        raise Failed("iperf3: %s" % result.get("error", done.stderr.strip()))
    report[key] = round(result["end"]["sum_received"]["bits_per_second"] / 1e6, 1)
    if report[key] <= 0:
        raise Failed("no data")
    return "%s, %d retransmits" % (rate(report[key]), result["end"]["sum_sent"].get("retransmits", 0))


def rate(mbit):
    return "%.2f Gbit/s" % (mbit / 1000) if mbit >= 1000 else "%.0f Mbit/s" % mbit


def step_secret(lab, report):
    """the payload is not readable on the underlay"""
    path = os.path.join(lab.work, "underlay.pcap")
    watcher = lab.spawn("site-a", "tcpdump", "-U", "-s0", "-i", "wan", "-w", path, log="tcpdump-wan.log")
    listening(lab, "tcpdump-wan.log")
    sink = lab.agent("b1", "_sink")
    with_marker = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(%r, (%r, %d))"
    lab.inside("a1", sys.executable, "-c", with_marker % (MARKER * 8, v4("b1"), GROUP_PORT + 1))
    if sink.communicate(timeout=5)[0].strip() != "got it":
        raise Failed("the marked datagram did not arrive at b1")
    until(3, lambda: os.path.exists(path) and os.path.getsize(path) > 200, "nothing was captured on the underlay")
    watcher.send_signal(signal.SIGINT)
    watcher.wait(5)
    capture = open(path, "rb").read()
    if MARKER in capture or MARKER[::-1] in capture:
        raise Failed("the marker can be read on the underlay")
    return "marker delivered, absent from %d captured bytes" % len(capture)


STEPS = [step_arp, step_ping, step_full_size, step_dhcp, step_ipv6, step_groups, step_vlan, step_tcp_there, step_tcp_back,
         step_secret]


# --- the programs inside the hosts ----------------------------------------------------------------

def agent_listen(interface):
    """Counts the datagrams of agent_send; ends half a second after all have come, or after 4 s."""
    index = socket.if_nametoindex(interface)
    four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    four.bind(("", GROUP_PORT))
    six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    six.bind(("::", GROUP_PORT))
    for address in GROUPS.values():
        if ":" in address:
            six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, address) + struct.pack("@I", index))
        elif address.startswith("2") and not address.startswith("255"):
            four.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(address) + struct.pack("=4si", b"\0" * 4, index))
    print("ready", flush=True)
    counts, end = dict.fromkeys(GROUPS, 0), time.monotonic() + 4
    while time.monotonic() < end:
        for sock in select.select([four, six], [], [], 0.05)[0]:
            label = sock.recv(2048).decode(errors="replace")
            if label in counts:
                counts[label] += 1
                if all(counts.values()):
                    end = min(end, time.monotonic() + 0.5)       # long enough for a second copy to show up
    print(json.dumps(counts))


def agent_send(interface):
    index = socket.if_nametoindex(interface)
    four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    four.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    four.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=4s4si", b"\0" * 4, b"\0" * 4, index))
    six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    for label, address in GROUPS.items():
        if ":" in address:
            six.sendto(label.encode(), (address, GROUP_PORT, 0, index))
        else:
            four.sendto(label.encode(), (address, GROUP_PORT))
    print(json.dumps(list(GROUPS)))


def agent_sink():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", GROUP_PORT + 1))
    sock.settimeout(4)
    print("ready", flush=True)
    print("got it" if sock.recv(2048) == MARKER * 8 else "something else")


def agent_tagger(inner_ns, outer_ns, outer_name):
    """An 802.1Q device in user space: `vlan42` inside a host, its frames tagged on a trunk port outside."""
    inner, outer = tap(inner_ns, "vlan42"), tap(outer_ns, outer_name)
    print("ready", flush=True)
    tag = struct.pack("!HH", 0x8100, 42)
    while True:
        for fd in select.select([inner, outer], [], [])[0]:
            try:
                frame = os.read(fd, 65536)
                if fd == inner:
                    os.write(outer, frame[:12] + tag + frame[12:])
                elif frame[12:16] == tag:
                    os.write(inner, frame[:12] + frame[16:])
            except OSError:
                time.sleep(0.01)            # the other end is not up yet


def tap(namespace, name):
    with open("/run/netns/" + namespace) as target:
        if libc.setns(target.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return fd


# --- the run --------------------------------------------------------------------------------------

class Screen:
    def __init__(self, quiet):
        self.quiet = quiet
        self.colour = sys.stdout.isatty()

    def line(self, text=""):
        if not self.quiet:
            print(text, flush=True)

    def step(self, ok, title, result, seconds):
        mark, shade = ("✓", "32") if ok else ("✗", "31")
        if self.colour:
            mark = "\033[%sm%s\033[0m" % (shade, mark)
        self.line(("  %s %-58s %5.1f s  %s" % (mark, title, seconds, result)).rstrip())


def perform(lab, screen, report, title, act):
    """Runs one step and records it; only set-up steps stop the run."""
    begun = time.monotonic()
    try:
        ok, result = True, act()
    except (Failed, subprocess.TimeoutExpired, OSError, ValueError, AttributeError, KeyError) as error:
        ok, result = False, str(error) or repr(error)
    seconds = time.monotonic() - begun
    screen.step(ok, title, result or "", seconds)
    report["steps"].append({"step": title, "ok": ok, "result": result, "seconds": round(seconds, 2)})
    return ok


def conduct(lab, screen, report):
    screen.line("Two sites, each a bridge with two hosts, on this machine; patchcord between them.")
    if not perform(lab, screen, report, "namespaces, bridges, hosts, underlay", lab.build):
        return
    if not perform(lab, screen, report, "patchcord up at both sites", lab.start):
        return
    for step in STEPS:
        perform(lab, screen, report, step.__doc__, lambda: step(lab, report))
    perform(lab, screen, report, "patchcord show", lambda: record_status(lab, report))


def record_status(lab, report):
    for site in UNDERLAY:
        status = lab.status(site)
        peer = status["peers"][0]
        report["site_" + site] = {"cipher": peer["cipher"], "path_mtu": peer["path_mtu"], "handshakes": peer["handshakes"],
                                  "core_plan": status["core_plan"]["plan"], "device": status["device"]["backend"],
                                  "drops": status["drops"]}
    return "path MTU %s, %s" % (report["site_a"]["path_mtu"], report["site_a"]["cipher"])


def print_report(screen, report):
    screen.line("\nReport")
    if "rtt_ms" in report:
        screen.line("  round trip       %(min)g ms least, %(avg)g ms mean" % report["rtt_ms"])
    for label, key in (("TCP a1 -> b1", "tcp_a_to_b_mbit_s"), ("TCP b1 -> a1", "tcp_b_to_a_mbit_s")):
        if key in report:
            screen.line("  %-16s %s" % (label, rate(report[key])))
    for site in UNDERLAY:
        if "site_" + site in report:
            facts = report["site_" + site]
            drops = ", ".join("%s %d" % item for item in facts["drops"].items()) or "none"
            screen.line("  site %s           %s, path MTU %s, plan %s, drops: %s"
                        % (site.upper(), facts["cipher"], facts["path_mtu"], facts["core_plan"], drops))
    screen.line("  time             %.0f s" % report["seconds"])


def print_failures(lab, screen, report):
    failed = [s for s in report["steps"] if not s["ok"]]
    if not failed:
        return
    screen.line("\nFailed:")
    for s in failed:
        screen.line("  ✗ %s: %s" % (s["step"], s["result"]))
    for site in UNDERLAY:
        screen.line("\nEnd of the log of patchcord at site %s:" % site.upper())
        for line in lab.log(site).splitlines()[-15:]:
            screen.line("  " + line)


def print_keep(lab, screen):
    screen.line("""
The sites stay up. Look around with
  sudo ip netns exec pc-lab-a1 ping %(b1)s
  sudo ip netns exec pc-lab-site-a %(binary)s show lab-a
  sudo ip netns exec pc-lab-site-b tcpdump -ni wan udp port 51830
  logs, keys and configurations: %(work)s
and remove them with
  sudo scripts/lab --down""" % {"b1": v4("b1"), "binary": lab.binary, "work": lab.work})


def main():
    parser = argparse.ArgumentParser(prog="scripts/lab", formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the sites up and say how to look around")
    parser.add_argument("--down", action="store_true", help="remove sites that were left up")
    parser.add_argument("--json", action="store_true", help="print the report as JSON only")
    parser.add_argument("--binary", metavar="PATH", help="use this patchcord and build nothing")
    options = parser.parse_args()
    lab = Lab(options.binary, options.keep)
    if options.down:
        print("removed" if lab.remove() else "there was no lab")
        return 0
    if not options.binary:
        parser.error("run scripts/lab, which builds patchcord first, or give --binary")
    if not (os.path.isfile(options.binary) and os.access(options.binary, os.X_OK)):
        parser.error("--binary: %s is not a program" % options.binary)
    if lab.is_up():
        print("A lab is up already (%s); remove it first: sudo scripts/lab --down" % (", ".join(lab.there()) or lab.work), file=sys.stderr)
        return 1
    unwind_on_signals()
    screen, report = Screen(options.json), {"steps": []}
    begun, finished = time.monotonic(), False
    try:
        conduct(lab, screen, report)
        report["ok"] = all(s["ok"] for s in report["steps"])
        report["seconds"] = round(time.monotonic() - begun, 1)
        print_report(screen, report)
        print_failures(lab, screen, report)
        finished = True
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:                                     # `scripts/lab | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)            # what is left to write has no reader
        return 141
    finally:
        if finished and options.keep:
            print_keep(lab, screen)
        else:
            signal.signal(signal.SIGINT, signal.SIG_IGN)        # a second Ctrl-C must not stop the clean-up
            lab.remove()
    if options.json:
        print(json.dumps(report, indent=2))
    screen.line("\n%s" % ("Everything that was tried works." if report["ok"] else "Not everything works."))
    return 0 if report["ok"] else 1


AGENTS = {"_listen": agent_listen, "_send": agent_send, "_sink": agent_sink, "_tagger": agent_tagger}

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in AGENTS:
        AGENTS[sys.argv[1]](*sys.argv[2:])
    else:
        sys.exit(main())
