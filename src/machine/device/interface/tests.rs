// SPDX-License-Identifier: MIT OR Apache-2.0
mod nic;

use std::future::Future;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::io::sys::tun;
use crate::machine::lock::LockError;
use crate::machine::options;
use crate::testing::{Namespace, block_on, eventually, in_namespace, ip, wait_for_carrier};

fn request(name: &str) -> DeviceRequest {
    DeviceRequest {
        name: name.to_owned(),
        backend: Backend::Auto,
        queues: 1,
        express: false,
        mac: None,
        default_mac: [2, 0, 0, 0, 0, 7],
        mtu: 1400,
        bridge: None,
        waits_for_bridge: false,
        bridge_vlans: None,
        link_loss_forwarding: false,
        addresses: Vec::new(),
        ipv6: Ipv6Mode::LinkLocal,
        up: true,
    }
}

/// Runs `test` in a namespace of its own, with a run directory.
fn test<F: Future<Output = ()>>(test: impl FnOnce(TempDir) -> F + Send) {
    in_namespace(|| block_on(test(tempfile::tempdir().unwrap())));
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Everything that a stop must restore, as another program sees it.
fn look(name: &str) -> String {
    let link = ip(&format!("-d -o link show {name}"));
    let until = link.find(" numtxqueues").unwrap();
    // Two traces stay that have no effect: how a TAP was last opened, and that it was up once.
    let traces = [
        (" vnet_hdr on", ""),
        (" vnet_hdr off", ""),
        ("qdisc noop", "qdisc pfifo_fast"),
    ];
    let clean = |link: String, (from, to): (&str, &str)| link.replace(from, to);
    let link = traces.into_iter().fold(link[..until].to_owned(), clean);
    link + &ip(&format!("-o address show {name}")) + &options(name)
}

/// All kernel options of the device, of both families and of neighbour discovery.
fn options(name: &str) -> String {
    let mut all = String::new();
    for dir in ["ipv4/conf", "ipv4/neigh", "ipv6/conf", "ipv6/neigh"] {
        let path = format!("/proc/sys/net/{dir}/{name}");
        let mut files: Vec<_> = std::fs::read_dir(path)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        for file in files {
            let value = std::fs::read_to_string(&file).unwrap_or_default();
            all += &format!("\n{}={}", file.display(), value.trim());
        }
    }
    all
}

fn assert_looks(before: &str) {
    if eventually(|| (look("tap7") == before).then_some(())).is_none() {
        let now = look("tap7");
        let lines = |text: &str, other: &str| {
            let differ = text.lines().filter(|line| !other.contains(line));
            differ.collect::<Vec<_>>().join("\n")
        };
        panic!(
            "before: {}\nnow: {}",
            lines(before, &now),
            lines(&now, before)
        );
    }
}

/// [`Device::create`], repeated while another test's child has a descriptor that this one has closed.
async fn create(
    request: DeviceRequest,
    run_dir: &Path,
    tunnel: &str,
) -> Result<(Device, Vec<TapQueue>), DeviceError> {
    for _ in 0..3000 {
        match Device::create(request.clone(), run_dir, tunnel).await {
            Err(DeviceError::Tap(TapError::Busy { .. } | TapError::PacketInformation { .. })) => {}
            result => return result,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Device::create(request, run_dir, tunnel).await
}

fn is_empty(dir: &TempDir) -> bool {
    std::fs::read_dir(dir.path()).unwrap().count() == 0
}

#[test]
fn the_bridge_flushes_addresses_that_it_learned_there() {
    test(|dir| async move {
        ip("link add br0 type bridge");
        ip("link set br0 up");
        let request = DeviceRequest {
            bridge: Some("br0".to_owned()),
            ..request("tap7")
        };
        let (device, _queues) = create(request, dir.path(), "office").await.unwrap();
        device.set_carrier(true);
        let forwards = || bridge("link show dev tap7").contains("state forwarding");
        eventually(|| forwards().then_some(())).expect("the bridge takes frames from it");
        let (learned, own) = ("02:99:00:00:00:01", "02:00:00:00:00:07");
        bridge(&format!("fdb add {learned} dev tap7 master dynamic"));
        let seen = bridge("fdb show dev tap7");
        assert!(seen.contains(learned) && seen.contains(own), "{seen}");
        device.forget_stations().await;
        let seen = bridge("fdb show dev tap7");
        assert!(!seen.contains(learned) && seen.contains(own), "{seen}");
        ip("link set tap7 nomaster");
        device.forget_stations().await;
        device.remove().await;
    });
}

fn bridge(arguments: &str) -> String {
    let mut command = std::process::Command::new("bridge");
    let output = command.args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "bridge {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_new_device_is_as_asked_for_and_goes_without_a_trace() {
    test(|dir| async move {
        ip("link add br0 type bridge");
        let request = DeviceRequest {
            queues: 2,
            bridge: Some("br0".to_owned()),
            addresses: nets(&["10.0.0.1/24", "fd00::1/64"]),
            ..request("tap7")
        };
        let (device, queues) = create(request, dir.path(), "office").await.unwrap();
        let expected = DeviceInfo {
            name: "tap7".to_owned(),
            index: device.tap.index(),
            mac: [2, 0, 0, 0, 0, 7],
            mtu: 1400,
            bridge: Some("br0".to_owned()),
            backend: "vnet",
            adopted: false,
            up: true,
            carrier: false,
            waits_for: None,
            moved: false,
        };
        assert_eq!((device.info(), queues.len()), (&expected, 2));
        let seen = look("tap7");
        for part in [
            "NO-CARRIER",
            ",UP",
            "mtu 1400",
            "master br0",
            "02:00:00:00:00:07",
            "10.0.0.1/24",
        ] {
            assert!(seen.contains(part), "{part} in {seen}");
        }
        device.set_carrier(true);
        wait_for_carrier("tap7");
        // Although a data thread still holds its queue.
        device.remove().await;
        assert!(
            Links::connect()
                .unwrap()
                .find("tap7")
                .await
                .unwrap()
                .is_none()
        );
        assert!(is_empty(&dir));
        drop(queues);
    });
}

#[test]
fn a_silent_device_has_no_ipv6_of_its_own() {
    test(|dir| async move {
        ip("link add br0 type bridge");
        for (name, mtu, bridge, ipv6) in [
            ("port", 1400, Some("br0"), Ipv6Mode::Silent),
            ("small", 1000, Some("br0"), Ipv6Mode::Silent),
            ("alone", 1400, None, Ipv6Mode::Silent),
            ("host", 1400, Some("br0"), Ipv6Mode::LinkLocal),
            ("plain", 1400, None, Ipv6Mode::AcceptAdvertisements),
        ] {
            let request = DeviceRequest {
                mtu,
                bridge: bridge.map(str::to_owned),
                ipv6,
                ..request(name)
            };
            let (device, _queues) = create(request, dir.path(), name).await.unwrap();
            device.set_carrier(true);
            wait_for_carrier(name);
            let addresses = device.links.addresses(device.info.index).await.unwrap();
            let link_local = addresses.iter().any(|net| matches!(net, IpNet::V6(_)));
            assert_eq!(
                link_local,
                ipv6 != Ipv6Mode::Silent,
                "{name}: {addresses:?}"
            );
            let option = |option| options::read(name, option).unwrap();
            let expected = match ipv6 {
                _ if mtu < 1280 => [None, None, Some(0)],
                Ipv6Mode::AcceptAdvertisements => [Some(2), Some(1), Some(1)],
                _ => [Some(0); 3],
            };
            let seen = [
                option("ipv6/accept_ra"),
                option("ipv6/accept_redirects"),
                option("ipv4/accept_redirects"),
            ];
            assert_eq!(seen, expected, "{name}");
            device.remove().await;
        }
    });
}

/// A persistent TAP of another owner.
fn make_foreign(flags: &str, up: bool) {
    ip(&format!("tuntap add tap7 mode tap {flags}"));
    ip("link set tap7 address 02:aa:aa:aa:aa:aa mtu 1450");
    ip("link add br0 type bridge");
    ip("link add br1 type bridge");
    ip("link set tap7 master br1");
    if up {
        ip("link set tap7 up");
    }
    ip("address add 192.0.2.1/24 dev tap7");
}

fn adopting(queues: usize) -> DeviceRequest {
    DeviceRequest {
        queues,
        mac: Some([2, 0xbb, 0, 0, 0, 1]),
        bridge: Some("br0".to_owned()),
        addresses: nets(&["192.0.2.1/24", "10.0.0.1/24", "fd00::1/64"]),
        ..request("tap7")
    }
}

#[test]
fn an_adopted_device_is_left_as_it_was_found() {
    for (flags, queues, up) in [
        ("", 1, false),
        ("", 1, true),
        ("multi_queue vnet_hdr", 2, true),
    ] {
        test(|dir| async move {
            make_foreign(flags, up);
            let before = look("tap7");
            let created = create(adopting(queues), dir.path(), "office").await;
            let (device, got) = created.unwrap();
            assert!(device.info().adopted && got.len() == queues);
            assert_eq!(device.info().bridge.as_deref(), Some("br0"));
            let during = look("tap7");
            for part in ["mtu 1400", "02:bb:00:00:00:01", "10.0.0.1/24", "master br0"] {
                assert!(during.contains(part), "{part} in {during}");
            }
            drop(got);
            device.remove().await;
            assert_looks(&before);
            assert!(is_empty(&dir));
        });
    }
}

/// Options that the owner of a device chose.
fn set_foreign_options() {
    for (option, value) in [
        ("ipv6/conf/tap7/accept_ra", "2"),
        ("ipv6/conf/tap7/accept_redirects", "1"),
        ("ipv6/conf/tap7/dad_transmits", "3"),
        ("ipv6/conf/tap7/hop_limit", "77"),
        ("ipv6/neigh/tap7/ucast_solicit", "5"),
        ("ipv4/conf/tap7/accept_redirects", "1"),
        ("ipv4/conf/tap7/rp_filter", "2"),
    ] {
        std::fs::write(format!("/proc/sys/net/{option}"), value).unwrap();
    }
}

#[test]
fn no_option_and_no_address_of_an_adopted_device_is_lost() {
    for (mtu, ipv6) in [
        (1400, Ipv6Mode::Silent),
        (1400, Ipv6Mode::LinkLocal),
        (1400, Ipv6Mode::AcceptAdvertisements),
        (1000, Ipv6Mode::Silent),
    ] {
        for (up, kill_first) in [(true, false), (true, true), (false, false)] {
            test(|dir| async move {
                make_foreign("", up);
                set_foreign_options();
                ip("address add fd07::7/64 dev tap7");
                ip("address add fe80::7/64 dev tap7");
                let before = look("tap7");
                let request = DeviceRequest {
                    mtu,
                    ipv6,
                    addresses: nets(&["10.0.0.1/24"]),
                    ..adopting(1)
                };
                let (device, queues) = create(request, dir.path(), "office").await.unwrap();
                let during = options("tap7");
                let expected = match ipv6 {
                    _ if mtu < 1280 => "",
                    Ipv6Mode::AcceptAdvertisements => "/ipv6/conf/tap7/accept_ra=2",
                    _ => "/ipv6/conf/tap7/accept_ra=0",
                };
                assert!(during.contains(expected), "{during}");
                if kill_first {
                    kill(device, queues);
                    let other = create(request_of_another(), dir.path(), "office").await;
                    other.unwrap().0.remove().await;
                } else {
                    drop(queues);
                    device.remove().await;
                }
                assert_looks(&before);
                assert!(is_empty(&dir));
            });
        }
    }
}

fn request_of_another() -> DeviceRequest {
    request("tap8")
}

#[test]
fn a_start_after_a_kill_clears_only_ours() {
    test(|dir| async move {
        make_foreign("", false);
        let before = look("tap7");
        let (device, queues) = create(adopting(1), dir.path(), "office").await.unwrap();
        kill(device, queues);
        // Another program changes the device before the next start.
        ip("address add 198.51.100.1/24 dev tap7");
        ip("link set tap7 mtu 1300");
        let (device, queues) = create(
            DeviceRequest {
                mtu: 1300,
                ..request("tap7")
            },
            dir.path(),
            "office",
        )
        .await
        .unwrap();
        let seen = look("tap7");
        for (part, expected) in [
            ("10.0.0.1/24", false),
            ("fd00::1/64", false),
            ("192.0.2.1/24", true),
            ("198.51.100.1/24", true),
            ("02:aa:aa:aa:aa:aa", true),
            ("mtu 1300", true),
            ("master br1", true),
        ] {
            assert_eq!(seen.contains(part), expected, "{part} in {seen}");
        }
        drop(queues);
        device.remove().await;
        ip("address delete 198.51.100.1/24 dev tap7");
        ip("link set tap7 mtu 1450");
        assert_looks(&before);
    });
}

/// What the kernel does for a killed process: it closes descriptors, nothing else.
fn kill(device: Device, queues: Vec<TapQueue>) {
    drop(queues);
    let Device {
        tap,
        journal,
        _device_lock,
        ..
    } = device;
    assert!(journal.path().exists());
    drop((tap, _device_lock));
}

#[test]
fn leftovers_on_another_device_are_cleared_too() {
    test(|dir| async move {
        make_foreign("", false);
        let before = look("tap7");
        let (device, queues) = create(adopting(1), dir.path(), "office").await.unwrap();
        kill(device, queues);
        let created = create(request("tap8"), dir.path(), "office").await;
        let (device, _queues) = created.unwrap();
        assert_looks(&before);
        device.remove().await;
    });
}

#[test]
fn leftovers_stay_where_another_tunnel_works_now() {
    test(|dir| async move {
        make_foreign("", false);
        let (device, queues) = create(adopting(1), dir.path(), "office").await.unwrap();
        kill(device, queues);
        let created = create(adopting(1), dir.path(), "home").await;
        let (_home, _queues) = created.unwrap();
        let seen = look("tap7");
        let created = create(request("tap8"), dir.path(), "office").await;
        let (_office, _queues) = created.unwrap();
        assert_eq!(look("tap7"), seen);
    });
}

#[test]
fn a_step_that_fails_undoes_the_earlier_ones() {
    test(|dir| async move {
        make_foreign("", true);
        let before = look("tap7");
        let wrong = DeviceRequest {
            bridge: Some("br9".to_owned()),
            ..adopting(1)
        };
        let error = create(wrong, dir.path(), "office")
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("no bridge `br9`"), "{error}");
        assert!(error.contains("(there are: br0, br1)"), "{error}");
        assert_looks(&before);

        let wrong = DeviceRequest {
            bridge: Some("tap7".to_owned()),
            ..request("tap8")
        };
        let error = create(wrong, dir.path(), "office")
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`tap7` is a tun device and not a bridge"),
            "{error}"
        );
        let wrong = DeviceRequest {
            mtu: 100_000,
            ..request("tap8")
        };
        let error = create(wrong, dir.path(), "office")
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("MTU") && error.contains("100000"), "{error}");
        assert!(
            Links::connect()
                .unwrap()
                .find("tap8")
                .await
                .unwrap()
                .is_none()
        );
        assert!(is_empty(&dir));
    });
}

