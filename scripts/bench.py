# SPDX-License-Identifier: MIT OR Apache-2.0
"""End-to-end figures of patchcord on this machine. Run it by scripts/bench.

    site a                                   192.0.2.0/24                        site b
    wan ====================== veth: plain Ethernet, the underlay ==================== wan
    vx0 -------------------------- VXLAN of the kernel over it ----------------------- vx0
    pc0 ------------------------------ patchcord over it ------------------------------ pc0

Every round measures all three, one after the other, so that other work of the machine affects all
of them; a ratio is always to plain Ethernet in the same round. Both sites, both tunnels and the
programs that make the traffic share this machine's cores: a rate is the cost of all that, not the
speed of a line. The round trips include a Python program at each end, on plain Ethernet too. Both
run before every other program (SCHED_FIFO), as if they had cores of their own: so a round trip is the
time on the way, and not the time for which its ends wait for the programs of both sites.

--variant adds patchcord with other settings, each as a column of its own. A setting is a key of
[pipeline] unless it names another section, and a word needs no quotes:

    --variant 'express = true' --variant 'latency = low; express = true; tunnel.cipher = aegis-128x'

Tests: idle and load are round trips; tcp1, tcp4 and reverse are TCP; small searches the highest rate
of 64-byte frames; wire is TCP in packets of the MTU, without and with GRO where they arrive.

With --harness, the programs in DIR/peers.py make the figures instead, for patchcord and for every other
tunnel that they find; they get the arguments after `--`.
"""
import argparse
import contextlib
import datetime
import itertools
import json
import os
import re
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
from xml.sax.saxutils import escape

from datagrams import flood, highest_rate, per_second
from sites import UNDERLAY, Failed, Sites, run, until, unwind_on_signals

RESULTS = os.path.join(os.environ.get("CARGO_TARGET_DIR", "target"), "bench")
BASE = "plain veth"
ADDRESSES = {BASE: "192.0.2.%d", "kernel VXLAN": "10.98.0.%d", "patchcord": "10.99.0.%d"}
VXLAN_OVERHEAD = 50
OURS = "patchcord"
SEND_OFFLOADS = ["tso", "gso", "tx-udp-segmentation"]
IPERF_PORT, ECHO_PORT, FIRST_FLOOD_PORT = 5201, 7000, 20000
ECHO_BYTES, ECHO_INTERVAL_S, ECHO_PATIENCE_S = 64, 0.001, 0.2
IDLE_S, LOADED_S, LOAD_BEFORE_S = 1.0, 1.5, 0.5
SMALL_BYTES, SMALL_S = 18, 1.0                        # 64-byte frames, with the checksum of the cable
FIRST_PROBE_S, FIRST_PATIENCE_S = 0.002, 20

TCP = {"tcp1": ("TCP, 1 stream", []), "tcp4": ("TCP, 4 streams", ["-P4"]), "reverse": ("TCP, reverse", ["-R"])}
# Key, title, unit, digits. The keys are those of the JSON.
MEASURES = [(key + "_gbit_s", title, "Gbit/s", 2) for key, (title, _) in TCP.items()]
MEASURES += [
    ("tcp1_tunnel_cpu_s", "CPU of the tunnels, 1 stream", "s per 10⁹ bytes", 2),
    ("tcp1_machine_cpu_s", "CPU of the machine, 1 stream", "s per 10⁹ bytes", 2),
    ("rtt_idle_p50_us", "round trip, idle, p50", "µs", 0),
    ("rtt_idle_p99_us", "round trip, idle, p99", "µs", 0),
    ("rtt_load_p50_us", "round trip beside TCP, p50", "µs", 0),
    ("rtt_load_p99_us", "round trip beside TCP, p99", "µs", 0),
    ("small_frames_kpps", "64-byte frames, ≤ 1 % lost", "1000/s", 0),
    ("wire_gro_off_gbit_s", "TCP in packets of the MTU", "Gbit/s", 2),
    ("wire_gro_on_gbit_s", "the same, GRO on", "Gbit/s", 2),
    ("rss_mib", "RSS of the larger tunnel, after TCP", "MiB", 1),
    ("first_reply_ms", "first reply after the start", "ms", 1),
]
TESTS = ["idle", *TCP, "load", "small", "wire"]
USUAL_TESTS = ["idle", *TCP, "load"]
PLOTTED = ["tcp1_gbit_s", "tcp4_gbit_s", "reverse_gbit_s", "tcp1_machine_cpu_s", "rtt_idle_p50_us", "rtt_load_p99_us"]


