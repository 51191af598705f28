//! Transports: how a guest finds a virtio device, sets its queues up and is interrupted.

mod common;
pub mod mmio;

pub use common::{TransportError, TransportState};
