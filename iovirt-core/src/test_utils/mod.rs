//! The test kit.

#[cfg(feature = "test-utils-virtio")]
pub mod virtio;
