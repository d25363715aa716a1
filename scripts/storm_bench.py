# SPDX-License-Identifier: MIT OR Apache-2.0
"""The cost of a broadcast storm at one site for two others, and of peers that never answer. Run it by scripts/storm-bench.

    pc-storm-a1 -- br-lan - pc0 = patchcord === wan --+
    pc-storm-b1 -- br-lan - pc0 = patchcord === wan --+-- br-net        TCP goes from a1 to b1,
    pc-storm-c1 -- br-lan - pc0 = patchcord === wan --+                 the storm comes from c1

It measures three networks: the three sites as a mesh; the same with c as a hub, through which a and b see each other; and two sites of
which a has 30 more peers that never answer and an idle one, against the two alone. Each round measures TCP before and during the storm
(or without and with the idle peers); ratios are those of a round. All of it shares the cores of this machine: without --rate the storm's
sender and site c take theirs from the flow. With it each site's uplink is that narrow, as between machines of their own. Prints
Markdown and then JSON.
"""
import argparse
import ctypes
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time

from datagrams import messages
from sites import Failed, Sites, bench_parser, run_bench, libc, run, until

SITES = ["a", "b", "c"]
IPERF_PORT, IPERF_PORT_HEX = 5201, ":1451 "
NEVER = 30      # peers that never answer


def wan(site):
    return "192.0.2.%d" % (1 + SITES.index(site))


def lan(site):
    return "10.77.0.%d" % (1 + SITES.index(site))


# --- the storm ------------------------------------------------------------------------------------

def storm(interface, frames_per_s):
    """Sends broadcasts until it is ended; 100 in a system call. Prints `ready`, and at its end how many there were each second."""
    batch = 100
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sender.bind((interface, 0))
    frame = ctypes.create_string_buffer(b"\xff" * 6 + b"\x02\xbb\0\0\0\1" + b"\x88\xb5" + bytes(46), 60)
    frames = messages(frame, batch)
    running = []
    signal.signal(signal.SIGTERM, lambda *_: running.clear())
    running.append(True)
    print("ready", flush=True)
    begun, sent = time.monotonic(), 0
    while running:
        sent += max(0, libc.sendmmsg(sender.fileno(), frames, batch, 0))
        time.sleep(max(0.0, begun + sent / frames_per_s - time.monotonic()))
    print(round(sent / (time.monotonic() - begun)), flush=True)


# --- the sites ------------------------------------------------------------------------------------

