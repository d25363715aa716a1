// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's sleep, which a host watches once for all of its tunnels.

use tokio::sync::watch;

use super::tunnels::Host;

impl Host {
    /// Whether the machine sleeps, or is about to: from logind's announcement until it woke up, or
    /// did not sleep after all. Never on a machine without logind. Must be called on a tokio
    /// runtime.
    pub fn is_asleep(&self) -> watch::Receiver<bool> {
        self.inner.sleep.is_asleep()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        sync::{Arc, Mutex},
        time::Duration,
    };

    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::{
        machine::power::testing::TestLogind,
        provider::{
            BoxFut, EthernetTunnelProvider, EthernetTunnelSettings, OnDemandAction, OnDemandRule,
            ProviderContext, ProviderError, SessionStatus, SleepWatch, StartOptions, StopReason,
            TunnelConfiguration,
        },
        testing::{block_on, in_namespace, ip},
    };

    /// Providers that are in `sleep`, and those that may return from it.
    #[derive(Default)]
    struct Dormitory {
        asleep: Mutex<BTreeSet<String>>,
        woken: Mutex<Vec<String>>,
        released: watch::Sender<BTreeSet<String>>,
    }

    impl Dormitory {
        fn release(&self, tunnel: &str) {
            self.released
                .send_modify(|released| released.extend([tunnel.to_owned()]));
        }
    }

    struct Sleeper(Arc<Dormitory>);

