# SPDX-License-Identifier: MIT OR Apache-2.0
"""Sites on one machine, each a network namespace, with patchcord between them: shared by the lab and the benches.

All names of these namespaces begin alike, and the scripts end only processes in such namespaces.
"""
import argparse
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

UNDERLAY = {"a": "192.0.2.1", "b": "192.0.2.2"}
CLONE_NEWNET, PR_SET_PDEATHSIG = 0x40000000, 1
libc = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """A step failed; the message has its result."""


def until(seconds, attempt, what):
    """The first true result of attempt(), polled; Failed(what) when time is up."""
    end = time.monotonic() + seconds
    while True:
        result = attempt()
        if result:
            return result
        if time.monotonic() > end:
            raise Failed("%s within %g s" % (what, seconds))
        time.sleep(0.03)


def run(*argv, check=True, timeout=30, **kw):
    argv = [str(a) for a in argv]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL if "input" not in kw else None,
                          capture_output=True, text=True, timeout=timeout, **kw)
    if check and done.returncode:
        raise Failed("`%s` failed: %s" % (" ".join(argv), (done.stderr + done.stdout).strip()[-300:]))
    return done


def unwind_on_signals():
    """Signals that end the process raise an exception, so that `finally` cleans up."""
    signal.signal(signal.SIGINT, signal.default_int_handler)    # a background job inherits it ignored
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))


def bench_parser(script, about):
    """The command line of a bench; its own options go in front of those of every bench."""
    return argparse.ArgumentParser(prog=script, formatter_class=argparse.RawDescriptionHelpFormatter, description=about)


def run_bench(parser, bench, conduct, markdown, programs=("binary",)):
    """Does what the command line asks of bench(options); `programs` are the options that name one. Returns the exit code."""
    parser.add_argument("--down", action="store_true", help="remove what a killed run has left")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--binary", metavar="PATH", help="use this patchcord and build nothing")
    options = parser.parse_args()
    if options.down:
        print("removed" if bench(options).remove() else "there was nothing")
        return 0
    for name in programs:
        path = getattr(options, name)
        if not path or not os.access(path, os.X_OK):
            parser.error("--%s: %s is not a program; run %s, which builds it" % (name, path, parser.prog))
    return carry_out(parser.prog, bench(options), options, conduct, markdown)


def carry_out(script, sites, options, conduct, markdown):
    """A measurement from start to clean-up; prints conduct(sites, options). Returns the exit code."""
    if sites.is_up():
        print("a run is under way, or was killed; to clean up: %s --down" % script, file=sys.stderr)
        return 1
    unwind_on_signals()
    try:
        report = conduct(sites, options)
    except (Failed, subprocess.TimeoutExpired) as error:
        print("failed: %s" % error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)            # a second Ctrl-C must not stop the clean-up
        sites.remove()
    if not options.json:
        print(markdown(report) + "\n")
    print(json.dumps(report))
    return 0


def settings_of(text):
    """The lines of each section, of settings such as `express = true; tunnel.cipher = aegis-128x`.

    A key without a section is one of [pipeline], and a word needs no quotes.
    """
    sections = {}
    for setting in filter(None, (part.strip() for part in text.split(";"))):
        name, _, value = (part.strip() for part in setting.partition("="))
        section, _, key = name.rpartition(".")
        if re.fullmatch(r"[a-z][\w-]*", value) and value not in ("true", "false"):
            value = '"%s"' % value
        section = section or "pipeline"
        sections[section] = sections.get(section, "") + "%s = %s\n" % (key, value)
    return sections


