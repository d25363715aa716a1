# SPDX-License-Identifier: MIT OR Apache-2.0
"""Debian's kernels, each in a machine of its own (qemu, without KVM), and tests of patchcord on them.

    target/kernel-test/SUITE/apt      the state of apt for the suite
    target/kernel-test/SUITE/VERSION  the kernel of that suite: image, modules, first file system
    the machine's files               those of this one by 9p, read only; changes go to its memory
    the machine's network             none but its own loopback; the tests make namespaces there

It runs tests/netns, and the library's tests of interfaces. The programs are this machine's,
so only the kernel differs. Emulated processors are slow: the boot takes a quarter of a minute, a test seconds; tests are told to be patient.
The order between lanes (cord::express::a_flow_keeps_its_order_when_it_changes_its_lane) breaks here with Linux
5.10 and 6.1, and not with 6.12; why is not known.
Without names of tests, those of TESTS run: tests that depend on the version of the kernel, or on VLAN filtering.
"""
import argparse
import json
import lzma
import os
import re
import shutil
import signal
import subprocess
import sys
import time

from sites import PR_SET_PDEATHSIG, Failed, libc, run, unwind_on_signals

CACHE = os.path.join(os.environ.get("CARGO_TARGET_DIR", "target"), "kernel-test")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# The modules for the first file system, until this machine's files are available; then modprobe takes
# over.
MODULES = ["virtio_pci", "9pnet_virtio", "9p", "overlay"]
PROGRAM = "busybox"
# How many times as long as on a real processor a test may wait.
PATIENCE = 6

# Names of tests, by the program that has them.
TESTS = {
    "lib": ["a_port_has_the_vlans_that_it_is_given"],
    "netns": ["device::port_vlans::", "cord::lan::ping_loses_nothing", "cord::lan::tcp_moves_data"],
}

# Runs in the first file system, with nothing but busybox.
FIRST = """#!/bin/busybox sh
set -e
/bin/busybox mkdir -p /bin /proc /sys /dev /lower /memory /root
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
for module in $(cat /modules/order); do insmod /modules/$module; done
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 files /lower
mount -t tmpfs -o size=80% none /memory
mkdir /memory/changes /memory/work
mount -t overlay -o lowerdir=/lower,upperdir=/memory/changes,workdir=/memory/work none /root
mkdir -p /root/lib/modules
mount --move /proc /root/proc
mount --move /sys /root/sys
mount --move /dev /root/dev
cp /second /root/run-kernel-test
exec switch_root /root /bin/bash /run-kernel-test
"""

# Runs as process 1 over the files of this machine. The last line is the result.
SECOND = """#!/bin/bash
export PATH=%(path)s HOME=/root PATCHCORD_TEST_PATIENCE=%(patience)d
exec >/dev/ttyS1 2>&1 </dev/null
stty -F /dev/ttyS1 raw
mount -t tmpfs none /run
mkdir -p /run/lock /dev/pts /dev/shm
mount -t devpts none /dev/pts
mount -t tmpfs none /dev/shm
mount -t cgroup2 none /sys/fs/cgroup
mount --bind %(modules)s $(readlink -f /lib/modules)
ln -sfn /proc/self/fd /dev/fd
ip link set lo up
modprobe tun
cd %(folder)s
echo "kernel $(uname -r), up after $(cut -d. -f1 /proc/uptime) s"
failed=0
%(commands)s
echo "kernel-test: $failed"
echo o >/proc/sysrq-trigger
sleep 60
"""


