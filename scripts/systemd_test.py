# SPDX-License-Identifier: MIT OR Apache-2.0
"""A small Debian in a container, with patchcord as its services. Run it by scripts/systemd-test.

    target/systemd-test/SUITE   the system: debootstrap's, read only, changes go to memory
      /usr/local/bin/patchcord  the binary          /etc/systemd/system   the units of dist/systemd
      /etc/patchcord            tunnels `office`, `nap` (gives way to sleep), `guard` (kill switch), and
                                `single` and `wire` for patchcord@.service
      /sys/power                a file that takes the word "mem" and sleeps no further

systemd, D-Bus, logind and the kernel's networking are real; so is a suspend, up to the write that
would stop the machine. nspawn has made some of what the units protect read only before. The binary runs in the container, so its C library must not be newer than that of the
suite: by default the one of this machine.
"""
import argparse
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from sites import PR_SET_PDEATHSIG, Failed, libc, run, unwind_on_signals, until

NAME = "patchcord-systemd-test"
CACHE = os.path.join(os.environ.get("CARGO_TARGET_DIR", "target"), "systemd-test")
UNITS = sorted(glob.glob("dist/systemd/*"))
PACKAGES = "systemd,systemd-sysv,dbus,iproute2"
HOST, SOCKET = "patchcord-host.service", "patchcord-host.socket"
LOGIND = "org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"
# systemd-analyze's scale goes from 0 to 10; what is left is what a tunnel needs.
MOST_EXPOSURE = 2.5

SLEEP_HOOK = """#!/bin/sh
# Called by systemd-sleep, with everything ready for it, and again after the wake.
exec >/run/sleep-$1
/usr/local/bin/patchcord host list
systemd-inhibit --list --no-legend --no-pager
"""


# --- the machine ----------------------------------------------------------------------------------

def debian_of_this_machine():
    words = dict(line.strip().split("=", 1) for line in open("/etc/os-release") if "=" in line)
    if words.get("ID") != "debian" or "VERSION_CODENAME" not in words:
        return "stable"
    return words["VERSION_CODENAME"].strip('"')


def make_tree(suite, mirror):
    tree = os.path.abspath(os.path.join(CACHE, suite))
    if not os.path.exists(tree):
        print("making %s (once)" % tree, flush=True)
        os.makedirs(CACHE, exist_ok=True)
        half = tree + ".new"
        shutil.rmtree(half, ignore_errors=True)
        run("debootstrap", "--variant=minbase", "--include=" + PACKAGES, suite, half, mirror, timeout=900)
        os.rename(half, tree)
    return tree


