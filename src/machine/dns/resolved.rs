// SPDX-License-Identifier: MIT OR Apache-2.0
//! systemd-resolved: servers by link, set over the system bus (org.freedesktop.resolve1(5)).

use std::{fs, net::IpAddr, os::unix::fs::MetadataExt, path::Path};

use serde::{Deserialize, Serialize};
use tracing::debug;
use zbus::{
    Connection,
    zvariant::{DynamicType, OwnedValue},
};

use super::{
    error::NamesError,
    paths::ResolverPaths,
    request::{NamesRequest, Scope, Transport},
    resolvers::Resolvers,
};
use crate::{
    io::namespace_inode,
    machine::{
        bus::{Bus, Object},
        link::Links,
    },
};

const RESOLVED: Object = Object {
    service: "org.freedesktop.resolve1",
    path: "/org/freedesktop/resolve1",
    interface: "org.freedesktop.resolve1.Manager",
};
const PROPERTIES: Object = Object {
    interface: "org.freedesktop.DBus.Properties",
    ..RESOLVED
};
const BUS: Object = Object {
    service: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

/// systemd-resolved in charge.
#[derive(Debug)]
pub(super) struct Resolved {
    bus: Connection,
    mode: Mode,
}

/// Whether systemd-resolved is in charge.
pub(super) enum Found {
    Here(Resolved),
    /// It is, but for the links of another network namespace.
    Elsewhere,
    No,
}

/// How programs reach its servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// They ask systemd-resolved.
    Stub,
    /// They read its servers from the file that it writes.
    Uplink,
}

/// A link whose servers were set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Link {
    namespace: u64,
    index: u32,
    name: String,
}

impl Resolved {
    /// It is in charge if it runs in this network namespace and programs reach it.
    pub(super) async fn find(paths: &ResolverPaths) -> Found {
        let Some(mode) = mode_of(&paths.resolv_conf) else {
            return Found::No;
        };
        let found = async {
            let bus = paths.bus.connect().await?;
            let owner = BUS.call(&bus, "GetNameOwner", &RESOLVED.service).await?;
            let owner: String = owner.body().deserialize()?;
            let process = BUS.call(&bus, "GetConnectionUnixProcessID", &owner).await?;
            let process = process.body().deserialize::<u32>()?;
            Ok::<_, zbus::Error>((bus, process))
        };
        match found.await {
            Ok((bus, process)) if is_in_this_namespace(process) => Found::Here(Self { bus, mode }),
            Ok(_) => Found::Elsewhere,
            Err(error) => {
                debug!(%error, "systemd-resolved does not run");
                Found::No
            }
        }
    }

    /// Whether programs ask it, so that it decides which server gets which name, and by which
    /// protocol.
    pub(super) fn is_asked_by_programs(&self) -> bool {
        self.mode == Mode::Stub
    }

    /// Sets everything in the request. It turns TLS on before it sets servers that need TLS, and
    /// off only after it has removed them: no query that needs TLS leaves in clear.
    pub(super) async fn set(&self, index: u32, request: &NamesRequest) -> Result<(), NamesError> {
        let link = index.cast_signed();
        let is_clear = request.transport == Transport::Cleartext;
        if !is_clear {
            self.set_tls(link, "yes").await?;
        }
        let action = "say whether the link's servers are for all names";
        let is_all = request.scope == Scope::All;
        self.call(action, "SetLinkDefaultRoute", &(link, is_all))
            .await?;
        let domains = (link, domains(request));
        self.call("set the domains of a link", "SetLinkDomains", &domains)
            .await?;
        self.set_servers(link, request).await?;
        if is_clear && let Err(error) = self.set_tls(link, "no").await {
            debug!(%error, "systemd-resolved was built without TLS");
        }
        Ok(())
    }

    /// The servers and search domains of one link, and those for all links.
    pub(super) async fn in_use(&self, index: u32) -> zbus::Result<Resolvers> {
        const ALL_LINKS: i32 = 0;
        let is_meant = |link: i32| [ALL_LINKS, index.cast_signed()].contains(&link);
        let servers: Vec<(i32, i32, Vec<u8>)> = self.property("DNS").await?;
        let domains: Vec<(i32, String, bool)> = self.property("Domains").await?;
        let servers = servers.into_iter().filter(|(link, ..)| is_meant(*link));
        let domains = domains.into_iter().filter(|(link, ..)| is_meant(*link));
        Ok(Resolvers {
            servers: servers.filter_map(|(_, _, bytes)| ip(&bytes)).collect(),
            search: domains
                .filter_map(|(_, domain, is_for_routing_only)| {
                    (!is_for_routing_only).then_some(domain)
                })
                .collect(),
        })
    }

