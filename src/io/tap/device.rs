// SPDX-License-Identifier: MIT OR Apache-2.0
//! A TAP or a NIC as a whole, with its queues.

use std::fs::File;
use std::io::{self};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use crate::io::namespace_inode;
use crate::io::packet::{self};
use crate::io::sys;
use crate::io::sys::bpf;
use crate::io::sys::tun::{self};
use crate::io::vnet::Offloads;

use super::error::{TapError, io_error, with_source};
use super::opening::{
    Opened, check_header, check_name, open_plain, open_vnet, reset_filters, steer, steer_express,
};
use super::options::{Backend, TapOptions};
use super::queue::{End, TapQueue};

/// A TAP, or a NIC in its place. A TAP exists at least as long as this value or one of its queues.
#[derive(Debug)]
pub(crate) struct Tap {
    name: String,
    index: u32,
    adopted: bool,
    has_vnet_header: bool,
    fallback: Option<String>,
    one_queue_because: Option<String>,
    no_express_because: Option<String>,
    /// A second handle to the first queue, for requests about the whole device; none for a NIC.
    control: Option<File>,
}

impl Tap {
    /// Opens a TAP, new or adopted, with the carrier off and without offloads.
    ///
    /// There may be fewer queues than requested: the plain back-end, and an adopted device that is
    /// not multi-queue, have one; and so has every device if the kernel does not accept the program
    /// that keeps the frames of a flow on one queue. Only a TAP with vnet headers has an express
    /// queue, and only if the kernel accepts the program for it: see [`TapQueue::is_express`].
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
        let asked = queues;
        let queues = asked + usize::from(options.express);
        let mut fallback = None;
        let opened = match options.backend {
            Backend::Packet => return Self::attach(name, asked),
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
        let has_all = opened.files.len() == queues;
        let express = options.express && has_all && opened.has_vnet_header;
        Self::finish(name, opened, fallback, (asked, express))
    }

    fn finish(
        name: &str,
        opened: Opened,
        fallback: Option<String>,
        (bulk_queues, express): (usize, bool),
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
        let mut no_express_because = None;
        let flows = express
            .then(|| steer_express(&files[0], files.len()))
            .and_then(|flows| {
                let refusal = |error: &io::Error| no_express_because = Some(error.to_string());
                flows.inspect_err(refusal).ok()
            })
            .map(Arc::new);
        if flows.is_none() {
            // As below: frames that are there are lost.
            files.truncate(bulk_queues);
        }
        let mut one_queue_because = None;
        if flows.is_none()
            && files.len() > 1
            && let Err(error) = steer(&files[0])
        {
            one_queue_because = Some(error.to_string());
            // Frames that the kernel has put there meanwhile are lost; no other host knows the
            // device yet.
            files.truncate(1);
        }
        // An earlier user of an adopted device may have left offloads on.
        tun::set_offloads(&control, 0).map_err(io_error("reset the offloads of", name))?;
        let tap = Self {
            one_queue_because,
            no_express_because,
            name: name.to_owned(),
            index: sys::interface_index(name).map_err(io_error("find", name))?,
            adopted,
            has_vnet_header,
            fallback,
            control: Some(control),
        };
        // No peer is at the other end yet, whatever the kernel's state.
        tap.set_carrier(false)
            .map_err(io_error("switch off the carrier of", name))?;
        let last = files.len() - 1;
        let queues = files.into_iter().enumerate().map(|(place, file)| TapQueue {
            has_vnet_header,
            end: End::Tap(file),
            is_express: flows.is_some() && place == last,
            flows: flows.clone(),
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
            no_express_because: None,
            control: None,
        };
        let queues = sockets.into_iter().map(|socket| TapQueue {
            has_vnet_header: tap.has_vnet_header,
            end: End::Nic(socket),
            is_express: false,
            flows: None,
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

    /// Why the kernel refuses an express queue, for the log.
    pub(crate) fn no_express_because(&self) -> Option<&str> {
        self.no_express_because.as_deref()
    }

    /// Where the TAP is now, according to the kernel: other programs rename interfaces, move them
    /// to other network namespaces and delete them. `None` for a NIC.
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

    /// Returns the choice of queues and frames to the kernel, for the next user of an adopted
    /// device.
    pub(crate) fn stop_steering(&self) {
        // A device that was deleted does not need it any more, and one with a single queue ignores
        // it.
        if let Some(control) = &self.control {
            let _ = tun::set_steering(control, None);
            let _ = bpf::detach_from_tap(control);
        }
    }

    /// Switches the carrier on or off, as the interface's users see it. The kernel acts on it in
    /// the background, usually within a millisecond. A NIC has a carrier of its own, and is left
    /// alone.
    ///
    /// # Errors
    /// When the device was deleted.
    pub(crate) fn set_carrier(&self, on: bool) -> io::Result<()> {
        match &self.control {
            Some(control) => tun::set_carrier(control, on),
            None => Ok(()),
        }
    }

    /// Requests `wanted` and returns what the kernel grants: it may have no UDP super-frames, and
    /// the plain back-end has none at all. For the whole device: every queue's reader must handle
    /// them. With a NIC it is always all or nothing.
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
    /// In another one, with this inode if the kernel reports it. Its queues work as before.
    Elsewhere { name: String, inode: Option<u64> },
    /// Nowhere: it was deleted.
    Gone,
}
