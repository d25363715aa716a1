#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# The one entry point: every check of this repository, for developers and for CI alike.
#
#   scripts/ci.sh quick     fmt, layers, vectors, docs, clippy and unit tests: run it before a commit
#   scripts/ci.sh fmt       formatting
#   scripts/ci.sh clippy    lints, warnings are errors; nothing newer than `rust-version` is used
#   scripts/ci.sh test      every test but those of `netns`; those of io, api, flow, examples and cli need root
#   scripts/ci.sh doc       documentation of all items, warnings are errors
#   scripts/ci.sh layers    which module may import which
#   scripts/ci.sh vectors   the test vectors against a second implementation of the protocol
#   scripts/ci.sh docs      links of the documents, and whether they describe every drop reason and cause
#   scripts/ci.sh deny      licences, advisories and sources of the dependencies
#   scripts/ci.sh models    data shared by threads, in each order that they and a weak memory model allow
#   scripts/ci.sh sanitizers  tests with AddressSanitizer (addresses), and with ThreadSanitizer for data
#                           shared by threads (threads)
#   scripts/ci.sh fuzz      every fuzz target for FUZZ_SECONDS (10)
#   scripts/ci.sh netns     end to end in network namespaces, hostile peers too (needs root)
#   scripts/ci.sh all       all of them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

BUILDS= # the process group that builds beside other jobs

main() {
  case "${1:-}" in
    quick) run fmt layers vectors docs clippy unit ;;
    all)
      run fmt layers vectors docs
      build_aside fuzz threads models addresses # the last where `test` builds too
      run clippy test doc deny netns
      await_builds
      run models addresses threads fuzz
      ;;
    sanitizers) run addresses threads ;;
    fmt | clippy | test | doc | layers | vectors | docs | deny | models | addresses | threads | fuzz | netns) run "$1" ;;
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

# Builds what later jobs need, one after the other, while earlier jobs run that mostly wait: with SCHED_IDLE
# (sched(7)), a build uses only idle processors, so that no test notices.
build_aside() {
  local job
  mkdir -p target
  trap stop_builds EXIT
  set -m # a process group of its own, to be stopped as a whole
  (
    chrt --idle --pid 0 "$BASHPID"
    for job in "$@"; do
      BUILD_ONLY=1 "job_$job"
    done
  ) >target/ci-builds.log 2>&1 &
  set +m
  BUILDS=$!
}

# After a failure or Ctrl-C, which do not reach them.
stop_builds() {
  [[ -z $BUILDS ]] || kill -- "-$BUILDS" 2>/dev/null || true
}

await_builds() {
  if ! wait "$BUILDS"; then
    cat target/ci-builds.log
    exit 1
  fi
  BUILDS=
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

job_layers() {
  python3 scripts/layers.py
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
  cargo test ${BUILD_ONLY:+--no-run} --manifest-path tests/models/Cargo.toml --target-dir target/models \
    --release --locked
}

# AddressSanitizer for code that calls unsafe code or parses foreign bytes, and needs no namespaces. It
# instruments the packages of this workspace; their dependencies are those of the other tests.
job_addresses() {
  local modules=(wire:: crypto:: proto:: queue:: config:: control:: stats:: io::waker io::udp io::sys io::vnet)
  RUSTC_WORKSPACE_WRAPPER=$PWD/scripts/rustc-asan cargo test ${BUILD_ONLY:+--no-run} --lib --locked -- "${modules[@]}"
}

# ThreadSanitizer for data shared by threads, with as little else as possible: it wants everything
# instrumented but the standard library, and a flag makes rustc accept that. Stable Rust ships the runtime,
# and takes the flag with RUSTC_BOOTSTRAP.
job_threads() {
  local -x RUSTC_BOOTSTRAP=1 CARGO_PROFILE_DEV_DEBUG=0 TSAN_OPTIONS="suppressions=$PWD/tests/threads/tsan.supp"
  local -x RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer"
  local options=(${BUILD_ONLY:+--no-run} --target "$(host)" --target-dir target/threads --lib --locked)
  cargo test "${options[@]}" --package patchcord-bridge --test fdb_threads -- fdb limit no_lookup an_address_that
  cargo test "${options[@]}" --manifest-path tests/threads/Cargo.toml
}

job_fuzz() {
  scripts/fuzz ${BUILD_ONLY:+--build}
}

job_netns() {
  if [[ $EUID -ne 0 ]]; then
    echo "network namespaces need root: sudo scripts/ci.sh netns" >&2
    exit 1
  fi
  # Most of them wait; tests that load the machine take turns, see tests/netns/kit/load.rs.
  cargo test --locked --test netns -- --test-threads 6
  cargo test --locked --test hostile -- --test-threads 3
}

host() {
  rustc -vV | sed -n 's/^host: //p'
}

main "$@"
