// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sleep and wake-up of the machine, as logind announces them.
//!
//! ```text
//! inhibitor taken ── about to sleep ──> Sleep(guard) ── guard dropped, or time is up ──> released
//!        ^                                                                                  │
//!        └──────────── taken again, Wake ────────────── woke up, or did not sleep ──────────┘
//! ```
//! An inhibitor can only delay sleep, for `InhibitDelayMaxSec` at most; this module releases it
//! earlier, so that logind does not complain. `provider` listens, once for all sessions of a host.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tracing::{debug, warn};
use zbus::{Connection, MatchRule, Message, MessageStream, message, zvariant::OwnedFd};

use super::bus::{Bus, Object};

const LOGIND: Object = Object {
    service: "org.freedesktop.login1",
    path: "/org/freedesktop/login1",
    interface: "org.freedesktop.login1.Manager",
};
const PROPERTIES: Object = Object {
    interface: "org.freedesktop.DBus.Properties",
    ..LOGIND
};
const SLEEP_SIGNAL: &str = "PrepareForSleep";
/// The default of logind.
const DEFAULT_DELAY: Duration = Duration::from_secs(5);

/// A change of the machine's power state.
#[derive(Clone, Debug)]
pub(crate) enum PowerEvent {
    /// It is about to sleep. It waits until the guard is dropped, but not beyond its deadline.
    Sleep(SleepGuard),
    /// It woke up, or did not sleep after all.
    Wake,
}

/// Delays the sleep of the machine, until it and its clones are dropped or its time is up.
#[derive(Clone, Debug)]
pub(crate) struct SleepGuard {
    deadline: Instant,
    /// Dropped with the last clone; the receiver sees that.
    _held: Arc<oneshot::Sender<()>>,
}

impl SleepGuard {
    /// The time at which the machine sleeps even if the guard is still held.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }
}

/// The machine's sleep cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}")]
pub(crate) struct PowerError {
    action: &'static str,
    source: Box<zbus::Error>,
}

/// A watch over the machine's sleep. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Power {
    events: mpsc::UnboundedReceiver<PowerEvent>,
}

impl Power {
    /// Begins to watch, and to delay sleep because of `why`, which `systemd-inhibit --list` shows.
    ///
    /// # Errors
    /// When there is no system bus, or no logind on it.
    pub(crate) async fn watch(bus: &Bus, why: &str) -> Result<Self, PowerError> {
        let failed = |action| {
            move |source: zbus::Error| PowerError {
                action,
                source: Box::new(source),
            }
        };
        let bus = bus
            .connect()
            .await
            .map_err(failed("connect to the system bus"))?;
        let signals = sleep_signals(&bus)
            .await
            .map_err(failed("listen to logind"))?;
        // Taken after the subscription, so that a sleep in between is not missed.
        let inhibitor = inhibit(&bus, why).await.map_err(failed("delay sleep"))?;
        let (sender, events) = mpsc::unbounded_channel();
        let watch = Watch {
            bus,
            why: why.to_owned(),
            inhibitor: Some(inhibitor),
            sleep: None,
            events: sender,
        };
        tokio::spawn(watch.run(signals));
        Ok(Self { events })
    }

    /// The next event; `None` when logind cannot be reached any more. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<PowerEvent> {
        self.events.recv().await
    }
}

/// The task behind a [`Power`].
struct Watch {
    bus: Connection,
    why: String,
    inhibitor: Option<OwnedFd>,
    /// The sleep that is about to begin, or that has begun.
    sleep: Option<Sleep>,
    events: mpsc::UnboundedSender<PowerEvent>,
}

struct Sleep {
    deadline: Instant,
    guard: oneshot::Receiver<()>,
}

impl Watch {
    async fn run(mut self, mut signals: MessageStream) {
        let events = self.events.clone();
        loop {
            let delays = self.inhibitor.is_some();
            let sleep = self.sleep.as_mut().filter(|_| delays);
            tokio::select! {
                signal = signals.next() => match signal {
                    Some(Ok(signal)) => self.handle_signal(&signal).await,
                    Some(Err(error)) => debug!(%error, "cannot parse a signal of logind"),
                    None => return debug!("the system bus closed the connection"),
                },
                () = ready(sleep) => {
                    debug!("ready for sleep");
                    self.inhibitor = None;
                }
                () = events.closed() => return,
            }
        }
    }

