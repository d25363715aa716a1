// SPDX-License-Identifier: MIT OR Apache-2.0
//! The resolvers of a machine, in a directory: a bus with a stub of systemd-resolved, a stub of
//! resolvconf, and a file.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use tempfile::TempDir;

use super::{resolved::testing::TestResolved, *};
use crate::machine::bus::Bus;
use crate::testing::{assert_made_to_last, block_on, in_namespace};

const STUB: &str = "../run/systemd/resolve/stub-resolv.conf";
const UPLINK: &str = "/run/systemd/resolve/resolv.conf";
const ORIGINAL: &str = "nameserver 192.0.2.1\n";
/// A link that every namespace has, and its index.
const LINK: (u32, &str) = (1, "lo");

struct Machine {
    dir: TempDir,
    paths: ResolverPaths,
}

impl Machine {
    /// Without a bus and without programs.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = ResolverPaths {
            bus: Bus::at("unix:path=/nonexistent/bus"),
            resolv_conf: dir.path().join("resolv.conf"),
            programs: vec![dir.path().join("sbin")],
        };
        fs::create_dir(&paths.programs[0]).unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::write(&paths.resolv_conf, ORIGINAL).unwrap();
        Self { dir, paths }
    }

    fn names(&self, tunnel: &str) -> Names {
        let run_dir = self.dir.path().join("run");
        Names::new(&run_dir, tunnel, self.paths.clone())
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.paths.resolv_conf).unwrap()
    }

    fn link_to(&self, target: &str) {
        fs::remove_file(&self.paths.resolv_conf).unwrap();
        symlink(target, &self.paths.resolv_conf).unwrap();
    }

    /// A stub of resolvconf that records its calls, and ends with `status`.
    fn install_resolvconf(&self, status: u8) {
        let program = self.paths.programs[0].join("resolvconf");
        let log = self.dir.path().join("log");
        let script = format!(
            "#!/bin/sh\n{{ echo \"$@\"; cat; }} >>{}\necho no disk >&2\nexit {status}\n",
            log.display()
        );
        let source = self.dir.path().join("run/script");
        fs::write(&source, script).unwrap();
        // Another process writes it: a program that is open for writing cannot be started, and a
        // child process of another test may have inherited our descriptor.
        let arguments = [Path::new("-m755"), &source, &program];
        let mut install = std::process::Command::new("install");
        assert!(install.args(arguments).status().unwrap().success());
        fs::remove_file(source).unwrap();
    }

    fn resolvconf_log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Nothing of a tunnel is left, neither a journal nor a backup.
    fn is_clean(&self) -> bool {
        let count = |dir: &str| fs::read_dir(self.dir.path().join(dir)).unwrap().count();
        // resolv.conf, run and sbin, and perhaps the log.
        count("run") == 0 && count(".") - usize::from(!self.resolvconf_log().is_empty()) == 3
    }
}

async fn apply(
    names: &mut Names,
    wanted: Option<&NamesRequest>,
) -> Result<NamesOutcome, NamesError> {
    names.apply(LINK.0, LINK.1, wanted).await
}

fn all_names() -> NamesRequest {
    NamesRequest {
        servers: vec![[10, 0, 0, 53].into(), "2001:db8::53".parse().unwrap()],
        transport: Transport::Cleartext,
        scope: Scope::All,
        search: vec!["corp.example".to_owned(), "example".to_owned()],
    }
}

fn some_names() -> NamesRequest {
    NamesRequest {
        scope: Scope::Domains(vec!["corp.example".to_owned(), "lab.example".to_owned()]),
        search: vec!["corp.example".to_owned()],
        ..all_names()
    }
}

fn tls(server_name: Option<&str>) -> NamesRequest {
    NamesRequest {
        transport: Transport::Tls {
            server_name: server_name.map(str::to_owned),
        },
        search: Vec::new(),
        ..all_names()
    }
}

#[test]
fn check_34_the_file_is_replaced_and_comes_back() {
    let machine = Machine::new();
    let path = machine.paths.resolv_conf.clone();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    block_on(async {
        let mut names = machine.names("office");
        let outcome = apply(&mut names, Some(&all_names())).await.unwrap();
        assert_eq!(outcome, NamesOutcome::File);
        let ours = format!(
            "# Written by patchcord ({}/run/office.names). What was here comes back when its tunnel \
             stops.\n\
             search corp.example example\n\
             nameserver 10.0.0.53\n\
             nameserver 2001:db8::53\n",
            machine.dir.path().display()
        );
        assert_eq!(machine.text(), ours);
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o644);
        let others = NamesRequest {
            search: Vec::new(),
            ..all_names()
        };
        apply(&mut names, Some(&others)).await.unwrap();
        assert_eq!(
            machine.text(),
            ours.replace("search corp.example example\n", "")
        );
        for _ in 0..2 {
            let outcome = apply(&mut names, None).await.unwrap();
            assert_eq!(outcome, NamesOutcome::Unchanged);
        }
        assert_eq!((machine.text().as_str(), mode()), (ORIGINAL, 0o640));
        assert!(machine.is_clean());
    });
}

