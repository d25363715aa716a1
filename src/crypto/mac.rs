// SPDX-License-Identifier: MIT OR Apache-2.0
//! mac1, mac2 and cookies: the fields that a handshake message must have before any costly work is
//! done (PROTOCOL.md, "Denial of service"; the construction is WireGuard's, section 5.4.7 of its
//! paper).

use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use blake2::{
    Blake2s256, Blake2sMac, Digest,
    digest::{Mac, consts::U16},
};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305,
    aead::{Aead, Payload},
};
use zeroize::Zeroizing;

use super::{keys::PublicKey, random};
use crate::wire::handshake::MAC_LEN;

/// Bytes of the secret from which cookies are made.
pub const COOKIE_SECRET_LEN: usize = 32;

/// A cookie: proof that its holder receives datagrams at an address and port.
pub type Cookie = [u8; MAC_LEN];

/// BLAKE2s with a key and a 16-byte output, over `message`.
pub fn mac(key: &[u8], message: &[u8]) -> [u8; MAC_LEN] {
    let mut mac = <Blake2sMac<U16> as Mac>::new_from_slice(key).expect("a key of at most 32 bytes");
    Mac::update(&mut mac, message);
    mac.finalize().into_bytes().into()
}

/// Whether two macs are equal, in constant time.
pub fn equal(a: &[u8; MAC_LEN], b: &[u8; MAC_LEN]) -> bool {
    verify_slices_are_equal(a, b).is_ok()
}

/// The key of mac1 in messages *to* the owner of `public_key`.
pub fn mac1_key(public_key: &PublicKey) -> [u8; 32] {
    labelled_hash(b"patchcord1 mac1", public_key)
}

/// The key that seals cookies *from* the owner of `public_key`.
pub fn cookie_key(public_key: &PublicKey) -> [u8; 32] {
    labelled_hash(b"patchcord1 cookie", public_key)
}

fn labelled_hash(label: &[u8], public_key: &PublicKey) -> [u8; 32] {
    Blake2s256::new()
        .chain_update(label)
        .chain_update(public_key.as_bytes())
        .finalize()
        .into()
}

/// The cookie of the host that receives at `from`, address and port.
///
/// The port is part of it: several peers may share one NAT address, and a cookie of one must not
/// serve the others.
pub fn cookie(secret: &[u8; COOKIE_SECRET_LEN], from: SocketAddr) -> Cookie {
    let mut message = [0; 18];
    let (ip, port) = message.split_at_mut(16);
    port.copy_from_slice(&from.port().to_be_bytes());
    match from.ip() {
        // Directly before the port, so that the two are one slice.
        IpAddr::V4(address) => ip[12..].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => ip.copy_from_slice(&address.octets()),
    }
    let unused = if from.is_ipv4() { 12 } else { 0 };
    mac(secret, &message[unused..])
}

/// Seals `cookie` for the sender of the message with this `mac1`.
pub fn seal_cookie(
    key: &[u8; 32],
    nonce: &[u8; 24],
    mac1: &[u8; MAC_LEN],
    cookie: &Cookie,
) -> [u8; MAC_LEN + 16] {
    XChaCha20Poly1305::new(key.into())
        .encrypt(
            nonce.into(),
            Payload {
                msg: cookie,
                aad: mac1,
            },
        )
        .ok()
        .and_then(|sealed| sealed.try_into().ok())
        .expect("16 bytes and a tag")
}

/// Undoes [`seal_cookie`]; `None` if it was not sealed with `key` for `mac1`.
pub fn open_cookie(
    key: &[u8; 32],
    nonce: &[u8; 24],
    mac1: &[u8; MAC_LEN],
    sealed: &[u8; MAC_LEN + 16],
) -> Option<Cookie> {
    let opened = XChaCha20Poly1305::new(key.into())
        .decrypt(
            nonce.into(),
            Payload {
                msg: sealed,
                aad: mac1,
            },
        )
        .ok()?;
    opened.try_into().ok()
}

/// A fresh secret for cookies.
pub fn cookie_secret() -> Zeroizing<[u8; COOKIE_SECRET_LEN]> {
    let mut secret = Zeroizing::new([0; COOKIE_SECRET_LEN]);
    random(&mut *secret);
    secret
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_belongs_to_one_address_and_port() {
        let secret = [1; COOKIE_SECRET_LEN];
        let at = |text: &str| cookie(&secret, text.parse().unwrap());
        assert_eq!(at("192.0.2.1:1000"), at("192.0.2.1:1000"));
        assert_ne!(at("192.0.2.1:1000"), at("192.0.2.1:1001"));
        assert_ne!(at("192.0.2.1:1000"), at("192.0.2.2:1000"));
        assert_ne!(
            at("192.0.2.1:1000"),
            cookie(&[2; 32], "192.0.2.1:1000".parse().unwrap())
        );
    }

    #[test]
    fn a_sealed_cookie_opens_only_for_its_message() {
        let (key, nonce, mac1) = ([1; 32], [2; 24], [3; MAC_LEN]);
        let sealed = seal_cookie(&key, &nonce, &mac1, &[4; MAC_LEN]);
        assert_eq!(
            open_cookie(&key, &nonce, &mac1, &sealed),
            Some([4; MAC_LEN])
        );
        assert_eq!(open_cookie(&key, &nonce, &[5; MAC_LEN], &sealed), None);
        assert_eq!(open_cookie(&[9; 32], &nonce, &mac1, &sealed), None);
    }
}