def apt(folder, suite, mirror, *argv):
    """apt with a folder and sources of its own: this machine's packages stay as they are."""
    for name in ("lists/partial", "archives/partial"):
        os.makedirs(os.path.join(folder, name), exist_ok=True)
    sources = os.path.join(folder, "sources.list")
    with open(sources, "w") as file:
        file.write("deb [signed-by=%s] %s %s main\n" % (KEYRING, mirror, suite))
    settings = {"Dir::State": folder, "Dir::State::lists": folder + "/lists", "Dir::State::status": "/dev/null",
                "Dir::Cache": folder, "Dir::Cache::archives": folder + "/archives", "Dir::Etc::sourcelist": sources,
                "Dir::Etc::sourceparts": "/dev/null", "Dir::Etc::preferencesparts": "/dev/null",
                "APT::Architecture": "amd64", "APT::Sandbox::User": "root", "Acquire::Languages": "none"}
    words = [word for pair in settings.items() for word in ("-o", "%s=%s" % pair)]
    return run(argv[0], *words, *argv[1:], timeout=600, cwd=folder).stdout


class Kernel:
    """A kernel of a Debian suite, with its modules and a first file system."""

    def __init__(self, suite, mirror):
        folder = os.path.abspath(os.path.join(CACHE, suite, "apt"))
        os.makedirs(folder, exist_ok=True)
        apt(folder, suite, mirror, "apt-get", "update", "-qq")
        depends = apt(folder, suite, mirror, "apt-cache", "depends", "linux-image-amd64")
        package = re.search(r"Depends: (linux-image-(\S+))", depends)
        if not package:
            raise Failed("%s names no kernel: %s" % (suite, depends))
        self.version = package.group(2)
        self.folder = os.path.join(CACHE, suite, self.version)
        if not os.path.exists(self.folder):
            print("unpacking %s of %s (once)" % (package.group(1), suite), flush=True)
            apt(folder, suite, mirror, "apt-get", "download", package.group(1))
            self.unpack(folder)
        self.folder = os.path.abspath(self.folder)
        self.modules = os.path.join(self.folder, "lib/modules")
        self.image = os.path.join(self.folder, "boot/vmlinuz-" + self.version)

    def unpack(self, folder):
        half = self.folder + ".new"
        shutil.rmtree(half, ignore_errors=True)
        for name in os.listdir(folder):
            if name.endswith(".deb"):
                run("dpkg", "-x", os.path.join(folder, name), half, timeout=300)
                os.remove(os.path.join(folder, name))
        if os.path.isdir(half + "/usr/lib/modules"):
            os.makedirs(half + "/lib", exist_ok=True)
            os.rename(half + "/usr/lib/modules", half + "/lib/modules")
        run("depmod", "-b", half, self.version, timeout=300)
        os.rename(half, self.folder)

    def first(self, second):
        """The first file system, as an archive that the kernel unpacks."""
        tree = os.path.join(self.folder, "first")
        shutil.rmtree(tree, ignore_errors=True)
        for name in ("bin", "modules"):
            os.makedirs(os.path.join(tree, name))
        self.add_program(tree)
        order = []
        for module in MODULES:
            listed = run("modprobe", "--show-depends", "-d", self.folder, "-S", self.version, module).stdout
            order += [line.split()[1] for line in listed.splitlines() if line.startswith("insmod")]
        order = list(dict.fromkeys(order))
        for path in order:
            data = open(path, "rb").read()
            with open(os.path.join(tree, "modules", self.plain(path)), "wb") as file:
                file.write(lzma.decompress(data) if path.endswith(".xz") else data)
        for name, text in (("modules/order", "\n".join(map(self.plain, order))), ("init", FIRST), ("second", second)):
            with open(os.open(os.path.join(tree, name), os.O_WRONLY | os.O_CREAT, 0o755), "w") as file:
                file.write(text)
        archive = tree + ".cpio"
        run("sh", "-c", "find . | cpio --quiet -o -H newc > " + archive, cwd=tree)
        return archive

    @staticmethod
    def plain(path):
        return os.path.basename(path).removesuffix(".xz")

    @staticmethod
    def add_program(tree):
        program = shutil.which(PROGRAM)
        needed = re.findall(r"(/\S+) \(0x", run("ldd", program, check=False).stdout)
        for source, place in [(program, "/bin/" + PROGRAM)] + [(library, library) for library in needed]:
            target = tree + place
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy(os.path.realpath(source), target)


