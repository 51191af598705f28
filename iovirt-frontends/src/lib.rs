//! The devices that a guest sees: virtio devices, their rings and their transports, and the PCI bus that they can stand on.

#![forbid(unsafe_code)]

pub mod pci;
pub mod virtio;
