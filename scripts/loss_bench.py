# SPDX-License-Identifier: MIT OR Apache-2.0
"""TCP on a path that loses frames, plain and through patchcord. Run it by scripts/loss-bench.

    pc-loss-a1 -- br-lan - pc0 = patchcord === wan - relay - wan === patchcord = pc0 - br-lan -- pc-loss-b1
                           pc-loss-site-a         pc-loss-relay          pc-loss-site-b

Plain TCP goes from site A to site B, the other one from a1 to b1; both pass the relay, with MTUs of
1500 inside and outside. In each round every loss is tried once both ways, with the same frames lost
by number; the ratio is that of a round. All of it shares the cores of this machine. Prints Markdown
and then JSON.
"""
import json
import os
import signal
import statistics
import subprocess
import sys

from lab import Lab, v4
from sites import UNDERLAY, Failed, bench_parser, run_bench, until

OFFLOADS = ["tx", "rx", "tso", "gso", "gro", "tx-udp-segmentation"]
IPERF_PORT, IPERF_PORT_HEX = 5201, ":1451 "


class Bench(Lab):
    def __init__(self, options):
        super().__init__(options.binary, name="loss", hosts=["a1", "b1"])
        self.options = options
        self.relays = 0

    def underlay(self, mtu):
        self.add("relay")
        for site, port in (("site-a", "near"), ("site-b", "far")):
            self.cable(site, "wan", "relay", port, mtu)
            self.ip("relay", "link set %s addrgenmode none up" % port)
            # The relay needs frames as on a wire.
            self.inside(site, "ethtool", "-K", "wan", *(word for name in OFFLOADS for word in (name, "off")))

    def build(self):
        super().build()
        for name in ("site-a", "site-b", "a1", "b1"):
            # A run must not leave the kernel's metrics of the path to the next one.
            self.inside(name, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/tcp_no_metrics_save")

    def start(self):
        self.start_cords(lambda site: 'bridge = "br-lan"', 'tcp-mss = "path"' if self.options.tcp_mss else "")
        self.first_ping("a1", v4("b1"))
        # SYNs are lowered to the path that was found.
        until(20, lambda: all(self.status(site)["peers"][0]["path_mtu"] == 1500 for site in UNDERLAY), "no path MTU of 1500 was found")

    def start_relay(self, *harm):
        self.relays += 1
        log = "relay-%d.log" % self.relays
        relay = self.spawn("relay", os.path.abspath(self.options.relay), "near", "far", *harm, log=log, stdout=subprocess.PIPE, text=True)

        def ready():
            text = open(os.path.join(self.work, log)).read()
            if relay.poll() is not None:
                raise Failed("the relay ended: %s" % text.strip())
            return "ready" in text
        until(5, ready, "the relay did not say ready")
        return relay

    def tcp(self, client, server, address):
        """Mbit/s of one stream of CUBIC, and the share of segments that were sent again, in percent."""
        listener = self.spawn(server, "iperf3", "-s", "-1", "-p", IPERF_PORT, log="iperf3.log")
        try:
            until(5, lambda: IPERF_PORT_HEX in self.inside(server, "cat", "/proc/net/tcp6", "/proc/net/tcp").stdout,
                  "iperf3 did not listen")
            seconds = self.options.seconds
            done = self.inside(client, "iperf3", "-c", address, "-p", IPERF_PORT, "-C", "cubic", "-O", 1, "-t", seconds, "-J",
                               check=False, timeout=seconds + 30)
        finally:
            listener.terminate()
            listener.wait()
        result = json.loads(done.stdout or "{}")
        if done.returncode or "error" in result:
            raise Failed("iperf3: %s" % result.get("error", done.stderr.strip()))
        end = result["end"]
        return {"mbit_s": round(end["sum_received"]["bits_per_second"] / 1e6, 1), "retransmits": end["sum_sent"]["retransmits"]}

    def compare(self, round_number, loss):
        """One round at one loss: both ways over the same kind of relay, which begins anew for each."""
        ways = {"plain": ("site-a", "site-b", UNDERLAY["b"]), "tunnel": ("a1", "b1", v4("b1"))}
        # Alternates, so that neither always finds a warm machine.
        order = list(ways) if round_number % 2 else list(reversed(ways))
        measured = {"round": round_number, "loss_percent": loss}
        for way in order:
            relay = self.start_relay("--loss", loss, "--delay", self.options.delay, "--seed", round_number, *self.shape())
            self.first_ping("a1", v4("b1"))
            measured[way] = self.tcp(*ways[way])
            relay.send_signal(signal.SIGTERM)
            measured[way]["relay"] = judged(json.loads(relay.communicate(timeout=5)[0]))
        measured["ratio"] = round(measured["tunnel"]["mbit_s"] / measured["plain"]["mbit_s"], 3)
        return measured

    def shape(self):
        options = self.options
        given = (("--rate", options.rate), ("--queue", options.queue), ("--loss-burst", options.loss_burst))
        return [word for name, value in given if value for word in (name, value)]


def judged(counters):
    """The counters of a relay; fails if it did other harm than it was asked to."""
    for direction, count in counters.items():
        if count["too_long"] or count["unfinished_checksum"]:
            raise Failed("%s: offloads are on at a site: %s" % (direction, count))
    return counters


def summary(measurements):
    """Medians with the least and the most, for each loss."""
    rows = []
    for loss in dict.fromkeys(m["loss_percent"] for m in measurements):
        of_loss = [m for m in measurements if m["loss_percent"] == loss]
        columns = {"plain_mbit_s": [m["plain"]["mbit_s"] for m in of_loss], "tunnel_mbit_s": [m["tunnel"]["mbit_s"] for m in of_loss],
                   "ratio": [m["ratio"] for m in of_loss]}
        rows.append({"loss_percent": loss, **{name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
                                              for name, values in columns.items()}})
    return rows


def markdown(report):
    lines = ["| Loss | Plain TCP, Mbit/s | Through patchcord, Mbit/s | Ratio |", "|---|---|---|---|"]
    for row in report["summary"]:
        cells = [cell(row["plain_mbit_s"], mbit), cell(row["tunnel_mbit_s"], mbit), cell(row["ratio"], "{:.2f}".format)]
        lines.append("| %g %% | %s |" % (row["loss_percent"], " | ".join(cells)))
    path = ["delay %(delay_ms)g ms each way"] + [text for name, text in (("rate_mbit", "%(rate_mbit)g Mbit/s"), ("queue_frames", "a queue of %(queue_frames)d frames"),
                                                                      ("loss_burst", "bursts of %(loss_burst)g"),
                                                                      ("tcp_mss", "tcp-mss %(tcp_mss)s"))
                                                 if report[name]]
    lines += ["", ("Median (least to most) of %(rounds)d rounds of %(seconds)d s, one stream of CUBIC; " + ", ".join(path) + "; %(cores)d cores, "
                   "%(cipher)s, %(core_plan)s, Linux %(kernel)s.") % report]
    return "\n".join(lines)


def cell(value, form):
    return "%s (%s to %s)" % tuple(form(value[name]) for name in ("median", "min", "max"))


def mbit(value):
    return ("%.0f" if value >= 100 else "%.1f") % value


def conduct(bench, options):
    bench.build()
    # A relay that does nothing, for the first handshake.
    relay = bench.start_relay()
    bench.start()
    relay.terminate()
    relay.communicate(timeout=5)
    measurements = []
    for round_number in range(1, options.rounds + 1):
        for loss in options.loss:
            measured = bench.compare(round_number, loss)
            measurements.append(measured)
            print("round %d, loss %g %%: plain %g, through patchcord %g Mbit/s"
                  % (round_number, loss, measured["plain"]["mbit_s"], measured["tunnel"]["mbit_s"]), file=sys.stderr, flush=True)
    status = bench.status("a")
    return {"rounds": options.rounds, "seconds": options.seconds, "delay_ms": options.delay, "rate_mbit": options.rate,
            "queue_frames": options.queue, "loss_burst": options.loss_burst, "tcp_mss": options.tcp_mss, "cores": os.cpu_count(), "kernel": os.uname().release,
            "cipher": status["peers"][0]["cipher"], "core_plan": status["core_plan"]["plan"], "device": status["device"]["backend"],
            "drops": {site: bench.status(site)["drops"] for site in UNDERLAY},
            "summary": summary(measurements), "measurements": measurements}


def percents(text):
    return [float(word) for word in text.split(",")]


def main():
    parser = bench_parser("scripts/loss-bench", __doc__)
    parser.add_argument("--loss", metavar="PERCENTS", type=percents, default=[0, 0.1, 1, 3], help="frames lost each way (0,0.1,1,3)")
    parser.add_argument("--loss-burst", metavar="FRAMES", type=float, help="mean length of a burst of lost frames")
    parser.add_argument("--delay", metavar="MS", type=float, default=0, help="delay of the path each way (0)")
    parser.add_argument("--rate", metavar="MBIT", type=float, help="speed of the path (what the relay can)")
    parser.add_argument("--queue", metavar="FRAMES", type=int, help="frames that may wait for the path (1000)")
    parser.add_argument("--tcp-mss", choices=["path"], help="the tunnel's key of this name")
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="5")
    parser.add_argument("--seconds", metavar="S", type=int, default=4, help="of each measurement, after one that does not count (4)")
    parser.add_argument("--relay", metavar="PATH", help="use this relay")
    return run_bench(parser, Bench, conduct, markdown, programs=("binary", "relay"))


if __name__ == "__main__":
    sys.exit(main())
