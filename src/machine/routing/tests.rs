// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests against the kernel, with `ip` as a second opinion. Each test has a namespace of its own.
#![cfg(test)]

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::path::Path;
use std::task::Poll;
use std::time::Duration;

use ipnet::IpNet;
use rtnetlink::MulticastGroup;
use tempfile::TempDir;

use super::*;
use crate::io::mark::Mark;
use crate::machine::link::Links;
use crate::machine::monitor::Monitor;
use crate::testing::{Namespace, block_on, in_namespace, ip};

/// Runs `test` in a namespace of its own, with a run directory and the index of an interface that
/// has addresses.
fn test<F: Future<Output = ()>>(test: impl FnOnce(TempDir, u32) -> F + Send) {
    in_namespace(|| {
        block_on(async {
            let index = make_interface("pc0").await;
            test(tempfile::tempdir().unwrap(), index).await;
        });
    });
}

async fn make_interface(name: &str) -> u32 {
    ip(&format!("tuntap add {name} mode tap"));
    ip(&format!("address add 10.0.0.1/24 dev {name}"));
    ip(&format!("address add fd00::1/64 dev {name}"));
    ip(&format!("link set {name} up"));
    let links = Links::connect().unwrap();
    links.find(name).await.unwrap().unwrap().index
}

fn route(destination: &str, target: Target) -> Route {
    Route {
        destination: destination.parse().unwrap(),
        metric: Route::METRIC,
        target,
    }
}

fn by(index: u32, gateway: &str) -> Target {
    Target::Interface {
        index,
        gateway: Some(gateway.parse().unwrap()),
        onlink: false,
    }
}

fn on_link(index: u32) -> Target {
    Target::Interface {
        index,
        gateway: None,
        onlink: false,
    }
}

fn beyond(index: u32, gateway: &str) -> Target {
    Target::Interface {
        index,
        gateway: Some(gateway.parse().unwrap()),
        onlink: true,
    }
}

fn state(routes: impl IntoIterator<Item = Route>, rules: &[Rule]) -> RoutingState {
    RoutingState {
        routes: routes.into_iter().collect(),
        rules: rules.iter().copied().collect(),
    }
}

const BOTH_RULES: [Rule; 4] = [
    Rule::MainButDefault(Family::V4),
    Rule::Unmarked(Family::V4),
    Rule::MainButDefault(Family::V6),
    Rule::Unmarked(Family::V6),
];

/// One route of every kind in both families, and all rules.
fn everything(index: u32) -> RoutingState {
    let last = |destination| Route {
        metric: Route::WORST_METRIC,
        ..route(destination, Target::Unreachable)
    };
    let routes = [
        route("0.0.0.0/0", by(index, "10.0.0.2")),
        route("10.0.0.0/24", on_link(index)),
        route("10.1.0.0/16", on_link(index)),
        route("10.2.0.0/16", beyond(index, "10.77.0.1")),
        route("10.3.0.0/16", Target::Throw),
        last("0.0.0.0/0"),
        route("::/0", by(index, "fd00::2")),
        route("fd00::/64", on_link(index)),
        route("fd01::/64", on_link(index)),
        route("fd02::/64", beyond(index, "fd77::1")),
        route("fd03::/64", Target::Throw),
        last("::/0"),
    ];
    state(routes, &BOTH_RULES)
}

fn simple(index: u32) -> RoutingState {
    state([route("10.1.0.0/16", on_link(index))], &BOTH_RULES[..2])
}

/// Every rule and route there is, as another program sees it.
fn look() -> String {
    ["-4", "-6"]
        .iter()
        .flat_map(|family| {
            [
                format!("{family} rule"),
                format!("{family} route show table all"),
            ]
        })
        .map(|arguments| ip(&arguments))
        .collect()
}

fn slot_of(routing: &Routing) -> Slot {
    routing.claim.as_ref().unwrap().slot
}

async fn listed(routing: &Routing) -> RoutingState {
    let claim = routing.claim.as_ref().unwrap();
    claim.tables.list(claim.slot).await.unwrap()
}

fn is_empty(dir: &TempDir) -> bool {
    std::fs::read_dir(dir.path()).unwrap().count() == 0
}

