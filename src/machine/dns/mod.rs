// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who resolves names while a tunnel is up.
//!
//! Machines differ, so whoever is in charge is found out anew each time, in this order:
//!
//! ```text
//! resolved    systemd-resolved, if programs really ask it: servers by link, by domain, with TLS
//! resolvconf  the program, if there is one: servers for all names
//! file        /etc/resolv.conf itself, for all names; what was there comes back
//! ```
//! Changes are journalled before they are made, so that the next start of the tunnel undoes what a
//! kill -9 left. What somebody else changed since has the last word. A request that the resolver
//! here cannot fulfil is refused: names would go to servers that they must not go to, or in clear.
//! Called by the provider after the device was set up.

mod file;
mod resolvconf;
mod resolved;

use std::{
    env, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use self::{
    file::Replacement,
    resolvconf::Resolvconf,
    resolved::{Found, Resolved},
};
use super::{bus::Bus, journal::Journal};

/// What is asked of the resolver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamesRequest {
    /// The servers, the preferred one first.
    pub servers: Vec<IpAddr>,
    /// How they are spoken to.
    pub transport: Transport,
    /// Which names go to them.
    pub scope: Scope,
    /// Domains that short names are tried in. With [`Scope::Domains`] their names go to the servers
    /// as well.
    pub search: Vec<String>,
}

/// How servers are spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// RFC 1035, whatever the resolver does with other servers.
    Cleartext,
    /// RFC 7858, never anything else.
    Tls {
        /// The name in the servers' certificates; none where the addresses are certified.
        server_name: Option<String>,
    },
}

/// Which names go to the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All.
    All,
    /// Those in these domains and in the search domains.
    Domains(Vec<String>),
}

/// Who resolves names now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamesOutcome {
    /// Whoever did without the tunnel.
    Unchanged,
    /// systemd-resolved, by link.
    Resolved,
    /// What resolvconf set up.
    Resolvconf,
    /// The servers in `/etc/resolv.conf`.
    File,
}

/// Why names are not resolved as asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NamesError {
    /// The resolver of this machine is not able to.
    #[error(
        "{resolver} cannot do {what}; run systemd-resolved with /etc/resolv.conf linked to \
         /run/systemd/resolve/stub-resolv.conf, or ask for all names, in clear"
    )]
    Unsupported {
        /// What it would have to do.
        what: &'static str,
        /// Who.
        resolver: &'static str,
    },
    /// Names are resolved for all network namespaces by one that is not this one.
    #[error(
        "systemd-resolved is in another network namespace; give this one an /etc/resolv.conf of its \
         own, as ip-netns(8) does with /etc/netns/NAME/resolv.conf"
    )]
    Elsewhere,
    /// Another tunnel has the file.
    #[error(
        "another tunnel has {}: {by:?}; stop that, or start and stop it if it was killed",
        path.display()
    )]
    Taken {
        /// The file.
        path: PathBuf,
        /// Its first line.
        by: String,
    },
    /// systemd-resolved refuses.
    #[error("systemd-resolved cannot {action}")]
    Resolved {
        /// What it was asked to do.
        action: &'static str,
        /// What it said.
        source: Box<zbus::Error>,
    },
    /// The program failed.
    #[error("{} failed", program.display())]
    Resolvconf {
        /// The program.
        program: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A file cannot be kept.
    #[error("cannot replace {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Who resolves names on a link, without the tunnels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolvers {
    /// The servers; none where nobody knows.
    pub servers: Vec<IpAddr>,
    /// Domains that short names are tried in.
    pub search: Vec<String>,
}

impl Resolvers {
    /// Those of the link with this index, as systemd-resolved has them; or else those of the
    /// machine, as they were before a tunnel replaced them. Must be called on a tokio runtime.
    pub async fn of_link(index: u32, places: &Places) -> Self {
        if let Found::Here(resolved) = Resolved::find(places).await {
            return resolved.in_use(index).await.unwrap_or_else(|error| {
                debug!(%error, "systemd-resolved does not say what it uses");
                Self::default()
            });
        }
        Self::parse(&file::without_tunnel(&places.resolv_conf))
    }

