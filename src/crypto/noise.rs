// SPDX-License-Identifier: MIT OR Apache-2.0
//! The key exchange: `Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s` (Noise revision 34), by `snow`.
//!
//! Two messages, one round trip. The initiator knows the responder's static key; its own travels
//! encrypted. Without a preshared key 32 zero bytes take its place, as in WireGuard. `snow` was
//! preferred to `clatter` because a responder must learn the initiator's key *before* it can choose
//! the preshared key, which `set_psk` allows, and because its split keys are reachable.
//!
//! A handshake leaves no trace: an attacker that reads this process's memory later must not be able
//! to decrypt what was sent under its keys. `snow` wipes nothing, so its state is overwritten here
//! before it is freed, its primitives are ours (`super::primitives`), and each step wipes its
//! stack.

use snow::{Builder, HandshakeState, params::NoiseParams};
use zerocopy::{FromBytes, FromZeros, IntoBytes};
use zeroize::{Zeroizing, optimization_barrier};

use super::{
    keys::{PresharedKey, PrivateKey, PublicKey},
    leaving_no_trace,
    primitives::Primitives,
};
use crate::{
    stats::DropReason,
    wire::{InitiationPayload, ResponsePayload},
};

const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"patchcord v1";
const PSK_LOCATION: u8 = 2;
const NO_PSK: [u8; 32] = [0; 32];

/// One direction's key out of a handshake, from which the lanes' keys are derived.
/// Boxed, so that moving it leaves no copy.
pub struct SplitKey(Box<Zeroizing<[u8; 32]>>);

impl SplitKey {
    /// Takes 32 bytes as a key.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Box::new(Zeroizing::new(bytes)))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The keys of a finished handshake, named from our side.
pub struct SplitKeys {
    /// For what we send.
    pub seal: SplitKey,
    /// For what we receive.
    pub open: SplitKey,
}

impl std::fmt::Debug for SplitKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SplitKeys(..)")
    }
}

fn builder<'a>() -> Builder<'a> {
    let params: NoiseParams = PATTERN.parse().expect("the pattern is one that snow knows");
    Builder::with_resolver(params, Box::new(Primitives))
}

/// A handshake under way. Boxed, so that moving it leaves no copy.
struct State(Box<HandshakeState>);

impl State {
    /// The state of a handshake without secrets.
    fn blank() -> HandshakeState {
        builder()
            .local_private_key(&[0; 32])
            .and_then(|builder| builder.psk(PSK_LOCATION, &NO_PSK))
            .and_then(Builder::build_responder)
            .expect("every key of an IKpsk2 responder is given")
    }
}

impl Drop for State {
    fn drop(&mut self) {
        *self.0 = Self::blank();
        optimization_barrier(&*self.0);
    }
}

fn psk_bytes(psk: Option<&PresharedKey>) -> &[u8; 32] {
    psk.map_or(&NO_PSK, PresharedKey::as_bytes)
}

fn split(state: &mut HandshakeState) -> SplitKeys {
    let (initiator, responder) = state.dangerously_get_raw_split();
    let (initiator, responder) = (
        SplitKey::from_bytes(initiator),
        SplitKey::from_bytes(responder),
    );
    if state.is_initiator() {
        SplitKeys {
            seal: initiator,
            open: responder,
        }
    } else {
        SplitKeys {
            seal: responder,
            open: initiator,
        }
    }
}

/// The initiator's side between the two messages.
pub struct Initiator(State);

impl Initiator {
    /// Writes message 1 into `message`, which is exactly as long as it will be.
    pub fn start(
        private_key: &PrivateKey,
        responder: &PublicKey,
        psk: Option<&PresharedKey>,
        payload: &InitiationPayload,
        message: &mut [u8],
    ) -> Self {
        leaving_no_trace(|| {
            Self::start_with(builder(), private_key, responder, psk, payload, message)
        })
    }

