//! How a null disk is set up.

/// How a [`NullBackend`](super::NullBackend) is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NullConfig {
    /// Size of the disk in bytes, a multiple of 512; not zero.
    pub size: u64,
    /// Whether reads give zeroes. Where not, they leave memory as it is: the guest sees whatever its buffer held.
    pub fill: bool,
}

impl Default for NullConfig {
    /// 1 GiB, reads give zeroes.
    fn default() -> Self {
        Self { size: 1 << 30, fill: true }
    }
}
