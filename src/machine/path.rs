// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's own route to the Internet, as the sockets outside of the tunnel see it.
//!
//! This module asks the kernel for its routes to a few public addresses, with the mark of those
//! sockets. So rules that send everything else into a tunnel do not count, half routes (`0.0.0.0/1` and
//! `128.0.0.0/1`) count as much as a default route, and nothing is sent. Belongs to the network
//! namespace of the thread that calls [`watch()`]; `provider` calls it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures_util::TryStreamExt;
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder,
    packet_route::{
        link::{LinkFlags, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
    },
};
use tokio::{sync::watch, time::sleep};
use tracing::debug;

use super::{changes::Changes, link::LinkInfo, netlink::Netlink};
use crate::io::mark::Mark;

/// One address of each half of IPv4, in blocks that have been routed publicly for decades, and that
/// sites have no reason to route by themselves (unlike those of well-known name servers).
const PUBLIC_IPV4: [Ipv4Addr; 2] = [Ipv4Addr::new(18, 0, 0, 1), Ipv4Addr::new(200, 160, 0, 1)];
/// All public addresses of IPv6 lie in one half; this one is in 2600::/12.
const PUBLIC_IPV6: Ipv6Addr = Ipv6Addr::new(0x2600, 0, 0, 0, 0, 0, 0, 1);

/// Whether there is a route out; numbers as in `NWPathStatus`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum PathStatus {
    /// Not determined yet.
    #[default]
    Invalid = 0,
    /// There is a route, over a link that is up.
    Satisfied = 1,
    /// There is no route, or its link has no carrier.
    Unsatisfied = 2,
    /// There is a route, and its link waits for something, such as 802.1X or a call ("dormant").
    Satisfiable = 3,
}

/// The link of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PathInterface {
    /// Its identity in the network namespace.
    pub index: u32,
    /// Its name, for log lines.
    pub name: String,
}

/// The best route out. Equal paths are equal for sockets: one that differs may need new ones.
///
/// Costs (`isExpensive`, `isConstrained`) are missing: the kernel does not know them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Path {
    /// Whether it can be used.
    pub status: PathStatus,
    /// The link; of IPv4 and IPv6 the better one, IPv4 if both are equal. `None` without a route.
    pub interface: Option<PathInterface>,
    /// The next routers on that link, at most one of IPv4 and one of IPv6. A point-to-point link
    /// needs none.
    pub gateways: Vec<IpAddr>,
    /// The source addresses of sockets on that link, likewise.
    pub sources: Vec<IpAddr>,
    /// The largest packet, from the link or from the route.
    pub mtu: Option<u32>,
    /// Whether IPv4 has a route, on this link or another.
    pub has_ipv4: bool,
    /// Whether IPv6 has a route, on this link or another.
    pub has_ipv6: bool,
}

/// The path of sockets with `mark`, and its changes, until the last receiver is dropped. The first
/// value is [`PathStatus::Invalid`], and the first result follows at once. A change is reported when
/// the path has been stable for 100 ms, and each second if it never is. A route over a link for which
/// `is_own` does not count. Must be called on a tokio runtime.
///
/// # Errors
/// When no netlink socket can be opened.
pub(crate) fn watch(
    mark: Mark,
    is_own: impl Fn(u32) -> bool + Send + Sync + 'static,
) -> io::Result<(watch::Receiver<Path>, impl Future<Output = ()> + Send)> {
    use MulticastGroup::{
        Ipv4Ifaddr, Ipv4Route, Ipv4Rule, Ipv6Ifaddr, Ipv6Route, Ipv6Rule, Link, Nexthop,
    };
    let groups = [Link, Ipv4Ifaddr, Ipv4Route, Ipv4Rule];
    // A kernel without IPv6 lacks its groups, and an old one lacks nexthop objects.
    let optional = [Ipv6Ifaddr, Ipv6Route, Ipv6Rule, Nexthop];
    let mut changes = Changes::of("changes of the machine's default route", &groups, &optional);
    let netlink = Netlink::connect()?;
    let (sender, receiver) = watch::channel(Path::default());
    let following = async move {
        let follow = async {
            loop {
                let path = look(&netlink, mark, &is_own).await;
                sender.send_if_modified(|known| {
                    let is_new = *known != path;
                    if is_new {
                        debug!(?path, "the path changed");
                        *known = path;
                    }
                    is_new
                });
                changes.next().await;
            }
        };
        tokio::select! {
            () = follow => {}
            () = sender.closed() => {}
        }
    };
    Ok((receiver, following))
}

/// A route of one family and the state of its link.
struct InternetRoute {
    status: PathStatus,
    interface: PathInterface,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    mtu: u32,
}

