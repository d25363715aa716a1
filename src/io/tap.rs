// SPDX-License-Identifier: MIT OR Apache-2.0
//! The TAP: Ethernet frames to and from the kernel.
//!
//! Three back-ends, one interface:
//!
//! | back-end | queues | frames | for |
//! |---|---|---|---|
//! | vnet   | one or more | behind a [`VnetHeader`], offloads possible | every kernel since 2.6.34 |
//! | plain  | one | bare, complete and checksummed | anything else, and comparisons |
//! | packet | one or more | as vnet | a NIC, or any other Ethernet interface that exists (`packet`) |
//!
//! A device that does not exist is made and goes away with its last queue. One that exists already
//! (`ip tuntap add`) is *adopted*: it stays. Here are only the device and its frames; MAC, MTU,
//! addresses and bridges are set through `link`, and `device` ties them together.
//!
//! The kernel takes frames far larger than the MTU from a writer; bounding them is the caller's
//! work. A write fails with `EIO` while the device is down, and with `EINVAL` for less than 14
//! bytes.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use zerocopy::IntoBytes;

use super::namespace_inode;
use super::own_traffic;
pub use super::packet::NicError;
use super::packet::{self, PacketSocket};
use super::steering;
use super::sys;
use super::sys::tun::{self, Attach};
use super::sys::{bpf, ebpf};
pub use super::vnet::{Offloads, VnetHeader};

/// Which way to the kernel a TAP uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// [`Vnet`](Self::Vnet), or [`Plain`](Self::Plain) where the kernel cannot.
    #[default]
    Auto,
    /// Multi-queue, with a [`VnetHeader`] on every frame.
    Vnet,
    /// One queue of bare frames, through the `tun-tap` crate.
    Plain,
    /// No TAP: the frames that a network card, or another Ethernet interface that exists, has on its
    /// wire. Its carrier, MTU and addresses are not ours to set, and the kernel decides which frames
    /// it leaves unfinished ([`VnetHeader::is_finished`]).
    Packet,
}

/// What to open.
#[derive(Clone, Debug)]
pub(crate) struct TapOptions {
    /// The name of the interface.
    pub name: String,
    /// The way to the kernel.
    pub backend: Backend,
}

/// Why a TAP cannot be opened. Each message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// Not a name that the kernel takes.
    #[error("`{name}` cannot be an interface's name ({reason}): choose another device.name")]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The driver is missing.
    #[error(
        "no /dev/net/tun: load the driver with `modprobe tun`, or give the container \
         `--device /dev/net/tun`"
    )]
    NoDriver(#[source] io::Error),
    /// A rule about devices forbids it, even to root.
    #[error(
        "a device rule of this container or service forbids /dev/net/tun: give the container \
         `--device /dev/net/tun`, the unit `DeviceAllow=/dev/net/tun rw`"
    )]
    DeviceForbidden(#[source] io::Error),
    /// Not allowed.
    #[error("opening the TAP `{name}` needs CAP_NET_ADMIN: run as root or with that capability")]
    NotPermitted {
        /// The device.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another process has the device.
    #[error(
        "another process holds the TAP `{name}`: stop it (`fuser -v /dev/net/tun` shows it) or \
         choose another device.name"
    )]
    Busy {
        /// The device.
        name: String,
    },
    /// There is such an interface, of another kind.
    #[error("`{name}` exists and is not a TAP: choose another device.name")]
    NotATap {
        /// The interface.
        name: String,
    },
    /// The plain back-end cannot attach to a multi-queue TAP.
    #[error(
        "the plain back-end cannot open `{name}`: the interface is not a TAP, or one with several \
         queues; use device.backend = \"vnet\" or choose another device.name"
    )]
    NotPlain {
        /// The interface.
        name: String,
    },
    /// Another process holds it, and thereby decides what its frames look like.
    #[error(
        "another process holds the TAP `{name}` without vnet headers: have it use them \
         (`VNetHeader=yes` of systemd-networkd), or set device.backend = \"auto\""
    )]
    NoVnetHeader {
        /// The interface.
        name: String,
    },
    /// The same, with something in front of the frames that no back-end knows.
    #[error(
        "another process holds the TAP `{name}` with packet information in front of its frames: have it \
         use none (IFF_NO_PI; `PacketInfo=no` of systemd-networkd)"
    )]
    PacketInformation {
        /// The interface.
        name: String,
    },
    /// A NIC cannot be attached.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// Anything else.
    #[error("cannot {action} the TAP `{name}`")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The device.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A TAP, or a NIC in the place of one. A TAP exists at least as long as this value or one of its queues.