    fn start_with<'a>(
        builder: Builder<'a>,
        private_key: &'a PrivateKey,
        responder: &'a PublicKey,
        psk: Option<&'a PresharedKey>,
        payload: &InitiationPayload,
        message: &mut [u8],
    ) -> Self {
        let state = builder
            .prologue(PROLOGUE)
            .and_then(|builder| builder.local_private_key(private_key.as_bytes()))
            .and_then(|builder| builder.remote_public_key(responder.as_bytes()))
            .and_then(|builder| builder.psk(PSK_LOCATION, psk_bytes(psk)))
            .and_then(Builder::build_initiator)
            .expect("every key of an IKpsk2 initiator is given");
        let mut state = State(Box::new(state));
        let written = state
            .0
            .write_message(payload.as_bytes(), message)
            .expect("the first message can be written");
        debug_assert_eq!(written, message.len());
        Self(state)
    }

    /// Reads message 2.
    ///
    /// # Errors
    /// [`DropReason::BadHandshake`] when it is not by the responder, for this message 1, with the
    /// same preshared key. The state is as before then: a forged message 2 does not end it.
    pub fn finish(&mut self, message: &[u8]) -> Result<(ResponsePayload, SplitKeys), DropReason> {
        leaving_no_trace(|| self.finish_here(message))
    }

    fn finish_here(&mut self, message: &[u8]) -> Result<(ResponsePayload, SplitKeys), DropReason> {
        let state = &mut *self.0.0;
        let mut payload = ResponsePayload::new_zeroed();
        let len = state
            .read_message(message, payload.as_mut_bytes())
            .map_err(|_| DropReason::BadHandshake)?;
        if len != size_of::<ResponsePayload>() {
            return Err(DropReason::Malformed);
        }
        Ok((payload, split(state)))
    }
}

/// The responder's side after message 1: it knows the initiator and has not yet answered.
pub struct Responder {
    state: State,
    /// The initiator.
    pub initiator: PublicKey,
    /// Its payload.
    pub payload: InitiationPayload,
}

impl Responder {
    /// Reads message 1.
    ///
    /// # Errors
    /// [`DropReason::BadHandshake`] when it was not made for our key, or when one of its keys is
    /// degenerate.
    pub fn read(private_key: &PrivateKey, message: &[u8]) -> Result<Self, DropReason> {
        leaving_no_trace(|| Self::read_with(builder(), private_key, message))
    }

    fn read_with<'a>(
        builder: Builder<'a>,
        private_key: &'a PrivateKey,
        message: &[u8],
    ) -> Result<Self, DropReason> {
        let state = builder
            .prologue(PROLOGUE)
            .and_then(|builder| builder.local_private_key(private_key.as_bytes()))
            .and_then(Builder::build_responder)
            .expect("every key of an IKpsk2 responder is given");
        let mut state = State(Box::new(state));
        let mut payload = Zeroizing::new([0; size_of::<InitiationPayload>()]);
        let len = state
            .0
            .read_message(message, &mut *payload)
            .map_err(|_| DropReason::BadHandshake)?;
        let payload = InitiationPayload::read_from_bytes(&payload[..len])
            .map_err(|_| DropReason::Malformed)?;
        let initiator = state
            .0
            .get_remote_static()
            .and_then(|key| PublicKey::from_bytes(key.try_into().ok()?).ok())
            .ok_or(DropReason::BadHandshake)?;
        Ok(Self {
            state,
            initiator,
            payload,
        })
    }

    /// Writes message 2 into `message`, which is exactly as long as it will be.
    ///
    /// # Errors
    /// [`DropReason::BadHandshake`] when the initiator's ephemeral key is degenerate, which
    /// [`Self::read`] has refused already.
    pub fn respond(
        mut self,
        psk: Option<&PresharedKey>,
        payload: &ResponsePayload,
        message: &mut [u8],
    ) -> Result<SplitKeys, DropReason> {
        leaving_no_trace(|| {
            let state = &mut *self.state.0;
            state
                .set_psk(PSK_LOCATION.into(), psk_bytes(psk))
                .expect("IKpsk2 has a preshared key at this place");
            state
                .write_message(payload.as_bytes(), message)
                .map_err(|_| DropReason::BadHandshake)?;
            Ok(split(state))
        })
    }
}

/// The same with ephemeral keys that are known, which only test vectors may have.
#[cfg(test)]
pub(crate) mod with_ephemeral {
    use super::*;

