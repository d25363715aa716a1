// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds the path through the headers of a frame to a transport header, through tunnels as well.
//!
//! For frames that a device of this machine hands over, whose kernel says where the transport
//! header is that it left unfinished. The module parses Ethernet with any number of tags, PPPoE,
//! IPv4, IPv6 with extension headers, UDP and GRE. It need not parse others (MPLS, VXLAN, Geneve,
//! NSH …), since the kernel cuts no packet within headers that would have to change: behind such a
//! header it searches for the IP packet that fills the rest of the frame.

use patchcord_bridge::{
    ether_type,
    ip_protocol::{
        AUTHENTICATION, DESTINATION, FRAGMENT, GRE, HOP_BY_HOP, IPV4 as IPV4_IN_IP,
        IPV6 as IPV6_IN_IP, ROUTING, UDP,
    },
};

use super::field::try_read;

/// Headers with fields that depend on the length of the frame, or its bytes.
const MAX_STEPS: usize = 8;
/// Bytes in which it searches for the next IP packet: an inner Ethernet header with tags and the
/// longest header of Geneve.
const WINDOW: usize = 320;
/// The number of such searches. It bounds the work for a frame that was made to be costly.
const SEARCHES: usize = 4;
const MAX_EXTENSIONS: usize = 16;

/// 802.1Q, 802.1ad and the number that was used for stacked tags before it: a switch does not treat
/// a tag of that kind as one, and the kernel cuts behind it all the same.
const TAGS: [u16; 3] = [
    ether_type::CUSTOMER_TAG,
    ether_type::SERVICE_TAG,
    ether_type::OLD_STACKED_TAG,
];

/// Where the path ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// At the transport header in this position.
    At(usize),
    /// At the first transport header of this protocol.
    First(u8),
}

/// A header on the path, and the offset at which it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Ipv4(usize),
    Ipv6(usize),
    Udp(usize),
    Gre(usize),
    Pppoe(usize),
}

/// The path to a transport header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Encapsulation {
    steps: [Option<Step>; MAX_STEPS],
    count: usize,
    /// The offset at which the transport header begins.
    pub(super) transport: usize,
    /// Its number.
    pub(super) protocol: u8,
    /// Whether the packet may be routed on to another address than its IP header says.
    pub(super) is_routed: bool,
}

impl Encapsulation {
    pub(super) fn find(frame: &[u8], goal: Goal) -> Option<Self> {
        let mut walk = Walk {
            frame,
            goal,
            searches: SEARCHES,
            headers: Self {
                steps: [None; MAX_STEPS],
                count: 0,
                transport: 0,
                protocol: 0,
                is_routed: false,
            },
        };
        walk.ethernet(0)?;
        Some(walk.headers)
    }

    /// From the outside in.
    pub(super) fn steps(&self) -> impl DoubleEndedIterator<Item = Step> {
        self.steps[..self.count].iter().copied().flatten()
    }

    /// The IP header in front of the transport header.
    pub(super) fn last_ip(&self) -> Option<Step> {
        let is_ip = |step: &Step| matches!(step, Step::Ipv4(_) | Step::Ipv6(_));
        self.steps().rfind(is_ip)
    }
}

struct Walk<'a> {
    frame: &'a [u8],
    goal: Goal,
    searches: usize,
    headers: Encapsulation,
}

