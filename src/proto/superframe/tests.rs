// SPDX-License-Identifier: MIT OR Apache-2.0
//! Layouts against a stream that other code cuts, and one wrong field after the other.

use proptest::{prelude::*, sample::Index};

use super::*;
use crate::proto::{
    partial_checksum::finish_checksum,
    testing::{Network, Stream, any_stream},
};

/// The headers of a run, and its payload.
fn cut(layout: &Layout, whole: &[u8], run: Range<usize>) -> (Vec<u8>, Offload, Option<Layout>) {
    let mut headers = [0; HEADER_ROOM];
    let (offload, of_run) = layout.emit_headers(whole, run.clone(), &mut headers);
    let headers = &headers[..layout.headers_len()];
    (
        [headers, &whole[layout.payload(run)]].concat(),
        offload,
        of_run,
    )
}

proptest! {
    #[test]
    fn a_run_is_the_frame_that_its_segments_would_have_been(
        stream in any_stream(),
        bounds: [Index; 2],
    ) {
        let (whole, layout) = (stream.whole(), stream.layout());
        prop_assert_eq!(layout.headers_len(), stream.headers_len());
        prop_assert_eq!(layout.segments(), stream.segments());
        let [a, b] = bounds.map(|bound| bound.index(stream.segments()));
        for run in [a.min(b)..a.max(b) + 1, a..a + 1, 0..stream.segments()] {
            let (mut frame, offload, of_run) = cut(&layout, &whole, run.clone());
            prop_assert_eq!(&frame, &stream.frame(run.clone(), false));
            prop_assert_eq!(offload, stream.offload(run.clone()));
            prop_assert_eq!(of_run.is_some(), run.len() > 1);
            if let Some(of_run) = of_run {
                let parsed = Layout::parse(&frame, frame.len(), &offload, usize::MAX);
                prop_assert_eq!(parsed, Ok(of_run));
                let last = run.len() - 1;
                let (segment, _, _) = cut(&of_run, &frame, last..last + 1);
                prop_assert_eq!(segment, stream.frame(run.end - 1..run.end, false));
            }
            prop_assert_eq!(finish_checksum(&mut frame, offload.checksum), Ok(()));
            prop_assert_eq!(&frame, &stream.frame(run, true));
        }
    }

    #[test]
    fn whatever_is_taken_for_a_super_frame_can_be_cut(
        stream in any_stream(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..4),
        offload_changes in prop::collection::vec((0..5_u8, any::<u16>()), 0..2),
        shorter in 0..100_usize,
        bounds: [Index; 2],
    ) {
        let mut whole = stream.whole();
        for (at, value) in changes {
            whole[at.index(stream.headers_len())] = value;
        }
        let mut offload = stream.pending().offload;
        for (field, value) in offload_changes {
            let segmentation = offload.segmentation.get_or_insert(Segmentation {
                transport: stream.transport,
                size: stream.size,
                cwr: false,
            });
            match field {
                0 => offload.checksum.start = value,
                1 => offload.checksum.offset = value,
                2 => segmentation.size = value,
                3 => segmentation.cwr = value & 1 == 1,
                _ => segmentation.transport = Transport::Tcp,
            }
        }
        let head = &whole[..whole.len() - shorter.min(whole.len())];
        if let Ok(layout) = Layout::parse(head, whole.len(), &offload, 9000) {
            let [a, b] = bounds.map(|bound| bound.index(layout.segments()));
            let (mut frame, offload, _) = cut(&layout, &whole, a.min(b)..a.max(b) + 1);
            prop_assert_eq!(finish_checksum(&mut frame, offload.checksum), Ok(()));
        }
    }

    #[test]
    fn any_bytes_are_judged_without_panic(
        head: Vec<u8>,
        total in 0..70_000_usize,
        start: u16,
        offset: u16,
        size: u16,
        is_tcp: bool,
    ) {
        let offload = Offload {
            checksum: Checksum { start, offset },
            segmentation: Some(Segmentation {
                transport: if is_tcp { Transport::Tcp } else { Transport::Udp },
                size,
                cwr: false,
            }),
        };
        prop_assert!(Layout::parse(&head, total, &offload, 1500).is_err());
    }
}

