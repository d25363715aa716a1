// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any bytes as the headers of a super-frame, and the headers of any run of its segments: every header
//! that is written is accepted as what it was written for, with a right IPv4 header checksum.
#![no_main]

#[path = "../checks.rs"]
mod checks;
#[path = "../original.rs"]
mod original;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use patchcord::internals::{
    proto::{
        partial_checksum::{check_checksum, finish_checksum},
        superframe::{HEADER_ROOM, Layout, MAX_HEADERS, MAX_SEGMENTS, MAX_SUPERFRAME},
    },
    wire::offload::{Checksum, Offload, Segmentation, Transport},
};

use patchcord_bridge::Headers;

use checks::{has_right_pseudo_header, is_same};
use original::{Kind, Original, sum};

fuzz_target!(|input: Input| {
    let (mut head, total, offload) = match &input.source {
        Source::Any {
            head,
            total,
            offload,
        } => (head.clone(), *total as usize % (1 << 24), offload.value()),
        Source::Valid { number, kind, len } => {
            let original = Original::new(*number, *kind, usize::from(*len), 1 << 16);
            let Some(pending) = original.pending else {
                return;
            };
            let total = original.frame.len();
            (original.frame, total, pending.offload)
        }
    };
    let is_intact = matches!(input.source, Source::Valid { .. }) && input.lies.is_empty();
    for &(at, byte) in &input.lies {
        if let Some(place) = head.get_mut(usize::from(at)) {
            *place = byte;
        }
    }
    let max_frame = usize::from(input.max_frame);
    if let Ok(layout) = Layout::parse(&head, total, &offload, max_frame) {
        assert!(layout.headers_len() + layout.payload(0..1).len() <= max_frame);
    }
    let parsed = Layout::parse(&head, total, &offload, usize::MAX);
    if offload.segmentation.is_some() {
        assert!(!is_intact || parsed.is_ok(), "{parsed:?}");
    }
    if let Ok(layout) = parsed {
        bounds(&layout, &head, total);
        for &(start, len) in &input.runs {
            let start = usize::from(start) % layout.segments();
            let end = (start + 1 + usize::from(len)).min(layout.segments());
            emit(&layout, &head, &offload, start..end, is_intact);
        }
        emit(&layout, &head, &offload, 0..layout.segments(), is_intact);
    }
    checksum(&mut head, offload.checksum);
});

fn bounds(layout: &Layout, head: &[u8], total: usize) {
    assert!(layout.headers_len() <= head.len().min(MAX_HEADERS));
    assert!((1..=MAX_SEGMENTS).contains(&layout.segments()));
    assert!(total <= MAX_SUPERFRAME);
    let mut end = layout.headers_len();
    for segment in 0..layout.segments() {
        let payload = layout.payload(segment..segment + 1);
        assert!(payload.start == end && !payload.is_empty());
        end = payload.end;
    }
    assert_eq!(end, total);
}

fn emit(
    layout: &Layout,
    head: &[u8],
    offload: &Offload,
    run: std::ops::Range<usize>,
    is_intact: bool,
) {
    let mut out = [0xa5; HEADER_ROOM];
    let (of_run, layout_of_run) = layout.emit_headers(head, run.clone(), &mut out);
    let (headers, untouched) = out.split_at(layout.headers_len());
    assert!(untouched.iter().all(|&byte| byte == 0xa5));
    let start = usize::from(offload.checksum.start);
    assert_eq!(of_run.checksum, offload.checksum);
    assert_eq!(headers[..12], head[..12]);
    let total = headers.len() + layout.payload(run.clone()).len();
    if run.len() > 1 {
        let again = Layout::parse(headers, total, &of_run, usize::MAX).expect("it is valid");
        assert!(layout_of_run.is_some_and(|layout| is_same(&layout, &again)));
        assert_eq!(again.segments(), run.len());
        assert_eq!(again.headers_len(), layout.headers_len());
    } else {
        assert_eq!((of_run.segmentation, layout_of_run), (None, None));
        check_checksum(
            &Headers::parse(headers).expect("it has headers"),
            total,
            of_run.checksum,
        )
        .expect("it is that of the transport");
    }
    if !layout.is_ipv6() {
        let network = (0..=4)
            .map(|tags| 14 + 4 * tags)
            .find(|&at| headers[at - 2..at] == [0x08, 0x00])
            .expect("it was found before");
        assert_eq!(sum(&headers[network..start]), 0xffff, "IPv4 header");
    }
    fields(layout, head, headers, offload, run.clone());
    if is_intact {
        let mut frame = headers.to_vec();
        frame.resize(total, 0);
        assert!(has_right_pseudo_header(&frame, of_run.checksum), "{run:?}");
    }
}

