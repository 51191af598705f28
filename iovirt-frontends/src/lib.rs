//! The devices that a guest sees: virtio devices, their rings and their transports.

#![forbid(unsafe_code)]

pub mod virtio;