async fn look(netlink: &Netlink, mark: Mark, is_own: &impl Fn(u32) -> bool) -> Path {
    const PAUSE: Duration = Duration::from_secs(1);
    loop {
        let path = look_by(&netlink.handle(), mark, is_own).await;
        // Without a connection there is no route either.
        if netlink.is_well() {
            return path;
        }
        sleep(PAUSE).await;
    }
}

async fn look_by(handle: &Handle, mark: Mark, is_own: &impl Fn(u32) -> bool) -> Path {
    let (low, high) = PUBLIC_IPV4.into();
    // Half of the Internet is not the Internet.
    let ipv4 = match route(handle, high.into(), mark, is_own).await {
        Some(_) => route(handle, low.into(), mark, is_own).await,
        None => None,
    };
    let ipv6 = route(handle, PUBLIC_IPV6.into(), mark, is_own).await;
    Path::of(ipv4, ipv6)
}

impl Path {
    fn of(ipv4: Option<InternetRoute>, ipv6: Option<InternetRoute>) -> Self {
        let rank = |route: &Option<InternetRoute>| match route.as_ref().map(|route| route.status) {
            Some(PathStatus::Satisfied) => 0,
            Some(PathStatus::Satisfiable) => 1,
            Some(_) => 2,
            None => 3,
        };
        let (has_ipv4, has_ipv6) = (rank(&ipv4) == 0, rank(&ipv6) == 0);
        let (best, other) = match rank(&ipv6) < rank(&ipv4) {
            true => (ipv6, ipv4),
            false => (ipv4, ipv6),
        };
        let Some(best) = best else {
            return Self {
                status: PathStatus::Unsatisfied,
                ..Self::default()
            };
        };
        let other = other.filter(|other| other.interface == best.interface);
        let routes = || std::iter::once(&best).chain(&other);
        Self {
            status: best.status,
            gateways: routes().filter_map(|route| route.gateway).collect(),
            sources: routes().filter_map(|route| route.source).collect(),
            mtu: routes().map(|route| route.mtu).min(),
            interface: Some(best.interface.clone()),
            has_ipv4,
            has_ipv6,
        }
    }
}

/// The route to `address`. A kernel that cannot say has none: an error here is "network unreachable".
async fn route(
    handle: &Handle,
    address: IpAddr,
    mark: Mark,
    is_own: &impl Fn(u32) -> bool,
) -> Option<InternetRoute> {
    let route = route_to(handle, address, mark).await?;
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let index = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })?;
    if is_own(index) {
        return None;
    }
    let request = handle.link().get().match_index(index).execute();
    let link = std::pin::pin!(request).try_next().await.ok().flatten()?;
    Some(InternetRoute::of(&route, &link))
}

async fn route_to(handle: &Handle, address: IpAddr, mark: Mark) -> Option<RouteMessage> {
    let routes = handle.route().get(question(address, mark)).execute();
    std::pin::pin!(routes).try_next().await.ok().flatten()
}

/// The request for the route of a socket with `mark` to `address`.
pub(super) fn question(address: IpAddr, mark: Mark) -> RouteMessage {
    let mut question = match address {
        IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .build(),
        IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(address, 128)
            .build(),
    };
    question.attributes.push(RouteAttribute::Mark(mark.value));
    question
}

impl InternetRoute {
    fn of(route: &RouteMessage, link: &LinkMessage) -> Self {
        let info = LinkInfo::parse(link);
        let mut found = Self {
            status: status(link.header.flags),
            interface: PathInterface {
                index: info.index,
                name: info.name,
            },
            gateway: None,
            source: None,
            mtu: info.mtu,
        };
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Gateway(address) => found.gateway = ip(address),
                RouteAttribute::Via(RouteVia::Inet(address)) => {
                    found.gateway = Some((*address).into())
                }
                RouteAttribute::Via(RouteVia::Inet6(address)) => {
                    found.gateway = Some((*address).into())
                }
                RouteAttribute::PrefSource(address) => found.source = ip(address),
                RouteAttribute::Metrics(metrics) => found.mtu = found.mtu.min(route_mtu(metrics)),
                _ => {}
            }
        }
        found
    }
}