#[test]
fn a_device_belongs_to_one_tunnel_of_its_namespace() {
    test(|dir| async move {
        let first = create(request("tap7"), dir.path(), "office").await.unwrap();
        let same = create(request("tap7"), dir.path(), "home")
            .await
            .unwrap_err();
        assert!(
            matches!(same, DeviceError::Lock(LockError::DeviceHeld { .. })),
            "{same:?}"
        );
        let path = dir.path();
        Namespace::new().run(|| {
            block_on(async {
                let there = create(request("tap7"), path, "home").await;
                there.unwrap().0.remove().await;
            });
        });
        first.0.remove().await;
    });
}

#[test]
fn a_multi_queue_tap_that_another_program_has_open_is_busy() {
    test(|dir| async move {
        ip("tuntap add tap7 mode tap multi_queue");
        let options = TapOptions {
            name: "tap7".to_owned(),
            backend: Backend::Vnet,
            express: false,
        };
        let foreign = Tap::open(&options, 2).unwrap();
        let error = Device::create(request("tap7"), dir.path(), "office")
            .await
            .unwrap_err();
        assert!(
            matches!(error, DeviceError::Tap(TapError::Busy { .. })),
            "{error:?}"
        );
        drop(foreign);
        create(request("tap7"), dir.path(), "office").await.unwrap();
    });
}

#[test]
fn a_tap_whose_holder_has_packet_information_is_refused_by_name() {
    test(|dir| async move {
        ip("tuntap add tap7 mode tap multi_queue pi");
        let holder = tun::hold("tap7", false).unwrap();
        let error = Device::create(request("tap7"), dir.path(), "office").await;
        let error = error.unwrap_err().to_string();
        let expected = "`tap7` with packet information in front of its frames";
        assert!(error.contains(expected), "{error}");
        drop(holder);
        create(request("tap7"), dir.path(), "office").await.unwrap();
    });
}

#[test]
fn a_device_that_someone_deleted_is_removed_quietly() {
    test(|dir| async move {
        let (device, _queues) = create(request("tap7"), dir.path(), "office").await.unwrap();
        ip("link delete tap7");
        // The name is free; another program that takes it keeps it.
        ip("tuntap add tap7 mode tap");
        device.set_carrier(true);
        device.remove().await;
        ip("link show tap7");
        assert!(is_empty(&dir));
    });
}
