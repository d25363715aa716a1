// SPDX-License-Identifier: MIT OR Apache-2.0
mod steering;

use std::io::{self, IoSlice};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::io::sys::faults::{Call, Fault, finish, script};

use super::queue::MAX_PARTS;
use super::*;
use crate::io::namespace_inode;
use crate::io::sys::{
    self, ebpf,
    tun::{self, Attach},
};
use crate::io::waker;
use crate::testing::{
    Namespace, eventually, in_namespace, ip, wait_for_addresses, wait_for_carrier,
};

fn open(name: &str, backend: Backend, queues: usize) -> Result<(Tap, Vec<TapQueue>), TapError> {
    open_with(name, backend, (queues, false))
}

/// The same, perhaps with an express queue.
fn open_with(
    name: &str,
    backend: Backend,
    (queues, express): (usize, bool),
) -> Result<(Tap, Vec<TapQueue>), TapError> {
    let options = TapOptions {
        name: name.to_owned(),
        backend,
        express,
    };
    Tap::open(&options, queues)
}

/// An Ethernet frame of `len` bytes with an experimental ethertype, behind `tags` VLAN tags.
fn frame(len: usize, tags: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1]);
    for tag in 0..tags {
        frame.extend([0x81, 0x00, 0x20, 100 + tag as u8]);
    }
    frame.extend([0x88, 0xb5]);
    frame.extend((frame.len()..len).map(|at| (at % 253) as u8));
    frame
}

/// The next frame of ours; the kernel adds neighbour discovery and such of its own.
fn read_ours(queues: &[TapQueue]) -> Option<Vec<u8>> {
    let mut buf = vec![0; 70_000];
    let deadline = Instant::now() + Duration::from_secs(1);
    while Instant::now() < deadline {
        for queue in queues {
            while let Some((header, at)) = queue.try_read(&mut buf).unwrap() {
                if buf[6..12] == [2, 0, 0, 0, 0, 1] {
                    assert_eq!(header, VnetHeader::NONE);
                    return Some(buf[at].to_vec());
                }
            }
        }
        let fds: Vec<_> = queues.iter().map(AsFd::as_fd).collect();
        waker::wait(&fds, Some(Duration::from_millis(100))).unwrap();
    }
    None
}

/// Two TAPs in one bridge, ready for frames of 9000 bytes.
fn bridged(backend: Backend, queues: usize) -> [(Tap, Vec<TapQueue>); 2] {
    bridged_with(backend, (queues, false))
}

fn bridged_with(backend: Backend, queues: (usize, bool)) -> [(Tap, Vec<TapQueue>); 2] {
    ip("link add br0 type bridge mcast_snooping 0");
    ip("link set br0 up");
    ["left", "right"].map(|name| {
        let (tap, queues) = open_with(name, backend, queues).unwrap();
        ip(&format!("link set {name} mtu 9000 master br0 up"));
        tap.set_carrier(true).unwrap();
        wait_for_carrier(name);
        (tap, queues)
    })
}

#[test]
fn frames_cross_a_bridge_byte_by_byte() {
    for (backend, queues) in [(Backend::Vnet, 1), (Backend::Vnet, 2), (Backend::Plain, 1)] {
        in_namespace(|| {
            let [(_left, from), (right, to)] = bridged(backend, queues);
            assert_eq!(to.len(), queues);
            for (len, tags) in [(60, 0), (61, 1), (1514, 0), (1522, 2), (9014, 0), (9018, 1)] {
                let frame = frame(len, tags);
                from[0].write(&VnetHeader::NONE, &frame).unwrap();
                let arrived = read_ours(&to);
                assert!(arrived == Some(frame), "{len} bytes, {}", right.backend());
            }
        });
    }
}

#[test]
fn a_frame_in_pieces_arrives_whole() {
    for backend in [Backend::Vnet, Backend::Plain] {
        in_namespace(|| {
            let [(_left, from), (_right, to)] = bridged(backend, 1);
            let frame = frame(8000, 0);
            for pieces in [1, 2, 7, 8, 100, 127] {
                let size = frame.len().div_ceil(pieces);
                let parts: Vec<_> = frame.chunks(size).map(IoSlice::new).collect();
                from[0].write_parts(&VnetHeader::NONE, &parts).unwrap();
                assert!(read_ours(&to).as_ref() == Some(&frame), "{pieces} pieces");
            }
            let parts = [IoSlice::new(&frame[..10]); MAX_PARTS + 1];
            let error = from[0].write_parts(&VnetHeader::NONE, &parts).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        });
    }
}