# --- the sites ------------------------------------------------------------------------------------

class Bench(Sites):
    def __init__(self, options):
        super().__init__("bench", options.binary)
        self.options = options
        self.subjects = [BASE]
        self.facts_of_ours = None
        self.flood_ports = itertools.count(FIRST_FLOOD_PORT)

    def build(self):
        os.makedirs(self.work, mode=0o700)
        self.add("site-a", "site-b")
        self.join(self.options.mtu)
        self.set_offloads(self.options.underlay_offload)
        if self.add_vxlan():
            self.subjects.append("kernel VXLAN")
        self.subjects += [OURS, *self.options.variant]
        self.spawn("site-b", "iperf3", "-s", "-p", IPERF_PORT, log="iperf3.log")
        echo = self.spawn("site-b", sys.executable, "-B", os.path.abspath(__file__), "_echo", log="echo.log",
                          stdout=subprocess.PIPE, text=True)
        if echo.stdout.readline().strip() != "ready":
            raise Failed("the echo did not start")

    def set_offloads(self, state):
        """Of the underlay, as --underlay-offload has them."""
        send = "on" if state == "on" else "off"
        gro = "on" if state == "receive" else "off"
        for site in UNDERLAY:
            words = [word for offload in SEND_OFFLOADS for word in (offload, send)]
            self.inside("site-" + site, "ethtool", "-K", "wan", *words, "gro", gro)

    def start_tunnel(self, variant):
        """The milliseconds from the start at site a to the first reply, with b up already."""
        cipher = "" if "tunnel.cipher" in variant else 'cipher = "%s"\n' % self.options.cipher
        self.write_cords(lambda site: 'mtu = %d\naddresses = ["%s/24"]' % (self.options.mtu, address(OURS, site)), cipher, variant)
        self.start_cord("b")
        self.until_ready("b")
        probe = self.spawn("site-a", sys.executable, "-B", os.path.abspath(__file__), "_first", address(OURS, "b"), log="first.log",
                           stdout=subprocess.PIPE, text=True)
        probe.stdout.readline()
        begun = time.monotonic()
        self.start_cord("a")
        answered = probe.communicate(timeout=FIRST_PATIENCE_S + 5)[0]
        self.until_ready("a")
        if not answered:
            raise Failed("no reply from %s" % address(OURS, "b"))
        until(20, lambda: self.status("a")["peers"][0]["path_mtu"] == min(self.options.mtu, 9216), "the path MTU was not found")
        return (float(answered) - begun) * 1000

    def add_vxlan(self):
        """False if this kernel has none."""
        for site, other in (("a", "b"), ("b", "a")):
            made = run("ip", "-n", self.ns("site-" + site), "link", "add", "vx0", "type", "vxlan", "id", 42, "dstport", 4789,
                       "local", UNDERLAY[site], "remote", UNDERLAY[other], "dev", "wan", check=False)
            if made.returncode:
                return False
            self.ip("site-" + site, "link set vx0 mtu %d up" % (self.options.mtu - VXLAN_OVERHEAD),
                    "addr add %s/24 dev vx0" % address("kernel VXLAN", site))
        return True

    def round(self, number):
        """All subjects once, each time beginning with another."""
        first = number % len(self.subjects)
        measured = {subject: self.measure(subject) for subject in self.subjects[first:] + self.subjects[:first]}
        return {subject: measured[subject] for subject in self.subjects}

    def measure(self, subject):
        if subject in (BASE, "kernel VXLAN"):
            return self.figures(subject)
        try:
            first = {"first_reply_ms": self.start_tunnel("" if subject == OURS else subject)}
            figures = self.figures(subject)
            self.facts_of_ours = self.facts_of_ours or self.facts()
            return figures | first
        finally:
            self.stop_cords()

    def figures(self, subject):
        figures, target, tests = {}, address(subject, "b"), self.options.tests
        if "idle" in tests:
            figures.update(self.round_trips("idle", target, IDLE_S))
        figures.update(self.tcp(subject, target))
        if self.tunnels:
            figures["rss_mib"] = max(rss_mib(child.pid) for child in self.tunnels.values())
        if "load" in tests:
            load = self.spawn("site-a", *iperf_client(target, int(LOAD_BEFORE_S + LOADED_S + 1), []), log="load.log")
            time.sleep(LOAD_BEFORE_S)
            figures.update(self.round_trips("load", target, LOADED_S))
            load.wait(20)
        if "small" in tests:
            figures["small_frames_kpps"] = self.small_frames(target) / 1000
        if "wire" in tests:
            for gro, state in (("off", "off"), ("on", "receive")):
                self.set_offloads(state)
                received = self.iperf(target, self.options.time, [])["end"]["sum_received"]
                figures["wire_gro_%s_gbit_s" % gro] = received["bits_per_second"] / 1e9
            self.set_offloads(self.options.underlay_offload)
        return figures

    def small_frames(self, target):
        """The highest paced rate of one flow that loses 1 % at most, from that of a flood on."""
        def attempt(rate):
            # Each at a port of its own: what the last left in the path does not count.
            return flood(self, "site-a", "site-b", target, [next(self.flood_ports)], SMALL_BYTES, SMALL_S, rate)
        return highest_rate(attempt, per_second(attempt(0)))

    def tcp(self, subject, target):
        figures = {}
        for key, (_, extra) in TCP.items():
            if key not in self.options.tests:
                continue
            before = self.cpu_s(subject)
            result = self.iperf(target, self.options.time, extra)
            after = self.cpu_s(subject)
            received = result["end"]["sum_received"]
            figures[key + "_gbit_s"] = received["bits_per_second"] / 1e9
            figures[key + "_retransmits"] = result["end"]["sum_sent"].get("retransmits", 0)
            for whose in after:
                figures["%s_%s_cpu_s" % (key, whose)] = (after[whose] - before[whose]) / (received["bytes"] / 1e9)
        return figures

    def iperf(self, target, seconds, extra):
        def attempt():
            done = self.inside("site-a", *iperf_client(target, seconds, extra), check=False, timeout=seconds + 20)
            result = json.loads(done.stdout or "{}")
            # The server takes one client at a time, and needs a moment to finish with the last.
            return None if "busy" in result.get("error", "") else result
        result = until(5, attempt, "iperf3 -s was not free")
        if "error" in result or result["end"]["sum_received"]["bytes"] == 0:
            raise Failed("iperf3 to %s: %s" % (target, result.get("error", "no data")))
        return result

    def round_trips(self, when, target, seconds):
        out = self.inside("site-a", sys.executable, "-B", os.path.abspath(__file__), "_rtt", target, seconds, timeout=seconds + 20).stdout
        return {"rtt_%s_%s" % (when, key): value for key, value in json.loads(out).items()}

    def cpu_s(self, subject):
        """CPU seconds so far: of the machine, and of the tunnel's processes where it has any."""
        ticks = os.sysconf("SC_CLK_TCK")
        user, nice, system, _, _, irq, softirq = map(int, open("/proc/stat").readline().split()[1:8])
        used = {"machine": (user + nice + system + irq + softirq) / ticks}
        if self.tunnels:
            used["tunnel"] = sum(process_ticks(child.pid) for child in self.tunnels.values()) / ticks
        return used

    def facts(self):
        status = self.status("a")
        peer = status["peers"][0]
        return {"cipher": peer["cipher"], "path_mtu": peer["path_mtu"], "plan": status["core_plan"]["plan"],
                "device": status["device"]["backend"], "drops": {site: self.status(site)["drops"] for site in UNDERLAY}}


