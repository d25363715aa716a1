// SPDX-License-Identifier: MIT OR Apache-2.0
//! The provider API as a library user sees it: providers of our own on a real TAP, each test in a
//! network namespace of its own. Needs root.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use nix::sched::{CloneFlags, unshare};
use patchcord::provider::{
    AppMessage, BoxFut, Deadlines, EthernetTunnelProvider, EthernetTunnelSettings, FlowError,
    ProviderContext, ProviderError, Route, Session, SessionEnd, SessionError, SessionStatus,
    SettingsError, StartOptions, StopReason,
};
use patchcord_bridge::MacAddr;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x77]);
const NAME: &str = "api0";

/// Runs an async test in a fresh network namespace, with a run directory.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce(TempDir) -> F + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async {
                let limit = Duration::from_secs(20);
                timeout(limit, test(tempfile::tempdir().unwrap()))
                    .await
                    .expect("no test hangs");
            });
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn settings() -> EthernetTunnelSettings {
    EthernetTunnelSettings::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), MAC, 1500, NAME)
}

fn host(provider: Arc<Scripted>, dir: &Path) -> Session {
    let deadlines = Deadlines {
        start: Duration::from_secs(2),
        abandon: Duration::from_millis(100),
        stop: Duration::from_millis(300),
    };
    Session::new(provider, "api", dir, deadlines)
}

/// The behaviour of a provider in `start`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    Succeed,
    WithoutSettings,
    Fail,
    FailAfterSettings,
    Panic,
    Hang,
    CancelTwiceLater,
}

/// A provider that follows a script and records its callbacks.
struct Scripted {
    start: Start,
    hang_in_stop: bool,
    panic_in_stop: bool,
    stops: Mutex<Vec<StopReason>>,
    starts: AtomicU32,
    seen: Mutex<Vec<SessionStatus>>,
    interface_before_settings: Mutex<Option<bool>>,
}

impl Scripted {
    fn new(start: Start) -> Self {
        Self {
            start,
            hang_in_stop: false,
            panic_in_stop: false,
            stops: Mutex::default(),
            starts: AtomicU32::new(0),
            seen: Mutex::default(),
            interface_before_settings: Mutex::default(),
        }
    }

    fn stops(&self) -> Vec<StopReason> {
        self.stops.lock().unwrap().clone()
    }
}

impl EthernetTunnelProvider for Scripted {
    fn start<'a>(
        &'a self,
        context: &'a ProviderContext,
        _: StartOptions,
    ) -> BoxFut<'a, Result<(), ProviderError>> {
        Box::pin(async move {
            self.starts.fetch_add(1, Ordering::Relaxed);
            *self.interface_before_settings.lock().unwrap() = Some(context.interface().is_some());
            self.seen.lock().unwrap().push(*context.status().borrow());
            match self.start {
                Start::WithoutSettings => return Ok(()),
                Start::Fail => return Err(ProviderError::new("out of luck")),
                Start::Panic => panic!("a provider's panic"),
                Start::Hang => std::future::pending().await,
                _ => {}
            }
            context.set_network_settings(Some(settings())).await?;
            match self.start {
                Start::FailAfterSettings => Err(ProviderError::new("out of luck, later")),
                Start::CancelTwiceLater => {
                    let context = context.clone();
                    tokio::spawn(async move {
                        sleep(Duration::from_millis(50)).await;
                        context.cancel_tunnel(Some(ProviderError::new("first")));
                        context.cancel_tunnel(Some(ProviderError::new("second")));
                    });
                    Ok(())
                }
                _ => Ok(()),
            }
        })
    }

    fn stop<'a>(&'a self, context: &'a ProviderContext, reason: StopReason) -> BoxFut<'a, ()> {
        Box::pin(async move {
            self.seen.lock().unwrap().push(*context.status().borrow());
            self.stops.lock().unwrap().push(reason);
            assert!(!self.panic_in_stop, "a provider's panic");
            if self.hang_in_stop {
                std::future::pending::<()>().await;
            }
        })
    }

    fn handle_app_message<'a>(
        &'a self,
        _: &'a ProviderContext,
        message: AppMessage,
    ) -> BoxFut<'a, Option<Bytes>> {
        Box::pin(async move {
            assert_ne!(message.body, "panic");
            (message.body == "ping").then(|| Bytes::from_static(b"pong"))
        })
    }
}

