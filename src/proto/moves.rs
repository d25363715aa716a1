// SPDX-License-Identifier: MIT OR Apache-2.0
//! Detects a peer that is at two addresses in turn: two machines have its key, or another host
//! forwards its datagrams. A peer that roams moves on and seldom returns.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// This many returns …
const RETURNS: usize = 4;
/// … within this time are no roaming.
const WINDOW: Duration = Duration::from_secs(60);

/// The latest moves of one peer.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    /// Its address before the present one.
    former: Option<SocketAddr>,
    returns: VecDeque<Instant>,
}

impl Moves {
    /// Takes in a move. Returns the two addresses, in a fixed order, if the peer alternates between
    /// them.
    pub(crate) fn note(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        now: Instant,
    ) -> Option<[SocketAddr; 2]> {
        if self.former.replace(from) != Some(to) {
            self.returns.clear();
            return None;
        }
        self.returns.push_back(now);
        while self.returns.len() > RETURNS {
            self.returns.pop_front();
        }
        let first = *self.returns.front()?;
        let is_often = self.returns.len() == RETURNS && now < first + WINDOW;
        is_often.then(|| [from.min(to), from.max(to)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(moves: &[(u16, u16, u64)]) -> Vec<Option<[u16; 2]>> {
        let begin = Instant::now();
        let address = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let mut known = Moves::default();
        moves
            .iter()
            .map(|&(from, to, s)| {
                let now = begin + Duration::from_secs(s);
                let shared = known.note(address(from), address(to), now);
                shared.map(|both| both.map(|address| address.port()))
            })
            .collect()
    }

    #[test]
    fn four_returns_in_a_minute_are_two_machines() {
        let moves = [
            (1, 2, 0),
            (2, 1, 10),
            (1, 2, 20),
            (2, 1, 30),
            (1, 2, 69),
            (2, 1, 100),
        ];
        let both = Some([1, 2]);
        assert_eq!(told(&moves), [None, None, None, None, both, None]);
    }

    #[test]
    fn a_peer_that_moves_on_roams() {
        let roams: Vec<_> = (1..20).map(|at| (at, at + 1, u64::from(at))).collect();
        assert!(told(&roams).iter().all(Option::is_none));
        let slowly: Vec<_> = (0..20)
            .map(|at: u16| (1 + at % 2, 2 - at % 2, u64::from(at) * 25))
            .collect();
        assert!(told(&slowly).iter().all(Option::is_none));
    }
}
