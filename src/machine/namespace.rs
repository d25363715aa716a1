// SPDX-License-Identifier: MIT OR Apache-2.0
//! Network namespaces by the names that users know: to say where an interface went, and how to move it
//! back.
//!
//! The kernel identifies a namespace by a number that is valid in ours only (`ip netns list-id`), or by
//! its inode. Users know it by its name below `/run/netns`, or by a process in it. Changes nothing.

use std::{
    collections::HashSet,
    fmt,
    fs::{self, File},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    process,
};

use futures_util::StreamExt;
use rtnetlink::{
    Handle,
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        nsid::{NsidAttribute, NsidMessage},
    },
};

use crate::io::namespace_inode;

/// Where `ip netns` keeps names.
const NAMES: &str = "/run/netns";

/// A network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Namespace {
    /// A namespace with a name of `ip netns`.
    Named(String),
    /// A namespace with this process in it.
    OfProcess(u32),
    /// A namespace in which no process is visible.
    Unknown,
}

impl Namespace {
    /// The namespace that has this number in the namespace of this thread.
    pub(crate) async fn with_id(id: i32) -> Self {
        let Ok((connection, mut handle, _)) = rtnetlink::new_connection() else {
            return Self::Unknown;
        };
        let connection = tokio::spawn(connection);
        let mut found = Self::Unknown;
        for place in places() {
            if id_of(&mut handle, &place.path).await == Some(id) {
                found = place.namespace;
                break;
            }
        }
        connection.abort();
        found
    }

    /// The namespace with this inode.
    pub(super) fn with_inode(inode: u64) -> Self {
        let found = places().find(|place| place.inode == inode);
        found.map_or(Self::Unknown, |place| place.namespace)
    }

    /// The namespace of this thread.
    pub(crate) fn own() -> Self {
        namespace_inode().map_or(Self::Unknown, Self::with_inode)
    }

    /// The command that moves the interface `name` from here to `target`.
    pub(crate) fn command_to_move(&self, name: &str, target: &Self) -> String {
        let ip = match self {
            Self::Named(namespace) => format!("ip -n {namespace}"),
            Self::OfProcess(pid) => format!("nsenter -t {pid} -n ip"),
            Self::Unknown => "ip".to_owned(),
        };
        let target = match target {
            Self::Named(namespace) => namespace.clone(),
            Self::OfProcess(pid) => pid.to_string(),
            Self::Unknown => "NAMESPACE".to_owned(),
        };
        format!("{ip} link set {name} netns {target}")
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => write!(f, "the network namespace `{name}`"),
            Self::OfProcess(pid) => write!(f, "the network namespace of process {pid}"),
            Self::Unknown => f.write_str("another network namespace"),
        }
    }
}

struct Place {
    inode: u64,
    path: PathBuf,
    namespace: Namespace,
}

/// All visible namespaces, each once: names first, then the oldest processes.
fn places() -> impl Iterator<Item = Place> {
    let mut seen = HashSet::new();
    let all = named().into_iter().chain(of_processes());
    all.filter_map(|(path, namespace)| {
        let inode = fs::metadata(&path).ok()?.ino();
        Some(Place {
            inode,
            path,
            namespace,
        })
    })
    .filter(move |place| seen.insert(place.inode))
}

fn named() -> Vec<(PathBuf, Namespace)> {
    let name = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        Some((entry.path(), Namespace::Named(name)))
    };
    let entries = fs::read_dir(NAMES).into_iter().flatten().flatten();
    entries.filter_map(name).collect()
}

fn of_processes() -> impl Iterator<Item = (PathBuf, Namespace)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pid = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    // Leaves out this process, which ends with the tunnel.
    let mut pids: Vec<_> = entries
        .filter_map(pid)
        .filter(|pid| *pid != process::id())
        .collect();
    pids.sort_unstable();
    let path = |pid| PathBuf::from(format!("/proc/{pid}/ns/net"));
    pids.into_iter()
        .map(move |pid| (path(pid), Namespace::OfProcess(pid)))
}

/// The number that a namespace has in ours.
async fn id_of(handle: &mut Handle, path: &Path) -> Option<i32> {
    let file = File::open(path).ok()?;
    let mut question = NsidMessage::default();
    let fd = NsidAttribute::Fd(file.as_raw_fd().cast_unsigned());
    question.attributes.push(fd);
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
    message.header.flags = NLM_F_REQUEST;
    let answers = handle.request(message).ok()?;
    let answer = std::pin::pin!(answers).next().await?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) = answer.payload else {
        return None;
    };
    let id = |attribute: &NsidAttribute| match attribute {
        NsidAttribute::Id(id) => Some(*id),
        _ => None,
    };
    answer.attributes.iter().find_map(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_namespace;

    #[test]
    fn commands_name_both_namespaces() {
        let (blue, process) = (
            Namespace::Named("blue".to_owned()),
            Namespace::OfProcess(17),
        );
        for (from, to, command) in [
            (&blue, &process, "ip -n blue link set eth7 netns 17"),
            (
                &process,
                &blue,
                "nsenter -t 17 -n ip link set eth7 netns blue",
            ),
        ] {
            assert_eq!(from.command_to_move("eth7", to), command);
        }
        assert_eq!(blue.to_string(), "the network namespace `blue`");
    }

    #[test]
    fn a_namespace_without_a_process_has_no_name() {
        // Threads do not count, and this process ends with the tunnel.
        in_namespace(|| assert_eq!(Namespace::own(), Namespace::Unknown));
    }
}