#[test]
fn an_idle_tap_has_nothing_to_read() {
    for backend in [Backend::Vnet, Backend::Plain] {
        in_namespace(|| {
            let (_tap, queues) = open("h3idle", backend, 1).unwrap();
            assert_eq!(queues[0].try_read(&mut [0; 2000]).unwrap(), None);
        });
    }
}

#[test]
fn the_carrier_starts_off() {
    for backend in [Backend::Auto, Backend::Vnet, Backend::Plain] {
        in_namespace(|| {
            let (tap, _queues) = open("tap7", backend, 1).unwrap();
            ip("link set tap7 up");
            assert!(ip("link show tap7").contains("NO-CARRIER"));
            tap.set_carrier(true).unwrap();
            wait_for_carrier("tap7");
            assert!(tap.index() > 0 && !tap.adopted() && tap.fallback().is_none());
        });
    }
}

#[test]
fn a_new_device_goes_with_its_last_handle() {
    in_namespace(|| {
        let (tap, queues) = open("tap7", Backend::Vnet, 2).unwrap();
        drop(tap);
        ip("link show tap7");
        drop(queues);
        let is_gone = || sys::interface_index("tap7").is_err().then_some(());
        assert!(eventually(is_gone).is_some());
    });
}

#[test]
fn persistent_taps_of_every_make_are_adopted() {
    for (make, backend, wanted, queues) in [
        ("", Backend::Auto, 1, 1),
        ("", Backend::Vnet, 4, 1),
        ("", Backend::Plain, 1, 1),
        ("pi", Backend::Vnet, 1, 1),
        ("vnet_hdr", Backend::Plain, 1, 1),
        ("multi_queue vnet_hdr", Backend::Auto, 2, 2),
        ("multi_queue vnet_hdr", Backend::Vnet, 1, 1),
        ("multi_queue", Backend::Vnet, 2, 2),
    ] {
        in_namespace(|| {
            ip(&format!("tuntap add tap7 mode tap {make}"));
            ip("link add br0 type bridge");
            ip("link set br0 up");
            ip("link set tap7 master br0 up");
            let (tap, from) = open("tap7", backend, wanted).unwrap();
            assert!(tap.adopted(), "{make} {backend:?}");
            assert_eq!(from.len(), queues, "{make} {backend:?}");
            let (other, to) = open("other", Backend::Vnet, 1).unwrap();
            ip("link set other master br0 up");
            other.set_carrier(true).unwrap();
            tap.set_carrier(true).unwrap();
            wait_for_carrier("other");
            wait_for_carrier("tap7");
            for (from, to) in [(&from, &to), (&to, &from)] {
                let frame = frame(1514, 0);
                from[0].write(&VnetHeader::NONE, &frame).unwrap();
                assert!(read_ours(to) == Some(frame), "{make} {backend:?}");
            }
            drop((tap, from));
            ip("link show tap7");
        });
    }
}

#[test]
fn an_interface_that_is_no_tap_is_refused() {
    in_namespace(|| {
        ip("link add br0 type bridge");
        ip("link add veth0 type veth peer name veth1");
        ip("tuntap add tun0 mode tun");
        for name in ["lo", "br0", "veth0", "tun0"] {
            for backend in [Backend::Auto, Backend::Vnet] {
                let error = open(name, backend, 2).unwrap_err().to_string();
                let expected =
                    format!("`{name}` exists and is not a TAP: choose another device.name");
                assert_eq!(error, expected);
            }
            let error = open(name, Backend::Plain, 1).unwrap_err().to_string();
            assert!(error.contains("is not a TAP"), "{error}");
        }
        ip("tuntap add tap7 mode tap multi_queue");
        let error = open("tap7", Backend::Plain, 1).unwrap_err().to_string();
        assert!(error.contains("use device.backend = \"vnet\""), "{error}");
    });
}