class Sites:
    """Namespaces, their processes, and a directory for logs, keys and configurations."""

    def __init__(self, name, binary, keep=False):
        self.name = name
        self.prefix = "pc-%s-" % name
        self.work = "/run/patchcord-" + name
        self.binary = binary and os.path.abspath(binary)
        self.keep = keep
        self.tunnels = {}

    def ns(self, name):
        return self.prefix + name

    def there(self):
        """The namespaces that exist, of this run or of one that was left up."""
        found = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
        return [line.split()[0] for line in found.splitlines() if line.startswith(self.prefix)]

    def is_up(self):
        return bool(self.there()) or os.path.exists(self.work)

    def add(self, *names):
        for name in names:
            run("ip", "netns", "add", self.ns(name))
            self.inside(name, "sh", "-c", "for f in all default; do echo 0 > /proc/sys/net/ipv6/conf/$f/accept_dad; done; "
                        "for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 > $f; done")
            self.ip(name, "link set lo up")

    def join(self, mtu=1500):
        """The underlay between the sites a and b, with an address at each."""
        self.underlay(mtu)
        for site, address in UNDERLAY.items():
            self.ip("site-" + site, "addr add %s/24 dev wan" % address, "link set wan up")

    def underlay(self, mtu):
        """A port named `wan` at each site, and the path between them: here, a cable."""
        self.cable("site-a", "wan", "site-b", "wan", mtu)

    def cable(self, one, port, other, other_port, mtu):
        run("ip", "link", "add", port, "netns", self.ns(one), "mtu", mtu, "type", "veth",
            "peer", "name", other_port, "netns", self.ns(other), "mtu", mtu)

    def inside(self, name, *argv, **kw):
        return run("ip", "netns", "exec", self.ns(name), *argv, **kw)

    def spawn(self, name, *argv, log=None, **kw):
        """Starts a process in a namespace. It dies with us, unless the sites are kept."""
        out = open(os.path.join(self.work, log), "ab") if log else subprocess.DEVNULL
        kw.setdefault("stdout", out)
        kw.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen(["ip", "netns", "exec", self.ns(name), *map(str, argv)], cwd=self.work, stderr=out,
                                start_new_session=True,
                                preexec_fn=None if self.keep else lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL), **kw)

    def ip(self, name, *lines):
        run("ip", "-n", self.ns(name), "-batch", "-", input="\n".join(lines) + "\n")

    def start_cords(self, device, tunnel="", settings=""):
        """`patchcord up` at both sites, with files of write_cords."""
        self.write_cords(device, tunnel, settings)
        for site in UNDERLAY:
            self.start_cord(site)
        for site in UNDERLAY:
            self.until_ready(site)

    def write_cords(self, device, tunnel="", settings=""):
        """Keys and configurations as a user would make them.

        `device(site)` has further lines for [device], `tunnel` for [tunnel]. `settings` are those of a command line.
        """
        sections = settings_of(settings)
        of_tunnel, of_device = (sections.pop(name, "") for name in ("tunnel", "device"))
        others = "".join("\n[%s]\n%s" % section for section in sections.items())
        public = {}
        for site in UNDERLAY:
            key = run(self.binary, "genkey").stdout
            public[site] = run(self.binary, "pubkey", input=key).stdout.strip()
            path = os.path.join(self.work, "%s.key" % self.cord(site))
            with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as f:
                f.write(key)
        for site, other in (("a", "b"), ("b", "a")):
            with open(os.path.join(self.work, self.cord(site) + ".toml"), "w") as f:
                f.write('[tunnel]\nprivate-key-file = "%s.key"\nlisten = "0.0.0.0:51830"\n%s%s\n[device]\nname = "pc0"\n%s\n%s%s\n'
                        '[[peer]]\nname = "site-%s"\npublic-key = "%s"\nendpoint = "%s:51830"\n'
                        % (self.cord(site), of_tunnel, tunnel, device(site), of_device, others, other, public[other], UNDERLAY[other]))

    def start_cord(self, site):
        """In a session of its own, as systemd starts it: the kernel shares its cores among sessions first."""
        open(os.path.join(self.work, "patchcord-%s.log" % site), "w").close()
        self.tunnels[site] = self.spawn("site-" + site, self.binary, "up", os.path.join(self.work, self.cord(site) + ".toml"),
                                        log="patchcord-%s.log" % site)

    def until_ready(self, site):
        def ready():
            code = self.tunnels[site].poll()
            if code is not None:
                raise Failed("patchcord at site %s ended with exit code %d" % (site, code))
            return re.search(r"\bready\b", self.log(site))
        until(10, ready, "site %s did not say ready" % site)

    def stop_cords(self):
        """Ends the tunnels, so that others can be started."""
        for child in self.tunnels.values():
            child.send_signal(signal.SIGTERM)
        for child in self.tunnels.values():
            child.wait(20)
        self.tunnels.clear()

    def first_ping(self, name, address):
        until(10, lambda: self.inside(name, "ping", "-c1", "-W1", address, check=False).returncode == 0, "no ping crossed")

    def cord(self, site):
        return "%s-%s" % (self.name, site)

    def log(self, site):
        try:
            return open(os.path.join(self.work, "patchcord-%s.log" % site), errors="replace").read()
        except FileNotFoundError:
            return ""

    def status(self, site):
        return json.loads(self.inside("site-" + site, self.binary, "show", self.cord(site), "--json").stdout)

    def remove(self):
        """Ends the processes in the namespaces and removes them; true if there were any."""
        names = self.there()
        for sig in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + 3
            for pid in inhabitants(names):
                try:
                    os.kill(pid, sig)
                except ProcessLookupError:
                    pass
            while inhabitants(names) and time.monotonic() < end:
                time.sleep(0.03)
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        shutil.rmtree(self.work, ignore_errors=True)
        return bool(names)


def inhabitants(names):
    pids = set()
    for name in names:
        listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
        for pid in map(int, listed):
            try:
                state = open("/proc/%d/stat" % pid).read().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if state not in "ZX" and pid != os.getpid():
                pids.add(pid)
    return pids
