// SPDX-License-Identifier: MIT OR Apache-2.0
//! Network cards, which are used as they are and given back.

use super::*;

/// A cable between `tap7`, as if it were a NIC, and `far`.
fn make_nic(up: bool) {
    ip("link add tap7 address 02:aa:aa:aa:aa:aa mtu 1400 type veth peer name far");
    ip("link set far up");
    // Up once: its state when it is down is the same from then on.
    ip("link set tap7 up");
    if !up {
        ip("link set tap7 down");
    } else {
        ip("address add 192.0.2.1/24 dev tap7");
        wait_for_carrier("tap7");
        // The kernel's own address appears once it was found unique.
        let is_settled = || {
            let addresses = ip("-6 address show tap7");
            (addresses.contains("fe80") && !addresses.contains("tentative")).then_some(())
        };
        eventually(is_settled).unwrap();
    }
}

fn nic() -> DeviceRequest {
    DeviceRequest {
        backend: Backend::Packet,
        mtu: 9000,
        mac: Some([2, 0xbb, 0, 0, 0, 1]),
        ipv6: Ipv6Mode::Silent,
        ..request("tap7")
    }
}

#[test]
fn a_nic_is_up_and_otherwise_as_it_was_and_is_given_back() {
    for up in [true, false] {
        for kill_first in [false, true] {
            test(|dir| async move {
                make_nic(up);
                let before = look("tap7");
                let created = Device::create(nic(), dir.path(), "office").await;
                let (mut device, queues) = created.unwrap();
                wait_for_carrier("tap7");
                device.set_carrier(true);
                device.change(&nic()).await.unwrap();
                assert_eq!(device.info().mtu, 1400);
                let seen = look("tap7");
                let promiscuous = ["promiscuity 1", "promiscuity 0"];
                assert!(seen.contains(promiscuous[0]), "{seen}");
                if up {
                    let seen = seen.replace(promiscuous[0], promiscuous[1]);
                    let seen = seen.replace("PROMISC,", "");
                    assert_eq!(seen, before);
                } else {
                    // The configuration asked for no addresses of this machine on this wire.
                    assert!(
                        seen.contains("addrgenmode none") && !seen.contains("fe80"),
                        "{seen}"
                    );
                }
                if kill_first {
                    match up {
                        true => drop((device, queues)),
                        false => kill(device, queues),
                    }
                    let other = create(request("tap8"), dir.path(), "office").await;
                    other.unwrap().0.remove().await;
                } else {
                    drop(queues);
                    device.remove().await;
                }
                assert_looks(&before);
                assert!(is_empty(&dir));
            });
        }
    }
}

#[test]
fn a_nic_that_forwards_the_loss_of_the_link_is_down_meanwhile_and_given_back() {
    for kill_first in [false, true] {
        test(|dir| async move {
            make_nic(true);
            let before = look("tap7");
            let request = DeviceRequest {
                link_loss_forwarding: true,
                ..nic()
            };
            let created = Device::create(request.clone(), dir.path(), "office").await;
            let (mut device, queues) = created.unwrap();
            let far_has_carrier = || ip("link show far").contains("LOWER_UP");
            for on in [false, true, false] {
                device.set_carrier(on);
                device.forward_link_loss(on).await;
                let follows = || (far_has_carrier() == on).then_some(());
                eventually(follows).unwrap_or_else(|| panic!("the far end sees {on}"));
                device.keep(&request).await.unwrap();
                assert_eq!(far_has_carrier(), on);
            }
            if kill_first {
                drop((device, queues));
                let other = create(request_of_another(), dir.path(), "office").await;
                other.unwrap().0.remove().await;
            } else {
                drop(queues);
                device.remove().await;
            }
            let is_up = || look("tap7").contains(",UP").then_some(());
            eventually(is_up).expect("up, as it was found");
            let settled = || {
                let now = look("tap7");
                (!now.contains("tentative") && now == before).then_some(())
            };
            if eventually(settled).is_none() {
                assert_looks(&before);
            }
            assert!(is_empty(&dir));
        });
    }
}

#[test]
fn a_nic_that_its_owner_took_down_stays_down() {
    test(|dir| async move {
        make_nic(true);
        let created = Device::create(nic(), dir.path(), "office").await;
        let (mut device, _queues) = created.unwrap();
        ip("link set tap7 down");
        device.change(&nic()).await.unwrap();
        let is_up = || look("tap7").contains(",UP");
        assert!(!is_up());
        for up in [false, true] {
            device.change(&DeviceRequest { up, ..nic() }).await.unwrap();
            assert_eq!(is_up(), up);
        }
        device.remove().await;
    });
}

#[test]
fn a_nic_that_a_bridge_or_another_tunnel_has_is_refused() {
    test(|dir| async move {
        make_nic(false);
        ip("link add br0 type bridge");
        ip("link set tap7 master br0");
        let create = || Device::create(nic(), dir.path(), "office");
        let error = create().await.unwrap_err().to_string();
        let expected = "`tap7` is a port of `br0`, which takes its frames as well: take it out \
                        with `ip link set tap7 nomaster`";
        assert!(error.starts_with(expected), "{error}");
        ip("link set tap7 nomaster");
        let (device, _queues) = create().await.unwrap();
        let error = Device::create(nic(), dir.path(), "home").await.unwrap_err();
        assert!(
            matches!(error, DeviceError::Lock(LockError::DeviceHeld { .. })),
            "{error:?}"
        );
        device.remove().await;
        ip("link delete tap7");
        let error = create().await.unwrap_err().to_string();
        assert!(error.starts_with("there is no interface `tap7`"), "{error}");
        assert!(is_empty(&dir));
    });
}
