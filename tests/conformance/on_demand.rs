// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tunnels that a host starts and stops by itself.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use patchcord::{
    host::{EventKind, Events, Host},
    provider::{
        OnDemandAction, OnDemandRule, ProviderError, SessionStatus, StartOptions, StartSource,
        StopReason, TunnelConfiguration,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::kit::{Script, host, in_namespace, ip, next, until_end};

/// Two networks, neither with the default route yet.
fn networks() {
    for (name, net) in [("east", "192.0.2"), ("west", "198.51.100")] {
        ip(&format!("link add {name} type veth peer name {name}-far"));
        ip(&format!("link set {name}-far up"));
        ip(&format!("address add {net}.2/24 dev {name}"));
        ip(&format!("link set {name} up"));
    }
}

fn demanded(rules: Vec<OnDemandRule>) -> TunnelConfiguration {
    let mut configuration = TunnelConfiguration::new("scripted");
    configuration.on_demand = true;
    configuration.on_demand_rules = rules;
    configuration
}

fn follow(host: &Host) -> JoinHandle<()> {
    let host = host.clone();
    tokio::spawn(async move { host.follow_rules().await.unwrap() })
}

async fn until_connected(events: &mut Events) {
    while next(events, "a").await != EventKind::Status(SessionStatus::Connected) {}
}

/// No event of tunnel "a" for a while.
async fn assert_quiet(events: &mut Events) {
    let heard = timeout(Duration::from_millis(1500), next(events, "a")).await;
    assert!(heard.is_err(), "{heard:?}");
}

#[test]
fn check_03_a_tunnel_that_is_demanded_starts_with_the_network_and_without_options() {
    in_namespace(async |directory| {
        networks();
        let script = Arc::new(Script::new(|context, options| async move {
            let expected = StartOptions {
                options: None,
                source: StartSource::OnDemand,
            };
            assert_eq!(options, expected);
            context
                .set_network_settings(Some(crate::kit::port("tap-a")))
                .await?;
            Ok(())
        }));
        let host = host(&directory, &script);
        let mut events = host.events();
        let _following = follow(&host);
        let rules = vec![OnDemandRule::always(OnDemandAction::Connect)];
        host.configure("a", demanded(rules.clone()), None).unwrap();
        assert_eq!(
            next(&mut events, "a").await,
            EventKind::Configured { generation: 2 }
        );
        assert_quiet(&mut events).await;
        ip("route add default via 192.0.2.1");
        until_connected(&mut events).await;

        // A user's stop counts, in this network and in others.
        host.stop("a", StopReason::UserInitiated).await.unwrap();
        until_end(&mut events, "a").await;
        assert_quiet(&mut events).await;
        ip("route replace default via 198.51.100.1");
        assert_quiet(&mut events).await;

        // Until its rules change, or begin to count again.
        let mut off = demanded(rules.clone());
        off.on_demand = false;
        host.configure("a", off, None).unwrap();
        host.configure("a", demanded(rules), None).unwrap();
        until_connected(&mut events).await;
        host.stop_all(StopReason::UserInitiated).await;
    });
}

#[test]
fn check_03_a_start_by_hand_makes_the_rules_count_again() {
    in_namespace(async |directory| {
        networks();
        ip("route add default via 192.0.2.1");
        let script = Arc::new(Script::plain());
        let host = host(&directory, &script);
        let mut events = host.events();
        let _following = follow(&host);
        let rules = vec![OnDemandRule::always(OnDemandAction::Connect)];
        host.configure("a", demanded(rules), None).unwrap();
        until_connected(&mut events).await;
        host.stop("a", StopReason::UserInitiated).await.unwrap();
        until_end(&mut events, "a").await;
        assert_quiet(&mut events).await;

        host.start("a", StartOptions::default()).unwrap();
        until_connected(&mut events).await;
        let failure = ProviderError::new("no luck");
        script.context().cancel_tunnel(Some(failure));
        let (_, reason, _) = until_end(&mut events, "a").await;
        assert_eq!(reason, StopReason::ProviderFailed);
        until_connected(&mut events).await;
        host.stop_all(StopReason::UserInitiated).await;
    });
}

#[test]
fn check_03_the_first_rule_that_matches_decides() {
    in_namespace(async |directory| {
        networks();
        ip("route add default via 192.0.2.1");
        let server = TcpListener::bind("192.0.2.2:0").await.unwrap();
        let url = format!("http://{}/office", server.local_addr().unwrap());
        // At the office first, then nowhere.
        tokio::spawn(async move {
            for status in ["200 OK", "404 Not Found"] {
                let (mut client, _) = server.accept().await.unwrap();
                let mut request = [0; 512];
                let length = client.read(&mut request).await.unwrap();
                let request = std::str::from_utf8(&request[..length]).unwrap();
                assert!(request.starts_with("GET /office HTTP/1.1\r\nHost: 192.0.2.2:"));
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                client.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let mut radio = OnDemandRule::always(OnDemandAction::Connect);
        radio.interface = patchcord::provider::InterfaceType::Wifi;
        let mut office = OnDemandRule::always(OnDemandAction::Disconnect);
        office.probe = Some(url.parse().unwrap());
        let rules = vec![radio, office, OnDemandRule::always(OnDemandAction::Connect)];

        let script = Arc::new(Script::plain());
        let host = host(&directory, &script);
        host.configure("a", demanded(rules), None).unwrap();
        host.start("a", StartOptions::default()).unwrap();
        let mut events = host.events();
        until_connected(&mut events).await;
        let following = follow(&host);
        let (_, reason, error) = until_end(&mut events, "a").await;
        assert_eq!(
            (reason, error),
            (StopReason::UnrecoverableNetworkChange, None)
        );
        assert_quiet(&mut events).await;

        ip("route replace default via 198.51.100.1");
        until_connected(&mut events).await;
        following.abort();
        host.stop_all(StopReason::UserInitiated).await;
    });
}

#[test]
fn check_03_a_failed_start_is_retried_with_growing_delays() {
    in_namespace(async |directory| {
        networks();
        ip("route add default via 192.0.2.1");
        let script = Arc::new(Script::new(|_, _| async {
            Err(ProviderError::new("no luck"))
        }));
        let host = host(&directory, &script);
        let rules = vec![OnDemandRule::always(OnDemandAction::Connect)];
        host.configure("a", demanded(rules), None).unwrap();
        let _following = follow(&host);
        let mut tries = Vec::new();
        for _ in 0..8 {
            sleep(Duration::from_millis(500)).await;
            tries.push(script.instances.load(Ordering::Relaxed));
        }
        // At 0, 1 and 3 s.
        assert_eq!((tries[0], tries[4], tries[7]), (1, 2, 3), "{tries:?}");
    });
}