#[test]
fn every_kind_of_route_and_rule_is_as_asked_for_and_goes_without_a_trace() {
    test(|dir, index| async move {
        let before = look();
        let mut routing = Routing::new(dir.path(), "office");
        routing.apply(&everything(index)).await.unwrap();
        assert_eq!(listed(&routing).await, everything(index));
        let slot = slot_of(&routing);
        let (table, mark) = (slot.table(), Mark::BYPASS);
        let rules = ip("-4 rule") + &ip("-6 rule");
        let main = "lookup main suppress_prefixlength 0 proto 112";
        let unmarked = format!(
            "not from all fwmark {:#x}/{:#x} lookup {table} proto 112",
            mark.value, mark.mask
        );
        assert_eq!(rules.matches(main).count(), 2, "{rules}");
        assert_eq!(rules.matches(&unmarked).count(), 2, "{rules}");
        let routes = ip(&format!("-4 route show table {table}"))
            + &ip(&format!("-6 route show table {table}"));
        for part in [
            "default via 10.0.0.2 dev pc0 proto 112 metric 1024",
            "10.1.0.0/16 dev pc0 proto 112 scope link metric 1024",
            "10.2.0.0/16 via 10.77.0.1 dev pc0 proto 112 metric 1024 onlink",
            "throw 10.3.0.0/16 proto 112 metric 1024",
            "unreachable default proto 112 metric 4294967295",
            "default via fd00::2 dev pc0 proto 112 metric 1024",
            "fd01::/64 dev pc0 proto 112 metric 1024",
            "fd02::/64 via fd77::1 dev pc0 proto 112 metric 1024 onlink",
            "throw fd03::/64 dev lo proto 112 metric 1024",
            "unreachable default dev lo proto 112 metric 4294967295",
        ] {
            assert!(routes.contains(part), "{part} in {routes}");
        }
        routing.clear().await.unwrap();
        assert_eq!(look(), before);
        assert!(is_empty(&dir), "neither journal nor lock");
    });
}

#[test]
fn a_state_becomes_any_other_one() {
    test(|dir, index| async move {
        let mut routing = Routing::new(dir.path(), "office");
        let changed = [
            // The same destination by another gateway, of another kind, and back. The gateways are
            // on the link because this table says so.
            route("0.0.0.0/0", by(index, "10.8.0.3")),
            route("10.8.0.0/24", on_link(index)),
            route("fd08::/64", on_link(index)),
            route("10.1.0.0/16", Target::Throw),
            route("10.3.0.0/16", on_link(index)),
            route("::/0", by(index, "fd08::3")),
            route("fd01::/64", Target::Throw),
            route("fd03::/64", on_link(index)),
        ];
        let changed = state(changed, &[BOTH_RULES[1], BOTH_RULES[3]]);
        let nothing = RoutingState::default();
        for wanted in [
            everything(index),
            changed.clone(),
            everything(index),
            simple(index),
            nothing.clone(),
            changed,
            nothing,
        ] {
            routing.apply(&wanted).await.unwrap();
            assert_eq!(listed(&routing).await, wanted);
        }
    });
}

/// The kernel's messages about routes and rules, from now on.
fn watch() -> Monitor {
    use MulticastGroup::{Ipv4Route, Ipv4Rule, Ipv6Route, Ipv6Rule};
    let groups = [Ipv4Route, Ipv4Rule, Ipv6Route, Ipv6Rule];
    Monitor::of("routes and rules", &groups, &[])
}

async fn is_quiet(monitor: &mut Monitor) -> bool {
    let event = tokio::time::timeout(Duration::from_millis(200), monitor.next());
    event.await.is_err()
}

#[test]
fn an_equal_state_writes_nothing() {
    test(|dir, index| async move {
        let mut routing = Routing::new(dir.path(), "office");
        routing.apply(&everything(index)).await.unwrap();
        let mut monitor = watch();
        routing.apply(&everything(index)).await.unwrap();
        assert!(is_quiet(&mut monitor).await);
        routing.apply(&simple(index)).await.unwrap();
        assert!(!is_quiet(&mut monitor).await, "the test sees changes");
    });
}

#[test]
fn a_start_after_a_kill_leaves_no_gap() {
    test(|dir, index| async move {
        let mut routing = Routing::new(dir.path(), "office");
        routing.apply(&everything(index)).await.unwrap();
        kill(routing);
        let mut monitor = watch();
        let mut routing = Routing::new(dir.path(), "office");
        routing.apply(&everything(index)).await.unwrap();
        assert!(is_quiet(&mut monitor).await);
        assert_eq!(listed(&routing).await, everything(index));
        kill(routing);
        let mut routing = Routing::new(dir.path(), "office");
        routing.apply(&simple(index)).await.unwrap();
        assert_eq!(listed(&routing).await, simple(index));
    });
}

