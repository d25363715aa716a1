// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sessions: start, stop, cancel, and the states in between.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use patchcord::{
    host::{EventKind, Host, HostError},
    provider::{
        BoxFut, EthernetTunnelProvider, MAX_DISPLAYED, ProviderContext, ProviderError,
        SessionStatus, SessionStatus::*, SettingsError, StartOptions, StartSource, StopReason,
        TunnelConfiguration,
    },
};

use tokio::time::timeout;

use crate::kit::{Script, Scripted, connect, host, in_namespace, ip, next, port, until_end};

#[test]
fn check_01_a_session_is_connected_only_after_its_settings() {
    in_namespace(|directory| async move {
        let script = Arc::new(Script::plain());
        let host = host(&directory, &script);
        let mut events = host.events();
        host.start("a", StartOptions::default()).unwrap();
        assert_eq!(next(&mut events, "a").await, EventKind::Status(Connecting));
        assert_eq!(next(&mut events, "a").await, EventKind::Status(Connected));
        assert!(script.context().interface().is_some());
        host.stop("a", StopReason::UserInitiated).await.unwrap();

        let script = Arc::new(Script::new(|_, _| async { Ok(()) }));
        let host = crate::kit::host(&directory, &script);
        let mut events = host.events();
        host.start("a", StartOptions::default()).unwrap();
        let (statuses, reason, error) = until_end(&mut events, "a").await;
        assert_eq!(statuses, [Connecting, Disconnecting, Disconnected]);
        assert_eq!(reason, StopReason::ConfigurationFailed);
        assert!(error.unwrap().contains("without network settings"));
    });
}

#[test]
fn check_02_a_failed_start_keeps_its_error() {
    in_namespace(|directory| async move {
        let script = Script::new(|_, _| async { Err(ProviderError::new("no server")) });
        let script = Arc::new(script);
        let host = host(&directory, &script);
        let mut events = host.events();
        host.start("a", StartOptions::default()).unwrap();
        let (statuses, reason, error) = until_end(&mut events, "a").await;
        assert_eq!(statuses, [Connecting, Disconnecting, Disconnected]);
        assert_eq!(reason, StopReason::ProviderFailed);
        assert_eq!(error.as_deref(), Some("no server"));
        let view = host.view("a").unwrap();
        assert_eq!(view.last_disconnect_error.as_deref(), Some("no server"));
        assert_eq!(script.stops(), [StopReason::ProviderFailed]);
    });
}

#[test]
fn check_03_options_arrive_unchanged() {
    in_namespace(|directory| async move {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = seen.clone();
        let script = Script::new(move |_, options| {
            noted.lock().unwrap().push(options);
            async { Err(ProviderError::new("enough")) }
        });
        let host = host(&directory, &Arc::new(script));
        let mut events = host.events();
        let app = StartOptions {
            options: Some(BTreeMap::from([("user".to_owned(), "ü".to_owned())])),
            source: StartSource::App,
        };
        let by = |source| StartOptions {
            options: None,
            source,
        };
        let all = [app, by(StartSource::OnDemand), by(StartSource::Boot)];
        for options in &all {
            host.start("a", options.clone()).unwrap();
            until_end(&mut events, "a").await;
        }
        assert_eq!(*seen.lock().unwrap(), all);
    });
}

