// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which queue a flow comes out of.

use etherparse::{PacketBuilder, PacketBuilderStep, UdpHeader, VlanId};

use super::*;

/// One frame of flow `port`, of every kind that the kernel's program distinguishes.
fn kinds_of_flow(port: u16) -> Vec<Vec<u8>> {
    let (a, b) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let builder = || PacketBuilder::ethernet2(a, b);
    let payload = [7; 100];
    let mut kinds = Vec::new();
    let mut keep = |builder: PacketBuilderStep<UdpHeader>| {
        let mut frame = Vec::new();
        builder.write(&mut frame, &payload).unwrap();
        kinds.push(frame);
    };
    keep(
        builder()
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(port, 9),
    );
    keep(builder().ipv6([1; 16], [2; 16], 64).udp(port, 9));
    keep(
        builder()
            .single_vlan(vlan(5))
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(port, 9),
    );
    let mut tcp = Vec::new();
    let step = builder()
        .double_vlan(vlan(5), vlan(6))
        .ipv6([1; 16], [2; 16], 64);
    step.tcp(port, 9, 1, 1).write(&mut tcp, &payload).unwrap();
    kinds.push(tcp);
    kinds
}

fn vlan(id: u16) -> VlanId {
    VlanId::try_new(id).unwrap()
}

/// The queue from which `frame` is read if it is written at the other end.
fn place_of(frame: &[u8], from: &TapQueue, to: &[TapQueue]) -> usize {
    from.write(&VnetHeader::NONE, frame).unwrap();
    let mut buf = vec![0; 10_000];
    let found = eventually(|| {
        (0..to.len()).find(|&place| match to[place].try_read(&mut buf).unwrap() {
            Some((_, at)) => buf[at] == *frame,
            None => false,
        })
    });
    found.unwrap()
}

#[test]
fn a_flow_stays_on_its_queue_wherever_its_answers_are_written() {
    in_namespace(|| {
        let [(_left, from), (_right, to)] = bridged(Backend::Vnet, 4);
        // The bridge knows both stations from now on.
        let hello = frame(60, 0);
        from[0].write(&VnetHeader::NONE, &hello).unwrap();
        assert!(read_ours(&to) == Some(hello));
        let mut used = vec![[false; 4]; kinds_of_flow(0).len()];
        for port in 1000..1032 {
            for (frame, used) in kinds_of_flow(port).iter().zip(&mut used) {
                let place = place_of(frame, &from[0], &to);
                used[place] = true;
                let mut answer = frame.clone();
                answer[..6].copy_from_slice(&frame[6..12]);
                answer[6..12].copy_from_slice(&frame[..6]);
                for (queue, other) in to.iter().zip([1, 2, 3, 0]) {
                    queue.write(&VnetHeader::NONE, &answer).unwrap();
                    assert_eq!(place_of(frame, &from[other], &to), place, "port {port}");
                }
            }
        }
        assert!(used.iter().flatten().all(|&used| used), "{used:?}");
    });
}

#[test]
fn fragments_of_a_datagram_and_other_protocols_stay_together() {
    in_namespace(|| {
        // The bridge would look into IPv4 otherwise, where that is the default.
        let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
        let [(_left, from), (_right, to)] = bridged(Backend::Vnet, 4);
        let [fragment, ..] = &kinds_of_flow(1000)[..] else {
            unreachable!("there are several kinds")
        };
        let mut fragment = fragment.clone();
        let mut places = Vec::new();
        for (bits, port) in [(0x2000_u16, 1), (0x2010, 2), (0x0020, 3)] {
            fragment[20..22].copy_from_slice(&bits.to_be_bytes());
            fragment[34..36].copy_from_slice(&[port; 2]);
            places.push(place_of(&fragment, &from[0], &to));
        }
        places.dedup();
        assert_eq!(places.len(), 1);
        let mut places: Vec<_> = (0..8)
            .map(|byte| {
                let mut frame = frame(60, 0);
                frame[20..40].fill(byte);
                place_of(&frame, &from[0], &to)
            })
            .collect();
        places.dedup();
        assert_eq!(places.len(), 1);
    });
}

#[test]
fn a_kernel_that_takes_no_program_gives_one_queue() {
    in_namespace(|| {
        script(&[(Call::LoadProgram, Fault::Errno(sys::EPERM))]);
        let (tap, queues) = open("tap7", Backend::Vnet, 4).unwrap();
        assert_eq!(queues.len(), 1);
        assert!(tap.one_queue_because().is_some());
        assert_eq!(tap.backend(), "vnet");
        finish();
    });
}

#[test]
fn flows_that_send_little_come_out_of_the_express_queue() {
    in_namespace(|| {
        for bulk in [1, 3] {
            let [(_left, from), (_right, to)] = bridged_with(Backend::Vnet, (bulk, true));
            let express: Vec<_> = to.iter().map(TapQueue::is_express).collect();
            assert_eq!(
                (express.len(), &express[..bulk]),
                (bulk + 1, &vec![false; bulk][..])
            );
            assert!(express[bulk]);
            for port in 1000..1008 {
                for frame in kinds_of_flow(port) {
                    assert_eq!(place_of(&frame, &from[0], &to), bulk, "{port}");
                }
            }
            let before = to[0].moved_flows();
            let large = frame(8000, 0);
            assert!(place_of(&large, &from[0], &to) < bulk);
            assert_eq!(to[bulk].moved_flows(), before + 1);
            drop((_left, _right, from, to));
            for name in ["left", "right"] {
                eventually(|| sys::interface_index(name).is_err().then_some(())).unwrap();
            }
            ip("link del br0");
        }
    });
}

#[test]
fn without_the_program_for_it_there_is_no_express_queue() {
    for (queues, attempts) in [(1, 1), (3, 2)] {
        in_namespace(|| {
            let refused = (Call::LoadProgram, Fault::Errno(sys::EPERM));
            script(&[refused, (Call::LoadProgram, Fault::Pass)][..attempts]);
            let (tap, found) = open_with("tap7", Backend::Vnet, (queues, true)).unwrap();
            finish();
            assert_eq!(found.len(), queues);
            assert!(!found.iter().any(TapQueue::is_express));
            assert!(tap.no_express_because().is_some() && tap.one_queue_because().is_none());
        });
    }
    in_namespace(|| {
        let (tap, found) = open_with("tap8", Backend::Plain, (2, true)).unwrap();
        assert!(found.len() == 1 && tap.no_express_because().is_none());
        ip("tuntap add tap7 mode tap");
        let (tap, found) = open_with("tap7", Backend::Auto, (1, true)).unwrap();
        assert!(found.len() == 1 && !found[0].is_express() && tap.no_express_because().is_none());
    });
}
