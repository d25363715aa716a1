// SPDX-License-Identifier: MIT OR Apache-2.0
//! Step 1: batches of datagrams off a socket, and the thread that receives them.

use std::{os::fd::AsFd, sync::Arc};

use super::{
    decrypt::{Decryptor, RxBatch},
    deliver::{Delivery, patience_for},
};
use crate::{
    io::{udp::UdpSocket, waker},
    pipeline::{
        error_backoff::ErrorBackoff,
        express::Order,
        lanes::ShardQueues,
        recovery::Recovery,
        shared::{IDLE, Shared},
        thread_priority::ThreadPriority,
        view::Stopped,
        watchdog::Heartbeat,
    },
    queue::Dealer,
};

/// The destination of received batches.
pub(in crate::pipeline) enum RxSink {
    /// Decrypted and delivered in this thread.
    Inline {
        rx_batch: Box<RxBatch>,
        decryptor: Decryptor,
        delivery: Box<Delivery>,
    },
    /// Handed to the workers.
    Staged(Dealer<RxBatch>),
}

impl RxSink {
    /// Whether the socket may have had more than the last batch.
    fn may_have_left_some(&self) -> bool {
        match self {
            Self::Inline { rx_batch, .. } => rx_batch.batch.is_full(),
            Self::Staged(_) => true,
        }
    }
}

/// The first step; with an inline sink, all six.
pub(in crate::pipeline) struct Inbound {
    shared: Arc<Shared>,
    socket: UdpSocket,
    /// None if no other thread receives.
    shard_queues: Option<ShardQueues>,
    order: Order<UdpSocket>,
    sink: RxSink,
}

impl Inbound {
    pub(in crate::pipeline) fn new(
        shared: Arc<Shared>,
        socket: UdpSocket,
        shard_queues: Option<ShardQueues>,
        sink: RxSink,
    ) -> Self {
        Self {
            shared,
            socket,
            shard_queues,
            order: Order::None,
            sink,
        }
    }

    /// The same with this part in the order between lanes.
    pub(in crate::pipeline) fn with_order(mut self, order: Order<UdpSocket>) -> Self {
        self.order = order;
        self
    }

    /// Works until the tunnel stops.
    pub(in crate::pipeline) fn run(mut self, nice: i32, heartbeat: &Heartbeat) -> Stopped {
        let mut patience = Some(IDLE);
        let mut priority = ThreadPriority::of_this_thread(self.shared.clone(), nice);
        let mut recovery = Recovery::new(self.shared.clone());
        let mut backoff = ErrorBackoff::default();
        loop {
            heartbeat.rest();
            let (socket, stop) = (self.socket.as_fd(), self.shared.stop.as_fd());
            let ready = match &self.shard_queues {
                None => waker::wait(&[socket, stop], patience),
                Some(shard_queues) => shard_queues.wait(socket, stop, patience),
            };
            heartbeat.work();
            let outcome = match ready {
                Ok(ready) if ready.is_readable(1) => return Stopped::Asked,
                Ok(ready) if ready.is_timeout() => Ok(self.give_up_waiting(&mut recovery)),
                Ok(_) => {
                    self.order.begin();
                    let received = self.receive_batch(&mut priority, &mut recovery);
                    self.order
                        .end(received.is_ok() && !self.sink.may_have_left_some());
                    received
                }
                Err(error) => Err(error),
            };
            match outcome {
                Ok(is_waiting) => {
                    backoff.reset();
                    patience = Some(patience_for(is_waiting));
                }
                Err(error) => {
                    if let Err(stopped) = backoff.back_off(error, &self.shared) {
                        return stopped;
                    }
                }
            }
        }
    }

    /// Nothing arrived for a while.
    fn give_up_waiting(&mut self, recovery: &mut Recovery) -> bool {
        match &mut self.sink {
            RxSink::Inline { delivery, .. } => delivery.forward_incomplete(recovery),
            // The thread that collects the batches does this.
            RxSink::Staged(_) => false,
        }
    }