    impl EthernetTunnelProvider for Sleeper {
        fn start<'a>(
            &'a self,
            context: &'a ProviderContext,
            _options: StartOptions,
        ) -> BoxFut<'a, Result<(), ProviderError>> {
            Box::pin(async {
                let mac = patchcord_bridge::MacAddr([2, 0, 0, 0, 0, 7]);
                let nowhere = std::net::Ipv4Addr::UNSPECIFIED.into();
                let name = format!("tap-{}", context.tunnel());
                let settings = EthernetTunnelSettings::new(nowhere, mac, 1400, &name);
                context.set_network_settings(Some(settings)).await?;
                Ok(())
            })
        }

        fn stop<'a>(&'a self, _: &'a ProviderContext, _: StopReason) -> BoxFut<'a, ()> {
            Box::pin(async {})
        }

        fn sleep<'a>(&'a self, context: &'a ProviderContext) -> BoxFut<'a, ()> {
            Box::pin(async {
                let tunnel = context.tunnel();
                self.0.asleep.lock().unwrap().insert(tunnel.to_owned());
                let mut released = self.0.released.subscribe();
                let _ = released.wait_for(|tunnels| tunnels.contains(tunnel)).await;
            })
        }

        fn wake(&self, context: &ProviderContext) {
            self.0
                .woken
                .lock()
                .unwrap()
                .push(context.tunnel().to_owned());
        }
    }

    async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let wait = async {
            while !is_so() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), wait).await.expect(what);
    }

    /// A host on a machine with this logind, and two connected tunnels.
    async fn host(
        logind: &TestLogind,
        dormitory: &Arc<Dormitory>,
        dir: &tempfile::TempDir,
    ) -> Host {
        let sleepers = dormitory.clone();
        let mut builder = Host::builder(dir.path())
            .register("sleeper", move |_, _| Ok(Sleeper(sleepers.clone())));
        builder.sleep = SleepWatch::new(logind.bus(), "a test");
        let host = builder.build();
        for tunnel in ["a", "b"] {
            let configuration = TunnelConfiguration::new("sleeper");
            host.configure(tunnel, configuration, None).unwrap();
            host.start(tunnel, StartOptions::default()).unwrap();
        }
        for tunnel in ["a", "b"] {
            let is_connected = || host.status(tunnel) == SessionStatus::Connected;
            until("connected", is_connected).await;
        }
        timeout(Duration::from_secs(20), logind.wait_for_taken(1))
            .await
            .unwrap();
        host
    }

    #[test]
    fn check_36_two_tunnels_delay_sleep_once_and_get_ready_side_by_side() {
        in_namespace(|| {
            block_on(async {
                let logind = TestLogind::start(Duration::from_secs(60)).await;
                let (dormitory, dir) = (Arc::default(), tempfile::tempdir().unwrap());
                let host = host(&logind, &dormitory, &dir).await;
                let is_asleep = host.is_asleep();
                assert!(!*is_asleep.borrow());

                logind.announce(true).await;
                let both = || dormitory.asleep.lock().unwrap().len() == 2;
                until("both are in sleep at once", both).await;
                assert!(*is_asleep.borrow());
                assert_eq!(logind.taken(), 1);
                dormitory.release("a");
                sleep(Duration::from_millis(50)).await;
                assert!(logind.is_held(), "the other one is not ready");
                dormitory.release("b");
                until("released", || !logind.is_held()).await;
                assert!(*is_asleep.borrow(), "until it wakes up");

                logind.announce(false).await;
                let both = || dormitory.woken.lock().unwrap().len() == 2;
                until("both hear of the wake", both).await;
                until("taken again", || logind.taken() == 2).await;
                assert!(!*is_asleep.borrow());
                host.stop("a", StopReason::UserInitiated).await.unwrap();
                sleep(Duration::from_millis(50)).await;
                assert!(logind.is_held() && logind.taken() == 2);
                host.stop("b", StopReason::UserInitiated).await.unwrap();
                drop(host);
                until("given back", || !logind.is_held()).await;
            });
        });
    }

    #[test]
    fn check_36_a_tunnel_that_is_not_ready_in_time_takes_no_other_ones_time() {
        in_namespace(|| {
            block_on(async {
                let logind = TestLogind::start(Duration::from_millis(300)).await;
                let (dormitory, dir) = (Arc::default(), tempfile::tempdir().unwrap());
                let host = host(&logind, &dormitory, &dir).await;
                dormitory.release("b");
                logind.announce(true).await;
                until("released", || !logind.is_held()).await;
                assert_eq!(dormitory.asleep.lock().unwrap().len(), 2);
                logind.announce(false).await;
                let both = || dormitory.woken.lock().unwrap().len() == 2;
                until("both hear of the wake", both).await;
                host.stop_all(StopReason::UserInitiated).await;
            });
        });
    }

    #[test]
    fn check_36_a_tunnel_that_disconnects_for_sleep_leaves_the_others_connected() {
        in_namespace(|| {
            block_on(async {
                let logind = TestLogind::start(Duration::from_secs(60)).await;
                let (dormitory, dir) = (Arc::<Dormitory>::default(), tempfile::tempdir().unwrap());
                let host = host(&logind, &dormitory, &dir).await;
                let mut configuration = TunnelConfiguration::new("sleeper");
                configuration.disconnect_on_sleep = true;
                host.configure("a", configuration, None).unwrap();
                dormitory.release("b");
                logind.announce(true).await;
                until("released", || !logind.is_held()).await;
                assert_eq!(host.status("a"), SessionStatus::Disconnected);
                assert_eq!(host.status("b"), SessionStatus::Connected);
                host.stop_all(StopReason::UserInitiated).await;
            });
        });
    }

    #[test]
    fn check_36_demanded_tunnels_rest_while_the_machine_sleeps() {
        in_namespace(|| {
            for command in [
                "link add east type veth peer name east-far",
                "link set east-far up",
                "link set east up",
                "address add 192.0.2.2/24 dev east",
                "route add default via 192.0.2.1",
            ] {
                ip(command);
            }
            block_on(async {
                let logind = TestLogind::start(Duration::from_secs(60)).await;
                let (dormitory, dir) = (Arc::<Dormitory>::default(), tempfile::tempdir().unwrap());
                let host = host(&logind, &dormitory, &dir).await;
                let mut configuration = TunnelConfiguration::new("sleeper");
                configuration.disconnect_on_sleep = true;
                configuration.on_demand = true;
                configuration.on_demand_rules = vec![OnDemandRule::always(OnDemandAction::Connect)];
                host.configure("a", configuration, None).unwrap();
                let following = host.clone();
                let following = tokio::spawn(async move { following.follow_rules().await });
                dormitory.release("b");
                logind.announce(true).await;
                until("released", || !logind.is_held()).await;
                sleep(Duration::from_millis(500)).await;
                assert_eq!(host.status("a"), SessionStatus::Disconnected);
                logind.announce(false).await;
                let is_connected = || host.status("a") == SessionStatus::Connected;
                until("connected again", is_connected).await;
                following.abort();
                host.stop_all(StopReason::UserInitiated).await;
            });
        });
    }
}