#[test]
fn check_04_a_stop_during_start_ends_the_start() {
    in_namespace(|directory| async move {
        let heard = Arc::new(Mutex::new(None));
        let noted = heard.clone();
        let script = Script::new(move |context, _| {
            let noted = noted.clone();
            async move {
                context.set_network_settings(Some(port("tap-a"))).await?;
                let reason = context.cancelled().await;
                *noted.lock().unwrap() = Some(reason);
                std::future::pending().await
            }
        });
        let script = Arc::new(script);
        let host = host(&directory, &script);
        let mut events = host.events();
        host.start("a", StartOptions::default()).unwrap();
        assert_eq!(next(&mut events, "a").await, EventKind::Status(Connecting));
        let has_interface = || {
            let contexts = script.contexts.lock().unwrap();
            contexts
                .last()
                .is_some_and(|context| context.interface().is_some())
        };
        while !has_interface() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        host.stop("a", StopReason::UserInitiated).await.unwrap();
        let (statuses, reason, error) = until_end(&mut events, "a").await;
        assert_eq!(statuses, [Disconnecting, Disconnected]);
        assert_eq!((reason, error), (StopReason::UserInitiated, None));
        assert_eq!(*heard.lock().unwrap(), Some(StopReason::UserInitiated));
        assert_eq!(script.stops(), [StopReason::UserInitiated]);
        assert!(!ip("-o link").contains("tap-a"));
    });
}

#[test]
fn check_04_a_device_is_given_back_wherever_the_start_is_given_up() {
    in_namespace(|directory| async move {
        ip("link add br0 type bridge");
        ip("tuntap add tap-a mode tap");
        ip("link set tap-a mtu 1400");
        let state = || {
            let link = ip("-o link show tap-a");
            let words: Vec<_> = link.split_whitespace().collect();
            let after = |name: &str| {
                let at = words.iter().position(|word| *word == name)?;
                Some(words[at + 1].to_owned())
            };
            let flags = words[2].contains("UP");
            (after("mtu"), after("master"), after("link/ether"), flags)
        };
        let before = state();
        for step in 0..50 {
            let patience = Duration::from_micros(100 * step);
            let script = Arc::new(Script::new(move |context, _| async move {
                let settings = port("tap-a").with_bridge("br0");
                let settings = context.set_network_settings(Some(settings));
                match timeout(patience, settings).await {
                    Ok(applied) => drop(applied?),
                    Err(_) => return Err(ProviderError::new("no patience")),
                }
                Err(ProviderError::new("enough"))
            }));
            let host = host(&directory, &script);
            let mut events = host.events();
            host.start("a", StartOptions::default()).unwrap();
            until_end(&mut events, "a").await;
            assert_eq!(state(), before, "after {patience:?}");
            let left = std::fs::read_dir(directory.path()).unwrap();
            assert_eq!(left.count(), 0, "after {patience:?}");
        }
    });
}

#[test]
fn check_05_a_stop_that_hangs_is_left_behind() {
    in_namespace(|directory| async move {
        let script = Script {
            hang_in_stop: true,
            ..Script::plain()
        };
        let host = host(&directory, &Arc::new(script));
        let mut events = host.events();
        connect(&host, &mut events, "a").await;
        let begin = Instant::now();
        host.stop("a", StopReason::UserInitiated).await.unwrap();
        assert!((300..1500).contains(&begin.elapsed().as_millis()));
        assert!(!ip("-o link").contains("tap-a"));
    });
}

#[test]
fn check_06_the_first_cancel_counts() {
    in_namespace(|directory| async move {
        let script = Arc::new(Script::plain());
        let host = host(&directory, &script);
        let mut events = host.events();
        connect(&host, &mut events, "a").await;
        let context = script.context();
        context.cancel_tunnel(Some(ProviderError::new("first")));
        context.cancel_tunnel(Some(ProviderError::new("second")));
        let (_, reason, error) = until_end(&mut events, "a").await;
        assert_eq!(reason, StopReason::ProviderFailed);
        assert_eq!(error.as_deref(), Some("first"));
        assert_eq!(script.stops(), [StopReason::ProviderFailed]);
    });
}

