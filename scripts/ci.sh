#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# The one door: every check that this repository has, for people and for CI alike.
#
#   scripts/ci.sh quick     fmt, layers, vectors, docs, clippy and unit tests: what to run before a commit
#   scripts/ci.sh fmt       formatting
#   scripts/ci.sh clippy    lints, warnings are errors; nothing newer than `rust-version` is used
#   scripts/ci.sh test      every test but those of `netns`; those of io, api, flow, examples and cli need root
#   scripts/ci.sh doc       documentation of all items, warnings are errors
#   scripts/ci.sh layers    which module may import which
#   scripts/ci.sh vectors   the test vectors against a second implementation of the protocol
#   scripts/ci.sh docs      links of the documents, and whether they describe every drop reason and cause
#   scripts/ci.sh deny      licences, advisories and sources of the dependencies
#   scripts/ci.sh models    what threads share, in each order that they and a weak memory allow
#   scripts/ci.sh sanitizers  tests with AddressSanitizer, and with ThreadSanitizer what threads share
#   scripts/ci.sh fuzz      every fuzz target for FUZZ_SECONDS (10)
#   scripts/ci.sh netns     end to end in network namespaces, hostile peers too (needs root)
#   scripts/ci.sh all       all of them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

main() {
  case "${1:-}" in
    quick) run fmt layers vectors docs clippy unit ;;
    all)
      run fmt layers vectors docs clippy test doc deny models
      beside sanitizers fuzz
      run netns
      ;;
    fmt | clippy | test | doc | layers | vectors | docs | deny | models | sanitizers | fuzz | netns) run "$1" ;;
    *)
      sed -n 's/^#   //p' "${BASH_SOURCE[0]}" >&2
      exit 2
      ;;
  esac
}

run() {
  local job
  for job in "$@"; do
    echo "== $job, after $SECONDS s"
    "job_$job"
  done
}

# Two jobs whose builds have folders of their own, and keep one core busy for most of the time.
beside() {
  local jobs=() job failed=0
  trap 'kill 0' INT # what runs in the background does not hear of Ctrl-C
  for job in "$@"; do
    run "$job" >"target/ci-$job.log" 2>&1 &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do
    wait "$job" || failed=1
  done
  for job in "$@"; do
    cat "target/ci-$job.log"
  done
  trap - INT
  return "$failed"
}

job_fmt() {
  cargo fmt --all --check
  cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
  cargo fmt --manifest-path tests/models/Cargo.toml --check
}

job_clippy() {
  local wanted installed
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  installed=$(rustc --version | cut -d' ' -f2)
  if [[ $(printf '%s\n' "$wanted" "$installed" | sort -V | head -n1) != "$wanted" ]]; then
    echo "Cargo.toml asks for Rust $wanted, but $installed is installed" >&2
    exit 1
  fi
  cargo clippy --workspace --all-targets --locked -- -D warnings -D clippy::incompatible_msrv
}

job_unit() {
  cargo test --workspace --lib --bins --locked --quiet
}

