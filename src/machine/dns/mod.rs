// SPDX-License-Identifier: MIT OR Apache-2.0
//! The resolver of names while a tunnel is up.
//!
//! Machines differ, so each call determines the resolver in charge anew, in this order:
//!
//! ```text
//! resolved    systemd-resolved, if programs really ask it: servers by link, by domain, with TLS
//! resolvconf  the program, if there is one: servers for all names
//! file        /etc/resolv.conf itself, for all names; what was there comes back
//! ```
//! Each change is written to a journal before it is made, so that the next start of the tunnel undoes
//! what a kill -9 left. A later change by another program has the last word. A request that the
//! resolver here cannot fulfil is refused: otherwise names would go to servers that must not see them,
//! or in clear. Called by the provider after the device was set up.

mod error;
mod file;
mod paths;
mod request;
mod resolvconf;
mod resolved;
mod resolvers;

use std::path::Path;

use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

pub use self::error::NamesError;
use self::{
    error::file_error,
    file::Replacement,
    resolvconf::Resolvconf,
    resolved::{Found, Resolved},
};
pub(crate) use self::{
    paths::ResolverPaths,
    request::{NamesRequest, Scope, Transport},
    resolvers::Resolvers,
};
use super::journal::Journal;

/// The resolver in charge now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NamesOutcome {
    /// The same as without the tunnel.
    Unchanged,
    /// systemd-resolved, per link.
    Resolved,
    /// The servers that resolvconf set up.
    Resolvconf,
    /// The servers in `/etc/resolv.conf`.
    File,
}

impl Resolvers {
    /// The resolvers of the link with this index, as systemd-resolved has them; otherwise those of
    /// the machine, as they were before a tunnel replaced them. Must be called on a tokio runtime.
    pub(crate) async fn of_link(index: u32, paths: &ResolverPaths) -> Self {
        if let Found::Here(resolved) = Resolved::find(paths).await {
            return resolved.in_use(index).await.unwrap_or_else(|error| {
                debug!(%error, "cannot read the servers of systemd-resolved");
                Self::default()
            });
        }
        Self::parse(&file::without_tunnel(&paths.resolv_conf))
    }
}

/// Name resolution of one tunnel.
#[derive(Debug)]
pub(crate) struct Names {
    tunnel: String,
    paths: ResolverPaths,
    journal: Journal<Record>,
    in_force: Option<InForce>,
}

#[derive(Debug, PartialEq, Eq)]
struct InForce {
    record: Record,
    request: NamesRequest,
}

/// The changes to undo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Record {
    Resolved(resolved::Link),
    Resolvconf(resolvconf::Entry),
    File(Replacement),
}

/// The resolver in charge.
enum Resolver {
    Resolved(Resolved),
    Resolvconf(Resolvconf),
    File,
}

impl Names {
    /// Name resolution of `tunnel`, whose journal is in the run directory. Changes nothing yet.
    pub(crate) fn new(run_dir: &Path, tunnel: &str, paths: ResolverPaths) -> Self {
        Self {
            tunnel: tunnel.to_owned(),
            paths,
            journal: Journal::at(run_dir.join(format!("{tunnel}.names"))),
            in_force: None,
        }
    }

    /// Makes `wanted` the state, for the link of this index and name; without a request, restores
    /// the state without the tunnel. An equal request changes nothing. The first call undoes what a
    /// killed run left. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// When the resolver here cannot do it or refuses; then no part of the request is in force.
    pub(crate) async fn apply(
        &mut self,
        index: u32,
        name: &str,
        wanted: Option<&NamesRequest>,
    ) -> Result<NamesOutcome, NamesError> {
        let Some(request) = wanted else {
            return self.withdraw().await;
        };
        if self.in_force.is_none() {
            self.revert().await?;
        }
        let resolver = self.resolver().await?;
        resolver.check(request)?;
        if let Some(in_force) = &self.in_force {
            if !in_force.record.is_kept_by(&resolver, index, name) {
                self.revert().await?;
            } else if in_force.request == *request {
                return Ok(resolver.outcome());
            }
        }
        if let Err(error) = self.change(&resolver, index, name, request).await {
            if let Err(second) = self.revert().await {
                warn!(error = %second, "cannot undo a partly failed change of the name servers; the next start of the tunnel tries again");
            }
            return Err(error);
        }
        let outcome = resolver.outcome();
        info!(tunnel = self.tunnel, resolver = ?outcome, "the tunnel's servers resolve names");
        Ok(outcome)
    }