fn has_interface() -> bool {
    nix::net::if_::if_nametoindex(NAME).is_ok()
}

async fn run_until_stopped(provider: &Arc<Scripted>, dir: &Path) -> SessionEnd {
    let host = host(provider.clone(), dir);
    let handle = host.handle();
    host.run(StartOptions::default(), move || {
        handle.stop(StopReason::UserInitiated)
    })
    .await
}

#[test]
fn a_session_goes_through_its_states_and_leaves_nothing() {
    in_namespace(|dir| async move {
        let provider = Arc::new(Scripted::new(Start::Succeed));
        let host = host(provider.clone(), dir.path());
        let handle = host.handle();
        assert_eq!(handle.status(), SessionStatus::Disconnected);
        let stopper = handle.clone();
        let end = host
            .run(StartOptions::default(), move || {
                assert!(has_interface());
                assert_eq!(stopper.status(), SessionStatus::Connected);
                stopper.stop(StopReason::UserInitiated);
                stopper.stop(StopReason::Sleep); // too late: the first reason counts
            })
            .await;
        assert_eq!(end.reason, StopReason::UserInitiated);
        assert!(end.error.is_none());
        assert_eq!(provider.stops(), [StopReason::UserInitiated]);
        assert_eq!(
            *provider.interface_before_settings.lock().unwrap(),
            Some(false)
        );
        let seen = provider.seen.lock().unwrap().clone();
        assert_eq!(
            seen,
            [SessionStatus::Connecting, SessionStatus::Disconnecting]
        );
        assert_eq!(handle.status(), SessionStatus::Disconnected);
        assert!(!has_interface(), "the host removed the interface");
        assert_eq!(provider.starts.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_start_that_fails_in_any_way_is_stopped_once_with_its_error() {
    use StopReason::{ConfigurationFailed, ConnectionFailed, ProviderFailed};
    for (start, reason, expected) in [
        (Start::Fail, ProviderFailed, "out of luck"),
        (
            Start::FailAfterSettings,
            ProviderFailed,
            "out of luck, later",
        ),
        (
            Start::WithoutSettings,
            ConfigurationFailed,
            "the provider started without network settings",
        ),
        (Start::Panic, ProviderFailed, "the provider panicked"),
        (
            Start::Hang,
            ConnectionFailed,
            "the provider did not start within 2s",
        ),
    ] {
        in_namespace(|dir| async move {
            let provider = Arc::new(Scripted::new(start));
            let host = host(provider.clone(), dir.path());
            let end = host
                .run(StartOptions::default(), || panic!("it is not ready"))
                .await;
            assert_eq!(end.reason, reason);
            assert_eq!(end.error.unwrap().to_string(), expected);
            assert_eq!(provider.stops(), [reason], "{expected}");
            assert!(!has_interface(), "{expected}");
        });
    }
}

#[test]
fn a_stop_during_start_ends_the_start() {
    in_namespace(|dir| async move {
        let provider = Arc::new(Scripted::new(Start::Hang));
        let host = host(provider.clone(), dir.path());
        let handle = host.handle();
        tokio::spawn(async move {
            sleep(Duration::from_millis(50)).await;
            handle.stop(StopReason::UserInitiated);
        });
        let begin = Instant::now();
        let end = host.run(StartOptions::default(), || {}).await;
        assert!(begin.elapsed() < Duration::from_secs(1));
        assert_eq!(
            (end.reason, end.error.is_none()),
            (StopReason::UserInitiated, true)
        );
        assert_eq!(provider.stops(), [StopReason::UserInitiated]);
    });
}

#[test]
fn a_stop_that_hangs_or_panics_does_not_keep_the_interface() {
    for (hang_in_stop, panic_in_stop) in [(true, false), (false, true)] {
        in_namespace(|dir| async move {
            let provider = Scripted {
                hang_in_stop,
                panic_in_stop,
                ..Scripted::new(Start::Succeed)
            };
            let provider = Arc::new(provider);
            let end = run_until_stopped(&provider, dir.path()).await;
            assert_eq!(end.reason, StopReason::UserInitiated);
            assert!(!has_interface());
        });
    }
}

#[test]
fn the_first_cancel_counts() {
    in_namespace(|dir| async move {
        let provider = Arc::new(Scripted::new(Start::CancelTwiceLater));
        let end = host(provider.clone(), dir.path())
            .run(StartOptions::default(), || {})
            .await;
        assert_eq!(end.reason, StopReason::ProviderFailed);
        assert!(
            matches!(end.error, Some(SessionError::Provider(error)) if error.message == "first")
        );
        assert_eq!(provider.stops(), [StopReason::ProviderFailed]);
    });
}

#[test]
fn messages_are_answered_and_a_panic_over_one_ends_nothing() {
    in_namespace(|dir| async move {
        let provider = Arc::new(Scripted::new(Start::Succeed));
        let host = host(provider.clone(), dir.path());
        let handle = host.handle();
        let session = tokio::spawn(host.run(StartOptions::default(), || {}));
        assert_eq!(handle.send_message("ping").await, Some("pong".into()));
        assert_eq!(handle.send_message("what").await, None);
        assert_eq!(handle.send_message("panic").await, None);
        assert_eq!(handle.send_message("ping").await, Some("pong".into()));
        handle.stop(StopReason::UserInitiated);
        assert!(session.await.unwrap().error.is_none());
    });
}

/// A provider whose context the test drives itself.
#[derive(Default)]
struct Bare {
    context: tokio::sync::Mutex<Option<ProviderContext>>,
}

impl EthernetTunnelProvider for Bare {
    fn start<'a>(
        &'a self,
        context: &'a ProviderContext,
        _: StartOptions,
    ) -> BoxFut<'a, Result<(), ProviderError>> {
        Box::pin(async move {
            assert!(!context.set_reasserting(true), "not before it is connected");
            let writer = context.writer();
            let too_early = writer.try_send_batch(&[arp_request()]);
            assert!(matches!(too_early, Err(FlowError::NotReady)));
            let settings = settings().with_addresses(&["10.7.7.1/24".parse().unwrap()]);
            context.set_network_settings(Some(settings)).await?;
            *self.context.lock().await = Some(context.clone());
            Ok(())
        })
    }

    fn stop<'a>(&'a self, _: &'a ProviderContext, _: StopReason) -> BoxFut<'a, ()> {
        Box::pin(async {})
    }
}

/// Who has 10.7.7.1? Tell 10.7.7.2.
fn arp_request() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 0x99]);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([2, 0, 0, 0, 0, 0x99, 10, 7, 7, 2]);
    frame.extend([0, 0, 0, 0, 0, 0, 10, 7, 7, 1]);
    frame.resize(60, 0);
    frame
}