/// The fields that a kernel would write into the first segment of the run, except the length.
fn fields(
    layout: &Layout,
    head: &[u8],
    headers: &[u8],
    offload: &Offload,
    run: std::ops::Range<usize>,
) {
    let start = usize::from(offload.checksum.start);
    let segmentation = offload.segmentation.expect("it has segments");
    let number = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    if segmentation.transport == Transport::Udp {
        let len = headers.len() - start + layout.payload(run).len();
        return assert_eq!(usize::from(number(headers, start + 4)), len);
    }
    let sequence = |bytes: &[u8]| {
        u32::from(number(bytes, start + 4)) << 16 | u32::from(number(bytes, start + 6))
    };
    let skipped = (run.start * usize::from(segmentation.size)) as u32;
    assert_eq!(sequence(headers), sequence(head).wrapping_add(skipped));
    // FIN and PSH belong to the last segment, CWR to the first.
    let mut flags = head[start + 13];
    if run.end < layout.segments() {
        flags &= !0x09;
    }
    if run.start > 0 {
        flags &= !0x80;
    }
    assert_eq!(headers[start + 13], flags);
}

/// A finished checksum, in place of the partial one, makes the sum of its range all ones.
fn checksum(frame: &mut [u8], checksum: Checksum) {
    let before = frame.to_vec();
    let end = usize::from(checksum.start) + usize::from(checksum.offset) + 2;
    let is_inside = checksum.start >= 14 && end <= frame.len();
    assert_eq!(finish_checksum(frame, checksum).is_ok(), is_inside);
    if !is_inside {
        return assert_eq!(frame, before);
    }
    let (start, offset) = (usize::from(checksum.start), usize::from(checksum.offset));
    let place = start + offset..start + offset + 2;
    assert_ne!(frame[place.clone()], [0, 0], "no checksum");
    // Across two words the sum differs; no protocol has its checksum there.
    if offset % 2 == 0 {
        let mut covered = frame[start..].to_vec();
        covered.resize(covered.len().next_multiple_of(2), 0);
        covered.extend_from_slice(&before[place]);
        assert_eq!(sum(&covered), 0xffff);
    }
}

#[derive(Arbitrary, Debug)]
struct Input {
    source: Source,
    lies: Vec<(u8, u8)>,
    max_frame: u16,
    runs: Vec<(u16, u16)>,
}

#[derive(Arbitrary, Debug)]
enum Source {
    Any {
        head: Vec<u8>,
        total: u32,
        offload: AnyOffload,
    },
    Valid {
        number: u8,
        kind: Kind,
        len: u16,
    },
}

#[derive(Arbitrary, Debug)]
struct AnyOffload {
    start: u16,
    offset: u16,
    segmentation: Option<(bool, u16, bool)>,
}

impl AnyOffload {
    fn value(&self) -> Offload {
        Offload {
            checksum: Checksum {
                start: self.start,
                offset: self.offset,
            },
            segmentation: self.segmentation.map(|(is_tcp, size, cwr)| Segmentation {
                transport: if is_tcp {
                    Transport::Tcp
                } else {
                    Transport::Udp
                },
                size,
                cwr,
            }),
        }
    }
}
