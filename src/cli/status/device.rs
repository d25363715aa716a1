// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device, its counters in the kernel, and its state in a bridge.

use patchcord::control::message::DeviceStatus;

use crate::cli::output::{number, row};

/// What the kernel reports about frames: obstacles, and dropped frames.
pub(super) fn device_trouble(device: &DeviceStatus) -> Vec<Vec<String>> {
    let remedies = device.remedies.iter();
    let mut rows: Vec<_> = remedies.map(|text| row("", text.clone())).collect();
    let kernel = &device.kernel;
    let counts = [
        (kernel.tx_dropped, "for the tunnel dropped"),
        (kernel.tx_errors, "for the tunnel failed"),
        (kernel.rx_dropped, "from the tunnel dropped"),
        (kernel.rx_errors, "from the tunnel failed"),
    ];
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let counts: Vec<_> = counts
        .map(|(count, what)| format!("{} {what}", number(*count)))
        .collect();
    if !counts.is_empty() {
        rows.push(row("", format!("by the kernel: {}", counts.join(", "))));
    }
    rows
}

pub(super) fn device(device: &DeviceStatus) -> String {
    let is_nic = device.backend == "packet";
    let carrier = if device.carrier {
        "carrier"
    } else {
        "no carrier"
    };
    // A NIC's carrier is not under our control, and a NIC is always adopted.
    let parts = [
        Some(if is_nic {
            format!("NIC {}", device.name)
        } else {
            device.name.clone()
        }),
        Some(device.mac.clone()),
        Some(format!("MTU {}", device.mtu)),
        (!device.up).then(|| "down".to_owned()),
        (!is_nic && device.up).then(|| carrier.to_owned()),
        Some(device.backend.clone()),
        (device.mode != "switch").then(|| device.mode.clone()),
        device
            .bridge
            .as_ref()
            .map(|bridge| format!("port of {bridge}{}", bridge_port(device))),
        (device.waits_for.as_ref()).map(|bridge| format!("waits for {bridge}")),
        (device.moved).then(|| "in another network namespace".to_owned()),
        (device.adopted && !is_nic).then(|| "adopted".to_owned()),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    parts.join(", ")
}

/// The state of its port in the bridge, unless all frames pass it.
fn bridge_port(device: &DeviceStatus) -> String {
    let Some(port) = &device.bridge_port else {
        return String::new();
    };
    let state = (device.carrier && port.state != "forwarding").then(|| port.state.clone());
    let vlans = port.vlans.as_ref().map(|vlans| match vlans.is_empty() {
        true => "no VLAN".to_owned(),
        false => format!("VLAN {vlans}"),
    });
    let parts: Vec<_> = state.into_iter().chain(vlans).collect();
    match parts.is_empty() {
        true => String::new(),
        false => format!(" ({})", parts.join(", ")),
    }
}