def address(subject, site):
    return ADDRESSES.get(subject, ADDRESSES[OURS]) % (ord(site) - ord("a") + 1)


def iperf_client(target, seconds, extra):
    return ["iperf3", "-c", target, "-p", IPERF_PORT, "-t", seconds, "-C", "cubic", "-J", "--connect-timeout", 4000, *extra]


def rss_mib(pid):
    return int(re.search(r"VmRSS:\s*(\d+)", open("/proc/%d/status" % pid).read())[1]) / 1024


def process_ticks(pid):
    user, system = open("/proc/%d/stat" % pid).read().rsplit(")", 1)[1].split()[11:13]
    return int(user) + int(system)


# --- the programs inside the sites ----------------------------------------------------------------

def run_first():
    """Before every other program, as if the machine had a core for this one."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def agent_echo():
    run_first()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", ECHO_PORT))
    print("ready", flush=True)
    while True:
        datagram, sender = sock.recvfrom(2048)
        sock.sendto(datagram, sender)


def agent_first(target):
    """Prints when the first reply came. Until the address is there, and the tunnel is up, there is none."""
    print("ready", flush=True)
    end = time.monotonic() + FIRST_PATIENCE_S
    while time.monotonic() < end:
        # The first ARP request may come before the tunnel is up, and must not make the first reply wait for a second.
        with contextlib.suppress(OSError), open("/proc/sys/net/ipv4/neigh/pc0/retrans_time_ms", "w") as f:
            f.write("20")
        # A new socket each time: one that is connected keeps the source address of a route that may have changed.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.connect((target, ECHO_PORT))
                for _ in range(25):
                    sock.send(b"first")
                    if select.select([sock], [], [], FIRST_PROBE_S)[0]:
                        sock.recv(2048)
                        return print(time.monotonic())
            except OSError:
                time.sleep(FIRST_PROBE_S / 2)


def agent_rtt(target, seconds):
    """One datagram a millisecond, whether the last was answered or not; the first hundredth of them warms up."""
    run_first()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((target, ECHO_PORT))
    took_ns, sent = [], 0
    begun = time.monotonic()
    end = begun + float(seconds)
    while time.monotonic() < end + ECHO_PATIENCE_S:
        due = begun + sent * ECHO_INTERVAL_S
        if time.monotonic() >= due and due < end:
            sock.send(time.monotonic_ns().to_bytes(8, "big").ljust(ECHO_BYTES, b"\0"))
            sent += 1
        elif due >= end and len(took_ns) == sent:
            break
        elif select.select([sock], [], [], max(0, due - time.monotonic()) if due < end else ECHO_PATIENCE_S)[0]:
            took_ns.append(time.monotonic_ns() - int.from_bytes(sock.recv(2048)[:8], "big"))
    lost = sent - len(took_ns)
    took_ns = sorted(took_ns[len(took_ns) // 100:])
    if not took_ns:
        sys.exit("no answer from %s" % target)
    percentile = lambda p: took_ns[min(len(took_ns) - 1, int(len(took_ns) * p))] / 1000
    print(json.dumps({"p50_us": percentile(0.5), "p99_us": percentile(0.99), "lost": lost, "answers": len(took_ns)}))


# --- a harness ------------------------------------------------------------------------------------

# What peers.py must know about patchcord. It replaces the names between the @.
PEER = {
    "name": "patchcord",
    "needs": ["patchcord"],
    "version_cmd": ["patchcord", "--version"],
    "overhead": 0,
    "files": {"@side@.toml": ['[tunnel]', 'private-key-file = "@side@.key"', 'listen = "@local@:@port@"', 'cipher = "CIPHER"', '',
                              '[device]', 'name = "@ifname@"', 'mtu = @mtu@', '',
                              '[[peer]]', 'name = "@other@"', 'public-key = "PUBKEY"', 'endpoint = "@remote@:@port@"']},
    "setup": ["umask 077; for s in A B; do [ -s $s.key ] || patchcord genkey > $s.key; done; "
              "sed -i \"s|PUBKEY|$(patchcord pubkey < @other@.key)|\" @side@.toml"],
    "cmd": [["patchcord", "up", "@dir@/@side@.toml"]],
    "env": {"RUST_LOG": "warn"},
}
# The keys of our figures, and their places in the results of peers.py.
HARNESS_FIGURES = {
    "tcp1_gbit_s": "tcp1.gbps", "tcp4_gbit_s": "tcp4.gbps", "reverse_gbit_s": "tcp_rev.gbps",
    "tcp1_tunnel_cpu_s": "tcp1.tun_cpu_s_per_gb", "tcp1_machine_cpu_s": "tcp1.sys_cpu_s_per_gb",
    "rtt_idle_p50_us": "rtt_idle.p50_us", "rtt_idle_p99_us": "rtt_idle.p99_us",
    "rtt_load_p50_us": "rtt_load.p50_us", "rtt_load_p99_us": "rtt_load.p99_us", "small_frames_kpps": "udp18_noloss.pps",
}


def run_harness(options):
    """Lets peers.py measure, and turns its results into ours."""
    out = os.path.abspath(os.path.splitext(options.out)[0] + "-peers")
    with open(out + ".peer.json", "w") as f:
        f.write(json.dumps(PEER).replace("CIPHER", options.cipher))
    path = os.path.dirname(os.path.abspath(options.binary)) + os.pathsep + os.environ["PATH"]
    argv = [sys.executable, "-B", os.path.join(os.path.abspath(options.harness), "peers.py"), "run", "--peer-file", out + ".peer.json",
            "--repeat", options.rounds, "--time", options.time, "--underlay-mtu", options.mtu,
            "--underlay-offload", options.underlay_offload, "--out", out, *options.handed_on]
    child = subprocess.Popen([str(a) for a in argv], env=dict(os.environ, PATH=path), stdout=sys.stderr)
    try:
        code = child.wait()
    except BaseException:
        # It removes its own namespaces, which takes a moment. Ctrl-C has reached it as well.
        child.terminate()
        child.wait()
        raise
    if code:
        raise Failed("%s ended with exit code %d" % (argv[2], code))
    with open(out + ".json") as f:
        return from_harness(json.load(f))


def from_harness(results):
    rounds = {}
    for each in results["runs"]:
        name = {"baseline-veth": BASE, "baseline-vxlan": "kernel VXLAN"}.get(each["peer"], each["peer"])
        figures = {key: dig(each, path) for key, path in HARNESS_FIGURES.items()}
        if figures["small_frames_kpps"]:
            figures["small_frames_kpps"] /= 1000
        if name in (BASE, "kernel VXLAN"):
            figures.pop("tcp1_tunnel_cpu_s")
        rounds.setdefault(each["round"], {})[name] = {key: value for key, value in figures.items() if value is not None}
    return [rounds[number] for number in sorted(rounds)]


def dig(tree, path):
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


# --- results --------------------------------------------------------------------------------------

def machine(options):
    """The versions and settings that the figures depend on."""
    cpuinfo = [line.partition(":")[::2] for line in open("/proc/cpuinfo")]
    model = next((value.strip() for key, value in cpuinfo if key.strip() in ("model name", "Model")), os.uname().machine)
    try:
        governor = open("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read().strip()
    except OSError:
        governor = None
    git = ["git", "-c", "safe.directory=*"]
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip() or None
    if commit and subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode:
        commit += " with changes"
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "kernel": os.uname().release, "governor": governor,
            "load_before": os.getloadavg()[0], "version": run(options.binary, "--version").stdout.strip(), "commit": commit,
            "iperf3": run("iperf3", "--version").stdout.split("\n")[0],
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}


def summarise(rounds):
    """For each subject: figures and their ratios to plain Ethernet in the same round, as median, least, most."""
    collected = {}
    for each in rounds:
        for subject, figures in each.items():
            for key, value in figures.items():
                collected.setdefault(subject, {}).setdefault(key, []).append(value)
                base = each.get(BASE, {}).get(key)
                if key.endswith("_gbit_s") and base:
                    collected[subject].setdefault(key + "_ratio", []).append(value / base)
    return {subject: {key: {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}
                      for key, values in measures.items()}
            for subject, measures in collected.items()}


def write(path, text):
    with open(path + ".part", "w") as f:
        f.write(text)
    hand_over(path + ".part")
    os.replace(path + ".part", path)


def hand_over(path):
    """Gives files made as root to the caller of sudo, like the rest of target/."""
    if "SUDO_UID" in os.environ:
        os.chown(path, int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"]))


def markdown(document):
    summary, names = document["summary"], list(document["summary"])
    lines = [*facts_in_words(document), "", "| median (least–most) | %s |" % " | ".join(names), "|---|" + "---:|" * len(names)]
    for key, title, unit, digits in measured(summary):
        lines.append("| %s, %s | %s |" % (title, unit, " | ".join(cell(summary[name], key, digits) for name in names)))
    lines += ["", "× is the ratio to plain veth in the same round. Both sites and the programs at their ends share these cores."]
    return "\n".join(lines) + "\n"


def measured(summary):
    return [measure for measure in MEASURES if any(measure[0] in figures for figures in summary.values())]


def cell(figures, key, digits):
    if key not in figures:
        return "–"
    spread = figures[key]
    text = "%.*f" % (digits, spread["median"])
    if spread["n"] > 1:
        text += " (%.*f–%.*f)" % (digits, spread["min"], digits, spread["max"])
    ratio = figures.get(key + "_ratio")
    if ratio and ratio["median"] != 1:
        text += ", ×%.2f" % ratio["median"]
    return text


def facts_in_words(document):
    facts, settings = document["machine"], document["settings"]
    sentences = [
        "%s, %d cores, kernel %s, governor %s" % (facts["cpu"], facts["cores"], facts["kernel"], facts["governor"] or "none"),
        "%s, commit %s; %s; %s" % (facts["version"], facts["commit"] or "unknown", facts["iperf3"], facts["date"]),
        "measured by %s" % ("peers.py" if settings["harness"] else "scripts/bench, TCP with cubic"),
        "underlay MTU %(mtu)d, offloads %(underlay_offload)s; cipher %(cipher)s; %(time)g s for each TCP test" % settings
        + "; rounds: %d" % len(document["rounds"]),
    ]
    return ["- " + sentence for sentence in sentences]


# --- the plot -------------------------------------------------------------------------------------

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 } .small { font-size: 10px; fill: #656d76 }
.bar { fill: #8c959f } .ours { fill: #2f7fd1 } .whisker { stroke: #24292f; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 } .bar { fill: #6e7781 } .ours { fill: #4493f8 } .whisker { stroke: #e6edf3 }
}"""
PANEL_WIDTH, LETTER_WIDTH, VALUE_WIDTH, ROW, GAP, MARGIN = 430, 7, 52, 20, 22, 12