#[derive(Debug)]
pub(crate) struct Tap {
    name: String,
    index: u32,
    adopted: bool,
    has_vnet_header: bool,
    fallback: Option<String>,
    one_queue_because: Option<String>,
    /// A second handle to the first queue, for what concerns the whole device; none for a NIC.
    control: Option<File>,
}

impl Tap {
    /// Opens a TAP, new or adopted, with the carrier off and without offloads.
    ///
    /// There may be fewer queues than asked for: the plain back-end, and an adopted device that is
    /// not multi-queue, have one; and so has every device if the kernel does not let us keep the
    /// frames of a flow on one queue.
    ///
    /// # Errors
    /// When the name is not usable, the driver or the permission is missing, or another process or
    /// another kind of interface has the name.
    pub(crate) fn open(
        options: &TapOptions,
        queues: usize,
    ) -> Result<(Self, Vec<TapQueue>), TapError> {
        check_name(&options.name)?;
        let name = &options.name;
        let mut fallback = None;
        let opened = match options.backend {
            Backend::Packet => return Self::attach(name, queues),
            Backend::Vnet => match open_vnet(name, queues) {
                Ok(opened) if !opened.has_vnet_header => Err(TapError::NoVnetHeader {
                    name: name.to_owned(),
                }),
                opened => opened,
            },
            Backend::Plain => open_plain(name),
            Backend::Auto => open_vnet(name, queues).or_else(|error| match error {
                TapError::Io { .. } => {
                    fallback = Some(with_source(&error));
                    open_plain(name)
                }
                error => Err(error),
            }),
        }?;
        Self::finish(name, opened, fallback)
    }

    fn finish(
        name: &str,
        opened: Opened,
        fallback: Option<String>,
    ) -> Result<(Self, Vec<TapQueue>), TapError> {
        let Opened {
            mut files,
            adopted,
            has_vnet_header,
            is_held,
        } = opened;
        let control = files[0].try_clone().map_err(io_error("open", name))?;
        if has_vnet_header {
            check_header(&control).map_err(io_error("set the header of", name))?;
        }
        let held = || is_held.then(|| "another process holds it without vnet headers".to_owned());
        let fallback = fallback.or_else(held);
        if adopted {
            reset_filters(&control);
        }
        let mut one_queue_because = None;
        if files.len() > 1
            && let Err(error) = steer(&files[0])
        {
            one_queue_because = Some(error.to_string());
            // What the kernel has put there for us meanwhile is lost; nobody knows the device yet.
            files.truncate(1);
        }
        // An earlier user of an adopted device may have left offloads on.
        tun::set_offloads(&control, 0).map_err(io_error("reset the offloads of", name))?;
        let tap = Self {
            one_queue_because,
            name: name.to_owned(),
            index: sys::interface_index(name).map_err(io_error("find", name))?,
            adopted,
            has_vnet_header,
            fallback,
            control: Some(control),
        };
        // Nobody is at the other end yet, whatever the kernel thinks.
        tap.set_carrier(false)
            .map_err(io_error("take the carrier from", name))?;
        let queues = files.into_iter().map(|file| TapQueue {
            has_vnet_header,
            end: End::Tap(file),
        });
        Ok((tap, queues.collect()))
    }