#[test]
fn a_device_in_use_is_refused_and_another_namespace_is_free() {
    let other = Namespace::new();
    in_namespace(|| {
        let _first = open("tap7", Backend::Vnet, 1).unwrap();
        for backend in [Backend::Auto, Backend::Plain] {
            let error = open("tap7", backend, 1).unwrap_err();
            assert!(matches!(error, TapError::Busy { .. }), "{error:?}");
        }
        other.run(|| open("tap7", Backend::Vnet, 1)).unwrap();
    });
}

#[test]
fn a_tap_whose_holder_has_bare_frames_is_used_with_bare_frames_or_refused_by_name() {
    in_namespace(|| {
        ip("tuntap add tap7 mode tap multi_queue");
        let holder = tun::hold("tap7", true).unwrap();
        let error = open("tap7", Backend::Vnet, 2).unwrap_err().to_string();
        assert!(error.contains("`tap7` without vnet headers"), "{error}");
        let (tap, queues) = open("tap7", Backend::Auto, 2).unwrap();
        assert_eq!((tap.backend(), queues.len()), ("plain", 2));
        assert!(tap.fallback().unwrap().contains("holds it"));
        ip("link set tap7 up");
        tap.set_carrier(true).unwrap();
        wait_for_carrier("tap7");
        ip("address add 10.0.0.1/24 dev tap7");
        ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev tap7");
        let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
        socket.send_to(b"bare", "10.0.0.2:9").unwrap();
        let mut buf = [0; 2000];
        let frame = eventually(|| {
            queues.iter().find_map(|queue| {
                let (_, at) = queue.try_read(&mut buf).unwrap()?;
                buf[at.clone()]
                    .ends_with(b"bare")
                    .then_some(buf[at].to_vec())
            })
        });
        let frame = frame.expect("the datagram comes out");
        assert_eq!(frame[..6], [2, 0, 0, 0, 0, 2], "where the frame begins");
        drop((tap, queues, holder));
    });
}

#[test]
fn settings_of_an_earlier_user_of_a_tap_are_reset() {
    in_namespace(|| {
        ip("tuntap add tap7 mode tap vnet_hdr");
        let earlier = tun::open().unwrap();
        let attach = Attach {
            create: false,
            multi_queue: false,
        };
        tun::attach(&earlier, "tap7", attach).unwrap();
        // As virtio with mergeable buffers has it.
        tun::set_vnet_header_size(&earlier, 12).unwrap();
        // Answers 0 for every frame: drop it.
        let all_out = [(0xb7, 0), (0x95, 0)]
            .map(|(code, register)| ebpf::Instruction::new(code, register, 0, 0, 0));
        let program = ebpf::load_program(&all_out).unwrap();
        tun::set_filter(&earlier, Some(program.as_fd())).unwrap();
        drop(earlier);
        ip("link add br0 type bridge");
        ip("link set br0 up");
        let ends = ["tap7", "other"].map(|name| {
            // A child of another test may hold `earlier` for a moment.
            let (tap, queues) = eventually(|| open(name, Backend::Vnet, 1).ok()).unwrap();
            ip(&format!("link set {name} master br0 up"));
            tap.set_carrier(true).unwrap();
            wait_for_carrier(name);
            (tap, queues)
        });
        let [(_, mine), (_, other)] = &ends;
        for (from, to) in [(mine, other), (other, mine)] {
            let frame = frame(1514, 0);
            from[0].write(&VnetHeader::NONE, &frame).unwrap();
            assert!(read_ours(to) == Some(frame));
        }
    });
}

#[test]
fn it_is_known_where_a_tap_went() {
    let other = Namespace::new();
    in_namespace(|| {
        let (tap, _queues) = open("tap7", Backend::Vnet, 1).unwrap();
        let here = |name: &str| Some(Whereabouts::Here(name.to_owned()));
        assert_eq!(tap.whereabouts(), here("tap7"));
        ip("link set tap7 name tap8");
        assert_eq!(tap.whereabouts(), here("tap8"));
        ip(&format!("link set tap8 netns {}", other.path()));
        let inode = Some(other.run(|| namespace_inode().unwrap()));
        let name = "tap8".to_owned();
        let elsewhere = Some(Whereabouts::Elsewhere { name, inode });
        assert_eq!(tap.whereabouts(), elsewhere);
        other.run(|| ip("link delete tap8"));
        assert_eq!(tap.whereabouts(), Some(Whereabouts::Gone));
    });
}

