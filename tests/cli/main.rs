// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line as scripts see it: runs the real binary, and checks exit codes and output only.
//!
//! Needs no privileges and no network; nothing outside temporary directories is touched.
#![allow(clippy::unwrap_used)] // clippy takes the functions that tests share for other code

mod configuration;
mod kit;
mod running;

use std::fs;

use kit::{OWN_PRIVATE, OWN_PUBLIC, STATION, run, run_on_terminal, run_with_stdin};

#[test]
fn genkey_and_pubkey_fit_together() {
    for command in ["genkey", "genpsk"] {
        let (one, two) = (run(&[command]), run(&[command]));
        assert_eq!(
            (one.code, one.stdout.len(), one.stderr.as_str()),
            (0, 45, ""),
            "{command}"
        );
        assert_ne!(one.stdout, two.stdout, "{command}");
    }
    let key = run(&["genkey"]).stdout;
    let public = run_with_stdin(&["pubkey"], &key);
    assert_eq!((public.code, public.stdout.len()), (0, 45));
    assert_eq!(
        run_with_stdin(&["pubkey"], OWN_PRIVATE).stdout.trim_end(),
        OWN_PUBLIC
    );
}

#[test]
fn pubkey_reports_an_error_without_repeating_the_key() {
    for (input, expected) in [
        ("", "is empty"),
        (
            "dwdtCnMY!X08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=",
            "character 9",
        ),
        (
            "dwdtCnMYpX08FsFyUbJmRd9ML4fr",
            "decodes to 21 bytes instead of 32",
        ),
        (&OWN_PRIVATE[..43], "this has 43"),
    ] {
        let ran = run_with_stdin(&["pubkey"], input);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{input:?}");
        assert!(ran.stderr.contains(expected), "{input:?}: {}", ran.stderr);
        assert!(
            ran.stderr.contains("patchcord pubkey < a.key"),
            "{input:?}: {}",
            ran.stderr
        );
        assert!(!ran.stderr.contains("dwdt"), "{input:?}: {}", ran.stderr);
    }
}

#[test]
fn secrets_are_not_printed_to_a_terminal_unless_forced() {
    for command in ["genkey", "genpsk"] {
        let (code, stderr, screen) = run_on_terminal(&[command]);
        assert_eq!((code, screen.as_str()), (2, ""), "{command}: {stderr}");
        assert!(
            stderr.contains("umask 077") && stderr.contains("--force"),
            "{command}: {stderr}"
        );

        let (code, stderr, screen) = run_on_terminal(&[command, "--force"]);
        assert_eq!(
            (code, screen.trim_end().len(), stderr.as_str()),
            (0, 44, ""),
            "{command}"
        );
    }
}