/// A power cut between two steps must not leave a machine without name servers.
#[test]
fn check_34_each_step_is_on_the_disk_before_the_next() {
    let machine = Machine::new();
    let path = &machine.paths.resolv_conf;
    let mut names = machine.names("office");
    let mut ask = |times, wanted: Option<&NamesRequest>| {
        assert_made_to_last(times, || block_on(apply(&mut names, wanted))).unwrap();
    };
    ask(2, Some(&all_names()));
    ask(1, None);
    machine.link_to("../run/NetworkManager/resolv.conf");
    ask(2, Some(&all_names()));
    ask(1, None);
    fs::remove_file(path).unwrap();
    ask(1, Some(&all_names()));
    ask(1, None);
    assert!(!path.exists());
}

#[test]
fn check_34_an_equal_request_writes_nothing() {
    use std::os::unix::fs::MetadataExt;
    let machine = Machine::new();
    block_on(async {
        let mut names = machine.names("office");
        apply(&mut names, Some(&all_names())).await.unwrap();
        let inode = || fs::metadata(&machine.paths.resolv_conf).unwrap().ino();
        let before = inode();
        apply(&mut names, Some(&all_names())).await.unwrap();
        assert_eq!(inode(), before);
    });
}

#[test]
fn check_34_a_link_comes_back_as_a_link_and_nothing_as_nothing() {
    let machine = Machine::new();
    let path = &machine.paths.resolv_conf;
    block_on(async {
        machine.link_to("../run/NetworkManager/resolv.conf");
        let mut names = machine.names("office");
        apply(&mut names, Some(&all_names())).await.unwrap();
        assert!(fs::symlink_metadata(path).unwrap().is_file());
        apply(&mut names, None).await.unwrap();
        let target = fs::read_link(path).unwrap();
        assert_eq!(target, Path::new("../run/NetworkManager/resolv.conf"));
        fs::remove_file(path).unwrap();
        apply(&mut names, Some(&all_names())).await.unwrap();
        apply(&mut names, None).await.unwrap();
        assert!(!path.exists());
    });
}

#[test]
fn check_34_the_next_start_restores_what_a_killed_run_left() {
    let machine = Machine::new();
    block_on(async {
        for wanted in [None, Some(all_names())] {
            // Dropped without a stop, as a killed process drops it.
            apply(&mut machine.names("office"), Some(&all_names()))
                .await
                .unwrap();
            let mut next = machine.names("office");
            apply(&mut next, wanted.as_ref()).await.unwrap();
            assert_eq!(machine.text() == ORIGINAL, wanted.is_none());
            apply(&mut next, None).await.unwrap();
            assert_eq!(machine.text(), ORIGINAL);
            assert!(machine.is_clean());
        }
        // Killed between two texts: the journal says the new one, the file the old one.
        let mut killed = machine.names("office");
        apply(&mut killed, Some(&all_names())).await.unwrap();
        let before = machine.text();
        let other = NamesRequest {
            search: Vec::new(),
            ..all_names()
        };
        apply(&mut killed, Some(&other)).await.unwrap();
        fs::write(&machine.paths.resolv_conf, before).unwrap();
        apply(&mut machine.names("office"), None).await.unwrap();
        assert_eq!(machine.text(), ORIGINAL);
    });
}

#[test]
fn check_34_the_next_start_restores_after_a_power_cut() {
    let machine = Machine::new();
    block_on(async {
        apply(&mut machine.names("office"), Some(&all_names()))
            .await
            .unwrap();
        fs::remove_file(machine.dir.path().join("run/office.names")).unwrap();
        apply(&mut machine.names("office"), None).await.unwrap();
        assert_eq!(machine.text(), ORIGINAL);
        assert!(machine.is_clean());
    });
}