    fn attach(name: &str, queues: usize) -> Result<(Self, Vec<TapQueue>), TapError> {
        let packet::Opened {
            index,
            sockets,
            no_vnet_header,
            one_because,
        } = packet::open(name, queues)?;
        let tap = Self {
            name: name.to_owned(),
            index,
            adopted: true,
            has_vnet_header: no_vnet_header.is_none(),
            fallback: no_vnet_header.map(|error| format!("{error}; turn off its gro")),
            one_queue_because: one_because.map(|error| error.to_string()),
            control: None,
        };
        let queues = sockets.into_iter().map(|socket| TapQueue {
            has_vnet_header: tap.has_vnet_header,
            end: End::Nic(socket),
        });
        let queues = queues.collect();
        Ok((tap, queues))
    }

    /// The name of the interface.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The index of the interface in its network namespace.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Whether the device existed before and will stay.
    pub(crate) fn adopted(&self) -> bool {
        self.adopted
    }

    /// Whether it is a NIC and not a TAP.
    pub(crate) fn is_nic(&self) -> bool {
        self.control.is_none()
    }

    /// `vnet`, `plain` or `packet`.
    pub(crate) fn backend(&self) -> &'static str {
        if self.is_nic() {
            "packet"
        } else if self.has_vnet_header {
            "vnet"
        } else {
            "plain"
        }
    }

    /// Why [`Backend::Auto`] took the plain back-end, for the log.
    pub(crate) fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// Why the device has one queue although it could have more, for the log.
    pub(crate) fn one_queue_because(&self) -> Option<&str> {
        self.one_queue_because.as_deref()
    }

    /// Where the TAP is now, as the kernel says: others rename interfaces, move them to other network
    /// namespaces and delete them. None for a NIC.
    pub(crate) fn whereabouts(&self) -> Option<Whereabouts> {
        let control = self.control.as_ref()?;
        let Ok(attached) = tun::attached(control) else {
            return Some(Whereabouts::Gone);
        };
        let inode = tun::namespace(control).and_then(|namespace| Ok(namespace.metadata()?.ino()));
        let is_here = match (&inode, namespace_inode()) {
            (Ok(inode), Ok(here)) => *inode == here,
            // An older kernel does not say.
            _ => sys::interface_index(&attached.name).is_ok_and(|index| index == self.index),
        };
        Some(match is_here {
            true => Whereabouts::Here(attached.name),
            false => Whereabouts::Elsewhere {
                name: attached.name,
                inode: inode.ok(),
            },
        })
    }

    /// Leaves the choice of queues and frames to the kernel again, for the next user of an adopted
    /// device.
    pub(crate) fn stop_steering(&self) {
        // A device that was deleted needs it no more, and one with a single queue does not care.
        if let Some(control) = &self.control {
            let _ = tun::set_steering(control, None);
            let _ = bpf::detach_from_tap(control);
        }
    }

    /// Plugs the cable in or out, as the interface's users see it. The kernel acts on it in the
    /// background, usually within a millisecond. A NIC has a cable of its own, and is left alone.
    ///
    /// # Errors
    /// When the device was deleted.
    pub(crate) fn set_carrier(&self, on: bool) -> io::Result<()> {
        match &self.control {
            Some(control) => tun::set_carrier(control, on),
            None => Ok(()),
        }
    }

    /// Asks for `wanted` and returns what the kernel grants: it may have no UDP super-frames, and
    /// the plain back-end has nothing. For the whole device: every queue's reader must cope. With a
    /// NIC it is always all or nothing.
    ///
    /// # Errors
    /// When the device was deleted.
    pub(crate) fn set_offloads(&self, wanted: Offloads) -> io::Result<Offloads> {
        let Some(control) = &self.control else {
            return Ok(match self.has_vnet_header {
                true => Offloads::ALL,
                false => Offloads::NONE,
            });
        };
        let poorer = [
            wanted,
            Offloads {
                udp: false,
                ..wanted
            },
            Offloads::NONE,
        ];
        let first = if self.has_vnet_header { 0 } else { 2 };
        let mut refusal = io::Error::from(io::ErrorKind::InvalidInput);
        for offloads in &poorer[first..] {
            match tun::set_offloads(control, offloads.bits()) {
                Ok(()) => return Ok(*offloads),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }
}

/// Where a TAP is, and its present name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    /// In the network namespace of this thread.
    Here(String),
    /// In another one, with this inode if the kernel tells. Its queues work as before.
    Elsewhere { name: String, inode: Option<u64> },
    /// Nowhere: it was deleted.
    Gone,
}