class Bench(Sites):
    def __init__(self, options):
        super().__init__("storm", options.binary)
        self.options = options
        self.public = {}

    def build(self):
        os.makedirs(self.work, mode=0o700)
        self.add("net", *("site-" + site for site in SITES), *(site + "1" for site in SITES))
        self.ip("net", "link add br-net type bridge mcast_snooping 0", "link set br-net up")
        for site in SITES:
            name, host = "site-" + site, site + "1"
            self.cable(name, "wan", "net", "to-" + site, 1500)
            self.ip("net", "link set to-%s master br-net up" % site)
            self.ip(name, "addr add %s/24 dev wan" % wan(site), "link set wan up", "link add br-lan type bridge mcast_snooping 0",
                    "link set br-lan up")
            self.cable(name, host, host, "eth0", 1500)
            self.ip(name, "link set %s master br-lan up" % host)
            self.ip(host, "link set eth0 up", "addr add %s/24 dev eth0" % lan(site))
            self.inside(host, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/tcp_no_metrics_save")
            if self.options.rate:
                for where, port in ((name, "wan"), ("net", "to-" + site)):
                    self.inside(where, "tc", "qdisc", "add", "dev", port, "root", "tbf", "rate", "%gmbit" % self.options.rate,
                                "burst", "256kb", "latency", "20ms")
        for site in SITES:
            self.public[site] = self.key(site)
        self.nobody = [run(self.binary, "pubkey", input=run(self.binary, "genkey").stdout).stdout.strip() for _ in range(NEVER)]

    def key(self, site):
        key = run(self.binary, "genkey").stdout
        with open(os.open(os.path.join(self.work, site + ".key"), os.O_WRONLY | os.O_CREAT, 0o600), "w") as f:
            f.write(key)
        return run(self.binary, "pubkey", input=key).stdout.strip()

    def start(self, links, hub=None, never_at=None):
        """`patchcord up` at the sites of `links`, pairs of them; `never_at` gets peers that never answer as well."""
        sites = sorted({site for pair in links for site in pair})
        for site in sites:
            peers = [(other, self.public[other], wan(other)) for pair in links for other in pair if site in pair and other != site]
            if site == never_at:
                # Addresses without a host, so that no router answers for them.
                peers += [("never-%d" % n, public, "192.0.2.%d" % (100 + n)) for n, public in enumerate(self.nobody)]
            with open(os.path.join(self.work, self.cord(site) + ".toml"), "w") as f:
                f.write('[tunnel]\nprivate-key-file = "%s.key"\nlisten = "0.0.0.0:51830"\n[device]\nname = "pc0"\nbridge = "br-lan"\n' % site)
                f.write('[switch]\nhub = true\n' if site == hub else "")
                for name, public, address in peers:
                    f.write('[[peer]]\nname = "%s"\npublic-key = "%s"\nendpoint = "%s:51830"\n' % (name, public, address))
            self.tunnels[site] = self.spawn("site-" + site, self.binary, "up", self.cord(site) + ".toml", log="patchcord-%s.log" % site)
        self.first_ping("a1", lan("b"))
        return sites

    def stop(self):
        for child in self.tunnels.values():
            child.terminate()
        for child in self.tunnels.values():
            child.wait(10)
        self.tunnels.clear()

    def tcp(self):
        """Mbit/s from a1 to b1."""
        listener = self.spawn("b1", "iperf3", "-s", "-1", "-p", IPERF_PORT, log="iperf3.log")
        try:
            until(5, lambda: IPERF_PORT_HEX in self.inside("b1", "cat", "/proc/net/tcp6", "/proc/net/tcp").stdout, "iperf3 did not listen")
            seconds = self.options.seconds
            done = self.inside("a1", "iperf3", "-c", lan("b"), "-p", IPERF_PORT, "-O", 1, "-t", seconds, "-J", check=False, timeout=seconds + 30)
        finally:
            listener.terminate()
            listener.wait()
        result = json.loads(done.stdout or "{}")
        if done.returncode or "error" in result:
            raise Failed("iperf3: %s" % result.get("error", done.stderr.strip()))
        return round(result["end"]["sum_received"]["bits_per_second"] / 1e6, 1)

    def weather(self, name, links, hub=None):
        """TCP before the storm and during it."""
        self.start(links, hub)
        self.tcp()
        before = self.tcp()
        sender = self.spawn("c1", sys.executable, os.path.abspath(__file__), "--send", "eth0", self.options.storm, log="sender.log",
                            stdout=subprocess.PIPE, text=True)
        if sender.stdout.readline().strip() != "ready":
            raise Failed("the storm's sender did not start")
        during = self.tcp()
        sender.terminate()
        sent = int(sender.communicate(timeout=10)[0])
        ports = {port["port"]: port["refused"] for port in self.status("c")["ports"]}
        self.stop()
        return {"case": name, "before_mbit_s": before, "after_mbit_s": during, "ratio": round(during / before, 3), "storm_frames_s": sent,
                "refused": ports["tap"].get("broadcast-limited", 0)}

    def idle(self, round_number):
        """TCP between two sites alone, and where one has 31 peers more."""
        rates = {}
        ways = {"alone": ([("a", "b")], None), "among": ([("a", "b"), ("a", "c")], "a")}
        for way in sorted(ways, reverse=bool(round_number % 2)):
            links, never_at = ways[way]
            self.start(links, never_at=never_at)
            self.tcp()
            rates[way] = self.tcp()
            self.stop()
        return {"case": "31 idle peers", "before_mbit_s": rates["alone"], "after_mbit_s": rates["among"],
                "ratio": round(rates["among"] / rates["alone"], 3)}


def summary(measurements):
    """Medians with the least and the most, for each case."""
    rows = []
    for case in dict.fromkeys(m["case"] for m in measurements):
        of_case = [m for m in measurements if m["case"] == case]
        row = {"case": case}
        for name in ("before_mbit_s", "after_mbit_s", "ratio"):
            values = [m[name] for m in of_case]
            row[name] = {"median": round(statistics.median(values), 3), "min": min(values), "max": max(values)}
        rows.append(row)
    return rows


def markdown(report):
    lines = ["| Case | TCP before, Mbit/s | TCP with it, Mbit/s | Ratio |", "|---|---|---|---|"]
    for row in report["summary"]:
        cells = ["%g (%g to %g)" % tuple(row[name][key] for key in ("median", "min", "max")) for name in ("before_mbit_s", "after_mbit_s", "ratio")]
        lines.append("| %s | %s |" % (row["case"], " | ".join(cells)))
    links = "links of %g Mbit/s" % report["rate_mbit"] if report["rate_mbit"] else "links without a limit"
    lines += ["", "Median (least to most) of %d rounds of %d s; storms of %d broadcasts/s; %s; %d cores, Linux %s."
              % (report["rounds"], report["seconds"], report["storm"], links, report["cores"], report["kernel"])]
    return "\n".join(lines)


def conduct(bench, options):
    bench.build()
    mesh = [("a", "b"), ("a", "c"), ("b", "c")]
    cases = {"mesh": lambda _: bench.weather("storm, mesh", mesh), "hub": lambda _: bench.weather("storm, hub", [("a", "c"), ("b", "c")], "c"),
             "idle": bench.idle}
    measurements = []
    for round_number in range(1, options.rounds + 1):
        for case in options.cases:
            measured = cases[case](round_number)
            measurements.append(measured)
            print("round %d, %s: %g, then %g Mbit/s (%.0f %%)%s"
                  % (round_number, measured["case"], measured["before_mbit_s"], measured["after_mbit_s"], 100 * measured["ratio"],
                     "; %d broadcasts/s, %d refused" % (measured["storm_frames_s"], measured["refused"]) if "refused" in measured else ""),
                  file=sys.stderr, flush=True)
    return {"rounds": options.rounds, "seconds": options.seconds, "rate_mbit": options.rate, "storm": options.storm, "cores": os.cpu_count(),
            "kernel": os.uname().release, "summary": summary(measurements), "measurements": measurements}


def words(text):
    chosen = text.split(",")
    if not set(chosen) <= {"mesh", "hub", "idle"}:
        raise argparse.ArgumentTypeError("cases are mesh, hub and idle")
    return chosen


def main():
    if sys.argv[1:2] == ["--send"]:
        return storm(sys.argv[2], int(sys.argv[3]))
    parser = bench_parser("scripts/storm-bench", __doc__)
    parser.add_argument("--cases", metavar="CASES", type=words, default=["mesh", "hub", "idle"], help="mesh,hub,idle")
    parser.add_argument("--rate", metavar="MBIT", type=float, help="speed of each site's uplink (what the cores can)")
    parser.add_argument("--storm", metavar="FRAMES", type=int, default=100_000, help="broadcasts per second (100000)")
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="5")
    parser.add_argument("--seconds", metavar="S", type=int, default=4, help="of each measurement, after one that does not count (4)")
    return run_bench(parser, Bench, conduct, markdown)


if __name__ == "__main__":
    sys.exit(main())
