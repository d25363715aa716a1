# SPDX-License-Identifier: MIT OR Apache-2.0
"""How the rate of patchcord grows with its lanes. Run it by scripts/scaling-bench.

    pc-scaling-site-a: pc0 = patchcord - wan ==== veth ==== wan - patchcord = pc0 :pc-scaling-site-b

Each round starts the tunnel with each number of lanes, and sends as many TCP streams at once in every
case, and then small UDP datagrams as fast as the sender can. Both sites and both ends of the streams
share the cores of this machine: a lane that is to have cores of its own needs four for the tunnel
and two for its streams. There is no network card between the sites, so the limit of one receive
queue, which all datagrams of a peer share there, does not show. Prints Markdown and then JSON.
"""
import json
import os
import statistics
import sys

from datagrams import flood, per_second
from sites import UNDERLAY, Failed, Sites, bench_parser, run_bench, until

OFFLOADS = ["tso", "gso", "gro", "tx-udp-segmentation"]
INSIDE = {"a": "10.99.0.1", "b": "10.99.0.2"}
FIRST_PORT = 5201
SMALL_BYTES = 18                                  # 64-byte frames, with the checksum of the cable


class Bench(Sites):
    def __init__(self, options):
        super().__init__("scaling", options.binary)
        self.options = options

    def build(self):
        os.makedirs(self.work, mode=0o700)
        self.add("site-a", "site-b")
        self.join()
        if self.options.underlay_offload == "off":
            for site in UNDERLAY:
                self.inside("site-" + site, "ethtool", "-K", "wan", *(word for name in OFFLOADS for word in (name, "off")))
        # One server has one thread, in all but the latest versions of iperf3.
        for place in range(self.options.streams):
            self.spawn("site-b", "iperf3", "-s", "-p", FIRST_PORT + place, log="iperf3.log")

    def with_lanes(self, lanes):
        """The figures of one run with this many lanes."""
        self.start_cords(lambda site: 'addresses = ["%s/24"]' % INSIDE[site], "[pipeline]\nlanes = %d" % lanes)
        try:
            self.first_ping("site-a", INSIDE["b"])
            until(20, lambda: self.status("a")["peers"][0]["path_mtu"] == 1500, "the path MTU was not found")
            used = self.status("a")["core_plan"]["lanes"]
            if used != lanes:
                raise Failed("the tunnel has %d lanes, and %d were asked for" % (used, lanes))
            before = self.cpu_s()
            ends = self.streams()
            cpu = self.cpu_s() - before
            small = self.small_frames()
        finally:
            self.stop_cords()
        received = [end["sum_received"] for end in ends]
        return {"lanes": lanes, "tcp_gbit_s": round(sum(each["bits_per_second"] for each in received) / 1e9, 2),
                "tunnel_cpu_s_per_gb": round(cpu / (sum(each["bytes"] for each in received) / 1e9), 2),
                "small_frames_kpps": round(small / 1e3)}

    def small_frames(self):
        """How many arrive in a second."""
        ports = [FIRST_PORT + place for place in range(self.options.streams)]
        return per_second(flood(self, "site-a", "site-b", INSIDE["b"], ports, SMALL_BYTES, self.options.seconds, 0))

    def streams(self):
        """The last figures of each TCP stream."""
        clients = [self.spawn("site-a", "iperf3", "-c", INSIDE["b"], "-p", FIRST_PORT + place, "-t", self.options.seconds,
                              "-J", "-C", "cubic", "--connect-timeout", 4000, log="client-%d.json" % place)
                   for place in range(self.options.streams)]
        return [self.end_of(place, client) for place, client in enumerate(clients)]

    def end_of(self, place, client):
        client.wait(self.options.seconds + 30)
        path = os.path.join(self.work, "client-%d.json" % place)
        with open(path) as f:
            result = json.load(f)
        os.unlink(path)
        if "error" in result:
            raise Failed("iperf3: %s" % result["error"])
        if not result["end"].get("streams"):
            raise Failed("iperf3: no figures: %s" % json.dumps(result)[-600:])
        return result["end"]

    def cpu_s(self):
        """CPU seconds of both tunnels so far."""
        fields = [open("/proc/%d/stat" % child.pid).read().rsplit(")", 1)[1].split()[11:13] for child in self.tunnels.values()]
        return sum(int(field) for pair in fields for field in pair) / os.sysconf("SC_CLK_TCK")



def summary(measurements):
    """Medians with the least and the most, for each number of lanes."""
    rows = []
    for lanes in dict.fromkeys(m["lanes"] for m in measurements):
        of_lanes = [m for m in measurements if m["lanes"] == lanes]
        row = {"lanes": lanes}
        for key in ("tcp_gbit_s", "tunnel_cpu_s_per_gb", "small_frames_kpps"):
            values = [m[key] for m in of_lanes]
            row[key] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        rows.append(row)
    return rows


def markdown(report):
    lines = ["%(cores)d cores, kernel %(kernel)s, %(streams)d streams, offloads of the underlay %(underlay_offload)s" % report, "",
             "| Lanes | TCP, Gbit/s | CPU of the tunnels, s per 10⁹ bytes | 64-byte frames received, 1000/s |", "|---:|---:|---:|---:|"]
    for row in report["summary"]:
        cells = ["%g (%g–%g)" % (round(row[key]["median"], 2), row[key]["min"], row[key]["max"])
                 for key in ("tcp_gbit_s", "tunnel_cpu_s_per_gb", "small_frames_kpps")]
        lines.append("| %d | %s |" % (row["lanes"], " | ".join(cells)))
    return "\n".join(lines)


def conduct(bench, options):
    bench.build()
    measurements = []
    for number in range(options.rounds):
        # Each round begins with another number of lanes.
        first = number % len(options.lanes)
        for lanes in options.lanes[first:] + options.lanes[:first]:
            measurements.append(bench.with_lanes(lanes))
            print("round %d: %s" % (number + 1, measurements[-1]), file=sys.stderr, flush=True)
    measurements.sort(key=lambda m: options.lanes.index(m["lanes"]))
    return {"cores": len(os.sched_getaffinity(0)), "kernel": os.uname().release, "streams": options.streams,
            "underlay_offload": options.underlay_offload, "measurements": measurements, "summary": summary(measurements)}


def numbers(text):
    return [int(word) for word in text.split(",")]


def main():
    parser = bench_parser("scripts/scaling-bench", __doc__)
    parser.add_argument("--lanes", metavar="LIST", type=numbers, default=[1, 2, 4, 8], help="1 to 8 each (1,2,4,8)")
    parser.add_argument("--streams", metavar="N", type=int, default=16, help="at the same time (16)")
    parser.add_argument("--underlay-offload", choices=["on", "off"], default="on", help="off: the veth carries packets of its MTU only")
    parser.add_argument("--rounds", metavar="N", type=int, default=3, help="3")
    parser.add_argument("--seconds", metavar="S", type=int, default=4, help="of each measurement (4)")
    return run_bench(parser, Bench, conduct, markdown)


if __name__ == "__main__":
    sys.exit(main())