#[test]
fn impossible_names_are_refused() {
    for name in [
        "",
        "sixteen-letters-",
        "a/b",
        "a b",
        "tap%d",
        "..",
        "a:b",
        "é",
    ] {
        let error = open(name, Backend::Auto, 1).unwrap_err();
        assert!(
            matches!(error, TapError::BadName { .. }),
            "{name}: {error:?}"
        );
    }
    in_namespace(|| open("fifteen-letters", Backend::Auto, 1)).unwrap();
}

#[test]
fn a_deleted_device_is_noticed() {
    for backend in [Backend::Vnet, Backend::Plain] {
        in_namespace(|| {
            let (_tap, queues) = open("tap7", backend, 1).unwrap();
            ip("link delete tap7");
            let ready = waker::wait(&[queues[0].as_fd()], None).unwrap();
            assert!(ready.is_broken(0));
            assert!(queues[0].try_read(&mut [0; 100]).is_err());
            assert!(queues[0].write(&VnetHeader::NONE, &frame(60, 0)).is_err());
        });
    }
}

#[test]
fn offloads_are_what_the_kernel_grants() {
    in_namespace(|| {
        let all = Offloads {
            checksum: true,
            tcp: true,
            udp: true,
        };
        let (vnet, _queues) = open("vnet", Backend::Vnet, 1).unwrap();
        assert_eq!(vnet.set_offloads(all).unwrap(), all);
        assert_eq!(vnet.set_offloads(Offloads::NONE).unwrap(), Offloads::NONE);
        let (plain, queues) = open("plain", Backend::Plain, 1).unwrap();
        assert_eq!(plain.set_offloads(all).unwrap(), Offloads::NONE);
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CHECKSUM,
            ..VnetHeader::NONE
        };
        assert!(queues[0].write(&header, &frame(60, 0)).is_err());
    });
}

/// Sends a datagram through tap7 as a program would, and returns the frame that is read.
fn frame_from_the_stack(tap: &Tap, queue: &TapQueue) -> (VnetHeader, Vec<u8>) {
    ip("address add 10.0.0.1/24 dev tap7");
    ip("link set tap7 up");
    ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev tap7");
    tap.set_carrier(true).unwrap();
    wait_for_carrier("tap7");
    let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
    socket.send_to(b"checksum me", "10.0.0.2:9").unwrap();
    let mut buf = [0; 2000];
    let (header, at) = std::iter::from_fn(|| queue.try_read(&mut buf).unwrap())
        .find(|(_, at)| at.len() == 14 + 20 + 8 + 11)
        .unwrap();
    (header, buf[at].to_vec())
}

fn has_good_checksum(frame: &[u8]) -> bool {
    let headers = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
    let (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Udp(udp))) =
        (headers.net, headers.transport)
    else {
        panic!("not the datagram that was sent");
    };
    let sum = udp
        .to_header()
        .calc_checksum_ipv4(&ip.header().to_header(), udp.payload());
    udp.checksum() == sum.unwrap()
}

#[test]
fn the_kernel_leaves_the_checksum_to_a_reader_that_wants_it() {
    in_namespace(|| {
        let (tap, queues) = open("tap7", Backend::Vnet, 1).unwrap();
        tap.set_offloads(Offloads {
            checksum: true,
            ..Offloads::NONE
        })
        .unwrap();
        let (header, frame) = frame_from_the_stack(&tap, &queues[0]);
        assert_eq!(header.flags, VnetHeader::NEEDS_CHECKSUM);
        assert_eq!((header.csum_start, header.csum_offset), (34, 6));
        assert!(!has_good_checksum(&frame));
    });
}

#[test]
fn the_kernel_finishes_frames_even_where_an_earlier_reader_did() {
    for backend in [Backend::Vnet, Backend::Plain] {
        in_namespace(|| {
            ip("tuntap add tap7 mode tap");
            let (earlier, queues) = open("tap7", Backend::Vnet, 1).unwrap();
            let all = Offloads {
                checksum: true,
                tcp: true,
                udp: true,
            };
            assert_eq!(earlier.set_offloads(all).unwrap(), all);
            drop((earlier, queues));
            let (tap, queues) = eventually(|| open("tap7", backend, 1).ok()).unwrap();
            let (header, frame) = frame_from_the_stack(&tap, &queues[0]);
            assert_eq!(header, VnetHeader::NONE);
            assert!(has_good_checksum(&frame));
        });
    }
}