#[test]
fn check_34_a_file_of_another_program_stays() {
    let machine = Machine::new();
    block_on(async {
        for killed in [false, true] {
            let mut names = machine.names("office");
            apply(&mut names, Some(&all_names())).await.unwrap();
            fs::write(&machine.paths.resolv_conf, "nameserver 198.51.100.1\n").unwrap();
            if killed {
                names = machine.names("office");
            }
            apply(&mut names, None).await.unwrap();
            assert_eq!(machine.text(), "nameserver 198.51.100.1\n");
            assert!(machine.is_clean());
        }
        // And it comes back at its first place.
        let mut names = machine.names("office");
        apply(&mut names, Some(&all_names())).await.unwrap();
        fs::write(&machine.paths.resolv_conf, ORIGINAL).unwrap();
        let other = NamesRequest {
            search: Vec::new(),
            ..all_names()
        };
        apply(&mut names, Some(&other)).await.unwrap();
        assert_ne!(machine.text(), ORIGINAL);
        apply(&mut names, None).await.unwrap();
        assert_eq!(machine.text(), ORIGINAL);
    });
}

#[test]
fn check_34_a_second_tunnel_does_not_get_the_file() {
    let machine = Machine::new();
    block_on(async {
        let mut office = machine.names("office");
        apply(&mut office, Some(&all_names())).await.unwrap();
        let ours = machine.text();
        let mut home = machine.names("home");
        let error = apply(&mut home, Some(&all_names())).await.unwrap_err();
        assert!(matches!(error, NamesError::Taken { .. }), "{error:?}");
        assert!(error.to_string().contains("/run/office.names"), "{error}");
        apply(&mut home, None).await.unwrap();
        assert_eq!(machine.text(), ours);
        apply(&mut office, None).await.unwrap();
        assert!(machine.is_clean());
    });
}

#[test]
fn check_34_a_request_beyond_the_resolver_is_refused_and_changes_nothing() {
    let machine = Machine::new();
    block_on(async {
        for (has_program, by) in [(false, "/etc/resolv.conf"), (true, "resolvconf")] {
            if has_program {
                machine.install_resolvconf(0);
            }
            let mut names = machine.names("office");
            for (request, what) in [
                (some_names(), "some domains"),
                (tls(None), "DNS over TLS"),
                (tls(Some("dns.example")), "DNS over TLS"),
            ] {
                let error = apply(&mut names, Some(&request)).await.unwrap_err();
                let text = error.to_string();
                assert!(text.starts_with(by) && text.contains(what), "{text}");
            }
            assert_eq!(machine.text(), ORIGINAL);
            assert_eq!(machine.resolvconf_log(), "");
            assert!(machine.is_clean());
        }
    });
}

#[test]
fn check_34_resolvconf_gets_servers_and_their_removal() {
    let machine = Machine::new();
    machine.install_resolvconf(0);
    block_on(async {
        let mut names = machine.names("office");
        for _ in 0..2 {
            let outcome = apply(&mut names, Some(&all_names())).await.unwrap();
            assert_eq!(outcome, NamesOutcome::Resolvconf);
        }
        apply(&mut names, None).await.unwrap();
        let added = "-a lo.patchcord -m 0 -x\n\
                     search corp.example example\n\
                     nameserver 10.0.0.53\n\
                     nameserver 2001:db8::53\n";
        let deleted = "-d lo.patchcord\n";
        assert_eq!(machine.resolvconf_log(), format!("{added}{deleted}"));
        // A killed run.
        apply(&mut machine.names("office"), Some(&all_names()))
            .await
            .unwrap();
        apply(&mut machine.names("office"), None).await.unwrap();
        let twice = format!("{added}{deleted}").repeat(2);
        assert_eq!(machine.resolvconf_log(), twice);
        assert_eq!(machine.text(), ORIGINAL);
        assert!(machine.is_clean());
    });
}

#[test]
fn check_34_a_resolvconf_that_fails_is_quoted() {
    let machine = Machine::new();
    machine.install_resolvconf(3);
    block_on(async {
        let mut names = machine.names("office");
        let error = apply(&mut names, Some(&all_names())).await.unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(error.to_string().ends_with("/sbin/resolvconf failed"));
        assert_eq!(source, "exit status: 3: no disk");
    });
}

#[test]
fn check_34_the_resolvconf_of_systemd_is_none() {
    let machine = Machine::new();
    let resolvectl = machine.paths.programs[0].join("resolvectl");
    fs::write(&resolvectl, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&resolvectl, fs::Permissions::from_mode(0o755)).unwrap();
    symlink("resolvectl", machine.paths.programs[0].join("resolvconf")).unwrap();
    block_on(async {
        let outcome = apply(&mut machine.names("office"), Some(&all_names())).await;
        assert_eq!(outcome.unwrap(), NamesOutcome::File);
    });
}