    /// Reads resolv.conf(5).
    fn parse(text: &str) -> Self {
        let mut resolvers = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.clone().next()) {
                (Some("nameserver"), Some(server)) => {
                    resolvers.servers.extend(server.parse::<IpAddr>());
                }
                // Of several lines the last counts.
                (Some("search" | "domain"), _) => {
                    resolvers.search = words.map(str::to_owned).collect();
                }
                _ => {}
            }
        }
        resolvers
    }
}

/// Where the machine's resolvers are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The bus of systemd-resolved.
    pub bus: Bus,
    /// What programs read.
    pub resolv_conf: PathBuf,
    /// The directories of programs.
    pub programs: Vec<PathBuf>,
}

impl Default for Places {
    fn default() -> Self {
        let path = env::var_os("PATH").unwrap_or_default();
        let administration = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        Self {
            bus: Bus::default(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            programs: env::split_paths(&path).chain(administration).collect(),
        }
    }
}

/// Name resolution of one tunnel.
#[derive(Debug)]
pub struct Names {
    tunnel: String,
    places: Places,
    journal: Journal<Record>,
    in_force: Option<InForce>,
}

#[derive(Debug, PartialEq, Eq)]
struct InForce {
    record: Record,
    request: NamesRequest,
}

/// What must be undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Record {
    Resolved(resolved::Link),
    Resolvconf(resolvconf::Entry),
    File(Replacement),
}

/// Who is in charge.
enum Resolver {
    Resolved(Resolved),
    Resolvconf(Resolvconf),
    File,
}

impl Names {
    /// Those of `tunnel`, whose journal lies in the run directory. Nothing is done yet.
    pub fn new(run_dir: &Path, tunnel: &str, places: Places) -> Self {
        Self {
            tunnel: tunnel.to_owned(),
            places,
            journal: Journal::at(run_dir.join(format!("{tunnel}.names"))),
            in_force: None,
        }
    }

    /// Makes `wanted` the state, for the link of this index and name; without anything wanted all is
    /// as if the tunnel had never been. An equal request changes nothing. The first call undoes what
    /// a killed run left. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// When the resolver here cannot do it or refuses; then nothing of the request is in force.
    pub async fn apply(
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
                warn!(error = %second, "cannot undo a change of the name servers that has failed half way; the next start of the tunnel tries again");
            }
            return Err(error);
        }
        let outcome = resolver.outcome();
        info!(tunnel = self.tunnel, resolver = ?outcome, "the tunnel's servers resolve names");
        Ok(outcome)
    }

    /// What a killed run left and cannot be undone is no reason not to start.
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
                _ => Replacement::plan(&self.places.resolv_conf, self.journal.path(), request)?,
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

    /// Undoes what the journal says, be it from this run or from one that was killed.
    async fn revert(&mut self) -> Result<(), NamesError> {
        self.in_force = None;
        let left = match self
            .journal
            .read()
            .map_err(file_error(self.journal.path()))?
        {
            // The run directory does not outlive the machine's power, but the file does.
            None => {
                Replacement::left(&self.places.resolv_conf, self.journal.path()).map(Record::File)
            }
            record => record,
        };
        match &left {
            None => return Ok(()),
            Some(Record::Resolved(link)) => link.revert(&self.places.bus).await?,
            Some(Record::Resolvconf(entry)) => entry.delete().await?,
            Some(Record::File(replacement)) => replacement.restore()?,
        }
        debug!(tunnel = self.tunnel, "names are resolved as before");
        self.journal
            .clear()
            .map_err(file_error(self.journal.path()))
    }

    async fn resolver(&self) -> Result<Resolver, NamesError> {
        match Resolved::find(&self.places).await {
            Found::Here(resolved) => return Ok(Resolver::Resolved(resolved)),
            // The file is then that of a machine whose links are not ours.
            Found::Elsewhere => return Err(NamesError::Elsewhere),
            Found::No => {}
        }
        let program = Resolvconf::find(&self.places.programs);
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
    /// Whether a change by `resolver` takes the place of this one, so that nothing is to be undone.
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

impl NamesRequest {
    /// As resolv.conf(5) has it.
    fn as_resolv_conf(&self) -> String {
        let mut text = String::new();
        if !self.search.is_empty() {
            text += &format!("search {}\n", self.search.join(" "));
        }
        for server in &self.servers {
            text += &format!("nameserver {server}\n");
        }
        text
    }
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> NamesError {
    let path = path.to_owned();
    move |source| NamesError::File { path, source }
}

#[cfg(test)]
mod tests;
