//! Transports: how a guest finds a virtio device, sets its queues up and is interrupted.

mod common;
mod generation;
pub mod mmio;
pub mod pci;

pub use common::{TransportError, TransportState};