/// Whether an error of a queue says that somebody deleted the device.
pub(crate) fn is_deleted(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    matches!(code, Some(sys::EBADFD | sys::ENODEV | sys::ENXIO))
}

/// Whether an error of a write says that the frame is larger than the NIC takes.
pub(crate) fn is_too_big(error: &io::Error) -> bool {
    error.raw_os_error() == Some(sys::EMSGSIZE)
}

/// One queue of a TAP, or of a NIC; one thread reads it and one writes it.
#[derive(Debug)]
pub struct TapQueue {
    has_vnet_header: bool,
    end: End,
}

#[derive(Debug)]
enum End {
    Tap(File),
    Nic(PacketSocket),
    #[cfg(fuzzing)]
    Memory(super::memory::Device),
}

/// The most parts of a frame for [`TapQueue::write_parts`].
pub(crate) const MAX_PARTS: usize = 127;

impl TapQueue {
    /// Of a device without a kernel.
    #[cfg(fuzzing)]
    pub fn in_memory(device: super::memory::Device, has_vnet_header: bool) -> Self {
        Self {
            has_vnet_header,
            end: End::Memory(device),
        }
    }

    /// Whether frames may be written with more than [`VnetHeader::NONE`].
    pub fn takes_offloads(&self) -> bool {
        self.has_vnet_header
    }

    /// Bytes of the longest frame that the kernel may hand over.
    pub fn longest_frame(&self) -> usize {
        // With room for an Ethernet header, tags, and what IPv6 packets of more than 64 KiB come with.
        const ROOM: usize = 64;
        match &self.end {
            // A TAP's limit is GSO_LEGACY_MAX_SIZE, and what is longer is cut on its way here.
            End::Tap(_) => 65_536 + ROOM,
            End::Nic(_) => packet::LONGEST_PACKET + ROOM,
            #[cfg(fuzzing)]
            End::Memory(_) => packet::LONGEST_PACKET + ROOM,
        }
    }

    /// Whether a queue that is in error (`Ready::is_broken`) is so
    /// for good, because the device was deleted. One of a NIC that went down is in error until it is
    /// read, and works again when the NIC is up.
    pub fn is_lost(&self) -> bool {
        match &self.end {
            End::Tap(_) => true,
            End::Nic(socket) => socket.is_deleted(),
            #[cfg(fuzzing)]
            End::Memory(_) => false,
        }
    }

    /// From now on the datagrams of the tunnel itself are not read, so that it does not carry what it
    /// carries. Of a TAP that is what this machine sends from UDP port `port` by a socket with
    /// [`Mark::BYPASS`](super::mark::Mark::BYPASS), for all queues; of a NIC what comes to this
    /// machine and that port, for this queue.
    ///
    /// # Errors
    /// When the kernel has no memory for the filter, or the device was deleted.
    pub fn leave_out_tunnel(&self, port: u16) -> io::Result<()> {
        match &self.end {
            End::Tap(file) => bpf::attach_to_tap(file, &own_traffic::all_but_datagrams_from(port)),
            End::Nic(socket) => socket.leave_out_datagrams_to(port),
            #[cfg(fuzzing)]
            End::Memory(_) => Ok(()),
        }
    }

