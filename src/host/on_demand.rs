// SPDX-License-Identifier: MIT OR Apache-2.0
//! Starts and stops tunnels as the network changes (`NEOnDemandRule`).
//!
//! ```text
//! path, names ──> first rule that matches ──> connect     start, and again after a failure, later and
//! configuration       of each tunnel                      later; not what a user stopped
//!                                             disconnect  stop, once
//!                                             ignore      nothing
//! ```
//! The network is the one below all tunnels, so that a tunnel does not change the input of its own
//! rules. It is read when the path changes, and every few seconds for the rest. While the machine gets
//! ready for sleep, no tunnel is started.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tracing::{debug, info, warn};

use super::{
    event::{Event, EventKind, Events},
    tunnel::TunnelView,
    tunnels::Host,
};
use crate::{
    io::mark::Mark,
    machine::{
        dns::{ResolverPaths, Resolvers},
        link::is_radio,
        path::{self, PathStatus},
        resolver,
        sockets::Side,
    },
    provider::{
        InterfaceType, OnDemandAction, OnDemandRule, ProbeUrl, SessionStatus, StartOptions,
        StartSource, StopReason, Surroundings, TunnelConfiguration,
    },
    tripwire,
};

/// Name servers change without a notification, after the path does: a lease takes a moment.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The time for the answer to a probe.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// After a failure, the delay until a tunnel is started again …
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// … then twice as much, up to this, until it has been up for as long.
const LAST_RETRY: Duration = Duration::from_secs(300);

impl Host {
    /// Starts and stops tunnels as their rules say, until the future is dropped. Belongs to the
    /// network namespace of the host.
    ///
    /// # Errors
    /// When the kernel refuses to report paths.
    pub async fn follow_rules(&self) -> io::Result<()> {
        let host = self.clone();
        let is_own = move |index| host.has_interface(index);
        let (path, following) = path::watch(Mark::BYPASS, is_own)?;
        tokio::select! {
            () = self.follow_rules_on(path) => {}
            () = following => {}
        }
        Ok(())
    }

    async fn follow_rules_on(&self, mut path: watch::Receiver<path::Path>) {
        let mut events = self.events();
        let mut rules = Rules {
            host: self.clone(),
            resolver_paths: ResolverPaths::default(),
            demands: BTreeMap::new(),
        };
        let mut tick = interval(LOOK_AGAIN);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sleeping = self.is_asleep();
        loop {
            tripwire::task("rules");
            // A copy: the watch must not be borrowed while the network is read.
            let here = path.borrow_and_update().clone();
            let here = rules.read_network(here).await;
            let is_awake = !*sleeping.borrow_and_update();
            if let (true, Some(here)) = (is_awake, here) {
                rules.follow(&here).await;
            }
            let retry = rules.next_retry();
            tokio::select! {
                changed = path.changed() => if changed.is_err() { return },
                is_alive = rules.wait_for_change(&mut events) => if !is_alive { return },
                changed = sleeping.changed() => if changed.is_err() { return },
                _ = tick.tick() => {}
                () = tokio::time::sleep_until(retry) => {}
            }
        }
    }
}

/// The machine's network. Another path is another network, even with equal attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Here {
    path: path::Path,
    surroundings: Surroundings,
}

struct Rules {
    host: Host,
    resolver_paths: ResolverPaths,
    demands: BTreeMap<String, Demand>,
}

/// The decision of the rules for one tunnel.
struct Demand {
    /// The decision, and its inputs.
    configuration: Arc<TunnelConfiguration>,
    here: Here,
    action: OnDemandAction,
    /// A user stopped it; it stays down until a user starts it, or the rules decide otherwise.
    is_muted: bool,
    retry_at: Instant,
    /// The delay after the next failure.
    retry_after: Duration,
    up_since: Option<Instant>,
}

impl Rules {
    /// The machine's network; `None` without one.
    async fn read_network(&self, path: path::Path) -> Option<Here> {
        let is_demanded = |tunnel: &TunnelView| is_demanded(&tunnel.configuration);
        if path.status != PathStatus::Satisfied || !self.host.list().iter().any(is_demanded) {
            return None;
        }
        let link = path.interface.as_ref()?;
        let names = Resolvers::of_link(link.index, &self.resolver_paths).await;
        let surroundings = Surroundings {
            interface: match is_radio(&link.name) {
                true => InterfaceType::Wifi,
                false => InterfaceType::Ethernet,
            },
            search_domains: names.search,
            name_servers: names.servers,
        };
        Some(Here { path, surroundings })
    }

    /// Decides where an input has changed, and acts.
    async fn follow(&mut self, here: &Here) {
        let tunnels = self.host.list();
        self.demands
            .retain(|name, _| tunnels.iter().any(|tunnel| tunnel.tunnel == *name));
        for tunnel in tunnels {
            if !is_demanded(&tunnel.configuration) {
                self.demands.remove(&tunnel.tunnel);
                continue;
            }
            let known = self.demands.get(&tunnel.tunnel);
            let is_new = known.is_none_or(|known| {
                !Arc::ptr_eq(&known.configuration, &tunnel.configuration) || known.here != *here
            });
            if is_new {
                let action =
                    decide(&tunnel.configuration.on_demand_rules, &here.surroundings).await;
                self.set_demand(&tunnel, here, action).await;
            }
            self.start_if_demanded(&tunnel);
        }
    }