#[test]
fn deleted_routes_and_rules_come_back() {
    test(|dir, index| async move {
        let mut routing = Routing::new(dir.path(), "office");
        routing.apply(&everything(index)).await.unwrap();
        ip("link set pc0 down");
        ip("link set pc0 up");
        ip("address add fd00::1/64 dev pc0");
        ip(&format!(
            "-6 rule delete priority {}",
            slot_of(&routing).priority(BOTH_RULES[3])
        ));
        assert_ne!(listed(&routing).await, everything(index));
        routing.apply(&everything(index)).await.unwrap();
        assert_eq!(listed(&routing).await, everything(index));
    });
}

/// Configuration of other programs, some of it with our numbers.
fn make_foreign(slot: Slot) -> String {
    let table = slot.table();
    let priority = slot.priority(Rule::Unmarked(Family::V4));
    for foreign in [
        format!("rule add priority {priority} from 192.0.2.0/24 lookup {table}"),
        format!("-6 rule add priority {priority} fwmark 0x10 lookup {table}"),
        format!("route add 198.51.100.0/24 dev pc0 table {table}"),
        format!("-6 route add unreachable 2001:db8:ffff::/48 table {table}"),
        "rule add priority 100 from 192.0.2.7 lookup main".to_owned(),
    ] {
        ip(&foreign);
    }
    look()
}

/// What the kernel does for a killed process: it closes descriptors, nothing else.
fn kill(routing: Routing) {
    assert!(routing.journal.path().exists());
    drop(routing);
}

#[test]
fn a_start_after_a_kill_deletes_only_ours() {
    test(|dir, index| async move {
        let mut routing = Routing::new(dir.path(), "office");
        routing.apply(&simple(index)).await.unwrap();
        let slot = slot_of(&routing);
        routing.apply(&RoutingState::default()).await.unwrap();
        let foreign = make_foreign(slot);
        routing.apply(&everything(index)).await.unwrap();
        assert_eq!(listed(&routing).await, everything(index));
        kill(routing);
        assert_ne!(look(), foreign, "a kill leaves something");

        let mut routing = Routing::new(dir.path(), "office");
        routing.apply(&RoutingState::default()).await.unwrap();
        assert_eq!(look(), foreign);
        assert!(is_empty(&dir));

        // Other programs use the numbers now.
        routing.apply(&simple(index)).await.unwrap();
        assert_ne!(slot_of(&routing), slot);
        routing.clear().await.unwrap();
        assert_eq!(look(), foreign);
    });
}

#[test]
fn a_kill_may_come_at_any_time() {
    test(|dir, index| async move {
        let before = look();
        for steps in 1.. {
            let mut routing = Routing::new(dir.path(), "office");
            let is_done = advance(routing.apply(&everything(index)), steps).await;
            drop(routing);
            let mut routing = Routing::new(dir.path(), "office");
            routing.clear().await.unwrap();
            assert_eq!(look(), before, "killed after step {steps}");
            assert!(is_empty(&dir));
            if is_done {
                break;
            }
        }
    });
}

