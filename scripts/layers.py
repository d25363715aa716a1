#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which module may import which: checks the arrows of ARCHITECTURE.md.

    scripts/layers.py          prints every import that points the wrong way; exit code 1 if there is one
    scripts/layers.py graph X  prints which files of the module X import which others of it

Files of one room that import each other in a circle are refused too. Tests may use what they like, and comments
do not count.
"""

import pathlib
import re
import sys

# Module -> modules of the crate that it must not import. For `a::b`, the rules of `a` and `a::b` apply.
OUTER = {"io", "machine", "pipeline", "provider", "tunnel", "host", "cli"}
PURE = ["wire", "crypto", "proto", "queue", "config", "control", "rate", "retry", "stats"]
MUST_NOT_IMPORT = {module: OUTER for module in PURE} | {
    "io": {"machine", "proto", "config", "control", "pipeline", "provider", "tunnel", "host", "cli"},
    "machine": {"proto", "config", "control", "pipeline", "provider", "tunnel", "host", "cli"},
    "pipeline": {"config", "provider", "tunnel", "host", "cli"},
    "provider": {"proto", "config", "pipeline", "tunnel", "host", "cli"},
}
# Reads the configuration and the key files, and passes their text on.
READS_FILES = {"config::load"}

# Where system calls and the protocol meet. Every other file uses one of the two, or neither.
MEETING_PLACES = {"pipeline", "provider", "tunnel"}

# A module of the crate -> the only ones that may import it.
ONLY_FOR = {
    # All unsafe code.
    "io::sys": {"io", "machine", "testing"},
    # Of the pipeline, only the control task asks the machine for routes and names; data threads do
    # not.
    "machine": {
        "machine", "provider", "tunnel", "host", "cli",
        "pipeline::control", "pipeline::underlay", "pipeline::reply_sources",
    },
    # A provider gets the frames of its TAP from `io`; everything else comes from `machine`.
    "io::udp": {"io", "pipeline", "tunnel"},
}

# Time, bytes and randomness are arguments of a pure module: it has no way to get them itself.
IMPURE = re.compile(
    r"\b(?:tokio|libc|socket2|rtnetlink|tun_tap|zbus)::"
    r"|\bstd::(?:fs|thread|process|os)\b"
    r"|\bstd::net::.*\b(?:Udp|Tcp)\w+"
    r"|\b(?:Instant|SystemTime)::now\b"
)
# The compiler keeps `std` out of a `no_std` crate; this keeps `no_std` in.
STD_IN_BRIDGE = re.compile(r"\bstd::(?:net|fs|thread|os|process|time::Instant|time::SystemTime)\b")


def main():
    if sys.argv[1:2] == ["graph"]:
        for module, used in sorted(graph(sys.argv[2]).items()):
            print(f"{module} -> {', '.join(sorted(used))}")
        return
    faults = [fault for path in files("src") for fault in check_module(path)]
    faults += check_bridge()
    rooms = {module_of(path).split("::")[0] for path in files("src")}
    faults += [fault for room in sorted(rooms) for fault in check_circles(room)]
    print("\n".join(faults) or "every import points inwards")
    sys.exit(bool(faults))


def files(root):
    """All but the tests that have files of their own, and `lib.rs`, which exports the public items of all modules."""
    paths = pathlib.Path(root).rglob("*.rs")
    return sorted(path for path in paths if path.name not in {"tests.rs", "lib.rs"} and path.parent.name != "tests")


def check_module(path):
    module = module_of(path)
    family = set(ancestors(module))
    forbidden = {name for of in family for name in MUST_NOT_IMPORT.get(of, set())}
    pure = module not in READS_FILES and family & set(PURE)
    if pure:
        for line, text in code(path):
            if IMPURE.search(text):
                yield f"{path}:{line}: {module} is pure: {text.strip()}"
    meets = {}
    for line, used in imports(path, module):
        names = set(ancestors(used))
        for name in names & forbidden:
            yield f"{path}:{line}: {module} must not import {name}"
        for name in names & set(ONLY_FOR):
            if not family & ONLY_FOR[name]:
                yield f"{path}:{line}: {module} must not import {name}, only {', '.join(sorted(ONLY_FOR[name]))} may"
        for name in (names & {"io", "machine", "proto", "bridge"}) - family:
            meets["protocol" if name in {"proto", "bridge"} else "system"] = line
    if len(meets) == 2 and not family & MEETING_PLACES:
        yield (
            f"{path}:{max(meets.values())}: {module} imports both system calls and the protocol;"
            f" only {', '.join(sorted(MEETING_PLACES))} may"
        )


def check_bridge():
    for path in files("bridge/src"):
        for line, text in code(path):
            if STD_IN_BRIDGE.search(text) or re.search(r"\bpatchcord::", text):
                yield f"{path}:{line}: bridge is pure: {text.strip()}"
    if "#![no_std]" not in pathlib.Path("bridge/src/lib.rs").read_text():
        yield "bridge/src/lib.rs:1: bridge must be no_std"


def check_circles(room):
    """Files that import each other, by way of others or not, cannot be read one after the other."""
    arrows = graph(room)
    reached = {module: reach(module, arrows) for module in arrows}
    circle = sorted(module for module in arrows if module in reached[module])
    if circle:
        yield f"src/{room}: these import each other in a circle: {', '.join(circle)}"


def reach(start, arrows):
    found, left = set(), list(arrows.get(start, ()))
    while left:
        module = left.pop()
        if module not in found:
            found.add(module)
            left += arrows.get(module, ())
    return found


def graph(room):
    """The files of a room, and which other files of it each imports.

    A declaration of a child is no import. A name that belongs to no file of its own belongs to the parent."""
    paths = {module_of(path): path for path in files("src")}
    inside = {name: path for name, path in paths.items() if name == room or name.startswith(room + "::")}
    arrows = {}
    for module, path in inside.items():
        used = (next((name for name in ancestors(used) if name in inside), None) for _, used in imports(path, module))
        arrows[module] = {name for name in used if name and name != module}
    return arrows


def module_of(path):
    parts = list(path.with_suffix("").parts[1:])
    return "::".join(parts[:-1] if parts[-1] == "mod" and len(parts) > 1 else parts)


def ancestors(module):
    """`a::b::c` belongs to `a::b::c`, `a::b` and `a`."""
    parts = module.split("::")
    return ["::".join(parts[:end]) for end in range(len(parts), 0, -1)]


TEST_ONLY = re.compile(r"#!?\[cfg\((?:all\()?test\b")


def code(path):
    """The lines of a file without comments, without tests, and without what only tests import."""
    lines = enumerate(path.read_text().splitlines(), 1)
    for line, text in lines:
        text = text.strip()
        if TEST_ONLY.match(text):
            if text.startswith("#!"):
                return
            item = next((text for _, text in lines if not text.strip().startswith("#[")), "")
            if re.match(r"(?:pub(?:\(\w+\))? )?mod \w+ \{", item):
                return
            continue
        yield line, re.sub(r"//.*|pub\(in [\w:]+\)", "", text)


PATH = re.compile(r"\b(?P<start>crate|self|super|patchcord_bridge)\b(?=::|;)")


def imports(path, module):
    """Every path to a module of the crate, with its line, from the root of the crate; also those in groups that span
    lines, and those in the middle of code. The bridge crate is `bridge`."""
    text = "\n".join(text for _, text in code(path))
    for child in re.findall(r"\bmod (\w+);", text):
        for match in re.finditer(rf"(?<![:\w]){child}::", text):
            yield text.count("\n", 0, match.start()) + 1, f"{module}::{child}"
    end = 0
    for match in PATH.finditer(text):
        if match.start() < end:
            continue  # the rest of `super::super::name`
        line = text.count("\n", 0, match.start()) + 1
        if match["start"] == "patchcord_bridge":
            yield line, "bridge"
            continue
        rest = text[match.start():]
        end = match.start() + re.match(r"(?:\w+::)*", rest).end()
        for offset, names in tree(rest):
            if name := absolute(names, module):
                yield line + offset, name


def absolute(names, module):
    base = [] if names[0] == "crate" else module.split("::")
    for position, name in enumerate(names):
        if name == "super":
            base = base[:-1]
        elif name not in {"crate", "self"}:
            return "::".join(base + names[position:])
    return "::".join(base)


def tree(text):
    """The paths of a `use` tree, or of one path in code: each with the lines before it."""
    head = re.match(r"(?:\w+\s*::\s*)*(?:\w+|\*)?", text)
    names = re.findall(r"\w+", head.group())
    if text[head.end():head.end() + 1] != "{":
        yield text.count("\n", 0, head.start()), names
        return
    for start, branch in branches(text[head.end() + 1:]):
        offset = text.count("\n", 0, head.end() + 1 + start)
        for line, rest in tree(branch):
            yield offset + line, names + rest


def branches(text):
    """The branches of a brace group whose opening brace is read already, each with where it begins."""
    depth, start = 0, 0
    for position, char in enumerate(text):
        if char == "{":
            depth += 1
        elif char in ",}" and depth == 0:
            branch = text[start:position]
            skip = len(branch) - len(branch.lstrip())
            if branch.strip():
                yield start + skip, branch.strip()
            start = position + 1
            if char == "}":
                return
        elif char == "}":
            depth -= 1


main()