class Cgroup:
    """A group of its own in each hierarchy that systemd uses, where no systemd gives one out."""

    def __init__(self):
        roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup"]
        self.paths = [os.path.join(root, NAME) for root in roots if os.path.exists(os.path.join(root, "cgroup.procs"))]
        if not self.paths:
            raise Failed("no control groups here: mount -t cgroup2 none /sys/fs/cgroup")

    def enter(self):
        for path in self.paths:
            os.makedirs(path, exist_ok=True)
            with open(os.path.join(path, "cgroup.procs"), "w") as procs:
                procs.write(str(os.getpid()))

    def remove(self):
        for path in self.paths:
            for folder, _, _ in os.walk(path, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError as error:
                    print("%s stays: %s" % (folder, error), file=sys.stderr)


class Machine:
    """The container."""

    def __init__(self, tree, binary):
        self.tree, self.binary = tree, os.path.abspath(binary)
        self.work = tempfile.mkdtemp(prefix=NAME + "-")
        self.nspawn = self.init = self.cgroup = None

    def boot(self):
        self.configure()
        binds = ["--bind=/dev/net/tun", "--bind-ro=%s:/usr/local/bin/patchcord" % self.binary,
                 "--bind=%s/etc:/etc/patchcord" % self.work,
                 "--bind-ro=%s/hook:/usr/lib/systemd/system-sleep/patchcord-test" % self.work]
        binds += ["--bind-ro=%s:/etc/systemd/system/%s" % (os.path.abspath(unit), os.path.basename(unit)) for unit in UNITS]
        argv = ["systemd-nspawn", "--quiet", "--directory=" + self.tree, "--volatile=overlay", "--boot", "--machine=" + NAME,
                "--register=no", "--private-network", "--capability=CAP_NET_ADMIN,CAP_BPF", "--system-call-filter=bpf", "--console=pipe",
                "--link-journal=no", "--resolv-conf=off", "--timezone=off", *binds]
        if not os.path.isdir("/run/systemd/system"):
            self.cgroup = Cgroup()
            argv.insert(1, "--keep-unit")

        def enter():
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if self.cgroup:
                self.cgroup.enter()
        environment = dict(os.environ, SYSTEMD_NSPAWN_UNIFIED_HIERARCHY="1")
        with open(self.work + "/console", "wb") as console:
            self.nspawn = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                                           env=environment, preexec_fn=enter, start_new_session=True)
        self.init = until(30, self.find_init, "the container did not start: " + self.work + "/console")
        until(60, lambda: self("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded"),
              "the container did not boot")
        self.give_sleep()

    def find_init(self):
        """The container's process 1; a child of nspawn's child while that still prepares it."""
        if self.nspawn.poll() is not None:
            raise Failed("systemd-nspawn ended: " + open(self.work + "/console", errors="replace").read()[-500:])
        pid = self.nspawn.pid
        for _ in range(2):
            children = open("/proc/%d/task/%d/children" % (pid, pid)).read().split()
            if not children:
                return None
            pid = int(children[0])
            status = open("/proc/%d/status" % pid).read()
            space = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
            if len(space) > 1 and space[-1] == "1" and "systemd" in os.readlink("/proc/%d/exe" % pid):
                return pid
        return None

    def configure(self):
        for folder in ("etc", "etc/tunnels.d"):
            os.mkdir(os.path.join(self.work, folder))
        key = run(self.binary, "genkey").stdout
        peer = run(self.binary, "pubkey", input=run(self.binary, "genkey").stdout).stdout.strip()
        self.write("etc/key", key, 0o600)
        for number, tunnel in enumerate(("office", "nap", "guard", "single")):
            self.write("etc/%s.toml" % tunnel,
                       '[tunnel]\nprivate-key-file = "key"\nlisten = "127.0.0.1:%d"\n\n[pipeline]\nlanes = 2\n\n[device]\nname = "pc%d"\n'
                       'addresses = ["10.9.%d.1/24", "fd00:%d::1/64"]\n\n'
                       '[[peer]]\npublic-key = "%s"\nendpoint = "127.0.0.1:9"\n' % (700 + number, number, number, 10 + number, peer))
        self.write("etc/late.toml", '[tunnel]\nprivate-key-file = "key"\nlisten = "198.51.100.1:709"\n\n[device]\nname = "pc9"\n'
                   'bridge = "br-late"\n\n[[peer]]\npublic-key = "%s"\nendpoint = "198.51.100.1:9"\n' % peer)
        self.write("etc/wrong.toml", '[tunnel]\nprivate-key-file = "key"\n\n[device]\nnmae = "pc8"\n')
        self.write("etc/wire.toml", '[tunnel]\nprivate-key-file = "key"\n\n[device]\nnic = "eth7"\n\n'
                   '[[peer]]\npublic-key = "%s"\nendpoint = "127.0.0.1:9"\n' % peer)
        for tunnel, more in (("office", ""), ("nap", "disconnect-on-sleep = true\n"), ("guard", "routing.include-all-networks = true\n")):
            self.write("etc/tunnels.d/%s.toml" % tunnel,
                       'provider = "patchcord"\nvendor.config = "/etc/patchcord/%s.toml"\n%s' % (tunnel, more))
        self.write("hook", SLEEP_HOOK, 0o755)

    def write(self, name, text, mode=0o644):
        with open(os.open(os.path.join(self.work, name), os.O_WRONLY | os.O_CREAT, mode), "w") as file:
            file.write(text)

    def give_sleep(self):
        """A container cannot sleep. This one has the kernel's file for it, which does nothing."""
        self("sh", "-c", "mount -o remount,rw /sys && mkdir -p /sys/power && echo 'freeze mem' > /sys/power/state"
             " && mount -o remount,ro /sys && mount -t tmpfs none /sys/power && echo 'freeze mem' > /sys/power/state")

    def __call__(self, *argv, **kw):
        """Runs a command in the container."""
        return run("nsenter", "--target", self.init, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--", *argv, **kw)

    def client(self, *argv, **kw):
        return self("/usr/local/bin/patchcord", "host", *argv, **kw)

    def statuses(self):
        return {info["tunnel"]: info["status"] for info in json.loads(self.client("list", "--json").stdout)}

    def show(self, unit, name):
        return self("systemctl", "show", "--value", "--property=" + name, unit).stdout.strip()

    def pid(self):
        return int(self.show(HOST, "MainPID"))

    def inhibitors(self):
        """Those of ours: what, who, why, mode, user, process."""
        listed = json.loads(self("busctl", "--json=short", "call", *LOGIND, "ListInhibitors").stdout)
        return [lock for lock in listed["data"][0] if lock[1] == "patchcord"]

    def journal(self):
        if not self.init:
            return ""
        return self("journalctl", "--no-pager", "--lines=60", "--output=cat", "--unit=" + HOST, "--unit=" + SOCKET,
                    "--unit=patchcord@*", check=False).stdout

    def remove(self):
        if self.nspawn and self.nspawn.poll() is None:
            self.nspawn.send_signal(signal.SIGTERM)     # halts it
            try:
                self.nspawn.wait(20)
            except subprocess.TimeoutExpired:
                self.nspawn.send_signal(signal.SIGTERM)
                self.nspawn.wait(20)
        if self.cgroup:
            self.cgroup.remove()
        for folder in ("propagate/" + NAME, "propagate", "unix-export/" + NAME, "unix-export", "locks", ""):
            try:
                os.rmdir("/run/systemd/nspawn/" + folder)
            except OSError:
                pass                                    # not there, or in use by others
        shutil.rmtree(self.work, ignore_errors=True)


# --- the checks -----------------------------------------------------------------------------------

def expect(right, seen):
    if not right:
        raise Failed(str(seen))


def check_version(machine):
    """the binary runs in the container"""
    return machine("/usr/local/bin/patchcord", "--version").stdout.strip()


def check_units(machine):
    """systemd understands every line of the units"""
    done = machine("systemd-analyze", "verify", "--man=no", HOST, SOCKET, "patchcord@single.service")
    expect(not done.stdout + done.stderr, done.stdout + done.stderr)


def check_activation(machine):
    """a client's call starts the host through its socket"""
    machine("systemctl", "start", SOCKET)
    expect(machine.show(HOST, "ActiveState") == "inactive", "the host runs already")
    statuses = machine.statuses()
    expect(statuses == dict.fromkeys(["guard", "nap", "office"], "disconnected"), statuses)
    state = machine.show(HOST, "ActiveState"), machine.show(HOST, "StatusErrno")
    expect(state == ("active", "0"), state)
    return machine("stat", "--format=%A %U %G", "/run/patchcord/host.sock").stdout.strip()


def check_start(machine):
    """tunnels start in the service's confinement"""
    for tunnel in ("office", "nap"):
        machine.client("start", tunnel)
    expect(machine.statuses() == {"guard": "disconnected", "nap": "connected", "office": "connected"}, machine.statuses())
    address = machine("ip", "-o", "address", "show", "pc0").stdout
    expect("10.9.0.1/24" in address and "fd00:10::1/64" in address, address)
    within = ["nsenter", "--target", machine.pid(), "--mount", "--", "test", "-w"]
    writable = [path for path in ("/etc", "/usr", "/var/log", "/root", "/proc/sys/kernel/hostname", "/proc/sys/net/ipv6/conf/pc0/accept_ra",
                                  "/run/patchcord", "/var/lib/patchcord") if machine(*within, path, check=False).returncode == 0]
    expect(writable == ["/proc/sys/net/ipv6/conf/pc0/accept_ra", "/run/patchcord", "/var/lib/patchcord"], writable)
    capabilities = next(line for line in machine("cat", "/proc/%d/status" % machine.pid()).stdout.splitlines() if line.startswith("CapEff"))
    return capabilities.replace("\t", " ")


def check_inhibitor(machine):
    """two tunnels hold one lock of the real logind"""
    until(5, machine.inhibitors, "no lock")
    time.sleep(0.5)
    locks = machine.inhibitors()
    expect(len(locks) == 1 and locks[0][0] == "sleep" and locks[0][3] == "delay" and locks[0][5] == machine.pid(), locks)
    return machine("systemd-inhibit", "--list", "--no-legend", "--no-pager").stdout.strip()


def check_sleep(machine):
    """the machine suspends when the tunnels are ready, and not before"""
    can = machine("busctl", "--json=short", "call", *LOGIND, "CanSuspend").stdout.strip()
    expect("yes" in can, "CanSuspend says " + can)
    begun = time.monotonic()
    machine("busctl", "call", *LOGIND, "Suspend", "b", "false")
    until(20, lambda: machine("test", "-e", "/run/sleep-post", check=False).returncode == 0, "no suspend: " + machine.journal())
    seconds = time.monotonic() - begun
    before = machine("cat", "/run/sleep-pre").stdout
    status = {line.split()[0]: line.split()[1] for line in before.splitlines() if line.split()[0] in ("office", "nap")}
    expect(status == {"office": "connected", "nap": "disconnected"}, before)
    expect("patchcord" not in before.replace("patchcord-", ""), "a lock while the machine sleeps: " + before)
    expect(seconds < 4, "the lock was held for %.1f s, until logind gave up" % seconds)
    until(5, lambda: len(machine.inhibitors()) == 1, "the lock was not taken again")
    expect(machine.statuses()["office"] == "connected", machine.statuses())
    return "ready, slept and awake after %.1f s" % seconds


def check_restart(machine):
    """a restart of the host leaves the socket to its clients"""
    before = machine.pid()
    inode = machine("stat", "--format=%i", "/run/patchcord/host.sock").stdout
    machine("systemctl", "restart", HOST)
    expect(machine.statuses()["office"] == "disconnected" and machine.pid() != before, machine.statuses())
    expect(machine("ip", "-o", "link").stdout.count(" pc") == 0, "an interface is left")
    machine("systemctl", "stop", HOST)
    machine.client("start", "office")
    expect(machine.show(HOST, "ActiveState") == "active", "it was not started again")
    expect(machine("stat", "--format=%i", "/run/patchcord/host.sock").stdout == inode, "another socket")


def check_kill(machine):
    """after a kill the host comes back, and takes over the rules of its kill switch"""
    machine.client("start", "guard")
    rules = machine("ip", "rule").stdout
    expect("proto 112" in rules, rules)
    before = machine.pid()
    machine("sh", "-c", "kill -KILL %d" % before)
    until(10, lambda: machine.pid() not in (0, before), "systemd did not start it again")
    expect(machine("ip", "rule").stdout == rules, "the kill switch is open")
    machine.client("start", "guard")
    machine.client("stop", "guard")
    expect("proto 112" not in machine("ip", "rule").stdout, machine("ip", "rule").stdout)


def check_rules(machine):
    """rules that another program deletes come back in the confinement, too"""
    machine.client("start", "guard")
    rules = machine("ip", "rule").stdout
    table = next(line for line in rules.splitlines() if "fwmark" in line).split(" lookup ")[1].split()[0]
    machine("ip", "rule", "delete", "lookup", table)
    until(5, lambda: machine("ip", "rule").stdout == rules, "the rule did not come back")
    machine.client("stop", "guard")


def check_watchdog(machine):
    """a host that hangs is started again, and one that does not is left alone"""
    expect(machine.show(HOST, "WatchdogUSec") == "30s", machine.show(HOST, "WatchdogUSec"))
    folder = "/run/systemd/system/%s.d" % HOST
    machine("sh", "-c", "mkdir -p %s && printf '[Service]\\nWatchdogSec=2\\nTimeoutAbortSec=1\\n' > %s/test.conf" % (folder, folder))
    machine("systemctl", "daemon-reload")
    machine("systemctl", "restart", HOST)
    before = machine.pid()
    time.sleep(5)
    expect(machine.pid() == before, "a host that is well was killed")
    machine("sh", "-c", "kill -STOP %d" % before)
    until(15, lambda: machine.pid() not in (0, before), "it hangs still")
    expect(machine.statuses()["office"] == "disconnected", machine.statuses())
    machine("rm", "-r", folder)
    machine("systemctl", "daemon-reload")
    machine("systemctl", "restart", HOST)


def check_single(machine):
    """patchcord@.service runs one tunnel"""
    machine("systemctl", "start", "patchcord@single")
    shown = machine("/usr/local/bin/patchcord", "show", "single").stdout
    expect("single" in shown, shown)
    log = machine("journalctl", "--no-pager", "--output=cat", "--unit=patchcord@single").stdout
    expect("lanes=2" in log, log)
    machine("systemctl", "stop", "patchcord@single")
    expect(machine.show("patchcord@single", "Result") == "success", machine.show("patchcord@single", "Result"))
    expect("pc3" not in machine("ip", "-o", "link").stdout, "the interface is left")
    expect(machine("test", "-S", "/run/patchcord/host.sock", check=False).returncode == 0, "it took the host's socket along")


def check_wire(machine):
    """patchcord@.service may use a network card"""
    machine("ip", "link", "add", "eth7", "type", "veth", "peer", "name", "eth8")
    machine("systemctl", "start", "patchcord@wire")
    card = json.loads(machine("ip", "-json", "-details", "link", "show", "eth7").stdout)[0]
    expect(card["promiscuity"] == 1 and "UP" in card["flags"], card)
    machine("systemctl", "stop", "patchcord@wire")
    machine("ip", "link", "delete", "eth7")


def check_late(machine):
    """patchcord@.service waits for nothing at boot, and takes address and bridge when they come"""
    orders = [machine.show("patchcord@late", name) for name in ("After", "Wants", "Requires")]
    expect("network-online" not in " ".join(orders), orders)
    machine("systemctl", "start", "--no-block", "patchcord@late")
    failures = lambda: int(machine.show("patchcord@late", "NRestarts"))
    until(30, failures, "it is not tried again")
    machine("ip", "address", "add", "198.51.100.1/32", "dev", "lo")
    until(30, lambda: machine.show("patchcord@late", "ActiveState") == "active", "the address is not taken")
    link = lambda: json.loads(machine("ip", "-json", "link", "show", "pc9").stdout)[0]
    expect("master" not in link() and "LOWER_UP" not in link()["flags"], link())
    machine("ip", "link", "add", "br-late", "type", "bridge")
    until(10, lambda: link().get("master") == "br-late", "the bridge is not joined")
    machine("systemctl", "stop", "patchcord@late")
    machine("ip", "link", "delete", "br-late")
    machine("ip", "address", "delete", "198.51.100.1/32", "dev", "lo")
    machine("systemctl", "start", "patchcord@wrong", check=False)
    state = machine.show("patchcord@wrong", "ActiveState"), machine.show("patchcord@wrong", "NRestarts")
    expect(state == ("failed", "0"), "a mistake in the file is tried again: %s" % (state,))


def check_exposure(machine):
    """systemd finds little that the services could do beside their work"""
    shown = []
    for unit in (HOST, "patchcord@single.service"):
        table = machine("systemd-analyze", "security", "--no-pager", unit, check=False).stdout
        if unit == HOST:
            print(table)
        exposure = float(table.rsplit(": ", 1)[1].split()[0])
        expect(exposure <= MOST_EXPOSURE, "%s: %s, more than %s" % (unit, exposure, MOST_EXPOSURE))
        shown.append("%s %s" % (unit, exposure))
    return ", ".join(shown)


CHECKS = [check_version, check_units, check_activation, check_start, check_inhibitor, check_sleep, check_restart, check_kill, check_rules,
          check_watchdog, check_single, check_wire, check_late, check_exposure]


def main():
    parser = argparse.ArgumentParser(prog="scripts/systemd-test", formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--binary", metavar="PATH", help="use this patchcord and build nothing")
    parser.add_argument("--suite", default=debian_of_this_machine(), help="the Debian of the container (%(default)s)")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="where it comes from (%(default)s)")
    options = parser.parse_args()
    if not options.binary:
        parser.error("run scripts/systemd-test, which builds patchcord first, or give --binary")
    unwind_on_signals()
    begun = time.monotonic()
    machine = Machine(make_tree(options.suite, options.mirror), options.binary)
    try:
        machine.boot()
        print("booted after %.1f s" % (time.monotonic() - begun), flush=True)
        for check in CHECKS:
            seen = check(machine)
            print("ok    %s%s" % (check.__doc__, "\n      " + seen if seen else ""), flush=True)
    except Failed as failure:
        print("FAIL  %s\n\n%s" % (failure, machine.journal()), flush=True)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)    # a second Ctrl-C must not stop the clean-up
        machine.remove()
    print("Everything works, after %.0f s." % (time.monotonic() - begun))
    return 0


if __name__ == "__main__":
    sys.exit(main())