#[test]
fn check_07_a_panic_is_of_one_session() {
    for panic_in in ["start", "stop", "message", "factory"] {
        in_namespace(|directory| async move {
            let script = Arc::new(Script {
                panic_in,
                ..Script::plain()
            });
            let builder = Host::builder(directory.path());
            let good = Arc::new(Script::plain());
            let sibling = host(&directory, &good);
            let mut events = sibling.events();
            connect(&sibling, &mut events, "b").await;
            if panic_in == "factory" {
                let broken = builder
                    .register(
                        "broken",
                        |_, _| -> Result<patchcord::tunnel::TunnelProvider, _> {
                            panic!("a factory's panic")
                        },
                    )
                    .build();
                let configuration = TunnelConfiguration::new("broken");
                broken.configure("a", configuration, None).unwrap();
                let refused = broken.start("a", StartOptions::default()).unwrap_err();
                assert!(matches!(refused, HostError::Provider(_)), "{refused}");
                return;
            }
            let host = host(&directory, &script);
            let mut own = host.events();
            host.start("a", StartOptions::default()).unwrap();
            if panic_in == "start" {
                let (_, reason, error) = until_end(&mut own, "a").await;
                assert_eq!(reason, StopReason::ProviderFailed);
                assert!(error.unwrap().contains("panicked"));
            } else {
                while host.status("a") != Connected {
                    next(&mut own, "a").await;
                }
                assert_eq!(host.send_message("a", "panic").await.unwrap(), None);
                let pong = host.send_message("a", "ping").await.unwrap();
                assert_eq!(pong.as_deref(), Some(&b"pong"[..]));
                host.stop("a", StopReason::UserInitiated).await.unwrap();
            }
            assert_eq!(host.status("a"), Disconnected);
            assert_eq!(sibling.status("b"), Connected);
        });
    }
}

/// The factory of a provider, and its drop, may call the host.
#[test]
fn check_07_callbacks_may_call_the_host() {
    struct Curious(Arc<Mutex<Option<Host>>>, Arc<Mutex<Vec<SessionStatus>>>);

    impl Curious {
        fn ask(&self) {
            let host = self.0.lock().unwrap().clone().unwrap();
            assert_eq!(host.list().len(), 1);
            self.1.lock().unwrap().push(host.status("a"));
        }
    }

    impl Drop for Curious {
        fn drop(&mut self) {
            self.ask();
        }
    }

    impl EthernetTunnelProvider for Curious {
        fn start<'a>(
            &'a self,
            _: &'a ProviderContext,
            _: StartOptions,
        ) -> BoxFut<'a, Result<(), ProviderError>> {
            Box::pin(async { Err(ProviderError::new("enough")) })
        }

        fn stop<'a>(&'a self, _: &'a ProviderContext, _: StopReason) -> BoxFut<'a, ()> {
            Box::pin(async {})
        }
    }

    in_namespace(|directory| async move {
        let place = Arc::<Mutex<Option<Host>>>::default();
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let (its_place, its_seen) = (place.clone(), seen.clone());
        let make = move |_: &str, _: &TunnelConfiguration| {
            let curious = Curious(its_place.clone(), its_seen.clone());
            curious.ask();
            Ok(curious)
        };
        let host = Host::builder(directory.path()).register("curious", make);
        let host = host.build();
        *place.lock().unwrap() = Some(host.clone());
        let configuration = TunnelConfiguration::new("curious");
        host.configure("a", configuration, None).unwrap();
        let mut events = host.events();
        // On a thread of its own: a deadlock would hang the check for ever.
        let runtime = tokio::runtime::Handle::current();
        let starter = host.clone();
        let (done, started) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let _inside = runtime.enter();
            let _ = done.send(starter.start("a", StartOptions::default()).is_ok());
        });
        let started = timeout(Duration::from_secs(20), started).await;
        assert!(started.expect("nobody is locked out").unwrap());
        until_end(&mut events, "a").await;
        assert_eq!(host.status("a"), Disconnected);
        assert_eq!(*seen.lock().unwrap(), [Disconnected, Disconnected]);
        *place.lock().unwrap() = None;
    });
}