/// The input of the check: the headers, the claims about them, the length, the largest segment.
struct Claim {
    head: Vec<u8>,
    offload: Offload,
    total: usize,
    max_frame: usize,
}

impl Claim {
    fn of(stream: &Stream) -> Self {
        let whole = stream.whole();
        Self {
            head: whole[..stream.headers_len()].to_vec(),
            offload: stream.pending().offload,
            total: whole.len(),
            max_frame: 1600,
        }
    }

    fn segmentation(&mut self) -> &mut Segmentation {
        self.offload.segmentation.as_mut().unwrap()
    }

    fn judge(&self) -> Result<Layout, DropReason> {
        Layout::parse(&self.head, self.total, &self.offload, self.max_frame)
    }
}

#[test]
fn each_field_that_is_wrong_is_refused() {
    use DropReason::{BadOffload, Oversize};

    type Change = fn(&mut Claim);
    let tcp_v4 = Stream::tcp_v4(1448, 60_000);
    let udp_v4 = Stream {
        transport: Transport::Udp,
        ..tcp_v4.clone()
    };
    let tcp_v6 = Stream {
        network: Network::V6(vec![(0, 1)]),
        ..tcp_v4.clone()
    };
    let udp_v6 = Stream::udp_v6(1200, 40_000);
    for stream in [&tcp_v4, &udp_v4, &tcp_v6, &udp_v6] {
        Claim::of(stream).judge().unwrap();
    }
    let everywhere: &[(&str, Change, DropReason)] = &[
        ("EtherType", |claim| claim.head[12] = 0x33, BadOffload),
        (
            "a tag that is none",
            |claim| claim.head[12..14].fill(0x81),
            BadOffload,
        ),
        ("version", |claim| claim.head[14] ^= 0x20, BadOffload),
        (
            "shorter than its length",
            |claim| claim.total -= 1,
            BadOffload,
        ),
        (
            "longer than its length",
            |claim| claim.total += 1,
            BadOffload,
        ),
        (
            "no segments",
            |claim| claim.offload.segmentation = None,
            BadOffload,
        ),
        (
            "segments of nothing",
            |claim| claim.segmentation().size = 0,
            BadOffload,
        ),
        (
            "checksum's start",
            |claim| claim.offload.checksum.start += 2,
            BadOffload,
        ),
        (
            "checksum's start",
            |claim| claim.offload.checksum.start = 0,
            BadOffload,
        ),
        (
            "checksum's place",
            |claim| claim.offload.checksum.offset += 2,
            BadOffload,
        ),
        (
            "checksum's place",
            |claim| claim.offload.checksum.offset = u16::MAX,
            BadOffload,
        ),
        (
            "too many segments",
            |claim| claim.segmentation().size = 19,
            BadOffload,
        ),
        (
            "segments too large",
            |claim| claim.max_frame = 1200,
            Oversize,
        ),
        (
            "cut headers",
            |claim| claim.head.truncate(claim.head.len() - 1),
            BadOffload,
        ),
        ("no headers", |claim| claim.head.clear(), BadOffload),
    ];
    let v4: &[(&str, Change, DropReason)] = &[
        (
            "header length below",
            |claim| claim.head[14] = 0x44,
            BadOffload,
        ),
        ("header length", |claim| claim.head[14] = 0x46, BadOffload),
        ("total length", |claim| claim.head[17] ^= 1, BadOffload),
        ("more fragments", |claim| claim.head[20] |= 0x20, BadOffload),
        ("fragment offset", |claim| claim.head[21] = 1, BadOffload),
        ("protocol", |claim| claim.head[23] ^= 6 ^ 17, BadOffload),
    ];
    let v6: &[(&str, Change, DropReason)] = &[
        ("payload length", |claim| claim.head[19] ^= 1, BadOffload),
        (
            "next header: fragment",
            |claim| claim.head[20] = 44,
            BadOffload,
        ),
        ("next header: none", |claim| claim.head[20] = 59, BadOffload),
    ];
    let extended: &[(&str, Change, DropReason)] = &[
        (
            "length of an extension",
            |claim| claim.head[55] = 1,
            BadOffload,
        ),
        (
            "extensions without end",
            |claim| claim.head[55] = 255,
            BadOffload,
        ),
        (
            "behind an extension",
            |claim| claim.head[54] = 17,
            BadOffload,
        ),
    ];
    let tcp: &[(&str, Change, DropReason)] = &[
        ("SYN", |claim| claim.flags(SYN), BadOffload),
        ("RST", |claim| claim.flags(RST), BadOffload),
        ("TCP header below", |claim| claim.data_offset(4), BadOffload),
        (
            "TCP header beyond",
            |claim| claim.data_offset(15),
            BadOffload,
        ),
        (
            "of UDP",
            |claim| claim.segmentation().transport = Transport::Udp,
            BadOffload,
        ),
    ];
    let udp: &[(&str, Change, DropReason)] = &[
        ("CWR", |claim| claim.segmentation().cwr = true, BadOffload),
        ("UDP length", |claim| claim.udp_length(), BadOffload),
        (
            "of TCP",
            |claim| claim.segmentation().transport = Transport::Tcp,
            BadOffload,
        ),
    ];
    for (stream, tables) in [
        (&tcp_v4, [everywhere, v4, tcp]),
        (&udp_v4, [everywhere, v4, udp]),
        (&tcp_v6, [everywhere, extended, tcp]),
        (&udp_v6, [everywhere, v6, udp]),
    ] {
        for (what, change, reason) in tables.into_iter().flatten() {
            let mut claim = Claim::of(stream);
            change(&mut claim);
            let judged = claim.judge().map(|_| ());
            assert_eq!(judged, Err(*reason), "{what}: {stream:?}");
        }
    }
}