class Machine:
    """A running kernel."""

    def __init__(self, kernel, commands, memory):
        second = SECOND % {"path": os.environ["PATH"], "modules": kernel.modules, "folder": os.getcwd(),
                           "patience": PATIENCE,
                           "commands": "\n".join(commands)}
        self.log = os.path.join(kernel.folder, "console")
        self.argv = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", memory, "-nodefaults", "-display", "none",
                     "-no-reboot", "-kernel", kernel.image, "-initrd", kernel.first(second),
                     "-append", "console=ttyS0 panic=-1 quiet mitigations=off",
                     "-fsdev", "local,id=files,path=/,security_model=none,readonly=on,multidevs=remap",
                     "-device", "virtio-9p-pci,fsdev=files,mount_tag=files",
                     "-serial", "file:" + self.log, "-serial", "stdio"]

    def carry_out(self, limit):
        """Prints the output of the tests. Returns the number of programs that failed."""
        end = time.monotonic() + limit
        process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL), start_new_session=True)
        signal.signal(signal.SIGALRM, lambda *_: process.kill())
        signal.alarm(limit)
        result = None
        try:
            for line in process.stdout:
                line = line.decode(errors="replace").rstrip()
                found = re.match(r"kernel-test: (\d+)", line)
                result = int(found.group(1)) if found else result
                if not found and line:
                    print("  " + line, flush=True)
        finally:
            signal.alarm(0)
            process.kill()
            process.wait()
        if result is None:
            raise Failed("the machine ended %s; its last words:\n%s" % (
                "after %d s" % limit if time.monotonic() > end else "early", open(self.log, errors="replace").read()[-2000:]))
        return result


def commands(programs, names):
    """The commands for the machine: one line for each program that has such tests."""
    for program, of_program in names.items():
        if of_program:
            words = [programs[program], "--test-threads=1", *of_program]
            yield " ".join(words) + " || failed=$((failed + 1))"


def built(listing):
    """The test programs, from the output of `cargo test --no-run --message-format=json`."""
    programs = {}
    for line in open(listing):
        message = json.loads(line)
        target = message.get("target", {})
        if message.get("executable") and message["profile"]["test"] and target["name"] in ("patchcord", "netns"):
            kind = target["kind"][0]
            programs[{"test": "netns"}.get(kind, kind)] = message["executable"]
    return programs


def main():
    parser = argparse.ArgumentParser(prog="scripts/kernel-test", formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("tests", nargs="*", help="names of tests of tests/netns, or parts of them")
    parser.add_argument("--built", metavar="FILE", help="what `cargo test --no-run --message-format=json` printed; builds nothing")
    parser.add_argument("--suite", action="append", help="a Debian suite whose kernel is tried; may be repeated (bookworm, trixie)")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="where they come from (%(default)s)")
    parser.add_argument("--memory", default="2G", help="of the machine (%(default)s)")
    parser.add_argument("--limit", type=int, default=1200, metavar="SECONDS", help="for one kernel (%(default)s)")
    options = parser.parse_args()
    if not options.built:
        parser.error("run scripts/kernel-test, which builds the tests first, or give --built")
    unwind_on_signals()
    names = {"netns": options.tests} if options.tests else TESTS
    failed = 0
    try:
        programs = built(options.built)
        for suite in options.suite or ["bookworm", "trixie"]:
            kernel = Kernel(suite, options.mirror)
            print("%s: Linux %s" % (suite, kernel.version), flush=True)
            failed += Machine(kernel, commands(programs, names), options.memory).carry_out(options.limit)
    except (Failed, subprocess.TimeoutExpired) as error:
        print("FAIL  %s" % error, flush=True)
        return 1
    print("FAIL" if failed else "ok", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
