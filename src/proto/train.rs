// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames into datagrams: packing, fragmenting and numbering (PROTOCOL.md, "Datagrams").
//!
//! A [`Train`] is a buffer of datagrams for one peer, back to back, as UDP segmentation offload
//! wants them. Frames are laid out in it as they are read from the TAP; then the whole train is
//! sealed in place (by any thread) and sent (in order). A frame that fits a datagram stays whole;
//! small ones share a datagram; larger ones are cut so that datagrams are as full as the path
//! allows.

use std::{net::SocketAddr, sync::Arc};

use super::{session::Session, superframe::MAX_HEADERS};
use crate::{
    stats::DropReason,
    wire::{
        Counter, DATA_HEADER_LEN, DATA_OVERHEAD, Lane, MessageType, TAG_LEN,
        chunk::{
            CHUNK_HEADER_LEN, CutFrame, FRAGMENT_HEADER_LEN, Fragment, OFFLOAD_HEADER_LEN,
            PARTIAL_CHECKSUM_HEADER_LEN, emit_fragment_header, emit_frame_header,
            emit_offload_header, emit_partial_checksum_header,
        },
        offload::{Checksum, Offload},
    },
};

/// Bytes of a train: the most that one UDP send with segmentation offload may carry.
pub const TRAIN_BYTES: usize = 65_000;
/// Datagrams of a train: the most that every kernel cuts one UDP send into.
pub const TRAIN_DATAGRAMS: usize = 64;
/// A smaller piece of a frame is not worth a fragment header; padding takes its place.
const MIN_PIECE: usize = 32;

/// A finished datagram in a train.
#[derive(Clone, Copy, Debug)]
struct Datagram {
    message_type: MessageType,
    counter: Counter,
    end: usize,
}

/// The datagram at the end of the train that may still take frames.
#[derive(Clone, Copy, Debug)]
struct FillingDatagram {
    message_type: MessageType,
    begin: usize,
    /// The end of the plaintext so far.
    end: usize,
}

/// Datagrams for one peer, under one session, on one lane.
#[derive(Debug)]
pub struct Train {
    bytes: Box<[u8]>,
    datagrams: Vec<Datagram>,
    filling: Option<FillingDatagram>,
    bound: Option<Bound>,
    /// The session that it was bound to before. All threads count references to a session in one
    /// place, so none is made or dropped while the trains of a thread go to one peer.
    former: Option<Arc<Session>>,
}

/// The binding of a train while it carries something.
#[derive(Debug)]
struct Bound {
    session: Arc<Session>,
    to: SocketAddr,
    datagram_len: usize,
}

/// The outcome of pushing a frame to a train.
#[derive(Debug, PartialEq, Eq)]
pub enum Pushed {
    /// All of it is in the train.
    Done,
    /// The train is full. Send it and push the rest to a new one.
    Full,
}

/// A frame on its way into trains, and the progress so far.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    frame: &'a [u8],
    frame_id: u32,
    pending: Option<PendingOffload>,
    next: Next,
}

/// The offload that a frame's kernel left pending, and how many bytes at its front are headers.
#[derive(Clone, Copy, Debug)]
pub struct PendingOffload {
    /// What the far end's kernel has to finish.
    pub offload: Offload,
    /// Bytes that travel in the offload chunk if the frame is cut.
    pub headers_len: usize,
}

impl PendingOffload {
    /// The number of frames that a frame of `len` bytes stands for.
    pub fn segments(&self, len: usize) -> u32 {
        let payload = len.saturating_sub(self.headers_len);
        self.offload.segmentation.map_or(1, |segmentation| {
            payload.div_ceil(usize::from(segmentation.size).max(1)) as u32
        })
    }

    /// The same for the frame with its headers shifted back by `by` bytes, as when a tag is added
    /// or removed.
    #[must_use]
    pub fn shifted(self, by: isize) -> Self {
        Self {
            offload: self.offload.shifted(by),
            headers_len: self.headers_len.saturating_add_signed(by),
        }
    }
}

/// The part of a cut frame that is laid out next.
#[derive(Clone, Copy, Debug)]
enum Next {
    Offload,
    Piece(usize),
    /// Once more, because losing the first one would cost the whole frame.
    OffloadAgain,
}

impl<'a> Outgoing<'a> {
    /// `frame_id` is used if the frame has to be cut.
    pub fn new(frame: &'a [u8], frame_id: u32, pending: Option<PendingOffload>) -> Self {
        let next = if pending.is_some() {
            Next::Offload
        } else {
            Next::Piece(0)
        };
        Self {
            frame,
            frame_id,
            pending,
            next,
        }
    }

