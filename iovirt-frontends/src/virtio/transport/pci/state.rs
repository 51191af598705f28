//! What is saved of the registers that only virtio-pci has.

use crate::pci::MsixState;
use iovirt_core::state::SavedState;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PciState {
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) queue_sel: u16,
    pub(super) config_generation: u32,
    pub(super) interrupt_status: u8,
    pub(super) config_vector: u16,
    pub(super) queue_vectors: Vec<u16>,
    /// The bits of the configuration space that a guest can write.
    pub(super) config_space: Vec<u8>,
    pub(super) msix: MsixState,
}

impl SavedState for PciState {
    const KIND: &'static str = "virtio-pci";
    const VERSION: u16 = 1;
}