fn numbered(number: u64) -> TunnelConfiguration {
    let mut configuration = TunnelConfiguration::new("late");
    configuration
        .vendor
        .insert("number".to_owned(), number.into());
    configuration
}

/// A configuration that changes while the factory makes a provider of the earlier one.
#[test]
fn check_07_a_session_has_the_latest_configuration() {
    in_namespace(|directory| async move {
        let place = Arc::<Mutex<Option<Host>>>::default();
        let its_place = place.clone();
        let made_of = Arc::<Mutex<Vec<u64>>>::default();
        let noted = made_of.clone();
        let make = move |_: &str, configuration: &TunnelConfiguration| {
            let number = configuration
                .vendor
                .get("number")
                .and_then(|it| it.as_u64());
            noted.lock().unwrap().push(number.unwrap());
            let host = its_place.lock().unwrap().take();
            if let Some(host) = host {
                host.configure("a", numbered(2), None).unwrap();
            }
            Ok(Scripted(Arc::new(Script::plain())))
        };
        let host = Host::builder(directory.path())
            .register("late", make)
            .build();
        host.configure("a", numbered(1), None).unwrap();
        *place.lock().unwrap() = Some(host.clone());
        host.start("a", StartOptions::default()).unwrap();
        assert_eq!(*made_of.lock().unwrap(), [1, 2]);
        host.stop("a", StopReason::UserInitiated).await.unwrap();
    });
}

#[test]
fn check_08_each_start_makes_a_new_instance() {
    in_namespace(|directory| async move {
        let script = Arc::new(Script::plain());
        let host = host(&directory, &script);
        let mut events = host.events();
        for sessions in 1..=3 {
            connect(&host, &mut events, "a").await;
            let running = host.start("a", StartOptions::default()).unwrap_err();
            assert!(matches!(running, HostError::Running { .. }), "{running}");
            host.stop("a", StopReason::UserInitiated).await.unwrap();
            assert_eq!(script.instances.load(Ordering::Relaxed), sessions);
        }
        let old = script.contexts.lock().unwrap()[0].clone();
        assert!(
            !old.set_reasserting(true),
            "it belongs to a session that is over"
        );
        let late = old.set_network_settings(Some(port("late"))).await;
        assert!(matches!(late, Err(SettingsError::Canceled)));
    });
}

#[test]
fn check_09_reasserting_counts_while_connected() {
    in_namespace(|directory| async move {
        let early = Arc::new(Mutex::new(None));
        let noted = early.clone();
        let script = Script::new(move |context, _| {
            *noted.lock().unwrap() = Some(context.set_reasserting(true));
            async move {
                context.set_network_settings(Some(port("tap-a"))).await?;
                Ok(())
            }
        });
        let script = Arc::new(script);
        let host = host(&directory, &script);
        let mut events = host.events();
        connect(&host, &mut events, "a").await;
        assert_eq!(*early.lock().unwrap(), Some(false));
        let context = script.context();
        for reasserting in [true, true, false, false] {
            assert!(context.set_reasserting(reasserting));
        }
        host.stop("a", StopReason::UserInitiated).await.unwrap();
        let (statuses, ..) = until_end(&mut events, "a").await;
        assert_eq!(
            statuses,
            [Reasserting, Connected, Disconnecting, Disconnected],
            "an event for each change, and none without one"
        );
    });
}

#[test]
fn check_10_numbers_are_apples() {
    let reasons = [
        StopReason::None,
        StopReason::UserInitiated,
        StopReason::ProviderFailed,
        StopReason::NoNetworkAvailable,
        StopReason::UnrecoverableNetworkChange,
        StopReason::ProviderDisabled,
        StopReason::AuthenticationCanceled,
        StopReason::ConfigurationFailed,
        StopReason::IdleTimeout,
        StopReason::ConfigurationDisabled,
        StopReason::ConfigurationRemoved,
        StopReason::Superseded,
        StopReason::UserLogout,
        StopReason::UserSwitch,
        StopReason::ConnectionFailed,
        StopReason::Sleep,
        StopReason::AppUpdate,
        StopReason::InternalError,
    ];
    for (number, reason) in reasons.into_iter().enumerate() {
        assert_eq!(reason as usize, number, "{reason:?}");
    }
    let statuses: [SessionStatus; 6] = [
        Invalid,
        Disconnected,
        Connecting,
        Connected,
        Reasserting,
        Disconnecting,
    ];
    for (number, status) in statuses.into_iter().enumerate() {
        assert_eq!(status as usize, number, "{status:?}");
    }
}

