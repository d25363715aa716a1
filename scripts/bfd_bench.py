# SPDX-License-Identifier: MIT OR Apache-2.0
"""Whether BFD (RFC 5880) stays up across the cord beside TCP streams. Run it by scripts/bfd-bench.

    pc-bfd-site-a -- bird, iperf3 -- pc0 = patchcord === wan ------ wan === patchcord = pc0 -- bird, iperf3 -- pc-bfd-site-b

Both sites run BIRD with one BFD session over the wire that is measured: the cord, and the cable under it for comparison. A session
sends every 50 ms and is down after three packets that do not come. Each round runs TCP over the same wire for --seconds, with each
number of --streams, counts how often either end left the state Up, and notes the longest time between two packets that arrived at site
b. All of it shares the cores of this machine, so a wire may be held up by what the others take. Prints Markdown and then JSON.
"""
import argparse
import ctypes
import itertools
import json
import os
import re
import select
import socket
import statistics
import struct
import sys
import threading

from sites import CLONE_NEWNET, UNDERLAY, Failed, Sites, bench_parser, run_bench, libc, until

CORD = {"a": "10.77.0.1", "b": "10.77.0.2"}
WIRES = {"cable": ("wan", UNDERLAY), "cord": ("pc0", CORD)}
IPERF_PORT, IPERF_PORT_HEX = 5201, ":1451 "
BFD_PORT = 3784                                     # RFC 5881
SO_ATTACH_FILTER, SO_TIMESTAMPNS = 26, 35
ETH_P_ALL, ETH_P_IP, UDP = 3, 0x0800, 17


class Bench(Sites):
    def __init__(self, options):
        super().__init__("bfd", options.binary)
        self.options = options

    def build(self):
        os.makedirs(self.work, mode=0o700)
        self.add("site-a", "site-b")
        self.join()
        self.start_cords(lambda site: 'addresses = ["%s/24"]' % CORD[site], settings=self.options.settings)
        self.first_ping("site-a", CORD["b"])

    def start_bird(self, site, wire):
        interface, addresses = WIRES[wire]
        path = os.path.join(self.work, "bird-%s" % site)
        with open(path + ".conf", "w") as f:
            f.write('log "%s.log" all;\nrouter id %s;\nprotocol device { }\nprotocol bfd {\n  debug { states, events };\n'
                    '  interface "%s" { interval %d ms; multiplier %d; };\n  neighbor %s dev "%s";\n}\n'
                    % (path, addresses[site], interface, self.options.interval, self.options.multiplier,
                       addresses["b" if site == "a" else "a"], interface))
        return self.spawn("site-" + site, "bird", "-f", "-c", path + ".conf", "-s", path + ".ctl", "-P", path + ".pid", log="bird.log")

    def bird_log(self, site):
        try:
            return open(os.path.join(self.work, "bird-%s.log" % site)).read()
        except FileNotFoundError:
            return ""

    def measure(self, wire, streams):
        interface, addresses = WIRES[wire]
        for site in CORD:
            for end in (".log", ".ctl", ".pid"):
                try:
                    os.unlink(os.path.join(self.work, "bird-%s%s" % (site, end)))
                except FileNotFoundError:
                    pass
        daemons = [self.start_bird(site, wire) for site in CORD]
        listener = self.spawn("site-b", "iperf3", "-s", "-1", "-p", IPERF_PORT, log="iperf3.log")
        try:
            for site in CORD:
                until(20, lambda: last_state(self.bird_log(site)) == "Up", "BFD did not come up over the %s" % wire)
            until(5, lambda: IPERF_PORT_HEX in self.inside("site-b", "cat", "/proc/net/tcp6", "/proc/net/tcp").stdout, "iperf3 did not listen")
            before = {site: len(self.bird_log(site)) for site in CORD}
            with Gaps(self.ns("site-b"), interface, addresses["a"]) as gaps:
                seconds = self.options.seconds
                done = self.inside("site-a", "iperf3", "-c", addresses["b"], "-p", IPERF_PORT, "-t", seconds, "-P", streams, "-J", check=False,
                                   timeout=seconds + 60)
            flaps = {site: self.bird_log(site)[before[site]:].count("changed state from Up") for site in CORD}
        finally:
            for child in (listener, *daemons):
                child.terminate()
            for child in (listener, *daemons):
                child.wait(10)
        result = json.loads(done.stdout or "{}")
        if done.returncode or "error" in result:
            raise Failed("iperf3: %s" % result.get("error", done.stderr.strip()))
        return {"wire": wire, "streams": streams, "flaps": sum(flaps.values()), "packets": gaps.count, "longest_gap_ms": round(gaps.longest * 1e3, 1),
                "gbit_s": round(result["end"]["sum_received"]["bits_per_second"] / 1e9, 2)}


def last_state(log):
    states = re.findall(r"changed state from \w+ to (\w+)", log)
    return states[-1] if states else None