#[test]
fn bad_usage_ends_with_2_and_help_with_0() {
    for (args, code) in [
        (&[][..], 2),
        (&["fly"], 2),
        (&["up"], 2),
        (&["check", "a", "b"], 2),
        (&["show", "--yaml"], 2),
        (&["up", "no such name"], 2),
        (&["down", "-/.."], 2),
        (&["bench"], 2),
        (&["bench", "disk"], 2),
        (&["bench", "crypto", "fast"], 2),
        (&["bench", "crypto", "--seconds", "0"], 2),
        (&["bench", "crypto", "--seconds", "NaN"], 2),
        (&["bench", "crypto", "--seconds", "-1"], 2),
        (&["fdb"], 2),
        (&["fdb", "replace"], 2),
        (&["fdb", "show", "a", "b"], 2),
        (&["fdb", "show", "--port", "tap"], 2),
        (&["fdb", "add", "a", STATION], 2),
        (&["fdb", "add", "a", "tap", STATION], 2),
        (&["fdb", "add", "a", "01:00:5e:00:00:01", "tap"], 2),
        (&["fdb", "add", "a", "ff:ff:ff:ff:ff:ff", "tap"], 2),
        (&["fdb", "add", "a", "00:00:00:00:00:00", "tap"], 2),
        (&["fdb", "add", "a", STATION, "tap", "--vlan", "4096"], 2),
        (
            &["fdb", "add", "a", STATION, "tap", "--origin", "learned"],
            2,
        ),
        (&["fdb", "add", "a", STATION, "tap", "--sequence", "1"], 2),
        (&["fdb", "add", "no such name", STATION, "tap"], 2),
        (&["fdb", "del", "a"], 2),
        (&["fdb", "del", "a", STATION, "tap"], 2),
        (&["fdb", "flush"], 2),
        (&["--help"], 0),
        (&["fdb", "--help"], 0),
        (&["fdb", "add", "--help"], 0),
        (&["up", "--help"], 0),
        (&["bench", "crypto", "--help"], 0),
        (&["--version"], 0),
    ] {
        assert_eq!(run(args).code, code, "{args:?}");
    }
    assert!(run(&["--help"]).stdout.contains("Examples:"));
    assert_eq!(
        run(&["--version"]).stdout,
        format!("patchcord {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn the_documents_have_the_keys_that_the_program_has() {
    let printed = run(&["generate", "keys"]);
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    assert!(printed.stdout.contains("| `private-key-file` |"));
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    let page = fs::read_to_string(page).unwrap();
    let remedy = "put what `cargo run -- generate keys` prints at the end of docs/configuration.md";
    assert!(page.ends_with(&printed.stdout), "{remedy}");
}

#[test]
fn the_schema_of_the_protocol_is_the_one_that_the_program_speaks() {
    let printed = run(&["generate", "schema"]);
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/control.schema.json");
    let kept = fs::read_to_string(file).unwrap();
    let remedy = "run `cargo run -- generate schema > docs/control.schema.json`";
    assert!(kept == printed.stdout, "{remedy}");
    for name in ["keep-secret", "path_mtu", "unknown-verb", "not-now"] {
        assert!(kept.contains(name), "{name}");
    }
}

#[test]
fn manual_pages_and_completions_know_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let written = run(&["generate", "man", dir.path().to_str().unwrap()]);
    assert_eq!(
        (written.code, &*written.stdout),
        (0, ""),
        "{}",
        written.stderr
    );
    let page = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    let commands = ["genkey", "up", "check", "show", "fdb", "down", "host"];
    for command in commands {
        assert!(page("patchcord.1").contains(command), "{command}");
        assert!(page(&format!("patchcord-{command}.1")).contains(".SH"));
    }
    let keys = page("patchcord.toml.5");
    for key in ["private\\-key\\-file", "max\\-broadcast", "udp\\-gso"] {
        assert!(keys.contains(key), "{key}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["generate", "completions", shell]);
        for command in commands {
            assert!(script.stdout.contains(command), "{shell}: {command}");
        }
    }
}

#[test]
fn bench_crypto_has_a_figure_for_every_cipher_and_size() {
    let ran = run(&["bench", "crypto", "--json", "--seconds", "0.1"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let fast_aes = report["cpu"]["fast_aes"].as_bool().unwrap();
    let has_aegis = report["cpu"]["features"]["aes"] == true;
    let auto = report["auto"].as_str().unwrap();
    let without_aegis = ["chacha20-poly1305", "aes-256-gcm"][usize::from(fast_aes)];
    assert!(auto == without_aegis || (has_aegis && auto == "aegis-128x"));
    assert_eq!(report["limits"]["rekey_after_datagrams"], 1 << 28);
    let ciphers = report["ciphers"].as_array().unwrap();
    let names: Vec<_> = ciphers
        .iter()
        .map(|of| (of["cipher"].as_str().unwrap(), of["reference"] == true))
        .collect();
    let mut expected = vec![("aes-256-gcm", false), ("chacha20-poly1305", false)];
    expected.extend(has_aegis.then_some(("aegis-128x", false)));
    expected.push(("chacha20-poly1305", true));
    assert_eq!(names, expected);
    for cipher in ciphers {
        let sizes = cipher["sizes"].as_array().unwrap();
        let bytes: Vec<_> = sizes
            .iter()
            .map(|size| size["bytes"].as_u64().unwrap())
            .collect();
        assert_eq!(bytes, [64, 256, 1444, 8972]);
        for size in sizes {
            for direction in ["seal", "open"] {
                let figure = |name: &str| size[direction][name].as_f64().unwrap();
                assert!(figure("gb_per_s") > 0.0, "{size}");
                assert!(figure("ns_min") > 0.0, "{size}");
                assert!(
                    figure("ns_min") <= figure("ns") && figure("ns") <= figure("ns_max"),
                    "{size}"
                );
            }
        }
    }

    let ran = run(&["bench", "crypto", "--seconds", "0.1"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    for expected in [auto, "chacha20-poly1305 *", "268 435 456 datagrams", "8972"] {
        assert!(ran.stdout.contains(expected), "{expected}: {}", ran.stdout);
    }
    assert!(
        ran.stdout.lines().all(|line| line.len() <= 120),
        "{}",
        ran.stdout
    );
}