    async fn property<T>(&self, name: &'static str) -> zbus::Result<T>
    where
        T: TryFrom<OwnedValue>,
        T::Error: Into<zbus::zvariant::Error>,
    {
        let arguments = (RESOLVED.interface, name);
        let answer = PROPERTIES.call(&self.bus, "Get", &arguments).await?;
        let value: OwnedValue = answer.body().deserialize()?;
        T::try_from(value).map_err(|error| zbus::Error::Variant(error.into()))
    }

    async fn set_tls(&self, link: i32, mode: &str) -> Result<(), NamesError> {
        let action = "switch DNS over TLS of a link";
        self.call(action, "SetLinkDNSOverTLS", &(link, mode)).await
    }

    async fn set_servers(&self, link: i32, request: &NamesRequest) -> Result<(), NamesError> {
        let action = "set the servers of a link";
        let addresses = request.servers.iter().map(address);
        let Transport::Tls {
            server_name: Some(name),
        } = &request.transport
        else {
            let servers: Vec<_> = addresses.collect();
            return self.call(action, "SetLinkDNS", &(link, servers)).await;
        };
        const DEFAULT_PORT: u16 = 0;
        let servers: Vec<_> = addresses
            .map(|(family, bytes)| (family, bytes, DEFAULT_PORT, name))
            .collect();
        self.call(action, "SetLinkDNSEx", &(link, servers)).await
    }

    async fn call<B>(
        &self,
        action: &'static str,
        method: &'static str,
        arguments: &B,
    ) -> Result<(), NamesError>
    where
        B: Serialize + DynamicType,
    {
        let answer = RESOLVED.call(&self.bus, method, arguments).await;
        answer.map(drop).map_err(|source| NamesError::Resolved {
            action,
            source: Box::new(source),
        })
    }
}

impl Link {
    pub(super) fn new(index: u32, name: &str) -> Self {
        Self {
            namespace: namespace_inode().unwrap_or_default(),
            index,
            name: name.to_owned(),
        }
    }

    /// Removes the servers. They are gone already if the link or systemd-resolved is.
    pub(super) async fn revert(&self, bus: &Bus) -> Result<(), NamesError> {
        if *self != Self::new(self.index, &self.name) || !self.exists().await {
            return Ok(());
        }
        let Ok(bus) = bus.connect().await else {
            return Ok(());
        };
        let index = self.index.cast_signed();
        match RESOLVED.call(&bus, "RevertLink", &index).await {
            Err(zbus::Error::MethodError(name, ..)) if is_gone(&name) => Ok(()),
            outcome => outcome.map(drop).map_err(|source| NamesError::Resolved {
                action: "forget the servers of a link",
                source: Box::new(source),
            }),
        }
    }

