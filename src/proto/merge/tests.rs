// SPDX-License-Identifier: MIT OR Apache-2.0

use proptest::prelude::*;

use super::*;
use crate::proto::{
    cut::Cut,
    partial_checksum::finish_checksum,
    testing::{Network, Stream, any_stream},
};

fn udp_v4(size: u16, payload: usize) -> Stream {
    Stream {
        transport: Transport::Udp,
        ..Stream::tcp_v4(size, payload)
    }
}

/// The segments of a stream as frames of their own.
fn frames(stream: &Stream, is_open: bool) -> Vec<Vec<u8>> {
    let segments = 0..stream.segments();
    let frame = |at| stream.frame(at..at + 1, !is_open);
    segments.map(frame).collect()
}

fn mergeable(frame: &[u8], open: Option<Checksum>) -> Option<Mergeable<'_>> {
    Mergeable::of(&Headers::parse(frame).ok()?, &[], open)
}

fn join(merge: &mut Merge, frame: &Mergeable<'_>) -> bool {
    merge.has_flow_of(frame) && merge.join(frame)
}

/// Cuts a super-frame as the kernel does, or finishes the checksum of a frame.
fn cut(merged: &Merged<'_>) -> Vec<Vec<u8>> {
    let whole = merged.frame;
    let Some((offload, layout)) = merged.pending else {
        return vec![whole.to_vec()];
    };
    let Some(segmentation) = offload.segmentation else {
        return vec![finished(whole, Some(offload.checksum))];
    };
    assert_eq!(layout.unwrap().segments(), merged.frames);
    let cut = Cut::find(whole, segmentation, Some(offload.checksum)).unwrap();
    let segment = |at: usize| {
        let run = at..at + 1;
        let headers = &whole[..cut.headers_len()];
        let mut piece = [headers, &whole[cut.payload(&run)]].concat();
        assert!(cut.finish(&mut piece, &run).is_none());
        piece
    };
    (0..cut.segments()).map(segment).collect()
}

fn finished(frame: &[u8], open: Option<Checksum>) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Some(open) = open {
        finish_checksum(&mut frame, open).unwrap();
    }
    frame
}

/// What leaves in place of these frames, finished; and how many writes it takes.
fn merge_all(frames: &[(Vec<u8>, Option<Checksum>)]) -> (Vec<Vec<u8>>, usize) {
    let (mut merge, mut left, mut writes) = (Merge::default(), Vec::new(), 0);
    let mut flush = |merge: &mut Merge, left: &mut Vec<Vec<u8>>| {
        if let Some(merged) = merge.finish() {
            let cut = cut(&merged);
            assert_eq!(merged.frames, cut.len());
            assert_eq!(merged.bytes, cut.iter().map(Vec::len).sum::<usize>());
            left.extend(cut);
            writes += 1;
        }
    };
    for (frame, open) in frames {
        let Some(frame) = mergeable(frame, *open) else {
            flush(&mut merge, &mut left);
            left.push(finished(frame, *open));
            continue;
        };
        if !join(&mut merge, &frame) {
            flush(&mut merge, &mut left);
            merge.begin(&frame);
        }
    }
    flush(&mut merge, &mut left);
    (left, writes)
}

#[test]
fn segments_of_a_flow_become_the_super_frame_that_they_are_of() {
    for stream in [udp_v4(100, 1030), Stream::udp_v6(100, 1000)] {
        for is_open in [false, true] {
            let frames = frames(&stream, is_open);
            let open = is_open.then(|| stream.offload(0..1).checksum);
            let mut merge = Merge::default();
            merge.begin(&mergeable(&frames[0], open).unwrap());
            for frame in &frames[1..] {
                assert!(join(&mut merge, &mergeable(frame, open).unwrap()));
            }
            let merged = merge.finish().unwrap();
            assert_eq!(merged.frames, stream.segments());
            assert!(merged.frame == stream.whole());
            let (offload, layout) = merged.pending.unwrap();
            assert_eq!(offload, stream.offload(0..stream.segments()));
            assert_eq!(layout, Some(stream.layout()));
            assert!(merge.finish().is_none());
        }
    }
}

#[test]
fn a_lone_frame_leaves_as_it_came() {
    let stream = udp_v4(100, 100);
    for is_open in [false, true] {
        let frame = &frames(&stream, is_open)[0];
        let open = is_open.then(|| stream.offload(0..1).checksum);
        let mut merge = Merge::default();
        merge.begin(&mergeable(frame, open).unwrap());
        let merged = merge.finish().unwrap();
        assert_eq!(merged.frame, frame);
        assert_eq!(merged.frames, 1);
        let pending = open.map(|_| (stream.offload(0..1), None));
        assert_eq!(merged.pending, pending);
    }
}

