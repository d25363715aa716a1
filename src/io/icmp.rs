// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reports of hosts and routers about datagrams that did not arrive: ICMP and ICMPv6 "destination
//! unreachable" (RFC 792, RFC 4443).
//!
//! Two raw sockets receive them, beside the UDP sockets: with an error queue there (IP_RECVERR), a
//! host that forges an ICMP message would make the next datagram to any peer fail. The module
//! reports such messages and trusts nothing in them. Belongs to the network namespace of the thread
//! that opens it; `pipeline` calls it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    time::Duration,
};

use patchcord_bridge::ip_protocol::UDP;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tracing::debug;

use super::sys::bpf::{self, Instruction};

/// Why a datagram did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// No route.
    Network,
    /// No host with that address.
    Host,
    /// No socket at that port.
    Port,
    /// A packet filter.
    Prohibited,
}

/// One datagram that did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Undelivered {
    /// Its destination.
    pub to: SocketAddr,
    /// Why it did not arrive.
    pub why: Why,
    /// The host that reports it; `None` for the kernel of this machine.
    pub by: Option<IpAddr>,
}

/// Receives reports about the datagrams from one UDP port of this machine.
#[derive(Debug)]
pub(crate) struct Icmp {
    udp_port: u16,
    ipv4: Option<UdpSocket>,
    ipv6: Option<UdpSocket>,
}

/// Of a message: its headers, and those of the datagram that it is about.
const ROOM: usize = 256;

impl Icmp {
    /// Receives nothing where the kernel refuses, without CAP_NET_RAW for example. Must be called
    /// within a tokio runtime.
    pub(crate) fn open(udp_port: u16) -> Self {
        let open = |domain, protocol, filter: &[Instruction]| {
            let socket = socket(domain, protocol, filter);
            socket
                .inspect_err(|error| debug!(%error, ?domain, "cannot receive ICMP messages"))
                .ok()
        };
        Self {
            udp_port,
            ipv4: open(Domain::IPV4, Protocol::ICMPV4, &unreachable_ipv4()),
            ipv6: open(Domain::IPV6, Protocol::ICMPV6, &unreachable_ipv6()),
        }
    }

    /// The next report, for which it may wait for ever. No report is lost when the future is
    /// dropped.
    pub(crate) async fn next(&self) -> Undelivered {
        let (mut ipv4, mut ipv6) = ([0; ROOM], [0; ROOM]);
        loop {
            let undelivered = tokio::select! {
                (len, _) = receive(self.ipv4.as_ref(), &mut ipv4) => read_ipv4(&ipv4[..len], self.udp_port),
                (len, by) = receive(self.ipv6.as_ref(), &mut ipv6) => read_ipv6(&ipv6[..len], by, self.udp_port),
            };
            if let Some(undelivered) = undelivered {
                return undelivered;
            }
        }
    }
}

/// The standard library treats every datagram socket as UDP.
fn socket(domain: Domain, protocol: Protocol, filter: &[Instruction]) -> io::Result<UdpSocket> {
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    bpf::attach_filter(socket.as_fd(), filter)?;
    UdpSocket::from_std(socket.into())
}

