// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames with right lengths and checksums around the fuzzer's data.

use arbitrary::Arbitrary;

/// A frame that can pass the first checks.
#[derive(Arbitrary, Debug)]
pub enum Frame {
    Raw(Vec<u8>),
    Arp {
        to: u8,
        from: u8,
        operation: u8,
        sender: u8,
        target: u8,
        noise: Noise,
    },
    /// A solicitation or an advertisement.
    Neighbour {
        to: u8,
        from: u8,
        asks: bool,
        flags: u8,
        src: u8,
        target: u8,
        options: Vec<u8>,
        noise: Noise,
    },
    V4 {
        to: u8,
        from: u8,
        protocol: u8,
        src: [u8; 4],
        dst: [u8; 4],
        message: Vec<u8>,
    },
    V6 {
        to: u8,
        from: u8,
        has_alert: bool,
        protocol: u8,
        hops: u8,
        src: [u8; 2],
        dst: [u8; 16],
        message: Vec<u8>,
    },
}

/// A byte with another value.
#[derive(Arbitrary, Debug)]
pub struct Noise(Option<(u8, u8)>);

impl Noise {
    fn disturb(&self, message: &mut [u8]) {
        if let Some((at, value)) = self.0
            && let Some(byte) = message.get_mut(usize::from(at))
        {
            *byte = value;
        }
    }
}

impl Frame {
    /// The bytes of the frame, behind `tags`.
    pub fn bytes(&self, tags: &[[u8; 2]]) -> Vec<u8> {
        match self {
            Self::Raw(bytes) => bytes.clone(),
            Self::Arp {
                to,
                from,
                operation,
                sender,
                target,
                noise,
            } => {
                let mut message = vec![0, 1, 8, 0, 6, 4, 0, *operation];
                message.extend([2, 0, 0, 0, 0, *from, 10, 0, 0, *sender]);
                message.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, *target]);
                noise.disturb(&mut message);
                ethernet(*to, *from, tags, 0x0806, &message)
            }
            Self::Neighbour {
                to,
                from,
                asks,
                flags,
                src,
                target,
                options,
                noise,
            } => {
                let (kind, option) = if *asks { (135, 1) } else { (136, 2) };
                let mut message = vec![kind, 0, 0, 0, *flags, 0, 0, 0];
                message.extend(link_local(*target));
                message.extend([option, 1, 2, 0, 0, 0, 0, *from]);
                message.extend(options);
                noise.disturb(&mut message);
                let mut dst = link_local(*to);
                if *asks {
                    [dst[0], dst[1], dst[11], dst[12], dst[13]] = [0xff, 2, 1, 0xff, 0];
                }
                let src = link_local(*src);
                let pseudo = sum(&src) + sum(&dst) + 58 + message.len() as u32;
                let message = checked(&message, pseudo);
                let [high, low] = (message.len() as u16).to_be_bytes();
                let head = [0x60, 0, 0, 0, high, low, 58, 255];
                let packet = [&head[..], &src, &dst, &message].concat();
                ethernet(*to, *from, tags, 0x86dd, &packet)
            }
            Self::V4 {
                to,
                from,
                protocol,
                src,
                dst,
                message,
            } => {
                let message = checked(message, 0);
                let [high, low] = (20 + message.len() as u16).to_be_bytes();
                let mut packet = vec![0x45, 0, high, low, 0, 0, 0, 0, 1, *protocol, 0, 0];
                packet.extend(src);
                packet.extend(dst);
                let sum = !fold(sum(&packet));
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
                packet.extend(message);
                ethernet(*to, *from, tags, 0x0800, &packet)
            }
            Self::V6 {
                to,
                from,
                has_alert,
                protocol,
                hops,
                src,
                dst,
                message,
            } => {
                let mut full = [0; 16];
                [full[0], full[1], full[14], full[15]] = [0xfe, 0x80, src[0], src[1]];
                let addresses = sum(&full) + sum(dst);
                let pseudo = addresses + u32::from(*protocol) + message.len() as u32;
                let message = checked(message, pseudo);
                let options = [*protocol, 0, 5, 2, 0, 0, 1, 0];
                let (next, options) = if *has_alert {
                    (0, &options[..])
                } else {
                    (*protocol, &[][..])
                };
                let [high, low] = ((options.len() + message.len()) as u16).to_be_bytes();
                let head = [0x60, 0, 0, 0, high, low, next, *hops];
                let packet = [&head[..], &full, dst, options, &message].concat();
                ethernet(*to, *from, tags, 0x86dd, &packet)
            }
        }
    }
}

/// One byte names a station; 255 is the broadcast address.
fn ethernet(to: u8, from: u8, tags: &[[u8; 2]], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let dst = if to == 255 {
        [0xff; 6]
    } else {
        [2, 0, 0, 0, 0, to]
    };
    let mut frame = [&dst[..], &[2, 0, 0, 0, 0, from]].concat();
    for tci in tags {
        frame.extend([0x81, 0, tci[0], tci[1]]);
    }
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload);
    frame
}

fn link_local(name: u8) -> [u8; 16] {
    let mut address = [0; 16];
    [address[0], address[1], address[15]] = [0xfe, 0x80, name];
    address
}

/// With the checksum at the common place of ICMP, IGMP and PIM.
fn checked(message: &[u8], start: u32) -> Vec<u8> {
    let mut message = message.to_vec();
    if message.len() >= 4 {
        message[2..4].fill(0);
        let sum = !fold(start + sum(&message));
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    message
}

fn sum(bytes: &[u8]) -> u32 {
    let pairs = bytes.chunks(2);
    pairs
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)))
        .sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