def svg(document):
    """Horizontal bars for the medians, whiskers from the least to the most; two panels side by side."""
    summary = document["summary"]
    panels = [measure for measure in measured(summary) if measure[0] in PLOTTED]
    parts, y = [], MARGIN
    for left, right in zip(panels[::2], [*panels[1::2], None]) if panels else []:
        heights = []
        for x, measure in ((MARGIN, left), (MARGIN + PANEL_WIDTH + GAP, right)):
            if measure:
                drawn, height = panel(summary, measure, x, y)
                parts += drawn
                heights.append(height)
        y += max(heights) + GAP
    for sentence in facts_in_words(document):
        parts.append('<text class="small" x="%d" y="%d">%s</text>' % (MARGIN, y + 8, escape(sentence[2:])))
        y += 14
    width, height = 2 * PANEL_WIDTH + GAP + 2 * MARGIN, y + MARGIN
    return ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">\n'
            "<title>patchcord, end to end on one machine</title>\n<style>%s\n</style>\n%s\n</svg>\n"
            % (width, height, width, height, STYLE, "\n".join(parts)))


def panel(summary, measure, x, y):
    key, title, unit, digits = measure
    rows = [(name, figures[key]) for name, figures in summary.items() if key in figures]
    label_width = LETTER_WIDTH * max(map(len, summary)) + 8
    scale = (PANEL_WIDTH - label_width - VALUE_WIDTH) / (max(spread["max"] for _, spread in rows) or 1)
    parts = ['<text class="title" x="%d" y="%d">%s</text>' % (x, y + 11, escape("%s, %s" % (title, unit)))]
    for number, (name, spread) in enumerate(rows):
        top = y + 20 + number * ROW
        begin, middle = x + label_width, top + ROW / 2 - 2
        low, high = begin + spread["min"] * scale, begin + spread["max"] * scale
        shade = "bar" if name in (BASE, "kernel VXLAN") else "bar ours"
        parts += [
            '<text x="%d" y="%.1f" text-anchor="end">%s</text>' % (begin - 6, middle + 4, escape(name)),
            '<rect class="%s" x="%d" y="%d" width="%.1f" height="%d" rx="2"/>' % (shade, begin, top, spread["median"] * scale, ROW - 4),
            '<path class="whisker" d="M%.1f %.1fH%.1fM%.1f %.1fv8M%.1f %.1fv8"/>'
            % (low, middle, high, low, middle - 4, high, middle - 4),
            '<text x="%.1f" y="%.1f">%.*f</text>' % (high + 6, middle + 4, digits, spread["median"]),
        ]
    return parts, 20 + len(rows) * ROW


