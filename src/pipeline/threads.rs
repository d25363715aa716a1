// SPDX-License-Identifier: MIT OR Apache-2.0
//! The data threads of an engine: which threads each core plan has, and how they are connected.

use std::{
    io,
    os::fd::AsFd,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::mpsc;

use super::{
    dispatch::{self, TrainSink, UdpTx},
    express::{Ahead, Order, Turns},
    inbound::{Decryptor, Delivery, Inbound, RxBatch, RxSink},
    lanes::{Shard, ShardQueues},
    outbound::Outbound,
    plan::{CorePlan, EXPRESS_IN, EXPRESS_OUT, numbered},
    shared::{InjectedFrames, Shared},
    unauthenticated::Unauthenticated,
    view::{EngineEvent, Stopped},
    watchdog::Heartbeat,
};
use crate::{
    io::{
        set_thread_niceness, set_thread_slice,
        tap::TapQueue,
        udp::{Senders, Spread, UdpSocket},
    },
    proto::train::Train,
    queue,
    wire::Lane,
};

/// How long a thread of the express lane may run before others get the core that need it as much: so
/// the scheduler lets it begin at once (Linux 6.12; older kernels have one slice for all).
const EXPRESS_SLICE: Duration = Duration::from_micros(100);

/// Spawns the threads of an engine.
pub(super) struct Threads<'a> {
    pub(super) plan: &'a CorePlan,
    pub(super) shared: &'a Arc<Shared>,
    pub(super) events: &'a mpsc::Sender<EngineEvent>,
    pub(super) peers: usize,
    /// A socket for each of them, if they have any.
    pub(super) senders: Arc<[UdpSocket]>,
    /// The sockets for handshakes and for unauthenticated datagrams.
    pub(super) gate: Option<[UdpSocket; 2]>,
    /// For the first outbound thread.
    pub(super) injected: Option<InjectedFrames>,
    pub(super) is_hub: bool,
    pub(super) spawned: Vec<JoinHandle<()>>,
}

