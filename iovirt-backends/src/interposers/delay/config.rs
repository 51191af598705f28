//! How the stage is set up.

use crate::interposers::Kinds;
use std::time::Duration;

/// How a [`Delay`](super::Delay) stage is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelayConfig {
    /// How long a request is held at least.
    pub time: Duration,
    /// How much longer at most; by chance, every length as likely as any other.
    pub jitter: Duration,
    /// The requests that it holds.
    pub kinds: Kinds,
    /// Where chance begins.
    pub seed: u64,
}

impl Default for DelayConfig {
    /// One millisecond for every request.
    fn default() -> Self {
        Self { time: Duration::from_millis(1), jitter: Duration::ZERO, kinds: Kinds::all(), seed: 1 }
    }
}
