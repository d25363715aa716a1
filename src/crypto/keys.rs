//! stub
use zeroize::Zeroize;
/// k
#[derive(Zeroize)]
#[zeroize(drop)]
pub struct PrivateKey([u8; 32]);
/// k
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PublicKey([u8; 32]);
/// k
#[derive(Zeroize, Clone)]
#[zeroize(drop)]
pub struct PresharedKey([u8; 32]);
impl PrivateKey {
    /// k
    pub fn as_bytes(&self) -> &[u8; 32] { &self.0 }
    /// k
    pub fn from_bytes(b: [u8; 32]) -> Self { Self(b) }
    /// k
    pub fn generate() -> Self { let mut b=[0;32]; aws_lc_rs::rand::fill(&mut b).unwrap(); Self(b) }
    /// k
    pub fn public_key(&self) -> PublicKey {
        let k = aws_lc_rs::agreement::PrivateKey::from_private_key(&aws_lc_rs::agreement::X25519, &self.0).unwrap();
        PublicKey(k.compute_public_key().unwrap().as_ref().try_into().unwrap())
    }
}
impl PublicKey {
    /// k
    pub fn as_bytes(&self) -> &[u8; 32] { &self.0 }
    /// k
    pub fn from_bytes(b: [u8; 32]) -> Self { Self(b) }
}
impl PresharedKey {
    /// k
    pub fn as_bytes(&self) -> &[u8; 32] { &self.0 }
    /// k
    pub fn from_bytes(b: [u8; 32]) -> Self { Self(b) }
}
