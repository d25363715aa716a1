// SPDX-License-Identifier: MIT OR Apache-2.0
use std::os::fd::AsFd;
use std::time::Duration;

use etherparse::PacketBuilder;

use super::super::testing::{
    EXPERIMENTAL, OTHER_STATION, OURS, assert_crosses, cable, frame, open, plugged,
};
use crate::io::sys;
use crate::io::tap::{self, TapError};
use crate::io::vnet::VnetHeader;
use crate::io::waker;
use crate::testing::{eventually, in_namespace, ip, wait_for_carrier};

#[test]
fn a_nic_is_promiscuous_only_meanwhile_and_otherwise_left_alone() {
    in_namespace(|| {
        cable(1500);
        let look = || ip("-d -o link show near");
        let before = look();
        assert!(before.contains("promiscuity 0"), "{before}");
        let (tap, queues) = open("near", 2).unwrap();
        assert!(tap.is_nic() && tap.adopted() && tap.backend() == "packet");
        tap.set_carrier(false).unwrap();
        assert!(look().contains("LOWER_UP") && !look().contains("promiscuity 0"));
        drop((tap, queues));
        assert!(
            eventually(|| (look() == before).then_some(())).is_some(),
            "{}",
            look()
        );
    });
}

#[test]
fn an_interface_that_was_down_goes_on() {
    in_namespace(|| {
        let [(_near, near), (_far, far)] = plugged(1500);
        let hello = frame(OTHER_STATION, &[], EXPERIMENTAL, 100);
        for _ in 0..2 {
            ip("link set near down");
            let ready = waker::wait(&[near.as_fd()], None).unwrap();
            assert!(ready.is_broken(0) && !near.is_lost());
            assert_eq!(near.try_read(&mut [0; 100]).unwrap(), None);
            let ready = waker::wait(&[near.as_fd()], Some(Duration::ZERO)).unwrap();
            assert!(ready.is_timeout(), "no loop spins: {ready:?}");
            let error = near.write(&VnetHeader::NONE, &hello).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(sys::ENETDOWN));
            ip("link set near up");
            wait_for_carrier("near");
            assert_crosses(&far, &near, &hello, "after it is up");
            assert_crosses(&near, &far, &hello, "after it is up");
        }
        // And one that is down at first.
        ip("link set near down");
        let (_tap, late) = open("near", 1).unwrap();
        ip("link set near up");
        wait_for_carrier("near");
        assert_crosses(&late[0], &far, &hello, "the first one");
        assert_crosses(&far, &late[0], &hello, "the first one");
    });
}

#[test]
fn a_deleted_interface_is_noticed() {
    in_namespace(|| {
        let [(_near, near), _far] = plugged(1500);
        let hello = frame(OTHER_STATION, &[], EXPERIMENTAL, 100);
        ip("link delete near");
        let ready = waker::wait(&[near.as_fd()], None).unwrap();
        assert!(ready.is_broken(0) && near.is_lost());
        let error = near.try_read(&mut [0; 100]).unwrap_err();
        assert!(tap::is_deleted(&error), "{error}");
        let error = near.write(&VnetHeader::NONE, &hello).unwrap_err();
        assert!(tap::is_deleted(&error), "{error}");
    });
}

#[test]
fn several_queues_share_the_frames_flow_by_flow() {
    in_namespace(|| {
        cable(1500);
        let (_far, far) = open("far", 1).unwrap();
        let (tap, near) = open("near", 4).unwrap();
        assert_eq!((near.len(), tap.one_queue_because()), (4, None));
        let mut buf = vec![0; 2000];
        let mut place_of = |frame: &[u8]| {
            far[0].write(&VnetHeader::NONE, frame).unwrap();
            let find = || {
                (0..near.len()).find(|&place| match near[place].try_read(&mut buf).unwrap() {
                    Some((_, at)) => buf[at] == *frame,
                    None => false,
                })
            };
            eventually(find).unwrap()
        };
        let mut used = [false; 4];
        for port in 1000..1032 {
            let mut frame = Vec::new();
            let ethernet = PacketBuilder::ethernet2(OURS, OTHER_STATION);
            let udp = ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(port, 9);
            udp.write(&mut frame, &[7; 100]).unwrap();
            let place = place_of(&frame);
            used[place] = true;
            frame.splice(12..12, [0x81, 0, 0, 5]);
            let tagged = place_of(&frame);
            assert_eq!(place_of(&frame), tagged, "port {port}");
        }
        assert_eq!(used, [true; 4]);
    });
}

#[test]
fn an_interface_that_cannot_be_attached_is_named() {
    in_namespace(|| {
        let error = |name| open(name, 1).unwrap_err().to_string();
        assert!(error("eth7").starts_with("there is no interface `eth7`: `ip link`"));
        assert!(error("lo").starts_with("`lo` is not an Ethernet interface"));
        ip("tuntap add tun0 mode tun");
        assert!(error("tun0").starts_with("`tun0` is not an Ethernet interface"));
        assert!(matches!(
            open("a b", 1).unwrap_err(),
            TapError::BadName { .. }
        ));
    });
}
