// SPDX-License-Identifier: MIT OR Apache-2.0
//! A NIC as the end of a wire: every frame that arrives at it, and frames out of it, past bridges and
//! the rest of the machine's network stack.
//!
//! The frames are those of a packet socket (packet(7)), changed back to what was on the wire:
//!
//! | what the kernel did | what is done about it |
//! |---|---|
//! | took the outermost VLAN tag out, VID 0 included | it is put back, and offsets behind it move |
//! | joined segments (GRO), or got them so from a veth | they stay so, described by a [`VnetHeader`] |
//! | left a checksum open | likewise |
//! | sees what this machine sends by the NIC | not read: this end sends it too |
//! | sees the datagrams of the tunnel, if they come by this NIC | not read (`circle`) |
//! | drops frames to other stations | the NIC is promiscuous for as long as the socket is open |
//!
//! `tap` gives this the shape of a TAP's queue. The NIC's name, MTU and addresses stay what they are.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use socket2::SockRef;
use zerocopy::IntoBytes;

use super::own_traffic;
use super::sys::bpf;
use super::sys::faults::{self, Call};
use super::sys::{self, SocketOption, packet};
use super::vnet::VnetHeader;

/// Bytes of frames that may wait to be read: some milliseconds of a fast network.
const RECEIVE_BUFFER: i32 = 4 << 20;
/// Bytes of frames that may wait for the NIC. Beyond that the writer waits, so that the queue stands
/// where its length is looked after.
const SEND_BUFFER: i32 = 1 << 20;
/// How long a writer waits for a NIC that is behind.
const PATIENCE: Duration = Duration::from_millis(2);
/// Bytes of the longest super-frame of Linux (GSO_MAX_SIZE), which a NIC has if its `gro_max_size` says
/// so, and a veth if that of its peer's `gso_max_size` does.
pub(super) const LONGEST_PACKET: usize = 8 * 65_535;
/// Source and destination, which are in front of a VLAN tag.
const STATIONS: usize = 12;
/// Bytes of a VLAN tag.
const TAG: usize = 4;
const ETHERNET_HEADER: usize = 14;