    /// Another link may have the index after a restart.
    async fn exists(&self) -> bool {
        let Ok(links) = Links::connect() else {
            return false;
        };
        let link = links.find(&self.name).await.ok().flatten();
        link.is_some_and(|link| link.index == self.index)
    }
}

fn is_gone(error: &str) -> bool {
    [
        "org.freedesktop.resolve1.NoSuchLink",
        "org.freedesktop.DBus.Error.ServiceUnknown",
        "org.freedesktop.DBus.Error.NameHasNoOwner",
    ]
    .contains(&error)
}

/// Route-only domains say which names go to the servers; search domains do that and complete names.
fn domains(request: &NamesRequest) -> Vec<(&str, bool)> {
    const ROUTE_ONLY: bool = true;
    let search = request
        .search
        .iter()
        .map(|name| (name.as_str(), !ROUTE_ONLY));
    let routes: Vec<_> = match &request.scope {
        Scope::All => vec!["."],
        Scope::Domains(domains) => domains.iter().map(String::as_str).collect(),
    };
    // Of a domain that is listed twice, only the last flag would count.
    let routes = routes
        .into_iter()
        .filter(|name| !request.search.iter().any(|search| search == name));
    let routes = routes.map(|name| (name, ROUTE_ONLY));
    search.chain(routes).collect()
}

/// Family and bytes.
fn address(address: &IpAddr) -> (i32, Vec<u8>) {
    // Linux has these values on every architecture (bits/socket.h).
    const AF_INET: i32 = 2;
    const AF_INET6: i32 = 10;
    match address {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let ipv4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    ipv4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// How programs that read this file reach systemd-resolved, if they do (systemd-resolved(8),
/// "/etc/resolv.conf").
fn mode_of(resolv_conf: &Path) -> Option<Mode> {
    if let Ok(target) = fs::read_link(resolv_conf) {
        for (file, mode) in [
            ("systemd/resolve/stub-resolv.conf", Mode::Stub),
            ("lib/systemd/resolv.conf", Mode::Stub),
            ("systemd/resolve/resolv.conf", Mode::Uplink),
        ] {
            if target.ends_with(file) {
                return Some(mode);
            }
        }
    }
    let text = fs::read_to_string(resolv_conf).ok()?;
    let mut servers = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .map(str::trim)
        .peekable();
    servers.peek()?;
    servers
        .all(|server| ["127.0.0.53", "127.0.0.54"].contains(&server))
        .then_some(Mode::Stub)
}

/// In the namespace of a systemd-resolved elsewhere, a link has another index, or none. Without
/// permission to look, assumes the usual case.
fn is_in_this_namespace(process: u32) -> bool {
    let theirs = fs::metadata(format!("/proc/{process}/ns/net")).map(|file| file.ino());
    match (theirs, namespace_inode()) {
        (Ok(theirs), Ok(ours)) => theirs == ours,
        _ => true,
    }
}

/// A stub of systemd-resolved that records its calls.
#[cfg(test)]
pub(super) mod testing {
    use std::fmt::Debug;
    use std::net::Ipv6Addr;
    use std::sync::{Arc, Mutex};

    use zbus::fdo::{Error, Result};

    use super::RESOLVED;
    use crate::machine::bus::{Bus, testing::TestBus};

    pub(in crate::machine::dns) struct TestResolved {
        bus: TestBus,
        _connection: zbus::Connection,
        notes: Notes,
    }

    #[derive(Clone, Default)]
    struct Notes {
        calls: Arc<Mutex<Vec<String>>>,
        refused: Arc<Mutex<Option<&'static str>>>,
    }

    impl Notes {
        fn take(&self, what: &str, value: impl Debug) -> Result<()> {
            if *self.refused.lock().unwrap() == Some(what) {
                return Err(Error::Failed("refused".to_owned()));
            }
            self.calls.lock().unwrap().push(format!("{what} {value:?}"));
            Ok(())
        }
    }

    #[zbus::interface(name = "org.freedesktop.resolve1.Manager")]
    impl Notes {
        #[zbus(name = "SetLinkDNS")]
        fn set_servers(&self, _link: i32, servers: Vec<(i32, Vec<u8>)>) -> Result<()> {
            self.take("servers", servers)
        }

        #[zbus(name = "SetLinkDNSEx")]
        fn set_named_servers(
            &self,
            _link: i32,
            servers: Vec<(i32, Vec<u8>, u16, String)>,
        ) -> Result<()> {
            self.take("servers", servers)
        }

        #[zbus(name = "SetLinkDomains")]
        fn set_domains(&self, _link: i32, domains: Vec<(String, bool)>) -> Result<()> {
            self.take("domains", domains)
        }

        #[zbus(name = "SetLinkDefaultRoute")]
        fn set_default_route(&self, _link: i32, enable: bool) -> Result<()> {
            self.take("default", enable)
        }

        #[zbus(name = "SetLinkDNSOverTLS")]
        fn set_tls(&self, _link: i32, mode: &str) -> Result<()> {
            self.take("tls", format_args!("{mode}"))
        }

        #[zbus(property, name = "DNS")]
        fn servers(&self) -> Vec<(i32, i32, Vec<u8>)> {
            vec![
                (0, 2, vec![192, 0, 2, 1]),
                (7, 2, vec![192, 0, 2, 7]),
                (8, 10, Ipv6Addr::LOCALHOST.octets().into()),
            ]
        }

        #[zbus(property)]
        fn domains(&self) -> Vec<(i32, String, bool)> {
            vec![
                (7, "seven.example".to_owned(), false),
                (7, "routed.example".to_owned(), true),
                (8, "eight.example".to_owned(), false),
            ]
        }

        fn revert_link(&self, _link: i32) -> Result<()> {
            self.calls.lock().unwrap().push("revert".to_owned());
            Ok(())
        }
    }

    impl TestResolved {
        pub(in crate::machine::dns) async fn start() -> Self {
            let bus = TestBus::start();
            let connection = bus.bus().connect().await.unwrap();
            let notes = Notes::default();
            let server = connection.object_server();
            server.at(RESOLVED.path, notes.clone()).await.unwrap();
            connection.request_name(RESOLVED.service).await.unwrap();
            Self {
                bus,
                _connection: connection,
                notes,
            }
        }

        pub(in crate::machine::dns) fn bus(&self) -> Bus {
            self.bus.bus()
        }

        /// The calls since the last time.
        pub(in crate::machine::dns) fn take_calls(&self) -> Vec<String> {
            std::mem::take(&mut *self.notes.calls.lock().unwrap())
        }

        /// From now on, refuses calls of this method.
        pub(in crate::machine::dns) fn refuse(&self, what: &'static str) {
            *self.notes.refused.lock().unwrap() = Some(what);
        }
    }
}
