//! How a loopback is set up.

use crate::net::MAX_PAIRS;

/// How a [`LoopbackBackend`](super::LoopbackBackend) is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopbackConfig {
    /// Largest payload of a frame in bytes: 68 to 65535.
    pub mtu: u16,
    /// Pairs of queues that are served: 1 to [`MAX_PAIRS`].
    pub pairs: u16,
}

impl Default for LoopbackConfig {
    /// 1500 bytes, every pair.
    fn default() -> Self {
        Self { mtu: 1500, pairs: MAX_PAIRS }
    }
}
