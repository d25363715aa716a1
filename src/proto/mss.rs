// SPDX-License-Identifier: MIT OR Apache-2.0
//! The maximum segment size that a host announces in the SYN of a TCP connection (RFC 9293, section
//! 3.7.1), lowered to what one datagram carries.
//!
//! A full frame of a 1500-byte LAN takes two datagrams of a 1500-byte path, the second a small one. A
//! network that counts packets, as short queues do, and one that loses them, treats a host with
//! smaller segments better: each is one datagram.

use patchcord_bridge::{Headers, checksum, ether_type, ip_protocol::TCP};

use super::{
    field::{put, read, try_read},
    packet::{self, TCP_CHECKSUM},
    superframe::MAX_HEADERS,
};
use crate::wire::{DATA_OVERHEAD, chunk::PARTIAL_CHECKSUM_HEADER_LEN};

/// Length of a TCP header without options.
const TCP_HEADER: usize = 20;
const SYN: u8 = 2;
/// Kinds of TCP options.
const END: u8 = 0;
const PADDING: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

/// An announcement of segments that are too large for one datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TooLarge {
    /// The TCP header.
    transport: usize,
    /// The announced size.
    at: usize,
    /// The largest size that fits.
    fitting: u16,
}

/// Finds the announcement in a frame, of which at least the headers are given, if segments of that
/// size are too large for datagrams of `datagram_len` bytes. They may have `tags` bytes of tags more
/// than this frame.
pub(crate) fn find(head: &[u8], datagram_len: usize, tags: usize) -> Option<TooLarge> {
    let headers = Headers::parse(head).ok()?;
    let network = headers.network()?;
    // Behind the packet, a short frame is padded.
    let end = match network.ether_type {
        ether_type::IPV4 => network.at + usize::from(try_read(head, network.at + 2)?),
        ether_type::IPV6 => network.at + 40 + usize::from(try_read(head, network.at + 4)?),
        _ => return None,
    };
    let found = packet::transport(&headers, end)?;
    let (protocol, transport) = (found.protocol, found.at);
    if protocol != TCP || head.get(transport + 13)? & SYN == 0 {
        return None;
    }
    let options = transport + TCP_HEADER..transport + usize::from(head[transport + 12] >> 4) * 4;
    if options.end > end.min(MAX_HEADERS) {
        return None;
    }
    let at = options.start + maximum_segment_size(head.get(options)?)?;
    let network_header = if found.is_ipv6 { 40 } else { 20 };
    let beside = DATA_OVERHEAD + PARTIAL_CHECKSUM_HEADER_LEN + network.at + tags;
    let fitting = datagram_len.checked_sub(beside + network_header + TCP_HEADER)?;
    let fitting = u16::try_from(fitting).ok().filter(|&size| size > 0)?;
    (read(head, at) > fitting).then_some(TooLarge {
        transport,
        at,
        fitting,
    })
}

/// The position of the value in these options.
fn maximum_segment_size(options: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += match *options.get(at)? {
            END => return None,
            PADDING => 1,
            MAXIMUM_SEGMENT_SIZE if options.get(at + 1..at + 4)?[0] == 4 => return Some(at + 2),
            _ => usize::from(*options.get(at + 1)?).max(2),
        };
    }
}