    /// Reads one frame into `buf` and returns where in it, the Ethernet header first; None when
    /// nothing is there. A TAP's frame that is longer than `buf` is cut off there without notice.
    /// What a NIC had but the kernel could not hand over as it was is [`VnetHeader::BROKEN`].
    ///
    /// # Errors
    /// `EBADFD` or `ENODEV` when the device was deleted.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<Option<(VnetHeader, Range<usize>)>> {
        let mut file = match &self.end {
            End::Tap(file) => file,
            End::Nic(socket) => return socket.try_read(buf),
            #[cfg(fuzzing)]
            End::Memory(device) => return Ok(device.try_read(buf)),
        };
        let mut header = VnetHeader::NONE;
        let result = if self.has_vnet_header {
            let mut parts = [IoSliceMut::new(header.as_mut_bytes()), IoSliceMut::new(buf)];
            file.read_vectored(&mut parts)
        } else {
            file.read(buf)
        };
        let len = match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            result => result?,
        };
        let in_front = if self.has_vnet_header {
            size_of::<VnetHeader>()
        } else {
            0
        };
        Ok(Some((header, 0..len.saturating_sub(in_front))))
    }

    /// Writes one frame. The plain back-end takes [`VnetHeader::NONE`] only.
    ///
    /// # Errors
    /// `EIO` while the device is down, `EINVAL` when header and frame do not fit together, `EBADFD`
    /// when the device was deleted. For a NIC, `ENETDOWN` and `ENXIO` in the same order, `EMSGSIZE`
    /// when the frame is too large for it (`is_too_big`), `EAGAIN` or `ENOBUFS` when it is behind.
    pub fn write(&self, vnet: &VnetHeader, frame: &[u8]) -> io::Result<()> {
        self.write_all(vnet, &[IoSlice::new(vnet.as_bytes()), IoSlice::new(frame)])
    }

    /// Writes one frame that lies in up to `MAX_PARTS` pieces.
    ///
    /// # Errors
    /// As [`write`](Self::write), and `InvalidInput` for too many pieces.
    pub fn write_parts(&self, vnet: &VnetHeader, frame: &[IoSlice<'_>]) -> io::Result<()> {
        // Two sizes, because most frames have few parts and clearing the large array is not free.
        if frame.len() < 8 {
            self.write_with_room::<8>(vnet, frame)
        } else if frame.len() <= MAX_PARTS {
            self.write_with_room::<{ MAX_PARTS + 1 }>(vnet, frame)
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a frame of too many parts",
            ))
        }
    }

    fn write_with_room<const N: usize>(
        &self,
        vnet: &VnetHeader,
        frame: &[IoSlice<'_>],
    ) -> io::Result<()> {
        let mut parts = [IoSlice::new(&[]); N];
        parts[0] = IoSlice::new(vnet.as_bytes());
        parts[1..=frame.len()].copy_from_slice(frame);
        self.write_all(vnet, &parts[..=frame.len()])
    }

    /// Writes `parts`, of which the first is `vnet` itself.
    fn write_all(&self, vnet: &VnetHeader, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let parts = if self.has_vnet_header {
            parts
        } else if *vnet == VnetHeader::NONE {
            &parts[1..]
        } else {
            let message = "the plain back-end takes finished frames only";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        match &self.end {
            // It takes a frame whole or not at all.
            End::Tap(file) => (&mut &*file).write_vectored(parts).map(drop),
            End::Nic(socket) => socket.write(vnet, parts),
            #[cfg(fuzzing)]
            End::Memory(device) => device.write(vnet, &parts[usize::from(self.has_vnet_header)..]),
        }
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.end {
            End::Tap(file) => file.as_fd(),
            End::Nic(socket) => socket.as_fd(),
            #[cfg(fuzzing)]
            End::Memory(device) => device.as_fd(),
        }
    }
}

/// Keeps the frames of a flow on one queue.
fn steer(queue: &File) -> io::Result<()> {
    let program = ebpf::load(&steering::program())?;
    tun::set_steering(queue, Some(program.as_fd()))
}

/// What a back-end has opened: at least one queue.
struct Opened {
    files: Vec<File>,
    adopted: bool,
    has_vnet_header: bool,
    /// Another process holds it, and has decided on the header.
    is_held: bool,
}

fn open_vnet(name: &str, queues: usize) -> Result<Opened, TapError> {
    // Multi-queue only when it is needed: otherwise the kernel itself refuses a second opener, and
    // saves the work of spreading frames over queues.
    let mut multi_queue = queues > 1;
    let first = tun::open().map_err(open_error(name))?;
    // Creating exclusively is what tells a new device from an old one without a race, and without
    // /sys, which shows the namespace of its mount and not that of this thread.
    let adopted = match tun::attach(
        &first,
        name,
        Attach {
            create: true,
            multi_queue,
        },
    ) {
        Ok(()) => false,
        Err(error) if error.raw_os_error() == Some(sys::EBUSY) => {
            multi_queue = adopt(&first, name, multi_queue)?;
            true
        }
        Err(error) => return Err(attach_error("create", name)(error)),
    };
    let mut files = vec![first];
    while multi_queue && files.len() < queues {
        let file = tun::open().map_err(open_error(name))?;
        tun::attach(
            &file,
            name,
            Attach {
                create: false,
                multi_queue,
            },
        )
        .map_err(attach_error("add a queue to", name))?;
        files.push(file);
    }
    // A multi-queue TAP that another process holds keeps the flags of that one.
    let attached = tun::attached(&files[0]).map_err(io_error("look at", name))?;
    Ok(Opened {
        files,
        adopted,
        has_vnet_header: attached.vnet_header,
        is_held: !attached.vnet_header,
    })
}

/// Makes the header that is in front of each frame ours, whatever an earlier user set.
fn check_header(queue: &File) -> io::Result<()> {
    let wanted = size_of::<VnetHeader>();
    tun::set_vnet_header_size(queue, wanted)?;
    tun::set_native_byte_order(queue)?;
    let seen = tun::vnet_header_size(queue)?;
    if seen != wanted {
        let message = format!("the kernel has headers of {seen} bytes, not {wanted}");
        return Err(io::Error::other(message));
    }
    Ok(())
}

/// An earlier user may have left programs that keep frames out. What a kernel does not know is not there.
fn reset_filters(queue: &File) {
    let _ = tun::set_steering(queue, None);
    let _ = tun::set_filter(queue, None);
    let _ = bpf::detach_from_tap(queue);
}

/// Attaches to a device that exists. The kernel takes over every flag of the first queue, except
/// multi-queue, which must agree: `EINVAL` both ways means that this is no TAP. Returns whether the
/// device is multi-queue.
fn adopt(file: &File, name: &str, multi_queue: bool) -> Result<bool, TapError> {
    for multi_queue in [multi_queue, !multi_queue] {
        match tun::attach(
            file,
            name,
            Attach {
                create: false,
                multi_queue,
            },
        ) {
            Ok(()) => return Ok(multi_queue),
            Err(error) if error.raw_os_error() == Some(sys::EINVAL) => {}
            Err(error) => return Err(attach_error("attach to", name)(error)),
        }
    }
    Err(TapError::NotATap {
        name: name.to_owned(),
    })
}

fn open_plain(name: &str) -> Result<Opened, TapError> {
    // `tun-tap` opens and attaches in one call; this tells the errors of the two apart.
    drop(tun::open().map_err(open_error(name))?);
    let adopted = sys::interface_index(name).is_ok();
    let file = tun::open_plain(name).map_err(|error| match error.raw_os_error() {
        Some(sys::EINVAL) if adopted => TapError::NotPlain {
            name: name.to_owned(),
        },
        _ => attach_error("open", name)(error),
    })?;
    Ok(Opened {
        files: vec![file],
        adopted,
        has_vnet_header: false,
        is_held: false,
    })
}

fn check_name(name: &str) -> Result<(), TapError> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.len() > tun::MAX_NAME {
        "the kernel allows 15 bytes"
    } else if name == "." || name == ".." {
        "the kernel reserves it"
    } else if name
        .bytes()
        .any(|byte| b"/:%".contains(&byte) || !byte.is_ascii_graphic())
    {
        "the kernel allows no spaces, `/`, `:` or `%`"
    } else {
        return Ok(());
    };
    Err(TapError::BadName {
        name: name.to_owned(),
        reason,
    })
}

