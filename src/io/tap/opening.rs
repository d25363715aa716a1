// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a TAP is opened: which queues, which offloads, and whether the device is our own.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use crate::io::steering;
use crate::io::steering::express::FlowTable;
use crate::io::sys;
use crate::io::sys::tun::{self, Attach};
use crate::io::sys::{bpf, ebpf};
use crate::io::vnet::VnetHeader;

use super::error::{TapError, attach_error, io_error, open_error};

/// Keeps the frames of a flow on one queue.
pub(super) fn steer(queue: &File) -> io::Result<()> {
    let program = ebpf::load_program(&steering::program())?;
    tun::set_steering(queue, Some(program.as_fd()))
}

/// The same, with the last of this many queues for flows that send little.
pub(super) fn steer_express(queue: &File, queues: usize) -> io::Result<FlowTable> {
    let flows = FlowTable::new()?;
    let program = flows.load_program(queues as u32 - 1)?;
    tun::set_steering(queue, Some(program.as_fd()))?;
    Ok(flows)
}

/// The result of opening by a back-end: at least one queue.
pub(super) struct Opened {
    pub(super) files: Vec<File>,
    pub(super) adopted: bool,
    pub(super) has_vnet_header: bool,
    /// Another process holds it, and has determined the header.
    pub(super) is_held: bool,
}

pub(super) fn open_vnet(name: &str, queues: usize) -> Result<Opened, TapError> {
    // Multi-queue only when it is needed: otherwise the kernel itself refuses a second opener, and
    // saves the work of spreading frames over queues.
    let mut multi_queue = queues > 1;
    let first = tun::open().map_err(open_error(name))?;
    // Exclusive creation distinguishes a new device from an old one without a race, and without
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
    // A multi-queue TAP that another process holds keeps the flags of that process.
    let attached = tun::attached(&files[0]).map_err(io_error("look at", name))?;
    Ok(Opened {
        files,
        adopted,
        has_vnet_header: attached.vnet_header,
        is_held: !attached.vnet_header,
    })
}

/// Sets our header in front of each frame, whatever an earlier user set.
pub(super) fn check_header(queue: &File) -> io::Result<()> {
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

/// An earlier user may have left programs that filter frames. A request that the kernel does not
/// know needs no reset.
pub(super) fn reset_filters(queue: &File) {
    let _ = tun::set_steering(queue, None);
    let _ = tun::set_filter(queue, None);
    let _ = bpf::detach_from_tap(queue);
}

/// Attaches to a device that exists. The kernel takes over every flag of the first queue, except
/// multi-queue, which must agree: `EINVAL` both ways means that this is no TAP. Returns whether the
/// device is multi-queue.
pub(super) fn adopt(file: &File, name: &str, multi_queue: bool) -> Result<bool, TapError> {
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

pub(super) fn open_plain(name: &str) -> Result<Opened, TapError> {
    // `tun-tap` opens and attaches in one call; this distinguishes the errors of the two.
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

pub(super) fn check_name(name: &str) -> Result<(), TapError> {
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