    /// Stores a new decision for a tunnel.
    async fn set_demand(&mut self, tunnel: &TunnelView, here: &Here, action: OnDemandAction) {
        let name = &tunnel.tunnel;
        let before = self.demands.remove(name);
        let is_same = before.as_ref().is_some_and(|before| {
            before.action == action && Arc::ptr_eq(&before.configuration, &tunnel.configuration)
        });
        debug!(tunnel = name, ?action, ?here, "on demand");
        let now = Instant::now();
        let demand = Demand {
            configuration: tunnel.configuration.clone(),
            here: here.clone(),
            action,
            is_muted: is_same && before.as_ref().is_some_and(|before| before.is_muted),
            // Another network is another chance.
            retry_at: now,
            retry_after: FIRST_RETRY,
            up_since: before.and_then(|before| before.up_since),
        };
        self.demands.insert(name.clone(), demand);
        if action == OnDemandAction::Disconnect && !is_same && tunnel.is_running() {
            info!(
                tunnel = name,
                "stopped the tunnel, as its rules say for this network"
            );
            self.host
                .begin_stop(name, StopReason::UnrecoverableNetworkChange);
        }
    }

    fn start_if_demanded(&mut self, tunnel: &TunnelView) {
        let now = Instant::now();
        let Some(demand) = self.demands.get_mut(&tunnel.tunnel) else {
            return;
        };
        let is_wanted = demand.action == OnDemandAction::Connect && !demand.is_muted;
        if !is_wanted || tunnel.is_running() || demand.retry_at > now {
            return;
        }
        let options = StartOptions {
            options: None,
            source: StartSource::OnDemand,
        };
        if let Err(error) = self.host.start(&tunnel.tunnel, options) {
            let retry_in = demand.fail(now);
            warn!(tunnel = tunnel.tunnel, %error, ?retry_in, "cannot start the tunnel on demand; trying again");
        }
    }

    /// Waits for an event of the host that may change a decision. False when the host is gone.
    async fn wait_for_change(&mut self, events: &mut Events) -> bool {
        loop {
            match events.next().await {
                Some(Ok(event)) if !self.note_event(&event) => {}
                // After lost events, everything is read again.
                Some(_) => return true,
                None => return false,
            }
        }
    }

    fn note_event(&mut self, event: &Event) -> bool {
        let demand = self.demands.get_mut(&event.tunnel);
        match (&event.kind, demand) {
            (EventKind::Configured { .. } | EventKind::Removed, _) => true,
            // The rules do not start a muted tunnel, so a user did: the rules apply again.
            (EventKind::Status(SessionStatus::Connecting), Some(demand)) => {
                demand.is_muted = false;
                false
            }
            (EventKind::Status(SessionStatus::Connected), Some(demand)) => {
                demand.up_since.get_or_insert_with(Instant::now);
                false
            }
            (EventKind::Ended { reason, .. }, Some(demand)) => {
                demand.end(*reason, Instant::now());
                true
            }
            _ => false,
        }
    }

    /// Far away if there is none.
    fn next_retry(&self) -> Instant {
        let now = Instant::now();
        let due = self.demands.values().map(|demand| demand.retry_at);
        due.filter(|due| *due > now)
            .min()
            .unwrap_or(now + LAST_RETRY)
    }
}

impl Demand {
    fn end(&mut self, reason: StopReason, now: Instant) {
        let up_since = self.up_since.take();
        if up_since.is_some_and(|since| now.duration_since(since) >= LAST_RETRY) {
            self.retry_after = FIRST_RETRY;
        }
        match reason {
            // A user decided otherwise.
            StopReason::UserInitiated | StopReason::Superseded => self.is_muted = true,
            // The reason is the state of the machine, and passes when it wakes.
            StopReason::Sleep | StopReason::UnrecoverableNetworkChange => {}
            _ => drop(self.fail(now)),
        }
    }

    fn fail(&mut self, now: Instant) -> Duration {
        let retry_in = self.retry_after;
        self.retry_at = now + retry_in;
        self.retry_after = LAST_RETRY.min(2 * retry_in);
        retry_in
    }
}

fn is_demanded(configuration: &TunnelConfiguration) -> bool {
    configuration.on_demand && configuration.enabled
}

/// The action of the first rule that matches.
async fn decide(rules: &[OnDemandRule], here: &Surroundings) -> OnDemandAction {
    for rule in rules {
        if !rule.matches(here) {
            continue;
        }
        match &rule.probe {
            Some(url) if !answers(url).await => {}
            _ => return rule.action,
        }
    }
    OnDemandAction::Ignore
}

/// Whether a server answers a request for this with 200.
async fn answers(url: &ProbeUrl) -> bool {
    match timeout(PROBE_DEADLINE, probe(url)).await {
        Ok(Ok(answers)) => answers,
        Ok(Err(error)) => {
            debug!(%url, %error, "the probe failed");
            false
        }
        Err(_) => {
            debug!(%url, "the probe was not answered in time");
            false
        }
    }
}

/// An HTTP/1.1 request (RFC 9112) of which only the status counts.
async fn probe(url: &ProbeUrl) -> io::Result<bool> {
    let addresses = resolver::look_up(&url.authority).await?;
    let address = addresses.first().ok_or(io::ErrorKind::NotFound)?;
    let mut stream = Side::Outside(Mark::BYPASS).tcp(*address).await?;
    let ProbeUrl { authority, path } = url;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: patchcord\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    const LONGEST: usize = 256;
    let mut status = String::new();
    let mut answer = tokio::io::AsyncReadExt::take(BufReader::new(stream), LONGEST as u64);
    answer.read_line(&mut status).await?;
    let mut words = status.split(' ');
    let is_http = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
    Ok(is_http && words.next() == Some("200"))
}
