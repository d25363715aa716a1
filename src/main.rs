//! patchcord
fn main() {}
