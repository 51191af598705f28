//! How the stage is set up.

/// How a [`Stripe`](super::Stripe) is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StripeConfig {
    /// What the stage is called in the list of a stack's stages.
    pub name: String,
    /// How much goes to one back-end before the next, in bytes: a multiple of the block size below, at most
    /// [`StripeConfig::MAX_CHUNK`].
    pub chunk: u64,
}

impl StripeConfig {
    /// The largest chunk in bytes.
    pub const MAX_CHUNK: u64 = 1 << 30;
}

impl Default for StripeConfig {
    /// Called `stripe`, with chunks of 64 KiB.
    fn default() -> Self {
        Self { name: "stripe".into(), chunk: 64 << 10 }
    }
}
