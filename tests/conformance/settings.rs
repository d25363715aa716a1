// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interface: how settings create and change it.

use std::{
    io::{Read, Write},
    sync::Arc,
    time::Duration,
};

use patchcord::provider::{
    Addressing, FlowError, Ipv6Settings, ProviderContext, SettingsError, StopReason,
};
use patchcord_bridge::MacAddr;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::kit::{Script, apply, connect, host, in_namespace, ip, port, refused, until_end};

/// A session with the interface `tap-a`, controlled from outside.
async fn session(
    directory: &TempDir,
) -> (
    patchcord::host::Host,
    patchcord::host::Events,
    ProviderContext,
) {
    let script = Arc::new(Script::plain());
    let host = host(directory, &script);
    let mut events = host.events();
    connect(&host, &mut events, "a").await;
    let context = script.context();
    (host, events, context)
}

#[test]
fn check_11_and_12_there_is_no_interface_before_the_first_settings() {
    in_namespace(|directory| async move {
        let script = Script::new(|context, _| async move {
            assert_eq!(context.interface(), None);
            let mut reader = context.take_reader().expect("once");
            assert!(context.take_reader().is_none());
            let mut frames = Vec::new();
            let read = timeout(Duration::from_millis(50), reader.recv_batch(&mut frames));
            assert!(read.await.is_err(), "it waits for the interface");
            let write = context.writer().try_send_batch(&[[0xff; 60]]);
            assert!(matches!(write, Err(FlowError::NotReady)));
            let applied = apply(&context, port("tap-a")).await;
            assert_eq!(context.interface(), Some(applied.interface));
            context.set_carrier(true).await;
            assert_eq!(
                context
                    .writer()
                    .try_send_batch(&[[0xff; 60]])
                    .unwrap()
                    .accepted,
                1
            );
            Ok(())
        });
        let host = host(&directory, &Arc::new(script));
        let mut events = host.events();
        connect(&host, &mut events, "a").await;
    });
}

#[test]
fn check_13_automatic_addresses_need_a_reader() {
    in_namespace(|directory| async move {
        let (_host, _events, context) = session(&directory).await;
        let mut settings = port("tap-a");
        settings.ipv6 = Some(Ipv6Settings::with_addressing(Addressing::Automatic));
        assert_eq!(refused(&context, settings.clone()).await, "ipv6");
        let mut reader = context.take_reader().unwrap();
        let reading = tokio::spawn(async move {
            let mut frames = Vec::new();
            loop {
                reader.recv_batch(&mut frames).await.unwrap();
                // A router solicitation: ICMPv6 type 133.
                if frames
                    .iter()
                    .any(|f| f.len() > 54 && f[12..14] == [0x86, 0xdd] && f[54] == 133)
                {
                    return;
                }
            }
        });
        sleep(Duration::from_millis(50)).await;
        context.set_carrier(true).await;
        apply(&context, settings).await;
        timeout(Duration::from_secs(10), reading)
            .await
            .expect("the kernel asks for routers")
            .unwrap();
    });
}

#[test]
fn check_14_addresses_that_no_interface_can_have_are_refused() {
    in_namespace(|directory| async move {
        let (_host, _events, context) = session(&directory).await;
        for mac in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            let mut settings = port("tap-a");
            settings.ethernet_address = MacAddr(mac);
            assert_eq!(refused(&context, settings).await, "ethernet_address");
        }
        for text in ["2:0:0:0:0", "02:00:00:00:00:1g", "02:00:00:00:00:00:01", ""] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
        assert_eq!("2:0:0:0:0:a".parse(), Ok(MacAddr([2, 0, 0, 0, 0, 10])));
    });
}

#[test]
fn check_15_the_mtu_is_within_what_the_kernel_and_ipv6_take() {
    in_namespace(|directory| async move {
        let (_host, _events, context) = session(&directory).await;
        let with_mtu = |mtu| {
            let mut settings = port("tap-a").with_addresses(&["fd00:7::1/64".parse().unwrap()]);
            settings.mtu = mtu;
            settings
        };
        for mtu in [67, 1279, 65_522] {
            assert_eq!(refused(&context, with_mtu(mtu)).await, "mtu");
        }
        for mtu in [1500, 9000, 1500, 1280] {
            apply(&context, with_mtu(mtu)).await;
            assert!(ip("-o link show tap-a").contains(&format!("mtu {mtu} ")));
            assert!(ip("-o -6 addr show dev tap-a").contains("fd00:7::1/64"));
        }
    });
}