    fn builder(ephemeral: &[u8; 32]) -> Builder<'_> {
        super::builder().fixed_ephemeral_key_for_testing_only(ephemeral)
    }

    pub(crate) fn start(
        ephemeral: &[u8; 32],
        private_key: &PrivateKey,
        responder: &PublicKey,
        psk: Option<&PresharedKey>,
        payload: &InitiationPayload,
        message: &mut [u8],
    ) -> Initiator {
        let builder = builder(ephemeral);
        Initiator::start_with(builder, private_key, responder, psk, payload, message)
    }

    pub(crate) fn read(
        ephemeral: &[u8; 32],
        private_key: &PrivateKey,
        message: &[u8],
    ) -> Result<Responder, DropReason> {
        Responder::read_with(builder(ephemeral), private_key, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        crypto::keys::low_order_points,
        wire::{Initiation, Response},
    };

    fn initiation() -> (Vec<u8>, InitiationPayload) {
        let mut payload = InitiationPayload::new_zeroed();
        payload.ciphers = 3;
        (vec![0; size_of::<Initiation>() - 36], payload)
    }

    fn response() -> (Vec<u8>, ResponsePayload) {
        let mut payload = ResponsePayload::new_zeroed();
        payload.cipher = 2;
        (vec![0; size_of::<Response>() - 40], payload)
    }

    #[test]
    fn both_sides_derive_the_same_keys_and_learn_the_payloads() {
        let (alice, bob) = (PrivateKey::generate(), PrivateKey::generate());
        let psk = PresharedKey::generate();
        let (mut first, offer) = initiation();
        let mut initiator =
            Initiator::start(&alice, &bob.public_key(), Some(&psk), &offer, &mut first);
        let responder = Responder::read(&bob, &first).unwrap();
        assert_eq!(
            (responder.initiator, responder.payload),
            (alice.public_key(), offer)
        );
        let (mut second, choice) = response();
        let bobs = responder.respond(Some(&psk), &choice, &mut second).unwrap();
        let mut forged = second.clone();
        forged[40] ^= 1;
        assert_eq!(
            initiator.finish(&forged).err(),
            Some(DropReason::BadHandshake)
        );
        let (payload, alices) = initiator.finish(&second).unwrap();
        assert_eq!(payload, choice);
        assert_eq!(alices.seal.as_bytes(), bobs.open.as_bytes());
        assert_eq!(alices.open.as_bytes(), bobs.seal.as_bytes());
        assert_ne!(alices.open.as_bytes(), alices.seal.as_bytes());
    }

    /// An attacker that has taken a configured peer's place, or forges its messages, sends these.
    #[test]
    fn degenerate_ephemeral_keys_are_refused_on_both_sides() {
        let (alice, bob) = (PrivateKey::generate(), PrivateKey::generate());
        let (mut first, offer) = initiation();
        let (mut second, choice) = response();
        for point in low_order_points() {
            let mut initiator =
                Initiator::start(&alice, &bob.public_key(), None, &offer, &mut first);
            let responder = Responder::read(&bob, &first).unwrap();
            responder.respond(None, &choice, &mut second).unwrap();
            second[..32].copy_from_slice(&point);
            assert_eq!(
                initiator.finish(&second).err(),
                Some(DropReason::BadHandshake)
            );
            first[..32].copy_from_slice(&point);
            assert_eq!(
                Responder::read(&bob, &first).err(),
                Some(DropReason::BadHandshake)
            );
        }
    }

    #[test]
    fn a_wrong_key_fails_at_message_1_and_a_wrong_psk_at_message_2() {
        let (alice, bob, eve) = (
            PrivateKey::generate(),
            PrivateKey::generate(),
            PrivateKey::generate(),
        );
        let (mut first, offer) = initiation();
        let mut initiator = Initiator::start(&alice, &bob.public_key(), None, &offer, &mut first);
        assert_eq!(
            Responder::read(&eve, &first).err(),
            Some(DropReason::BadHandshake)
        );

        let (mut second, choice) = response();
        let psk = PresharedKey::generate();
        let responder = Responder::read(&bob, &first).unwrap();
        responder.respond(Some(&psk), &choice, &mut second).unwrap();
        assert_eq!(
            initiator.finish(&second).err(),
            Some(DropReason::BadHandshake)
        );
    }
}