#[test]
fn frames_flow_both_ways_through_reader_and_writer() {
    in_namespace(|dir| async move {
        let provider = Arc::new(Bare::default());
        let host = Session::new(provider.clone(), "api", dir.path(), Deadlines::default());
        let handle = host.handle();
        let session = tokio::spawn(host.run(StartOptions::default(), || {}));
        while handle.status() != SessionStatus::Connected {
            sleep(Duration::from_millis(10)).await;
        }
        let context = provider.context.lock().await.clone().unwrap();
        assert_eq!(context.interface().unwrap().name, NAME);
        context.set_carrier(true).await;
        let mut reader = context.take_reader().unwrap();
        assert!(
            context.take_reader().is_none() && context.take_queue().is_none(),
            "once"
        );
        let writer = context.writer();

        // The kernel answers our ARP request: one frame in, one frame out.
        let (mut batch, mut reply) = (Vec::new(), None);
        for _ in 0..50 {
            let report = writer
                .try_send_batch(&[arp_request(), vec![0; 13]])
                .unwrap();
            assert_eq!(
                (report.accepted, report.rejected),
                (1, 1),
                "the runt alone is refused"
            );
            let read = timeout(Duration::from_millis(100), reader.recv_batch(&mut batch)).await;
            if let Ok(read) = read {
                read.unwrap();
            }
            reply = batch
                .iter()
                .find(|frame| frame[12..14] == [0x08, 0x06])
                .cloned();
            if reply.is_some() {
                break;
            }
        }
        let reply = reply.expect("the kernel answers");
        assert_eq!(reply[..6], [2, 0, 0, 0, 0, 0x99]);
        assert_eq!(reply[6..12], MAC.0);
        assert_eq!(reply[20..22], [0, 2], "an ARP reply");

        assert!(context.set_reasserting(true));
        assert_eq!(handle.status(), SessionStatus::Reasserting);
        assert!(context.set_reasserting(false));
        assert_eq!(handle.status(), SessionStatus::Connected);

        handle.stop(StopReason::UserInitiated);
        assert!(session.await.unwrap().error.is_none());
        assert!(matches!(
            writer.try_send_batch(&[arp_request()]),
            Err(FlowError::Closed(StopReason::UserInitiated))
        ));
        assert!(!context.set_reasserting(true));
        let late = context.set_network_settings(Some(settings())).await;
        assert!(matches!(late, Err(SettingsError::Canceled)));
    });
}