    /// A start must not fail over leftovers of a killed run that cannot be undone.
    async fn withdraw(&mut self) -> Result<NamesOutcome, NamesError> {
        let was_in_force = self.in_force.is_some();
        match self.revert().await {
            Err(error) if !was_in_force => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                warn!(%error, source, "cannot undo what an earlier run did to the name servers; look at /etc/resolv.conf, or `resolvectl`");
            }
            outcome => outcome?,
        }
        Ok(NamesOutcome::Unchanged)
    }

    async fn change(
        &mut self,
        resolver: &Resolver,
        index: u32,
        name: &str,
        request: &NamesRequest,
    ) -> Result<(), NamesError> {
        let earlier = self.in_force.take().map(|in_force| in_force.record);
        let record = match resolver {
            Resolver::Resolved(_) => Record::Resolved(resolved::Link::new(index, name)),
            Resolver::Resolvconf(program) => Record::Resolvconf(program.entry(name)),
            Resolver::File => Record::File(match earlier {
                Some(Record::File(replacement)) => {
                    replacement.with(self.journal.path(), request)?
                }
                _ => Replacement::plan(&self.paths.resolv_conf, self.journal.path(), request)?,
            }),
        };
        let journal_error = file_error(self.journal.path());
        self.journal.write(&record).map_err(journal_error)?;
        match (resolver, &record) {
            (Resolver::Resolved(resolved), _) => resolved.set(index, request).await?,
            (Resolver::Resolvconf(program), _) => program.add(name, request).await?,
            (Resolver::File, Record::File(replacement)) => replacement.put()?,
            (Resolver::File, _) => {}
        }
        self.in_force = Some(InForce {
            record,
            request: request.clone(),
        });
        Ok(())
    }

    /// Undoes the changes in the journal, of this run or of a killed one.
    async fn revert(&mut self) -> Result<(), NamesError> {
        self.in_force = None;
        let left = match self
            .journal
            .read()
            .map_err(file_error(self.journal.path()))?
        {
            // The run directory is lost in a power cut, the file is not.
            None => {
                Replacement::left(&self.paths.resolv_conf, self.journal.path()).map(Record::File)
            }
            record => record,
        };
        match &left {
            None => return Ok(()),
            Some(Record::Resolved(link)) => link.revert(&self.paths.bus).await?,
            Some(Record::Resolvconf(entry)) => entry.delete().await?,
            Some(Record::File(replacement)) => replacement.restore()?,
        }
        debug!(tunnel = self.tunnel, "restored the earlier name servers");
        self.journal
            .clear()
            .map_err(file_error(self.journal.path()))
    }

    async fn resolver(&self) -> Result<Resolver, NamesError> {
        match Resolved::find(&self.paths).await {
            Found::Here(resolved) => return Ok(Resolver::Resolved(resolved)),
            // The file then belongs to a machine whose links are not ours.
            Found::Elsewhere => return Err(NamesError::Elsewhere),
            Found::No => {}
        }
        let program = Resolvconf::find(&self.paths.programs);
        Ok(program.map_or(Resolver::File, Resolver::Resolvconf))
    }
}

impl Resolver {
    fn outcome(&self) -> NamesOutcome {
        match self {
            Self::Resolved(_) => NamesOutcome::Resolved,
            Self::Resolvconf(_) => NamesOutcome::Resolvconf,
            Self::File => NamesOutcome::File,
        }
    }

    fn check(&self, request: &NamesRequest) -> Result<(), NamesError> {
        let resolver = match self {
            Self::Resolved(resolved) if resolved.is_asked_by_programs() => return Ok(()),
            Self::Resolved(_) => "a program that reads the servers from /etc/resolv.conf",
            Self::Resolvconf(_) => "resolvconf",
            Self::File => "/etc/resolv.conf",
        };
        let what = match (&request.transport, &request.scope) {
            (Transport::Tls { .. }, _) => "DNS over TLS",
            (Transport::Cleartext, Scope::Domains(_)) => "servers for some domains only",
            (Transport::Cleartext, Scope::All) => return Ok(()),
        };
        Err(NamesError::Unsupported { what, resolver })
    }
}

impl Record {
    /// Whether a change by `resolver` replaces this one, so that there is nothing to undo.
    fn is_kept_by(&self, resolver: &Resolver, index: u32, name: &str) -> bool {
        match (self, resolver) {
            (Self::Resolved(link), Resolver::Resolved(_)) => {
                *link == resolved::Link::new(index, name)
            }
            (Self::Resolvconf(entry), Resolver::Resolvconf(program)) => {
                *entry == program.entry(name)
            }
            (Self::File(_), Resolver::File) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