#[test]
fn check_34_resolved_gets_the_whole_request() {
    let v4 = "[(2, [10, 0, 0, 53])";
    let v6 = "(10, [32, 1, 13, 184, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 83])]";
    block_on(async {
        let resolved = TestResolved::start().await;
        let mut machine = Machine::new();
        machine.paths.bus = resolved.bus();
        machine.link_to(STUB);
        let mut names = machine.names("office");
        for (request, expected) in [
            (
                all_names(),
                vec![
                    "default true".to_owned(),
                    r#"domains [("corp.example", false), ("example", false), (".", true)]"#
                        .to_owned(),
                    format!("servers {v4}, {v6}"),
                    "tls no".to_owned(),
                ],
            ),
            (
                some_names(),
                vec![
                    "default false".to_owned(),
                    r#"domains [("corp.example", false), ("lab.example", true)]"#.to_owned(),
                    format!("servers {v4}, {v6}"),
                    "tls no".to_owned(),
                ],
            ),
            (
                NamesRequest {
                    servers: vec![[10, 0, 0, 53].into()],
                    ..tls(Some("dns.example"))
                },
                vec![
                    "tls yes".to_owned(),
                    "default true".to_owned(),
                    r#"domains [(".", true)]"#.to_owned(),
                    r#"servers [(2, [10, 0, 0, 53], 0, "dns.example")]"#.to_owned(),
                ],
            ),
        ] {
            for expected in [expected, Vec::new()] {
                let outcome = apply(&mut names, Some(&request)).await.unwrap();
                assert_eq!(outcome, NamesOutcome::Resolved);
                assert_eq!(resolved.take_calls(), expected);
            }
        }
        apply(&mut names, None).await.unwrap();
        assert_eq!(resolved.take_calls(), ["revert"]);
        assert!(machine.is_clean());
    });
}

#[test]
fn check_34_resolved_forgets_what_a_killed_run_left_on_a_link_that_is_still_there() {
    block_on(async {
        let resolved = TestResolved::start().await;
        let mut machine = Machine::new();
        machine.paths.bus = resolved.bus();
        machine.link_to(STUB);
        for (index, expected) in [(1, vec!["revert".to_owned()]), (2_000_000, Vec::new())] {
            let mut killed = machine.names("office");
            killed
                .apply(index, LINK.1, Some(&all_names()))
                .await
                .unwrap();
            resolved.take_calls();
            apply(&mut machine.names("office"), None).await.unwrap();
            assert_eq!(resolved.take_calls(), expected, "link {index}");
            assert!(machine.is_clean());
        }
    });
}

#[test]
fn check_34_the_file_of_a_resolved_in_another_namespace_stays() {
    let resolved = block_on(TestResolved::start());
    let mut machine = Machine::new();
    machine.paths.bus = resolved.bus();
    machine.link_to(STUB);
    in_namespace(|| {
        block_on(async {
            let error = apply(&mut machine.names("office"), Some(&all_names())).await;
            assert!(matches!(error, Err(NamesError::Elsewhere)), "{error:?}");
        });
    });
    let target = fs::read_link(&machine.paths.resolv_conf).unwrap();
    assert_eq!(target, Path::new(STUB));
    assert!(resolved.take_calls().is_empty() && machine.is_clean());
}

#[test]
fn check_34_half_a_change_is_reverted() {
    block_on(async {
        let resolved = TestResolved::start().await;
        resolved.refuse("domains");
        let mut machine = Machine::new();
        machine.paths.bus = resolved.bus();
        machine.link_to(STUB);
        let mut names = machine.names("office");
        let error = apply(&mut names, Some(&all_names())).await.unwrap_err();
        assert!(matches!(error, NamesError::Resolved { .. }), "{error:?}");
        assert_eq!(resolved.take_calls(), ["default true", "revert"]);
        assert!(machine.is_clean());
    });
}