impl Walk<'_> {
    fn byte(&self, at: usize) -> Option<u8> {
        self.frame.get(at).copied()
    }

    fn word(&self, at: usize) -> Option<u16> {
        try_read(self.frame, at)
    }

    fn note(&mut self, step: Step) -> Option<()> {
        let Encapsulation { steps, count, .. } = &mut self.headers;
        *steps.get_mut(*count)? = Some(step);
        *count += 1;
        Some(())
    }

    fn ethernet(&mut self, at: usize) -> Option<()> {
        let mut at = at + 12;
        while TAGS.contains(&self.word(at)?) {
            at += 4;
        }
        self.behind_ethertype(self.word(at)?, at + 2)
    }

    fn behind_ethertype(&mut self, ethertype: u16, at: usize) -> Option<()> {
        match ethertype {
            ether_type::IPV4 | ether_type::IPV6 => self.ip(at),
            ether_type::BRIDGED_ETHERNET => self.ethernet(at),
            ether_type::PPPOE_SESSION => {
                self.note(Step::Pppoe(at))?;
                self.ip(at + 8)
            }
            _ => self.search(at),
        }
    }

    fn ip(&mut self, at: usize) -> Option<()> {
        match self.byte(at)? >> 4 {
            4 => self.ipv4(at),
            6 => self.ipv6(at),
            _ => None,
        }
    }

    fn ipv4(&mut self, at: usize) -> Option<()> {
        let header = usize::from(self.byte(at)? & 15) * 4;
        if header < 20 {
            return None;
        }
        self.note(Step::Ipv4(at))?;
        self.headers.is_routed = header > 20;
        self.behind_ip(self.byte(at + 9)?, at + header)
    }

    fn ipv6(&mut self, at: usize) -> Option<()> {
        self.note(Step::Ipv6(at))?;
        self.headers.is_routed = false;
        let (mut protocol, mut at) = (self.byte(at + 6)?, at + 40);
        for _ in 0..MAX_EXTENSIONS {
            let units = || self.byte(at + 1).map(usize::from);
            let len = match protocol {
                HOP_BY_HOP | ROUTING | DESTINATION => (units()? + 1) * 8,
                AUTHENTICATION => (units()? + 2) * 4,
                FRAGMENT => 8,
                _ => return self.behind_ip(protocol, at),
            };
            self.headers.is_routed |= protocol == ROUTING;
            protocol = self.byte(at)?;
            at += len;
        }
        None
    }

    fn behind_ip(&mut self, protocol: u8, at: usize) -> Option<()> {
        let is_there = match self.goal {
            Goal::At(goal) if at > goal => return None,
            Goal::At(goal) => at == goal,
            Goal::First(wanted) => protocol == wanted,
        };
        if is_there {
            self.headers.transport = at;
            self.headers.protocol = protocol;
            return Some(());
        }
        match protocol {
            IPV4_IN_IP | IPV6_IN_IP => self.ip(at),
            GRE => self.gre(at),
            UDP => {
                self.note(Step::Udp(at))?;
                self.search(at + 8)
            }
            _ => self.search(at),
        }
    }

    fn gre(&mut self, at: usize) -> Option<()> {
        // RFC 2784 and 2890: a checksum, a key and a sequence number, four bytes each.
        const FIELDS: [u16; 3] = [0x8000, 0x2000, 0x1000];
        let flags = self.word(at)?;
        let fields = FIELDS.iter().filter(|&field| flags & field != 0).count();
        self.note(Step::Gre(at))?;
        self.behind_ethertype(self.word(at + 2)?, at + 4 + 4 * fields)
    }

    /// Continues with the first IP packet that fills the rest of the frame and leads to the goal.
    fn search(&mut self, from: usize) -> Option<()> {
        self.searches = self.searches.checked_sub(1)?;
        for at in from..from + WINDOW {
            let count = self.headers.count;
            if self.fills(at)? && self.ip(at).is_some() {
                return Some(());
            }
            self.headers.count = count;
        }
        None
    }

    /// `None` behind the end.
    fn fills(&self, at: usize) -> Option<bool> {
        let rest = self.frame.len().checked_sub(at + 20)? + 20;
        let is_whole =
            |len: Option<u16>, more: usize| len.is_some_and(|len| usize::from(len) + more == rest);
        Some(match self.byte(at)? >> 4 {
            4 => is_whole(self.word(at + 2), 0),
            6 => is_whole(self.word(at + 4), 40),
            _ => false,
        })
    }
}