/// Why a NIC cannot be attached. Each message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NicError {
    /// No such interface.
    #[error("there is no interface `{name}`: `ip link` lists them; choose another device.nic")]
    Missing {
        /// The interface.
        name: String,
    },
    /// There is such an interface, of another kind.
    #[error("`{name}` is not an Ethernet interface: choose another device.nic")]
    NotEthernet {
        /// The interface.
        name: String,
    },
    /// A bridge or a bond has it.
    #[error(
        "`{name}` is a port of `{controller}`, which takes its frames as well: take it out with \
         `ip link set {name} nomaster`, or choose another device.nic"
    )]
    IsPort {
        /// The interface.
        name: String,
        /// The bridge or bond.
        controller: String,
    },
    /// Not allowed.
    #[error(
        "reading the frames of `{name}` needs CAP_NET_RAW, and CAP_NET_ADMIN to bring it up: run as \
         root or with these capabilities"
    )]
    NotPermitted {
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot {action} the interface `{name}`")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What [`open`] has opened.
pub(super) struct Opened {
    pub(super) index: u32,
    /// At least one.
    pub(super) sockets: Vec<PacketSocket>,
    /// Why there are no [`VnetHeader`]s, although newer kernels have them.
    pub(super) no_vnet_header: Option<io::Error>,
    /// Why there is one socket, although several were asked for.
    pub(super) one_because: Option<io::Error>,
}

/// Opens `count` sockets for the frames of the interface, each flow at one of them, or a single one.
pub(super) fn open(name: &str, count: usize) -> Result<Opened, NicError> {
    let failed = |action| {
        move |source: io::Error| match source.kind() {
            io::ErrorKind::PermissionDenied => NicError::NotPermitted {
                name: name.to_owned(),
                source,
            },
            _ => NicError::Io {
                action,
                name: name.to_owned(),
                source,
            },
        }
    };
    let index = sys::interface_index(name).map_err(|_| NicError::Missing {
        name: name.to_owned(),
    })?;
    let mut no_vnet_header = None;
    let mut files = Vec::new();
    for _ in 0..count.max(1) {
        let file = packet::open().map_err(failed("read the frames of"))?;
        let socket = file.as_fd();
        sys::set_option(socket, SocketOption::PacketIgnoreOutgoing, 1).map_err(failed(
            "keep own frames (Linux 4.20 can) apart from those of",
        ))?;
        sys::set_option(socket, SocketOption::PacketAuxdata, 1)
            .map_err(failed("read the VLAN tags of"))?;
        no_vnet_header = offer_vnet_header(socket).err();
        // Needs CAP_NET_ADMIN; without it there is less room, up to net.core.[rw]mem_max.
        let _ = sys::set_option(socket, SocketOption::ReceiveBufferForce, RECEIVE_BUFFER);
        let _ = sys::set_option(socket, SocketOption::SendBufferForce, SEND_BUFFER);
        packet::bind(socket, index).map_err(failed("attach to"))?;
        let hardware = packet::binding(socket)
            .map_err(failed("attach to"))?
            .hardware;
        if hardware != packet::ETHERNET {
            return Err(NicError::NotEthernet {
                name: name.to_owned(),
            });
        }
        packet::make_promiscuous(socket, index).map_err(failed("see all frames of"))?;
        // It is in error when the interface is down, and the first frame to it would pay for that.
        let _ = SockRef::from(&file).take_error();
        files.push(file);
    }
    let mut one_because = None;
    if files.len() > 1
        && let Err(error) = packet::share(&files)
    {
        one_because = Some(error);
        files.truncate(1);
    }
    let has_vnet_header = no_vnet_header.is_none();
    let sockets = files.into_iter().map(|file| PacketSocket {
        file,
        index,
        has_vnet_header,
    });
    Ok(Opened {
        index,
        sockets: sockets.collect(),
        no_vnet_header,
        one_because,
    })
}

fn offer_vnet_header(socket: BorrowedFd<'_>) -> io::Result<()> {
    faults::before(Call::OfferVnetHeader, 1)?;
    sys::set_option(socket, SocketOption::PacketVnetHeader, 1)
}

/// The frames of one NIC, or those of some flows.
#[derive(Debug)]
pub(super) struct PacketSocket {
    file: File,
    index: u32,
    has_vnet_header: bool,
}

impl PacketSocket {
    /// Reads one frame into `buf` and says where in it; None when nothing is there, or while the
    /// interface is down. A frame that cannot be had as it was on the wire is [`VnetHeader::BROKEN`].
    ///
    /// # Errors
    /// `ENODEV` when the interface was deleted.
    pub(super) fn try_read(
        &self,
        buf: &mut [u8],
    ) -> io::Result<Option<(VnetHeader, Range<usize>)>> {
        let mut header = VnetHeader::NONE;
        let in_front = if self.has_vnet_header {
            header.as_mut_bytes()
        } else {
            &mut []
        };
        let header_len = in_front.len();
        // Room for the tag comes first, so that only the stations must move to let it in.
        let Some(room) = buf.get_mut(TAG..) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let received = match packet::receive(self.file.as_fd(), in_front, room) {
            Ok(received) => received,
            Err(error) => return self.explain(error),
        };
        let len = received.len.saturating_sub(header_len);
        let is_described = self.has_vnet_header || !received.is_open;
        if received.is_cut || len < STATIONS || !is_described {
            return Ok(Some((VnetHeader::BROKEN, 0..0)));
        }
        let Some((tpid, tci)) = received.tag else {
            return Ok(Some((header, TAG..TAG + len)));
        };
        buf.copy_within(TAG..TAG + STATIONS, 0);
        buf[STATIONS..STATIONS + 2].copy_from_slice(&tpid.to_be_bytes());
        buf[STATIONS + 2..STATIONS + TAG].copy_from_slice(&tci.to_be_bytes());
        header.insert(TAG as u16);
        Ok(Some((header, 0..TAG + len)))
    }

    /// From now on UDP datagrams to this port of this machine are not read.
    pub(super) fn leave_out_datagrams_to(&self, port: u16) -> io::Result<()> {
        bpf::attach_filter(self.file.as_fd(), &own_traffic::all_but_datagrams_to(port))
    }

    /// What an error of a read means.
    fn explain(&self, error: io::Error) -> io::Result<Option<(VnetHeader, Range<usize>)>> {
        match error.raw_os_error() {
            Some(sys::EAGAIN) => Ok(None),
            Some(sys::ENETDOWN) if self.is_deleted() => {
                Err(io::Error::from_raw_os_error(sys::ENODEV))
            }
            // It goes on by itself when the interface comes up again.
            Some(sys::ENETDOWN) => Ok(None),
            // The kernel itself cannot describe the frame, which is lost: joined by the NIC (LRO).
            Some(sys::EINVAL) => Ok(Some((VnetHeader::BROKEN, 0..0))),
            _ => Err(error),
        }
    }

    /// Whether somebody deleted the interface, or moved it to another namespace.
    pub(super) fn is_deleted(&self) -> bool {
        packet::binding(self.file.as_fd()).is_ok_and(|binding| binding.index < 0)
    }

    /// Writes one frame, `parts`, of which the first is `vnet` itself if there are such headers. Waits
    /// a moment while the NIC is behind.
    ///
    /// # Errors
    /// `EMSGSIZE` when the frame, or a segment of it, is larger than the interface takes, `ENETDOWN`
    /// while it is down, `EAGAIN` and `ENOBUFS` when it is too far behind, `EINVAL` when header and
    /// frame do not fit together, `ENXIO` when it was deleted.
    pub(super) fn write(&self, vnet: &VnetHeader, parts: &[IoSlice<'_>]) -> io::Result<()> {
        if vnet.gso_type != VnetHeader::GSO_NONE {
            self.check_segments(vnet, parts)?;
        }
        match (&self.file).write_vectored(parts) {
            Err(error) if error.raw_os_error() == Some(sys::EAGAIN) => {
                let entry = sys::PollEntry::new(self.file.as_fd(), sys::POLLOUT);
                sys::poll(&mut [entry], Some(PATIENCE))?;
                (&self.file).write_vectored(parts)
            }
            result => result,
        }
        .map(drop)
    }

    /// The kernel compares finished frames with the MTU, and believes that segments fit.
    fn check_segments(&self, vnet: &VnetHeader, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let head = parts.get(1).map_or(&[][..], |part| part);
        let tags = head.get(STATIONS..).map_or(0, |rest| {
            rest.chunks_exact(TAG)
                .take_while(|tag| is_vlan(tag))
                .count()
        });
        let total: usize = parts.iter().skip(1).map(|part| part.len()).sum();
        let segment = total.min(usize::from(vnet.hdr_len) + usize::from(vnet.gso_size));
        let mtu = packet::mtu(self.file.as_fd(), self.index)? as usize;
        if segment > mtu + ETHERNET_HEADER + tags * TAG {
            return Err(io::Error::from_raw_os_error(sys::EMSGSIZE));
        }
        Ok(())
    }
}

fn is_vlan(tag: &[u8]) -> bool {
    matches!(tag, [0x81, 0x00, ..] | [0x88, 0xa8, ..] | [0x91, 0x00, ..])
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use etherparse::{PacketBuilder, PacketBuilderStep, UdpHeader};
    use sys::faults::{Fault, finish, script};

    use super::*;
    use crate::io::tap::{self, Backend, Tap, TapError, TapOptions, TapQueue};
    use crate::io::waker;
    use crate::testing::{eventually, in_namespace, ip, wait_for_carrier};

    const DOT1Q: u16 = 0x8100;
    const DOT1AD: u16 = 0x88a8;
    const EXPERIMENTAL: u16 = 0x88b5;
    /// The source of every frame here, which tells them from the kernel's own.
    const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const SOMEBODY: [u8; 6] = [2, 0, 0, 0, 0, 2];

    /// What it is, destination, tags, EtherType (or 802.3 length) and length.
    type Kind<'a> = (&'a str, [u8; 6], &'a [(u16, u16)], u16, usize);

    fn open(name: &str, queues: usize) -> Result<(Tap, Vec<TapQueue>), TapError> {
        let options = TapOptions {
            name: name.to_owned(),
            backend: Backend::Packet,
        };
        Tap::open(&options, queues)
    }

    /// Two ends of a cable; it takes frames of this MTU.
    fn cable(mtu: u32) {
        ip("link add near mtu 9000 type veth peer name far mtu 9000");
        for name in ["near", "far"] {
            ip(&format!("link set {name} mtu {mtu} addrgenmode none up"));
        }
        wait_for_carrier("near");
        wait_for_carrier("far");
    }

    /// A NIC at either end of a cable.
    fn plugged(mtu: u32) -> [(Tap, TapQueue); 2] {
        cable(mtu);
        ["near", "far"].map(|name| {
            let (tap, mut queues) = open(name, 1).unwrap();
            (tap, queues.remove(0))
        })
    }

    fn frame(dst: [u8; 6], tags: &[(u16, u16)], ethertype: u16, len: usize) -> Vec<u8> {
        let mut frame = [dst, OURS].concat();
        for (tpid, tci) in tags {
            frame.extend(tpid.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        frame.extend(ethertype.to_be_bytes());
        frame.extend((frame.len()..len).map(|at| (at % 253) as u8));
        frame
    }

    /// The next frame of ours.
    fn read_ours(queue: &TapQueue) -> Option<(VnetHeader, Vec<u8>)> {
        let mut buf = vec![0; 70_000];
        let deadline = Instant::now() + Duration::from_secs(1);
        while Instant::now() < deadline {
            while let Some((header, at)) = queue.try_read(&mut buf).unwrap() {
                let frame = &buf[at];
                if frame.get(6..12) == Some(&OURS) || header == VnetHeader::BROKEN {
                    return Some((header, frame.to_vec()));
                }
            }
            waker::wait(&[queue.as_fd()], Some(Duration::from_millis(100))).unwrap();
        }
        None
    }

    fn assert_crosses(from: &TapQueue, to: &TapQueue, frame: &[u8], what: &str) {
        from.write(&VnetHeader::NONE, frame).unwrap();
        let (header, arrived) = read_ours(to).unwrap_or_else(|| panic!("{what} does not arrive"));
        assert!(
            arrived == frame,
            "{what}: {:02x?}",
            &arrived[..arrived.len().min(40)]
        );
        assert!(header.is_finished(), "{what}: {header:?}");
    }

    #[test]
    fn frames_of_every_kind_come_in_and_go_out_as_they_are() {
        let group = |last| [0x01, 0x80, 0xc2, 0, 0, last];
        let kinds: &[Kind<'_>] = &[
            ("untagged", SOMEBODY, &[], EXPERIMENTAL, 60),
            ("the shortest", SOMEBODY, &[], EXPERIMENTAL, 14),
            ("full size", SOMEBODY, &[], EXPERIMENTAL, 1514),
            ("broadcast", [0xff; 6], &[], EXPERIMENTAL, 100),
            ("802.1Q", SOMEBODY, &[(DOT1Q, 42)], EXPERIMENTAL, 60),
            (
                "802.1Q, full size",
                SOMEBODY,
                &[(DOT1Q, 42)],
                EXPERIMENTAL,
                1518,
            ),
            (
                "with PCP and DEI",
                SOMEBODY,
                &[(DOT1Q, 0xf000 | 4094)],
                EXPERIMENTAL,
                100,
            ),
            ("VID 0", SOMEBODY, &[(DOT1Q, 0xa000)], EXPERIMENTAL, 100),
            ("VID 0, PCP 0", SOMEBODY, &[(DOT1Q, 0)], EXPERIMENTAL, 100),
            ("802.1ad", SOMEBODY, &[(DOT1AD, 7)], EXPERIMENTAL, 100),
            (
                "802.1ad, VID 0",
                SOMEBODY,
                &[(DOT1AD, 0)],
                EXPERIMENTAL,
                100,
            ),
            (
                "QinQ",
                SOMEBODY,
                &[(DOT1AD, 7), (DOT1Q, 42)],
                EXPERIMENTAL,
                100,
            ),
            (
                "802.1Q twice",
                SOMEBODY,
                &[(DOT1Q, 7), (DOT1Q, 42)],
                EXPERIMENTAL,
                100,
            ),
            (
                "three tags",
                SOMEBODY,
                &[(DOT1Q, 0), (DOT1Q, 7), (DOT1Q, 42)],
                EXPERIMENTAL,
                100,
            ),
            (
                "old QinQ",
                SOMEBODY,
                &[(0x9100, 7), (DOT1Q, 42)],
                EXPERIMENTAL,
                100,
            ),
            ("STP", group(0x00), &[], 39, 60),
            (
                "pause, if it ever comes so far",
                group(0x01),
                &[],
                0x8808,
                60,
            ),
            ("LACP", group(0x02), &[], 0x8809, 124),
            ("802.1X", group(0x03), &[], 0x888e, 64),
            ("LLDP", group(0x0e), &[], 0x88cc, 200),
            ("CDP", [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcc], &[], 300, 314),
            ("LLDP behind a tag", group(0x0e), &[(DOT1Q, 5)], 0x88cc, 200),
        ];
        for has_vnet_header in [true, false] {
            in_namespace(|| {
                if !has_vnet_header {
                    let refusal = (Call::OfferVnetHeader, Fault::Errno(sys::ENOPROTOOPT));
                    script(&[refusal, refusal]);
                }
                let [(near_tap, near), (_far, far)] = plugged(1500);
                finish();
                assert_eq!(near.takes_offloads(), has_vnet_header);
                assert_eq!(near_tap.fallback().is_none(), has_vnet_header);
                for &(what, dst, tags, ethertype, len) in kinds {
                    let frame = frame(dst, tags, ethertype, len);
                    assert_crosses(&far, &near, &frame, what);
                    assert_crosses(&near, &far, &frame, what);
                }
                // Nothing came twice, and what this end sent did not come back.
                assert_eq!((read_ours(&near), read_ours(&far)), (None, None));
            });
        }
    }

    #[test]
    fn jumbo_frames_cross_and_those_beyond_the_mtu_are_named() {
        in_namespace(|| {
            let [(_near, near), (_far, far)] = plugged(9000);
            for (len, tags) in [(9014, &[][..]), (9018, &[(DOT1Q, 42)])] {
                let jumbo = frame(SOMEBODY, tags, EXPERIMENTAL, len);
                assert_crosses(&far, &near, &jumbo, "a jumbo frame");
                assert_crosses(&near, &far, &jumbo, "a jumbo frame");
                let longer = frame(SOMEBODY, tags, EXPERIMENTAL, len + 1);
                let error = near.write(&VnetHeader::NONE, &longer).unwrap_err();
                assert!(tap::is_too_big(&error), "{error}");
            }
            // The kernel makes room for a single 802.1Q tag; others count.
            for (mtu, fits) in [(1500, false), (1508, true)] {
                ip(&format!("link set near mtu {mtu}"));
                let full = frame(SOMEBODY, &[(DOT1AD, 7), (DOT1Q, 42)], EXPERIMENTAL, 1522);
                let outcome = near.write(&VnetHeader::NONE, &full);
                assert_eq!(outcome.is_ok(), fits, "{outcome:?}");
            }
            assert_eq!(read_ours(&far).unwrap().1.len(), 1522);
        });
    }

    /// A frame of 5000 bytes of payload, its checksum open, and what the kernel says of it.
    fn super_frame(is_ipv6: bool, is_tcp: bool, tags: &[(u16, u16)]) -> (VnetHeader, Vec<u8>) {
        let ethernet = PacketBuilder::ethernet2(OURS, SOMEBODY);
        let ip = match is_ipv6 {
            true => ethernet.ipv6([1; 16], [2; 16], 64),
            false => ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
        };
        let (payload, mut frame) = ([7; 5000], Vec::new());
        match is_tcp {
            true => ip.tcp(1, 2, 3, 4).ack(5).write(&mut frame, &payload),
            false => ip.udp(1, 2).write(&mut frame, &payload),
        }
        .unwrap();
        let start = if is_ipv6 { 54 } else { 34 };
        let in_front: Vec<u8> = tags
            .iter()
            .flat_map(|&(tpid, tci)| [tpid.to_be_bytes(), tci.to_be_bytes()].concat())
            .collect();
        frame.splice(12..12, in_front.iter().copied());
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CHECKSUM,
            gso_type: match (is_tcp, is_ipv6) {
                (true, false) => VnetHeader::GSO_TCPV4,
                (true, true) => VnetHeader::GSO_TCPV6,
                (false, _) => VnetHeader::GSO_UDP_L4,
            },
            hdr_len: (frame.len() - payload.len()) as u16,
            gso_size: 1000,
            csum_start: (start + in_front.len()) as u16,
            csum_offset: if is_tcp { 16 } else { 6 },
        };
        (header, frame)
    }

    #[test]
    fn super_frames_and_open_checksums_keep_their_description() {
        in_namespace(|| {
            let [(_near, near), (_far, far)] = plugged(1500);
            for tags in [
                &[][..],
                &[(DOT1Q, 42)],
                &[(DOT1Q, 0xa000)],
                &[(DOT1AD, 7), (DOT1Q, 42)],
            ] {
                for (is_ipv6, is_tcp) in
                    [(false, true), (true, true), (false, false), (true, false)]
                {
                    let (header, frame) = super_frame(is_ipv6, is_tcp, tags);
                    let short = &frame[..1000];
                    let single = VnetHeader {
                        gso_type: VnetHeader::GSO_NONE,
                        hdr_len: 0,
                        gso_size: 0,
                        ..header
                    };
                    for (from, to) in [(&far, &near), (&near, &far)] {
                        from.write(&header, &frame).unwrap();
                        let (said, arrived) = read_ours(to).unwrap();
                        assert!(arrived == frame, "{tags:?}");
                        // It may say more headers than there are.
                        let said = VnetHeader {
                            hdr_len: header.hdr_len,
                            ..said
                        };
                        assert_eq!(said, header, "{tags:?}");
                        from.write(&single, short).unwrap();
                        assert_eq!(read_ours(to).unwrap(), (single, short.to_vec()), "{tags:?}");
                    }
                }
            }
        });
    }

    #[test]
    fn segments_larger_than_the_mtu_are_named() {
        in_namespace(|| {
            let [(_near, near), (_far, far)] = plugged(1500);
            for tags in [&[][..], &[(DOT1AD, 7), (DOT1Q, 42)]] {
                let (header, frame) = super_frame(false, true, tags);
                for (gso_size, fits) in [(1460, true), (1461, false)] {
                    let header = VnetHeader { gso_size, ..header };
                    match near.write(&header, &frame) {
                        Ok(()) => assert!(fits),
                        Err(error) => assert!(!fits && tap::is_too_big(&error), "{error}"),
                    }
                    assert_eq!(read_ours(&far).is_some(), fits);
                }
            }
        });
    }

    #[test]
    fn without_descriptions_what_needs_one_is_refused_and_not_mangled() {
        in_namespace(|| {
            let [(_near, near), _far] = plugged(1500);
            script(&[(Call::OfferVnetHeader, Fault::Errno(sys::ENOPROTOOPT))]);
            let (_tap, plain) = open("far", 1).unwrap();
            finish();
            let (header, frame) = super_frame(false, true, &[]);
            near.write(&header, &frame).unwrap();
            assert_eq!(read_ours(&plain[0]), Some((VnetHeader::BROKEN, Vec::new())));
        });
    }

    #[test]
    fn a_frame_that_the_kernel_cannot_describe_does_not_end_the_reading() {
        in_namespace(|| {
            let [(_near, near), (_far, far)] = plugged(1500);
            let frame = frame(SOMEBODY, &[], EXPERIMENTAL, 100);
            script(&[(Call::ReceiveFrame, Fault::Errno(sys::EINVAL))]);
            assert_eq!(read_ours(&near).unwrap().0, VnetHeader::BROKEN);
            finish();
            assert_crosses(&far, &near, &frame, "the next one");
            // As well one that is longer than its room.
            far.write(&VnetHeader::NONE, &frame).unwrap();
            let read = || near.try_read(&mut [0; 80]).unwrap();
            assert_eq!(eventually(read), Some((VnetHeader::BROKEN, 0..0)));
        });
    }

    #[test]
    fn what_this_machine_sends_by_the_nic_is_not_read() {
        in_namespace(|| {
            let [(_near, near), (_far, far)] = plugged(1500);
            // Another program with a socket of its own, or the machine's network stack.
            let (_other, other) = open("near", 1).unwrap();
            let hello = frame(SOMEBODY, &[], EXPERIMENTAL, 100);
            assert_crosses(&other[0], &far, &hello, "a frame of another program");
            assert_eq!((read_ours(&near), read_ours(&other[0])), (None, None));
        });
    }

    #[test]
    fn datagrams_to_a_port_of_this_machine_are_left_out_and_nothing_else() {
        in_namespace(|| {
            let [(near_tap, near), (_far, far)] = plugged(1500);
            let mac = ip(&format!("-br link show {}", near_tap.name()));
            let mac = mac.split_whitespace().nth(2).unwrap().split(':');
            let mac: Vec<_> = mac
                .map(|byte| u8::from_str_radix(byte, 16).unwrap())
                .collect();
            let mac: [u8; 6] = mac.try_into().unwrap();
            near.leave_out_tunnel(51830).unwrap();

            let to = |mac| PacketBuilder::ethernet2(OURS, mac);
            let (here, there) = ([10, 0, 0, 1], [10, 0, 0, 2]);
            let filled = |headers: PacketBuilderStep<UdpHeader>| {
                let mut frame = Vec::new();
                headers.write(&mut frame, &[7; 100]).unwrap();
                frame
            };
            let ipv4 = |mac, port| filled(to(mac).ipv4(here, there, 64).udp(9, port));
            let ipv6 = |mac, port| filled(to(mac).ipv6([1; 16], [2; 16], 64).udp(9, port));
            let mut with_options = ipv4(mac, 51830);
            with_options[14] = 0x46;
            with_options.splice(34..34, [1; 4]);
            let tagged = |mut frame: Vec<u8>| {
                frame.splice(12..12, [0x81, 0, 0, 5]);
                frame
            };
            for (sent, passes, what) in [
                (ipv4(mac, 51830), false, "IPv4"),
                (ipv6(mac, 51830), false, "IPv6"),
                (with_options, false, "IPv4 with an option"),
                (tagged(ipv4(mac, 51830)), false, "in a VLAN"),
                (ipv4(mac, 51831), true, "another port"),
                (ipv6(mac, 51831), true, "another port, IPv6"),
                (ipv4(SOMEBODY, 51830), true, "somebody else"),
                (ipv6(SOMEBODY, 51830), true, "somebody else, IPv6"),
                (ipv4([0xff; 6], 51830), true, "everybody"),
            ] {
                far.write(&VnetHeader::NONE, &sent).unwrap();
                let last = frame(mac, &[], EXPERIMENTAL, 80);
                far.write(&VnetHeader::NONE, &last).unwrap();
                let expected = if passes { &sent } else { &last };
                assert_eq!(read_ours(&near).unwrap().1, *expected, "{what}");
                if passes {
                    assert_eq!(read_ours(&near).unwrap().1, last, "{what}");
                }
            }
            let mut fragment = ipv4(mac, 51830);
            fragment[21] = 1;
            assert_crosses(&far, &near, &fragment, "a later fragment");
            let mut tcp = ipv4(mac, 51830);
            tcp[23] = 6;
            assert_crosses(&far, &near, &tcp, "TCP");
        });
    }

    #[test]
    fn a_writer_waits_for_a_nic_that_is_behind() {
        in_namespace(|| {
            let [(_near, near), (_far, far)] = plugged(1500);
            let slow = "qdisc add dev near root tbf rate 400mbit burst 20k limit 100m";
            let tc = std::process::Command::new("tc")
                .args(slow.split(' '))
                .status();
            assert!(tc.unwrap().success());
            let frame = frame(SOMEBODY, &[], EXPERIMENTAL, 1514);
            // More than fits in the socket's buffer.
            let (mut buf, mut arrived) = (vec![0; 2000], 0);
            for number in 0..4000 {
                let written = near.write(&VnetHeader::NONE, &frame);
                assert!(written.is_ok(), "{number}: {written:?}");
                while far.try_read(&mut buf).unwrap().is_some() {
                    arrived += 1;
                }
            }
            arrived += std::iter::from_fn(|| read_ours(&far)).count();
            assert_eq!(arrived, 4000);
        });
    }

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
            let hello = frame(SOMEBODY, &[], EXPERIMENTAL, 100);
            for _ in 0..2 {
                ip("link set near down");
                let ready = waker::wait(&[near.as_fd()], None).unwrap();
                assert!(ready.is_broken(0) && !near.is_lost());
                assert_eq!(near.try_read(&mut [0; 100]).unwrap(), None);
                let ready = waker::wait(&[near.as_fd()], Some(Duration::ZERO)).unwrap();
                assert!(ready.is_timeout(), "nobody spins: {ready:?}");
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
            let hello = frame(SOMEBODY, &[], EXPERIMENTAL, 100);
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
                let ethernet = PacketBuilder::ethernet2(OURS, SOMEBODY);
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
    fn what_cannot_be_attached_is_named() {
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
}