    async fn handle_signal(&mut self, signal: &Message) {
        let Ok(begins) = signal.body().deserialize::<bool>() else {
            return;
        };
        // Some machines announce a sleep twice.
        if begins == self.sleep.is_some() {
            return;
        }
        let event = if begins {
            let (held, guard) = oneshot::channel();
            let deadline = Instant::now() + delay(&self.bus).await;
            self.sleep = Some(Sleep { deadline, guard });
            PowerEvent::Sleep(SleepGuard {
                deadline,
                _held: held.into(),
            })
        } else {
            self.sleep = None;
            if self.inhibitor.is_none() {
                match inhibit(&self.bus, &self.why).await {
                    Ok(inhibitor) => self.inhibitor = Some(inhibitor),
                    Err(error) => {
                        warn!(%error, "cannot delay the machine's next sleep: logind refuses the inhibitor; the tunnel may not get ready for it")
                    }
                }
            }
            PowerEvent::Wake
        };
        // Without a receiver, the loop ends.
        let _ = self.events.send(event);
    }
}

/// Waits until the inhibitor can be released; for ever where no sleep is announced.
async fn ready(sleep: Option<&mut Sleep>) {
    match sleep {
        Some(sleep) => tokio::select! {
            _ = &mut sleep.guard => {}
            () = sleep_until(sleep.deadline) => {}
        },
        None => std::future::pending().await,
    }
}

async fn sleep_signals(bus: &Connection) -> zbus::Result<MessageStream> {
    let rule = MatchRule::builder()
        .msg_type(message::Type::Signal)
        .sender(LOGIND.service)?
        .path(LOGIND.path)?
        .interface(LOGIND.interface)?
        .member(SLEEP_SIGNAL)?
        .build();
    MessageStream::for_match_rule(rule, bus, None).await
}

async fn inhibit(bus: &Connection, why: &str) -> zbus::Result<OwnedFd> {
    let arguments = ("sleep", "patchcord", why, "delay");
    let answer = LOGIND.call(bus, "Inhibit", &arguments).await?;
    answer.body().deserialize()
}

/// How long sleep may be delayed, less a tenth for the message to logind.
async fn delay(bus: &Connection) -> Duration {
    let arguments = (LOGIND.interface, "InhibitDelayMaxUSec");
    let most = match PROPERTIES.call(bus, "Get", &arguments).await {
        Ok(answer) => answer
            .body()
            .deserialize::<zbus::zvariant::Value<'_>>()
            .ok()
            .and_then(|value| u64::try_from(value).ok())
            .map_or(DEFAULT_DELAY, Duration::from_micros),
        Err(_) => DEFAULT_DELAY,
    };
    most - most / 10
}

/// A stub of logind that a test controls.
#[cfg(test)]
pub(crate) mod testing {
    use std::io::{PipeReader, Read};
    use std::os::fd::OwnedFd as StdFd;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use zbus::zvariant::OwnedFd;

    use super::{LOGIND, SLEEP_SIGNAL};
    use crate::machine::bus::{Bus, testing::TestBus};

    pub(crate) struct TestLogind {
        bus: TestBus,
        connection: zbus::Connection,
        inhibitors: Arc<Mutex<Vec<PipeReader>>>,
    }

    struct Manager {
        inhibitors: Arc<Mutex<Vec<PipeReader>>>,
        delay: Duration,
    }

    #[zbus::interface(name = "org.freedesktop.login1.Manager")]
    impl Manager {
        fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> OwnedFd {
            assert_eq!((what, who, mode), ("sleep", "patchcord", "delay"));
            assert!(!why.is_empty());
            let (reader, writer) = std::io::pipe().unwrap();
            fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
            self.inhibitors.lock().unwrap().push(reader);
            StdFd::from(writer).into()
        }

        #[zbus(property, name = "InhibitDelayMaxUSec")]
        fn delay(&self) -> u64 {
            u64::try_from(self.delay.as_micros()).unwrap()
        }
    }

    impl TestLogind {
        pub(crate) async fn start(delay: Duration) -> Self {
            let bus = TestBus::start();
            let connection = bus.bus().connect().await.unwrap();
            let inhibitors = Arc::default();
            let manager = Manager {
                inhibitors: Arc::clone(&inhibitors),
                delay,
            };
            let server = connection.object_server();
            server.at(LOGIND.path, manager).await.unwrap();
            connection.request_name(LOGIND.service).await.unwrap();
            Self {
                bus,
                connection,
                inhibitors,
            }
        }

        pub(crate) fn bus(&self) -> Bus {
            self.bus.bus()
        }