# --- the run --------------------------------------------------------------------------------------

def arguments():
    ours, handed_on = sys.argv[1:], []
    if "--" in ours:
        ours, handed_on = ours[:ours.index("--")], ours[ours.index("--") + 1:]
    parser = argparse.ArgumentParser(prog="scripts/bench", formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--rounds", "--repeat", type=int, default=5, metavar="N", help="rounds (5)")
    parser.add_argument("--time", type=int, default=3, metavar="SECONDS", help="length of each TCP test (3)")
    parser.add_argument("--mtu", type=int, default=1500, metavar="BYTES", help="of the underlay and the tunnel (1500)")
    parser.add_argument("--underlay-offload", choices=["on", "receive", "off"], default="on",
                        help="off: the veth carries packets of its MTU only, as between plain network cards; receive: so it does, "
                             "and both ends merge them again (GRO), as network cards do unless told otherwise")
    parser.add_argument("--cipher", choices=["auto", "aes-256-gcm", "chacha20-poly1305", "aegis-128x"], default="auto")
    parser.add_argument("--variant", action="append", default=[], metavar="SETTINGS", help="measure patchcord with these settings too")
    parser.add_argument("--tests", metavar="LIST", type=tests, default=USUAL_TESTS, help="of %s; or all (%s)" % (",".join(TESTS), ",".join(USUAL_TESTS)))
    parser.add_argument("--out", metavar="FILE", help="where the JSON goes (%s/DATE.json)" % RESULTS)
    parser.add_argument("--plot", metavar="FILE", help="draw an SVG too")
    parser.add_argument("--report", metavar="FILE", help="measure nothing: print the table of this JSON, and draw it with --plot")
    parser.add_argument("--harness", metavar="DIR", default=os.environ.get("PATCHCORD_BENCH_HARNESS"),
                        help="a folder with peers.py, which measures instead ($PATCHCORD_BENCH_HARNESS)")
    parser.add_argument("--binary", metavar="PATH", help="use this patchcord and build nothing")
    parser.add_argument("--down", action="store_true", help="remove what a killed run left behind")
    options = parser.parse_args(ours)
    options.handed_on = handed_on
    if options.rounds < 1 or options.time < 1:
        parser.error("--rounds and --time are at least 1")
    if options.harness and (options.variant or options.tests != USUAL_TESTS):
        parser.error("a harness knows no --variant and no --tests")
    if options.harness and options.underlay_offload == "receive":
        parser.error("a harness knows --underlay-offload on and off")
    if handed_on and not options.harness:
        parser.error("only a harness takes what follows `--`")
    if options.harness and not os.path.exists(os.path.join(options.harness, "peers.py")):
        parser.error("--harness: there is no peers.py in %s" % options.harness)
    if not options.report and not options.down and not (options.binary and os.access(options.binary, os.X_OK)):
        parser.error("run scripts/bench, which builds patchcord first, or give --binary a program")
    options.out = options.out or os.path.join(RESULTS, time.strftime("%Y-%m-%d-%H%M%S.json"))
    return options


def tests(text):
    chosen = TESTS if text == "all" else text.split(",")
    if not set(chosen) <= set(TESTS):
        raise argparse.ArgumentTypeError("tests are %s" % ", ".join(TESTS))
    return chosen


def conduct(bench, document):
    """Fills the document round by round; complete rounds stay when it is interrupted."""
    begun = time.monotonic()
    bench.build()
    for number in range(bench.options.rounds):
        document["rounds"].append(bench.round(number))
        document["patchcord"] = bench.facts_of_ours
        shown = next((key for key, *_ in MEASURES if key in document["rounds"][-1][BASE]), "first_reply_ms")
        line = ["%s %.2f" % (subject, figures.get(shown, 0)) for subject, figures in document["rounds"][-1].items()]
        print("round %d of %d, %3.0f s: %s" % (number + 1, bench.options.rounds, time.monotonic() - begun, ", ".join(line)),
              file=sys.stderr, flush=True)


def measure(options):
    """The exit code, and the document if there is anything in it."""
    settings = {key: getattr(options, key) for key in ("time", "mtu", "underlay_offload", "cipher", "variant", "tests", "harness")}
    document = {"machine": machine(options), "settings": settings, "rounds": []}
    if not os.path.isdir(RESULTS):
        os.makedirs(RESULTS)
        hand_over(RESULTS)
    bench, code = Bench(options), 0
    try:
        if options.harness:
            document["rounds"] = run_harness(options)
        else:
            conduct(bench, document)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = 130
    except (Failed, subprocess.TimeoutExpired, OSError, ValueError, KeyError) as error:
        print("scripts/bench: %s" % (str(error) or repr(error)), file=sys.stderr)
        for site in UNDERLAY:
            print("".join("  %s: %s\n" % (site, line) for line in bench.log(site).splitlines()[-8:]), end="", file=sys.stderr)
        code = 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)        # a second Ctrl-C must not stop the clean-up
        bench.remove()
    document["summary"] = summarise(document["rounds"])
    return code, document if document["rounds"] else None


def main():
    options = arguments()
    if options.down:
        print("removed" if Bench(options).remove() else "there was nothing")
        return 0
    code = 0
    if options.report:
        with open(options.report) as f:
            document = json.load(f)
    else:
        if Bench(options).is_up():
            print("A bench is running already, or was killed; then remove it first: sudo scripts/bench --down", file=sys.stderr)
            return 1
        unwind_on_signals()
        code, document = measure(options)
        if not document:
            return code
        write(options.out, json.dumps(document, indent=1) + "\n")
        print("written: %s" % options.out, file=sys.stderr)
    if options.plot:
        write(options.plot, svg(document))
    print(markdown(document), end="")
    return code


if __name__ == "__main__":
    if sys.argv[1:2] == ["_echo"]:
        agent_echo()
    elif sys.argv[1:2] == ["_first"]:
        agent_first(*sys.argv[2:])
    elif sys.argv[1:2] == ["_rtt"]:
        agent_rtt(*sys.argv[2:])
    else:
        sys.exit(main())