#[test]
fn check_10_a_start_that_takes_too_long_failed_to_connect() {
    in_namespace(|directory| async move {
        let script = Arc::new(Script::new(|_, _| std::future::pending()));
        let host = host(&directory, &script);
        let mut events = host.events();
        host.start("a", StartOptions::default()).unwrap();
        let (_, reason, error) = until_end(&mut events, "a").await;
        assert_eq!(reason, StopReason::ConnectionFailed);
        assert!(error.unwrap().contains("did not start within 1s"));
        assert_eq!(script.stops(), [StopReason::ConnectionFailed]);
    });
}

#[test]
fn check_32_two_tunnels_do_not_meet() {
    in_namespace(|directory| async move {
        let script = Script::new(|context, _| async move {
            let name = format!("tap-{}", context.tunnel());
            let mut settings = port(&name);
            settings.ethernet_address.0[5] = name.as_bytes()[4];
            context.set_network_settings(Some(settings)).await?;
            context.set_carrier(true).await;
            Ok(())
        });
        let script = Arc::new(script);
        let host = host(&directory, &script);
        let mut events = host.events();
        connect(&host, &mut events, "a").await;
        connect(&host, &mut events, "b").await;
        let contexts = script.contexts.lock().unwrap().clone();
        let [a, b] = &contexts[..] else {
            panic!("two sessions")
        };
        assert_ne!(a.device_info().unwrap().mac, b.device_info().unwrap().mac);
        let mut readers = [a, b].map(|context| context.take_reader().unwrap());
        ip("addr add 10.9.0.1/24 dev tap-a");
        // The kernel sends an ARP request for 10.9.0.2 on the interface that has the network, and
        // there only.
        let _ = std::net::UdpSocket::bind("10.9.0.1:0")
            .unwrap()
            .send_to(b"x", "10.9.0.2:9");
        let mut frames = Vec::new();
        readers[0].recv_batch(&mut frames).await.unwrap();
        assert!(frames.iter().any(|frame| frame[12..14] == [8, 6]));
        let silence = readers[1].recv_batch(&mut frames);
        assert!(timeout(Duration::from_millis(300), silence).await.is_err());
        host.stop_all(StopReason::AppUpdate).await;
        assert_eq!(script.stops(), [StopReason::AppUpdate; 2]);
        assert!(!ip("-o link").contains("tap-"));
    });
}

#[test]
fn a_text_for_users_is_an_event_and_its_sender_knows_whether_there_is_a_listener() {
    in_namespace(|directory| async move {
        let script = Arc::new(Script::plain());
        let host = host(&directory, &script);
        let mut events = host.events();
        connect(&host, &mut events, "a").await;
        let context = script.context();
        assert!(context.display_message("the key expires tomorrow"));
        let text = "the key expires tomorrow".to_owned();
        assert_eq!(next(&mut events, "a").await, EventKind::Message { text });
        assert!(context.display_message(&"\u{e9}".repeat(1000)));
        let EventKind::Message { text } = next(&mut events, "a").await else {
            panic!("a text")
        };
        assert_eq!(text, "\u{e9}".repeat(MAX_DISPLAYED / 2), "whole characters");
        drop(events);
        assert!(!context.display_message("to nobody"));
        host.stop_all(StopReason::UserInitiated).await;
    });
}