impl Threads<'_> {
    /// Spawns all of them. If that fails, those that were spawned before end.
    pub(super) fn spawn_all(
        mut self,
        queues: &[Arc<TapQueue>],
        sockets: Vec<UdpSocket>,
    ) -> io::Result<Vec<JoinHandle<()>>> {
        let result = match self.plan.workers {
            None => spawn_inline(&mut self, queues, sockets),
            Some(workers) => spawn_staged(&mut self, workers, &queues[0], &sockets[0]),
        };
        if result.is_err() {
            self.shared.stop.wake();
        }
        result.map(|()| self.spawned)
    }

    /// The path from the inbound thread in this position to other peers, in a hub.
    fn onward(&self, place: usize, socket: &UdpSocket) -> io::Result<Option<(Lane, TrainSink)>> {
        if !self.is_hub {
            return Ok(None);
        }
        let lane = match place == self.plan.receivers.bulk {
            true => Lane::EXPRESS_ONWARD,
            false => self.plan.lane(self.plan.lanes + place),
        };
        let sink = TrainSink::inline(self.udp_tx(socket)?, self.peers);
        Ok(Some((lane, sink)))
    }

    /// The part of a thread in the order between lanes, given the express queue, if there is one.
    fn order<T, Q: AsFd>(
        &self,
        turns: &Arc<Turns>,
        is_express: bool,
        queue: Option<&T>,
        clone: impl Fn(&T) -> io::Result<Q>,
    ) -> io::Result<Order<Q>> {
        let stop = self.shared.stop.clone();
        Ok(match queue {
            None => Order::None,
            Some(_) if is_express => Order::Express(turns.clone()),
            Some(queue) => Order::Behind(Ahead::new(clone(queue)?, turns.clone(), stop)),
        })
    }

    /// A thread of the express lane, which has priority all the time: it has little to do.
    fn spawn_express(
        &mut self,
        name: &str,
        work: impl FnOnce(i32, &Heartbeat) -> Stopped + Send + 'static,
    ) -> io::Result<()> {
        let nice = self.plan.nice;
        self.spawn(name, move |heartbeat| {
            if let Err(error) = set_thread_slice(nice, EXPRESS_SLICE) {
                tracing::debug!(%error, nice, "cannot raise the priority of a thread of the express lane");
            }
            work(nice, heartbeat)
        })
    }

    /// The `UdpTx` of a thread whose lane has `socket`.
    fn udp_tx(&self, socket: &UdpSocket) -> io::Result<UdpTx> {
        let senders = Senders::new(socket.try_clone()?, self.senders.clone());
        Ok(UdpTx::new(self.shared.clone(), senders))
    }

    /// A thread that ends when its queue does, which is when the thread before it has ended.
    fn spawn_worker(
        &mut self,
        name: &str,
        work: impl FnOnce(&Heartbeat) + Send + 'static,
    ) -> io::Result<()> {
        self.spawn_first(name, move |heartbeat| {
            work(heartbeat);
            Stopped::Asked
        })
    }

    /// A thread that has priority over the programs of the machine, if that is allowed.
    fn spawn_first(
        &mut self,
        name: &str,
        work: impl FnOnce(&Heartbeat) -> Stopped + Send + 'static,
    ) -> io::Result<()> {
        let nice = self.plan.nice;
        self.spawn(name, move |heartbeat| {
            if let Err(error) = set_thread_niceness(nice) {
                tracing::debug!(%error, nice, "cannot raise the priority of a data thread");
            }
            work(heartbeat)
        })
    }

    /// The engine's owner is told of the thread's end, even if it panics.
    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce(&Heartbeat) -> Stopped + Send + 'static,
    ) -> io::Result<()> {
        let core = self.plan.core_of(name);
        let events = self.events.clone();
        let heartbeat = self.shared.watchdog.heartbeat(name);
        let its_name = name.to_owned();
        let span = tracing::Span::current();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let _entered = span.entered();
                if let Some(core) = core
                    && !core_affinity::set_for_current(core)
                {
                    tracing::warn!(core = core.id, "cannot pin a thread to its core");
                }
                let work = AssertUnwindSafe(|| work(&heartbeat));
                let stopped = panic::catch_unwind(work)
                    .unwrap_or_else(|payload| Stopped::of_panic(&its_name, &*payload));
                heartbeat.rest();
                if !matches!(stopped, Stopped::Asked) {
                    // Waits for the owner, and fails when that is gone.
                    let _ = events.blocking_send(EngineEvent::Broken(stopped));
                }
            })?;
        self.spawned.push(thread);
        Ok(())
    }
}