    /// True if frames wait for missing pieces.
    fn receive_batch(
        &mut self,
        priority: &mut ThreadPriority,
        recovery: &mut Recovery,
    ) -> std::io::Result<bool> {
        match &mut self.sink {
            RxSink::Inline {
                rx_batch,
                decryptor,
                delivery,
            } => {
                if let Some(shard_queues) = &self.shard_queues
                    && shard_queues.receive(&mut rx_batch.batch)
                {
                    self.order.let_pass();
                    delivery.open_and_deliver(decryptor, rx_batch, None, recovery);
                }
                self.socket.recv_batch(&mut rx_batch.batch)?;
                if let Some(shard_queues) = &self.shard_queues {
                    shard_queues.send_others(&mut rx_batch.batch);
                }
                if rx_batch.batch.has_some() {
                    self.order.let_pass();
                }
                let is_full = Some(rx_batch.batch.is_full());
                let is_waiting = delivery.open_and_deliver(decryptor, rx_batch, is_full, recovery);
                if rx_batch.batch.has_some() {
                    priority.observe(std::mem::take(&mut delivery.has_bulk));
                }
                Ok(is_waiting)
            }
            RxSink::Staged(dealer) => {
                let Some(mut rx_batch) = dealer.empty() else {
                    return Ok(false);
                };
                let received = self.socket.recv_batch(&mut rx_batch.batch);
                // Also an empty batch, as batches are passed around. Fails only when the workers
                // are gone, and then the tunnel is being stopped.
                let _ = dealer.deal(rx_batch);
                received.map(|_| false)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use nix::errno::Errno;

    use super::*;
    use crate::{
        io::tap::{Backend, Tap, TapOptions},
        pipeline::{clock, lanes::Shard},
        testing::{assert_all_refused, in_namespace, ip, refuse_to_receive},
    };

    /// Works on a thread of its own, in this namespace, where the first attempts to receive fail.
    fn receive_after(codes: &[i32], shared: &Arc<Shared>) -> (Stopped, u64) {
        let options = TapOptions {
            name: "pc-rx".to_owned(),
            backend: Backend::Vnet,
            express: false,
        };
        let (_, mut queues) = Tap::open(&options, 1).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = socket.local_addr().unwrap();
        let sink = RxSink::Inline {
            rx_batch: Box::default(),
            decryptor: Decryptor::new(shared.clone(), Shard::ALL),
            delivery: Box::new(Delivery::new(
                shared.clone(),
                Arc::new(queues.remove(0)),
                None,
            )),
        };
        let inbound = Inbound::new(shared.clone(), socket, None, sink);
        let caller = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        caller.send_train(to, &[0xff; 40], 40).unwrap();
        let received = || {
            let drops = shared.total_drops().into_iter();
            drops.map(|(_, count)| count).sum::<u64>()
        };
        let (ended, end) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                refuse_to_receive(codes);
                let stopped = inbound.run(0, &Heartbeat::default());
                assert_all_refused();
                ended.send(stopped).unwrap();
            });
            let deadline = clock::now() + Duration::from_secs(30);
            let stopped = loop {
                let stopped = end.recv_timeout(Duration::from_millis(5));
                if received() > 0 || stopped.is_ok() {
                    shared.stop.wake();
                    break stopped.unwrap_or_else(|_| end.recv().unwrap());
                }
                assert!(clock::now() < deadline, "it goes on or ends");
            };
            (stopped, received())
        })
    }

    #[test]
    fn a_passing_error_does_not_end_a_thread() {
        in_namespace(|| {
            ip("link set lo up");
            // Some of them have no handling of their own.
            let codes = [Errno::ENOMEM, Errno::ENFILE, Errno::EIO, Errno::EREMOTEIO];
            let codes = codes.map(|code| code as i32);
            let (stopped, received) = receive_after(&codes, &Shared::alone());
            assert!(matches!(stopped, Stopped::Asked), "{stopped:?}");
            assert_eq!(received, 1);
        });
    }

    #[test]
    fn a_mistake_of_ours_ends_a_thread_and_is_told() {
        in_namespace(|| {
            ip("link set lo up");
            let (stopped, received) = receive_after(&[Errno::EBADF as i32], &Shared::alone());
            assert!(matches!(stopped, Stopped::Failed(_)), "{stopped:?}");
            assert_eq!(received, 0);
        });
    }
}