# Every file and folder of tests but those of job_netns: a new one needs no line here.
job_test() {
  local name targets=()
  for name in tests/*.rs tests/*/main.rs bridge/tests/*.rs; do
    name=$(basename "${name%/main.rs}" .rs)
    [[ $name == netns || $name == hostile || $name == conformance ]] || targets+=(--test "$name")
  done
  cargo test --workspace --locked --lib --bins "${targets[@]}"
  # Most of its checks wait.
  cargo test --workspace --locked --test conformance -- --test-threads 6
  cargo test --workspace --locked --doc
}

job_doc() {
  RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked
}

# Imports are read up to the first `#[cfg(test)]` or `#![cfg(test)]` of a file: tests may use what they like. Comments
# do not count.
job_layers() {
  python3 - <<'EOF'
import pathlib, re, sys

OUTER = {"io", "pipeline", "provider", "tunnel", "host"}
PURE = ["wire", "crypto", "proto", "queue", "config", "control::message", "rate", "stats"]
# Reads the configuration and the key files, and hands their text on.
READS_FILES = {"config::load"}

# Module -> modules of the crate that it must not import.
MUST_NOT_IMPORT = {module: OUTER for module in PURE}
MUST_NOT_IMPORT["io"] = {"proto", "config", "pipeline", "provider", "tunnel"}

# Where syscalls and the protocol meet. Everywhere else a file has one of the two, or neither.
MEETING_PLACES = {"pipeline", "provider", "tunnel"}

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
    faults = []
    for path in sorted(pathlib.Path("src").rglob("*.rs")):
        faults += check_module(path)
    for path in sorted(pathlib.Path("bridge/src").rglob("*.rs")):
        for line, text in code(path):
            if STD_IN_BRIDGE.search(text) or re.search(r"\bpatchcord::", text):
                faults.append(f"{path}:{line}: bridge is pure: {text.strip()}")
    if "#![no_std]" not in pathlib.Path("bridge/src/lib.rs").read_text():
        faults.append("bridge/src/lib.rs:1: bridge must be no_std")
    print("\n".join(faults) or "every import points inwards")
    sys.exit(bool(faults))


def check_module(path):
    module = module_of(path)
    forbidden = next((MUST_NOT_IMPORT[name] for name in ancestors(module) if name in MUST_NOT_IMPORT), set())
    pure = module not in READS_FILES and any(name in PURE for name in ancestors(module))
    seen = {}
    for line, text in code(path):
        if pure and IMPURE.search(text):
            yield f"{path}:{line}: {module} is pure: {text.strip()}"
    for line, name in imports(path):
        seen.setdefault("bridge or proto" if name in {"proto", "bridge"} else name, line)
        if name in forbidden:
            yield f"{path}:{line}: {module} must not import {name}"
    if "io" in seen and "bridge or proto" in seen and not MEETING_PLACES & set(ancestors(module)):
        line = max(seen["io"], seen["bridge or proto"])
        yield f"{path}:{line}: {module} imports both io and the protocol; only {', '.join(sorted(MEETING_PLACES))} may"


def module_of(path):
    parts = list(path.with_suffix("").parts[1:])
    return "::".join(parts[:-1] if parts[-1] == "mod" and len(parts) > 1 else parts)


def ancestors(module):
    """`a::b::c` belongs to `a::b::c`, `a::b` and `a`."""
    parts = module.split("::")
    return ["::".join(parts[:end]) for end in range(len(parts), 0, -1)]


def code(path):
    for line, text in enumerate(path.read_text().splitlines(), 1):
        if text.strip().startswith(("#[cfg(test)]", "#![cfg(test)]")):
            return
        yield line, re.sub(r"//.*", "", text)


def imports(path):
    """Every `crate::name`, also in groups that span lines, and the bridge crate."""
    lines = list(code(path))
    text = "\n".join(text for _, text in lines)
    for match in re.finditer(r"\bcrate::(\{)?|\bpatchcord_bridge\b", text):
        line = text.count("\n", 0, match.start()) + 1
        if match.group().startswith("patchcord_bridge"):
            yield line, "bridge"
        elif match.group(1):
            yield from ((line + offset, name) for offset, name in group(text[match.end():]))
        elif name := re.match(r"\w+", text[match.end():]):
            yield line, name.group()


def group(text):
    """The first names of a brace group, each with its line."""
    depth, expect_name = 0, True
    for token in re.finditer(r"\w+|[{},]", text):
        word = token.group()
        if word == "}" and depth == 0:
            return
        if word in "{}":
            depth += 1 if word == "{" else -1
        elif word == ",":
            expect_name = depth == 0
        elif expect_name and depth == 0:
            yield text.count("\n", 0, token.start()), word
            expect_name = False


main()
EOF
}

job_vectors() {
  python3 scripts/vectors.py
}

job_docs() {
  python3 scripts/docs.py
}

job_deny() {
  if command -v cargo-deny >/dev/null; then
    cargo deny --workspace --locked check
    return
  fi
  echo "cargo-deny is not installed (cargo install --locked cargo-deny@0.20); advisories are not"
  echo "checked. Licences and sources are, from the lists in deny.toml:"
  mkdir -p target
  cargo fetch --locked --target "$(host)" --quiet
  cargo metadata --format-version 1 --locked --offline --filter-platform "$(host)" >target/metadata.json
  python3 - target/metadata.json <<'EOF'
import collections, json, re, sys, tomllib

deny = tomllib.load(open("deny.toml", "rb"))
ALLOWED = set(deny["licenses"]["allow"])
REGISTRIES = {"registry+" + url for url in deny["sources"]["allow-registry"]}


def main():
    packages = json.load(open(sys.argv[1]))["packages"]
    faults = [fault for package in packages for fault in check(package)]
    versions = collections.Counter(package["name"] for package in packages)
    twice = sorted(name for name, count in versions.items() if count > 1)
    print(f"{len(packages)} packages; in more than one version: {', '.join(twice) or 'none'}")
    print("\n".join(faults) or "licences and sources are fine")
    sys.exit(bool(faults))


def check(package):
    name = f"{package['name']} {package['version']}"
    licence = package["license"]
    if not licence or not allowed(licence):
        yield f"{name}: licence not allowed: {licence or 'none given'}"
    if package["source"] is not None and package["source"] not in REGISTRIES:
        yield f"{name}: source not allowed: {package['source']}"


def allowed(licence):
    """Whether an SPDX expression can be satisfied; `a/b` is the old way to write `a OR b`."""
    tokens = re.findall(r"[()]|[^\s()]+", licence.replace("/", " OR "))
    verdict = any_of(tokens)
    return verdict and not tokens


def any_of(tokens):
    verdict = all_of(tokens)
    while tokens[:1] == ["OR"]:
        tokens.pop(0)
        verdict = all_of(tokens) or verdict
    return verdict


def all_of(tokens):
    verdict = one(tokens)
    while tokens[:1] == ["AND"]:
        tokens.pop(0)
        verdict = one(tokens) and verdict
    return verdict


def one(tokens):
    if not tokens:
        return False
    name = tokens.pop(0)
    if name == "(":
        verdict = any_of(tokens)
        return bool(tokens) and tokens.pop(0) == ")" and verdict
    if tokens[:1] == ["WITH"]:
        name = " ".join([name, *tokens[:2]])
        del tokens[:2]
    return name in ALLOWED


main()
EOF
}

# The atomics of the switch replaced by those of loom, which tries each order of a few threads.
job_models() {
  cargo test --manifest-path tests/models/Cargo.toml --target-dir target/models --release --locked
}

# AddressSanitizer where unsafe code is called or bytes of others are taken apart, and no namespaces are
# needed; ThreadSanitizer where threads share something, with as little around it as can be.
job_sanitizers() {
  local modules=(wire:: crypto:: proto:: queue:: config:: control::message stats:: io::waker io::udp io::sys io::vnet)
  sanitized address --lib --locked -- "${modules[@]}"
  export TSAN_OPTIONS="suppressions=$PWD/tests/threads/tsan.supp"
  sanitized thread --package patchcord-bridge --lib --test fdb_threads --locked -- fdb limit no_lookup an_address_that
  sanitized thread --manifest-path tests/threads/Cargo.toml --lib --locked
}

# Stable Rust ships the runtimes with its standard library, and takes the flag with RUSTC_BOOTSTRAP. That
# library itself is not instrumented, which it has to be told not to mind.
sanitized() {
  local kind=$1 flags=-Zsanitizer=$1
  shift
  [[ $kind == address ]] || flags+=" -Cunsafe-allow-abi-mismatch=sanitizer"
  RUSTC_BOOTSTRAP=1 CARGO_PROFILE_DEV_DEBUG=0 RUSTFLAGS=$flags \
    cargo test --target "$(host)" --target-dir "target/sanitizers/$kind" "$@"
}

job_fuzz() {
  scripts/fuzz
}

job_netns() {
  if [[ $EUID -ne 0 ]]; then
    echo "network namespaces need root: sudo scripts/ci.sh netns" >&2
    exit 1
  fi
  # Most of them wait; those that do not take turns, see tests/netns/load.rs.
  cargo test --locked --test netns -- --test-threads 6
  cargo test --locked --test hostile -- --test-threads 3
}

host() {
  rustc -vV | sed -n 's/^host: //p'
}

main "$@"