    fn is_super(&self) -> bool {
        self.pending
            .is_some_and(|pending| pending.offload.segmentation.is_some())
    }

    fn cut_frame(&self) -> CutFrame {
        CutFrame {
            frame_id: self.frame_id,
            total: self.frame.len() as u32,
        }
    }
}

impl Default for Train {
    fn default() -> Self {
        Self {
            bytes: vec![0; TRAIN_BYTES].into(),
            datagrams: Vec::with_capacity(TRAIN_DATAGRAMS),
            filling: None,
            bound: None,
            former: None,
        }
    }
}

impl Train {
    /// Binds an empty train to a peer. `datagram_len` is the largest UDP payload of the path.
    pub fn bind(&mut self, session: &Arc<Session>, to: SocketAddr, datagram_len: usize) {
        debug_assert!(self.is_empty());
        let former = self.former.take();
        let former = former.filter(|former| Arc::ptr_eq(former, session));
        self.bound = Some(Bound {
            session: former.unwrap_or_else(|| session.clone()),
            to,
            datagram_len: datagram_len.min(TRAIN_BYTES),
        });
    }

    /// Whether it has no datagrams.
    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty() && self.filling.is_none()
    }

    /// Empties it for the next use, most likely under the same session.
    pub fn clear(&mut self) {
        self.datagrams.clear();
        self.filling = None;
        if let Some(bound) = self.bound.take() {
            self.former = Some(bound.session);
        }
    }

    /// Forgets the session, which may have ended, of an empty train.
    pub fn forget(&mut self) {
        self.former = None;
    }

    /// Lays out as much of a frame as there is room for.
    ///
    /// # Errors
    /// [`DropReason::NoSession`] when the train is not bound, [`DropReason::CountersExhausted`],
    /// [`DropReason::BadOffload`] for headers that are longer than the frame or than [`MAX_HEADERS`],
    /// [`DropReason::DatagramTooBig`] where no datagram of the path has room for them.
    pub fn push(&mut self, lane: Lane, outgoing: &mut Outgoing<'_>) -> Result<Pushed, DropReason> {
        let bound = self.bound.as_ref().ok_or(DropReason::NoSession)?;
        let capacity = bound.datagram_len - DATA_OVERHEAD;
        let len = outgoing.frame.len();
        match outgoing.pending {
            Some(pending) if pending.headers_len > len.min(MAX_HEADERS) => {
                Err(DropReason::BadOffload)
            }
            None if len <= capacity => self.push_whole(lane, outgoing.frame),
            Some(pending)
                if !outgoing.is_super() && len + PARTIAL_CHECKSUM_HEADER_LEN <= capacity =>
            {
                self.push_partial_checksum(lane, outgoing.frame, pending.offload.checksum)
            }
            _ => self.push_cut(lane, outgoing),
        }
    }

    fn push_whole(&mut self, lane: Lane, frame: &[u8]) -> Result<Pushed, DropReason> {
        if self.filling.is_some() && frame.len() + CHUNK_HEADER_LEN <= self.room() {
            self.turn_into_chunks();
            self.append(|header| emit_frame_header(header, frame.len() as u16));
            self.append_bytes(frame);
            return Ok(Pushed::Done);
        }
        self.close(lane)?;
        if !self.begin(MessageType::Frame) {
            return Ok(Pushed::Full);
        }
        self.append_bytes(frame);
        Ok(Pushed::Done)
    }

    fn push_partial_checksum(
        &mut self,
        lane: Lane,
        frame: &[u8],
        checksum: Checksum,
    ) -> Result<Pushed, DropReason> {
        if frame.len() + PARTIAL_CHECKSUM_HEADER_LEN > self.room() {
            self.close(lane)?;
            if !self.begin(MessageType::Chunks) {
                return Ok(Pushed::Full);
            }
        }
        self.turn_into_chunks();
        self.append(|header| emit_partial_checksum_header(header, checksum, frame.len() as u16));
        self.append_bytes(frame);
        Ok(Pushed::Done)
    }

    fn push_cut(&mut self, lane: Lane, outgoing: &mut Outgoing<'_>) -> Result<Pushed, DropReason> {
        let len = outgoing.frame.len();
        let is_long = len > 2 * self.bound.as_ref().map_or(0, |bound| bound.datagram_len);
        loop {
            let needed = match (outgoing.next, outgoing.pending) {
                (Next::Piece(offset), _) => FRAGMENT_HEADER_LEN + MIN_PIECE.min(len - offset),
                (_, Some(pending)) => OFFLOAD_HEADER_LEN + pending.headers_len,
                (_, None) => return Ok(Pushed::Done),
            };
            if self.room() < needed {
                self.pad();
                self.close(lane)?;
                if !self.begin(MessageType::Chunks) {
                    return Ok(Pushed::Full);
                }
                if self.room() < needed {
                    return Err(DropReason::DatagramTooBig);
                }
            }
            self.turn_into_chunks();
            outgoing.next = match outgoing.next {
                Next::Offload => Next::Piece(self.append_offload(outgoing)),
                Next::OffloadAgain => {
                    self.append_offload(outgoing);
                    return Ok(Pushed::Done);
                }
                Next::Piece(offset) => match offset + self.append_piece(outgoing, offset) {
                    end if end < len => Next::Piece(end),
                    _ if is_long && outgoing.is_super() => Next::OffloadAgain,
                    _ => return Ok(Pushed::Done),
                },
            };
        }
    }

    fn append_offload(&mut self, outgoing: &Outgoing<'_>) -> usize {
        let Some(pending) = outgoing.pending else {
            return 0;
        };
        let headers = &outgoing.frame[..pending.headers_len];
        let len = headers.len() as u16;
        self.append(|header| {
            emit_offload_header(header, outgoing.cut_frame(), pending.offload, len)
        });
        self.append_bytes(headers);
        headers.len()
    }

    /// As much of the frame as there is room for.
    fn append_piece(&mut self, outgoing: &Outgoing<'_>, offset: usize) -> usize {
        let rest = &outgoing.frame[offset..];
        let piece = &rest[..rest.len().min(self.room() - FRAGMENT_HEADER_LEN)];
        let CutFrame { frame_id, total } = outgoing.cut_frame();
        let fragment = Fragment {
            frame_id,
            total,
            offset: offset as u32,
        };
        self.append(|header| emit_fragment_header(header, fragment, piece.len() as u16));
        self.append_bytes(piece);
        piece.len()
    }

    /// Ends the datagram that is being filled; the train can be sealed then.
    ///
    /// # Errors
    /// [`DropReason::CountersExhausted`]; the datagram is lost.
    pub fn close(&mut self, lane: Lane) -> Result<(), DropReason> {
        let Some(filling) = self.filling.take() else {
            return Ok(());
        };
        let session = &self.bound.as_ref().ok_or(DropReason::NoSession)?.session;
        let counter = session.next_counter(lane)?;
        let end = filling.end + TAG_LEN;
        self.datagrams.push(Datagram {
            message_type: filling.message_type,
            counter,
            end,
        });
        Ok(())
    }

    /// Seals every datagram in place. Any thread may do this, once.
    pub fn seal(&mut self) {
        let Some(bound) = &self.bound else { return };
        let mut begin = 0;
        for datagram in &self.datagrams {
            let bytes = &mut self.bytes[begin..datagram.end];
            bound
                .session
                .seal(datagram.message_type, datagram.counter, bytes);
            begin = datagram.end;
        }
    }

    /// Its destination.
    pub fn destination(&self) -> Option<SocketAddr> {
        self.bound.as_ref().map(|bound| bound.to)
    }

    /// The lane of its datagrams, if it has some.
    pub fn lane(&self) -> Option<Lane> {
        self.datagrams
            .first()
            .map(|datagram| datagram.counter.lane())
    }

    /// The session that it is bound to.
    pub fn session(&self) -> Option<&Arc<Session>> {
        self.bound.as_ref().map(|bound| &bound.session)
    }

    /// Finished datagrams.
    pub fn len(&self) -> usize {
        self.datagrams.len()
    }

    /// The datagrams as runs for UDP segmentation offload: bytes and the size of each datagram but
    /// the last, which may be shorter.
    pub fn runs(&self) -> impl Iterator<Item = (&[u8], usize)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let begin = self.begin_of(at)?;
            let size = self.datagrams[at].end - begin;
            let mut end = self.datagrams[at].end;
            at += 1;
            while let Some(next) = self.datagrams.get(at) {
                let next_size = next.end - end;
                if next_size > size {
                    break;
                }
                end = next.end;
                at += 1;
                if next_size < size {
                    break;
                }
            }
            Some((&self.bytes[begin..end], size))
        })
    }

    fn begin_of(&self, at: usize) -> Option<usize> {
        self.datagrams.get(at)?;
        Some(
            at.checked_sub(1)
                .map_or(0, |before| self.datagrams[before].end),
        )
    }

    /// Begins a datagram behind the last one; false if the train has no room for a full one.
    fn begin(&mut self, message_type: MessageType) -> bool {
        let begin = self.datagrams.last().map_or(0, |last| last.end);
        let datagram_len = self.bound.as_ref().map_or(0, |bound| bound.datagram_len);
        let has_place =
            begin + datagram_len <= self.bytes.len() && self.datagrams.len() < TRAIN_DATAGRAMS;
        if has_place {
            self.filling = Some(FillingDatagram {
                message_type,
                begin,
                end: begin + DATA_HEADER_LEN,
            });
        }
        has_place
    }

    /// Plaintext bytes that the filling datagram can still take, were it one of chunks.
    fn room(&self) -> usize {
        let (Some(filling), Some(bound)) = (&self.filling, &self.bound) else {
            return 0;
        };
        let upgrade = match filling.message_type {
            MessageType::Frame => CHUNK_HEADER_LEN,
            _ => 0,
        };
        (filling.begin + bound.datagram_len).saturating_sub(filling.end + upgrade + TAG_LEN)
    }

    /// Gives the frame of the filling datagram a chunk header, so that more can follow.
    fn turn_into_chunks(&mut self) {
        let Some(filling) = &mut self.filling else {
            return;
        };
        if filling.message_type != MessageType::Frame {
            return;
        }
        let plaintext = filling.begin + DATA_HEADER_LEN;
        let frame_len = filling.end - plaintext;
        self.bytes
            .copy_within(plaintext..filling.end, plaintext + CHUNK_HEADER_LEN);
        let header = self.bytes[plaintext..]
            .first_chunk_mut()
            .expect("room was checked");
        emit_frame_header(header, frame_len as u16);
        filling.end += CHUNK_HEADER_LEN;
        filling.message_type = MessageType::Chunks;
    }

    /// Fills the datagram up: one short datagram would end a run of equal ones.
    fn pad(&mut self) {
        let (Some(filling), Some(bound)) = (&mut self.filling, &self.bound) else {
            return;
        };
        if filling.message_type == MessageType::Chunks {
            let end = filling.begin + bound.datagram_len - TAG_LEN;
            self.bytes[filling.end..end].fill(0);
            filling.end = end;
        }
    }

    fn append<const N: usize>(&mut self, write: impl FnOnce(&mut [u8; N])) {
        let Some(filling) = &mut self.filling else {
            return;
        };
        write(
            self.bytes[filling.end..]
                .first_chunk_mut()
                .expect("room was checked"),
        );
        filling.end += N;
    }

    fn append_bytes(&mut self, bytes: &[u8]) {
        let Some(filling) = &mut self.filling else {
            return;
        };
        self.bytes[filling.end..filling.end + bytes.len()].copy_from_slice(bytes);
        filling.end += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        proto::{
            reassembly::Reassembly,
            testing::{DESTINATION, LANE, Opened, Stream, looped_session, pack},
        },
        wire::chunk::Chunk,
    };

    fn unpack(datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut reassembly = Reassembly::new(70_000);
        let mut frames = Vec::new();
        for datagram in Opened::all(datagrams) {
            for chunk in datagram.chunks() {
                match chunk {
                    Chunk::Frame(frame) => frames.push(frame.to_vec()),
                    Chunk::Fragment(fragment, piece) => {
                        reassembly.add(0, fragment, piece).unwrap();
                        frames.extend(reassembly.take_whole().map(|whole| whole.frame.to_vec()));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        frames
    }

    fn frames_of(lens: &[usize]) -> Vec<Vec<u8>> {
        lens.iter()
            .enumerate()
            .map(|(at, &len)| vec![at as u8; len])
            .collect()
    }

    fn finished(frames: &[Vec<u8>]) -> impl Iterator<Item = (&[u8], Option<PendingOffload>)> {
        frames.iter().map(|frame| (&frame[..], None))
    }

    #[test]
    fn an_empty_train_keeps_its_session_until_it_is_told_to_forget_it() {
        let (one, other) = (looped_session(), looped_session());
        let mut train = Train::default();
        for _ in 0..3 {
            train.bind(&one, DESTINATION, 1472);
            assert_eq!(Arc::strong_count(&one), 2);
            train.clear();
            assert!(train.session().is_none());
            assert_eq!(Arc::strong_count(&one), 2, "kept for the next bind");
        }
        train.bind(&other, DESTINATION, 1472);
        assert_eq!([&one, &other].map(Arc::strong_count), [1, 2]);
        train.clear();
        train.forget();
        assert_eq!(Arc::strong_count(&other), 1);
    }

    #[test]
    fn datagrams_have_the_sizes_of_protocol_md() {
        for (frame_lens, datagram_lens) in [
            (&[60][..], &[60 + 28][..]),               // alone: no chunk header
            (&[60, 60], &[28 + 2 * 63]),               // packed
            (&[1444, 1444], &[1472, 1472]),            // whole, one each
            (&[1400, 60], &[1400 + 28, 60 + 28]),      // no room: the next begins anew
            (&[1514], &[1472, 28 + 13 + 1514 - 1431]), // cut
            (
                &[1514, 1514],
                &[1472, 1472, 28 + 13 + 2 * 1514 - 1431 - 83 - 1335],
            ),
        ] {
            let (datagrams, _) = pack(finished(&frames_of(frame_lens)), 1472);
            let lens: Vec<_> = datagrams.iter().map(Vec::len).collect();
            assert_eq!(lens, datagram_lens, "{frame_lens:?}");
        }
    }

    #[test]
    fn long_streams_fill_whole_trains_of_equal_datagrams() {
        let (datagrams, trains) = pack(finished(&frames_of(&[1514; 120])), 1472);
        let full = datagrams
            .iter()
            .filter(|datagram| datagram.len() == 1472)
            .count();
        assert_eq!((datagrams.len(), full), (128, 127));
        assert_eq!(trains, 3);
    }

    #[test]
    fn a_super_frame_costs_what_protocol_md_says() {
        let stream = Stream::tcp_v4(1448, 44 * 1448);
        let whole = stream.whole();
        let super_frame = [(&whole[..], Some(stream.pending()))];
        let one_by_one = frames_of(&[1514; 120]);
        let per_segment = |(datagrams, _): (Vec<Vec<u8>>, _), segments| {
            let bytes: usize = datagrams.iter().map(|datagram| datagram.len() + 28).sum();
            (datagrams.len(), bytes.div_ceil(segments) - 1448)
        };
        let packed = pack(super_frame.into_iter(), 1472);
        assert_eq!((whole.len(), per_segment(packed, 44)), (63_778, (45, 75)));
        let packed = pack(finished(&one_by_one), 1472);
        assert_eq!(per_segment(packed, 120), (128, 152));
    }

    #[test]
    fn a_run_ends_at_a_shorter_datagram_and_before_a_longer_one() {
        let session = looped_session();
        let mut train = Train::default();
        train.bind(&session, DESTINATION, 1472);
        for frame in &frames_of(&[1400, 1400, 1300, 1444, 1444]) {
            let mut outgoing = Outgoing::new(frame, 0, None);
            assert_eq!(train.push(LANE, &mut outgoing), Ok(Pushed::Done));
        }
        train.close(LANE).unwrap();
        let runs: Vec<_> = train
            .runs()
            .map(|(bytes, size)| (bytes.len(), size))
            .collect();
        assert_eq!(runs, [(1428 + 1428 + 1328, 1428), (2 * 1472, 1472)]);
    }

    #[test]
    fn headers_that_no_receiver_would_take_are_refused() {
        let stream = Stream::udp_v6(1000, 1000);
        let frame = [stream.whole(), vec![0; 1000]].concat();
        for (len, headers_len, datagram_len, expected) in [
            (2000, 256, 548, Ok(Pushed::Done)),
            (2000, 257, 548, Err(DropReason::BadOffload)),
            (2000, usize::MAX, 548, Err(DropReason::BadOffload)),
            (200, 201, 1472, Err(DropReason::BadOffload)),
            (2000, 256, 300, Err(DropReason::DatagramTooBig)),
        ] {
            let mut train = Train::default();
            train.bind(&looped_session(), DESTINATION, datagram_len);
            let pending = PendingOffload {
                offload: stream.offload(0..1),
                headers_len,
            };
            let mut outgoing = Outgoing::new(&frame[..len], 0, Some(pending));
            let pushed = train.push(LANE, &mut outgoing);
            assert_eq!(pushed, expected, "{len}, {headers_len}, {datagram_len}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_frame_arrives_whole_and_in_order(
            lens in proptest::collection::vec(
                prop_oneof![14_usize..200, 1300_usize..1530, 14_usize..9200, 60_000_usize..65_550],
                1..40,
            ),
            datagram_len in prop_oneof![Just(548_usize), Just(1232), 1300_usize..1480, Just(8972)],
        ) {
            let frames = frames_of(&lens);
            let (datagrams, _) = pack(finished(&frames), datagram_len);
            prop_assert!(datagrams.iter().all(|datagram| datagram.len() <= datagram_len));
            prop_assert_eq!(unpack(&datagrams), frames);
        }
    }
}
