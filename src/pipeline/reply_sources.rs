// SPDX-License-Identifier: MIT OR Apache-2.0
//! The source of datagrams to each peer: the local address to which the peer sends, and the
//! interface on which its datagrams arrive. A packet filter on the path, or a router that knows
//! only one of two uplinks, lets nothing else through.
//!
//! Nothing is kept about a peer for which the kernel chooses this source by itself, which is nearly
//! always so: then the kernel continues to choose, and follows changes of routes at once.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tracing::warn;

use crate::{io::mark::Mark, machine::reply_source::ReplySourceLookup, wire::local::Local};

/// How many sources the kernel is asked about in a second; anyone can send an initiation.
const QUESTIONS: u32 = 64;
/// Answers of the kernel that are cached.
const ANSWERS: usize = 256;

pub(super) struct ReplySources {
    kernel: Option<ReplySourceLookup>,
    /// The source to tell the kernel, by the remote address and the local one to which it sent.
    answers: HashMap<(IpAddr, Local), Option<Local>>,
    second: Instant,
    asked: u32,
    /// Sources of datagrams to peers that were heard.
    kept: HashMap<SocketAddr, Kept>,
    /// The destination of the answer in progress, authentic or not.
    answering: Option<(SocketAddr, Local)>,
}

#[derive(Clone, Copy)]
struct Kept {
    local: Local,
    told: Option<Local>,
}

impl ReplySources {
    pub(super) fn new(now: Instant) -> Self {
        let kernel = ReplySourceLookup::open(Mark::BYPASS)
            .inspect_err(|error| {
                warn!(%error, "cannot look up source addresses: answers leave by the interface that the routes choose");
            })
            .ok();
        Self {
            kernel,
            answers: HashMap::new(),
            second: now,
            asked: 0,
            kept: HashMap::new(),
            answering: None,
        }
    }

    /// A handshake message arrived. Only the answer to it uses this source: its sender is not known
    /// yet.
    pub(super) fn begin_answer(&mut self, now: Instant, from: SocketAddr, local: Option<Local>) {
        let told = local.and_then(|local| self.told(now, from, local));
        self.answering = told.map(|told| (from, told));
    }

    pub(super) fn end_answer(&mut self) {
        self.answering = None;
    }

    /// Whether the last datagram from there arrived at the same local address and interface.
    pub(super) fn has(&self, from: SocketAddr, local: Option<Local>) -> bool {
        local.is_none_or(|local| self.kept.get(&from).is_some_and(|kept| kept.local == local))
    }

    /// A peer was heard from there. True if the source of datagrams to it has changed.
    pub(super) fn handle_heard(
        &mut self,
        now: Instant,
        from: SocketAddr,
        local: Option<Local>,
    ) -> bool {
        let Some(local) = local else { return false };
        let told = self.told(now, from, local);
        let former = self.kept.insert(from, Kept { local, told });
        former.and_then(|kept| kept.told) != told
    }

    /// The source of a datagram to `to`; `None`: the kernel chooses.
    pub(super) fn to(&self, to: SocketAddr) -> Option<Local> {
        match self.answering {
            Some((from, told)) if from == to => Some(told),
            _ => self.kept(to),
        }
    }

    /// The same for frames, which go to peers that were heard.
    pub(super) fn kept(&self, to: SocketAddr) -> Option<Local> {
        self.kept.get(&to)?.told
    }

    /// Until the peer is heard again, the kernel chooses. True if it did not before.
    pub(super) fn forget(&mut self, to: SocketAddr) -> bool {
        self.answers.clear();
        let former = self.kept.remove(&to);
        former.is_some_and(|kept| kept.told.is_some())
    }

    /// Keeps the entries of these peers.
    pub(super) fn retain(&mut self, endpoints: &HashSet<SocketAddr>) {
        self.kept.retain(|remote, _| endpoints.contains(remote));
    }

    pub(super) fn has_any(&self) -> bool {
        !self.kept.is_empty()
    }

    fn told(&mut self, now: Instant, from: SocketAddr, local: Local) -> Option<Local> {
        if let Some(&answer) = self.answers.get(&(from.ip(), local)) {
            return answer;
        }
        if now >= self.second + Duration::from_secs(1) {
            (self.second, self.asked) = (now, 0);
        }
        let by_routes = Local {
            interface: 0,
            ..local
        };
        if self.asked == QUESTIONS {
            return Some(by_routes);
        }
        self.asked += 1;
        let Some(kernel) = &mut self.kernel else {
            return Some(by_routes);
        };
        let answer = kernel.to(from, local);
        if self.answers.len() == ANSWERS {
            self.answers.clear();
        }
        self.answers.insert((from.ip(), local), answer);
        answer
    }
}