fn spawn_inline(
    threads: &mut Threads<'_>,
    queues: &[Arc<TapQueue>],
    sockets: Vec<UdpSocket>,
) -> io::Result<()> {
    let (shared, plan) = (threads.shared, threads.plan);
    let turns = Arc::<Turns>::default();
    for (place, queue) in queues.iter().enumerate() {
        let udp_tx = threads.udp_tx(&sockets[place % sockets.len()])?;
        let sink = TrainSink::inline(udp_tx, threads.peers);
        let is_express = place == plan.lanes;
        let lane = match is_express {
            true => Lane::EXPRESS,
            false => plan.lane(place),
        };
        let (queue, injected) = (queue.clone(), threads.injected.take());
        let outbound = Outbound::new(shared.clone(), queue, injected, lane, sink);
        let ahead = |queue: &Arc<TapQueue>| Ok(queue.clone());
        let outbound = outbound.with_order(threads.order(
            &turns,
            is_express,
            queues.get(plan.lanes),
            ahead,
        )?);
        if is_express {
            threads.spawn_express(EXPRESS_OUT, move |nice, heartbeat| {
                outbound.run(nice, heartbeat)
            })?;
        } else {
            let name = numbered("outbound", place, plan.lanes);
            let nice = plan.nice;
            threads.spawn(&name, move |heartbeat| outbound.run(nice, heartbeat))?;
        }
    }

    let receivers = plan.receivers;
    let all_queues = if receivers != Spread::ONE || threads.gate.is_some() {
        ShardQueues::between(receivers, || shared.new_drops())?
    } else {
        Vec::new()
    };
    if let (Some(sockets), Some(shard_queues)) = (threads.gate.take(), all_queues.first()) {
        let sender = shard_queues.sender(shared.new_drops());
        let unauthenticated = Unauthenticated::new(shared.clone(), sockets, sender);
        threads.spawn("unauth-rx", move |heartbeat| unauthenticated.run(heartbeat))?;
    }
    let mut all_queues = all_queues.into_iter();
    let turns = Arc::<Turns>::default();
    let express = sockets
        .get(receivers.bulk)
        .map(UdpSocket::try_clone)
        .transpose()?;
    for (place, (socket, queue)) in sockets.into_iter().zip(queues).enumerate() {
        let is_express = place == receivers.bulk;
        let order = threads.order(&turns, is_express, express.as_ref(), UdpSocket::try_clone)?;
        let shard_queues = all_queues.next();
        let shard = shard_queues.as_ref().map_or(Shard::ALL, ShardQueues::shard);
        let onward = threads.onward(place, &socket)?;
        let sink = RxSink::Inline {
            rx_batch: Box::default(),
            decryptor: Decryptor::new(shared.clone(), shard),
            delivery: Box::new(Delivery::new(shared.clone(), queue.clone(), onward)),
        };
        let inbound = Inbound::new(shared.clone(), socket, shard_queues, sink).with_order(order);
        if is_express {
            threads.spawn_express(EXPRESS_IN, move |nice, heartbeat| {
                inbound.run(nice, heartbeat)
            })?;
        } else {
            let name = numbered("inbound", place, receivers.bulk);
            let nice = plan.nice;
            threads.spawn(&name, move |heartbeat| inbound.run(nice, heartbeat))?;
        }
    }
    Ok(())
}

fn spawn_staged(
    threads: &mut Threads<'_>,
    workers: usize,
    queue: &Arc<TapQueue>,
    socket: &UdpSocket,
) -> io::Result<()> {
    let shared = threads.shared;
    let (dealer, sealers, sealed) = queue::ordered::<Train>(workers);
    let sink = TrainSink::Staged(dealer);
    let outbound = Outbound::new(
        shared.clone(),
        queue.clone(),
        threads.injected.take(),
        Lane::FIRST_DATA,
        sink,
    );
    let nice = threads.plan.nice;
    threads.spawn("tap-rx", move |heartbeat| outbound.run(nice, heartbeat))?;
    for (number, worker) in (1..).zip(sealers) {
        let shared = shared.clone();
        let seal = move |heartbeat: &Heartbeat| dispatch::seal(shared, worker, heartbeat);
        threads.spawn_worker(&format!("seal-{number}"), seal)?;
    }
    let udp_tx = threads.udp_tx(socket)?;
    threads.spawn_worker("udp-tx", |heartbeat| udp_tx.run(sealed, heartbeat))?;

    let (dealer, decryptors, opened) = queue::ordered::<RxBatch>(workers);
    let receiver = socket.try_clone()?;
    let inbound = Inbound::new(shared.clone(), receiver, None, RxSink::Staged(dealer));
    threads.spawn_first("udp-rx", move |heartbeat| inbound.run(nice, heartbeat))?;
    for (number, worker) in (1..).zip(decryptors) {
        let decryptor = Decryptor::new(shared.clone(), Shard::ALL);
        let open = move |heartbeat: &Heartbeat| decryptor.run(worker, heartbeat);
        threads.spawn_worker(&format!("open-{number}"), open)?;
    }
    let onward = threads.onward(0, socket)?;
    let delivery = Delivery::new(shared.clone(), queue.clone(), onward);
    threads.spawn_worker("tap-tx", |heartbeat| delivery.run(opened, heartbeat))
}