#[test]
fn check_34_resolved_counts_only_where_programs_come_to_it() {
    let text = |text: &'static str| {
        move |machine: &Machine| {
            fs::remove_file(&machine.paths.resolv_conf).unwrap();
            fs::write(&machine.paths.resolv_conf, text).unwrap();
        }
    };
    let link = |target: &'static str| move |machine: &Machine| machine.link_to(target);
    type SetUp = Box<dyn Fn(&Machine)>;
    use NamesOutcome::{File, Resolved};
    let cases: [(SetUp, NamesOutcome, bool); 8] = [
        (Box::new(link(STUB)), Resolved, true),
        (
            Box::new(link("/usr/lib/systemd/resolv.conf")),
            Resolved,
            true,
        ),
        (
            Box::new(text("nameserver 127.0.0.53\noptions edns0\n")),
            Resolved,
            true,
        ),
        // Programs read its servers, but do not ask it.
        (Box::new(link(UPLINK)), Resolved, false),
        (
            Box::new(link("/run/NetworkManager/resolv.conf")),
            File,
            false,
        ),
        (
            Box::new(text("nameserver 127.0.0.53\nnameserver 192.0.2.1\n")),
            File,
            false,
        ),
        (Box::new(text("nameserver 127.0.0.1\n")), File, false),
        (Box::new(text("")), File, false),
    ];
    block_on(async {
        let resolved = TestResolved::start().await;
        for (number, (set_up, expected, splits)) in cases.into_iter().enumerate() {
            let mut machine = Machine::new();
            machine.paths.bus = resolved.bus();
            set_up(&machine);
            let mut names = machine.names("office");
            let outcome = apply(&mut names, Some(&all_names())).await.unwrap();
            assert_eq!(outcome, expected, "case {number}");
            apply(&mut names, None).await.unwrap();
            for request in [some_names(), tls(None)] {
                let outcome = apply(&mut names, Some(&request)).await;
                assert_eq!(outcome.is_ok(), splits, "case {number}: {outcome:?}");
            }
        }
    });
}

#[test]
fn check_34_a_resolver_that_comes_or_goes_is_noticed() {
    block_on(async {
        let mut machine = Machine::new();
        let mut names = machine.names("office");
        let outcome = apply(&mut names, Some(&all_names())).await.unwrap();
        assert_eq!(outcome, NamesOutcome::File);
        machine.install_resolvconf(0);
        let outcome = apply(&mut names, Some(&all_names())).await.unwrap();
        assert_eq!(outcome, NamesOutcome::Resolvconf);
        assert_eq!(machine.text(), ORIGINAL);
        let resolved = TestResolved::start().await;
        machine.paths.bus = resolved.bus();
        machine.link_to(STUB);
        names.paths = machine.paths.clone();
        let outcome = apply(&mut names, Some(&all_names())).await.unwrap();
        assert_eq!(outcome, NamesOutcome::Resolved);
        assert!(machine.resolvconf_log().ends_with("-d lo.patchcord\n"));
    });
}

#[test]
fn check_34_the_resolvers_of_the_network_are_seen_through_the_tunnels() {
    in_namespace(|| {
        block_on(async {
            let machine = Machine::new();
            fs::write(
                &machine.paths.resolv_conf,
                "# a comment\ndomain old.example\nsearch a.example b.example\n\
                 nameserver 192.0.2.1\nnameserver fe80::1%eth0\noptions edns0\nnameserver 2001:db8::1\n",
            )
            .unwrap();
            let expected = Resolvers {
                servers: vec![[192, 0, 2, 1].into(), "2001:db8::1".parse().unwrap()],
                search: vec!["a.example".to_owned(), "b.example".to_owned()],
            };
            let seen = async || Resolvers::of_link(LINK.0, &machine.paths).await;
            assert_eq!(seen().await, expected);
            let mut names = machine.names("office");
            apply(&mut names, Some(&all_names())).await.unwrap();
            assert!(machine.text().contains("10.0.0.53"));
            assert_eq!(seen().await, expected);
            apply(&mut names, None).await.unwrap();
            assert_eq!(seen().await, expected);
            fs::remove_file(&machine.paths.resolv_conf).unwrap();
            assert_eq!(seen().await, Resolvers::default());
        });
    });
}

#[test]
fn check_34_the_resolvers_of_a_link_are_those_of_resolved() {
    block_on(async {
        let resolved = TestResolved::start().await;
        let mut machine = Machine::new();
        machine.paths.bus = resolved.bus();
        machine.link_to(STUB);
        for (index, server, domain) in [(7, "192.0.2.7", "seven"), (8, "::1", "eight")] {
            let seen = Resolvers::of_link(index, &machine.paths).await;
            let servers = vec![[192, 0, 2, 1].into(), server.parse().unwrap()];
            let search = vec![format!("{domain}.example")];
            assert_eq!(seen, Resolvers { servers, search });
        }
    });
}
