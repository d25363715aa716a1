// SPDX-License-Identifier: MIT OR Apache-2.0
//! The multicast groups that a link listens to: those that the kernel, on behalf of sockets, has put
//! into the link's filter (`ip maddress`).
//!
//! Belongs to the network namespace of the thread that calls [`watch()`]; `provider` calls it.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read, Seek},
    time::Duration,
};

use rtnetlink::MulticastGroup;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::warn;

use super::changes::Changes;
use crate::retry::Retry;

/// The kernel does not announce groups that packet sockets join (LLDP), and announces those of IP only
/// since 6.15; so this module reads the table at this interval.
const PERIOD: Duration = Duration::from_secs(1);

/// The groups of the link with this `index`, none while no link has it, and their changes, until the
/// last receiver is dropped. A change is reported within a second. Must be called on a tokio runtime.
///
/// # Errors
/// When the table of groups cannot be opened.
pub(crate) fn watch(
    index: impl Fn() -> Option<u32> + Send + Sync + 'static,
) -> io::Result<(
    watch::Receiver<BTreeSet<[u8; 6]>>,
    impl Future<Output = ()> + Send,
)> {
    use MulticastGroup::{Ipv4Ifaddr, Ipv4Mcaddr, Ipv6Ifaddr, Ipv6Mcaddr, Link};
    let optional = [Ipv6Ifaddr, Ipv4Mcaddr, Ipv6Mcaddr];
    let mut changes = Changes::of("multicast groups", &[Link, Ipv4Ifaddr], &optional);
    // Opened once: the file belongs to the namespace of the thread that opens it.
    let mut table = File::open("/proc/thread-self/net/dev_mcast")?;
    let mut retry = Retry::new(PERIOD, PERIOD);
    let (sender, receiver) = watch::channel(BTreeSet::new());
    let following = async move {
        let follow = async {
            loop {
                let groups = index().map_or(Ok(BTreeSet::new()), |index| read(&mut table, index));
                match groups {
                    Ok(groups) => publish(&sender, groups),
                    Err(error) if retry.may_log(Instant::now().into()) => {
                        warn!(%error, "cannot read the table of multicast groups: joins and leaves are not noticed; trying again each second");
                    }
                    Err(_) => {}
                }
                tokio::select! {
                    () = changes.next() => {}
                    () = sleep(PERIOD) => {}
                }
            }
        };
        tokio::select! {
            () = follow => {}
            () = sender.closed() => {}
        }
    };
    Ok((receiver, following))
}

fn publish(sender: &watch::Sender<BTreeSet<[u8; 6]>>, groups: BTreeSet<[u8; 6]>) {
    sender.send_if_modified(|known| {
        let is_new = *known != groups;
        *known = groups;
        is_new
    });
}

fn read(table: &mut File, index: u32) -> io::Result<BTreeSet<[u8; 6]>> {
    let mut text = String::new();
    table.rewind()?;
    table.read_to_string(&mut text)?;
    Ok(parse(&text, index))
}

/// Lines are `index name users global-users address`.
fn parse(text: &str, index: u32) -> BTreeSet<[u8; 6]> {
    let groups = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let is_ours = words.next()?.parse() == Ok(index);
        let address = words.next_back()?;
        is_ours.then(|| address_of(address)).flatten()
    });
    groups.collect()
}

fn address_of(hex: &str) -> Option<[u8; 6]> {
    let mut address = [0; 6];
    if hex.len() != 12 || !hex.is_ascii() {
        return None;
    }
    for (byte, at) in address.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&hex[at..at + 2], 16).ok()?;
    }
    Some(address)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use tokio::time::timeout;

    use super::*;
    use crate::testing::{block_on, in_namespace, ip};

    #[test]
    fn lines_of_other_links_do_not_count() {
        let text = "2    eth0            1     0     01005e000001\n\
                    12   tap0            1     0     333300000001\n\
                    12   tap0            2     0     0180c200000e\n\
                    12   ipoib0          1     0     00ffffffff12401bffff000000000000ffffffff\n";
        let groups = parse(text, 12);
        let expected = [[0x01, 0x80, 0xc2, 0, 0, 0x0e], [0x33, 0x33, 0, 0, 0, 1]];
        assert_eq!(groups, BTreeSet::from(expected));
    }

    #[test]
    fn groups_come_and_go_with_their_sockets() {
        in_namespace(|| {
            block_on(async {
                ip("link add east type veth peer name far");
                ip("address add 192.0.2.2/24 dev east");
                ip("link set east up");
                let index = nix::net::if_::if_nametoindex("east").unwrap();
                let (mut groups, following) = watch(move || Some(index)).unwrap();
                let _following = tokio::spawn(following);
                let mdns = [0x01, 0, 0x5e, 0, 0, 0xfb];
                #[allow(clippy::disallowed_methods)]
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                let (group, own) = (Ipv4Addr::new(224, 0, 0, 251), Ipv4Addr::new(192, 0, 2, 2));
                for joined in [true, false] {
                    let result = match joined {
                        true => socket.join_multicast_v4(&group, &own),
                        false => socket.leave_multicast_v4(&group, &own),
                    };
                    result.unwrap();
                    let seen = groups.wait_for(|groups| groups.contains(&mdns) == joined);
                    timeout(Duration::from_secs(3), seen)
                        .await
                        .unwrap()
                        .unwrap();
                }
                // As an LLDP daemon joins it, without a message of the kernel.
                let lldp = [0x01, 0x80, 0xc2, 0, 0, 0x0e];
                ip("maddress add 01:80:c2:00:00:0e dev east");
                let seen = groups.wait_for(|groups| groups.contains(&lldp));
                timeout(Duration::from_secs(3), seen)
                    .await
                    .unwrap()
                    .unwrap();
            });
        });
    }
}
