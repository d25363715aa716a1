// SPDX-License-Identifier: MIT OR Apache-2.0
//! Raises the priority of a service above the programs of other sessions while it carries bulk
//! traffic.
//!
//! The niceness of the data threads counts only inside the session of this process, and a service
//! shares its session with no program whose frames it carries; see [`crate::machine::autogroup`].

use std::{io::ErrorKind, sync::Arc, time::Duration};

use tracing::debug;

use crate::{machine::autogroup::Boost, pipeline::shared::Shared};

/// Between two looks at whether bulk goes on. The kernel takes ten changes in a second from a
/// process that is not root.
const LOOK: Duration = Duration::from_millis(250);

/// Holds the autogroup of this process at this niceness while the tunnel carries bulk.
pub(in crate::pipeline) async fn follow_bulk(shared: Arc<Shared>, nice: i32) {
    loop {
        shared.last_bulk.begins().await;
        let mut boost = None;
        while shared.last_bulk.is_now(shared.clock.now()) {
            if boost.is_none() {
                boost = take(nice);
            }
            tokio::time::sleep(LOOK).await;
        }
        while let Some(Err(kept)) = boost.map(Boost::end) {
            boost = Some(kept);
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn take(nice: i32) -> Option<Boost> {
    let taken = Boost::take(nice);
    taken.unwrap_or_else(|error| {
        if error.kind() != ErrorKind::WouldBlock {
            debug!(%error, nice, "cannot raise the priority of this process among other sessions");
        }
        None
    })
}