impl TooLarge {
    /// Announces the largest size that fits instead. A partial checksum does not cover it.
    pub(crate) fn lower(self, frame: &mut [u8], has_partial_checksum: bool) {
        let before = read(frame, self.at);
        put(frame, self.at, self.fitting);
        if has_partial_checksum {
            return;
        }
        // RFC 1624, equation 3. Across two words of the sum, the bytes change places.
        let is_across = (self.at - self.transport) % 2 == 1;
        let word = |value: u16| u64::from(if is_across { value.swap_bytes() } else { value });
        let at = self.transport + usize::from(TCP_CHECKSUM);
        let sum = u64::from(!read(frame, at)) + word(!before) + word(self.fitting);
        put(frame, at, checksum::finish(sum));
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{
        EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, SingleVlanHeader, TcpHeader,
        VlanId, VlanPcp,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::{
        proto::{
            testing::{DESTINATION, LANE, looped_session},
            train::{Outgoing, PendingOffload, Pushed, Train},
        },
        wire::offload::{Checksum, Offload},
    };

    /// A TCP packet in a frame.
    #[derive(Clone, Debug)]
    struct Segment {
        is_ipv6: bool,
        is_tagged: bool,
        syn: bool,
        options: Vec<u8>,
        payload: usize,
    }

    impl Segment {
        fn network(&self) -> usize {
            14 + 4 * usize::from(self.is_tagged)
        }

        fn transport(&self) -> usize {
            self.network() + if self.is_ipv6 { 40 } else { 20 }
        }

        /// With a whole checksum.
        fn frame(&self) -> Vec<u8> {
            let mut tcp = TcpHeader::new(1000, 2000, 77, 8192);
            tcp.syn = self.syn;
            tcp.set_options_raw(&self.options).unwrap();
            let payload = vec![0x5a; self.payload];
            let len = tcp.header_len() + payload.len();
            let ether_type = match self.is_ipv6 {
                true => EtherType::IPV6,
                false => EtherType::IPV4,
            };
            let mut frame = Vec::new();
            let mut ethernet = Ethernet2Header {
                source: [2; 6],
                destination: [4; 6],
                ether_type,
            };
            if self.is_tagged {
                ethernet.ether_type = EtherType::VLAN_TAGGED_FRAME;
            }
            ethernet.write(&mut frame).unwrap();
            if self.is_tagged {
                let tag = SingleVlanHeader {
                    pcp: VlanPcp::ZERO,
                    drop_eligible_indicator: false,
                    vlan_id: VlanId::try_new(7).unwrap(),
                    ether_type,
                };
                tag.write(&mut frame).unwrap();
            }
            if self.is_ipv6 {
                let ip = Ipv6Header {
                    payload_length: len as u16,
                    next_header: IpNumber::TCP,
                    hop_limit: 64,
                    source: [1; 16],
                    destination: [2; 16],
                    ..Default::default()
                };
                tcp.checksum = tcp.calc_checksum_ipv6(&ip, &payload).unwrap();
                ip.write(&mut frame).unwrap();
            } else {
                let ip =
                    Ipv4Header::new(len as u16, 64, IpNumber::TCP, [10, 0, 0, 1], [10, 0, 0, 2]);
                let ip = ip.unwrap();
                tcp.checksum = tcp.calc_checksum_ipv4(&ip, &payload).unwrap();
                ip.write(&mut frame).unwrap();
            }
            tcp.write(&mut frame).unwrap();
            frame.extend(payload);
            frame
        }
    }

    /// The options with this size, at any place in the words of the sum.
    fn announcing(size: u16, padding: usize) -> Vec<u8> {
        let [high, low] = size.to_be_bytes();
        let mut options = vec![PADDING; padding];
        options.extend([MAXIMUM_SEGMENT_SIZE, 4, high, low, 3, 3, 7]);
        options.resize(options.len().next_multiple_of(4), END);
        options
    }

    /// Datagrams that a frame with an open checksum takes.
    fn datagrams(frame: &[u8], transport: usize, datagram_len: usize) -> usize {
        let checksum = Checksum {
            start: transport as u16,
            offset: TCP_CHECKSUM,
        };
        let pending = PendingOffload {
            offload: Offload {
                checksum,
                segmentation: None,
            },
            headers_len: transport + TCP_HEADER,
        };
        let mut train = Train::default();
        train.bind(&looped_session(), DESTINATION, datagram_len);
        let mut outgoing = Outgoing::new(frame, 0, Some(pending));
        assert_eq!(train.push(LANE, &mut outgoing), Ok(Pushed::Done));
        train.close(LANE).unwrap();
        train.len()
    }

    proptest! {
        #[test]
        fn a_lowered_size_is_the_largest_that_fits_and_nothing_else_changes(
            (is_ipv6, is_tagged, is_partial) in any::<(bool, bool, bool)>(),
            (announced, padding) in (1_u16.., 0_usize..8),
            datagram_len in 520_usize..9000,
        ) {
            let segment = Segment {
                is_ipv6,
                is_tagged,
                syn: true,
                options: announcing(announced, padding),
                payload: 0,
            };
            let before = segment.frame();
            let mut after = before.clone();
            let found = find(&before, datagram_len, 0);
            let fitting = found.map_or(announced, |found| found.fitting);
            if let Some(found) = found {
                found.lower(&mut after, is_partial);
            }
            let mut expected = Segment {
                options: announcing(fitting, padding),
                ..segment.clone()
            }
            .frame();
            if is_partial {
                let at = segment.transport() + usize::from(TCP_CHECKSUM);
                put(&mut expected, at, read(&before, at));
            }
            prop_assert_eq!(after, expected);
            prop_assert!(fitting <= announced);
            // Headers without options, as the size is defined.
            let takes = |payload: u16| {
                let data = Segment { syn: false, options: Vec::new(), payload: payload.into(), ..segment.clone() };
                datagrams(&data.frame(), segment.transport(), datagram_len)
            };
            if fitting < announced {
                prop_assert_eq!((takes(fitting), takes(fitting + 1)), (1, 2));
            } else if announced < 9000 {
                prop_assert_eq!(takes(announced), 1);
            }
        }

        #[test]
        fn no_bytes_are_too_strange(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            (is_ipv6, cut, garbage) in (any::<bool>(), 0_usize..100, proptest::collection::vec(any::<u8>(), 40)),
        ) {
            find(&bytes, 1472, 0);
            let segment = Segment { is_ipv6, is_tagged: false, syn: true, options: garbage, payload: 0 };
            let mut frame = segment.frame();
            let len = frame.len();
            if let Some(found) = find(&frame, 100, 0) {
                found.lower(&mut frame, false);
            }
            frame.truncate(len - cut.min(len));
            if let Some(found) = find(&frame, 100, 0) {
                found.lower(&mut frame, false);
            }
        }
    }

    #[test]
    fn only_a_syn_is_changed_and_padding_is_no_part_of_it() {
        let syn = Segment {
            is_ipv6: false,
            is_tagged: false,
            syn: true,
            options: vec![MAXIMUM_SEGMENT_SIZE, 4, 5, 0xb4],
            payload: 0,
        };
        let mut padded = syn.frame();
        padded.resize(60, 0);
        let fitting = |frame: &[u8], tags| find(frame, 1472, tags).map(|found| found.fitting);
        assert_eq!(fitting(&padded, 0), Some(1383));
        assert_eq!(fitting(&padded, 4), Some(1379));
        assert_eq!(
            fitting(
                &Segment {
                    payload: 900,
                    ..syn.clone()
                }
                .frame(),
                0
            ),
            Some(1383)
        );
        assert_eq!(
            fitting(
                &Segment {
                    syn: false,
                    ..syn.clone()
                }
                .frame(),
                0
            ),
            None
        );
        assert_eq!(
            fitting(
                &Segment {
                    options: Vec::new(),
                    ..syn.clone()
                }
                .frame(),
                0
            ),
            None
        );
        let mut fragment = syn.frame();
        fragment[20] |= 0x20;
        assert_eq!(fitting(&fragment, 0), None, "more of it follows");
    }
}
