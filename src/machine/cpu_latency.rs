// SPDX-License-Identifier: MIT OR Apache-2.0
//! A bound on the time that this machine's idle cores take to wake up: a request to the kernel's PM
//! QoS, `/dev/cpu_dma_latency` (Documentation/power/pm_qos_interface.rst).
//!
//! The request lasts as long as the file is open, so the kernel withdraws it however the process
//! ends. The least bound of all processes applies.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
};

const DEVICE: &str = "/dev/cpu_dma_latency";

/// A request, until it is dropped.
#[derive(Debug)]
pub(crate) struct CpuLatencyRequest(#[expect(dead_code, reason = "open files are requests")] File);

/// Why the kernel takes no request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CpuLatencyError {
    #[error(
        "this machine has no {DEVICE}: give a container `--device {DEVICE}`; a kernel needs \
         CONFIG_CPU_IDLE"
    )]
    NoDevice,
    #[error(
        "this process must not open {DEVICE}: run it as root, or give the unit \
         `DeviceAllow={DEVICE} w`, the container `--device {DEVICE}`"
    )]
    Forbidden,
    #[error("cannot write to {DEVICE}: {0}")]
    Other(#[source] io::Error),
}

/// Asks the kernel for idle states that a core leaves within `bound_us`: with 0, idle cores poll.
///
/// # Errors
/// Without the device, or without the right to open it.
pub(crate) fn request(bound_us: u32) -> Result<CpuLatencyRequest, CpuLatencyError> {
    request_at(Path::new(DEVICE), bound_us)
}

fn request_at(path: &Path, bound_us: u32) -> Result<CpuLatencyRequest, CpuLatencyError> {
    let bound = i32::try_from(bound_us).unwrap_or(i32::MAX);
    let mut file = OpenOptions::new().write(true).open(path)?;
    // The kernel takes exactly these four bytes, or text.
    file.write_all(&bound.to_ne_bytes())?;
    Ok(CpuLatencyRequest(file))
}

impl From<io::Error> for CpuLatencyError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NoDevice,
            // EPERM is a device rule's, EACCES the file's.
            io::ErrorKind::PermissionDenied => Self::Forbidden,
            _ => Self::Other(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_the_bound_in_four_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device");
        for (bound, written) in [(0, 0), (20, 20), (u32::MAX, i32::MAX)] {
            std::fs::write(&path, []).unwrap();
            let _request = request_at(&path, bound).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), i32::to_ne_bytes(written));
        }
    }

    #[test]
    fn an_error_names_the_device_and_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let missing = request_at(&folder.path().join("none"), 0).unwrap_err();
        let forbidden = CpuLatencyError::from(io::Error::from(io::ErrorKind::PermissionDenied));
        for (error, remedy) in [
            (missing, "`--device /dev/cpu_dma_latency`"),
            (forbidden, "`DeviceAllow=/dev/cpu_dma_latency w`"),
        ] {
            assert!(error.to_string().contains(remedy), "{error}");
        }
    }
}
