// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames with a `virtio_net_hdr`, which tells the kernel what is left to do for each: checksum and
//! segmentation.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};

use super::namespace::Namespace;

/// A raw socket on an interface that passes frames with this header to the kernel.
pub(crate) struct Crafter(File);

impl Crafter {
    pub(crate) fn on(ns: &Namespace, interface: &str) -> Self {
        let index: i32 = ns
            .run(&["cat", &format!("/sys/class/net/{interface}/ifindex")])
            .trim()
            .parse()
            .unwrap();
        let socket = ns.enter(|| {
            // SAFETY: takes no pointers; the descriptor that it returns has no other owner.
            unsafe {
                let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
                assert!(fd >= 0, "{}", std::io::Error::last_os_error());
                File::from_raw_fd(fd)
            }
        });
        let (on, size) = (1_i32, size_of::<i32>() as libc::socklen_t);
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: index,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let fd = socket.as_raw_fd();
        // SAFETY: both point to values that live longer than the call, with their own sizes.
        let failed = unsafe {
            libc::setsockopt(fd, libc::SOL_PACKET, 15, (&raw const on).cast(), size)
                | libc::bind(
                    fd,
                    (&raw const address).cast(),
                    size_of_val(&address) as libc::socklen_t,
                )
        };
        assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
        Self(socket)
    }

    /// A frame that is finished.
    pub(crate) fn send_plain(&mut self, frame: &[u8]) {
        write(&self.0, &[0; 10], frame);
    }

    /// A super-frame with a partial checksum, the pseudo-header's sum.
    pub(crate) fn send(
        &mut self,
        gso_type: u8,
        checksum: (usize, u16),
        gso_size: u16,
        frame: &[u8],
    ) {
        write(&self.0, &header(gso_type, checksum, gso_size), frame);
    }
}

/// A TAP whose frames come with a `virtio_net_hdr`.
pub(crate) struct Source(File);

impl Source {
    pub(crate) fn new(ns: &Namespace, name: &str) -> Self {
        const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
        // IFF_TAP, IFF_NO_PI and IFF_VNET_HDR.
        const FLAGS: i16 = 0x0002 | 0x1000 | 0x4000;
        let file = ns.enter(|| {
            let file = File::options()
                .read(true)
                .write(true)
                .open("/dev/net/tun")
                .unwrap();
            let mut request = [0_u8; 40];
            request[..name.len()].copy_from_slice(name.as_bytes());
            request[16..18].copy_from_slice(&FLAGS.to_ne_bytes());
            // SAFETY: the kernel reads and writes one `ifreq`, which has 40 bytes.
            let failed = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
            assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
            file
        });
        ns.ip(&format!("link set {name} addrgenmode none up"));
        Self(file)
    }

    /// A frame with a partial checksum; with a type and a segment size, a super-frame.
    pub(crate) fn send(&self, gso_type: u8, checksum: (usize, u16), gso_size: u16, frame: &[u8]) {
        write(&self.0, &header(gso_type, checksum, gso_size), frame);
    }

    pub(crate) fn send_plain(&self, frame: &[u8]) {
        write(&self.0, &[0; 10], frame);
    }
}

/// A `virtio_net_hdr` with NEEDS_CSUM; `checksum` has csum_start and csum_offset.
fn header(gso_type: u8, checksum: (usize, u16), gso_size: u16) -> Vec<u8> {
    let (start, offset) = checksum;
    let mut bytes = vec![1, gso_type];
    for field in [0, gso_size, start as u16, offset] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes
}

fn write(mut to: &File, header: &[u8], frame: &[u8]) {
    let written = to.write_all(&[header, frame].concat());
    written.expect("the kernel takes the frame");
}