fn status(flags: LinkFlags) -> PathStatus {
    if !flags.contains(LinkFlags::Up | LinkFlags::LowerUp) {
        PathStatus::Unsatisfied
    } else if flags.contains(LinkFlags::Running) {
        PathStatus::Satisfied
    } else {
        PathStatus::Satisfiable
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// A route without an MTU of its own has 0, or none.
fn route_mtu(metrics: &[RouteMetric]) -> u32 {
    let mtu = metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
        _ => None,
    });
    mtu.unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::testing::{block_on, in_namespace, ip as run_ip};

    /// Two links to the world, `east` and `west`, with addresses and no default route.
    fn two_links() {
        for (name, net) in [("east", "192.0.2"), ("west", "198.51.100")] {
            run_ip(&format!("link add {name} type veth peer name {name}-far"));
            // Without this, IPv6 changes by itself for seconds, and each change makes the task look
            // again.
            for end in [name.to_owned(), format!("{name}-far")] {
                run_ip(&format!("link set {end} addrgenmode none"));
            }
            run_ip(&format!("link set {name}-far up"));
            run_ip(&format!("address add {net}.2/24 dev {name}"));
            run_ip(&format!("link set {name} up"));
        }
    }

    fn test<F: Future<Output = ()>>(test: impl FnOnce(watch::Receiver<Path>) -> F + Send) {
        in_namespace(|| {
            two_links();
            block_on(async { test(following(|_| false)).await });
        });
    }

    /// The path, and a task that follows it.
    fn following(is_own: impl Fn(u32) -> bool + Send + Sync + 'static) -> watch::Receiver<Path> {
        let (path, following) = watch(Mark::BYPASS, is_own).unwrap();
        drop(tokio::spawn(following));
        path
    }

    /// Waits until the path is as described.
    async fn until(path: &mut watch::Receiver<Path>, what: &str, is: impl FnMut(&Path) -> bool) {
        let found = timeout(Duration::from_secs(3), path.wait_for(is)).await;
        let found = found.map(|found| found.unwrap().clone());
        found.unwrap_or_else(|_| panic!("{what}: {:?}", path.borrow()));
    }

    fn leaves_by(path: &Path, name: &str) -> bool {
        path.status == PathStatus::Satisfied
            && path
                .interface
                .as_ref()
                .is_some_and(|link| link.name == name)
    }

    fn is_out(path: &Path) -> bool {
        path.status == PathStatus::Unsatisfied
    }

    #[test]
    fn check_31_a_default_route_comes_moves_and_goes() {
        test(|mut path| async move {
            assert_eq!(path.borrow().status, PathStatus::Invalid, "before the look");
            until(&mut path, "no route yet", is_out).await;
            assert_eq!(path.borrow().interface, None);

            run_ip("route add default via 192.0.2.1 dev east mtu 1400");
            until(&mut path, "east", |path| leaves_by(path, "east")).await;
            let seen = path.borrow().clone();
            assert_eq!(seen.gateways, [IpAddr::from([192, 0, 2, 1])]);
            assert_eq!(seen.sources, [IpAddr::from([192, 0, 2, 2])]);
            assert_eq!(
                (seen.mtu, seen.has_ipv4, seen.has_ipv6),
                (Some(1400), true, false)
            );

            run_ip("route replace default via 198.51.100.1 dev west");
            until(&mut path, "west", |path| leaves_by(path, "west")).await;
            assert_eq!(path.borrow().mtu, Some(1500));
            run_ip("link set west mtu 1300");
            until(&mut path, "mtu", |path| path.mtu == Some(1300)).await;

            run_ip("route delete default");
            until(&mut path, "gone", is_out).await;
        });
    }

    #[test]
    fn check_31_ipv6_alone_is_a_path_too() {
        test(|mut path| async move {
            run_ip("address add 2001:db8::2/64 dev west nodad");
            run_ip("route add default via 2001:db8::1 dev west");
            until(&mut path, "west", |path| {
                leaves_by(path, "west") && path.has_ipv6
            })
            .await;
            assert!(!path.borrow().has_ipv4);
            run_ip("route add default via 192.0.2.1 dev east");
            until(&mut path, "east", |path| {
                leaves_by(path, "east") && path.has_ipv6
            })
            .await;
            assert_eq!(
                path.borrow().gateways,
                [IpAddr::from([192, 0, 2, 1])],
                "of that link"
            );
            run_ip("route replace default via 198.51.100.1 dev west");
            until(&mut path, "both", |path| path.gateways.len() == 2).await;
        });
    }

    #[test]
    fn check_31_two_half_routes_are_a_default_route_and_one_is_not() {
        test(|mut path| async move {
            for half in ["0.0.0.0/1", "128.0.0.0/1"] {
                run_ip(&format!("route add {half} via 192.0.2.1 dev east"));
                sleep(Duration::from_millis(300)).await;
                until(&mut path, half, is_out).await;
                run_ip(&format!("route delete {half}"));
            }
            run_ip("route add 0.0.0.0/1 via 192.0.2.1 dev east");
            run_ip("route add 128.0.0.0/1 via 192.0.2.1 dev east");
            until(&mut path, "both halves", |path| leaves_by(path, "east")).await;
            run_ip("route add default via 198.51.100.1 dev west");
            sleep(Duration::from_millis(300)).await;
            assert!(
                leaves_by(&path.borrow(), "east"),
                "more specific than the default route"
            );
            run_ip("route delete 0.0.0.0/1");
            run_ip("route delete 128.0.0.0/1");
            until(&mut path, "default", |path| leaves_by(path, "west")).await;
        });
    }

    #[test]
    fn check_31_a_full_tunnel_is_no_path() {
        test(|mut path| async move {
            run_ip("route add default via 192.0.2.1 dev east");
            until(&mut path, "underlay", |path| leaves_by(path, "east")).await;
            let before = path.borrow_and_update().clone();
            run_ip("route add default dev west table 4711");
            run_ip(&format!("rule add not fwmark {} lookup 4711", Mark::BYPASS));
            let unmarked = run_ip("route get 200.160.0.1");
            assert!(
                unmarked.contains("dev west"),
                "the tunnel has the rest: {unmarked}"
            );
            sleep(Duration::from_millis(400)).await;
            assert!(!path.has_changed().unwrap(), "{:?}", path.borrow());
            run_ip("route replace default via 198.51.100.1 dev west");
            until(&mut path, "moves below the tunnel", |path| {
                leaves_by(path, "west")
            })
            .await;
            run_ip("route delete default");
            until(&mut path, "goes below the tunnel", is_out).await;
            // Only the rule changes: the task listens to its group too.
            run_ip("rule add pref 5 lookup 4711");
            until(&mut path, "a rule for all", |path| leaves_by(path, "west")).await;
            assert_ne!(*path.borrow(), before);
        });
    }

    #[test]
    fn check_31_a_link_of_our_own_is_no_path() {
        in_namespace(|| {
            two_links();
            block_on(async {
                let own = nix::net::if_::if_nametoindex("west").unwrap();
                let mut path = following(move |index| index == own);
                run_ip("route add default via 198.51.100.1 dev west");
                sleep(Duration::from_millis(300)).await;
                until(&mut path, "own", is_out).await;
            });
        });
    }

    #[test]
    fn check_31_a_route_over_a_link_without_carrier_is_no_way_out() {
        in_namespace(|| {
            run_ip("link add east type veth peer name far");
            run_ip("address add 192.0.2.2/24 dev east");
            run_ip("link set east up");
            block_on(async {
                let mut path = following(|_| false);
                run_ip("route add default via 192.0.2.1 dev east");
                let is_dark = |path: &Path| is_out(path) && path.interface.is_some();
                until(&mut path, "no carrier", is_dark).await;
                run_ip("link set far up");
                until(&mut path, "carrier", |path| leaves_by(path, "east")).await;
                run_ip("link set east mode dormant");
                run_ip("link set east down");
                run_ip("link set east up");
                run_ip("route add default via 192.0.2.1 dev east");
                let waits = |path: &Path| path.status == PathStatus::Satisfiable;
                until(&mut path, "dormant", waits).await;
            });
        });
    }

    #[test]
    fn check_31_flapping_is_reported_a_few_times_only() {
        test(|mut path| async move {
            until(&mut path, "no route yet", is_out).await;
            path.borrow_and_update();
            // On a busy machine, a step may take so long that the path counts as stable.
            let (mut updates, mut allowed) = (0, 4);
            for _ in 0..25 {
                let begin = Instant::now();
                run_ip("route add default via 192.0.2.1 dev east");
                sleep(Duration::from_millis(20)).await;
                run_ip("route delete default");
                sleep(Duration::from_millis(20)).await;
                updates += usize::from(path.has_changed().unwrap());
                path.borrow_and_update();
                allowed += usize::from(begin.elapsed() > Duration::from_millis(90));
            }
            run_ip("route add default via 198.51.100.1 dev west");
            until(&mut path, "the last state", |path| leaves_by(path, "west")).await;
            assert!(
                updates <= allowed,
                "{updates} updates of 50 changes, {allowed} allowed"
            );
        });
    }

    #[test]
    fn check_31_it_ends_with_its_last_receiver() {
        test(|path| async move {
            let before = tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks();
            assert!(before >= 1);
            drop(path);
            for _ in 0..100 {
                if tokio::runtime::Handle::current()
                    .metrics()
                    .num_alive_tasks()
                    == 0
                {
                    return;
                }
                sleep(Duration::from_millis(10)).await;
            }
            panic!("it goes on");
        });
    }
}
