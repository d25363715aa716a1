# SPDX-License-Identifier: MIT OR Apache-2.0
# Shared by the scripts of this directory: packages, root, cargo. Sourced, never run.

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# need_root NAME: the scripts make network namespaces, which only root may.
need_root() {
    if ((EUID != 0)); then
        echo "$1 makes network namespaces and devices, so it must run as root: sudo $1" >&2
        exit 2
    fi
}

# need COMMAND=PACKAGE ...: installs the packages of those commands that are missing.
need() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    ((${#missing[@]})) || return 0
    if ! command -v apt-get >/dev/null; then
        echo "please install: ${missing[*]} (no apt-get here to do it with)" >&2
        exit 1
    fi
    echo "installing with apt: ${missing[*]}" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1 && return 0
    apt-get update -qq # a fresh machine has no package lists yet
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# The requirements of a build: a C compiler for the cryptography, and Rust.
need_build() {
    need cc=gcc make=make
    [[ -e /usr/include/stdlib.h ]] || need libc6-dev=libc6-dev
    local home=$HOME
    [[ -z ${SUDO_USER:-} ]] || home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
    PATH=$PATH:$home/.cargo/bin:/usr/local/cargo/bin
    if ! command -v cargo >/dev/null; then
        echo "cargo not found: install Rust from https://rustup.rs, then run this again" >&2
        exit 1
    fi
}

# Runs cargo as the user who called sudo, so that target/ stays theirs.
cargo_as_caller() {
    if [[ -n ${SUDO_USER:-} && $SUDO_USER != root ]]; then
        sudo -u "$SUDO_USER" -H env "PATH=$PATH" cargo "$@"
    else
        cargo "$@"
    fi
}