fn open_error(name: &str) -> impl FnOnce(io::Error) -> TapError {
    move |error| match error.raw_os_error() {
        Some(sys::ENOENT | sys::ENXIO | sys::ENODEV) => TapError::NoDriver(error),
        // The file is open to all, and the kernel asks for no capability yet.
        Some(sys::EPERM) => TapError::DeviceForbidden(error),
        _ => attach_error("open /dev/net/tun for", name)(error),
    }
}

fn attach_error(action: &'static str, name: &str) -> impl FnOnce(io::Error) -> TapError {
    move |error| match error.raw_os_error() {
        Some(sys::EBUSY) => TapError::Busy {
            name: name.to_owned(),
        },
        _ if error.kind() == io::ErrorKind::PermissionDenied => TapError::NotPermitted {
            name: name.to_owned(),
            source: error,
        },
        _ => io_error(action, name)(error),
    }
}

fn io_error(action: &'static str, name: &str) -> impl FnOnce(io::Error) -> TapError {
    move |source| TapError::Io {
        action,
        name: name.to_owned(),
        source,
    }
}

/// An error and its cause in one line.
fn with_source(error: &TapError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    use etherparse::{PacketBuilder, PacketBuilderStep, UdpHeader, VlanId};
    use sys::faults::{Call, Fault, finish, script};

    use super::*;
    use crate::io::waker;
    use crate::testing::{
        Namespace, eventually, in_namespace, ip, wait_for_addresses, wait_for_carrier,
    };

    fn open(name: &str, backend: Backend, queues: usize) -> Result<(Tap, Vec<TapQueue>), TapError> {
        Tap::open(
            &TapOptions {
                name: name.to_owned(),
                backend,
            },
            queues,
        )
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
        ip("link add br0 type bridge mcast_snooping 0");
        ip("link set br0 up");
        ["left", "right"].map(|name| {
            let (tap, queues) = open(name, backend, queues).unwrap();
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

    /// One frame of flow `port`, of every kind that the kernel's program tells apart.
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

    /// Where `frame` comes out if it is written at the other end.
    fn place_of(frame: &[u8], from: &TapQueue, to: &[TapQueue]) -> usize {
        from.write(&VnetHeader::NONE, frame).unwrap();
        let mut buf = vec![0; 2000];
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
    fn what_is_not_a_tap_is_refused() {
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
    fn what_an_earlier_user_of_a_tap_set_is_forgotten() {
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
            let program = ebpf::load(&all_out).unwrap();
            tun::set_filter(&earlier, Some(program.as_fd())).unwrap();
            drop(earlier);
            ip("link add br0 type bridge");
            ip("link set br0 up");
            let ends = ["tap7", "other"].map(|name| {
                let (tap, queues) = open(name, Backend::Vnet, 1).unwrap();
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

    /// Sends a datagram through tap7 as a program would, and returns the frame that comes out.
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

    /// Opens a TAP where a test below has taken something away, and says what came of it.
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
        let expected = "[opening the TAP `tap7` needs CAP_NET_ADMIN: run as root";
        assert_eq!(said.matches(expected).count(), 2, "{said}");
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
                // Whether what is sent arrives before what is sent next.
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
        assert_eq!(
            said.matches("[no /dev/net/tun: load the driver").count(),
            2,
            "{said}"
        );
        assert_eq!(said.matches("`--device /dev/net/tun`").count(), 2, "{said}");
    }
}
