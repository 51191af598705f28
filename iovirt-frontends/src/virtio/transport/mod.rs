//! Transports: how a guest finds a virtio device, sets its queues up and is interrupted.

mod common;
mod generation;
pub mod mmio;
pub mod pci;
#[cfg(feature = "vhost-user")]
pub mod vhost_user;

pub use common::{TransportError, TransportState};