        /// Announces sleep, or its end.
        pub(crate) async fn announce(&self, begins: bool) {
            let (path, interface) = (LOGIND.path, LOGIND.interface);
            self.connection
                .emit_signal(None::<&str>, path, interface, SLEEP_SIGNAL, &begins)
                .await
                .unwrap();
        }

        /// The number of inhibitors taken so far.
        pub(crate) fn taken(&self) -> usize {
            self.inhibitors.lock().unwrap().len()
        }

        /// Whether the latest inhibitor is held.
        pub(crate) fn is_held(&self) -> bool {
            let readers = self.inhibitors.lock().unwrap();
            // A pipe without a writer has an end.
            let mut reader = readers.last().unwrap();
            reader.read(&mut [0]).is_err()
        }

        /// Waits until the latest inhibitor is released.
        pub(crate) async fn wait_for_release(&self) {
            while self.is_held() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }

        /// Waits until so many inhibitors were taken.
        pub(crate) async fn wait_for_taken(&self, count: usize) {
            while self.taken() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::{testing::TestLogind, *};
    use crate::testing::block_on;

    const LONG: Duration = Duration::from_secs(60);
    const SOON: Duration = Duration::from_secs(20);
    const A_MOMENT: Duration = Duration::from_millis(50);

    async fn sleep(power: &mut Power) -> SleepGuard {
        match timeout(SOON, power.next()).await.unwrap() {
            Some(PowerEvent::Sleep(guard)) => guard,
            other => panic!("{other:?}"),
        }
    }

    async fn wake(power: &mut Power) {
        let event = timeout(SOON, power.next()).await.unwrap();
        assert!(matches!(event, Some(PowerEvent::Wake)), "{event:?}");
    }

    #[test]
    fn sleep_waits_for_the_guard_and_is_delayed_again_after_the_wake() {
        block_on(async {
            let logind = TestLogind::start(LONG).await;
            let mut power = Power::watch(&logind.bus(), "a test").await.unwrap();
            assert_eq!(logind.taken(), 1);
            for taken in 1..=3 {
                logind.announce(true).await;
                logind.announce(true).await;
                let guard = sleep(&mut power).await;
                tokio::time::sleep(A_MOMENT).await;
                assert!(logind.is_held());
                drop(guard);
                timeout(SOON, logind.wait_for_release()).await.unwrap();
                logind.announce(false).await;
                wake(&mut power).await;
                logind.wait_for_taken(taken + 1).await;
            }
        });
    }

    #[test]
    fn sleep_does_not_wait_beyond_the_delay() {
        block_on(async {
            let logind = TestLogind::start(Duration::from_millis(300)).await;
            let mut power = Power::watch(&logind.bus(), "a test").await.unwrap();
            logind.announce(true).await;
            let guard = sleep(&mut power).await;
            timeout(SOON, logind.wait_for_release()).await.unwrap();
            assert!(guard.deadline() <= Instant::now());
        });
    }

    #[test]
    fn bursts_come_in_order_and_the_latest_guard_counts() {
        block_on(async {
            let logind = TestLogind::start(LONG).await;
            let mut power = Power::watch(&logind.bus(), "a test").await.unwrap();
            for begins in [true, false, true] {
                logind.announce(begins).await;
            }
            let first = sleep(&mut power).await;
            wake(&mut power).await;
            let second = sleep(&mut power).await;
            drop(first);
            tokio::time::sleep(A_MOMENT).await;
            assert!(logind.is_held());
            assert_eq!(logind.taken(), 1);
            drop(second);
            timeout(SOON, logind.wait_for_release()).await.unwrap();
        });
    }

    #[test]
    fn a_watch_that_ends_gives_its_inhibitor_back() {
        block_on(async {
            let logind = TestLogind::start(LONG).await;
            drop(Power::watch(&logind.bus(), "a test").await.unwrap());
            timeout(SOON, logind.wait_for_release()).await.unwrap();
        });
    }

    #[test]
    fn a_machine_without_a_bus_or_logind_says_so() {
        block_on(async {
            let nowhere = Bus::at("unix:path=/nonexistent/bus");
            let error = Power::watch(&nowhere, "a test").await.unwrap_err();
            assert_eq!(error.to_string(), "cannot connect to the system bus");
            let bus = crate::machine::bus::testing::TestBus::start();
            let error = Power::watch(&bus.bus(), "a test").await.unwrap_err();
            assert_eq!(error.to_string(), "cannot delay sleep");
        });
    }
}
