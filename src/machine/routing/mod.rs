// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which destinations go through the tunnel: a routing table of its own, and the rules that lead
//! there.
//!
//! ```text
//! priority  rule                                               in
//! P         lookup main suppress_prefixlength 0                the usual mode
//! P + 1     not fwmark M/mask lookup T                         every mode
//! 32766     lookup main                                        the machine's own
//! ```
//! P, M and T are a *slot*, a set of numbers that belongs to one tunnel as long as its [`Routing`]
//! lives. A lock file in the run directory reserves it against other tunnels; a look at the kernel's
//! rules and tables avoids the numbers of other programs. After a kill, a tunnel keeps the slot that
//! its journal names. Otherwise it takes the first free one, beginning with the one that follows from
//! its name, so that it is likely to be the same each time.
//!
//! Rules, and routes that refuse or throw, outlive the process and the interface. They are therefore
//! written down before they are made. The next start of the tunnel goes on from there. If another
//! program has begun to use the same numbers, it deletes what still matches the journal and takes other
//! numbers. It leaves whatever other programs put into the table, or at the priorities.
//!
//! [`Routing::restore`] makes again what other programs delete while the tunnel runs;
//! [`RoutingChanges`] says when to look.
//!
//! Routing does not touch packet sockets: DHCP clients, which use them, work in every mode.
//! The provider calls this when settings are applied, on the control thread.

mod changes;
mod error;
mod slot;
mod state;
mod tables;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use self::slot::Slot;
use self::tables::Tables;
use super::journal::Journal;
use super::lock::RoutingLock;
use crate::io::namespace_inode;

pub(crate) use self::changes::RoutingChanges;
pub use self::error::RoutingError;
pub(crate) use self::state::{Family, Route, RoutingState, Rule, Target};

/// The content of the journal.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The inode of the network namespace.
    namespace: u64,
    slot: Slot,
    /// What may exist; parts of it may be gone, or not made yet.
    state: RoutingState,
}

/// A slot in use.
#[derive(Debug)]
struct Claim {
    slot: Slot,
    tables: Tables,
    _lock: RoutingLock,
}

/// The routing of one tunnel. Dropping it without [`clear`](Self::clear) leaves everything in place,
/// until the next start of the same tunnel.
#[derive(Debug)]
pub(crate) struct Routing {
    run_dir: PathBuf,
    tunnel: String,
    journal: Journal<Record>,
    /// None as long as there is nothing to route.
    claim: Option<Claim>,
    /// The number of the claim's slot, or 0, for the listeners to the kernel.
    number: Arc<AtomicU8>,
    /// The state that the latest call of `apply` made.
    in_force: RoutingState,
    /// Whether an earlier run may have left something.
    leftovers: bool,
}