async fn receive(socket: Option<&UdpSocket>, message: &mut [u8]) -> (usize, IpAddr) {
    let Some(socket) = socket else {
        return std::future::pending().await;
    };
    loop {
        match socket.recv_from(message).await {
            Ok((len, from)) => return (len, from.ip()),
            // Out of memory, most likely: an immediate retry would spin.
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// An IPv4 header is in front.
fn unreachable_ipv4() -> [Instruction; 6] {
    [
        bpf::measure_ipv4_header(0),
        bpf::load_u16_further_on(0),
        bpf::keep_bits(0xff00),
        bpf::skip_if(u32::from(UNREACHABLE_IPV4) << 8, 0, 1),
        bpf::answer_with(u32::MAX),
        bpf::answer_with(0),
    ]
}

/// There is no IPv6 header in front.
fn unreachable_ipv6() -> [Instruction; 4] {
    [
        bpf::load_byte(0),
        bpf::skip_if(UNREACHABLE_IPV6.into(), 0, 1),
        bpf::answer_with(u32::MAX),
        bpf::answer_with(0),
    ]
}

const UNREACHABLE_IPV4: u8 = 3;
const UNREACHABLE_IPV6: u8 = 1;
/// Of an ICMP message, in front of the packet that it is about.
const ICMP_HEADER: usize = 8;

fn read_ipv4(packet: &[u8], udp_port: u16) -> Option<Undelivered> {
    let (by, icmp) = (ipv4_at(packet, 12)?, behind_ipv4_header(packet)?);
    let inner = icmp.get(ICMP_HEADER..)?;
    if icmp[0] != UNREACHABLE_IPV4 || *inner.get(9)? != UDP {
        return None;
    }
    let why = match icmp[1] {
        0 | 5 | 6 | 8 | 11 => Why::Network,
        1 | 7 | 12 => Why::Host,
        3 => Why::Port,
        9 | 10 | 13..=15 => Why::Prohibited,
        // Too big, or of another protocol.
        _ => return None,
    };
    let (from, to) = (ipv4_at(inner, 12)?, ipv4_at(inner, 16)?);
    let to_port = destination_port(behind_ipv4_header(inner)?, udp_port)?;
    Some(Undelivered {
        to: SocketAddr::new(to.into(), to_port),
        why,
        by: (by != from).then_some(by.into()),
    })
}

fn read_ipv6(icmp: &[u8], by: IpAddr, udp_port: u16) -> Option<Undelivered> {
    const HEADER: usize = 40;
    let inner = icmp.get(ICMP_HEADER..)?;
    if icmp[0] != UNREACHABLE_IPV6 || *inner.get(6)? != UDP {
        return None;
    }
    let why = match icmp[1] {
        0 => Why::Network,
        1 | 5 | 6 => Why::Prohibited,
        2 | 3 => Why::Host,
        4 => Why::Port,
        _ => return None,
    };
    let (from, to) = (ipv6_at(inner, 8)?, ipv6_at(inner, 24)?);
    let to_port = destination_port(inner.get(HEADER..)?, udp_port)?;
    Some(Undelivered {
        to: SocketAddr::new(to.into(), to_port),
        why,
        by: (by != from).then_some(by),
    })
}

/// `None` if the datagram is not from `udp_port`.
fn destination_port(udp: &[u8], udp_port: u16) -> Option<u16> {
    let (ports, _) = udp.split_first_chunk::<4>()?;
    let [a, b, c, d] = *ports;
    (u16::from_be_bytes([a, b]) == udp_port).then_some(u16::from_be_bytes([c, d]))
}

fn behind_ipv4_header(packet: &[u8]) -> Option<&[u8]> {
    let len = usize::from(packet.first()? & 0xf) * 4;
    packet.get(len..).filter(|rest| rest.len() >= ICMP_HEADER)
}

fn ipv4_at(packet: &[u8], offset: usize) -> Option<Ipv4Addr> {
    let (address, _) = packet.get(offset..)?.split_first_chunk::<4>()?;
    Some((*address).into())
}

fn ipv6_at(packet: &[u8], offset: usize) -> Option<Ipv6Addr> {
    let (address, _) = packet.get(offset..)?.split_first_chunk::<16>()?;
    Some((*address).into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{block_on, in_namespace, ip, wait_for_addresses};

    /// The report about a datagram from a socket at `from` to `to`.
    fn heard(from: &str, to: &str) -> Undelivered {
        block_on(async {
            let sender = std::net::UdpSocket::bind(from).unwrap();
            let icmp = Icmp::open(sender.local_addr().unwrap().port());
            // Of another program: no report for this one.
            let other = std::net::UdpSocket::bind(from).unwrap();
            for socket in [&other, &sender] {
                socket.send_to(b"ping", to).unwrap();
            }
            let limit = Duration::from_secs(20);
            tokio::time::timeout(limit, icmp.next()).await.unwrap()
        })
    }

    #[test]
    fn a_closed_port_and_a_host_that_is_not_there_are_told_apart() {
        in_namespace(|| {
            ip("link set lo up");
            ip("link add veth0 type veth peer name veth1");
            ip("address add 10.0.0.1/24 dev veth0");
            ip("-6 address add fd00::1/64 dev veth0 nodad");
            ip("link set veth0 up");
            ip("link set veth1 up");
            wait_for_addresses();
            for (from, to, why) in [
                ("127.0.0.1:0", "127.0.0.1:9", Why::Port),
                ("[::1]:0", "[::1]:9", Why::Port),
                ("10.0.0.1:0", "10.0.0.2:9", Why::Host),
                ("[fd00::1]:0", "[fd00::2]:9", Why::Host),
            ] {
                let expected = Undelivered {
                    to: to.parse().unwrap(),
                    why,
                    by: None,
                };
                assert_eq!(heard(from, to), expected);
            }
        });
    }

    proptest! {
        #[test]
        fn garbage_is_no_message(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let by = Ipv6Addr::LOCALHOST.into();
            for udp_port in [0, 51830] {
                let _ = (read_ipv4(&bytes, udp_port), read_ipv6(&bytes, by, udp_port));
            }
        }
    }
}