impl Claim {
    fn transport(&self) -> usize {
        self.offload.checksum.start.into()
    }

    fn flags(&mut self, flags: u8) {
        let at = self.transport() + TCP_FLAGS;
        self.head[at] |= flags;
    }

    fn data_offset(&mut self, words: u8) {
        let at = self.transport() + 12;
        self.head[at] = words << 4;
    }

    fn udp_length(&mut self) {
        let at = self.transport() + 5;
        self.head[at] ^= 1;
    }
}

#[test]
fn a_super_frame_has_four_tags_and_seven_extensions_at_most() {
    let of = |tags, extensions| {
        let stream = Stream {
            tags: vec![(0x8100, 7); tags],
            network: Network::V6(vec![(60, 1); extensions]),
            ..Stream::tcp_v4(1000, 5000)
        };
        Claim::of(&stream).judge().map(|_| ())
    };
    assert_eq!(of(4, 7), Ok(()));
    assert_eq!(of(5, 0), Err(DropReason::BadOffload));
    assert_eq!(of(0, 8), Err(DropReason::BadOffload));
}

#[test]
fn the_largest_super_frames_are_taken() {
    let tags = vec![(0x88a8, 1); 4];
    for (network, transport, headers) in [
        (Network::V4(0, true, 0), Transport::Tcp, 32),
        (Network::V4(0, true, 0), Transport::Udp, 8),
        (Network::V6(Vec::new()), Transport::Tcp, 32),
    ] {
        let ip = match network {
            Network::V4(..) => 20,
            Network::V6(_) => 40,
        };
        let stream = Stream {
            tags: tags.clone(),
            network,
            transport,
            ..Stream::tcp_v4(1448, 65_535 - ip - headers)
        };
        let (whole, layout) = (stream.whole(), stream.layout());
        let all = 0..stream.segments();
        assert_eq!(cut(&layout, &whole, all.clone()).0, whole);
        assert_eq!(stream.frame(all, false), whole);
    }
}