#[test]
fn check_16_equal_settings_change_nothing_and_connections_survive_others() {
    in_namespace(|directory| async move {
        let (_host, _events, context) = session(&directory).await;
        let settings = port("tap-a").with_addresses(&["10.1.0.1/24".parse().unwrap()]);
        let mut settings = settings;
        settings.ipv6 = Some(Ipv6Settings::with_addressing(Addressing::LinkLocal));
        apply(&context, settings.clone()).await;

        let monitor = std::process::Command::new("ip")
            .args(["monitor", "link", "address", "route", "rule"])
            .stdout(std::process::Stdio::piped())
            .spawn();
        let mut monitor = monitor.unwrap();
        sleep(Duration::from_millis(500)).await;
        apply(&context, settings.clone()).await;
        sleep(Duration::from_millis(300)).await;
        monitor.kill().unwrap();
        let mut changes = String::new();
        monitor
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut changes)
            .unwrap();
        monitor.wait().unwrap();
        assert_eq!(changes, "");

        let listener = std::net::TcpListener::bind("10.1.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        settings.mtu = 1400;
        apply(
            &context,
            settings.with_addresses(&["10.2.0.1/24".parse().unwrap()]),
        )
        .await;
        client.write_all(b"still here").unwrap();
        let mut text = [0; 10];
        server.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"still here");
        assert!(ip("-o -4 addr show dev tap-a").contains("10.2.0.1/24"));
    });
}

#[test]
fn check_17_settings_that_fail_leave_the_ones_before() {
    in_namespace(|directory| async move {
        let (_host, _events, context) = session(&directory).await;
        let good = port("tap-a").with_addresses(&["10.2.0.1/24".parse().unwrap()]);
        apply(&context, good.clone()).await;
        let look = || {
            [
                ip("-o link show tap-a"),
                ip("-o addr show dev tap-a"),
                ip("route"),
                ip("rule"),
            ]
            .concat()
        };
        let before = look();
        let mut invalid = good.clone();
        invalid.mtu = 1;
        assert_eq!(refused(&context, invalid).await, "mtu");
        let mut renamed = good.clone();
        renamed.interface_name = "tap-b".to_owned();
        assert_eq!(refused(&context, renamed).await, "interface_name");
        assert_eq!(look(), before);

        let mut failing = good.with_addresses(&["10.3.0.1/24".parse().unwrap()]);
        failing.mtu = 1400;
        failing.bridge = Some("br-none".to_owned());
        let failed = context
            .set_network_settings(Some(failing))
            .await
            .unwrap_err();
        assert!(matches!(failed, SettingsError::Failed(_)), "{failed}");
        assert_eq!(failed.code(), 3);
        assert_eq!(look(), before, "the earlier steps were undone");
    });
}

#[test]
fn check_18_a_newer_call_takes_the_place_of_an_older_one() {
    in_namespace(|directory| async move {
        let (_host, _events, context) = session(&directory).await;
        let with = |address: &str| port("tap-a").with_addresses(&[address.parse().unwrap()]);
        let calls = ["10.2.0.1/24", "10.2.0.2/24", "10.2.0.3/24"].map(|address| {
            let (context, settings) = (context.clone(), with(address));
            tokio::spawn(async move { context.set_network_settings(Some(settings)).await })
        });
        let [first, second, third] = calls;
        for older in [first, second] {
            assert!(matches!(older.await.unwrap(), Err(SettingsError::Canceled)));
        }
        third.await.unwrap().unwrap();
        let addresses = ip("-o -4 addr show dev tap-a");
        assert!(addresses.contains("10.2.0.3/24") && !addresses.contains("10.2.0.1/24"));
    });
}