#[test]
fn refused_settings_are_an_error_of_the_start() {
    struct Refused;
    impl EthernetTunnelProvider for Refused {
        fn start<'a>(
            &'a self,
            context: &'a ProviderContext,
            _: StartOptions,
        ) -> BoxFut<'a, Result<(), ProviderError>> {
            Box::pin(async move {
                let mut settings = settings();
                settings.mtu = 67;
                let refused = context
                    .set_network_settings(Some(settings))
                    .await
                    .unwrap_err();
                assert!(matches!(
                    refused,
                    SettingsError::Invalid { field: "mtu", .. }
                ));
                let mut settings = self::settings();
                settings.bridge = Some("br-none".into());
                let failed = context
                    .set_network_settings(Some(settings))
                    .await
                    .unwrap_err();
                assert_eq!(failed.code(), 3);
                assert!(!has_interface(), "what had been done is undone");
                Err(failed.into())
            })
        }

        fn stop<'a>(&'a self, _: &'a ProviderContext, _: StopReason) -> BoxFut<'a, ()> {
            Box::pin(async {})
        }
    }
    in_namespace(|dir| async move {
        let host = Session::new(Arc::new(Refused), "api", dir.path(), Deadlines::default());
        let end = host.run(StartOptions::default(), || {}).await;
        let error = anyhow_chain(&end.error.unwrap());
        assert!(error.contains("br-none"), "{error}");
    });
}

/// A provider that asks for these settings and waits for its end.
struct Settled(EthernetTunnelSettings);

impl EthernetTunnelProvider for Settled {
    fn start<'a>(
        &'a self,
        context: &'a ProviderContext,
        _: StartOptions,
    ) -> BoxFut<'a, Result<(), ProviderError>> {
        Box::pin(async move {
            let settings = Some(self.0.clone());
            context.set_network_settings(settings).await?;
            Ok(())
        })
    }

    fn stop<'a>(&'a self, _: &'a ProviderContext, _: StopReason) -> BoxFut<'a, ()> {
        Box::pin(async {})
    }
}

/// The output of `ip ARGUMENTS`.
fn ip(arguments: &str) -> String {
    let output = std::process::Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn rules() -> String {
    ip("-4 rule") + &ip("-6 rule")
}

#[test]
fn routes_come_with_the_settings_and_go_with_the_session() {
    in_namespace(|dir| async move {
        let before = rules();
        let addressed = settings().with_addresses(&["10.0.0.1/24".parse().unwrap()]);
        let mut routed = addressed.clone();
        let ipv4 = routed.ipv4.as_mut().unwrap();
        ipv4.included_routes.push(Route {
            destination: "10.1.0.0/16".parse().unwrap(),
            gateway: Some("10.0.0.2".parse().unwrap()),
        });
        for (settings, expected) in [(addressed, false), (routed, true)] {
            let host = Session::new(
                Arc::new(Settled(settings)),
                "api",
                dir.path(),
                Deadlines::default(),
            );
            let handle = host.handle();
            let check = || {
                assert_eq!(rules() != before, expected);
                if expected {
                    let way = ip("route get 10.1.2.3");
                    assert!(way.contains("via 10.0.0.2 dev api0"), "{way}");
                }
                handle.stop(StopReason::UserInitiated);
            };
            let end = host.run(StartOptions::default(), check).await;
            assert!(end.error.is_none(), "{end:?}");
            assert_eq!(rules(), before);
        }
    });
}

fn anyhow_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
