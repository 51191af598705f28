//! How the stage is set up.

/// How an [`Overlay`](super::Overlay) is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayConfig {
    /// What the stage is called in the list of a stack's stages.
    pub name: String,
    /// The unit in which data moves up, in bytes: a power of two from [`OverlayConfig::MIN_CLUSTER`] to
    /// [`OverlayConfig::MAX_CLUSTER`].
    pub cluster: u64,
}

impl OverlayConfig {
    /// The smallest cluster in bytes.
    pub const MIN_CLUSTER: u64 = 4 << 10;
    /// The largest cluster in bytes.
    pub const MAX_CLUSTER: u64 = 1 << 20;
}

impl Default for OverlayConfig {
    /// Called `overlay`, with clusters of 64 KiB.
    fn default() -> Self {
        Self { name: "overlay".into(), cluster: 64 << 10 }
    }
}