/// What becomes of a frame behind another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Joins,
    /// It may begin a super-frame of its own.
    Begins,
    /// It is never part of one.
    Apart,
    /// It is not of the flow.
    Other,
}

fn verdict(first: &[u8], second: &[u8], open: Option<Checksum>) -> Verdict {
    let mut merge = Merge::default();
    merge.begin(&mergeable(first, open).unwrap());
    match mergeable(second, open) {
        None => Verdict::Apart,
        Some(frame) if !merge.has_flow_of(&frame) => Verdict::Other,
        Some(frame) if merge.join(&frame) => Verdict::Joins,
        Some(_) => Verdict::Begins,
    }
}

/// Writes the checksums of a frame whose headers are as of `stream`.
fn repair(stream: &Stream, frame: &mut [u8]) {
    let transport = stream.transport_at();
    let (network, is_ipv6) = match &stream.network {
        Network::V4(..) => (transport - 20, false),
        Network::V6(_) => (transport - 40, true),
    };
    if !is_ipv6 {
        put(frame, network + 10, 0);
        let header = checksum::finish(sum(&frame[network..transport]));
        put(frame, network + 10, header);
    }
    let addresses = if is_ipv6 { 8..40 } else { 12..20 };
    let pseudo = sum(&frame[network..][addresses]) + 17 + (frame.len() - transport) as u64;
    put(frame, transport + 6, fold(pseudo));
    finish_checksum(frame, stream.offload(0..1).checksum).unwrap();
}