class Gaps:
    """Listens in a namespace, and notes when BFD packets of `source` come, as the kernel dates them."""

    def __init__(self, namespace, interface, source):
        self.namespace, self.interface, self.source = namespace, interface, socket.inet_aton(source)
        self.count, self.longest, self.last = 0, 0.0, None
        self.ended = threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self.listen)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()

    def listen(self):
        with open("/run/netns/" + self.namespace) as there:
            if libc.setns(there.fileno(), CLONE_NEWNET):    # of this thread alone
                raise OSError(ctypes.get_errno(), self.namespace)
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        attach_filter(sock)
        sock.bind((self.interface, ETH_P_ALL))
        while not self.ended.is_set():
            if select.select([sock], [], [], 0.2)[0]:
                frame, ancillary, _, _ = sock.recvmsg(2048, 128)
                if frame[26:30] == self.source and ancillary:
                    self.note(*struct.unpack("ll", ancillary[0][2][:16]))

    def note(self, seconds, nanoseconds):
        now = seconds + nanoseconds / 1e9
        if self.last is not None:
            self.longest = max(self.longest, now - self.last)
        self.last, self.count = now, self.count + 1


def attach_filter(sock):
    """Only IPv4 with UDP to the port of BFD reaches this program: the stream must not wake it (classic BPF)."""
    load_half, load_byte, jump_equal, load_x, load_half_x, ret = 0x28, 0x30, 0x15, 0xb1, 0x48, 0x06
    program = [(load_half, 0, 0, 12), (jump_equal, 0, 6, ETH_P_IP), (load_byte, 0, 0, 23), (jump_equal, 0, 4, UDP), (load_x, 0, 0, 14),
               (load_half_x, 0, 0, 16), (jump_equal, 0, 1, BFD_PORT), (ret, 0, 0, 0xffff), (ret, 0, 0, 0)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(program), ctypes.addressof(code)))


def summary(measurements):
    rows = []
    for wire, streams in dict.fromkeys((m["wire"], m["streams"]) for m in measurements):
        alike = [m for m in measurements if (m["wire"], m["streams"]) == (wire, streams)]
        gaps = [m["longest_gap_ms"] for m in alike]
        rates = [m["gbit_s"] for m in alike]
        rows.append({"wire": wire, "streams": streams, "flaps": sum(m["flaps"] for m in alike), "packets": sum(m["packets"] for m in alike),
                     "longest_gap_ms": {"median": statistics.median(gaps), "min": min(gaps), "max": max(gaps)},
                     "gbit_s": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}})
    return rows


def markdown(report):
    lines = ["| Wire | TCP streams | Flaps | BFD packets seen | Longest gap, ms | TCP beside it, Gbit/s |", "|---|---|---|---|---|---|"]
    for row in report["summary"]:
        gap, rate = (row[name] for name in ("longest_gap_ms", "gbit_s"))
        lines.append("| %s | %d | %d | %d | %g (%g to %g) | %g (%g to %g) |"
                     % (row["wire"], row["streams"], row["flaps"], row["packets"], gap["median"], gap["min"], gap["max"], rate["median"], rate["min"], rate["max"]))
    lines += ["", "Median (least to most) of %d rounds of %d s; BFD of BIRD, %d x %d ms; %d cores, Linux %s."
              % (report["rounds"], report["seconds"], report["multiplier"], report["interval_ms"], report["cores"], report["kernel"])]
    return "\n".join(lines)


def conduct(bench, options):
    bench.build()
    measurements = []
    for round_number in range(1, options.rounds + 1):
        for wire, streams in itertools.product(options.wires, options.streams):
            measured = bench.measure(wire, streams)
            measurements.append(measured)
            print("round %d, %s, TCP streams: %d; %d flaps, %d packets, longest gap %g ms, %g Gbit/s"
                  % (round_number, wire, streams, measured["flaps"], measured["packets"], measured["longest_gap_ms"], measured["gbit_s"]),
                  file=sys.stderr, flush=True)
    return {"rounds": options.rounds, "seconds": options.seconds, "interval_ms": options.interval, "multiplier": options.multiplier,
            "settings": options.settings, "cores": os.cpu_count(), "kernel": os.uname().release, "summary": summary(measurements), "measurements": measurements}


def wires(text):
    chosen = text.split(",")
    if not set(chosen) <= set(WIRES):
        raise argparse.ArgumentTypeError("wires are cable and cord")
    return chosen


def numbers(text):
    return [int(word) for word in text.split(",")]


def main():
    parser = bench_parser("scripts/bfd-bench", __doc__)
    parser.add_argument("--streams", metavar="LIST", type=numbers, default=[1], help="of TCP at the same time, such as 1,4,8 (1)")
    parser.add_argument("--wires", metavar="WIRES", type=wires, default=["cable", "cord"], help="cable,cord")
    parser.add_argument("--interval", metavar="MS", type=int, default=50, help="between two BFD packets (50)")
    parser.add_argument("--multiplier", metavar="N", type=int, default=3, help="packets that may be missed (3)")
    parser.add_argument("--settings", default="", help="of patchcord, as those of a --variant of scripts/bench")
    parser.add_argument("--rounds", metavar="N", type=int, default=1, help="1")
    parser.add_argument("--seconds", metavar="S", type=int, default=60, help="of TCP in each round (60)")
    return run_bench(parser, Bench, conduct, markdown)


if __name__ == "__main__":
    sys.exit(main())