impl Routing {
    /// The routing of `tunnel`, whose lock the caller holds; reads nothing yet.
    pub(crate) fn new(run_dir: &Path, tunnel: &str) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            tunnel: tunnel.to_owned(),
            // No tunnel's name makes this the path of another journal; names may have dots.
            journal: Journal::at(run_dir.join(format!("{tunnel}.routes-journal"))),
            claim: None,
            number: Arc::default(),
            in_force: RoutingState::default(),
            leftovers: true,
        }
    }

    /// Changes from now on of the tunnel's routes and rules, in the network namespace of this thread.
    pub(crate) fn changes(&self) -> RoutingChanges {
        RoutingChanges::new(self.number.clone())
    }

    /// Makes `wanted` the state, in the network namespace of this thread, and changes only what
    /// differs. Leftovers of an earlier run count as made by an earlier call.
    ///
    /// # Errors
    /// When a step fails; the earlier ones are undone.
    pub(crate) async fn apply(&mut self, wanted: &RoutingState) -> Result<(), RoutingError> {
        self.take_over().await?;
        if wanted.is_empty() && self.claim.is_none() {
            return Ok(());
        }
        let Claim { slot, tables, .. } = self.claim().await?;
        let (slot, tables) = (*slot, tables.clone());
        let wanted = tables.possible(wanted);
        let before = tables.list(slot).await?;
        if before != wanted {
            self.write_journal(slot, &before.union(&wanted))?;
            if let Err(error) = tables.change(slot, &before, &wanted).await {
                self.roll_back(&tables, slot, &before).await;
                return Err(error);
            }
            self.write_journal(slot, &wanted)?;
        }
        self.in_force = wanted;
        Ok(())
    }

    /// Makes again what other programs deleted since [`apply`](Self::apply); false if there was
    /// nothing to do. Leaves out routes by an interface unless `interface_is_up`, as the kernel
    /// refuses them otherwise.
    ///
    /// # Errors
    /// When the kernel refuses something; the rest is back.
    pub(crate) async fn restore(&self, interface_is_up: bool) -> Result<bool, RoutingError> {
        let Some(Claim { slot, tables, .. }) = &self.claim else {
            return Ok(false);
        };
        let present = tables.list(*slot).await?;
        let mut lost = self.in_force.without(&present);
        if !interface_is_up {
            lost = lost.without_interfaces();
        }
        tables.add_again(*slot, &present, &lost).await?;
        Ok(!lost.is_empty())
    }

    /// Restores the state from before a failed step. Logs what cannot be restored and leaves it,
    /// with the journal as it is.
    async fn roll_back(&self, tables: &Tables, slot: Slot, before: &RoutingState) {
        let outcome = match tables.list(slot).await {
            Ok(now) => tables.change(slot, &now, before).await,
            Err(error) => Err(error),
        };
        if let Err(error) = outcome.and_then(|()| self.write_journal(slot, before)) {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            warn!(tunnel = self.tunnel, %error, source, "cannot restore the earlier routing; the next start of the tunnel cleans up");
        }
    }

    /// Deletes everything and releases the slot.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) async fn clear(&mut self) -> Result<(), RoutingError> {
        // Whatever fails now, `restore` must bring nothing back.
        self.in_force = RoutingState::default();
        self.apply(&RoutingState::default()).await?;
        self.set_claim(None);
        Ok(())
    }

    fn set_claim(&mut self, claim: Option<Claim>) {
        let number = claim.as_ref().map_or(0, |claim| claim.slot.number());
        self.number.store(number, Ordering::Relaxed);
        self.claim = claim;
    }

    async fn claim(&mut self) -> Result<&Claim, RoutingError> {
        if self.claim.is_none() {
            let found = self.find_slot().await?;
            self.set_claim(Some(found));
        }
        Ok(self.claim.as_ref().expect("it was there, or was just set"))
    }

    async fn find_slot(&self) -> Result<Claim, RoutingError> {
        let tables = Tables::connect()?;
        let rules = tables.rules().await?;
        for slot in Slot::all_for(&self.tunnel) {
            // Locked before it is read: another tunnel may be about to fill it.
            let Some(lock) = RoutingLock::try_acquire(&self.run_dir, slot.number())? else {
                continue;
            };
            if tables
                .is_free(slot, &rules, &RoutingState::default())
                .await?
            {
                return Ok(Claim {
                    slot,
                    tables,
                    _lock: lock,
                });
            }
        }
        Err(RoutingError::NoSlot)
    }

    /// Looks once for leftovers of a killed process.
    async fn take_over(&mut self) -> Result<(), RoutingError> {
        if !self.leftovers {
            return Ok(());
        }
        if let Some(record) = self.journal.read().map_err(self.journal_error())? {
            let inherited = self.inherit(&record).await?;
            self.set_claim(inherited);
            if self.claim.is_none() {
                self.journal.clear().map_err(self.journal_error())?;
            }
        }
        self.leftovers = false;
        Ok(())
    }

    /// The slot of a killed process with its content, to go on from there: a kill switch must not
    /// open in between. None if it is in another namespace, or if another tunnel has it now. If
    /// another program uses its numbers too, deletes what still matches the journal, and leaves the
    /// rest.
    async fn inherit(&self, record: &Record) -> Result<Option<Claim>, RoutingError> {
        let (tunnel, slot) = (&self.tunnel, record.slot);
        if record.namespace != namespace_inode().map_err(self.journal_error())? {
            warn!(
                tunnel,
                "leaving routes of an earlier run: they are in another network namespace"
            );
            return Ok(None);
        }
        let Some(lock) = RoutingLock::try_acquire(&self.run_dir, slot.number())? else {
            warn!(
                tunnel,
                "another tunnel uses the routing table of an earlier run now"
            );
            return Ok(None);
        };
        let table = slot.table();
        info!(tunnel, table, "an earlier run left routes and rules behind");
        let tables = Tables::connect()?;
        let present = tables.list(slot).await?;
        let foreign = present.without(&record.state);
        let ours = present.without(&foreign);
        if tables.is_free(slot, &tables.rules().await?, &ours).await? {
            return Ok(Some(Claim {
                slot,
                tables,
                _lock: lock,
            }));
        }
        tables.change(slot, &present, &foreign).await?;
        Ok(None)
    }

    /// Writes down what exists, or is about to.
    fn write_journal(&self, slot: Slot, state: &RoutingState) -> Result<(), RoutingError> {
        if state.is_empty() {
            return self.journal.clear().map_err(self.journal_error());
        }
        let record = Record {
            namespace: namespace_inode().map_err(self.journal_error())?,
            slot,
            state: state.clone(),
        };
        self.journal.write(&record).map_err(self.journal_error())
    }

    fn journal_error(&self) -> impl Fn(io::Error) -> RoutingError + use<> {
        let path = self.journal.path().to_owned();
        move |source| RoutingError::Journal {
            path: path.clone(),
            source,
        }
    }
}

#[cfg(test)]
mod tests;