#[test]
fn each_rule_keeps_a_frame_apart_that_breaks_it() {
    use Verdict::{Apart, Begins, Joins, Other};
    /// The rule, the change to the second frame, whether its checksums fit afterwards.
    type Case = (&'static str, fn(&mut Vec<u8>), bool, Verdict);
    // Ethernet 0, tag 12, IPv4 18, UDP 38, payload 46.
    let v4: &[Case] = &[
        ("nothing is changed", |_| {}, true, Joins),
        ("other bytes", |it| it[50] ^= 1, true, Joins),
        ("a shorter one", |it| shorten(it, 18, 10), true, Joins),
        ("a longer one", |it| shorten(it, 18, -10), true, Begins),
        ("destination MAC", |it| it[5] ^= 1, true, Other),
        ("source MAC", |it| it[11] ^= 1, true, Other),
        ("VID", |it| it[15] ^= 1, true, Other),
        ("priority", |it| it[14] ^= 0x20, true, Other),
        (
            "TPID",
            |it| it[12..14].copy_from_slice(&[0x88, 0xa8]),
            true,
            Other,
        ),
        ("no tag", |it| drop(it.drain(12..16)), false, Other),
        ("EtherType", |it| it[16] = 9, true, Apart),
        ("version", |it| it[18] = 0x55, true, Apart),
        ("TOS", |it| it[19] ^= 4, true, Begins),
        ("ECN", |it| it[19] ^= 1, true, Begins),
        ("the same ID", |it| it[23] -= 1, true, Begins),
        ("a jump of the ID", |it| it[23] += 1, true, Begins),
        (
            "the ID in host order",
            |it| it[22..24].swap(0, 1),
            true,
            Begins,
        ),
        ("no DF", |it| it[24] = 0, true, Begins),
        ("MF", |it| it[24] |= 0x20, true, Apart),
        ("a fragment's offset", |it| it[25] = 1, true, Apart),
        ("the reserved flag", |it| it[24] |= 0x80, true, Apart),
        ("TTL", |it| it[26] -= 1, true, Begins),
        ("protocol", |it| it[27] = 136, true, Apart),
        ("header checksum", |it| it[28] ^= 1, false, Apart),
        ("source address", |it| it[33] ^= 1, true, Other),
        ("destination address", |it| it[37] ^= 1, true, Other),
        ("source port", |it| it[39] ^= 1, true, Other),
        ("destination port", |it| it[41] ^= 1, true, Other),
        ("UDP length", |it| it[43] -= 1, true, Apart),
        ("no checksum", |it| it[44..46].fill(0), false, Apart),
        ("a wrong checksum", |it| it[45] ^= 1, false, Apart),
        ("a damaged payload", |it| it[60] ^= 1, false, Apart),
        (
            "the last byte",
            |it| *it.last_mut().unwrap() ^= 1,
            false,
            Apart,
        ),
        ("padding", |it| it.push(0), false, Apart),
        ("no payload", |it| shorten(it, 18, 100), true, Apart),
        (
            "options",
            |it| {
                it[18] = 0x46;
                it.splice(38..38, [1; 4]);
                let len = it.len() - 18;
                put(it, 20, len as u16);
            },
            false,
            Apart,
        ),
    ];
    let stream = Stream {
        tags: vec![(0x8100, 7)],
        ..udp_v4(100, 400)
    };
    for (rule, change, is_repaired, expected) in v4 {
        assert_rule(&stream, rule, *change, *is_repaired, *expected);
    }
    // Ethernet 0, IPv6 14, UDP 54, payload 62.
    let v6: &[Case] = &[
        ("nothing is changed", |_| {}, true, Joins),
        ("traffic class", |it| it[15] ^= 0x10, true, Begins),
        ("flow label", |it| it[17] ^= 1, true, Begins),
        ("hop limit", |it| it[21] -= 1, true, Begins),
        ("source address", |it| it[37] ^= 1, true, Other),
        ("destination address", |it| it[53] ^= 1, true, Other),
        ("ports", |it| it[55] ^= 1, true, Other),
        ("no checksum", |it| it[60..62].fill(0), false, Apart),
        ("a wrong checksum", |it| it[61] ^= 1, false, Apart),
        (
            "an extension header",
            |it| {
                it[20] = 60;
                it.splice(54..54, [17, 0, 1, 4, 0, 0, 0, 0]);
                let len = it.len() - 54;
                put(it, 18, len as u16);
            },
            false,
            Apart,
        ),
        (
            "a fragment",
            |it| {
                it[20] = 44;
                it.splice(54..54, [17, 0, 0, 1, 0, 0, 0, 7]);
                let len = it.len() - 54;
                put(it, 18, len as u16);
            },
            false,
            Apart,
        ),
    ];
    for (rule, change, is_repaired, expected) in v6 {
        assert_rule(
            &Stream::udp_v6(100, 400),
            rule,
            *change,
            *is_repaired,
            *expected,
        );
    }
}

/// Cuts bytes off the end of a frame, or adds some, and puts its lengths right.
fn shorten(frame: &mut Vec<u8>, network: usize, by: isize) {
    frame.resize(frame.len().saturating_add_signed(-by), 7);
    let len = frame.len() - network;
    put(frame, network + 2, len as u16);
    put(frame, network + 24, (len - 20) as u16);
}

fn assert_rule(
    stream: &Stream,
    rule: &str,
    change: fn(&mut Vec<u8>),
    is_repaired: bool,
    expected: Verdict,
) {
    let frames = frames(stream, false);
    let mut second = frames[1].clone();
    change(&mut second);
    if is_repaired {
        repair(stream, &mut second);
    }
    assert_eq!(verdict(&frames[0], &second, None), expected, "{rule}");
    // In whichever place, it leaves as it came.
    for order in [[0, 1, 2], [1, 0, 2], [0, 2, 1]] {
        let all = [&frames[0], &second, &frames[2]];
        let all = order.map(|at| (all[at].clone(), None));
        let expected = all.clone().map(|(frame, _)| frame);
        assert_eq!(merge_all(&all).0, expected, "{rule}");
    }
}

#[test]
fn a_partial_checksum_must_hold_the_sum_of_its_pseudo_header() {
    for stream in [udp_v4(100, 300), Stream::udp_v6(100, 300)] {
        let checksum = stream.offload(0..1).checksum;
        let (closed, open) = (frames(&stream, false), frames(&stream, true));
        let at = stream.transport_at() + 6;
        let verdict = |second: &[u8]| verdict(&open[0], second, Some(checksum));
        assert_eq!(verdict(&open[1]), Verdict::Joins);
        assert_eq!(verdict(&closed[1]), Verdict::Apart, "{stream:?}");
        let mut wrong = open[1].clone();
        wrong[at] ^= 1;
        assert_eq!(verdict(&wrong), Verdict::Apart);
        wrong[at..at + 2].fill(0);
        assert_eq!(verdict(&wrong), Verdict::Apart);
        // Elsewhere in the frame.
        for (start, offset) in [(checksum.start, 4), (checksum.start - 2, 8), (14, 10)] {
            let elsewhere = Some(Checksum { start, offset });
            assert!(mergeable(&open[1], elsewhere).is_none());
        }
        let mut merge = Merge::default();
        merge.begin(&mergeable(&open[0], Some(checksum)).unwrap());
        let closed = mergeable(&closed[1], None).unwrap();
        assert!(merge.has_flow_of(&closed) && !merge.join(&closed));
    }
}

#[test]
fn a_super_frame_has_an_end() {
    // The length of each frame's payload; the number of frames that are merged.
    for (size, payload, merged) in [
        (20, 64 * 20, 64),
        (20, 65 * 20, 64),
        (20, 5 * 20 + 7, 6),
        (1400, 42 * 1400, 42),
        (1400, 43 * 1400, 42),
        (29_000, 58_000, 2),
    ] {
        let stream = udp_v4(size, payload);
        let frames = frames(&stream, false);
        let mut merge = Merge::default();
        merge.begin(&mergeable(&frames[0], None).unwrap());
        let rest = frames[1..].iter();
        let joined = rest.take_while(|frame| {
            let frame = mergeable(frame, None);
            frame.is_some_and(|frame| merge.join(&frame))
        });
        assert_eq!(joined.count() + 1, merged, "{size} of {payload} bytes");
    }
    // No two of these fit.
    let large = frames(&udp_v4(29_990, 29_990), false);
    assert!(mergeable(&large[0], None).is_none());
}

#[test]
fn nothing_joins_behind_a_shorter_frame() {
    let stream = udp_v4(100, 450);
    let mut frames = frames(&stream, false);
    let mut next = frames[0].clone();
    next[19] = frames[4][19] + 1;
    repair(&stream, &mut next);
    frames.push(next);
    let frames: Vec<_> = frames.into_iter().map(|it| (it, None)).collect();
    let (left, writes) = merge_all(&frames);
    assert_eq!(left.len(), 6);
    assert_eq!(writes, 2);
    assert!(
        left.iter()
            .zip(&frames)
            .all(|(left, (frame, _))| left == frame)
    );
}

#[test]
fn a_frame_in_two_parts_is_merged_as_one() {
    let stream = Stream {
        tags: vec![(0x8100, 7), (0x8100, 9)],
        ..udp_v4(1000, 3500)
    };
    let mut merge = Merge::default();
    for (number, frame) in frames(&stream, false).iter().enumerate() {
        let (head, rest) = frame.split_at(260);
        let frame = Mergeable::of(&Headers::parse(head).unwrap(), rest, None).unwrap();
        match number {
            0 => merge.begin(&frame),
            _ => assert!(join(&mut merge, &frame)),
        }
    }
    assert!(merge.finish().unwrap().frame == stream.whole());
}

/// A plain UDP stream with any tags, and whether its checksums are partial.
fn any_flow() -> impl Strategy<Value = (Stream, bool)> {
    let plain = |(stream, is_open): (Stream, bool)| {
        let network = match stream.network {
            Network::V4(id, df, _) => Network::V4(id, df, 0),
            Network::V6(_) => Network::V6(Vec::new()),
        };
        let stream = Stream {
            network,
            transport: Transport::Udp,
            ..stream
        };
        (stream, is_open)
    };
    let flow = (any_stream(), any::<bool>()).prop_map(plain);
    flow.prop_filter("many frames take long", |(stream, _)| {
        stream.segments() < 300
    })
}

proptest! {
    #[test]
    fn any_flow_is_merged_and_cut_into_the_same_frames((stream, is_open) in any_flow()) {
        let open = is_open.then(|| stream.offload(0..1).checksum);
        let frames = frames(&stream, is_open).into_iter().map(|it| (it, open));
        let (left, writes) = merge_all(&frames.collect::<Vec<_>>());
        let segments = 0..stream.segments();
        let expected: Vec<_> = segments.map(|at| stream.frame(at..at + 1, true)).collect();
        prop_assert!(left == expected);
        let size = usize::from(stream.size);
        let most = MAX_MERGED.min((MAX_MERGED_BYTES - stream.headers_len()) / size).max(1);
        let is_small = stream.headers_len() + size <= MAX_MERGED_BYTES / 2;
        prop_assert!(!is_small || writes == expected.len().div_ceil(most));
    }

    /// Whatever is wrong with some of them.
    #[test]
    fn no_byte_of_any_frame_is_changed(
        (stream, is_open) in any_flow(),
        picks in prop::collection::vec((0..8_usize, 0..64_usize, any::<u8>(), 0..3_u8), 1..24),
    ) {
        let open = is_open.then(|| stream.offload(0..1).checksum);
        let all = frames(&stream, is_open);
        let mut next = 0;
        let frames: Vec<_> = picks.into_iter().map(|(step, at, bits, kind)| {
            next += usize::from(step != 0);
            let mut frame = all[next % all.len()].clone();
            if kind == 0 && let Some(byte) = frame.get_mut(at) {
                *byte ^= bits;
            }
            if kind == 0 && bits & 1 == 0 && open.is_none() {
                repair(&stream, &mut frame);
            }
            (frame, open)
        }).collect();
        let expected: Vec<_> = frames.iter().map(|(frame, open)| finished(frame, *open)).collect();
        prop_assert!(merge_all(&frames).0 == expected);
    }
}