/// Polls a future so many times and drops it; returns whether it was done by then.
async fn advance(future: impl Future, steps: usize) -> bool {
    let mut future = std::pin::pin!(future);
    for _ in 0..steps {
        if poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await {
            return true;
        }
        // The answer of the kernel, for the next step.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    false
}

#[test]
fn a_start_after_a_kill_finds_the_same_numbers() {
    test(|dir, index| async move {
        let mut routing = Routing::new(dir.path(), "office");
        // Not the slots that follow from its name.
        let first = Slot::all_for("office").next().unwrap();
        ip(&format!(
            "route add throw 192.0.2.0/24 table {}",
            first.table()
        ));
        routing.apply(&simple(index)).await.unwrap();
        let slot = slot_of(&routing);
        assert_ne!(slot, first);
        ip(&format!(
            "route delete throw 192.0.2.0/24 table {}",
            first.table()
        ));
        kill(routing);
        let mut routing = Routing::new(dir.path(), "office");
        routing.apply(&simple(index)).await.unwrap();
        assert_eq!(slot_of(&routing), slot);
        assert_eq!(listed(&routing).await, simple(index));
    });
}

#[test]
fn routes_that_changed_since_a_kill_are_not_ours_any_more() {
    test(|dir, index| async move {
        let mut routing = Routing::new(dir.path(), "office");
        routing.apply(&simple(index)).await.unwrap();
        let table = slot_of(&routing).table();
        kill(routing);
        ip(&format!(
            "route replace 10.1.0.0/16 via 10.0.0.9 dev pc0 proto 112 metric 1024 table {table}"
        ));
        Routing::new(dir.path(), "office")
            .apply(&RoutingState::default())
            .await
            .unwrap();
        let left = ip(&format!("route show table {table}"));
        assert!(left.contains("10.1.0.0/16 via 10.0.0.9"), "{left}");
        assert_eq!(ip("rule").lines().count(), 3, "the rules are gone");
    });
}

#[test]
fn leftovers_stay_where_they_cannot_be_ours() {
    test(|dir, index| async move {
        let mut routing = Routing::new(dir.path(), "office");
        routing.apply(&simple(index)).await.unwrap();
        let slot = slot_of(&routing);
        kill(routing);
        let journal = dir.path().join("office.routes-journal");
        let written = std::fs::read(&journal).unwrap();
        let during = look();
        // In another namespace, the same routes would belong to another tunnel.
        let path: &Path = dir.path();
        Namespace::new().run(|| {
            block_on(async {
                assert_eq!(make_interface("pc0").await, index);
                let mut elsewhere = Routing::new(path, "office");
                let same = "10.1.0.0/16 dev pc0 scope link proto 112 metric 1024";
                ip(&format!("route add {same} table {}", slot.table()));
                let before = look();
                elsewhere.apply(&RoutingState::default()).await.unwrap();
                assert_eq!(look(), before);
            });
        });
        // Another tunnel has the slot.
        std::fs::write(&journal, written).unwrap();
        let lock = RoutingLock::try_acquire(dir.path(), slot.number())
            .unwrap()
            .unwrap();
        Routing::new(dir.path(), "office")
            .apply(&RoutingState::default())
            .await
            .unwrap();
        assert_eq!(look(), during);
        drop(lock);
    });
}

#[test]
fn two_tunnels_share_nothing() {
    test(|dir, index| async move {
        let home_index = make_interface("pc1").await;
        let before = look();
        // Two names that lead to the same slot.
        let wish = |tunnel: &str| Slot::all_for(tunnel).next();
        let twin = (0..)
            .map(|n| format!("home{n}"))
            .find(|name| wish(name) == wish("office"));
        let mut office = Routing::new(dir.path(), "office");
        let mut home = Routing::new(dir.path(), &twin.unwrap());
        office.apply(&everything(index)).await.unwrap();
        home.apply(&everything(home_index)).await.unwrap();
        assert_ne!(slot_of(&office), slot_of(&home));
        assert_eq!(listed(&office).await, everything(index));
        assert_eq!(listed(&home).await, everything(home_index));
        office.clear().await.unwrap();
        assert_eq!(listed(&home).await, everything(home_index));
        home.clear().await.unwrap();
        assert_eq!(look(), before);
    });
}

#[test]
fn a_refused_route_undoes_the_others() {
    test(|dir, index| async move {
        let before = look();
        for (destination, gateway) in [("10.9.0.0/16", "10.77.0.9"), ("fd09::/64", "fd77::9")] {
            let mut wrong = everything(index);
            wrong.routes.insert(route(destination, by(index, gateway)));
            let mut routing = Routing::new(dir.path(), "office");
            let error = routing.apply(&wrong).await.unwrap_err();
            let expected = format!("cannot add route {destination} on link {index} by {gateway}");
            assert_eq!(error.to_string(), expected);
            assert_eq!(look(), before, "nothing of a first state");
            assert!(!routing.journal.path().exists());

            routing.apply(&simple(index)).await.unwrap();
            let good = look();
            routing.apply(&wrong).await.unwrap_err();
            assert_eq!(look(), good, "nothing of a later one");
            routing.clear().await.unwrap();
        }
    });
}

#[test]
fn nothing_to_route_touches_nothing() {
    test(|dir, _| async move {
        let mut routing = Routing::new(dir.path(), "office");
        routing.apply(&RoutingState::default()).await.unwrap();
        routing.clear().await.unwrap();
        assert!(routing.claim.is_none() && is_empty(&dir));
    });
}

#[test]
fn a_full_machine_is_an_error_with_the_reason() {
    test(|dir, index| async move {
        let locks: Vec<_> = Slot::all_for("office")
            .map(|slot| RoutingLock::try_acquire(dir.path(), slot.number()).unwrap())
            .collect();
        let mut routing = Routing::new(dir.path(), "office");
        let error = routing.apply(&simple(index)).await.unwrap_err().to_string();
        assert!(error.contains("63 run already"), "{error}");
        drop(locks);
        routing.apply(&simple(index)).await.unwrap();
    });
}

#[test]
fn local_networks_are_those_of_other_links() {
    test(|_, index| async move {
        ip("link set lo up");
        ip("link add veth0 type veth peer name veth1");
        ip("address add 192.168.7.9/24 dev veth0");
        ip("address add 2001:db8:7::9/64 dev veth0");
        ip("link set veth0 up");
        let links = Links::connect().unwrap();
        let nets = |texts: &[&str]| -> BTreeSet<IpNet> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        assert_eq!(
            links.connected_networks(Some(index)).await.unwrap(),
            nets(&["192.168.7.0/24", "2001:db8:7::/64"])
        );
        assert_eq!(links.connected_networks(None).await.unwrap().len(), 4);
    });
}

#[test]
fn restore_adds_only_deleted_routes_and_rules() {
    test(|dir, index| async move {
        let mut routing = Routing::new(dir.path(), "office");
        assert!(
            !routing.restore(true).await.unwrap(),
            "nothing was made yet"
        );
        routing.apply(&everything(index)).await.unwrap();
        let table = slot_of(&routing).table();
        ip("rule add pref 4711 from 192.0.2.1 lookup 99");
        ip(&format!("route add 192.0.2.0/24 dev pc0 table {table}"));
        let before = look();
        assert!(!routing.restore(true).await.unwrap());
        for [delete, again] in [
            ["rule delete lookup TABLE", ""],
            ["-6 rule delete lookup TABLE", ""],
            ["route delete 10.3.0.0/16 table TABLE metric 1024", ""],
            ["-6 route flush table TABLE", ""],
            // A gateway that is known by another route of the table, and a route of another
            // program.
            [
                "route flush table TABLE",
                "route add 192.0.2.0/24 dev pc0 table TABLE",
            ],
        ] {
            let run = |command: &str| ip(&command.replace("TABLE", &table.to_string()));
            run(delete);
            assert_ne!(look(), before);
            assert!(routing.restore(true).await.unwrap(), "{delete}");
            if !again.is_empty() {
                run(again);
            }
            assert_eq!(look(), before, "{delete}");
        }
        ip("rule delete pref 4711");
        assert!(!routing.restore(true).await.unwrap(), "not ours");
        routing.clear().await.unwrap();
        assert!(!routing.restore(true).await.unwrap(), "nobody's any more");
    });
}

#[test]
fn a_refusal_keeps_no_other_route_from_coming_back() {
    test(|dir, index| async move {
        let mut routing = Routing::new(dir.path(), "office");
        routing.apply(&everything(index)).await.unwrap();
        let slot = slot_of(&routing);
        ip("link set pc0 down");
        ip(&format!("rule delete lookup {}", slot.table()));
        assert!(routing.restore(false).await.unwrap());
        let present = listed(&routing).await;
        assert_eq!(
            present.without_interfaces(),
            everything(index).without_interfaces()
        );
        assert!(!routing.restore(false).await.unwrap());

        ip("link set pc0 up");
        ip(&format!(
            "route add 10.1.0.0/16 via 10.0.0.9 dev pc0 table {} metric 1024",
            slot.table()
        ));
        ip(&format!("rule delete lookup {}", slot.table()));
        let error = routing.restore(true).await.unwrap_err();
        assert!(error.to_string().contains("10.1.0.0/16"), "{error}");
        let lost = everything(index).without(&listed(&routing).await);
        assert_eq!(
            lost.routes.len(),
            1,
            "somebody else's is in its place: {lost:?}"
        );
        assert!(lost.rules.is_empty());
    });
}

#[test]
fn changes_are_those_of_the_tunnels_own_numbers() {
    test(|dir, index| async move {
        let mut routing = Routing::new(dir.path(), "office");
        let mut changes = routing.changes();
        let mut is_told = async || {
            let limit = Duration::from_millis(400);
            tokio::time::timeout(limit, changes.next()).await.is_ok()
        };
        routing.apply(&simple(index)).await.unwrap();
        assert!(is_told().await, "whoever made them");
        let table = slot_of(&routing).table();
        ip("route add 192.0.2.0/24 dev pc0");
        ip("route add 192.0.2.0/24 dev pc0 table 99");
        ip(&format!(
            "route add 192.0.2.0/24 dev pc0 table {}",
            table + 1
        ));
        ip("rule add pref 4711 lookup 99");
        ip("rule delete pref 4711");
        assert!(!is_told().await);
        for change in [
            format!("route delete 10.1.0.0/16 table {table}"),
            format!("route add 192.0.2.0/24 dev pc0 table {table}"),
            format!("rule delete lookup {table}"),
            format!("-6 rule add pref 4711 lookup {table}"),
        ] {
            ip(&change);
            assert!(is_told().await, "{change}");
            assert!(!is_told().await, "once");
        }
    });
}
