// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any pieces of frames in any order, through the reassembly and through a model without bounds.
//!
//! Every byte of a frame that comes out was written by a piece of that frame, and the pieces cover
//! it exactly; what the model has finished, and the real one did not have to evict, comes out.
#![no_main]

use std::collections::HashMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use patchcord::{
    proto::{limits::REASSEMBLY_SLOTS, reassembly::Reassembly},
    stats::DropReason,
    wire::chunk::Fragment,
};

const MAX_FRAME: u32 = 4096;

fuzz_target!(|pieces: Vec<Piece>| {
    let mut reassembly = Reassembly::new(MAX_FRAME);
    let mut model = Model::default();
    let mut evicted = 0;
    for piece in &pieces {
        let fragment = Fragment {
            frame_id: u32::from(piece.frame_id % 24),
            total: u32::from(piece.total),
            offset: u32::from(piece.offset),
        };
        let bytes = vec![piece.fill; usize::from(piece.len)];
        let added = reassembly.add(fragment, &bytes);
        let added = added.map(|frame| frame.map(<[u8]>::to_vec));
        let expected = model.add(fragment, &bytes);
        evicted += reassembly.take_evicted();
        if evicted > 0 {
            // The model forgets nothing: from here on only the bounds are compared.
            if let Ok(Some(frame)) = added {
                assert_eq!(frame.len(), fragment.total as usize);
            }
            continue;
        }
        assert_eq!(added, expected, "{fragment:?}");
        assert!(model.frames.len() <= REASSEMBLY_SLOTS);
    }
});

#[derive(Arbitrary, Debug)]
struct Piece {
    frame_id: u8,
    total: u16,
    offset: u16,
    len: u8,
    fill: u8,
}

/// Unfinished frames: a place for every byte.
#[derive(Default)]
struct Model {
    frames: HashMap<u32, Vec<Option<u8>>>,
}

impl Model {
    fn add(&mut self, fragment: Fragment, piece: &[u8]) -> Result<Option<Vec<u8>>, DropReason> {
        if fragment.total > MAX_FRAME {
            return Err(DropReason::Oversize);
        }
        let (total, offset) = (fragment.total as usize, fragment.offset as usize);
        if piece.is_empty() || offset + piece.len() > total {
            return Err(DropReason::Malformed);
        }
        let frame = self.frames.entry(fragment.frame_id);
        let frame = frame.or_insert_with(|| vec![None; total]);
        let places = offset..offset + piece.len();
        if frame.len() != total || frame[places.clone()].iter().any(Option::is_some) {
            self.frames.remove(&fragment.frame_id);
            return Err(DropReason::Malformed);
        }
        for (place, &byte) in frame[places].iter_mut().zip(piece) {
            *place = Some(byte);
        }
        let whole: Option<Vec<u8>> = frame.iter().copied().collect();
        if whole.is_some() {
            self.frames.remove(&fragment.frame_id);
        }
        Ok(whole)
    }
}