#[test]
fn check_18_an_overtaken_first_call_loses_no_frames() {
    in_namespace(|directory| async move {
        let script = Script::new(|context, _| async move {
            let calls = ["10.2.0.1/24", "10.2.0.2/24"].map(|address| {
                let settings = port("tap-a").with_addresses(&[address.parse().unwrap()]);
                context.set_network_settings(Some(settings))
            });
            let [first, second] = calls;
            let (first, second) = tokio::join!(first, second);
            assert!(matches!(first, Err(SettingsError::Canceled)));
            second?;
            Ok(())
        });
        let script = Arc::new(script);
        let host = host(&directory, &script);
        connect(&host, &mut host.events(), "a").await;
        let context = script.context();
        context.set_carrier(true).await;
        let report = context.writer().try_send_batch(&[[0xff; 60]]).unwrap();
        assert_eq!(report.accepted, 1);
    });
}

#[test]
fn check_19_no_settings_take_everything_but_the_interface() {
    in_namespace(|directory| async move {
        let (_host, _events, context) = session(&directory).await;
        let mut reader = context.take_reader().unwrap();
        context.set_carrier(true).await;
        let settings = port("tap-a").with_addresses(&["10.2.0.1/24".parse().unwrap()]);
        let index = apply(&context, settings.clone()).await.interface.index;
        for _ in 0..3 {
            assert_eq!(context.set_network_settings(None).await.unwrap(), None);
            let link = ip("-o link show tap-a");
            assert!(!link.contains(",UP") && !link.contains("<UP"), "{link}");
            assert_eq!(ip("-o addr show dev tap-a"), "");
            assert_eq!(
                context
                    .writer()
                    .try_send_batch(&[[0xff; 60]])
                    .unwrap()
                    .rejected,
                1
            );
            assert_eq!(
                apply(&context, settings.clone()).await.interface.index,
                index
            );
            assert!(ip("-o -4 addr show dev tap-a").contains("10.2.0.1/24"));
        }
        // The reader is the same, and frames flow again.
        let _ = std::net::UdpSocket::bind("10.2.0.1:0")
            .unwrap()
            .send_to(b"x", "10.2.0.2:9");
        let mut frames = Vec::new();
        timeout(Duration::from_secs(2), reader.recv_batch(&mut frames))
            .await
            .unwrap()
            .unwrap();
    });
}

#[test]
fn check_20_a_pure_port_is_silent() {
    in_namespace(|directory| async move {
        let (_host, _events, context) = session(&directory).await;
        let mut reader = context.take_reader().unwrap();
        context.set_carrier(true).await;
        assert_eq!(ip("-o addr show dev tap-a"), "");
        let mut frames = Vec::new();
        let read = timeout(Duration::from_secs(2), reader.recv_batch(&mut frames));
        assert!(read.await.is_err(), "{frames:?}");
    });
}

#[test]
fn check_25_changes_of_other_programs_to_the_interface_are_noticed() {
    in_namespace(|directory| async move {
        let (_host, mut events, context) = session(&directory).await;
        let addresses = [
            "10.2.0.1/24".parse().unwrap(),
            "fd00:7::1/64".parse().unwrap(),
        ];
        apply(&context, port("tap-a").with_addresses(&addresses)).await;
        context.set_carrier(true).await;
        for pause in [0, 300] {
            ip("link set tap-a down");
            assert!(!ip("-o addr show dev tap-a").contains("fd00:7::1"));
            sleep(Duration::from_millis(pause)).await;
            ip("link set tap-a up");
            sleep(Duration::from_millis(500)).await;
            let addresses = ip("-o addr show dev tap-a");
            assert!(
                addresses.contains("10.2.0.1/24") && addresses.contains("fd00:7::1/64"),
                "{addresses}"
            );
        }
        ip("link set tap-a mtu 1400");
        let is_back = async {
            while !ip("-o link show tap-a").contains("mtu 1500 ") {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let outcome = timeout(Duration::from_secs(20), is_back).await;
        outcome.expect("what the settings say comes back");

        let mut reader = context.take_reader().unwrap();
        let reading = tokio::spawn(async move {
            let mut frames = Vec::new();
            loop {
                if let Err(error) = reader.recv_batch(&mut frames).await {
                    return error;
                }
            }
        });
        sleep(Duration::from_millis(50)).await;
        ip("link delete tap-a");
        let error = timeout(Duration::from_secs(2), reading)
            .await
            .unwrap()
            .unwrap();
        assert!(matches!(error, FlowError::InterfaceLost), "{error:?}");
        let (_, reason, error) = until_end(&mut events, "a").await;
        assert_eq!(reason, StopReason::InternalError);
        assert!(error.unwrap().contains("another program deleted"));
    });
}