/// Opens a TAP where a test below has removed something, and prints the outcome.
#[test]
#[ignore = "run by other tests, in a process of its own"]
fn open_in_a_poor_environment() {
    let open = |backend| open("tap7", backend, 1).unwrap_err();
    panic!("[{}] [{}]", open(Backend::Auto), open(Backend::Plain));
}

/// Runs the test above behind `command`.
fn open_behind(command: &[&str]) -> String {
    let test = "io::tap::tests::open_in_a_poor_environment";
    let output = std::process::Command::new(command[0])
        .args(&command[1..])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_missing_capability_is_named() {
    let without = [
        "setpriv",
        "--bounding-set=-net_admin",
        "--inh-caps=-net_admin",
    ];
    let said = open_behind(&without);
    for expected in [
        "[opening the TAP `tap7` needs CAP_NET_ADMIN: Operation not permitted",
        "; run as root or with that capability]",
    ] {
        assert_eq!(said.matches(expected).count(), 2, "{said}");
    }
}

#[test]
fn datagrams_of_the_tunnel_itself_are_left_out_and_nothing_else() {
    use crate::{io::mark::Mark, machine::sockets::protect};

    for backend in [Backend::Vnet, Backend::Plain] {
        in_namespace(|| {
            let (tap, queues) = open("tap7", backend, 1).unwrap();
            tap.set_carrier(true).unwrap();
            ip("link set tap7 up");
            wait_for_carrier("tap7");
            ip("address add 192.0.2.1/24 dev tap7");
            ip("address add 2001:db8::1/64 dev tap7 nodad");
            wait_for_addresses();
            for peer in ["192.0.2.2", "2001:db8::2"] {
                ip(&format!(
                    "neigh add {peer} lladdr 02:00:00:00:00:02 dev tap7"
                ));
            }
            let socket = |from: &str, port: u16, is_marked: bool| {
                let socket = UdpSocket::bind((from, port)).unwrap();
                if is_marked {
                    protect(&socket, Mark::BYPASS).unwrap();
                }
                socket
            };
            let mut buf = vec![0; 2000];
            // Whether a datagram arrives before the one that is sent after it.
            let mut passes = |from: &str, port: u16, is_marked: bool| {
                let to = if from.contains(':') {
                    "2001:db8::2"
                } else {
                    "192.0.2.2"
                };
                let sender = socket(from, port, is_marked);
                sender.send_to(b"patchcord", (to, 9)).unwrap();
                drop(sender);
                let last = socket(from, 7, true);
                last.send_to(b"the end", (to, 9)).unwrap();
                let deadline = Instant::now() + Duration::from_secs(1);
                let mut arrived = false;
                while Instant::now() < deadline {
                    while let Some((_, at)) = queues[0].try_read(&mut buf).unwrap() {
                        let frame = &buf[at];
                        arrived |= frame.ends_with(b"patchcord");
                        if frame.ends_with(b"the end") {
                            return arrived;
                        }
                    }
                    waker::wait(&[queues[0].as_fd()], Some(Duration::from_millis(50))).unwrap();
                }
                panic!("nothing arrives")
            };
            for from in ["192.0.2.1", "2001:db8::1"] {
                assert!(passes(from, 51830, true), "before");
                queues[0].leave_out_tunnel(51830).unwrap();
                assert!(!passes(from, 51830, true), "{from}: the tunnel's");
                assert!(passes(from, 51830, false), "{from}: another program's");
                assert!(passes(from, 51831, true), "{from}: another tunnel's");
                tap.stop_steering();
                assert!(passes(from, 51830, true), "afterwards");
            }
        });
    }
}

#[test]
fn a_missing_driver_is_named() {
    let hide = "mount -t tmpfs none /dev/net && exec \"$0\" \"$@\"";
    let said = open_behind(&["unshare", "--mount", "sh", "-c", hide]);
    let expected = "[no /dev/net/tun: No such file or directory (os error 2); load the driver";
    assert_eq!(said.matches(expected).count(), 2, "{said}");
    assert_eq!(said.matches("`--device /dev/net/tun`").count(), 2, "{said}");
}
