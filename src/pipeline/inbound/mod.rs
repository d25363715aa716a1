// SPDX-License-Identifier: MIT OR Apache-2.0
//! Underlay to overlay: from datagrams off the wire to frames written to the TAP.
//!
//! 1. receive a batch   `UdpSocket::recv_batch` (GRO)        in order
//!    hand other lanes' datagrams to their threads          `ShardQueues::send_others`
//! 2. parse and open    `Decryptor::open`                    any order (a worker, when staged)
//! 3. accept once       `ReplayWindow::accept`               in order again
//! 4. unpack            `Chunks`, `Reassembly::add`          in order
//! 5. choose the port   `Switch::forward`                    in order
//! 6. write             `Merger::write`, `TapQueue::write`   in order
//!    or, in a hub, send to another peer: see `Dispatch`
//!
//! The files are in this order: [`receive`], [`decrypt`], [`deliver`] with [`unpack`],
//! [`tap_writer`] and [`merger`]. At step 2, handshake messages with a valid mac1 go to the control
//! thread; at step 4, control messages do.

mod decrypt;
mod deliver;
mod merger;
mod receive;
mod tap_writer;
mod unpack;

pub(super) use self::{
    decrypt::{Decryptor, RxBatch},
    deliver::Delivery,
    receive::{Inbound, RxSink},
};
